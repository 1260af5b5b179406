"""Trains as one worker of a cluster and tells what it ended with.

Flags as for `bin/train`, and --report, the file to write. It holds the final
weights, weight_<i>, and the examples that the worker's input pipeline gives for
the first steps, [steps, examples a step].
"""

from keras_transfer import app  # Before TensorFlow, as in `bin/train`.

import numpy as np
from absl import flags

WORK_DIR = flags.DEFINE_string("work_dir", None, "As for bin/train.")
REPORT = flags.DEFINE_string("report", None, "The file to write.")
STEPS = 4


def main():
    from keras_transfer.data import Dataset
    from keras_transfer.training import train
    from keras_transfer.training.step import Trainer

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
    app.parse_gin()
    train(WORK_DIR.value)
    (trainer,) = trainers
    weights = trainer.model.get_weights()
    weights = {f"weight_{i}": weight for i, weight in enumerate(weights)}
    np.savez(REPORT.value, examples=np.array(examples), **weights)


if __name__ == "__main__":
    app.run(main)
