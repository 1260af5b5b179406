"""Cost of a criticality grid with and without reuse, and against its floor.

    python benchmarks/criticality.py                  # the digits network
    python benchmarks/criticality.py --model=resnet50 # 224 px
    python benchmarks/criticality.py --model=mobilenet --rounds=1 --against

Measured in this process, in turns, over the same grid of every module (block)
on a direct line and the same batches in memory:

    floor     bare forward passes: each module and those after it, compiled, as
              often as there are grid points, on activations computed before
    reuse     `ModuleLoss.evaluate`: all that enters each module, once; then for
              each point weights, noise, what follows, loss and 0-1 error
    plain     `LossSurface.evaluate` at as many points, the whole network

The first evaluation, which traces and compiles, is timed too.
"""

import argparse
import itertools
import os
import statistics
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import models
from keras_transfer.landscape.loss_surface import LossSurface
from keras_transfer.landscape.module_loss import ModuleLoss, Perturbations
from keras_transfer.landscape.weight_space import Points

# Model: shape, (positions, noise levels, draws, images, batch, rounds).
DEFAULTS = {
    "digits": ((16, 16, 1), (6, 7, 2, 200, 200, 9)),
    "resnet50": ((224, 224, 3), (2, 4, 1, 16, 16, 3)),
    "mobilenet": ((32, 32, 3), (2, 3, 2, 64, 64, 3)),
}


def main():
    options = parse()
    shape, _ = DEFAULTS[options.model]
    if options.model == "digits":
        model = models.fixup_resnet(10, shape)
    elif options.model == "mobilenet":
        model = keras.applications.MobileNetV2(
            shape, weights=None, classes=10, classifier_activation=None
        )
    else:
        model = models.fixup_resnet50(10, shape)
    batches = random_batches(shape, options.images, options.batch_size)
    rng = np.random.default_rng(1)
    end = [
        w + 0.01 * rng.normal(size=w.shape).astype(w.dtype)
        for w in model.get_weights()
    ]
    vectors = [model.get_weights(), end]
    grid = np.array(
        list(
            itertools.product(
                range(options.draws),
                np.linspace(0, 1, options.positions),
                np.geomspace(0.01, 1, options.sigmas),
            )
        )
    )
    began = time.perf_counter()
    contenders = {"reuse": reuse(model, vectors, batches, grid)}
    contenders["reuse"]()
    print(f"first evaluation: {time.perf_counter() - began:.1f} s")
    if "floor" in options.against:
        contenders["floor"] = floor(model, batches, len(grid))
    if "plain" in options.against:
        contenders["plain"] = plain(model, vectors, batches, grid)
    clock, processor = measure(contenders, options.rounds)
    medians = {n: statistics.median(s) for n, s in clock.items()}
    print(
        f"{options.model}: {len(models.module_chain(model))} modules, "
        f"{len(grid)} points each, {options.images} images in batches of "
        f"{options.batch_size}; seconds (medians): "
        + ", ".join(f"{n} {s:.2f}" for n, s in medians.items())
    )
    for seconds, of in ((clock, "clock"), (processor, "processor")):
        for other in options.against:
            report(seconds, "reuse", other, of)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=list(DEFAULTS), default="digits")
    names = "positions", "sigmas", "draws", "images", "batch_size", "rounds"
    for name in names:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument(
        "--against",
        nargs="*",
        choices=["plain", "floor"],
        default=["plain", "floor"],
        help="what to measure beside the grid with reuse",
    )
    options = parser.parse_args()
    for name, value in zip(names, DEFAULTS[options.model][1], strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def random_batches(shape, images, batch_size):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(images, *shape)).astype(np.float32)
    targets = np.eye(10, dtype=np.float32)[rng.integers(0, 10, images)]
    batches = tf.data.Dataset.from_tensor_slices((inputs, targets))
    return batches.batch(batch_size, drop_remainder=True).cache()


def measure(contenders, rounds):
    """Returns {name: seconds of each round} by clock and by processor time.

    All are measured in turns. Processor time tells more where other programs
    keep the cores busy.
    """
    clock, processor = ({name: [] for name in contenders} for _ in range(2))
    stderr = sys.stderr
    with open(os.devnull, "w") as nowhere:
        # The first two rounds trace, compile and settle the points per call.
        for number in range(rounds + 2):
            for name, run in contenders.items():
                sys.stderr = nowhere
                began = time.perf_counter(), time.process_time()
                run()
                ended = time.perf_counter(), time.process_time()
                sys.stderr = stderr
                if number >= 2:
                    clock[name].append(ended[0] - began[0])
                    processor[name].append(ended[1] - began[1])
    return clock, processor


def report(seconds, name, other, of):
    ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
    print(
        f"{name} / {other}, {of} time: {statistics.median(ratios):.3f} "
        f"(of {len(ratios)}: {min(ratios):.3f} to {max(ratios):.3f})"
    )


def floor(model, batches, points):
    chain = models.module_chain(model)
    passes = []
    for x, _ in batches:
        for m, module in enumerate(chain):
            passes.append((suffix(chain[m:]), x))
            x = module.model(x, training=False)

    def run():
        for forward, x in passes:
            logits = forward(x, tf.constant(points))
        return logits.numpy()

    return run


def suffix(modules):
    # One call for all points: Python between calls would flatter us.
    @tf.function
    def forward(x, points):
        logits = tf.TensorArray(tf.float32, points)
        for p in tf.range(points):
            y = x
            for module in modules:
                y = module.model(y, training=False)
            logits = logits.write(p, y)
        return logits.stack()

    return forward


def reuse(model, vectors, batches, grid):
    modules = ModuleLoss(model, batches, means())
    seeds, positions, sigmas = grid.T
    request = Perturbations(positions, sigmas, seeds)
    parts = [range(m, m + 1) for m in range(len(modules.chain))]
    return lambda: modules.evaluate(vectors, 1, dict.fromkeys(parts, request))


def plain(model, vectors, batches, grid):
    surface = LossSurface(model, vectors, batches, means())
    seeds, positions, sigmas = np.tile(grid.T, len(models.module_chain(model)))
    points = Points(np.stack([1 - positions, positions], axis=1), sigmas, seeds)
    # As many points as there are for all modules, none of them twice.
    points.seeds[:] = np.arange(len(points))
    return lambda: surface.evaluate(points)


def means():
    return {
        "loss": lambda t, y: keras.losses.categorical_crossentropy(
            t, y, from_logits=True
        ),
        "error": lambda t, y: 1 - keras.metrics.categorical_accuracy(t, y),
    }


if __name__ == "__main__":
    main()
