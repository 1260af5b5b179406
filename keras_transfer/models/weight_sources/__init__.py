"""Weights from anywhere: files and directories, told by what they hold."""

from keras_transfer.models.weight_sources.opening import (
    open_source,
    read_weights,
    register_directory,
)
from keras_transfer.models.weight_sources.weights import Weights

__all__ = ["Weights", "open_source", "read_weights", "register_directory"]
