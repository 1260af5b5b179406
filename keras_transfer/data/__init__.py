"""Datasets, preprocessing and augmentation as `tf.data` pipelines."""

from keras_transfer.data.arrays import from_arrays
from keras_transfer.data.augment import (
    Augmentation,
    random_affine,
    random_crop,
    random_flip,
    random_resized_crop,
)
from keras_transfer.data.examples import Examples, ExampleSplit
from keras_transfer.data.fingerprint import differences
from keras_transfer.data.loading import count, load
from keras_transfer.data.pipeline import Dataset, Split
from keras_transfer.data.preprocessing import Info, check_info, preprocess
from keras_transfer.data.rebuilding import describe, rebuild
from keras_transfer.data.shuffle import (
    block_shuffle,
    channel_shuffle,
    pixel_shuffle,
)

__all__ = [
    "Augmentation",
    "Dataset",
    "ExampleSplit",
    "Examples",
    "Info",
    "Split",
    "block_shuffle",
    "channel_shuffle",
    "check_info",
    "count",
    "describe",
    "differences",
    "from_arrays",
    "load",
    "pixel_shuffle",
    "preprocess",
    "random_affine",
    "random_crop",
    "random_flip",
    "random_resized_crop",
    "rebuild",
]
