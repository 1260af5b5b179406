"""Images in arrays as a `Dataset`, to train on."""

import numpy as np
import tensorflow as tf

from keras_transfer.data.cache import Images, contents_of
from keras_transfer.data.labels import read_labels
from keras_transfer.data.pipeline import Dataset, Split
from keras_transfer.data.preprocessing import (
    Fit,
    Info,
    as_size,
    both_sides,
    check_sizes,
    per_channel,
    shuffle_function,
)
from keras_transfer.errors import UserError

_CHUNK = 256  # Images brought to size at a time.


def from_arrays(
    train,
    test,
    class_names=None,
    multi_label=None,
    image_size=None,
    channels=None,
    resize=None,
    mean=None,
    std=None,
    shuffle=None,
    block_size=None,
    shuffle_seed=1234,
    name="arrays",
    validation=None,
):
    """Makes a dataset of images in arrays.

    A function of your own that returns one, with arguments that gin may bind,
    is a `train.dataset`:

        @gin.configurable
        def flowers(path, mean=None):
            train, test = read(path)
            return data.from_arrays(train, test, mean=mean)

    Args:
        train: pair (images, labels). Images are uint8 [n, h, w, c], or
            [n, h, w] if they are gray. Labels are class indices [n], or rows of
            zeros and ones [n, K], one-hot or multi-hot.
        test: another, held out.
        class_names: one name a class; None for "0", "1", ...
        multi_label: whether several classes may hold at once; None to tell from
            the labels, as `Examples` does.
        image_size: as in `load`, with `channels` and `resize`.
        channels: 1 or 3.
        resize: side in pixels, or (height, width).
        mean: as in `load`, None for 0.5.
        std: likewise.
        shuffle: as in `load`, with `block_size` and `shuffle_seed`.
        block_size: side in pixels.
        shuffle_seed: integer seed.
        name: what to call it.
        validation: another pair, to choose the best epoch on; None for none.

    Returns:
        A `Dataset`.

    Raises:
        UserError: if images, labels or arguments do not allow it.
    """
    check_sizes(image_size, resize, channels)
    given = {"train": train, "test": test}
    if validation is not None:
        given["validation"] = validation
    pairs = {split: _pair(pair, split) for split, pair in given.items()}
    labels, class_names, multi_label = read_labels(
        {split: given for split, (_, given) in pairs.items()},
        class_names,
        multi_label,
    )
    shapes = {split: images.shape[1:] for split, (images, _) in pairs.items()}
    fit = _common_fit(shapes, image_size, channels, resize)
    info = Info(
        name=name,
        image_shape=(*both_sides(image_size or fit.resize), fit.channels),
        class_names=class_names,
        multi_label=multi_label,
        mean=per_channel("mean", 0.5 if mean is None else mean, fit.channels),
        std=per_channel("std", 0.5 if std is None else std, fit.channels),
        resize=fit.resize,
        num_train=len(labels["train"]),
        num_test=len(labels["test"]),
        shuffle=shuffle,
        block_size=block_size,
        shuffle_seed=shuffle_seed,
        num_validation=len(labels.get("validation", ())),
    )
    shuffle_function(info)  # Complains now rather than in the first batch.
    splits = {
        split: Split(
            # What fits into memory as it is may be as large again.
            fit_array(images, fit, images.nbytes / 2**30),
            np.arange(len(images)),
            labels[split],
        )
        for split, (images, _) in pairs.items()
    }
    own = mean is not None or std is not None
    return Dataset(info, **splits, has_own_normalization=own)


def fit_array(array, fit, memory_budget):
    """Brings images in an array to the size and channels they are stored with.

    Args:
        array: uint8 [n, h, w, c].
        fit: `Fit`.
        memory_budget: GiB up to which images are kept, at least 4.

    Returns:
        `Images`.

    Raises:
        UserError: if they would take more memory.
    """
    shape = (len(array), *both_sides(fit.crop), fit.channels)
    if np.prod(shape, dtype=float) > max(memory_budget, 4.0) * 2**30:
        raise UserError(
            f"{len(array)} images would not fit into memory at this size. "
            f"Received: {' x '.join(map(str, shape[1:3]))} pixels; choose a "
            "smaller image_size, and resize."
        )
    if array.shape == shape and fit.kind == "crop":
        return Images(array)
    fitted = np.empty(shape, np.uint8)
    for start in range(0, len(array), _CHUNK):
        part = tf.constant(array[start : start + _CHUNK])
        fitted[start : start + _CHUNK] = fit(part)
    # Resized they may differ in a level from one machine to another.
    return Images(fitted, contents=contents_of(array))


def _pair(pair, split):
    """Returns images [n, h, w, c] and labels as arrays."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UserError(
            "A split is a pair of arrays (images, labels). Received: "
            f"{split}={type(pair).__name__}."
        )
    images, labels = np.asarray(pair[0]), np.asarray(pair[1])
    if images.dtype != np.uint8:
        raise UserError(
            "Images to train on have whole levels from 0 to 255 (uint8), which "
            f"mean and std then normalize. Received: {split} images of type "
            f"{images.dtype}; round and convert them, or give what is "
            "normalized already to Examples, for analyses only."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 2, 3, 4):
        raise UserError(
            "Images are an array [n, height, width, channels] of 1 to 4 "
            f"channels. Received: {split} images of shape {images.shape}."
        )
    if not images.size:
        raise UserError(
            f"There are no {split} images. Received: shape {images.shape}."
        )
    if labels.shape[:1] != images.shape[:1]:
        raise UserError(
            "There is one label, or row of them, for each image. Received: "
            f"{split} images of shape {images.shape} and labels of shape "
            f"{labels.shape}."
        )
    return images, labels


def _common_fit(shapes, image_size, channels, resize):
    """Returns the `Fit` for images of all splits, given {split: shape}."""
    sizes = {shape[:2] for shape in shapes.values()}
    if not (resize or image_size or len(sizes) == 1):
        given = " and ".join(
            f"{split} images of {height} x {width}"
            for split, (height, width, _) in shapes.items()
        )
        raise UserError(
            "Images are of one size, unless you say which. Received: "
            f"{given} pixels; set image_size."
        )
    size = as_size(resize or image_size or sizes.pop())
    # Without alpha.
    own = {(shape[-1] - 1) // 2 * 2 + 1 for shape in shapes.values()}
    if channels is None and len(own) > 1:
        given = " and ".join(str(shape[-1]) for shape in shapes.values())
        raise UserError(
            "Images are all gray or all colour. Received: splits of "
            f"{given} channels; set channels to 1 or 3."
        )
    return Fit("crop", size, size, channels or own.pop())
