"""From an image of any size to what the model sees.

Two stages: `Fit` makes a stored uint8 image (channels, size), once or whenever
it is decoded; `normalize` makes the float32 input from it, every time.
`preprocess` is both in one, the evaluation transform for raw images.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_transfer.data import shuffle as shuffles
from keras_transfer.data import xray
from keras_transfer.errors import UserError

# Every core holds such an image as bytes and as float32 while it is resized.
MAX_PIXELS = 2**26
# The shorter side is resized to what the model sees, the longer one with it.
MAX_RATIO = 100
# Side in pixels; one image of it, as float32, takes 3 GiB.
_MAX_SIDE = 2**14
# ITU-R BT.601, the weights of Pillow's and OpenCV's gray conversion.
_LUMA = (0.299, 0.587, 0.114)


Size = int | tuple[int, int]


def both_sides(size):
    """Returns (height, width) of a size, or of the square of such a side."""
    return (size, size) if isinstance(size, int) else tuple(size)


def as_size(size):
    """Returns a size in its simplest form: of a square, the side."""
    height, width = both_sides(size)
    return height if height == width else (height, width)


@dataclasses.dataclass(frozen=True)
class Info:
    """What a dataset is and how its images become model inputs.

    `dataclasses.asdict` of it is JSON-able, and `Info(**that)` restores it.

    Attributes:
        name: name the dataset was loaded by.
        image_shape: `(h, w, c)` of one model input.
        class_names: one name per model output.
        multi_label: whether several classes may hold at once (multi-hot
            targets) or exactly one (one-hot).
        mean: mean per channel, in units of pixel / 255.
        std: standard deviation per channel, in units of pixel / 255.
        resize: side in pixels to which the shorter side of an image (for
            "xray", the longer) is resized before any crop; or (height, width),
            which images are resized to cover.
        num_train: number of training examples.
        num_test: number of test examples.
        shuffle: None, "blocks", "pixels" or "channels".
        block_size: side of a block in pixels, for "blocks".
        shuffle_seed: seed of the shuffle's permutation.
        fit: how images are brought to one size, see `Fit.kind`.
        num_validation: number of validation examples.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    multi_label: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Size
    num_train: int
    num_test: int
    shuffle: str | None = None
    block_size: int | None = None
    shuffle_seed: int = 1234
    fit: str = "crop"
    num_validation: int = 0

    def __post_init__(self):
        """Turns JSON's lists back into tuples."""
        for name in ("image_shape", "class_names", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.resize, list):
            object.__setattr__(self, "resize", tuple(self.resize))


def check_info(info):
    """Raises a `ValueError` unless an `Info`, read from a file, can be.

    Args:
        info: the `Info`.
    """
    height, width, _ = info.image_shape
    resize = both_sides(info.resize)
    numbers = [info.num_train, info.num_test, info.num_validation]
    whole = [*info.image_shape, *resize, *numbers]
    scale = [*info.mean, *info.std]
    checks = {
        "image_shape, resize or number of examples": all(
            type(x) is int and x >= 0 for x in whole
        )
        and min(*info.image_shape, *resize) >= 1
        and max(height, width, *resize) <= _MAX_SIDE,
        "mean or std": len(info.mean) == len(info.std) == info.image_shape[-1]
        and all(isinstance(x, (int, float)) for x in scale)
        and bool(np.isfinite(scale).all())
        and min(info.std) > 0,
        "class_names": bool(info.class_names)
        and all(isinstance(name, str) for name in info.class_names),
        "fit": info.fit == "crop"
        or (info.fit == "xray" and type(info.resize) is int),
        "multi_label": isinstance(info.multi_label, bool),
        "shuffle": info.shuffle in (None, "blocks", "pixels", "channels")
        and (info.shuffle == "blocks") == (info.block_size is not None),
        "block_size or shuffle_seed": type(info.block_size or 1) is int
        and type(info.shuffle_seed) is int
        and 0 <= info.shuffle_seed < 2**32,
    }
    wrong = [name for name, is_right in checks.items() if not is_right]
    if wrong:
        raise ValueError(f"its info has an impossible {wrong[0]}")


@dataclasses.dataclass(frozen=True)
class Fit:
    """Gives images of any size the size and channels they are stored with.

    Attributes:
        kind: "crop": the image is resized to cover `resize`, the shorter side
            of a square (antialiased bilinear), and what stands out on two
            sides cut off; "xray": the pipeline of `xray.fit`, the longer side
            resized to `resize`.
        resize: side in pixels, or (height, width).
        crop: likewise, of the central part that is kept.
        channels: 1 or 3.
    """

    kind: str
    resize: Size
    crop: Size
    channels: int

    @property
    def decoded_channels(self):
        """Channels to decode files with."""
        return 1 if self.kind == "xray" else 3

    def __call__(self, images):
        """Applies it.

        Args:
            images: [height, width, c] or [n, height, width, c], uint8 or
                float in 0..255.

        Returns:
            uint8 [h, w, channels] or [n, h, w, channels], (h, w) being `crop`.
        """
        if len(images.shape) == 3:
            return self(images[None])[0]
        if self.kind == "xray":
            gray = to_uint8(convert_channels(images, 1))
            images = xray.fit(gray, self.resize)
            images = convert_channels(images, self.channels)
        else:
            images = convert_channels(images, self.channels)
            images = _resize_and_crop(images, both_sides(self.resize))
        return to_uint8(center_crop(images, both_sides(self.crop)))


def preprocess(images, info):
    """Applies a dataset's evaluation transform to raw images.

    `Fit` (resized to cover `info.resize`, centre crop, channels; rounded to
    whole levels, as stored images are), normalization and the dataset's
    shuffle.

    Args:
        images: [n, height, width, channels], uint8 or float in 0..255; any
            height and width, and 1 (gray), 2 (gray, alpha), 3 (colour) or 4
            (colour, alpha) channels. Alpha is dropped.
        info: `Info` of the dataset the model was trained on.

    Returns:
        float32 [n, h, w, c] with `(h, w, c) = info.image_shape`.

    Raises:
        tf.errors.InvalidArgumentError: if images are too large or too long.
    """
    *size, channels = info.image_shape
    given = tf.shape(images)[1:3]
    with tf.control_dependencies(
        [
            tf.debugging.Assert(
                has_usual_sides(given),
                [
                    f"Images have at most {MAX_PIXELS} pixels, and one side at "
                    f"most {MAX_RATIO} times the other. Received: sides",
                    given,
                ],
            )
        ]
    ):
        images = tf.identity(images)
    fit = Fit(info.fit, info.resize, tuple(size), channels)
    return normalize(fit(images), info)


def _resize_and_crop(images, size):
    """Resizes images until they cover (height, width), and crops the rest."""
    if images.shape[1:3] == size:
        return images
    given = tf.shape(images)[1:3]
    height, width = size

    def resize():
        # Of a square, the shorter side becomes its side.
        by_height = height * given[1] >= width * given[0]
        new = tf.where(by_height, height, width)
        old = tf.where(by_height, given[0], given[1])
        # The other side is truncated, not rounded, as in torchvision.
        target = new * given // old
        resized = tf.image.resize(images, target, antialias=True)
        return center_crop(resized, size)

    # Worth asking: for small images resizing costs more than decoding.
    images = tf.cond(
        tf.reduce_all(given == size),
        lambda: tf.cast(images, tf.float32),
        resize,
    )
    return tf.ensure_shape(images, [None, *size, None])


def to_uint8(images):
    """Rounds images in 0..255 to whole levels."""
    if images.dtype == tf.uint8:
        return images
    return tf.cast(images + 0.5, tf.uint8)


def center_crop(images, size):
    """Crops images [..., h, w, c] to [..., *size, c]; size: (height, width)."""
    if images.shape[-3:-1] == size:
        return images
    height, width = size
    given = tf.cast(tf.shape(images)[-3:-1], tf.float32)
    top, left = tf.unstack(tf.cast(tf.round((given - size) / 2), tf.int32))
    return images[..., top : top + height, left : left + width, :]


def normalize(images, info):
    """Turns stored images into model inputs, and applies the shuffle.

    Args:
        images: [..., h, w, c], uint8 or float in 0..255.
        info: `Info` with `image_shape == (h, w, c)`.

    Returns:
        float32 of the same shape: `(images / 255 - mean) / std`, shuffled.
    """
    shape = [*images.shape[:-3], *info.image_shape]
    images = tf.ensure_shape(images, shape)
    shuffle = shuffle_function(info)
    # A block holds whole pixels, so blocks may as well be moved before the
    # conversion to float, where there is a quarter as much to move.
    if info.shuffle == "blocks":
        images = shuffle(images)
    # Broadcasting over whole rows is three times as fast as over channels.
    width, std = info.image_shape[1], np.array(info.std)
    scale = np.tile(1 / (255 * std), width).astype(np.float32)
    shift = np.tile(np.array(info.mean) / std, width).astype(np.float32)
    rows = tf.reshape(tf.cast(images, tf.float32), [-1, len(scale)])
    images = tf.reshape(rows * scale - shift, tf.shape(images))
    images = tf.ensure_shape(images, shape)
    return images if info.shuffle == "blocks" else shuffle(images)


def shuffle_function(info):
    """Returns the function of images that applies `info.shuffle`.

    Raises:
        UserError: if there is no such shuffle or its block size is missing.
    """
    if info.shuffle is None and info.block_size is None:
        return lambda images: images
    if (info.shuffle == "blocks") != (info.block_size is not None):
        raise UserError(
            "A block_size goes with shuffle='blocks' and only with it. "
            f"Received: shuffle={info.shuffle!r}, block_size={info.block_size}."
        )
    if info.shuffle == "blocks":
        return shuffles.block_shuffle(
            info.image_shape[:2], info.block_size, info.shuffle_seed
        )
    if info.shuffle == "pixels":
        return shuffles.pixel_shuffle(info.image_shape, info.shuffle_seed)
    if info.shuffle == "channels":
        return shuffles.channel_shuffle(info.image_shape, info.shuffle_seed)
    raise UserError(
        "shuffle must be None, 'blocks', 'pixels' or 'channels'. "
        f"Received: shuffle={info.shuffle!r}."
    )


def per_channel(name, value, channels):
    """Returns a mean or std as a tuple of one number a channel.

    Args:
        name: "mean" or "std".
        value: number, or one a channel.
        channels: 1 or 3.

    Raises:
        UserError: if there are too many or too few, or a std is not positive.
    """
    values = tuple(map(float, np.atleast_1d(value)))
    if len(values) not in (1, channels) or (name == "std" and min(values) <= 0):
        raise UserError(
            f"{name} must be one number or one a channel ({channels}), and a "
            f"std positive. Received: {name}={value}."
        )
    return values * (channels // len(values))


def check_sizes(image_size, resize, channels):
    """Raises a `UserError` unless images can be of these sizes.

    Args:
        image_size: side in pixels, or (height, width), of what the model sees,
            or None.
        resize: likewise, of what is stored.
        channels: 1, 3 or None.
    """
    for size in (image_size, resize):
        if size is not None and min(both_sides(size)) < 1:
            raise UserError(
                "Images have sides of at least 1 pixel. Received: "
                f"image_size={image_size}, resize={resize}."
            )
    if channels not in (None, 1, 3):
        raise UserError(
            "Images have 1 channel (gray) or 3 (colour). "
            f"Received: channels={channels}."
        )
    if (
        resize
        and image_size
        and np.greater(both_sides(image_size), both_sides(resize)).any()
    ):
        raise UserError(
            "Stored images are smaller than what the model is to see. "
            f"Received: resize={resize}, image_size={image_size}; make resize "
            "at least image_size."
        )


def has_usual_sides(sides, max_pixels=MAX_PIXELS):
    """Returns whether an image is small enough to be decoded and resized.

    Args:
        sides: height and width in pixels, tensors or numbers.
        max_pixels: how many pixels there may be.
    """
    sides = tf.cast(tf.stack(sides), tf.int64)
    shorter, longer = tf.reduce_min(sides), tf.reduce_max(sides)
    # A quotient: the product of two sides of 32 bits could overflow.
    fits = (shorter > 0) & (longer <= MAX_RATIO * shorter)
    return fits & (longer <= max_pixels // tf.maximum(shorter, 1))


def convert_channels(images, channels):
    """Drops alpha, then repeats gray or takes the luma of colour."""
    received = images.shape[-1]
    if received in (2, 4):
        images = images[..., :-1]
        received -= 1
    if received not in (1, 3):
        raise UserError(
            "Images need 1 to 4 channels in their last axis. "
            f"Received: images of shape {tuple(images.shape)}."
        )
    if received == 1 and channels == 3:
        return tf.repeat(images, 3, axis=-1)
    if received == 3 and channels == 1:
        colour = tf.cast(images, tf.float32)
        return tf.reduce_sum(colour * _LUMA, axis=-1, keepdims=True)
    return images
