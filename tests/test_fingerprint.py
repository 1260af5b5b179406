"""Data that have changed, and data that have only moved."""

import functools
import json
import os
import shutil

import numpy as np
import pytest
from absl import logging

from keras_transfer import Models, data
from keras_transfer.data import image_files
from keras_transfer.errors import UserError
from keras_transfer.runs import Run
from keras_transfer.training import SGD, constant, train

pil = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _empty_cache():
    image_files._decoded.cache_clear()


@pytest.fixture
def root(tmp_path):
    """Two classes, four training and two test images each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 256, (8, 8, 3), np.uint8)
                pil.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "images"


def _load(root, keep="decoded", **arguments):
    return data.load(
        "folder",
        8,
        data_dir=str(root),
        keep=keep,
        cache_dir=str(root.parent / "cache"),
        **arguments,
    )


def _differences(first, second):
    return data.differences(second, first.info, first.fingerprint)


@pytest.mark.parametrize("keep", ["decoded", "encoded"])
def test_moved_and_touched_files_are_the_same_data(root, keep):
    before = _load(root, keep)
    moved = root.with_name("moved")
    shutil.copytree(root, moved)  # With other times.
    for path in moved.glob("*/*/*"):
        os.utime(path, ns=(1, 1))
    after = _load(moved, keep)
    assert after.fingerprint == before.fingerprint
    assert _differences(before, after) == []
    # JSON holds it.
    assert json.loads(json.dumps(after.fingerprint)) == after.fingerprint


def _more(root):
    shutil.copy(root / "train/cat/0.png", root / "train/cat/new.png")


def _repainted(root):
    path = root / "test/dog/1.png"
    pil.fromarray(255 - np.asarray(pil.open(path))).save(path)


def _swapped(root):
    first, second = root / "train/cat/0.png", root / "train/dog/3.png"
    first.rename(root / "aside")
    second.rename(first)
    (root / "aside").rename(second)


def _renamed(root):
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / "eel")


def _relabelled(root):
    # The order of the images stays: the last cat becomes the first dog.
    (root / "train/cat/3.png").rename(root / "train/dog/-.png")


@pytest.mark.parametrize("keep", ["decoded", "encoded"])
@pytest.mark.parametrize(
    "change, expected",
    [
        (_more, "9 training images instead of 8"),
        (_repainted, "other test images, or in another order"),
        (_swapped, "other training images, or in another order"),
        (_renamed, "other classes (without dog and with eel)"),
        (_relabelled, "other labels of training images"),
    ],
)
def test_what_has_changed_is_said(root, keep, change, expected):
    before = _load(root, keep)
    change(root)
    image_files._decoded.cache_clear()
    assert _differences(before, _load(root, keep)) == [expected]


def test_arrays_are_told_by_their_pixels_and_labels():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (12, 6, 6, 3), np.uint8)
    labels = np.arange(12) % 3

    def make(images=images, labels=labels, **arguments):
        return data.from_arrays(
            (images[:9], labels[:9]), (images[9:], labels[9:]), **arguments
        )

    assert _differences(make(), make()) == []
    # The same images at another size are the same; the size is told.
    assert make(image_size=4).fingerprint == make().fingerprint
    assert _differences(make(), make(image_size=4)) == [
        "images of 4 x 4 x 3 instead of 6 x 6 x 3"
    ]
    other = images.copy()
    other[2, 3, 3, 1] ^= 1
    assert _differences(make(), make(other)) == [
        "other training images, or in another order"
    ]
    assert _differences(
        make(), make(labels=labels[[*range(9), 9, 11, 10]])
    ) == ["other labels of test images"]


def test_draws_of_shipped_data_differ():
    first, second = (
        data.load("digits", num_train=20, seed=seed) for seed in (0, 1)
    )
    assert "training images" in _differences(first, second)[0]
    assert first.fingerprint["test"] == second.fingerprint["test"]


def _train(root, work_dir, epochs=2):
    return train(
        work_dir,
        model=lambda num_classes, input_shape, seed: build_for(
            num_classes, input_shape, seed
        ),
        dataset=functools.partial(_load, root),
        epochs=epochs,
        batch_size=4,
        schedule=functools.partial(constant, base_rate=0.01),
        optimizer=SGD,
    )


def build_for(num_classes, input_shape, seed):
    import keras

    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes),
        ]
    )


def test_a_run_does_not_go_on_with_other_data(root, tmp_path):
    run = _train(root, tmp_path / "run")
    run.remove(2)  # As if it had been stopped before.
    metrics = run.metrics_path.read_bytes()
    _swapped(root)
    image_files._decoded.cache_clear()
    with pytest.raises(UserError, match="other data.* other training images"):
        _train(root, tmp_path / "run")
    assert run.metrics_path.read_bytes() == metrics
    _swapped(root)  # Put back, it goes on.
    image_files._decoded.cache_clear()
    assert _train(root, tmp_path / "run").epochs() == [0, 1, 2]


def _change_description(run, change):
    """Rewrites data.json, as whoever made the directory may have."""
    path = run.path / "data.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    (run.path / "manifest.json").unlink(missing_ok=True)


@pytest.fixture
def recorded(root, tmp_path):
    """Returns a run that was begun on `root`."""
    dataset = _load(root)
    run = Run(tmp_path / "run")
    model = build_for(2, (8, 8, 3), 0)
    run.begin("", model, dataset)
    run.save(0, model)
    return run


def test_analyses_say_what_has_changed(root, recorded, monkeypatch):
    messages = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: messages.append(text % args)
    )
    recorded.load_data()
    assert messages == []
    _more(root)
    image_files._decoded.cache_clear()
    recorded.load_data()
    assert len(messages) == 1
    assert "changed" in messages[0] and "9 training images" in messages[0]


def test_a_run_without_a_fingerprint_is_compared_by_numbers(root, recorded):
    _change_description(recorded, lambda found: found.pop("fingerprint"))
    assert Run(recorded.path).changes_of_data(_load(root)) == []
    _more(root)
    image_files._decoded.cache_clear()
    assert len(Run(recorded.path).changes_of_data(_load(root))) == 1


def test_data_that_moved_are_found_where_one_says(root, recorded):
    expected = recorded.load_data().fingerprint
    moved = root.rename(root.with_name("moved"))
    with pytest.raises(UserError, match="moved, bind Models.data_dir"):
        recorded.load_data()
    assert recorded.load_data(str(moved)).fingerprint == expected
    models = Models({"RI-T": recorded}, data_dir=str(moved))
    assert len(models.examples.split("test")) == 4


@pytest.mark.parametrize(
    "field, value",
    [
        ("resize", "x"),
        ("resize", -3),
        ("resize", 10**12),
        ("mean", ["x"]),
        ("mean", []),
        ("std", [0.0, 1.0, 1.0]),
        ("std", [float("nan"), 1.0, 1.0]),
        ("image_shape", []),
        ("image_shape", [8, 8]),
        ("image_shape", [0, 8, 3]),
        ("image_shape", 7),
        ("fit", "y"),
        ("class_names", []),
        ("class_names", [1, 2]),
        ("multi_label", "no"),
        ("num_test", -1),
        ("shuffle", "rows"),
        ("block_size", 4),
        ("shuffle_seed", -1),
    ],
)
def test_an_impossible_info_is_damaged(recorded, field, value):
    _change_description(
        recorded, lambda found: found["info"].update({field: value})
    )
    with pytest.raises(UserError, match="data.json is damaged"):
        Run(recorded.path).info()
