"""Loss and metrics of the two kinds of task: one class, or several findings.

Targets are always float vectors [n, K]: one-hot (or mixed) for classification,
multi-hot for multi-label data.
"""

import math
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.errors import UserError


def example_losses(
    targets, logits, multi_label, label_smoothing=0.0, class_weights=None
):
    """Returns each example's loss in nats, float32 [n].

    Classification: cross-entropy of the softmax. Multi-label: mean over the
    findings of the binary cross-entropy (paper section 3, CheXpert).

    Args:
        targets: float [n, K].
        logits: float [n, K], any precision; computed in float32.
        multi_label: bool.
        label_smoothing: float in [0, 1], how much of each target is spread
            over all classes (Szegedy et al. 2016), or of a finding's to 0.5.
        class_weights: float32 [K], what losses are multiplied by, by class of
            the example (of a mixed one, by the mean of its classes); None for
            1.
    """
    logits = tf.cast(logits, tf.float32)
    loss = (
        keras.losses.binary_crossentropy
        if multi_label
        else keras.losses.categorical_crossentropy
    )
    losses = loss(
        targets, logits, from_logits=True, label_smoothing=label_smoothing
    )
    if class_weights is None:
        return losses
    return losses * tf.linalg.matvec(targets, class_weights)


def weights_of_classes(given, labels, info):
    """Returns what the loss of each class is multiplied by, float32 [K].

    Args:
        given: "balanced": in inverse proportion to how many training examples
            a class has, with a mean of 1 over examples (scikit-learn's rule);
            or {class name: weight}, where a class that is left out has 1.
        labels: integer class indices [n] of the training examples.
        info: the dataset's `data.Info`.

    Raises:
        UserError: if classes are not exclusive, one is unknown, or a weight is
            not a number of at least 0.
    """
    if info.multi_label:
        raise UserError(
            "Class weights are for data of one class an image. Received: "
            f"class_weights={given!r} for {info.name!r}, of several findings; "
            "leave it out."
        )
    weights = np.ones(len(info.class_names), np.float32)
    if given == "balanced":
        from sklearn.utils.class_weight import compute_class_weight

        present = np.unique(labels)
        weights[present] = compute_class_weight(
            "balanced", classes=present, y=labels
        )
        return weights
    for name, weight in given.items():
        is_number = isinstance(weight, (int, float)) and weight >= 0
        if name not in info.class_names or not is_number:
            raise UserError(
                "A class weight is a number of at least 0 for a class of the "
                f"data. Received: class_weights with {name!r}: {weight!r}; "
                "the classes are "
                f"{', '.join(info.class_names)[:500]}."
            )
        weights[info.class_names.index(name)] = weight
    return weights


def example_accuracy(targets, logits, multi_label):
    """Returns each example's share of right answers, float32 [n].

    Classification: 1 if the largest logit is the largest target. Multi-label:
    the share of findings on the right side of zero. Its complement is the 0-1
    error, for multi-label data the mean binary error. Logits that are not all
    finite are no answer, neither a right nor a wrong one: NaN, which makes the
    mean NaN.

    Args:
        targets: float [n, K].
        logits: float [n, K].
        multi_label: bool.
    """
    if multi_label:
        right = keras.metrics.binary_accuracy(targets, logits, threshold=0.0)
        right = tf.reduce_mean(tf.cast(right, tf.float32), axis=-1)
    else:
        right = keras.metrics.categorical_accuracy(targets, logits)
        right = tf.cast(right, tf.float32)
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    return tf.where(finite, right, float("nan"))


def check_finite(logits, name):
    """Raises a `UserError` if a model's outputs are not all finite.

    Args:
        logits: float array [n, K].
        name: str, what to call the model.
    """
    finite = np.isfinite(logits).all(axis=-1)
    if not finite.all():
        raise UserError(
            f"Model '{name}' gives outputs that are not finite, so it answers "
            f"nothing. Received: NaN or infinity for {np.sum(~finite)} of "
            f"{len(finite)} examples; take an epoch before training diverged, "
            "or leave the model out."
        )


def metric_name(multi_label):
    """Returns the column that ranks models: "auc" or "accuracy"."""
    return "auc" if multi_label else "accuracy"


def summarize(targets, logits, info):
    """Returns loss and metrics of a whole split's predictions.

    Args:
        targets: float array [n, K].
        logits: float array [n, K].
        info: what names the classes: `data.Info` or `data.Examples`.

    Returns:
        dict of float: "loss", then "accuracy" for classification, or "auc"
        (mean over the findings that have one), "findings" (over how many it was
        taken) and "auc_<finding>" each (scikit-learn's value; NaN, with a
        warning, where a split holds one class only). If logits are not all
        finite, accuracy and every AUC are NaN.
    """
    losses = example_losses(targets, logits, info.multi_label)
    summary = {"loss": float(np.mean(losses, dtype=np.float64))}
    if not info.multi_label:
        right = example_accuracy(targets, logits, multi_label=False)
        return summary | {"accuracy": float(np.mean(right, dtype=np.float64))}
    finite = bool(np.isfinite(logits).all())
    aucs = {
        f"auc_{name}": _auc(targets[:, k], logits[:, k]) if finite else math.nan
        for k, name in enumerate(info.class_names)
    }
    known = [value for value in aucs.values() if not np.isnan(value)]
    if len(known) < len(aucs) and finite:
        unknown = [name[4:] for name in aucs if np.isnan(aucs[name])]
        warnings.warn(
            "The AUC is not defined where all examples are positive or all "
            f"negative: {', '.join(unknown)}. The mean is over the other "
            f"{len(known)} of {len(aucs)} findings.",
            stacklevel=2,
        )
    mean = float(np.mean(known)) if known else float("nan")
    return summary | {"auc": mean, "findings": float(len(known))} | aucs


def _auc(targets, logits):
    from sklearn.metrics import roc_auc_score

    if np.min(targets) == np.max(targets):
        return float("nan")
    return float(roc_auc_score(targets, logits))
