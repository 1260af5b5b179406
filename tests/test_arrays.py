import dataclasses

import numpy as np
import pytest

from keras_transfer import data
from keras_transfer.errors import UserError

RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (12, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(12) % 3
TEST = (IMAGES[:5], LABELS[:5])


def _make(images=IMAGES, labels=LABELS, test=TEST, **kwargs):
    return data.from_arrays((images, labels), test, **kwargs)


def test_images_are_trained_on_as_they_are():
    dataset = _make(mean=(0.1, 0.2, 0.3), std=0.5, class_names=list("abc"))
    info = dataset.info
    assert info.image_shape == (8, 8, 3)
    assert info.class_names == ("a", "b", "c") and not info.multi_label
    assert (info.num_train, info.num_test) == (12, 5)
    images, targets = next(iter(dataset.train_batches(12, 0)))
    # Every example once, in another order.
    order = next(iter(dataset.train_parts(12, 0)))["examples"].numpy()
    assert sorted(order) == list(range(12))
    expected = (IMAGES[order] / 255 - [0.1, 0.2, 0.3]) / 0.5
    np.testing.assert_allclose(images, expected, atol=1e-5)
    np.testing.assert_array_equal(np.argmax(targets, axis=1), LABELS[order])
    np.testing.assert_array_equal(
        dataset.examples.split("test").images([4, 1]), IMAGES[[4, 1]]
    )
    assert data.preprocess(IMAGES, info).shape == (12, 8, 8, 3)


def test_what_keras_datasets_give():
    """Gray images without an axis for it, labels [n, 1]."""
    gray = IMAGES[..., 0]
    dataset = _make(gray, LABELS[:, None], (gray[:4], LABELS[:4, None]))
    assert dataset.info.image_shape == (8, 8, 1)
    np.testing.assert_array_equal(dataset.train.labels, LABELS)
    np.testing.assert_array_equal(
        dataset.train.raw_images(np.arange(12)), gray[..., None]
    )


def test_findings():
    rows = RNG.randint(0, 2, (12, 4))
    dataset = _make(labels=rows, test=(IMAGES[:5], rows[:5]))
    assert dataset.info.multi_label and len(dataset.info.class_names) == 4
    np.testing.assert_array_equal(dataset.train.targets(4), rows)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"image_size": 6, "resize": 7, "channels": 1},
        {"image_size": 4},
        {"shuffle": "blocks", "block_size": 4},
    ],
)
def test_arguments_mean_what_they_mean_to_load(kwargs):
    digits = data.load("digits")
    parts = [digits.train.raw_images(np.arange(1000)), digits.train.labels]
    test = [digits.test.raw_images(np.arange(797)), digits.test.labels]
    # In chunks of another size than all at once.
    made = data.from_arrays(parts, test, name="digits", **kwargs)
    loaded = data.load("digits", **kwargs)
    assert made.info == loaded.info
    for split in ("train", "test"):
        for ours, expected in zip(
            made.eval_batches(split, 300),
            loaded.eval_batches(split, 300),
            strict=True,
        ):
            for a, b in zip(ours, expected, strict=True):
                np.testing.assert_array_equal(a, b)


def test_images_of_several_sizes_and_kinds_are_brought_to_one():
    wide = RNG.randint(0, 256, (5, 8, 20, 1)).astype(np.uint8)
    dataset = _make(test=(wide, LABELS[:5]), image_size=8, channels=3)
    test = dataset.test.raw_images(np.arange(5))
    np.testing.assert_array_equal(test, np.repeat(wide[:, :, 6:14], 3, -1))


def test_validation_images():
    dataset = _make(validation=(IMAGES[7:], LABELS[7:]))
    assert dataset.info.num_validation == 5
    np.testing.assert_array_equal(
        dataset.validation.raw_images(np.arange(5)), IMAGES[7:]
    )
    np.testing.assert_array_equal(dataset.validation.labels, LABELS[7:])
    assert "validation" in dataset.fingerprint
    with pytest.raises(UserError, match="no validation images"):
        _make(validation=(IMAGES[:0], []))


def test_rectangular_images():
    dataset = _make(IMAGES[:, :6], test=(IMAGES[:5, :6], LABELS[:5]))
    assert dataset.info.image_shape == (6, 8, 3)
    np.testing.assert_array_equal(
        dataset.test.raw_images(np.arange(5)), IMAGES[:5, :6]
    )


def test_normalization_of_its_own():
    assert not _make().has_own_normalization
    assert _make(mean=0.5).has_own_normalization
    assert _make(std=0.5).has_own_normalization
    assert dataclasses.replace(_make(std=1.0)).has_own_normalization


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"images": IMAGES / 255}, "whole levels.*float64.*Examples"),
        ({"images": IMAGES[0, ..., 0]}, r"shape \(8, 8\)"),
        ({"images": np.tile(IMAGES, 3)}, r"\(12, 8, 8, 9\)"),
        ({"images": IMAGES[:, :6]}, "6 x 8.*8 x 8 pixels; set image_size"),
        ({"images": IMAGES[..., :1]}, "1 and 3 channels"),
        ({"labels": LABELS[:-1]}, r"\(12, 8, 8, 3\).*\(11,\)"),
        ({"labels": LABELS - 1}, "counted from 0"),
        ({"labels": [f"c{k}" for k in LABELS]}, "numbers.*class_names"),
        ({"test": (IMAGES[:0], [])}, "no test images"),
        ({"test": IMAGES}, "test=ndarray"),
        ({"class_names": ["a", "b"]}, "2 classes.*label of 2"),
        ({"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\)"),
        ({"std": 0}, "std=0"),
        ({"image_size": 9, "resize": 8}, "image_size=9"),
        ({"image_size": 10**5}, "not fit into memory"),
        ({"shuffle": "rows"}, "shuffle='rows'"),
        ({"channels": 2}, "channels=2"),
    ],
)
def test_mistakes_are_sentences(kwargs, message):
    with pytest.raises(UserError, match=message):
        _make(**kwargs)
