"""A folder of images, `<root>/{train,test}/<class>/*`."""

import itertools
import os
from pathlib import Path

import numpy as np

from keras_transfer.data.image_files import some
from keras_transfer.data.sources.registry import Found, register
from keras_transfer.errors import UserError

_LAYOUT = "Expected <root>/{train,test}/<class>/<image files>."


@register("folder", needs_every_class=True)
def find_folder(data_dir, validation_split):
    """Finds the images of a folder.

    Hidden files and anything deeper than `<split>/<class>/<file>` are left
    out.

    Args:
        data_dir: folder with `train` and `test`, each with a folder a class.
        validation_split: name of another such folder, or None.

    Returns:
        A `Found`, each split sorted by class and name.

    Raises:
        UserError: if a part of the layout is missing, a class is empty, or
            another split has a class that is unknown in training.
    """
    if data_dir is None:
        raise UserError(
            "An image folder needs a place. Received: data_dir=None; set it to "
            "the folder that holds train and test."
        )
    root = Path(data_dir).expanduser().absolute()
    if not root.is_dir():
        raise UserError(
            f"There is no image folder {root}. {_LAYOUT} Received: "
            f"data_dir={str(root)!r}."
        )
    folders = {"train": "train", "test": "test"}
    if validation_split is not None:
        folders["validation"] = validation_split
    classes = {split: _subfolders(root, f) for split, f in folders.items()}
    unknown = sorted(
        {*itertools.chain(*classes.values())} - {*classes["train"]}
    )
    if unknown:
        raise UserError(
            f"Classes without training images in {root}. Received: "
            f"{some([_text(name) for name in unknown])}. Remove them or add "
            "them to train."
        )
    class_names = [_text(name) for name in classes["train"]]
    splits = {}
    for split, names in classes.items():
        per_class = [_files(root / folders[split] / name) for name in names]
        index = [classes["train"].index(name) for name in names]
        files = [file for group in per_class for file in group]
        counts = [len(group) for group in per_class]
        splits[split] = files, np.repeat(np.array(index, np.int32), counts)
    return Found.of_splits(class_names, **splits)


def _text(name):
    """Returns a folder's name, with bytes that are not UTF-8 written out.

    It names a class in tables and figures, which are text. Where a folder is
    named so itself, two classes have one name, as they may.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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
