"""What training is given to make its parts with, and how it calls each.

A configuration names these by reference, and `config.schema` holds a
reference against the signature here before anything is run.
"""

from typing import Protocol

import tensorflow as tf

from keras_transfer import data


class MakesModel(Protocol):
    """Makes a model; called within the strategy's scope."""

    def __call__(self, num_classes, input_shape, seed):
        """Returns a Keras model of [num_classes] logits or probabilities."""


class MakesDataset(Protocol):
    """Makes a dataset, such as `data.load` with its arguments bound."""

    def __call__(self) -> data.Dataset:
        """Returns the dataset; called once the strategy is there."""


class MakesSchedule(Protocol):
    """Makes a learning rate; see `schedules`."""

    def __call__(self, steps_per_epoch, epochs):
        """Returns a number or a Keras `LearningRateSchedule`."""


class MakesOptimizer(Protocol):
    """Makes an optimizer; called within the strategy's scope."""

    def __call__(self, learning_rate):
        """Returns a Keras optimizer."""


class MakesLogger(Protocol):
    """Makes what is told of a run while it is trained; see `loggers`."""

    def __call__(self, name, identity, config):
        """Returns an object with `log(epoch, numbers)` and `finish()`."""


class MakesStrategy(Protocol):
    """Makes a strategy; called before anything else."""

    def __call__(self) -> tf.distribute.Strategy:
        """Returns the strategy to train under."""
