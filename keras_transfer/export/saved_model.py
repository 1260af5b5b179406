"""The run's network and preprocessing as a SavedModel."""

import keras
import tensorflow as tf

from keras_transfer import data
from keras_transfer.data.image_files import decode_image
from keras_transfer.export.one_size import outputs


def write(network, info, path):
    """Writes a SavedModel of three signatures.

    Each takes `images` and gives `logits` and `probabilities`, float32 [n, K].
    Images of "serving_default" are uint8 [n, height, width, channels] of any
    height and width, with the channels of the run's data; those of
    "serving_float" float32 in [0, 1]; those of "serving_encoded" the contents
    of JPEG, PNG, BMP or GIF files, strings [n], of any size each. Images that
    are far too large or too long are an error.

    Args:
        network: `keras.Model` of normalized images to logits.
        info: `data.Info` of the images that it was trained on.
        path: directory to make.
    """
    channels = info.image_shape[-1]

    def of_inputs(inputs):
        return outputs(network(inputs, training=False), info)

    def serve(images):
        return of_inputs(data.preprocess(images, info))

    def serve_float(images):
        return serve(images * 255.0)

    def serve_encoded(images):
        inputs = tf.map_fn(
            lambda content: data.preprocess(_decoded(content, info), info)[0],
            images,
            fn_output_signature=tf.TensorSpec(info.image_shape, tf.float32),
        )
        return of_inputs(inputs)

    archive = keras.export.ExportArchive()
    archive.track(network)
    shape = (None, None, None, channels)
    for name, function, spec in (
        ("serving_default", serve, tf.TensorSpec(shape, tf.uint8)),
        ("serving_float", serve_float, tf.TensorSpec(shape, tf.float32)),
        ("serving_encoded", serve_encoded, tf.TensorSpec([None], tf.string)),
    ):
        spec = tf.TensorSpec(spec.shape, spec.dtype, name="images")
        archive.add_endpoint(name, function, input_signature=[spec])
    archive.write_out(path, verbose=False)


def _decoded(content, info):
    """Returns the image in a file as training decodes it, [1, h, w, c]."""
    # X-rays are decoded as gray images, others as colour.
    return decode_image(content, 1 if info.fit == "xray" else 3)[None]
