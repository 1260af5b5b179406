"""The paper's image pipeline for chest X-rays (section 3, CheXpert).

Histogram equalization, the longer side resized keeping the ratio, gray padding
at the bottom and right, a 3x3 Gaussian blur. Images are gray, [n, h, w, 1].
"""

import tensorflow as tf

_PADDING = 128


def fit(images, size):
    """Applies the pipeline.

    Args:
        images: uint8 [n, height, width, 1].
        size: side of the result in pixels.

    Returns:
        float32 [n, size, size, 1] in 0..255.
    """
    images = equalize_histogram(images)
    return blur(resize_and_pad(images, size))


def equalize_histogram(images):
    """Spreads each image's gray levels over 0..255, as OpenCV does.

    Level v becomes 255 (C(v) - C(v0)) / (N - C(v0)), rounded: C counts the
    pixels up to a level, N all, and v0 is the lowest level present. An image of
    one level stays as it is.

    Args:
        images: uint8 [n, height, width, 1].

    Returns:
        uint8 of the same shape.
    """
    shape = tf.shape(images)
    levels = tf.cast(tf.reshape(images, [shape[0], -1]), tf.int32)
    histogram = tf.math.bincount(levels, minlength=256, maxlength=256, axis=-1)
    cumulative = tf.cumsum(histogram, axis=-1)
    total = cumulative[:, -1:]
    lowest = tf.argmax(histogram > 0, axis=-1)
    below = tf.gather(histogram, lowest, batch_dims=1)[:, None]
    spread = tf.cast(cumulative - below, tf.float32) * (
        255 / tf.cast(total - below, tf.float32)
    )
    table = tf.where(total == below, tf.range(256.0), tf.round(spread))
    table = tf.saturate_cast(table, tf.uint8)
    equalized = tf.gather(table, levels, batch_dims=1)
    return tf.ensure_shape(tf.reshape(equalized, shape), images.shape)


def resize_and_pad(images, size):
    """Resizes the longer side to `size` and pads the other with gray.

    Resizing is bilinear and antialiased; the shorter side is rounded to whole
    pixels. The image is at the top left.

    Args:
        images: uint8 or float [n, height, width, 1].
        size: side of the result in pixels.

    Returns:
        float32 [n, size, size, 1].
    """
    sides = tf.cast(tf.shape(images)[1:3], tf.float64)
    target = tf.cast(tf.round(sides * (size / tf.reduce_max(sides))), tf.int32)
    target = tf.maximum(target, 1)
    resized = tf.image.resize(images, target, antialias=True)
    bottom, right = tf.unstack(size - target)
    padded = tf.pad(
        resized,
        [[0, 0], [0, bottom], [0, right], [0, 0]],
        constant_values=_PADDING,
    )
    return tf.ensure_shape(padded, [images.shape[0], size, size, 1])


def blur(images):
    """Blurs with the 3x3 binomial kernel, reflecting about the edge pixels.

    The kernel is OpenCV's `GaussianBlur` of size 3, (1, 2, 1) / 4 in either
    direction.

    Args:
        images: float32 [n, height, width, 1].

    Returns:
        float32 of the same shape.
    """
    x = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="REFLECT")
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4
