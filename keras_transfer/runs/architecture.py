"""A model without its weights, as text, and back."""

import contextlib
import json
import math

import keras
import numpy as np

from keras_transfer import memory
from keras_transfer.errors import UserError
from keras_transfer.models.weights import assign_weights, named_weights
from keras_transfer.runs import checkpoints

# How far outputs may differ, in parts of the largest: the same operations on
# the same device give the same bits, save for some on a GPU.
_TOLERANCE = 1e-3
# Packages whose classes are made from a model.json, beside registered ones.
_PACKAGES = ("keras", "keras_hub", "keras_cv", "keras_nlp", "keras_transfer")
# What stands for no class of a package: functions by their name, and values.
_WITHOUT_MODULE = (None, "builtins")
# What runs or fetches something that only the text knows of.
_WITH_CODE = (
    "Lambda",
    "TorchModuleWrapper",
    "TFSMLayer",
    "JaxLayer",
    "FlaxLayer",
    "__lambda__",
    "__typespec__",
)
_WITHOUT_LAYERS = ("utils", "saving", "config", "callbacks", "datasets")


def check_model(model, num_classes):
    """Checks that a model is of a kind that can be written and analyzed.

    Args:
        model: what `train.model` has made.
        num_classes: int, the classes or findings of the data.

    Raises:
        UserError: if it is subclassed, not built, or has several inputs or
            outputs, or not one output a class.
    """
    must = (
        "train.model must make a functional or Sequential keras.Model of one "
        "input, a batch of images, and one output, a batch of logits. "
    )
    kind = type(model).__name__
    if not isinstance(model, keras.Model):
        raise UserError(f"{must}Received: {kind}.")
    inputs, outputs = (
        getattr(model, name, None) for name in ("inputs", "outputs")
    )
    if not inputs or not outputs:
        raise UserError(
            f"{must}Received: {kind}, which is subclassed or has no input yet. "
            "Begin a Sequential model with keras.Input(input_shape); call a "
            "subclassed one as a layer, with a get_config of its own: images = "
            f"keras.Input(input_shape), keras.Model(images, {kind}(...)"
            "(images))."
        )
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(
            f"{must}Received: {kind} '{model.name}' of {len(inputs)} inputs "
            f"and {len(outputs)} outputs. Make a keras.Model of the one input "
            "and the one output that count, with the same layers."
        )
    shape = tuple(outputs[0].shape)
    if len(shape) != 2 or shape[1] not in (None, num_classes):
        raise UserError(
            f"{must}The data have {num_classes} classes or findings. Received: "
            f"{kind} '{model.name}' with outputs of shape {shape}."
        )


def to_text(model):
    """Returns a model's architecture as JSON.

    Raises:
        UserError: if a layer does not tell how to make it again.
    """
    try:
        config = json.loads(model.to_json())
        # KerasHub's models bring an optimizer of theirs.
        config.pop("compile_config", None)
        return json.dumps(config)
    except Exception as error:  # Whatever a layer's own get_config raises.
        raise UserError(
            f"Model '{model.name}' cannot be written to disk: {error} Give "
            "each layer of your own a get_config that returns its "
            "constructor's arguments."
        ) from error


def from_text(text, where):
    """Returns the `keras.Model` of what `to_text` wrote, its weights fresh.

    Nothing that the text holds as Python code is run, and no class is made but
    those of Keras and this package and registered ones.

    Args:
        text: str.
        where: what the text is, to name it.

    Raises:
        UserError: if it does not give a model, or one that is too large.
    """
    try:
        config = json.loads(text)
        _check_classes(config)
        with within_memory(where):
            model = keras.saving.deserialize_keras_object(
                config, safe_mode=True
            )
        if not isinstance(model, keras.Model):
            raise TypeError(f"{type(model).__name__} is no model")
        _check_outputs(model, where)
        return model
    except UserError:
        raise
    except Exception as error:  # Whatever constructors raise.
        raise UserError(
            f"{where} does not give a model. A layer of your own must be "
            "registered (@keras.saving.register_keras_serializable()), have a "
            "get_config that returns its constructor's arguments, and stand in "
            "a module that is imported (in a gin file: `import my_layers`); a "
            f"Lambda layer is not read back. Keras said: {error}"
        ) from error


def _check_classes(config):
    """Raises a ValueError if a configuration names a class it must not."""
    level = [config]
    while level:
        value = level.pop()
        if isinstance(value, list):
            level += value
        if not isinstance(value, dict):
            continue
        level += value.values()
        name = value.get("class_name")
        if not isinstance(name, str):
            continue
        module, registered = value.get("module"), value.get("registered_name")
        if name in _WITH_CODE:
            raise ValueError(f"{name} would run code of its own")
        if module in _WITHOUT_MODULE or (
            isinstance(registered, str)
            and keras.saving.get_registered_object(registered) is not None
        ):
            continue
        package, *parts = str(module).split(".")
        if package not in _PACKAGES or set(parts) & set(_WITHOUT_LAYERS):
            raise ValueError(
                f"Could not locate class '{name}': {module} is not Keras, and "
                "it is not registered"
            )


@contextlib.contextmanager
def within_memory(what):
    """Refuses weights, made in the block, for which there is no memory.

    Args:
        what: what the block makes, the start of a sentence.

    Raises:
        UserError: before they are made.
    """
    limit, made = memory.limit(), 0
    add_weight = keras.layers.Layer.add_weight

    def counted(self, shape=None, *args, **kwargs):
        nonlocal made
        if isinstance(shape, tuple | list):
            # Of each, as an order of magnitude, 4 bytes.
            made += 4 * math.prod(n for n in shape if isinstance(n, int))
        if made > limit:
            raise UserError(
                f"{what} has layers of {made / 2**30:,.1f} GiB of weights and "
                f"more, and this machine has {limit / 2**30:,.1f} GiB of "
                "memory. Make the model smaller, or take a machine with more."
            )
        return add_weight(self, shape, *args, **kwargs)

    keras.layers.Layer.add_weight = counted
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = add_weight


def _check_outputs(model, what):
    """Raises a `UserError` if what a layer gives for an image is too large."""
    limit = memory.limit()
    for layer in model.layers:
        for tensor in keras.tree.flatten(getattr(layer, "output", None)):
            sizes = [n for n in getattr(tensor, "shape", ())[1:] if n]
            if 4 * math.prod(sizes) > limit:
                raise UserError(
                    f"{what} has a layer, {layer.name}, whose output for one "
                    f"image is of shape {tuple(tensor.shape)}, more than "
                    f"the {limit / 2**30:,.1f} GiB of memory of this machine."
                )


def check_read_back(model, images):
    """Checks that a model is read back from disk as it is written.

    Args:
        model: `keras.Model`, with the weights that training starts from.
        images: float32 [n, h, w, c], a few.

    Raises:
        UserError: saying what to do, if what is read back gives other outputs.
    """
    name = f"Model '{model.name}'"
    weights = named_weights(model)
    again = from_text(to_text(model), f"{name}, read back from its model.json,")
    assign_weights(
        again,
        checkpoints.from_bytes(checkpoints.to_bytes(weights)),
        f"What was written of {name}",
    )
    expected, found = (
        keras.ops.convert_to_numpy(m(images, training=False)).astype(np.float32)
        for m in (model, again)
    )
    size = np.abs(expected).max()
    if not np.allclose(
        found, expected, rtol=0, atol=_TOLERANCE * size, equal_nan=True
    ):
        raise UserError(
            f"{name} would not be read back as it is: on {len(images)} images "
            "its outputs differ by up to "
            f"{np.abs(found - expected).max():.3g}. A layer of your own must "
            "return all of its constructor's arguments from get_config and "
            "make every number that it computes with as a weight "
            "(add_weight), not as an array."
        )
