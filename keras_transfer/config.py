"""Reading gin configurations, with plain sentences for what is wrong."""

import inspect
import logging
import os
import tokenize
import typing
from collections.abc import Callable

import gin

from keras_transfer.errors import UserError


def parse(files, bindings):
    """Reads gin files, then single bindings, into gin's configuration.

    An included file is looked for beside the file that includes it, too.

    Args:
        files: paths of gin files; later ones win.
        bindings: str each, such as "train.seed = 1"; they win over the files.

    Raises:
        UserError: if a file is missing, or a line cannot be parsed or names
            something that does not exist.
    """
    for name in files:
        gin.add_config_file_search_path(os.path.dirname(name))
    # Gin logs an error for every place where an include is not.
    logging.disable(logging.ERROR)
    try:
        gin.parse_config_files_and_bindings(files, bindings)
        _check_types()
    except RecursionError as error:
        raise UserError(
            "The configuration cannot be used: a file includes itself, or "
            f"brackets are nested too deeply. Received: {' '.join(files)}"
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
            f"The configuration cannot be used: {without_calls(error)}\n"
            f"Received: {' '.join(received)}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def _check_types():
    # Gin has no public way to ask for all that is bound.
    for (_, selector), bound in gin.config._CONFIG.items():
        name = selector.rpartition(".")[2]
        check_values(gin.get_configurable(selector), bound, name)


def check_values(function, values, name):
    """Checks values against the types that parameters are declared with.

    Args:
        function: whose parameters they are.
        values: {parameter: value}; references of gin are not looked into.
        name: str, what to call the function.

    Raises:
        ValueError: if a value is of another type.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # Not every built-in tells.
        return
    for key, value in values.items():
        if key not in parameters or isinstance(
            value, gin.config.ConfigurableReference
        ):
            continue
        kinds = _DECLARED.get(f"{name}.{key}") or _kinds(parameters[key])
        if kinds and not any(_is_a(value, kind) for kind in kinds):
            words = " or ".join(_WORDS[kind] for kind in kinds)
            raise ValueError(
                f"{name}.{key} must be {words}. Received: {value!r}"
            )


# What is checked of the types that parameters may be declared with.
_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    tuple: "a list",
    type(None): "None",
    Callable: "a reference such as @name",
}


# Of parameters whose default does not tell.
_DECLARED = {
    "train.model": (Callable,),
    "train.dataset": (Callable,),
    "train.schedule": (Callable,),
    "train.optimizer": (Callable,),
    "train.strategy": (Callable,),
    "train.augmentation": (tuple,),
    "train.pretrained": (str, type(None)),
    "train.seed": (int,),
    "train.eval_batch_size": (int,),
    "SGD.global_clipnorm": (float, type(None)),
    "analyze.analyses": (tuple,),
    "mistakes.num_bins": (int,),
}


def _kinds(parameter):
    """Returns the types a parameter may have, () if that is not known."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        # A float or bool tells what is meant; other defaults often stand
        # beside values of another type.
        annotation = type(parameter.default)
        return (annotation,) if annotation in (bool, float) else ()
    kinds = typing.get_args(annotation) or (annotation,)
    return kinds if all(kind in _WORDS for kind in kinds) else ()


def _is_a(value, kind):
    if kind is Callable:
        return False  # Nothing but a reference can be one in a gin file.
    if kind is tuple:
        return isinstance(value, (list, tuple))
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def without_calls(error):
    """Returns an error's text without the call stack that gin appends."""
    return str(error).split("\n  In call to configurable")[0].strip()
