"""Input shuffles: one fixed permutation for every image.

The paper destroys the visual features of the target domain and keeps its
low-level statistics by permuting blocks, pixels or channels (section 3.1). The
permutation of a seed is the published one: NumPy's `RandomState(seed)`.

Each function here returns a function of an image [h, w, c] or of a batch of
images [..., h, w, c], of any dtype, usable in `tf.data`. Output element `i`
is input element `permutation[i]`.
"""

import math

import numpy as np
import tensorflow as tf

from keras_transfer.errors import UserError


def block_shuffle(image_size, block_size, seed):
    """Cuts images into square blocks and permutes the blocks.

    Args:
        image_size: side of the image in pixels, or (height, width).
        block_size: side of a block in pixels; must divide `image_size`.
        seed: seed of the permutation of the blocks, (image_size /
            block_size)**2 of a square, counted in row-major order.

    Returns:
        A function of images [..., height, width, c].

    Raises:
        UserError: if `block_size` does not divide `image_size`.
    """
    height, width = (
        (image_size,) * 2 if isinstance(image_size, int) else image_size
    )
    whole = math.gcd(height, width)
    if block_size < 1 or whole % block_size:
        sizes = [b for b in range(1, whole + 1) if whole % b == 0]
        raise UserError(
            f"Blocks of {block_size} pixels do not tile an image of "
            f"{image_size}. Received: block_size={block_size}; use one of "
            f"{', '.join(map(str, sizes))}."
        )
    rows, columns = height // block_size, width // block_size
    permutation = np.random.RandomState(seed).permutation(rows * columns)
    # An image row is `columns` runs of `block_size` pixels, and a block is
    # made of whole runs: one gather of runs moves all blocks, no transposes.
    runs = np.arange(height * columns).reshape(rows, block_size, columns)
    blocks = runs.transpose(0, 2, 1).reshape(rows * columns, block_size)
    source = blocks[permutation].reshape(rows, columns, block_size)
    source = source.transpose(0, 2, 1).reshape(-1)

    def shuffle(images):
        shape = _static_shape(images, (height, width, None))
        flat = tf.reshape(
            images, [-1, height * columns, block_size * shape[-1]]
        )
        return _restore(tf.gather(flat, source, axis=1), images)

    return shuffle


def pixel_shuffle(image_shape, seed):
    """Permutes all values of an image, over pixels and channels alike.

    Args:
        image_shape: `(h, w, c)`.
        seed: seed of the permutation of the `c * h * w` values, counted
            channel first as in the published definition, although our images
            are channel-last.

    Returns:
        A function of images [..., h, w, c].
    """
    h, w, c = image_shape
    permutation = np.random.RandomState(seed).permutation(c * h * w)
    # Channel-last position of each value in channel-first order.
    position = np.arange(h * w * c).reshape(h, w, c).transpose(2, 0, 1).ravel()
    source = np.empty_like(position)
    source[position] = position[permutation]

    def shuffle(images):
        _static_shape(images, image_shape)
        flat = tf.reshape(images, [-1, h * w * c])
        return _restore(tf.gather(flat, source, axis=1), images)

    return shuffle


def channel_shuffle(image_shape, seed):
    """Permutes whole channels.

    Args:
        image_shape: `(h, w, c)`.
        seed: seed of the permutation of the `c` channels.

    Returns:
        A function of images [..., h, w, c].
    """
    permutation = np.random.RandomState(seed).permutation(image_shape[-1])

    def shuffle(images):
        _static_shape(images, image_shape)
        return tf.gather(images, permutation, axis=-1)

    return shuffle


def _static_shape(images, expected):
    """Returns the static `(h, w, c)` of `images`, checked."""
    shape = tuple(images.shape[-3:])
    if len(shape) < 3 or any(
        e is not None and s is not None and s != e
        for s, e in zip(shape, expected, strict=True)
    ):
        raise UserError(
            f"This shuffle was made for images of shape {tuple(expected)}. "
            f"Received: images of shape {tuple(images.shape)}."
        )
    return shape


def _restore(flat, images):
    restored = tf.reshape(flat, tf.shape(images))
    restored.set_shape(images.shape)
    return restored
