"""Data sets of Hugging Face's `datasets` that were saved to disk."""

import os

from keras_transfer.data.image_files import copy_images, digest
from keras_transfer.data.sources.registry import Found, register
from keras_transfer.errors import UserError

_ADVICE = (
    "Expected what DatasetDict.save_to_disk writes, with a feature Image and a "
    "feature ClassLabel."
)


def count_huggingface(data_dir, train_split, test_split):
    """Counts the images of a data set without reading any.

    Args:
        data_dir: as for `find_huggingface`.
        train_split: likewise.
        test_split: likewise.

    Returns:
        Names of the classes, numbers of training and of test images.

    Raises:
        UserError: as `find_huggingface`.
    """
    found = _load(data_dir)
    train, test = (
        _split(found, name)
        for name in (train_split, test_split or _default_test_split(found))
    )
    _, label = _columns(train, train_split)
    return train.features[label].names, len(train), len(test)


@register("huggingface", count=count_huggingface)
def find_huggingface(
    data_dir, train_split, test_split, validation_split, cache_dir
):
    """Finds the images of a `datasets.DatasetDict` on disk.

    Nothing is downloaded and no code of the data set's is run; encoded images
    are copied into the cache once.

    Args:
        data_dir: folder that `DatasetDict.save_to_disk` wrote.
        train_split: name of a split.
        test_split: likewise; None for "test" or else "validation".
        validation_split: likewise; None for none.
        cache_dir: where the copy is kept, see `cached`.

    Returns:
        A `Found`.

    Raises:
        UserError: if `datasets` is not installed, there is no such data set or
            split, or it does not map one image to one class.
    """
    found = _load(data_dir)
    splits = {
        "train": train_split,
        "test": test_split or _default_test_split(found),
    }
    if validation_split is not None:
        splits["validation"] = validation_split
    if len({*splits.values()}) < len(splits):
        given = ", ".join(f"{k}_split={v!r}" for k, v in splits.items())
        raise UserError(
            f"Splits have to be others. Received: {given}; the data set has "
            f"{', '.join(found)}, and validation_split may be a share of the "
            "training images."
        )
    read = {
        name: _read_split(found, split, cache_dir)
        for name, split in splits.items()
    }
    names = {name: classes for name, (_, _, classes) in read.items()}
    if any(classes != names["train"] for classes in names.values()):
        raise UserError(
            f"All splits have the same classes. Received: other ClassLabel "
            f"names in {', '.join(map(repr, splits.values()))} of {data_dir}."
        )
    pairs = {name: pair for name, (*pair, _) in read.items()}
    return Found.of_splits(names["train"], **pairs)


def _load(data_dir):
    """Returns the `datasets.DatasetDict` in a folder."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "load.name = 'huggingface' needs the package datasets, which is "
            "not installed: pip install 'keras_transfer[hf]'."
        ) from error
    if data_dir is None or "://" in data_dir or not os.path.isdir(data_dir):
        raise UserError(
            "A data set of Hugging Face is read from a folder on disk. "
            f"Received: data_dir={data_dir!r}. {_ADVICE}"
        )
    try:
        found = datasets.load_from_disk(data_dir)
    except Exception as error:  # Whatever Arrow and others raise.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{data_dir} cannot be read as a data set of Hugging Face. "
            f"Received: {reason[:300]}. {_ADVICE}"
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        raise UserError(
            "A data set needs training and test examples. Received: one split, "
            f"{data_dir}; split it with train_test_split() and save that. "
            f"{_ADVICE}"
        )
    return found


def _default_test_split(found):
    return "test" if "test" in found else "validation"


def _split(found, name):
    if name not in found:
        raise UserError(
            f"The data set has no split {name!r}. Received: "
            f"{', '.join(found)}; bind load.train_split, load.test_split or "
            "load.validation_split to one of these."
        )
    return found[name]


def _columns(examples, split):
    """Returns the names of the feature Image and the feature ClassLabel."""
    import datasets

    image, label = (
        [
            name
            for name, feature in examples.features.items()
            if isinstance(feature, kind)
        ]
        for kind in (datasets.Image, datasets.ClassLabel)
    )
    if len(image) != 1 or len(label) != 1:
        given = (
            f"{k} ({type(v).__name__})" for k, v in examples.features.items()
        )
        raise UserError(
            "Data sets of one Image and one ClassLabel can be used. Received: "
            f"split {split!r} with {', '.join(given)}; choose with "
            "select_columns(), make classes of text or numbers with "
            "class_encode_column(), and save that."
        )
    return image[0], label[0]


def _read_split(found, split, cache_dir):
    """Returns the encoded images, the labels and the class names of a split."""
    import datasets

    examples = _split(found, split)
    image, label = _columns(examples, split)
    encoded = examples.select_columns([image, label]).cast_column(
        image, datasets.Image(decode=False)
    )

    def pairs():
        for example in encoded:
            yield _content(example[image]), example[label]

    paths = [file["filename"] for file in examples.cache_files]
    images, labels = copy_images(
        pairs,
        ["huggingface", digest(paths), image, label],
        examples.dataset_size or 0,
        cache_dir,
    )
    names = examples.features[label].names
    if not len(labels) or labels.min() < 0:
        raise UserError(
            f"Split {split!r} has no examples, or examples without a class. "
            "Leave those out with filter(), and save that."
        )
    return images, labels, names


def _content(image):
    """Returns the bytes of an `Image` that is not decoded."""
    if image is None:
        return b""  # Named as damaged, or left out, with the others.
    if image["bytes"] is not None:
        return image["bytes"]
    with open(image["path"], "rb") as file:
        return file.read()
