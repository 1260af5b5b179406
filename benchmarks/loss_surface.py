"""Cost of a point of the loss surface against a bare forward pass.

    python benchmarks/loss_surface.py                  # the digits network
    python benchmarks/loss_surface.py --model=resnet50 # 224 px

Measured in this process, in turns, at the same points between two weight
vectors and on the same batches in memory:

    bare      the compiled forward pass alone, in one call for all batches, the
              floor: a ratio of 1
    surface   `LossSurface.evaluate`: weights, forward pass, loss and accuracy
    keras     the obvious way: `set_weights`, then `model.evaluate`
    torch     the same loop in PyTorch, if installed: `load_state_dict`, forward
              pass under `no_grad`, loss and accuracy, with as many threads
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import models
from keras_transfer.landscape.loss_surface import LossSurface
from keras_transfer.landscape.weight_space import Points

try:
    import torch

    # The network in PyTorch that the tests compare with.
    sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
    import torch_fixup
except ImportError:
    torch = None


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", choices=["digits", "resnet50"], default="digits"
    )
    parser.add_argument("--examples", type=int)
    parser.add_argument("--points", type=int)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--against",
        nargs="*",
        choices=["keras", "torch"],
        default=["keras", "torch"] if torch else ["keras"],
        help="what to measure beside the floor and the surface",
    )
    options = parser.parse_args()
    if options.model == "digits":
        shape, defaults = (16, 16, 1), (800, 20, 200)
        model = models.fixup_resnet(10, shape)
    else:
        shape, defaults = (224, 224, 3), (48, 1, 16)
        model = models.fixup_resnet50(10, shape)
    examples = options.examples or defaults[0]
    points = options.points or defaults[1]
    batch_size = options.batch_size or defaults[2]
    examples -= examples % batch_size
    rng = np.random.default_rng(0)
    images = rng.normal(size=(examples, *shape)).astype(np.float32)
    targets = np.eye(10, dtype=np.float32)[rng.integers(0, 10, examples)]
    vectors = [model.get_weights(), model.get_weights()]
    vectors[1] = [
        w + 0.01 * rng.normal(size=w.shape).astype(w.dtype) for w in vectors[1]
    ]
    alphas = np.linspace(0, 1, points)
    batches = tf.data.Dataset.from_tensor_slices((images, targets))
    batches = batches.batch(batch_size).cache()
    contenders = {
        "bare": bare(model, batches, points),
        "surface": surface(model, vectors, batches, alphas),
    }
    if "keras" in options.against:
        contenders["keras"] = obvious(model, vectors, batches, alphas)
    if "torch" in options.against:
        network = torch_network(options.model, shape)
        contenders["torch"] = in_torch(network, model, vectors, batches, alphas)
    seconds = measure(contenders, options.rounds)
    floor = statistics.median(seconds["bare"]) / points
    print(
        f"{options.model}: {points} points, {examples} images in batches of "
        f"{batch_size}; bare pass {floor:.4f} s, {examples / floor:.0f} "
        "images/s"
    )
    for name in list(contenders)[1:]:
        ratios = [
            a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)
        ]
        print(
            f"{name} / bare: {statistics.median(ratios):.3f} "
            f"(of {len(ratios)}: {min(ratios):.3f} to {max(ratios):.3f})"
        )


def measure(contenders, rounds):
    """Returns {name: seconds of each round}, all measured in turns."""
    seconds = {name: [] for name in contenders}
    # The first two rounds trace, compile and settle the points per call.
    for number in range(rounds + 2):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def bare(model, batches, points):
    kept = tf.stack([images for images, _ in batches])

    # One call for all batches: Python between calls would flatter us.
    @tf.function
    def forward():
        logits = tf.TensorArray(tf.float32, len(kept))
        for i in tf.range(len(kept)):
            logits = logits.write(i, model(kept[i], training=False))
        return logits.stack()

    def run():
        for _ in range(points):
            logits = forward()
        return logits.numpy()

    return run


def surface(model, vectors, batches, alphas):
    means = {
        "loss": lambda t, y: keras.losses.categorical_crossentropy(
            t, y, from_logits=True
        ),
        "accuracy": keras.metrics.categorical_accuracy,
    }
    found = LossSurface(model, vectors, batches, means)
    points = Points(np.stack([1 - alphas, alphas], axis=1))
    with open(os.devnull, "w") as nowhere:
        sys.stderr, stderr = nowhere, sys.stderr
        found.evaluate(points)
        sys.stderr = stderr
    return lambda: found.evaluate(points)


def obvious(model, vectors, batches, alphas):
    model = keras.models.clone_model(model)
    model.compile(
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

    def run():
        for alpha in alphas:
            model.set_weights(combine(vectors, alpha))
            model.evaluate(batches, verbose=0)

    return run


def torch_network(name, shape):
    small = (shape[-1], (16, 32, 64), (1, 1, 1), 2, 10)
    large = (shape[-1], (64, 128, 256, 512), (3, 4, 6, 3), 3, 10)
    if name == "digits":
        return torch_fixup.torch_network("small", *small)
    return torch_fixup.torch_network("imagenet", *large)


def in_torch(network, model, vectors, batches, alphas):
    torch.set_num_threads(os.cpu_count())
    names = [torch_fixup.torch_name(v.path) for v in model.weights]
    states = [
        {
            name: torch.from_numpy(torch_fixup.to_torch(w).copy())
            for name, w in zip(names, weights, strict=True)
        }
        for weights in vectors
    ]
    kept = [
        (
            torch.from_numpy(images.numpy()).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(targets.numpy().argmax(axis=1)),
        )
        for images, targets in batches
    ]

    @torch.no_grad()
    def run():
        for alpha in map(float, alphas):
            network.load_state_dict(
                {
                    name: (1 - alpha) * w + alpha * states[1][name]
                    for name, w in states[0].items()
                }
            )
            loss = right = 0.0
            for images, labels in kept:
                logits = network(images)
                loss += torch.nn.functional.cross_entropy(
                    logits, labels, reduction="sum"
                ).item()
                right += (logits.argmax(1) == labels).sum().item()

    return run


def combine(vectors, alpha):
    return [(1 - alpha) * a + alpha * b for a, b in zip(*vectors, strict=True)]


if __name__ == "__main__":
    main()
