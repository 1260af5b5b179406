"""Processor time of a study's run that uses what was compiled for another.

    python benchmarks/shared_trainers.py

Runs of the digits study (two blocks a stage, 12 px, 200 images), of other seeds
and draws, are trained in this process in turns: each alone, and with the
trainers of the runs before. All are to end with the same weights, bit for bit.
"""

import os

# As a job of the study has it.
os.environ |= dict.fromkeys(
    ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), "1"
)

import argparse
import contextlib
import io
import pathlib
import statistics
import tempfile
import time

import gin
import keras
import numpy as np

from keras_transfer import config, memory
from keras_transfer.runs import Run
from keras_transfer.training import Trainers, train

GIN = pathlib.Path(__file__).parents[1] / "gin"
STUDY = [
    "fixup_resnet.blocks_per_stage = 2",
    "load.image_size = 12",
    "random_crop.padding = 1",
    "train.keep_epochs = []",
]


def run(path, epochs, seed, trainers=None):
    """Trains a run; returns its processor time in seconds."""
    gin.clear_config()
    own = [f"train.epochs = {epochs}", f"train.seed = {seed}"]
    config.parse(
        [str(GIN / "rit_digits.gin")], [*STUDY, *own, f"load.seed = {seed}"]
    )
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        train(path, trainers=trainers)
    keras.backend.clear_session()
    return time.process_time() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    memory.keep_freed()
    with tempfile.TemporaryDirectory() as scratch:
        for epochs in (1, 30):
            measure(pathlib.Path(scratch, str(epochs)), epochs, options.rounds)


def measure(scratch, epochs, rounds):
    """Prints the times and their ratio."""
    trainers = Trainers()
    run(scratch / "first", epochs, 1000, trainers)
    times = []
    for seed in range(rounds):
        paths = [scratch / f"{name}{seed}" for name in ("alone", "shared")]
        alone = run(paths[0], epochs, seed)
        times.append((alone, run(paths[1], epochs, seed, trainers)))
        ours, theirs = (Run(p).load_model("last").get_weights() for p in paths)
        assert all(map(np.array_equal, ours, theirs))
    alone, shared = (statistics.median(t) for t in zip(*times, strict=True))
    ratios = sorted(second / first for first, second in times)
    print(
        f"{epochs} epochs: {alone:.2f} s alone, {shared:.2f} s with a trainer "
        f"that is there; ratio {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
