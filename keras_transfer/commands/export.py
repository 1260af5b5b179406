"""Writes a trained model in formats that others read, with a card.

    bin/export --run=runs/pt_digits --epoch=best --output=exported

The SavedModel needs neither this package nor Keras:

    model = tf.saved_model.load("exported/1")
    model.signatures["serving_default"](images=uint8_images)["probabilities"]

exported/README.md tells how to call what was written.
"""

from absl import flags

from keras_transfer import app


def define_flags():
    """Defines what only this command takes."""
    app.define_path("run", "The run directory.")
    app.define_path("output", "Directory to write; must not exist.")
    flags.DEFINE_string("epoch", "best", 'A number, "best" or "last".')
    flags.DEFINE_string(
        "format",
        "saved_model,keras",
        "One or several of saved_model, keras, onnx, litert and safetensors "
        "(PyTorch's layout), with commas between them.",
    )
    flags.DEFINE_string(
        "input_size",
        None,
        "Height x width in pixels, such as 480x640, of the images that onnx "
        "and litert take; by default the size that the run's images were "
        "resized to.",
    )


def main(run, epoch, output, format, input_size):
    """Exports, and says for what each file is."""
    from keras_transfer import training  # noqa: F401, gin files bind its parts.
    from keras_transfer.export import FORMATS, export, read_size
    from keras_transfer.runs import Run

    formats = [name.strip() for name in format.split(",")]
    size = None if input_size is None else read_size(input_size)
    # For the modules that it imports, with layers of the user's own.
    if app.GIN_FILE.value:
        app.parse_gin()
    export(Run(run), epoch, output, formats, size)
    readers = {
        "saved_model": "tf.saved_model.load and TF Serving",
        "keras": "keras.models.load_model",
        "onnx": "ONNX Runtime",
        "litert": "LiteRT",
        "safetensors": "PyTorch's load_state_dict",
    }
    rows = [(FORMATS[name], f"for {readers[name]}") for name in formats]
    rows.append(("README.md", "how to call each"))
    width = max(len(file) for file, _ in rows)
    for file, use in rows:
        print(f"{output}/{file:{width}}  {use}")
