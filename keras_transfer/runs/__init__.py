"""A run directory: writing one, and reading it back."""

from keras_transfer.models import initialize_from, read_weights
from keras_transfer.models.weight_sources import register_directory
from keras_transfer.runs.run import Run
from keras_transfer.runs.summaries import Summaries

# These two are given out here, where run directories are known to them.
__all__ = ["Run", "Summaries", "initialize_from", "read_weights"]

register_directory(lambda path: Run(path).exists, Run)
