"""A model with its preprocessing, for images of one size.

ONNX and LiteRT have neither an operator for antialiased resizing (TensorFlow's
ScaleAndTranslate) nor one for histograms. At a known size there are exact forms
of operators that they have.
"""

import contextlib
import functools
import logging
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import data
from keras_transfer.data import xray
from keras_transfer.data.preprocessing import convert_channels, normalize
from keras_transfer.errors import UserError
from keras_transfer.models.weights import assign_weights, named_weights

_GRAY = 128  # What X-rays are padded with.
_NUM_TRIED = 2
_TOLERANCE = 1e-4


class ServedModel(keras.Model):
    """Raw images of one size in, logits and probabilities out.

    Args:
        network: `keras.Model` of normalized images to logits.
        info: `data.Info` of the images that it was trained on.
        input_size: (height, width) of the images.
    """

    def __init__(self, network, info, input_size):
        super().__init__()
        self._network = network
        self._info = info
        self.signature = tf.TensorSpec(
            (None, *input_size, info.image_shape[-1]), tf.uint8, name="images"
        )
        self(tf.zeros((1, *self.signature.shape[1:]), tf.uint8))

    def check(self, run, what):
        """Tries an exported model on images of noise.

        Args:
            run: function of uint8 images; returns {"logits": array, ...}.
            what: the exported model, the start of a sentence.

        Raises:
            UserError: if logits differ from the run's own by more than 1e-4
                of the largest one, or of 1.
        """
        shape = (_NUM_TRIED, *self.signature.shape[1:])
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        inputs = data.preprocess(tf.constant(images), self._info)
        expected = np.asarray(self._network(inputs, training=False))
        difference = np.abs(np.asarray(run(images)["logits"]) - expected).max()
        largest = np.abs(expected).max()
        if not difference <= _TOLERANCE * max(1.0, largest):
            raise UserError(
                f"{what} would not give what the run does: on images of noise "
                f"its logits differ by up to {difference:.2g} from those of "
                f"the run, of {largest:.2g} at most. Nothing was written; "
                "export the run as saved_model."
            )

    def call(self, images):
        """Returns `outputs` of uint8 images [n, height, width, channels]."""
        inputs = preprocess(images, self._info)
        return outputs(self._network(inputs, training=False), self._info)


def outputs(logits, info):
    """Returns what an exported model gives, by name, float32 [n, K] each."""
    logits = tf.cast(logits, tf.float32)
    activation = tf.sigmoid if info.multi_label else tf.nn.softmax
    return {"logits": logits, "probabilities": activation(logits)}


def preprocess(images, info):
    """Does what `data.preprocess` does to images of one size, bit for bit.

    Args:
        images: uint8 [n, height, width, c], all but n known, c that of
            `info.image_shape`.
        info: `data.Info`.

    Returns:
        float32 [n, h, w, c] with `(h, w, c) = info.image_shape`.
    """
    fit = _fit_xray if info.fit == "xray" else _fit
    return normalize(_whole_levels(fit(images, info)), info)


def _whole_levels(images):
    """Rounds float32 images in 0..255, 0.5 up."""
    # The maximum changes nothing, but TensorFlow would move a sum's 0.5 between
    # the terms of sums before it, where it is rounded with other numbers.
    return tf.floor(tf.maximum(images, 0.0) + 0.5)


def _fit(images, info):
    given, resize = np.array(images.shape[1:3]), _sides(info.resize)
    # To cover `resize`: the side that is relatively shorter becomes its side.
    ratio = resize * given[::-1]
    side = int(ratio[0] < ratio[1])
    target = resize[side] * given // given[side]
    size = np.array(info.image_shape[:2])
    start = _start(target, resize) + _start(resize, size)
    return _resized(images, target, start, size)


def _fit_xray(images, info):
    gray = _equalized(_whole_levels(_gray(images)))
    given, resize = np.array(images.shape[1:3]), _sides(info.resize)
    target = np.round(given * (resize / given.max())).astype(int)
    target = np.maximum(target, 1)
    fitted = _resized(gray, target, np.zeros(2, int), target)
    bottom, right = resize - target
    fitted = tf.pad(
        fitted,
        [[0, 0], [0, bottom], [0, right], [0, 0]],
        constant_values=_GRAY,
    )
    fitted = convert_channels(xray.blur(fitted), info.image_shape[-1])
    height, width, _ = info.image_shape
    top, left = _start(resize, np.array([height, width]))
    fitted = fitted[:, top : top + height, left : left + width]
    # What LiteRT's converter does not see is its shape.
    return tf.reshape(fitted, [-1, *info.image_shape])


def _gray(images):
    """Returns the luma of colour, added up in TensorFlow's order."""
    with tf.init_scope():  # Numbers, also inside of a graph.
        ones = tf.eye(images.shape[-1])[None, None]
        weights = convert_channels(ones, 1).numpy().ravel()
    return _sum(
        weight * tf.cast(images[..., channel : channel + 1], tf.float32)
        for channel, weight in enumerate(weights)
    )


def _sum(terms):
    """Adds terms one after the other: other orders give other last bits."""
    return functools.reduce(lambda total, term: total + term, terms)


def _sides(size):
    return np.broadcast_to(size, 2)


def _start(given, size):
    """Returns where the central part of a size begins."""
    return np.round((given - size) / 2).astype(int)


def _resized(images, target, start, size):
    """Resizes images as `tf.image.resize` does, and cuts out a part.

    Args:
        images: [n, height, width, c].
        target: (height, width) of the whole, as an array.
        start: (top, left) of the part.
        size: (height, width) of the part.
    """
    images = tf.cast(images, tf.float32)
    for axis in (0, 1):
        weights = _resizing_weights(images.shape[1 + axis], int(target[axis]))
        part = weights[start[axis] : start[axis] + size[axis]]
        images = _weighted_sum(images, part, 1 + axis)
    return images


def _resizing_weights(size, target):
    """Returns the weights of antialiased bilinear resizing, [target, size].

    They are what the operator makes of ones, so that they are its own to the
    last bit.
    """
    ones = np.eye(size, dtype=np.float32)[None, :, None, :]
    with tf.init_scope():  # Numbers, also inside of a graph.
        resized = tf.image.resize(ones, (target, 1), antialias=True)
        return resized.numpy()[0, :, 0, :]


def _weighted_sum(images, weights, axis):
    """Multiplies an axis of images with a matrix that has few other than 0.

    Not by a product of matrices: terms are added in the order in which
    TensorFlow's resizing does, so that sums are the same to the last bit, and
    are rounded to the same levels.
    """
    size = weights.shape[1]
    is_used = weights != 0
    first = is_used.argmax(axis=1)
    last = size - 1 - is_used[:, ::-1].argmax(axis=1)
    rows = np.arange(len(weights))
    shape = [-1 if i == axis else 1 for i in range(4)]

    def terms():
        for step in range((last - first).max() + 1):
            place = np.minimum(first + step, size - 1).astype(np.int32)
            # Of rows with fewer than others, nothing more is added.
            weight = weights[rows, place] * (first + step <= last)
            yield tf.gather(images, place, axis=axis) * weight.reshape(
                shape
            ).astype(np.float32)

    return _sum(terms())


def _equalized(images):
    """Does what `xray.equalize_histogram` does.

    Args:
        images: float32 of whole levels [n, height, width, 1].
    """
    pixels = images.shape[1] * images.shape[2]
    levels = tf.reshape(tf.cast(images, tf.int32), [-1, pixels])
    # Pixels of each level, by its two digits to the base of 16: the sum over
    # pixels of products of 0 and 1.
    digits = (
        tf.cast(digit[..., None] == tf.range(16), tf.float32)
        for digit in (levels // 16, levels % 16)
    )
    histogram = tf.cast(tf.matmul(*digits, transpose_a=True), tf.int32)
    histogram = tf.reshape(histogram, [-1, 256])
    cumulative = tf.cumsum(histogram, axis=-1)
    lowest = tf.reduce_min(levels, axis=-1)
    below = tf.gather(histogram, lowest, batch_dims=1)[:, None]
    # Of an image of one level there are none, and nothing is divided by 0.
    above = pixels - below
    scale = 255 / tf.cast(tf.maximum(above, 1), tf.float32)
    table = tf.round(tf.cast(cumulative - below, tf.float32) * scale)
    table = tf.where(above == 0, tf.range(256.0), tf.maximum(table, 0.0))
    return tf.reshape(
        tf.gather(table, levels, batch_dims=1), [-1, *images.shape[1:]]
    )


def in_float32(network):
    """Returns a network of mixed precision as one of float32.

    Neither ONNX Runtime nor LiteRT has all operators in less precision.
    """
    config = keras.saving.serialize_keras_object(network)
    found, left = [], [config]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if value.get("class_name") == "DTypePolicy":
                found.append(value["config"])
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
    mixed = [p for p in found if str(p.get("name")).startswith("mixed_")]
    if not mixed:
        return network
    for policy in mixed:
        policy["name"] = "float32"
    again = keras.saving.deserialize_keras_object(config)
    assign_weights(again, named_weights(network))
    return again


@contextlib.contextmanager
def converting(name, library):
    """Turns whatever a converter says of a network into a sentence.

    Args:
        name: str, what it is converted to.
        library: str, what converts it.

    Raises:
        UserError: instead of any other error.
    """
    disabled = logging.root.manager.disable
    # What converters log is said once more in what they raise.
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, OSError, MemoryError, tf.errors.ResourceExhaustedError):
        raise  # It is not the network's fault.
    except Exception as error:  # Converters raise all kinds.
        # The first line begins with where, and ends with what.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"The network cannot be converted to {name}. {library} said: "
            f"{reason[-250:].rstrip('.')}. Nothing was written; export the "
            "run as saved_model."
        ) from error
    finally:
        logging.disable(disabled)
