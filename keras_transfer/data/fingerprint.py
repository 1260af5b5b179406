"""Whether data are what they were: a few short texts that change with them."""

import hashlib

import numpy as np

from keras_transfer.data.preprocessing import Info

_SPLITS = {"train": "training", "test": "test", "validation": "validation"}


def fingerprint(splits):
    """Returns texts that change with images, their order or their labels.

    They do not change with what has nothing to do with images: where files are,
    what they are called and when they were written.

    Args:
        splits: {name: `Split`}.

    Returns:
        {name: {"images": text, "labels": text}}, which JSON can hold.
    """
    return {
        name: {
            "images": _text(split.contents),
            "labels": _text(split.labels),
        }
        for name, split in splits.items()
    }


def _text(array):
    array = np.ascontiguousarray(array)
    # Labels are of one kind, whatever held them.
    array = array.astype("<u8" if array.ndim == 1 else "<f4")
    state = hashlib.blake2b(str(array.shape).encode())
    state.update(array)
    return state.hexdigest()[:32]


def differences(dataset, info, recorded):
    """Says in what a dataset is not the recorded one.

    Args:
        dataset: the `Dataset`.
        info: the `Info` of the recorded one.
        recorded: its fingerprint; {} if there is none.

    Returns:
        List of phrases; empty if nothing differs.

    Raises:
        ValueError: if what was recorded is no fingerprint.
    """
    if not isinstance(recorded, dict) or not all(
        isinstance(texts, dict) for texts in recorded.values()
    ):
        raise ValueError("its fingerprint is none")
    found = [
        *_differences_in_classes(dataset.info, info),
        *_differences_in_shape(dataset.info, info),
    ]
    for split, adjective in _SPLITS.items():
        number = getattr(dataset.info, f"num_{split}")
        expected = getattr(info, f"num_{split}")
        then = recorded.get(split, {})
        now = dataset.fingerprint.get(split, {}) if then else {}
        if number != expected:
            found.append(f"{number} {adjective} images instead of {expected}")
        elif now.get("images") != then.get("images"):
            found.append(f"other {adjective} images, or in another order")
        elif now.get("labels") != then.get("labels"):
            found.append(f"other labels of {adjective} images")
    return found


def _differences_in_classes(now: Info, then: Info):
    if now.class_names == then.class_names:
        return []
    new, gone = (
        ", ".join(sorted(set(a) - set(b))[:5])
        for a, b in (
            (now.class_names, then.class_names),
            (then.class_names, now.class_names),
        )
    )
    words = [f"without {gone}"] if gone else []
    words += [f"with {new}"] if new else []
    return [f"other classes ({' and '.join(words) or 'in another order'})"]


def _differences_in_shape(now: Info, then: Info):
    if now.image_shape == then.image_shape:
        return []
    shapes = (" x ".join(map(str, info.image_shape)) for info in (now, then))
    return ["images of {} instead of {}".format(*shapes)]
