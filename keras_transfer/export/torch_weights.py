"""The run's weights as PyTorch has them, in a safetensors file."""

from keras_transfer.models.names import torch_state
from keras_transfer.runs.checkpoints import write_arrays


def write(model, path):
    """Writes what `load_state_dict` of the same network in PyTorch takes.

    Args:
        model: `keras.Model`.
        path: where the file will be.

    Raises:
        UserError: if its names in PyTorch are not known.
    """
    write_arrays(path, torch_state(model), format="pt")
