"""A trained model for use elsewhere: SavedModel and .keras."""

import os
import pathlib

import keras
import tensorflow as tf

from keras_transfer import data, files
from keras_transfer.errors import UserError
from keras_transfer.models.logits import logits_model


def export(run, epoch, output):
    """Writes one epoch's model, preprocessing included.

    `output`/saved_model has two signatures, which both take images [n, height,
    width, channels] of any height and width as `images`, with the channels
    of the run's data, and give `logits` and `probabilities`, float32 [n, K]:
    "serving_default" for uint8, "serving_float" for float32 in [0, 1].
    Resizing, cropping and normalization are inside; nothing of this package is
    needed to load it. Images that are far too large or too long are an error.

    `output`/model.keras is the bare network, as it was trained: normalized
    images in; logits out, or probabilities if it ends in a softmax or sigmoid.
    Loading it needs its layers imported: this package's, or the user's own.

    Args:
        run: the `runs.Run`.
        epoch: "best", "last" or int.
        output: directory to write; must not exist.

    Raises:
        UserError: if `output` exists, or the run or epoch does not.
    """
    output = pathlib.Path(output)
    if os.path.lexists(output):
        raise UserError(
            f"{output} exists already; remove it or give another --output."
        )
    model, info = run.load_model(epoch), run.info()
    with files.whole_directory(output, replace=False) as aside:
        model.save(aside / "model.keras")
        _write_saved_model(logits_model(model), info, aside / "saved_model")


def _write_saved_model(model, info, path):
    def serve(images):
        logits = model(data.preprocess(images, info), training=False)
        logits = tf.cast(logits, tf.float32)
        activation = tf.sigmoid if info.multi_label else tf.nn.softmax
        return {"logits": logits, "probabilities": activation(logits)}

    def serve_float(images):
        return serve(images * 255.0)

    archive = keras.export.ExportArchive()
    archive.track(model)
    shape = (None, None, None, info.image_shape[-1])
    for name, function, dtype in (
        ("serving_default", serve, tf.uint8),
        ("serving_float", serve_float, tf.float32),
    ):
        spec = tf.TensorSpec(shape, dtype, name="images")
        archive.add_endpoint(name, function, input_signature=[spec])
    archive.write_out(path, verbose=False)
