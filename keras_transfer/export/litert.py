"""The run's network and preprocessing, at one size of images, for LiteRT."""

import keras
import tensorflow as tf

from keras_transfer.export.one_size import (
    ServedModel,
    converting,
    in_float32,
)
from keras_transfer.models.fixup import ScalarBias


def write(network, info, input_size, path):
    """Writes a .tflite file of LiteRT's own operators, and tries it.

    Its signature takes `images`, uint8 [n, height, width, c], and gives
    `logits` and `probabilities`, float32 [n, K].

    Args:
        network: `keras.Model` of normalized images to logits.
        info: `data.Info` of the images that it was trained on.
        input_size: (height, width) of the images.
        path: where the file will be, a name in .tflite.

    Raises:
        UserError: if the network cannot be converted, or would give something
            else.
    """
    with converting("LiteRT", "TensorFlow"):
        served = ServedModel(
            _with_vectors(in_float32(network)), info, input_size
        )
        served.export(
            str(path),
            format="litert",
            input_signature=[served.signature],
            verbose=False,
            target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
        )
        interpreter = tf.lite.Interpreter(str(path))
        runner = interpreter.get_signature_runner()
        served.check(lambda images: runner(images=images), "The LiteRT model")


def _with_vectors(network):
    """Returns a network that adds scalars as vectors, one value a channel.

    The converter moves what is added before a dense layer behind it, and fails
    where that is a single number.
    """
    if not any(isinstance(layer, ScalarBias) for layer in network.layers):
        return network
    return keras.models.clone_model(
        network,
        clone_function=lambda layer: (
            layer
        ),  # The layers and weights are shared.
        call_function=_called,
    )


def _called(layer, *args, **kwargs):
    if isinstance(layer, ScalarBias):
        layer = VectorBias(layer, dtype=layer.dtype_policy)
    return layer(*args, **kwargs)


class VectorBias(keras.layers.Layer):
    """Adds the scalar of a `ScalarBias`, repeated for each channel."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs):
        """Returns `inputs` and the scalar, added."""
        bias = keras.ops.cast(self.layer.bias, inputs.dtype)
        return inputs + keras.ops.broadcast_to(bias, inputs.shape[-1:])

    def compute_output_shape(self, input_shape):
        """Returns `input_shape`."""
        return input_shape
