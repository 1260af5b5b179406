"""Tells what a source of weights is by its content, and opens it."""

import contextlib
import os
import pathlib
import zipfile

import keras

from keras_transfer.errors import UserError
from keras_transfer.models.weight_sources import (
    keras_files,
    presets,
    safetensors_files,
    saved_models,
    torch_files,
)
from keras_transfer.models.weight_sources.normalization import normalization
from keras_transfer.models.weight_sources.weights import Weights
from keras_transfer.models.weights import named_weights

_KINDS = (
    "a run directory, a .keras file, a .weights.h5 or .h5 file, a SavedModel, "
    "a .safetensors file, a .pth file of PyTorch's, or a KerasHub preset's "
    "directory"
)
# (whether a directory is of a kind, what opens it); packages above add theirs.
_DIRECTORIES = [
    (saved_models.is_saved_model, saved_models.read),
    (presets.is_preset, presets.open_preset),
    (safetensors_files.is_directory, safetensors_files.read_directory),
]


def register_directory(is_one, opened):
    """Has directories of a further kind taken as sources.

    Args:
        is_one: function of a path, whether it is of that kind.
        opened: function of a path; returns a `keras.Model`, `Weights`, or what
            has `load_model` and `load_weights`, as a `runs.Run` has.
    """
    _DIRECTORIES.insert(0, (is_one, opened))


def read_weights(source):
    """Reads the weights in a file or directory, whatever kind it is.

    Kinds are told by content, not by name. Nothing that a file holds as Python
    code is run.

    Example:
        weights = read_weights("resnet50.safetensors")
        initialize_from(model, weights)

    Args:
        source: path of a run directory (its last epoch is read), a .keras,
            .weights.h5, .h5 (Keras 2), .safetensors or .pth file (PyTorch's,
            for which it must be installed), a SavedModel with variables, or a
            KerasHub preset; or a `runs.Run` or `keras.Model`.

    Returns:
        `Weights`, a dict {name: array} with the names and the layout that the
        source has: kernels in a PyTorch file stay as PyTorch has them.

    Raises:
        UserError: if it is none of these, or damaged.
    """
    opened = open_source(source)
    if isinstance(opened, Weights):
        return opened
    if isinstance(opened, keras.Model):
        return Weights(named_weights(opened), _called(source))
    return Weights(opened.load_weights(), _called(source))


def open_source(source):
    """Returns what a source holds: a model where it tells of one.

    Args:
        source: as `read_weights` takes it, or a dict {name: array}.

    Returns:
        A `keras.Model`, `Weights`, or what has `load_model(epoch)` and
        `load_weights(epoch)`. The first two have, from a path, `mean` and
        `std`, see `normalization`.

    Raises:
        UserError: as `read_weights`.
    """
    if isinstance(source, (Weights, keras.Model)):
        return source
    if isinstance(source, dict):
        return Weights(source)
    if hasattr(source, "load_model") and hasattr(source, "load_weights"):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise UserError(
            "Weights come from a path, a run, a dict {name: array} or a "
            f"functional Keras model. Received: {source!r}"
        )
    path = pathlib.Path(source).expanduser()
    opened = _open(path)
    if isinstance(opened, (Weights, keras.Model)):
        opened.mean, opened.std = normalization(path)
    return opened


def _open(path):
    if path.is_dir():
        for is_one, opened in _DIRECTORIES:
            if is_one(path):
                return opened(path)
        raise UserError(
            f"{path} is a directory that holds no weights known here. They "
            f"come from {_KINDS}."
        )
    if not path.is_file():
        raise UserError(f"There is no file and no directory {path}.")
    return _reader(path)(path)


def _reader(path):
    """Returns what reads a file, by the bytes that it begins with."""
    with _readable(path), open(path, "rb") as file:
        start = file.read(256)
    if not start:
        raise UserError(f"{path} is empty. Fetch or write it again.")
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return keras_files.read_h5
    if start.startswith(b"PK\x03\x04"):
        return _zip_reader(path)
    if start[8:9] == b"{":
        return safetensors_files.read
    # How any pickle begins; the older format of PyTorch is several.
    if start[0] == 0x80:
        return torch_files.read
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{path} is a web page, not weights: what was asked for was not "
            "there, or wanted a login. Fetch it again."
        )
    if text.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} stands for a file that Git LFS has not fetched: run "
            "`git lfs pull` where it was cloned."
        )
    raise UserError(
        f"{path} is of no kind known here. Weights come from {_KINDS}."
    )


def _zip_reader(path):
    with _readable(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise UserError(
                f"{path} begins as a .keras file or one of PyTorch's, and was "
                "cut short or damaged. Fetch it again."
            ) from error
    if "config.json" in names and "model.weights.h5" in names:
        return keras_files.load_model
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return torch_files.read
    raise UserError(
        f"{path} is an archive without weights. They come from {_KINDS}; "
        "unpack it first if it holds one of these."
    )


@contextlib.contextmanager
def _readable(path):
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _called(source):
    if isinstance(source, keras.Model):
        return f"model '{source.name}'"
    return getattr(source, "path", source)
