#!/usr/bin/env python3
"""CKA of all modules of two ResNet-50s against two bare forward passes.

    python benchmarks/similarity.py --images=2048

Measures, in turns and in one process, a compiled forward pass of each of the
two models and `feature_similarity` of both, on the same batches of images held
in memory. The floor is a ratio of 1: the features come from a forward pass. On
a machine that others use, processor time tells more than the clock.
"""

import argparse
import time

import numpy as np
import tensorflow as tf

from keras_transfer import models
from keras_transfer.analysis.similarity import feature_similarity


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--memory_budget", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    shape = (args.image_size, args.image_size, 3)
    nets = [models.fixup_resnet50(1000, shape, seed=seed) for seed in (0, 1)]
    images = np.random.default_rng(0).normal(size=(args.batch_size, *shape))
    batches = tf.data.Dataset.from_tensors(images.astype(np.float32))
    batches = batches.repeat(-(-args.images // args.batch_size))
    signature = [tf.TensorSpec([None, *shape])]
    bare = [tf.function(net, signature).get_concrete_function() for net in nets]

    def forward():
        for net in bare:
            for batch in batches:
                net(batch)

    def similarity():
        found = feature_similarity(
            nets, batches, memory_budget=args.memory_budget
        )
        return found.method

    for net in bare:  # Warms up.
        net(images.astype(np.float32))
    spent = {forward: [], similarity: []}
    for _ in range(args.repeats):
        for measured, times in spent.items():
            began = np.array([time.perf_counter(), time.process_time()])
            method = measured()
            ended = np.array([time.perf_counter(), time.process_time()])
            times.append(ended - began)
    floor, ours = map(np.array, spent.values())
    print(
        f"{len(batches) * args.batch_size} images of {args.image_size} px, "
        f"{method}: two forward passes {np.median(floor[:, 0]):.1f} s, CKA of "
        f"all modules {np.median(ours[:, 0]):.1f} s."
    )
    ratios = ours / floor
    for column, clock in enumerate(("wall clock", "processor time")):
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios[:, column])
        print(
            f"Ratio by {clock}, median of {args.repeats}: "
            f"{np.median(ratios[:, column]):.2f} (floor 1; each: {each})"
        )


if __name__ == "__main__":
    main()
