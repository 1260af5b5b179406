"""`bin/train` as one worker of a cluster, which tells what it ended with.

Arguments: the file to write and the flags of `bin/train`. The file holds the
final weights, weight_<i>, and the examples that the worker's input pipeline
gives for the first steps, [steps, examples a step].
"""

import runpy
import sys

import commands
import numpy as np

from keras_transfer.data import Dataset
from keras_transfer.training.trainer import Trainer

STEPS = 4


def main(report, *flags):
    trainers, examples = [], []
    make_trainer, make_parts = Trainer.__init__, Dataset.train_parts

    def noted_trainer(self, *args, **kwargs):
        trainers.append(self)
        make_trainer(self, *args, **kwargs)

    def noted_parts(self, *args, **kwargs):
        parts = make_parts(self, *args, **kwargs)
        if "worker" in kwargs:  # What is trained on, and not only shown.
            shown = parts.take(STEPS).as_numpy_iterator()
            examples.extend(part["examples"] for part in shown)
        return parts

    Trainer.__init__, Dataset.train_parts = noted_trainer, noted_parts
    sys.argv = ["train", *flags]
    try:
        runpy.run_path(str(commands.ROOT / "bin" / "train"), {}, "__main__")
    except SystemExit as end:
        if end.code:
            raise
    (trainer,) = trainers
    weights = trainer.model.get_weights()
    weights = {f"weight_{i}": weight for i, weight in enumerate(weights)}
    np.savez(report, examples=np.array(examples), **weights)


if __name__ == "__main__":
    main(*sys.argv[1:])
