"""Keras' own files: .keras, .weights.h5, and the .h5 of Keras 2."""

import contextlib
import pathlib
import re
import tempfile

import h5py
import keras
import numpy as np
from keras.src.saving import saving_lib

from keras_transfer.errors import UserError
from keras_transfer.models.weight_sources.weights import Weights, damaged


def load_model(path):
    """Returns the `keras.Model` in a .keras file; no code in it is run.

    Args:
        path: `pathlib.Path`.

    Raises:
        UserError: if it has layers unknown here, a Lambda, or is damaged.
    """
    try:
        with _with_suffix(path) as named:
            model = keras.saving.load_model(
                named, compile=False, safe_mode=True
            )
    except Exception as error:  # Whatever a layer's constructor raises.
        reason = " ".join(str(error).split())
        if "safe_mode" in reason or "unsafe" in reason:
            raise UserError(
                f"{path} holds a Lambda, Python code that loading it would "
                "run, and is not loaded. Replace the Lambda by a layer of your "
                "own, or save the weights alone (model.save_weights)."
            ) from error
        raise UserError(
            f"{path} cannot be loaded as a Keras model. If it has layers of "
            "your own, import the module that defines them first. Keras said: "
            f"{reason[:300]}"
        ) from error
    # What names it in a report; Keras' own name says nothing of the file.
    model.source = str(path)
    return model


@contextlib.contextmanager
def _with_suffix(path):
    """Gives a path that ends in .keras, by which alone Keras tells a file."""
    if path.suffix == ".keras":
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        link = pathlib.Path(directory) / f"{path.name}.keras"
        link.symlink_to(path.resolve())
        yield link


def read_h5(path):
    """Returns the `Weights` in an .h5 file of Keras 2 or 3.

    Args:
        path: `pathlib.Path`.

    Raises:
        UserError: if it is damaged, or no weights are in it.
    """
    with damaged(path, "an HDF5 file"), h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs:
            weights = Weights(_keras_2(root), path)
        else:
            weights = Weights(_keras_3(file), path, "keras_h5")
    if not weights:
        raise UserError(
            f"{path} is an HDF5 file without weights of a Keras model. Write "
            "it with model.save_weights."
        )
    return weights


def h5_names(model):
    """Tells where `model.save_weights` puts each variable in an .h5 file.

    Args:
        model: built `keras.Model`.

    Returns:
        {id of a variable: name}, such as "layers/conv2d_1/vars/0"; without
        variables that a layer of the user's own writes in a way of its own.
    """
    recorder = _Recorder()
    # Keras has no public way to ask for this without writing a file.
    saving_lib._save_state(model, recorder, None, "", set())
    return {
        id(variable): name
        for name, variable in recorder.found()
        if isinstance(variable, keras.Variable)
    }


class _Recorder(saving_lib.H5IOStore):
    """Takes what would be written into a file."""

    def __init__(self):
        self._entries = {}

    def __bool__(self):
        return True

    def make(self, path, metadata=None):
        del metadata
        return self._entries.setdefault(path, {})

    def found(self):
        for path, entry in self._entries.items():
            for key, value in entry.items():
                yield f"{path}/vars/{key}".lstrip("/"), value


def _keras_3(file):
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            found[name] = np.asarray(item)

    file.visititems(visit)
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _natural(name):
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def _keras_2(root):
    """Reads layers in the order of the network, as Keras 2 wrote them."""
    found = {}
    for layer in map(_text, root.attrs["layer_names"]):
        for name in map(_text, root[layer].attrs["weight_names"]):
            short = name.removesuffix(":0")
            path = short if "/" in short else f"{layer}/{short}"
            # "conv1/conv1/kernel" is of layer "conv1".
            parts = path.split("/")
            if len(parts) > 2 and parts[0] == parts[1]:
                path = "/".join(parts[1:])
            found[path] = np.asarray(root[layer][name])
    return found


def _text(name):
    return name.decode() if isinstance(name, bytes) else str(name)
