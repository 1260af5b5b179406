"""Writes a trained model as a SavedModel and as a .keras file.

    bin/export --run=runs/pt_digits --epoch=best --output=exported

The SavedModel needs neither this package nor Keras:

    model = tf.saved_model.load("exported/saved_model")
    model.signatures["serving_default"](images=uint8_images)["probabilities"]
"""

from absl import flags

from keras_transfer import app


def define_flags():
    """Defines what only this command takes."""
    app.define_path("run", "The run directory.")
    app.define_path("output", "Directory to write; must not exist.")
    flags.DEFINE_string("epoch", "best", 'A number, "best" or "last".')


def main(run, epoch, output):
    """Exports, and says for what each file is."""
    from keras_transfer import training  # noqa: F401, gin files bind its parts.
    from keras_transfer.export import export
    from keras_transfer.runs import Run

    # For the modules that it imports, with layers of the user's own.
    if app.GIN_FILE.value:
        app.parse_gin()
    export(Run(run), epoch, output)
    print(
        f"{output}/saved_model  for tf.saved_model.load and TF Serving\n"
        f"{output}/model.keras  for keras.models.load_model"
    )
