"""Images that a table lists, one row (file, label) an image."""

import itertools
import re
from pathlib import Path

import numpy as np

from keras_transfer.data.csv_files import read_rows
from keras_transfer.data.image_files import some
from keras_transfer.data.sources.registry import Found, register
from keras_transfer.errors import UserError

_ADVICE = (
    "Expected <data_dir>/<split>.csv with the columns file (relative to "
    "data_dir) and label, one row an image."
)


@register("csv", needs_every_class=True)
def find_table(data_dir, train_split, test_split, validation_split):
    """Finds the images that tables list, one table a split.

    A label is any text, the name of its class; whole numbers are put in their
    order, other names in the alphabet's.

    Args:
        data_dir: folder of the tables, to which files are relative.
        train_split: name of a table, without its ".csv".
        test_split: likewise; None for "test".
        validation_split: likewise; None for none.

    Returns:
        A `Found`, each split in the order of its table.

    Raises:
        UserError: if a table is of another form, lists an image that another
            lists too, or a class that is unknown in training.
    """
    if data_dir is None:
        raise UserError(
            f"Tables of images need a place. Received: data_dir=None. {_ADVICE}"
        )
    tables = {"train": train_split, "test": test_split or "test"}
    if validation_split is not None:
        tables["validation"] = validation_split
    read = {
        split: _read(Path(data_dir), name) for split, name in tables.items()
    }
    for one, other in itertools.combinations(tables, 2):
        if both := sorted({*read[one][0]} & {*read[other][0]}):
            raise UserError(
                f"{one.capitalize()} and {other} images have to be others. "
                f"Received: {some([*map(str, both)])} in both tables."
            )
    known = sorted({*read["train"][1]}, key=_in_order)
    number = {name: index for index, name in enumerate(known)}
    unknown = {*itertools.chain(*(x for _, x in read.values()))} - {*known}
    if unknown:
        raise UserError(
            f"Classes without training images in {data_dir}. Received: "
            f"{some(sorted(unknown))}. Remove them or add them to "
            f"{train_split}.csv."
        )
    splits = {
        split: (files, np.array([number[x] for x in labels], np.int32))
        for split, (files, labels) in read.items()
    }
    return Found.of_splits(known, **splits)


def _in_order(label):
    """Sorts whole numbers before other text, by their values."""
    is_number = re.fullmatch("[0-9]+", label) is not None
    return (not is_number, int(label) if is_number else 0, label)


def _read(folder, name):
    """Returns the files and the labels of one table."""
    path = folder / f"{name}.csv"
    files, labels = [], []
    for line, row in read_rows(path, ("file", "label"), _ADVICE):
        file, label = row["file"], row["label"].strip()
        if not file or "\0" in file or not label:
            raise UserError(
                f"{path} must give a file and a label in every row. Received: "
                f"file={file!r}, label={label!r} in line {line}. {_ADVICE}"
            )
        files.append(folder / file)
        labels.append(label)
    if not files:
        raise UserError(f"{path} lists no images. {_ADVICE}")
    return files, labels
