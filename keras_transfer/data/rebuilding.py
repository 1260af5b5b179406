"""What is recorded of where data came from, and the data again from that."""

import functools
import inspect
import json
import os
import site
import sys
import sysconfig

import gin
from absl import logging

from keras_transfer.config import schema
from keras_transfer.data.loading import load
from keras_transfer.data.pipeline import Dataset
from keras_transfer.data.sources import registry
from keras_transfer.errors import UserError


def describe(factory):
    """Describes a function that makes a dataset, for `rebuild`.

    Args:
        factory: a function that gin configures, as a reference in a gin file
            gives it, or any other function of a module.

    Returns:
        name: what gin calls it, else "module.function".
        arguments: what gin, or `functools.partial`, binds of its parameters, as
            far as JSON can hold it; with a warning about what it cannot.
    """
    if isinstance(factory, functools.partial):
        name, arguments = describe(factory.func)
        bound = inspect.signature(factory.func).bind_partial(
            *factory.args, **factory.keywords
        )
        return name, arguments | _plain(bound.arguments, name)
    # Gin has no public way to ask for the selector, or for the scopes that a
    # reference puts around a function.
    found = gin.config._inverse_lookup(factory, allow_decorators=True)
    if found is None:
        kind = factory if hasattr(factory, "__qualname__") else type(factory)
        return f"{kind.__module__}.{kind.__qualname__}", {}
    name = found.selector
    bindings = gin.get_bindings("/".join([*_scopes(factory), name]))
    return name, _plain(bindings, name)


def rebuild(factory, arguments, info=None):
    """Makes a dataset again, from a record that may be a stranger's.

    Nothing is downloaded, and only functions are called that are the user's own
    or make data by this package.

    Args:
        factory: "load", or as `describe` names it. The module that defines it
            must be imported already.
        arguments: {parameter: value}, to call it with.
        info: `Info` of the dataset as it was. If its normalization was another,
            inherited from a P, it is that again. None leaves it alone.

    Returns:
        A `Dataset`.

    Raises:
        UserError: if there is no such function, it does not take these
            arguments, or does not make a `Dataset`.
    """
    function = load if factory == "load" else _find(factory)
    try:
        inspect.signature(function).bind(**arguments)
        schema.check_values(function, arguments, factory)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{factory} cannot be called as it was when the data were recorded."
            f" Received: {arguments}. {error}"
        ) from error
    with registry.not_fetching():
        dataset = function(**arguments)
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"{factory} does not make a keras_transfer.data.Dataset. Received: "
            f"{type(dataset).__name__}."
        )
    if info is None or (
        (info.mean, info.std) == (dataset.info.mean, dataset.info.std)
    ):
        return dataset
    return dataset.normalized_as(info)


def _find(name):
    """Returns a function that is known already, by its name."""
    module, _, function = str(name).rpartition(".")
    try:
        found = gin.get_configurable(name)
    except (KeyError, ValueError):
        found = getattr(sys.modules.get(module), function, None)
    if not callable(found) or not _is_own(found):
        raise UserError(
            f"The data were made by a function that is not known here. "
            f"Received: {name!r}; import the module that defines it, in a gin "
            f"file with a line such as: import {module or 'my_data'}"
        )
    return found


def _is_own(function):
    """Returns whether a function is of a module of the user's own.

    A record must not have what removes files or trains models called.
    """
    name = getattr(inspect.unwrap(function), "__module__", None) or ""
    package = name.partition(".")[0]
    if package == "keras_transfer":
        return name.startswith("keras_transfer.data.")
    file = getattr(sys.modules.get(name), "__file__", None)
    if package in sys.stdlib_module_names and package != "__main__":
        return False
    return package == "__main__" or (
        file is not None and not _is_installed(file)
    )


def _is_installed(file):
    folders = {sysconfig.get_path(key) for key in ("purelib", "platlib")}
    folders |= {sysconfig.get_path("stdlib"), site.getusersitepackages()}
    path = os.path.realpath(file)
    return any(
        path.startswith(os.path.join(os.path.realpath(folder), ""))
        for folder in folders
    )


def _scopes(factory):
    """Returns the scopes that gin puts around a referenced function."""
    if not inspect.isfunction(factory):
        return []
    names = inspect.getclosurevars(factory).nonlocals
    return names.get("scope_components", [])


def _plain(arguments, name):
    """Returns the arguments that JSON can hold."""
    plain = {k: value for k, value in arguments.items() if _is_plain(value)}
    lost = sorted(set(arguments) - set(plain))
    if lost:
        logging.warning(
            "The arguments %s of %s are no plain values and not recorded: "
            "analyses of this run need them bound in their own configuration.",
            ", ".join(lost),
            name,
        )
    return plain


def _is_plain(value):
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
