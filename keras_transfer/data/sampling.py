"""Drawing a part of the examples by a seed."""

import math

import numpy as np

from keras_transfer.errors import UserError


def balanced_draw(labels, count, seed):
    """Draws examples without replacement, balanced over classes.

    Counts of two classes differ by at most one unless the smaller class is
    used up. A smaller draw with the same seed is part of a larger one.

    Args:
        labels: integer class indices [n], or [n, num_classes] for multi-label
            data, which are drawn without regard to classes.
        count: number of examples to draw.
        seed: integer seed.

    Returns:
        Sorted integer indices [count] into `labels`.

    Raises:
        UserError: if there are fewer than `count` examples.
    """
    if not 0 < count <= len(labels):
        raise UserError(
            f"There are {len(labels)} training examples to draw from. "
            f"Received: num_train={count}."
        )
    order = np.random.RandomState(seed).permutation(len(labels))
    if labels.ndim == 1:
        # Deal out the permuted examples in rounds, one a class and round.
        rounds = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            own = labels[order] == label
            rounds[own] = np.arange(own.sum())
        order = order[np.argsort(rounds, kind="stable")]
    return np.sort(order[:count])


def stratified_draw(labels, share, seed):
    """Draws a share of the examples without replacement, of each class alike.

    Args:
        labels: integer class indices [n], or [n, num_classes] for multi-label
            data, which are drawn without regard to classes.
        share: float in (0, 1).
        seed: integer seed.

    Returns:
        Sorted integer indices into `labels`, `num_drawn(n, share)` of them; of
        each class its share, to within one.
    """
    order = np.random.RandomState(seed).permutation(len(labels))
    if labels.ndim == 1:
        order = order[np.argsort(labels[order], kind="stable")]
    # Of examples sorted by class, equally spaced ones.
    drawn = np.floor(np.arange(len(labels) + 1) * share + 0.5)
    return np.sort(order[np.diff(drawn) > 0])


def num_drawn(count, share):
    """Returns how many of `count` examples are a share, to the nearest."""
    return math.floor(count * share + 0.5)
