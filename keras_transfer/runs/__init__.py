"""A run directory: writing one, and reading it back."""

from keras_transfer.runs.run import Run
from keras_transfer.runs.summaries import Summaries

__all__ = ["Run", "Summaries"]
