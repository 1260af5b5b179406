"""How far exported models are from their run, on images of files.

    python benchmarks/exports.py --run=runs/rit --images=FOLDER

Exports the run's best epoch as a SavedModel, ONNX and LiteRT, for images of the
size of the first in FOLDER, at any depth, and prints the largest difference of
logits from the run's own over the first images of that size, and the seconds
that an image takes. Nothing is left.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np
import onnxruntime
import tensorflow as tf
from PIL import Image

from keras_transfer import data
from keras_transfer.export import export
from keras_transfer.models import logits_model
from keras_transfer.runs import Run


def read_images(folder, count, channels):
    """Returns uint8 images [n, h, w, channels] that have one size."""
    mode = {1: "L", 3: "RGB"}[channels]
    found = []
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            continue
        image = np.asarray(Image.open(path).convert(mode))
        image = image.reshape(*image.shape[:2], channels)
        if not found or image.shape == found[0].shape:
            found.append(image)
        if len(found) == count:
            break
    return np.stack(found)


def functions(directory):
    """Returns {format: function of images that gives logits}."""
    # What it is a function of must be kept.
    model = tf.saved_model.load(str(directory / "1"))
    served = model.signatures["serving_default"]
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    interpreter = tf.lite.Interpreter(str(directory / "model.tflite"))
    runner = interpreter.get_signature_runner()
    return {
        "saved_model": lambda x: served(images=tf.constant(x))["logits"],
        "onnx": lambda x: session.run(["logits"], {"images": x})[0],
        "litert": lambda x: runner(images=x)["logits"],
    }, model


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=50)
    arguments = parser.parse_args()
    run = Run(arguments.run)
    info = run.info()
    images = read_images(arguments.images, arguments.count, info.image_shape[2])
    inputs = data.preprocess(tf.constant(images), info)
    network = logits_model(run.load_model("best"))
    expected = np.asarray(network(inputs, training=False))
    print(
        f"{len(images)} images of {images.shape[1]} x {images.shape[2]}, seen "
        f"at {info.image_shape[0]} x {info.image_shape[1]}; logits up to "
        f"{np.abs(expected).max():.3g}\n"
    )
    print("| format | largest difference of logits | ms an image |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        output = pathlib.Path(directory) / "exported"
        formats = ("saved_model", "onnx", "litert")
        export(run, "best", output, formats, images.shape[1:3])
        found, _kept = functions(output)
        for name, function in found.items():
            function(images)
            began = time.perf_counter()
            logits = np.asarray(function(images))
            seconds = time.perf_counter() - began
            difference = np.abs(logits - expected).max()
            print(
                f"| {name} | {difference:.1g} | "
                f"{1000 * seconds / len(images):.2f} |"
            )


if __name__ == "__main__":
    main()
