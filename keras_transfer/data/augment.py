"""Random augmentation of batches, without hidden state.

An `Augmentation` is a plain function of a batch and of uniform random numbers,
`num_uniforms` for each image. Whoever calls it decides where the numbers come
from; `Dataset.train_batches` draws them from (seed, epoch, example), so that a
resumed run, or one spread over other devices, sees the same images.
"""

import dataclasses
import math
from collections.abc import Callable

import gin
import tensorflow as tf

from keras_transfer.errors import UserError

_TRIES = 10  # Of torchvision's RandomResizedCrop, before it falls back.


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A random change of a batch of images.

    Attributes:
        num_uniforms: Number of random numbers it needs for each image.
        function: Takes images `[b, h, w, c]` (uint8, or float in 0..255),
            float32 uniforms `[b, num_uniforms]` in [0, 1) and the side `size`
            of the model's input in pixels; returns images of the same range.
    """

    num_uniforms: int
    function: Callable

    def __call__(self, images, uniforms, size):
        """Augments one batch; see the attributes for the arguments."""
        return self.function(images, uniforms, size)


@gin.configurable
def random_flip():
    """Mirrors half of the images left to right.

    Returns:
        An `Augmentation`.
    """

    def flip(images, uniforms, size):
        del size
        column = tf.range(tf.shape(images)[2])
        columns = tf.where(uniforms < 0.5, column[::-1], column)
        return tf.gather(images, columns, axis=2, batch_dims=1)

    return Augmentation(1, flip)


@gin.configurable
def random_crop(padding):
    """Pads images with zeros on all sides and crops a random square.

    Args:
        padding: Pixels added on each side. The crop has the side of the
            model's input.

    Returns:
        An `Augmentation`.
    """

    def crop(images, uniforms, size):
        edge = [padding, padding]
        images = tf.pad(images, [[0, 0], edge, edge, [0, 0]])
        room = tf.shape(images)[1:3] - size + 1
        start = tf.cast(uniforms * tf.cast(room, tf.float32), tf.int32)
        rows = start[:, :1] + tf.range(size)
        columns = start[:, 1:] + tf.range(size)
        images = tf.gather(images, rows, axis=1, batch_dims=1)
        return tf.gather(images, columns, axis=2, batch_dims=1)

    return Augmentation(2, crop)


@gin.configurable
def random_resized_crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """Resizes a random rectangle of each image to the model's input.

    The rectangle is drawn as torchvision's `RandomResizedCrop` does: up to ten
    draws of an area and an aspect ratio until the rectangle fits in the image,
    then the largest central one. Resizing is bilinear and antialiased. For a
    cached dataset "the image" is the stored square one.

    Args:
        scale: Least and greatest area of the rectangle, as a share of the
            image's.
        ratio: Least and greatest ratio of width to height, drawn
            log-uniformly.

    Returns:
        An `Augmentation`.
    """
    if not (0 < scale[0] <= scale[1] and 0 < ratio[0] <= ratio[1]):
        raise UserError(
            "random_resized_crop needs positive (least, greatest) pairs. "
            f"Received: scale={tuple(scale)}, ratio={tuple(ratio)}."
        )

    def crop(images, uniforms, size):
        height, width = tf.unstack(tf.shape(images)[1:3])
        top, left, h, w = crop_boxes(uniforms, height, width, scale, ratio)
        return _resize_boxes(images, top, left, h, w, size)

    return Augmentation(2 * _TRIES + 2, crop)


def crop_boxes(uniforms, height, width, scale, ratio):
    """Draws the rectangles of `random_resized_crop`.

    Args:
        uniforms: float32 `[b, 22]` in [0, 1).
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        scale: As in `random_resized_crop`.
        ratio: As in `random_resized_crop`.

    Returns:
        `top, left, h, w`, each int32 `[b]`, in pixels.
    """
    full_h, full_w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = scale[0] + uniforms[:, :_TRIES] * (scale[1] - scale[0])
    area *= full_h * full_w
    log_ratio = [math.log(r) for r in ratio]
    aspect = tf.exp(
        log_ratio[0]
        + uniforms[:, _TRIES : 2 * _TRIES] * (log_ratio[1] - log_ratio[0])
    )
    # The last column is the fallback, which always fits.
    central_w = tf.minimum(full_w, tf.round(full_h * ratio[1]))
    central_h = tf.minimum(full_h, tf.round(full_w / ratio[0]))
    column = tf.ones_like(area[:, :1])
    w = tf.concat([tf.round(tf.sqrt(area * aspect)), column * central_w], 1)
    h = tf.concat([tf.round(tf.sqrt(area / aspect)), column * central_h], 1)
    fits = (w > 0) & (w <= full_w) & (h > 0) & (h <= full_h)
    first = tf.argmax(fits, axis=1, output_type=tf.int32)
    w = tf.gather(w, first, batch_dims=1)
    h = tf.gather(h, first, batch_dims=1)
    top = tf.floor(uniforms[:, -2] * (full_h - h + 1))
    left = tf.floor(uniforms[:, -1] * (full_w - w + 1))
    fell_back = first == _TRIES
    top = tf.where(fell_back, tf.floor((full_h - h) / 2), top)
    left = tf.where(fell_back, tf.floor((full_w - w) / 2), left)
    return [tf.cast(x, tf.int32) for x in (top, left, h, w)]


def _resize_boxes(images, top, left, h, w, size):
    """Resizes another rectangle of each image: two batched matrix products."""
    height, width = images.shape[1:3]
    vertical = _resize_matrix(top, h, height, size)
    horizontal = _resize_matrix(left, w, width, size)
    images = tf.cast(images, tf.float32)
    images = tf.einsum("bsh,bhwc->bswc", vertical, images)
    return tf.einsum("btw,bswc->bstc", horizontal, images)


def _resize_matrix(start, length, full, size):
    """Weights `[b, size, full]` of antialiased bilinear resizing.

    Output pixel i of an interval of pixels [start, start + length) is centred
    at start + (i + 1/2) length / size; its weights fall off linearly, to zero
    at one output pixel's distance (one input pixel's, when enlarging).
    """
    start, length = (tf.cast(x, tf.float32)[:, None] for x in (start, length))
    step = length / size
    center = start + (tf.range(size, dtype=tf.float32) + 0.5) * step
    pixel = tf.range(full, dtype=tf.float32) + 0.5
    distance = tf.abs(center[:, :, None] - pixel)
    weight = tf.nn.relu(1 - distance / tf.maximum(step, 1.0)[:, :, None])
    inside = (pixel > start) & (pixel < start + length)
    weight *= tf.cast(inside, tf.float32)[:, None, :]
    return weight / tf.reduce_sum(weight, axis=-1, keepdims=True)
