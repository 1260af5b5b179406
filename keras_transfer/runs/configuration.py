"""A run's config.gin, read without the configurables that it names."""

import importlib
import importlib.util
import itertools
import os
import pathlib
import sys

from absl import logging
from gin import config_parser


def bindings(config):
    """Returns {"scope/configurable.parameter": value} of a gin text.

    A reference to a configurable is the str "@..." that stands there.

    Args:
        config: str.

    Raises:
        SyntaxError, tokenize.TokenError: if it is not gin.
    """
    delegate, found = _Values(), {}
    for statement in config_parser.ConfigParser(config, delegate):
        if not isinstance(statement, config_parser.BindingStatement):
            continue
        scope, selector, parameter, value, _ = statement
        name = f"{scope}/{selector}" if scope else selector
        if parameter:
            found[f"{name}.{parameter}"] = value
        else:
            delegate.macros[name] = value
    return found


def value(config, name):
    """Returns what a gin text binds to a parameter.

    Args:
        config: str.
        name: str, configurable and parameter, such as "train.seed".

    Raises:
        SyntaxError, tokenize.TokenError: if it is not gin.
        KeyError: if it binds nothing.
    """
    for key, found in bindings(config).items():
        # Gin writes module names before a name that is not unique.
        if f".{key}".endswith(f".{name}"):
            return found
    raise KeyError(name)


def import_modules(config, run_path):
    """Imports the modules that a gin text imports, for the layers they define.

    Modules are looked for where Python does and in the working directory, and
    left out if they are not there; never in the run directory, which others may
    have written.

    Args:
        config: str.
        run_path: `pathlib.Path` of the run directory.

    Raises:
        SyntaxError, tokenize.TokenError: if it is not gin.
    """
    names = [
        statement.module
        for statement in config_parser.ConfigParser(config, _Values())
        if isinstance(statement, config_parser.ImportStatement)
        and not statement.module.startswith("__gin__")
    ]
    for name in names:
        if name not in sys.modules:
            _import(name, pathlib.Path(run_path).resolve())


def _import(name, run_path):
    folders = [folder or os.getcwd() for folder in (*sys.path, os.getcwd())]
    before = sys.path[:]
    sys.path[:] = [
        f for f in dict.fromkeys(folders) if _is_outside(f, run_path)
    ]
    try:
        # A package is looked at before what is in it.
        for parent in itertools.accumulate(name.split("."), "{}.{}".format):
            spec = importlib.util.find_spec(parent)
            if spec is None or not _is_outside(spec.origin, run_path):
                raise ModuleNotFoundError(f"there is no module {parent}")
        importlib.import_module(name)
    except Exception as error:  # Whatever happens in a module of the user's.
        # What the model needs of it is missed, and named, when it is made.
        logging.warning(
            "The run %s was configured with `import %s`, which cannot be "
            "imported here: %s.",
            run_path,
            name,
            str(error).rstrip("."),
        )
    finally:
        sys.path[:] = before


def _is_outside(path, directory):
    return not path or not pathlib.Path(path).resolve().is_relative_to(
        directory
    )


class _Values(config_parser.ParserDelegate):
    """Lets a configuration be read without the configurables it names."""

    def __init__(self):
        self.macros = {}

    def configurable_reference(self, scoped_configurable_name, evaluate):
        call = "()" if evaluate else ""
        return f"@{scoped_configurable_name}{call}"

    def macro(self, macro_name):
        # Gin writes macros before what uses them; constants stay a name.
        return self.macros.get(macro_name, f"%{macro_name}")
