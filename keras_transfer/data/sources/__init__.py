"""Where images and labels come from, one file a source.

Every file here registers what it is; see `register`. A module elsewhere may do
the same: once it is imported, `data.load` knows its data set, too.
"""

import importlib
import pkgutil

from keras_transfer.data.sources.registry import (
    Found,
    Source,
    find,
    names,
    register,
)

__all__ = ["Found", "Source", "find", "names", "register"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
