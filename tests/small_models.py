"""Small models in memory: as they are, and recorded in Keras' training."""

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_transfer import Examples, Models, Trajectory
from keras_transfer.analysis.declaration import find_analysis, tables_of


def digits():
    """Returns 64 training and 200 test images, as (inputs, labels) each."""
    found = load_digits()
    images = (found.images[..., None] / 16).astype(np.float32)
    return (
        (images[:64], found.target[:64]),
        (images[64:264], found.target[64:264]),
    )


def examples():
    train, test = digits()
    return Examples(train=train, test=test)


def build(seed, activation=None, batch_norm=False):
    """Returns a model of the modules low, middle and high."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(4, 3, strides=2, name="low"),
        *([keras.layers.BatchNormalization(name="norm")] * batch_norm),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dense(8, activation="relu", name="middle"),
        keras.layers.Dense(10, activation=activation, name="high"),
    ]
    return keras.Sequential(layers)


def plain(**arguments):
    """Returns `Models` of two P-Ts and two RI-Ts that were not trained."""
    built = [build(seed, **arguments) for seed in range(4)]
    return Models({"P-T": built[:2], "RI-T": built[2:]}, data=examples())


def train(seed, epochs=2, rate=0.1, model=None):
    """Returns the `Trajectory` of a short training."""
    train, test = digits()
    model = model or build(seed)
    model.compile(
        keras.optimizers.SGD(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    trajectory = Trajectory()
    model.fit(
        *train,
        validation_data=test,
        epochs=epochs,
        batch_size=16,
        shuffle=False,
        verbose=0,
        callbacks=[trajectory],
    )
    return trajectory


def loss_and_accuracy(logits, labels):
    """Computes both in float64, with NumPy."""
    logits = np.asarray(logits, np.float64)
    logs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    right = logits.argmax(1) == labels
    return -np.mean(logs[np.arange(len(labels)), labels]), np.mean(right)


def figures(name, table):
    """Returns {name: figure} of all that an analysis declares."""
    return {
        title: drawn
        for figure in find_analysis(name).figures
        for title, drawn in figure.drawn(tables_of(name, table))
    }
