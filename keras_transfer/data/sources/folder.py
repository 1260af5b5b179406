"""A folder of images, `<root>/{train,test}/<class>/*`."""

import os
from pathlib import Path

import numpy as np

from keras_transfer.data.image_files import EncodedImages, some
from keras_transfer.errors import UserError

_LAYOUT = "Expected <root>/{train,test}/<class>/<image files>."


def list_folder(root):
    """Lists the images of a folder.

    Hidden files and anything deeper than `<split>/<class>/<file>` are left
    out.

    Args:
        root: Folder with `train` and `test`, each with a folder a class.

    Returns:
        class_names: Sorted names of the folders in `train`.
        images: `EncodedImages` of train, then test, each sorted by class and
            name.
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
            f"{some(unknown)}. Remove them or add them to train."
        )
    files, labels = [], {}
    for split, names in classes.items():
        per_class = [_files(root / split / name) for name in names]
        index = [classes["train"].index(name) for name in names]
        files += [file for group in per_class for file in group]
        labels[split] = np.repeat(
            np.array(index, np.int32), [len(group) for group in per_class]
        )
    return tuple(classes["train"]), EncodedImages.of_files(files), labels


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
    return [entry.path for entry in entries]
