"""A folder of images, `<root>/{train,test}/<class>/*`."""

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from keras_transfer.data.preprocessing import fit
from keras_transfer.data.storage import store
from keras_transfer.errors import UserError

_LAYOUT = "Expected <root>/{train,test}/<class>/<image files>."
_DECODE_BATCH = 64


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """One file as it was when it was listed; hashable.

    Attributes:
        path: Absolute path.
        num_bytes: Size of the file.
        modified: Time of last modification, in nanoseconds.
    """

    path: str
    num_bytes: int
    modified: int


def list_folder(root):
    """Lists the images of a folder.

    Hidden files and anything deeper than `<split>/<class>/<file>` are left
    out.

    Args:
        root: Folder with `train` and `test`, each with a folder a class.

    Returns:
        class_names: Sorted names of the folders in `train`.
        files: Dict from "train" and "test" to a list of `ImageFile`, sorted by
            class and name.
        labels: Dict from "train" and "test" to int32 `[n]` indices into
            `class_names`.

    Raises:
        UserError: If a part of the layout is missing, a class is empty, or a
            test class is unknown in training.
    """
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise UserError(
            f"There is no image folder {root}. {_LAYOUT} Received: "
            f"data_dir={str(root)!r}."
        )
    classes = {split: _subfolders(root, split) for split in ("train", "test")}
    unknown = sorted(set(classes["test"]) - set(classes["train"]))
    if unknown:
        raise UserError(
            f"Test classes without training images in {root}. Received: "
            f"{_some(unknown)}. Remove them or add them to train."
        )
    files, labels = {}, {}
    for split, names in classes.items():
        per_class = [_files(root / split / name) for name in names]
        index = [classes["train"].index(name) for name in names]
        files[split] = [file for group in per_class for file in group]
        labels[split] = np.repeat(
            np.array(index, np.int32), [len(group) for group in per_class]
        )
    return tuple(classes["train"]), files, labels


def decode_files(
    files, size, channels, on_damaged, memory_budget, cache_dir=None
):
    """Decodes image files once, resized, into memory or a cache file.

    Args:
        files: Tuple of `ImageFile`.
        size: Side in pixels of the stored square images.
        channels: 1 or 3.
        on_damaged: What to do about files that cannot be decoded: "error" or
            "skip".
        memory_budget: As in `store`.
        cache_dir: As in `store`.

    Returns:
        images: `Images`, one row a file.
        valid: bool `[len(files)]`, False for damaged files.

    Raises:
        UserError: If there are damaged files and `on_damaged` is "error".
    """
    if on_damaged not in ("error", "skip"):
        raise UserError(
            "on_damaged must be 'error' or 'skip'. "
            f"Received: on_damaged={on_damaged!r}."
        )
    images, valid = _decoded(
        tuple(files), size, channels, memory_budget, cache_dir
    )
    damaged = [files[i].path for i in np.flatnonzero(~valid)]
    if damaged and on_damaged == "error":
        raise UserError(
            f"{len(damaged)} of {len(files)} files cannot be decoded as "
            f"images. Received: {_some(damaged)}. Repair or remove them, or "
            "set on_damaged='skip' to go on without them."
        )
    if damaged:
        logging.warning(
            "Skipped %d of %d files that cannot be decoded as images: %s",
            len(damaged),
            len(files),
            _some(damaged),
        )
    return images, valid


# Two: a source and a target domain may be in use in turn.
@functools.lru_cache(maxsize=2)
def _decoded(files, size, channels, memory_budget, cache_dir):
    return store(
        shape=(len(files), size, size, channels),
        fill=functools.partial(_fill, files=files),
        key=[dataclasses.astuple(file) for file in files],
        memory_budget=memory_budget,
        cache_dir=cache_dir,
    )


def _fill(array, files):
    """Decodes all files into `array`; returns which could be decoded."""
    from tqdm import tqdm

    _, size, _, channels = array.shape
    dataset = tf.data.Dataset.from_tensor_slices([f.path for f in files])
    dataset = dataset.enumerate().map(
        lambda i, path: (
            i,
            decode_image(tf.io.read_file(path), size, channels),
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=False,
    )
    # A damaged file drops out here and its number is missing below.
    dataset = dataset.ignore_errors(log_warning=False)
    dataset = dataset.batch(_DECODE_BATCH).prefetch(tf.data.AUTOTUNE)
    valid = np.zeros(len(files), bool)
    with tqdm(
        total=len(files), desc="Decoding images", delay=2, disable=None
    ) as progress:
        for rows, images in dataset.as_numpy_iterator():
            array[rows] = images
            valid[rows] = True
            progress.update(len(rows))
    return valid


def decode_image(content, size, channels):
    """Decodes the content of an image file.

    Args:
        content: Scalar string tensor: a JPEG, PNG, BMP or GIF (first frame).
        size: Side of the result in pixels.
        channels: 1 or 3.

    Returns:
        uint8 `[size, size, channels]`.
    """
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    return fit(image, size, channels)


def _subfolders(root, split):
    folder = root / split
    if not folder.is_dir():
        raise UserError(
            f"The image folder {root} has no folder {split!r}. {_LAYOUT} "
            f"Received: data_dir={str(root)!r}."
        )
    names = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise UserError(
            f"There are no classes in {folder}. {_LAYOUT} Received: "
            f"data_dir={str(root)!r}."
        )
    return names


def _files(folder):
    entries = sorted(
        (
            entry
            for entry in os.scandir(folder)
            if entry.is_file() and not entry.name.startswith(".")
        ),
        key=lambda entry: entry.name,
    )
    if not entries:
        raise UserError(
            f"The class folder {folder} has no image files. {_LAYOUT} Add "
            "images or remove the folder."
        )
    files = []
    for entry in entries:
        status = entry.stat()
        files.append(ImageFile(entry.path, status.st_size, status.st_mtime_ns))
    return files


def _some(names):
    """Names the first few of many."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
