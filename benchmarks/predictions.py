#!/usr/bin/env python3
"""Prediction-based analyses against one bare forward pass per model.

    python benchmarks/predictions.py --image_size=112

Measures, in turns and in one process, (a) a compiled forward pass of each of
several ResNet-50s over the 797 test digits, preprocessed and held in memory,
(b) `Models.logits` of all, which preprocesses, and (c) the whole of
`mistakes`, with tables and figures. The floor is a ratio of 1. Reading the
models from disk is not measured. On a machine that others use, processor time
tells more than the clock.
"""

import argparse
import pathlib
import tempfile
import time

import gin
import numpy as np
import tensorflow as tf

from keras_transfer import data, models
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.mistakes import mistakes
from keras_transfer.analysis.models import Models
from keras_transfer.runs import Run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    dataset = data.load("digits", image_size=args.image_size, channels=3)
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        paths = [
            write_run(directory / f"net{seed}", dataset, seed)
            for seed in range(args.models)
        ]
        measure(paths, dataset, directory / "out", args.repeats)


def write_run(path, dataset, seed):
    """Writes a run that holds a new model; returns its directory."""
    net = models.fixup_resnet50(10, dataset.info.image_shape, seed=seed)
    run = Run(path)
    run.begin("", net, dataset)
    run.save(0, net)
    return str(path)


def measure(paths, dataset, directory, repeats):
    """Prints the ratios."""
    batches = list(dataset.examples.split("test").batches(200))
    loaded = Models({"P-T": paths})
    nets = [loaded.model(member) for member in loaded]
    bare = [tf.function(net) for net in nets]

    def forward(loaded):
        for net in bare:
            for images, _, _ in batches:
                net(images)

    def logits(loaded):
        for member in loaded:
            loaded.logits(member)

    def whole(loaded):
        gin.bind_parameter("Models.models", {"P-T": paths})
        analyze(directory, (mistakes,), loaded)

    measures = forward, logits, whole
    spent = {measured: [] for measured in measures}
    forward(None)  # Warms up.
    for _ in range(repeats):
        for measured in measures:
            loaded = Models({"P-T": paths})
            for member in loaded:
                loaded.model(member)
            began = np.array([time.perf_counter(), time.process_time()])
            measured(loaded)
            ended = np.array([time.perf_counter(), time.process_time()])
            spent[measured].append(ended - began)
    floor = np.array(spent.pop(forward))
    print(
        f"{len(dataset.test)} images of {dataset.info.image_shape[0]} px, "
        f"{len(paths)} models: forward passes {np.median(floor[:, 0]):.1f} s"
    )
    for measured, times in spent.items():
        for column, clock in enumerate(("wall clock", "processor time")):
            ratios = (np.array(times) / floor)[:, column]
            print(
                f"{measured.__name__:6} ratio by {clock}, median of {repeats}: "
                f"{np.median(ratios):.2f} (floor 1; each: "
                f"{', '.join(f'{ratio:.2f}' for ratio in ratios)})"
            )


if __name__ == "__main__":
    main()
