"""Files of ours that are read back: what is wrong with one is a sentence."""

import contextlib
import csv
import io
import json
import os
import pathlib
import stat

from keras_transfer.errors import UserError

# Deeper than anything that is written here: models within models.
_DEEPEST = 200
# What content of another form than expected leads to.
_OF_ANOTHER_FORM = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
    csv.Error,
)


@contextlib.contextmanager
def damaged(path):
    """Turns what the content of a file leads to into a plain sentence.

    Args:
        path: the file, to name it.

    Raises:
        UserError: instead of errors about values, types and form.
    """
    try:
        yield
    except UserError:
        raise
    except _OF_ANOTHER_FORM as error:
        said = str(error) or type(error).__name__
        raise UserError(
            f"{path} is damaged: {said.rstrip('.')}. Put back a copy of it, or "
            "have it made again."
        ) from error


def read_bytes(path):
    """Returns what a file holds; a pipe is not waited for.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(0, "It is not a file")
            return file.read()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read, so {pathlib.Path(path).parent} is not "
            f"complete: {error.strerror}."
        ) from error


def as_text(content, path):
    """Returns bytes as text in UTF-8.

    Args:
        content: bytes.
        path: what they were read from, to name it.

    Raises:
        UserError: if they are no text.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is damaged: it is not text in UTF-8. Put back a copy of "
            "it, or have it made again."
        ) from error


def as_object(content, path, **types):
    """Returns the object that is written in JSON.

    Args:
        content: bytes.
        path: what they were read from, to name it.
        **types: the keys it must have, and the type or types of each value.

    Returns:
        dict.

    Raises:
        UserError: if it is of another form.
    """
    text = as_text(content, path)
    with damaged(path):
        found = json.loads(text)
        if not isinstance(found, dict):
            raise TypeError("it does not hold an object")
        _check_depth(found)
        if missing := types.keys() - found.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        for name, kinds in types.items():
            _check_type(name, found[name], kinds)
    return found


def as_table(content, path, **options):
    """Returns a table in CSV as a `pandas.DataFrame`.

    Args:
        content: bytes.
        path: what they were read from, to name it.
        **options: of `pandas.read_csv`.

    Raises:
        UserError: if it is none.
    """
    import pandas

    text = as_text(content, path)
    with damaged(path):
        return pandas.read_csv(io.StringIO(text), **options)


def _check_depth(value):
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]


def _check_type(name, value, kinds):
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    # True is an int to Python.
    if type(value) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"its {name} is not of type {wanted}: {value!r:.80}")
