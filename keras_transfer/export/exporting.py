"""A run's model in formats that others read."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re

from keras_transfer import files
from keras_transfer.data.preprocessing import (
    MAX_PIXELS,
    MAX_RATIO,
    has_usual_sides,
)
from keras_transfer.errors import UserError
from keras_transfer.export import (
    card,
    litert,
    onnx,
    saved_model,
    torch_weights,
)
from keras_transfer.models.logits import logits_model

# What each format is written as. A SavedModel lies under the number of a
# version, so that TensorFlow Serving takes the directory.
FORMATS = {
    "saved_model": "1",
    "keras": "model.keras",
    "onnx": "model.onnx",
    "litert": "model.tflite",
    "safetensors": "model.safetensors",
}
_DEFAULT = ("saved_model", "keras")
# Where SavedModels lay before they had versions.
_FORMER = "saved_model"
# The formats for images of one size.
_ONE_SIZE = ("onnx", "litert")


def export(run, epoch, output, formats=_DEFAULT, input_size=None):
    """Writes one epoch's model in one or several formats.

    Beside the model stand `labels.json`, the classes in the order of the
    outputs; `preprocessing.json`, how an image becomes the network's input;
    and `README.md`, a card that says what it is and how to call it. Nothing of
    this package is needed to load what is written, save where the card says so.

    - "saved_model": `1/`, preprocessing included, see `saved_model.write`; also
      found as `saved_model`.
    - "keras": `model.keras`, the bare network as it was trained: normalized
      images in; logits out, or probabilities if it ends in a softmax or
      sigmoid.
    - "onnx": `model.onnx`, preprocessing included, for images of one size.
    - "litert": `model.tflite`, likewise.
    - "safetensors": `model.safetensors`, the weights of a Fixup ResNet or of
      KerasHub's ResNets as PyTorch has them.

    Args:
        run: the `runs.Run`.
        epoch: "best", "last" or int.
        output: directory to write; must not exist.
        formats: names in `FORMATS`, a sequence.
        input_size: (height, width) of the images that "onnx" and "litert" take;
            None for the size that the run's images were stored in, a square of
            `info.resize`.

    Raises:
        UserError: if `output` exists, the run or epoch does not, or the model
            cannot be written in a format; nothing is written then.
    """
    output = pathlib.Path(output)
    _check_formats(formats, input_size)
    if os.path.lexists(output):
        raise UserError(
            f"{output} exists already; remove it or give another --output."
        )
    run.check_exists()
    # Once, for a run that is still trained may come to a better one.
    epoch = run.resolve_epoch(epoch)
    model, info = run.load_model(epoch), run.info()
    network = logits_model(model)
    size = input_size or _stored_size(info)
    writers = {
        "saved_model": lambda path: saved_model.write(network, info, path),
        "keras": model.save,
        "onnx": lambda path: onnx.write(network, info, size, path),
        "litert": lambda path: litert.write(network, info, size, path),
        "safetensors": lambda path: torch_weights.write(model, path),
    }
    with files.whole_directory(output, replace=False) as aside:
        for name in formats:
            writers[name](aside / FORMATS[name])
        if "saved_model" in formats:
            # Not all file systems have links.
            with contextlib.suppress(OSError):
                (aside / _FORMER).symlink_to(FORMATS["saved_model"])
        for name, content in (
            ("labels.json", list(info.class_names)),
            ("preprocessing.json", _preprocessing(info)),
        ):
            files.write_text(aside / name, json.dumps(content, indent=2) + "\n")
        text = card.text(run, epoch, model, formats, size)
        files.write_text(aside / "README.md", text)


def read_size(text):
    """Returns (height, width) of a text such as "480x640".

    Raises:
        UserError: if it is none, or images of that size are not to be had.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    size = tuple(map(int, found.groups())) if found else (0, 0)
    if not has_usual_sides(size):
        raise UserError(
            "--input_size is height x width in pixels, such as 480x640, of at "
            f"most {MAX_PIXELS} pixels, and one side at most {MAX_RATIO} times "
            f"the other. Received: {text!r}."
        )
    return size


def _check_formats(formats, input_size):
    wrong = [name for name in formats if name not in FORMATS]
    if wrong or not formats or len(set(formats)) < len(formats):
        raise UserError(
            f"--format names one or several of {', '.join(FORMATS)}, each once "
            f"and with a comma between them. Received: {','.join(formats)!r}."
        )
    if input_size is not None and not set(formats) & set(_ONE_SIZE):
        raise UserError(
            f"--input_size is of the formats {' and '.join(_ONE_SIZE)}; the "
            "others take images of any size, or normalized ones. Received: "
            f"--format={','.join(formats)}."
        )
    if "onnx" in formats:
        onnx.check_installed()


def _stored_size(info):
    resize = info.resize
    return (resize, resize) if isinstance(resize, int) else tuple(resize)


def _preprocessing(info):
    """Returns how an image becomes the network's input, for JSON."""
    names = (
        "image_shape",
        "fit",
        "resize",
        "mean",
        "std",
        "shuffle",
        "block_size",
        "shuffle_seed",
    )
    described = dataclasses.asdict(info)
    return {name: described[name] for name in names}
