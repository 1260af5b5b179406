"""Where decoded images are kept: in memory, or in a file too large for it."""

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from keras_transfer.errors import UserError

DEFAULT_CACHE_DIR = "~/.cache/keras_transfer"
_FORMAT = 1  # Part of every cache key: raise it when stored images change.


class Images:
    """Images of one size, fetched by their rows.

    Attributes:
        array: uint8 `[n, size, size, c]`, memory-mapped or a read-only view of
            a tensor.
    """

    def __init__(self, array):
        self.array = array
        if self.in_memory:
            # Host memory, even beside a GPU. The view lets go of the original,
            # so that images are held once.
            with tf.init_scope(), tf.device("/CPU:0"):
                self._tensor = tf.constant(array)
            self.array = np.asarray(memoryview(self._tensor))

    @property
    def in_memory(self):
        """Whether the images are in memory rather than in a file."""
        return not isinstance(self.array, np.memmap)

    def gather(self, rows):
        """Fetches the images of a batch, inside a `tf.data` function.

        Args:
            rows: Integer tensor `[b]`.

        Returns:
            uint8 tensor `[b, size, size, c]`.
        """
        if self.in_memory:
            return tf.gather(self._tensor, rows)
        images = tf.numpy_function(
            lambda r: self.array[r], [rows], tf.uint8, stateful=False
        )
        return tf.ensure_shape(images, rows.shape + self.array.shape[1:])


def store(shape, fill, key, memory_budget, cache_dir=None):
    """Fills an array of images, in memory or else in a cache file.

    A cache file is written under another name and renamed when it is whole;
    one that is damaged is written again.

    Args:
        shape: `(n, size, size, c)`.
        fill: Function that writes all images into the uint8 array it is given
            and returns a bool array `[n]` that is False where there was no
            image to write.
        key: JSON-able value of all that determines the images.
        memory_budget: GiB up to which images are kept in memory.
        cache_dir: Folder for cache files; None for `~/.cache/keras_transfer`.

    Returns:
        `Images`, and the bool array that `fill` returned.

    Raises:
        UserError: If the cache folder has no room or cannot be written.
    """
    num_bytes = int(np.prod(shape, dtype=np.int64))
    if num_bytes <= memory_budget * 2**30:
        array = np.zeros(shape, np.uint8)
        valid = fill(array)
        return Images(array), valid
    digest = hashlib.sha256(json.dumps([_FORMAT, shape, key]).encode())
    folder = Path(cache_dir or DEFAULT_CACHE_DIR).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entry = folder / digest.hexdigest()[:32]
        # Held while writing, so that several processes decode only once and
        # what an interrupted one left behind can be overwritten.
        with open(f"{entry}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stored = _read(entry, shape)
            if stored is None:
                _write(entry, shape, fill, num_bytes)
                stored = _read(entry, shape)
    except OSError as error:
        raise UserError(
            f"Decoded images need {num_bytes / 2**30:.2f} GiB, more than the "
            f"memory budget, and cannot be cached in {folder}. Received: "
            f"memory_budget={memory_budget}, error: {error}. Choose another "
            "cache_dir or a larger memory_budget."
        ) from error
    return stored


def _read(entry, shape):
    """Returns what `store` returns, or None if it is not there and whole."""
    if not entry.exists():
        return None
    try:
        images = np.load(
            entry / "images.npy", mmap_mode="r", allow_pickle=False
        )
        valid = np.load(entry / "valid.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        logging.warning("Cached images in %s are damaged: %s", entry, error)
        return None
    if (
        images.shape != tuple(shape)
        or images.dtype != np.uint8
        or valid.shape != images.shape[:1]
        or valid.dtype != np.bool_
    ):
        logging.warning("Cached images in %s are not what they were.", entry)
        return None
    return Images(images), valid


def _write(entry, shape, fill, num_bytes):
    # Writing to a memory map on a full disk would kill the process.
    free = shutil.disk_usage(entry.parent).free
    if num_bytes >= free:
        raise OSError(f"only {free / 2**30:.2f} GiB are free")
    partial = entry.with_name(entry.name + ".partial")
    for leftover in (partial, entry):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    images = np.lib.format.open_memmap(
        partial / "images.npy", "w+", np.uint8, tuple(shape)
    )
    valid = fill(images)
    images.flush()
    np.save(partial / "valid.npy", valid)
    os.rename(partial, entry)
    logging.info("Decoded images are cached in %s.", entry)
