"""PyTorch's own files, read by PyTorch in a process of its own."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

from keras_transfer.errors import UserError
from keras_transfer.models.weight_sources import safetensors_files
from keras_transfer.models.weight_sources.weights import Weights

_SCRIPT = pathlib.Path(__file__).with_name("torch_conversion.py")


def read(path):
    """Returns the `Weights` in a .pth or .pt file.

    PyTorch reads it with `weights_only=True`, which runs no code that the file
    may hold, in a process of its own: beside TensorFlow it may crash.

    Args:
        path: `pathlib.Path`.

    Raises:
        UserError: if PyTorch is not installed, or the file would execute, is
            damaged or holds no state dict.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"{path} is a file of PyTorch's, which reads it and is not "
            "installed: pip install torch. Or write it as safetensors where "
            "it is."
        )
    with tempfile.TemporaryDirectory() as directory:
        converted = pathlib.Path(directory) / "weights.safetensors"
        process = subprocess.run(
            [sys.executable, str(_SCRIPT), str(path), str(converted)],
            capture_output=True,
            text=True,
            check=False,
        )
        if not converted.is_file():
            raise UserError(f"{path} {_reason(process)}")
        return Weights(safetensors_files.read(converted), path, "torch")


def _reason(process):
    lines = process.stdout.splitlines()
    try:
        return json.loads(lines[-1])["error"]
    except (IndexError, ValueError, KeyError, TypeError):
        said = process.stderr.strip().splitlines()[-1:] or ["nothing"]
        return f"could not be read by PyTorch. It said: {said[0][:300]}"
