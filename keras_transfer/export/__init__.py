"""A trained model for use elsewhere, in one or several formats."""

from keras_transfer.export.exporting import FORMATS, export, read_size

__all__ = ["FORMATS", "export", "read_size"]
