"""Reading gin configurations, with plain sentences for what is wrong."""

import difflib
import inspect
import io
import os
import pathlib
import re
import sys
import tokenize
import traceback

import gin
from gin import config_parser
from gin import utils as gin_utils

from keras_transfer.config import schema
from keras_transfer.errors import UserError

# In an installed package it is within, in a clone beside it.
_PACKAGED = pathlib.Path(__file__).parents[1] / "gin"
SHIPPED = (
    _PACKAGED
    if _PACKAGED.is_dir()
    else pathlib.Path(__file__).parents[2] / "gin"
)
# What parameters were called, so that older files are still understood.
_FORMER_NAMES = {
    "Subjects.runs": "Models.models",
    "Subjects.epoch": "Models.epoch",
    "Subjects.data_from": "Models.data",
    **{
        f"dataset_surface.{name}": f"examples_surface.{name}"
        for name in ("batch_size", "strategy", "memory_budget", "jit_compile")
    },
    **{
        f"dataset_suffixes.{name}": f"examples_modules.{name}"
        for name in (
            "num_examples",
            "batch_size",
            "strategy",
            "memory_budget",
            "jit_compile",
        )
    },
}
_BYTE_ORDER_MARK = "\ufeff"
# Beside config.gin, these tell a directory of results from one of sources.
_RESULTS = ("model.json", "task.json", "claims.csv", "tensorboard")
# Of the command's own files; a study's are looked for there.
_folders = []
# What gin says of a name that there is not.
_UNKNOWN_NAME = re.compile(
    r"No configurable matching (?:reference )?"
    r"'@?(?:.*[/.])?(?P<given>\w+)(?:\(\))?'\."
)
_UNKNOWN_PARAMETER = re.compile(
    r"Configurable '(?P<of>.+)' doesn't have a parameter named "
    r"'(?P<given>.+)'\."
)


def parse(files, bindings, included=False):
    """Reads gin files, then single bindings, into gin's configuration.

    A file is looked for in the working directory and then in the one that is
    shipped, whose name may stand before its own: gin/p_mnist.gin is found
    wherever one works. A file that is included is looked for beside the file
    that includes it, in the directory that is shipped, and then in the working
    directory. A module that is imported may lie beside the gin files or in the
    working directory.

    Args:
        files: paths of gin files; later ones win.
        bindings: str each, such as "train.seed = 1"; they win over the files.
        included: bool, whether the files are looked for as if those of the
            last call without it had included them.

    Raises:
        UserError: if a file is missing, or a line cannot be parsed or names
            something that does not exist, or binds what its parameter is not
            declared to take.
    """
    try:
        reader = _Reader()
        folders = [*_folders, SHIPPED, ""] if included else ["", SHIPPED]
        found = [reader.read_file(name, folders) for name in files]
        if not included and files:
            _folders[:] = dict.fromkeys(map(os.path.dirname, found))
        reader.read_text("\n".join(bindings))
        reader.check_names()
        schema.check_configuration()
        gin.finalize()
    except RecursionError as error:
        raise UserError(
            "The configuration cannot be used: brackets are nested too deeply. "
            f"Received: {' '.join(files)}"
        ) from error
    except (
        OSError,
        ValueError,
        KeyError,
        SyntaxError,
        ImportError,
        MemoryError,  # How Python's parser says that brackets are too deep.
        tokenize.TokenError,
    ) as error:
        received = [f"--gin_file={name}" for name in files]
        received += [f"--gin_bindings='{b}'" for b in bindings]
        raise UserError(
            "The configuration cannot be used: "
            f"{_with_suggestion(without_calls(error))}\n"
            f"Received: {' '.join(received)}"
        ) from error


def without_calls(error):
    """Returns an error's text without the call stack that gin appends."""
    return str(error).split("\n  In call to configurable")[0].strip()


def _with_suggestion(text):
    """Returns what gin says, with the nearest name to one that there is not."""
    if unknown := _UNKNOWN_NAME.search(text):
        # Gin has no public way to ask for all names.
        names = [
            name.rpartition(".")[2] for name, _ in gin.config._REGISTRY.items()
        ]
    elif unknown := _UNKNOWN_PARAMETER.search(text):
        configurable = gin.get_configurable(unknown["of"])
        names = inspect.signature(configurable).parameters
    else:
        return text
    hint = _did_you_mean(unknown["given"], names)
    return f"{text[: unknown.end()]}{hint}{text[unknown.end() :]}"


def _did_you_mean(given, names, suffix=""):
    """Returns a question about the name nearest to a given one, or ""."""
    named = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), named, 1)
    return f" Did you mean {named[near[0]]}{suffix}?" if near else ""


class _Reader:
    """Reads statements into gin as `gin.parse_config` does, and more.

    Gin looks for an included file in the working directory first, and knows no
    parameter by two names.
    """

    def __init__(self):
        self._open = []  # The files that are being read, outermost first.
        self._bound = {}  # {binding under its present name: names it had}.

    def read_file(self, name, folders):
        """Reads a file from the first of some folders that has it.

        Returns:
            str, the path at which it was found.
        """
        name = os.path.expanduser(name)
        places = list(dict.fromkeys(_places(name, folders)))
        path = next(filter(os.path.isfile, places), None)
        if path is None:
            hint = _did_you_mean(
                pathlib.Path(name).stem, _beside(places), ".gin"
            )
            raise FileNotFoundError(
                f"There is no file {name}.{hint} Looked for: "
                f"{', '.join(places)}"
            )
        if os.path.realpath(path) in map(os.path.realpath, self._open):
            way = " includes ".join([*self._open, path])
            raise ValueError(f"A file includes itself: {way}")
        self._open.append(path)
        _find_modules_in(os.path.dirname(path))
        with open(path, encoding="utf-8") as file:
            # Some editors put one first.
            if file.read(1) != _BYTE_ORDER_MARK:
                file.seek(0)
            self._read(file)
        self._open.pop()
        return path

    def read_text(self, text):
        """Reads statements."""
        self._read(io.StringIO(text))

    def check_names(self):
        """Checks that nothing is bound by its former and its present name."""
        for names in self._bound.values():
            if len(names) > 1:
                former, present = sorted(names, key=_is_present)
                raise ValueError(
                    f"{former} is the former name of {present}, and both are "
                    "bound. Leave one of them out."
                )

    def _read(self, file):
        _find_modules_in("")
        parser = config_parser.ConfigParser(file, gin.config.ParserDelegate())
        # Gin has no public way to take one statement.
        with gin.config._parse_scope() as scope:
            for statement in parser:
                if isinstance(statement, config_parser.IncludeStatement):
                    self._include(statement)
                elif isinstance(statement, config_parser.ImportStatement):
                    _import(statement, scope)
                elif isinstance(statement, config_parser.BindingStatement):
                    with gin_utils.try_with_location(statement.location):
                        self._bind(statement)
                elif not self._is_known(statement.selector):
                    with gin_utils.try_with_location(statement.location):
                        raise ValueError(
                            f"No configurable matching '{statement.selector}'."
                        )
            gin.config._IMPORTS.update(scope.imports)

    def _include(self, statement):
        beside = [os.path.dirname(self._open[-1])] if self._open else []
        with gin_utils.try_with_location(statement.location):
            self.read_file(statement.filename, [*beside, SHIPPED, ""])

    def _bind(self, statement):
        scope, selector, parameter, value, _ = statement
        if not parameter:
            name = f"{scope}/{selector}" if scope else selector
            gin.bind_parameter((name, "gin.macro", "value"), value)
            return
        given = f"{selector.rpartition('.')[2]}.{parameter}"
        present = _present_name(given, selector)
        if present != given:
            selector, _, parameter = present.partition(".")
        gin.bind_parameter((scope, selector, parameter), value)
        self._bound.setdefault((scope, present), set()).add(given)

    @staticmethod
    def _is_known(selector):
        former = {name.partition(".")[0] for name in _FORMER_NAMES}
        return selector in former or _is_configurable(selector)


def _is_configurable(selector):
    return gin.config._parse_context().get_configurable(selector) is not None


def _present_name(name, selector):
    """Returns what a parameter is called now, unless a user has one so called.

    Args:
        name: str, "configurable.parameter".
        selector: str, the configurable with the modules given before it.
    """
    if name not in _FORMER_NAMES or _is_configurable(selector):
        return name
    return _FORMER_NAMES[name]


def _is_present(name):
    return name not in _FORMER_NAMES


def _places(name, folders):
    """Yields where a file of some name may be, in the order of the folders."""
    for folder in folders:
        yield os.path.join(folder, name)
        if folder == SHIPPED and name.startswith("gin/"):
            yield os.path.join(folder, name.removeprefix("gin/"))


def _beside(places):
    """Yields the stems of the gin files that are where one was looked for."""
    for folder in dict.fromkeys(map(os.path.dirname, places)):
        for path in pathlib.Path(folder).glob("*.gin"):
            yield path.stem


def _find_modules_in(folder):
    """Lets modules in a folder be imported, after all others.

    One in which a command has left results is no place for modules: it may be
    a stranger's.
    """
    folder = os.path.abspath(folder)
    has = {name for name in (*_RESULTS, "config.gin") if _exists(folder, name)}
    is_of_results = "config.gin" in has and len(has) > 1
    if folder not in sys.path and not is_of_results:
        sys.path.append(folder)


def _exists(folder, name):
    return os.path.lexists(os.path.join(folder, name))


def _import(statement, scope):
    with gin_utils.try_with_location(statement.location):
        try:
            scope.process_import(statement)
        except (SyntaxError, ImportError):
            raise
        except Exception as error:
            # In a module of the user's own; where, they will want to know.
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise ImportError(
                f"{statement.format()} ended with {type(error).__name__}: "
                f"{error} ({last.filename}, line {last.lineno})"
            ) from error
