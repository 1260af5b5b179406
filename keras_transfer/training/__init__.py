"""Training: one loop for every `tf.distribute` strategy."""

from keras_transfer.devices import strategy
from keras_transfer.training.loggers import MLflowLogger, WandbLogger
from keras_transfer.training.loop import train
from keras_transfer.training.optimizers import SGD
from keras_transfer.training.schedules import constant, cosine, multi_step
from keras_transfer.training.trainers import Trainers

__all__ = [
    "MLflowLogger",
    "SGD",
    "Trainers",
    "WandbLogger",
    "constant",
    "cosine",
    "multi_step",
    "strategy",
    "train",
]
