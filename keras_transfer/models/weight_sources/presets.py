"""Directories that KerasHub reads: its presets, timm's and Hugging Face's."""

from keras_transfer.errors import UserError
from keras_transfer.models.weight_sources import safetensors_files
from keras_transfer.models.weight_sources.normalization import read_json

_OWN_KEYS = "registered_name", "class_name"
_FOREIGN_KEYS = "architecture", "model_type"


def is_preset(path):
    """Whether a directory has the configuration of a network."""
    keys = _config(path)
    return any(key in keys for key in (*_OWN_KEYS, *_FOREIGN_KEYS))


def open_preset(path):
    """Returns what a preset holds.

    Args:
        path: `pathlib.Path`.

    Returns:
        The `keras.Model` that is the backbone of a preset of KerasHub's. Of
        timm's and Hugging Face's, the `Weights` as they lie there.

    Raises:
        UserError: if it is damaged, or KerasHub is needed and not installed.
    """
    is_own = any(key in _config(path) for key in _OWN_KEYS)
    if not is_own and safetensors_files.is_directory(path):
        return safetensors_files.read_directory(path)
    try:
        import keras_hub
    except ImportError as error:
        raise UserError(
            f"{path} is a preset of KerasHub, which reads it and is not "
            "installed: pip install keras-hub."
        ) from error
    try:
        model = keras_hub.models.Backbone.from_preset(str(path))
    except Exception as error:  # Whatever its files lead to.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be loaded as a preset of KerasHub. KerasHub said: "
            f"{reason[:300]}"
        ) from error
    model.source = str(path)
    return model


def _config(path):
    return read_json(path / "config.json")
