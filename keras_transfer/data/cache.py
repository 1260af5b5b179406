"""Where decoded images are kept: in memory, or in a cache folder."""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile

import numpy as np
import tensorflow as tf
from absl import logging

from keras_transfer.errors import UserError
from keras_transfer.files import user_path, whole_directory

DEFAULT_CACHE_DIR = "~/.cache/keras_transfer"
_FORMAT = 1  # Part of every cache key: raise it when stored images change.


class Images:
    """Images of one size, fetched by their rows.

    Attributes:
        array: uint8 [n, size, size, c], memory-mapped or a read-only view of
            a tensor.

    Args:
        array: the images.
        digest: text that changes with the images; None for one of their bytes.
    """

    def __init__(self, array, digest=None):
        self.array = array
        self._digest = digest
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

    @functools.cached_property
    def digest(self):
        """Text that changes with the images."""
        return self._digest or self.digest_of(self.array)

    @staticmethod
    def digest_of(array):
        """Returns text that changes with an array's content."""
        state = hashlib.blake2b(str(array.shape).encode())
        for start in range(0, len(array), 1024):
            state.update(np.ascontiguousarray(array[start : start + 1024]))
        return state.hexdigest()

    def gather(self, rows):
        """Fetches the images of a batch, inside a `tf.data` function.

        Args:
            rows: integer tensor [b].

        Returns:
            uint8 tensor [b, size, size, c].
        """
        if self.in_memory:
            return tf.gather(self._tensor, rows)
        images = tf.numpy_function(
            lambda r: self.array[r], [rows], tf.uint8, stateful=False
        )
        return tf.ensure_shape(images, rows.shape + self.array.shape[1:])


def unnamed_file(shape, cache_dir=None):
    """Returns an array in a file that has no name.

    However the process ends, nothing is left behind.

    Args:
        shape: of the array.
        cache_dir: as in `cached`.

    Returns:
        uint8 `numpy.memmap`.

    Raises:
        OSError: if there is no room or the folder cannot be written.
    """
    folder = user_path(cache_dir or DEFAULT_CACHE_DIR, "load.cache_dir")
    folder.mkdir(parents=True, exist_ok=True)
    num_bytes = int(np.prod(shape, dtype=np.int64))
    with tempfile.TemporaryFile(dir=folder) as file:
        # Writing to a memory map on a full disk would kill the process.
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return np.memmap(file, np.uint8, "r+", shape=tuple(shape))


def store(shape, fill, key, memory_budget, cache_dir=None):
    """Fills an array of images, in memory or else in a cache file.

    Args:
        shape: `(n, size, size, c)`.
        fill: function that writes all images into the uint8 array it is given
            and returns a bool array [n] that is False where there was no
            image to write.
        key: JSON-able value of all that determines the images.
        memory_budget: GiB up to which images are kept in memory.
        cache_dir: as in `cached`.

    Returns:
        `Images`, and the bool array that `fill` returned.

    Raises:
        UserError: if the cache folder has no room or cannot be written.
    """
    num_bytes = int(np.prod(shape, dtype=np.int64))
    digest = _digest([shape, key])
    if num_bytes <= memory_budget * 2**30:
        array = np.zeros(shape, np.uint8)
        valid = fill(array)
        return Images(array, digest), valid

    def write(folder):
        images = np.lib.format.open_memmap(
            folder / "images.npy", "w+", np.uint8, tuple(shape)
        )
        np.save(folder / "valid.npy", fill(images))
        images.flush()

    def read(folder):
        images = np.load(
            folder / "images.npy", mmap_mode="r", allow_pickle=False
        )
        valid = np.load(folder / "valid.npy", allow_pickle=False)
        if (images.shape, images.dtype) != (tuple(shape), np.uint8):
            raise ValueError(f"images are {images.dtype} {images.shape}")
        if (valid.shape, valid.dtype) != (images.shape[:1], np.bool_):
            raise ValueError(f"validity is {valid.dtype} {valid.shape}")
        return Images(images, digest), valid

    try:
        return cached([shape, key], write, read, num_bytes, cache_dir)
    except UserError as error:
        raise UserError(
            f"Decoded images are more than memory_budget={memory_budget} GiB, "
            f"which may be raised, and are cached on disk. {error}"
        ) from error


def cached(key, write, read, num_bytes, cache_dir=None):
    """Reads what is kept in a folder of the cache, made if need be.

    One that is damaged is written again.

    Args:
        key: JSON-able value of all that determines the content.
        write: function that fills the new, empty folder (`pathlib.Path`) it is
            given.
        read: function from the folder to the result; raises `OSError`,
            `ValueError` or `EOFError` if the folder is damaged.
        num_bytes: how much will be written, about.
        cache_dir: where the folders are; None for `~/.cache/keras_transfer`.

    Returns:
        What `read` returns.

    Raises:
        UserError: if the cache folder has no room or cannot be written.
    """
    folder = user_path(cache_dir or DEFAULT_CACHE_DIR, "load.cache_dir")
    entry = folder / _digest(key)[:32]

    def try_read():
        try:
            return read(entry)
        except (OSError, ValueError, EOFError) as error:
            if entry.exists():
                logging.warning("Cache %s is damaged: %s", entry, error)
            return None

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Held while writing, so that several processes write only once.
        with open(f"{entry}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = try_read()
            if found is None:
                _check_room(folder, num_bytes)
                with whole_directory(entry) as aside:
                    write(aside)
                logging.info("Cached in %s.", entry)
                found = read(entry)
            return found
    except OSError as error:
        raise UserError(
            f"{num_bytes / 2**30:.2f} GiB cannot be cached in {folder}. "
            f"Received: {error}. Choose another cache_dir."
        ) from error


def _digest(key):
    return hashlib.sha256(json.dumps([_FORMAT, key]).encode()).hexdigest()


def _check_room(folder, num_bytes):
    # Writing to a memory map on a full disk would kill the process.
    free = shutil.disk_usage(folder).free
    if num_bytes >= free:
        raise OSError(f"only {free / 2**30:.2f} GiB are free")
