"""Files of safetensors, in Keras' layout or PyTorch's."""

import json

import ml_dtypes
import numpy as np
import safetensors

from keras_transfer.models.weight_sources.weights import Weights, damaged

# As the files name them.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(path):
    """Returns the `Weights` in a file.

    They are in PyTorch's layout if their names are, such as "conv1.weight",
    and in Keras' if they are paths of variables, such as "conv1/kernel".

    Args:
        path: `pathlib.Path`.

    Raises:
        UserError: if it is damaged.
    """
    with damaged(path, "a safetensors file"):
        named, ordered = _named(path.read_bytes())
        return Weights(named, path, _layout(named), ordered=ordered)


def is_directory(path):
    """Whether a directory holds weights in files of safetensors."""
    return any(path.glob("*.safetensors"))


def read_directory(path):
    """Returns the `Weights` in all of a directory's files."""
    named = {}
    for file in sorted(path.glob("*.safetensors")):
        named |= read(file)
    return Weights(named, path, _layout(named), ordered=False)


def _named(content):
    """Returns {name: array}, and whether they are in the network's order."""
    found = {
        name: np.frombuffer(value["data"], _DTYPES[value["dtype"]]).reshape(
            value["shape"]
        )
        for name, value in safetensors.deserialize(content)
    }
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__", None) or {}
    # Others sort what they write, by type and name.
    ordered = "order" in metadata
    order = json.loads(metadata["order"]) if ordered else header
    return {name: found[name] for name in order}, ordered


def _layout(named):
    if any("/" in name for name in named):
        return "keras"
    is_torch = any(name.endswith((".weight", ".bias")) for name in named)
    return "torch" if is_torch else "keras"
