"""A run directory: writing one, and reading it back."""

from keras_transfer.files import whole_file as appearing
from keras_transfer.files import write_text, writing
from keras_transfer.runs.run import Run
from keras_transfer.runs.summaries import Summaries

__all__ = ["Run", "Summaries", "appearing", "write_text", "writing"]
