"""Where decoded images are kept: in memory, or in a cache folder.

An entry of the cache appears whole and is never changed. Checksums of its
files, block by block, are kept with it: one that is damaged is made again.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import zlib

import numpy as np
import tensorflow as tf
from absl import logging

from keras_transfer.errors import UserError
from keras_transfer.files import user_path, whole_directory

DEFAULT_CACHE_DIR = "~/.cache/keras_transfer"
_FORMAT = 2  # Part of every cache key: raise it when stored images change.
_CHECKSUMS = "checksums.json"
_BLOCK = 2**24  # Bytes that have a checksum of their own.


class ReadingFailed(UserError):
    """What was to be stored cannot be read; storing it went well."""


class Images:
    """Images of one size, fetched by their rows.

    Attributes:
        array: uint8 [n, h, w, c], memory-mapped or a read-only view of
            `tensor`.
        tensor: the same on the host, if it is in memory.

    Args:
        array: the images.
        digest: text that changes with the images; None for one of their bytes.
        contents: as `contents`, of what the images were made from; None for
            theirs.
    """

    def __init__(self, array, digest=None, contents=None):
        self.array = array
        self._digest = digest
        self._contents = contents
        if self.in_memory:
            # Host memory, even beside a GPU. The view lets go of the original,
            # so that images are held once.
            with tf.init_scope(), tf.device("/CPU:0"):
                self.tensor = tf.constant(array)
            self.array = np.asarray(memoryview(self.tensor))

    @property
    def in_memory(self):
        """Whether the images are in memory rather than in a file."""
        return not isinstance(self.array, np.memmap)

    @functools.cached_property
    def digest(self):
        """Text that changes with the images."""
        return self._digest or self.digest_of(self.array)

    @functools.cached_property
    def contents(self):
        """Numbers uint64 [n], one an image, which change with it."""
        if self._contents is None:
            return contents_of(self.array)
        return self._contents

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
            uint8 tensor [b, h, w, c].
        """
        if self.in_memory:
            return tf.gather(self.tensor, rows)
        images = tf.numpy_function(
            lambda r: self.array[r], [rows], tf.uint8, stateful=False
        )
        return tf.ensure_shape(images, rows.shape + self.array.shape[1:])


def contents_of(array):
    """Returns a checksum of each image of an array, uint64 [n]."""
    checksums = (zlib.crc32(np.ascontiguousarray(image)) for image in array)
    return np.fromiter(checksums, np.uint64, len(array))


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
        shape: `(n, h, w, c)`.
        fill: function that writes all images into the uint8 array it is given
            and returns {name: array [n]}, what there is to know of each; of
            these "contents" goes to `Images`.
        key: JSON-able value of all that determines the images.
        memory_budget: GiB up to which images are kept in memory.
        cache_dir: as in `cached`.

    Returns:
        `Images`, and the dict that `fill` returned.

    Raises:
        UserError: if the cache folder has no room or cannot be written, or as
            `fill`.
    """
    num_bytes = int(np.prod(shape, dtype=np.int64))
    digest = _digest([shape, key])
    if num_bytes <= memory_budget * 2**30:
        array = np.zeros(shape, np.uint8)
        found = fill(array)
        return Images(array, digest, found.get("contents")), found

    def write(folder):
        path = folder / "images.npy"
        images = np.lib.format.open_memmap(path, "w+", np.uint8, tuple(shape))
        _reserve(path)
        save_arrays(folder, fill(images))
        images.flush()

    def read(folder):
        images = np.load(
            folder / "images.npy", mmap_mode="r", allow_pickle=False
        )
        if (images.shape, images.dtype) != (tuple(shape), np.uint8):
            raise ValueError(f"images are {images.dtype} {images.shape}")
        found = load_arrays(folder, len(images))
        return Images(images, digest, found.get("contents")), found

    try:
        return cached([shape, key], write, read, num_bytes, cache_dir)
    except ReadingFailed:
        raise
    except UserError as error:
        raise UserError(
            f"Decoded images are more than memory_budget={memory_budget} GiB, "
            f"which may be raised, and are cached on disk. {error}"
        ) from error


def save_arrays(folder, arrays):
    """Writes {name: array} into a folder (`pathlib.Path`) of the cache."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def load_arrays(folder, length):
    """Returns {name: array} as `save_arrays` wrote it.

    Args:
        folder: `pathlib.Path`.
        length: of each array.

    Raises:
        OSError, ValueError, EOFError: if it is damaged.
    """
    arrays = {}
    for path in folder.glob("*.npy"):
        if path.name != "images.npy":
            array = np.load(path, allow_pickle=False)
            if array.shape != (length,):
                raise ValueError(f"{path.name} has shape {array.shape}")
            arrays[path.stem] = array
    return arrays


def cached(key, write, read, num_bytes, cache_dir=None):
    """Reads what is kept in a folder of the cache, made if need be.

    One that is damaged is written again. To read one, nothing is written, so it
    may be another user's.

    Args:
        key: JSON-able value of all that determines the content.
        write: function that fills the new, empty folder (`pathlib.Path`) it is
            given.
        read: function from the folder to the result, which is not None; raises
            `OSError`, `ValueError` or `EOFError` if the folder is damaged.
        num_bytes: how much will be written, about.
        cache_dir: where the folders are; None for `~/.cache/keras_transfer`.

    Returns:
        What `read` returns.

    Raises:
        UserError: if the cache folder has no room or cannot be written, or as
            `write`.
    """
    folder = user_path(cache_dir or DEFAULT_CACHE_DIR, "load.cache_dir")
    entry = folder / _digest(key)[:32]

    def try_read(log):
        try:
            _verify(entry)
            return read(entry)
        except (OSError, ValueError, EOFError) as error:
            if os.path.lexists(entry):
                log("Cache %s is made anew; it is damaged: %s", entry, error)
            return None

    try:
        found = try_read(logging.debug)
        if found is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(entry):
            found = try_read(logging.warning)
            if found is None:
                _check_room(folder, num_bytes)
                with whole_directory(entry) as aside:
                    write(aside)
                    _write_checksums(aside)
                logging.info("Cached in %s.", entry)
                found = read(entry)
            return found
    except OSError as error:
        raise UserError(
            f"{num_bytes / 2**30:.2f} GiB cannot be cached in {folder}. "
            f"Received: {error}. Choose another cache_dir."
        ) from error


@contextlib.contextmanager
def _alone(entry):
    """Lets one process at a time fill an entry; the others wait and say so."""
    descriptor = _open_lock(f"{entry}.lock")
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.warning(
                "Waiting for another process, which fills the cache %s.", entry
            )
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            # An entry that two processes write is whole all the same.
            logging.info("%s.lock cannot be locked: %s", entry, error)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path):
    safely = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | safely, 0o644)
    except PermissionError:
        # Another user's; to lock it, reading is enough.
        return os.open(path, os.O_RDONLY | safely)


def _write_checksums(folder):
    checksums = {
        path.name: [zlib.crc32(block) for block in _blocks(path)]
        for path in sorted(folder.iterdir())
    }
    text = json.dumps(checksums)
    (folder / _CHECKSUMS).write_text(text, encoding="utf-8")


def _blocks(path):
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _verify(folder):
    """Raises an `OSError` or `ValueError` if files are not as written."""
    text = (folder / _CHECKSUMS).read_text(encoding="utf-8")
    try:
        pairs = [
            (folder / name, number, checksum)
            for name, checksums in json.loads(text).items()
            for number, checksum in enumerate(checksums)
        ]
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{_CHECKSUMS} is damaged: {error}") from error
    # Checksums are taken, and files read, without Python's global lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, is_right in pool.map(_is_right, pairs):
            if not is_right:
                raise ValueError(f"the checksum of {path.name} is another")


def _is_right(block):
    path, number, checksum = block
    with open(path, "rb", buffering=0) as file:
        content = os.pread(file.fileno(), _BLOCK, number * _BLOCK)
    return path, zlib.crc32(content) == checksum


def _reserve(path):
    """Takes a file's room on the disk now.

    Writing to a memory map on a full disk would kill the process.

    Raises:
        OSError: if there is no room.
    """
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


def _digest(key):
    return hashlib.sha256(json.dumps([_FORMAT, key]).encode()).hexdigest()


def _check_room(folder, num_bytes):
    # Writing to a memory map on a full disk would kill the process.
    free = shutil.disk_usage(folder).free
    if num_bytes >= free:
        raise OSError(f"only {free / 2**30:.2f} GiB are free")
