"""Every analysis that comes with the package, declared by being imported."""

import importlib
import pkgutil

import keras_transfer.analysis as package

for _module in pkgutil.iter_modules(package.__path__):
    if _module.name != "all":
        importlib.import_module(f"{package.__name__}.{_module.name}")
