"""The run's network and preprocessing, at one size of images, in ONNX."""

import functools
import importlib.util

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

from keras_transfer.errors import UserError
from keras_transfer.export.one_size import (
    ServedModel,
    converting,
    in_float32,
)

_NEEDED = ("onnx", "onnxruntime", "tf2onnx")


def check_installed():
    """Raises a `UserError` unless all that writes and tries it is there."""
    missing = [n for n in _NEEDED if importlib.util.find_spec(n) is None]
    if missing:
        raise UserError(
            f"ONNX is written with {', '.join(_NEEDED)}. Received: "
            f"{', '.join(missing)} is not installed; pip install "
            "'keras_transfer[onnx]'."
        )


def write(network, info, input_size, path):
    """Writes an ONNX file, and tries it with ONNX Runtime.

    Its input is `images`, uint8 [n, height, width, c], its outputs are `logits`
    and `probabilities`, float32 [n, K].

    Args:
        network: `keras.Model` of normalized images to logits.
        info: `data.Info` of the images that it was trained on.
        input_size: (height, width) of the images.
        path: where the file will be.

    Raises:
        UserError: if the network cannot be converted, or would give something
            else.
    """
    import onnx
    import onnxruntime

    with converting("ONNX", "tf2onnx"):
        _add_operators()
        served = ServedModel(in_float32(network), info, input_size)
        ConstantModel(served).export(
            str(path),
            format="onnx",
            input_signature=[served.signature],
            verbose=False,
        )
        model = onnx.load(path)
        for tensor in (*model.graph.input, *model.graph.output):
            tensor.type.tensor_type.shape.dim[0].dim_param = "n"
        onnx.save(model, path)
        session = onnxruntime.InferenceSession(path)
        names = [output.name for output in session.get_outputs()]
        served.check(
            lambda images: dict(
                zip(names, session.run(names, {"images": images}), strict=True)
            ),
            "The ONNX model",
        )


class ConstantModel(keras.Model):
    """A served model of constants.

    tf2onnx takes what is neither a variable nor a constant of the graph, such
    as the positions that KerasHub's ViT numbers, for further inputs.
    """

    def __init__(self, served):
        super().__init__()
        function = tf.function(lambda images: served(images))
        function = function.get_concrete_function(served.signature)
        self._function = convert_variables_to_constants_v2(function)
        self._names = sorted(function.structured_outputs)
        self(tf.zeros((1, *served.signature.shape[1:]), tf.uint8))

    def call(self, images):
        """Returns what the served model does."""
        return dict(zip(self._names, self._function(images), strict=True))


@functools.cache
def _add_operators():
    """Tells tf2onnx of what Keras' GELU is made of: 1 - erf(x)."""
    from tf2onnx.handler import tf_op
    from tf2onnx.utils import make_name, map_onnx_to_numpy_type

    @tf_op("Erfc")
    class _Erfc:
        @classmethod
        def version_9(cls, graph, node, **kwargs):
            name, dtype = node.output[0], graph.get_dtype(node.output[0])
            shape = graph.get_shape(name)
            one = np.array(1, map_onnx_to_numpy_type(dtype))
            one = graph.make_const(make_name("one"), one)
            erf = graph.make_node("Erf", node.input)
            graph.remove_node(node.name)
            graph.make_node(
                "Sub",
                [one.output[0], erf.output[0]],
                outputs=[name],
                shapes=[shape],
                dtypes=[dtype],
            )
