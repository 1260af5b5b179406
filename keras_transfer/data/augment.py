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

from keras_transfer.data.preprocessing import both_sides
from keras_transfer.errors import UserError

_TRIES = 10  # Of torchvision's RandomResizedCrop, before it falls back.


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A random change of a batch of images.

    Attributes:
        num_uniforms: number of random numbers it needs for each image.
        function: takes images [b, h, w, c] (uint8, or float in 0..255),
            float32 uniforms [b, num_uniforms] in [0, 1) and the `size`
            (height, width) of the model's input; returns images of the same
            range.
    """

    num_uniforms: int
    function: Callable

    def __call__(self, images, uniforms, size):
        """Augments one batch; see the attributes for the arguments."""
        return self.function(images, uniforms, both_sides(size))


def check_augmentation(augmentation):
    """Raises a `UserError` unless all are `Augmentation`."""
    for operation in augmentation:
        if not isinstance(operation, Augmentation):
            raise UserError(
                "An augmentation is what random_crop() and its like return; "
                "in a gin file its reference ends in (), as in "
                f"[@random_crop()]. Received: {operation!r}"
            )


def augment(augmentation, images, uniforms, size):
    """Applies a sequence of `Augmentation` to one batch.

    Args:
        augmentation: the sequence.
        images: [b, h, w, c], as `Augmentation` takes them.
        uniforms: float32 [b, k] in [0, 1), k the sum of their `num_uniforms`.
        size: (height, width) of the model's input in pixels.

    Returns:
        Images of the same range.
    """
    for operation in augmentation:
        k = operation.num_uniforms
        images = operation(images, uniforms[:, :k], size)
        uniforms = uniforms[:, k:]
    return images


@gin.configurable
def random_flip() -> Augmentation:
    """Mirrors half of the images left to right.

    Returns:
        An `Augmentation`.
    """

    def flip(images, uniforms, size):
        del size
        # As one tall image, which TensorFlow mirrors several times as fast as
        # many; and choosing by `gather` moves whole images at a time.
        shape = tf.shape(images)
        tall = tf.reshape(images, [-1, shape[2], images.shape[-1]])
        mirrored = tf.reshape(tf.reverse(tall, axis=[1]), shape)
        both = tf.stack([images, mirrored], axis=1)
        choice = tf.cast(uniforms[:, 0] < 0.5, tf.int32)
        return tf.gather(both, choice, axis=1, batch_dims=1)

    return Augmentation(1, flip)


@gin.configurable
def random_crop(padding: int) -> Augmentation:
    """Pads images with zeros on all sides and crops at random.

    Args:
        padding: pixels added on each side. The crop has the size of the
            model's input.

    Returns:
        An `Augmentation`.

    Raises:
        UserError: if the padding is negative.
    """
    if padding < 0:
        raise UserError(
            f"random_crop.padding must be 0 or more pixels. Received: {padding}"
        )

    def crop(images, uniforms, size):
        edge = [padding, padding]
        images = tf.pad(images, [[0, 0], edge, edge, [0, 0]])
        room = tf.shape(images)[1:3] - size + 1
        start = tf.cast(uniforms * tf.cast(room, tf.float32), tf.int32)
        height, width = size
        rows = start[:, :1] + tf.range(height)
        columns = start[:, 1:] + tf.range(width)
        images = tf.gather(images, rows, axis=1, batch_dims=1)
        return tf.gather(images, columns, axis=2, batch_dims=1)

    return Augmentation(2, crop)


@gin.configurable
def random_resized_crop(
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Augmentation:
    """Resizes a random rectangle of each image to the model's input.

    The rectangle is drawn as torchvision's `RandomResizedCrop` does: up to ten
    draws of an area and an aspect ratio until the rectangle fits in the image,
    then the largest central one. Resizing is bilinear and antialiased. For a
    cached dataset "the image" is the stored square one.

    Args:
        scale: least and greatest area of the rectangle, as a share of the
            image's.
        ratio: least and greatest ratio of width to height, drawn
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
        boxes = crop_boxes(uniforms, height, width, scale, ratio)
        # One image at a time: cutting first is what makes resizing cheap.
        return tf.map_fn(
            lambda x: _resize_box(*x, size),
            (images, *boxes),
            fn_output_signature=tf.TensorSpec(
                [*size, images.shape[-1]], tf.float32
            ),
        )

    return Augmentation(2 * _TRIES + 2, crop)


@gin.configurable
def random_affine(
    degrees: float = 15.0,
    translate: float = 0.05,
    scale: tuple[float, float] = (0.95, 1.05),
    fill_value: float = 128.0,
) -> Augmentation:
    """Rotates, shifts and scales images about their centre.

    The transform is drawn as torchvision's `RandomAffine` does and pixels are
    taken from the nearest neighbour, its default. The defaults are the paper's
    for CheXpert (section 3).

    Args:
        degrees: greatest rotation to either side.
        translate: greatest shift to either side, as a share of width and
            height; rounded to whole pixels.
        scale: least and greatest scale.
        fill_value: what lies outside of the image, in 0..255.

    Returns:
        An `Augmentation`.
    """

    def transform(images, uniforms, size):
        del size
        sides = tf.shape(images)[1:3]
        matrices = affine_matrices(
            uniforms, tf.cast(sides, tf.float32), degrees, translate, scale
        )
        transformed = tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=matrices,
            output_shape=sides,
            fill_value=fill_value,
            interpolation="NEAREST",
            fill_mode="CONSTANT",
        )
        return tf.ensure_shape(transformed, images.shape)

    return Augmentation(4, transform)


def affine_matrices(uniforms, sides, degrees, translate, scale):
    """Draws the transforms of `random_affine`.

    Args:
        uniforms: float32 [b, 4] in [0, 1), for the angle, the shift right and
            down, and the scale.
        sides: float32 [2], height and width of the images in pixels.
        degrees: as in `random_affine`.
        translate: as in `random_affine`.
        scale: as in `random_affine`.

    Returns:
        float32 [b, 8]: rows (a, b, c, d, e, f, 0, 0), such that the pixel in
        column x and row y of the result is what was at column ax + by + c and
        row dx + ey + f.
    """
    angle = (2 * uniforms[:, 0] - 1) * (degrees * math.pi / 180)
    # [b, 2], x before y.
    shift = tf.round((2 * uniforms[:, 1:3] - 1) * translate * sides[::-1])
    factor = scale[0] + uniforms[:, 3] * (scale[1] - scale[0])
    cos, sin = tf.cos(angle) / factor, tf.sin(angle) / factor
    # Pixels are counted from the first one's centre, so the centre of the image
    # is where half of the others lie on either side.
    x, y = tf.unstack((sides[::-1] - 1) / 2)
    out_x, out_y = x + shift[:, 0], y + shift[:, 1]
    zero = tf.zeros_like(angle)
    return tf.stack(
        [
            cos,
            sin,
            x - cos * out_x - sin * out_y,
            -sin,
            cos,
            y + sin * out_x - cos * out_y,
            zero,
            zero,
        ],
        axis=1,
    )


def crop_boxes(uniforms, height, width, scale, ratio):
    """Draws the rectangles of `random_resized_crop`.

    Args:
        uniforms: float32 [b, 22] in [0, 1).
        height: height of the images in pixels.
        width: width of the images in pixels.
        scale: as in `random_resized_crop`.
        ratio: as in `random_resized_crop`.

    Returns:
        `top, left, h, w`, each int32 [b], in pixels.
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


def _resize_box(image, top, left, h, w, size):
    """Resizes one rectangle of one image [height, width, c]."""
    box = image[top : top + h, left : left + w]
    resized = tf.image.resize(box, size, antialias=True)
    return tf.ensure_shape(resized, [*size, image.shape[-1]])
