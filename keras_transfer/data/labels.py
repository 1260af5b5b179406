"""Targets in the forms people have them in, and what they say of classes."""

import numpy as np

from keras_transfer.errors import UserError

# More classes than anyone has; labels that large are numbers of another kind.
_MOST_CLASSES = 10**6


def read_labels(targets, class_names=None, multi_label=None, least_classes=1):
    """Reads the targets of one or more splits, which share their classes.

    Args:
        targets: {split: array}: class indices [n] or [n, 1], or rows of zeros
            and ones [n, K], one-hot or multi-hot.
        class_names: one name a class; None for "0", "1", ...
        multi_label: whether several classes may hold at once. None: they may if
            there are rows that do not sum to one. True also makes findings of
            zeros and ones [n] or [n, 1].
        least_classes: int, how many classes there are known to be.

    Returns:
        labels: {split: int32 [n]} class indices, or for multi-label data
            {split: float32 [n, K]}.
        class_names: tuple of str.
        multi_label: bool.

    Raises:
        UserError: if targets are none of this, or contradict each other.
    """
    found = {name: _numbers(array, name) for name, array in targets.items()}
    if multi_label is None:
        multi_label = any(
            array.ndim == 2 and np.any(array.sum(axis=1) != 1)
            for array in found.values()
        )
    read = _as_findings if multi_label else _as_indices
    labels = {name: read(array, name) for name, array in found.items()}
    names = _names(found, labels, class_names, multi_label, least_classes)
    return labels, names, bool(multi_label)


def _numbers(array, split):
    """Returns whole numbers [n], or zeros and ones [n, K]."""
    try:
        numbers = np.asarray(array)
        if numbers.dtype.kind not in "uif":
            numbers = numbers.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Targets are numbers: class indices, or zeros and ones. Received: "
            f"{split} targets that are not ({error}); number the classes from "
            "0 and give their names as class_names."
        ) from error
    if numbers.ndim not in (1, 2) or 0 in numbers.shape[1:]:
        raise UserError(
            "Targets are class indices [n], or a row of zeros and ones for "
            f"each example [n, K]. Received: {split} targets of shape "
            f"{numbers.shape}."
        )
    whole = np.isfinite(numbers) & (numbers == np.round(numbers))
    if not whole.all():
        raise UserError(
            "Targets are whole numbers: class indices, or zeros and ones. "
            f"Received: {numbers[~whole][0]} among the {split} targets; of "
            "probabilities take np.argmax."
        )
    if numbers.ndim == 2 and numbers.shape[1] == 1:
        return numbers[:, 0]
    if numbers.ndim == 2 and not np.isin(numbers, (0, 1)).all():
        raise UserError(
            "Targets with several columns hold zeros and ones only. Received: "
            f"{split} targets of shape {numbers.shape} with values from "
            f"{numbers.min():.0f} to {numbers.max():.0f}; for a data set of "
            "one class an image give class indices [n]."
        )
    return numbers


def _as_indices(numbers, split):
    """Returns class indices int32 [n]."""
    if numbers.ndim == 2:
        if np.any(numbers.sum(axis=1) != 1):
            raise UserError(
                "Where every example has one class, every row of targets has "
                f"one 1. Received: {split} targets with rows that do not sum "
                "to one; give multi_label=True, or leave it out."
            )
        return np.argmax(numbers, axis=1).astype(np.int32)
    if len(numbers) and numbers.min() < 0:
        raise UserError(
            "Classes are counted from 0. Received: a label of "
            f"{numbers.min():.0f} among the {split} targets."
        )
    # What is cut off here is far too much for `_names`, too.
    numbers = numbers.astype(np.float64)
    return np.minimum(numbers, _MOST_CLASSES).astype(np.int32)


def _as_findings(numbers, split):
    """Returns zeros and ones float32 [n, K]."""
    if numbers.ndim == 2:
        return numbers.astype(np.float32)
    if not np.isin(numbers, (0, 1)).all():
        raise UserError(
            "Several classes at once (multi_label) are given as rows of zeros "
            f"and ones [n, K]. Received: {split} targets of shape "
            f"{numbers.shape} with values from {numbers.min():.0f} to "
            f"{numbers.max():.0f}."
        )
    return numbers.astype(np.float32)[:, None]


def _names(found, labels, class_names, multi_label, least_classes):
    """Returns the names of as many classes as there are."""
    # Columns say how many classes there are; indices only how many at least.
    columns = {
        name: array.shape[1] for name, array in found.items() if array.ndim == 2
    }
    if multi_label:
        columns = {name: array.shape[1] for name, array in labels.items()}
    if len(set(columns.values())) > 1:
        raise UserError(
            "Training and test targets must be of the same classes. Received: "
            f"targets of {' and '.join(map(str, columns.values()))} columns."
        )
    largest = max(
        (int(x.max()) + 1 for x in labels.values() if x.ndim == 1 and len(x)),
        default=0,
    )
    known = next(iter(columns.values()), None)
    if class_names is not None:
        class_names = _checked_names(class_names, multi_label)
        if known not in (None, len(class_names)):
            raise UserError(
                f"Targets have {known} columns, one a class. Received: "
                f"{len(class_names)} class_names."
            )
        known = len(class_names)
    if known is not None and largest > known:
        raise UserError(
            f"There are {known} classes, counted from 0. Received: a label of "
            f"{largest - 1}."
        )
    if largest > _MOST_CLASSES:
        raise UserError(
            "Labels are classes, counted from 0. Received: a label of "
            f"{_MOST_CLASSES} or more."
        )
    if class_names is not None:
        return class_names
    return tuple(map(str, range(max(known or largest, least_classes))))


def _checked_names(class_names, multi_label):
    if isinstance(class_names, str):
        raise UserError(
            "class_names is a sequence of names. Received: "
            f"class_names={class_names!r}."
        )
    names = tuple(map(str, class_names))
    if not names or (multi_label and len(set(names)) < len(names)):
        raise UserError(
            "There is at least one class, and findings have names of their "
            f"own. Received: class_names={names}."
        )
    return names
