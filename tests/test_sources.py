"""A data set of one's own, in a module of its own: this one."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import data
from keras_transfer.data import sources
from keras_transfer.data.sources import registry
from keras_transfer.errors import UserError

RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (9, 6, 6, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2], np.int32)


@sources.register("stripes", mean=0.25, std=0.5)
def find_stripes():
    return sources.Found.of_splits(
        ["a", "b", "c"], (IMAGES[:6], LABELS[:6]), (IMAGES[6:], LABELS[6:])
    )


@pytest.fixture(autouse=True)
def _restored_registry(monkeypatch):
    monkeypatch.setattr(registry, "_SOURCES", dict(registry._SOURCES))


def test_a_registered_source_is_loaded_and_counted():
    dataset = data.load("stripes")
    assert dataset.info == data.Info(
        name="stripes",
        image_shape=(6, 6, 3),
        class_names=("a", "b", "c"),
        multi_label=False,
        mean=(0.25,) * 3,
        std=(0.5,) * 3,
        resize=6,
        num_train=6,
        num_test=3,
    )
    for name, part in (("train", slice(6)), ("test", slice(6, 9))):
        images, targets, _ = next(iter(dataset.eval_batches(name, 9)))
        images, targets = images[: part.stop - (part.start or 0)], targets
        expected = (IMAGES[part] / 255 - 0.25) / 0.5
        np.testing.assert_allclose(images, expected, atol=1e-5)
        np.testing.assert_array_equal(
            np.argmax(targets, axis=1)[: len(expected)], LABELS[part]
        )
    assert data.count(name="stripes") == (3, 6, 3)
    assert data.count(name="stripes", num_train=4) == (3, 4, 3)
    assert "stripes" in sources.names()
    again = data.load(**json.loads(json.dumps(dataset.arguments)))
    assert again.info == dataset.info
    # Images are held once, however often they are loaded.
    assert again.train.images is dataset.train.images is dataset.test.images
    small = data.load("stripes", image_size=4, channels=1, num_train=3)
    assert small.info.image_shape == (4, 4, 1)
    assert small.info.num_train == 3


def test_a_source_of_files(tmp_path):
    @sources.register("files", needs_every_class=True)
    def find_files(data_dir, split_size):
        paths = [f"{data_dir}/{i}.png" for i in range(9)]
        is_test = np.arange(9) % 3 == 2
        is_test[split_size:] = False
        return sources.Found(("even", "odd"), paths, np.arange(9) % 2, is_test)

    for i, image in enumerate(IMAGES):
        content = tf.io.encode_png(image).numpy()
        (tmp_path / f"{i}.png").write_bytes(content)
    arguments = {"data_dir": str(tmp_path), "split_size": 8}
    assert data.count(name="files", **arguments) == (2, 7, 2)
    dataset = data.load("files", image_size=6, **arguments)
    np.testing.assert_array_equal(dataset.test.labels, [0, 1])
    np.testing.assert_array_equal(
        dataset.test.raw_images([0, 1]), IMAGES[[2, 5]]
    )
    (tmp_path / "3.png").unlink()
    with pytest.raises(UserError, match=r"3.png \(No such file"):
        data.load("files", image_size=6, **arguments)


def test_a_source_may_have_validation_images_of_its_own():
    pairs = (IMAGES[:6], LABELS[:6]), (IMAGES[6:8], LABELS[6:8])

    @sources.register("striped")
    def find_striped():
        return sources.Found.of_splits("abc", *pairs, (IMAGES[8:], LABELS[8:]))

    dataset = data.load("striped")
    assert (dataset.info.num_train, dataset.info.num_test) == (6, 2)
    np.testing.assert_array_equal(dataset.validation.rows, [8])
    assert data.count(name="striped") == (3, 6, 2)
    # A share that is held out comes on top of them.
    more = data.load("striped", validation_split=0.5)
    assert (more.info.num_train, more.info.num_validation) == (3, 4)
    assert 8 in more.validation.rows


def test_examples_seen_twice():
    sources.register("doubled", repeat=lambda labels: np.repeat([0, 1], 2))(
        find_stripes
    )
    dataset = data.load("doubled")
    np.testing.assert_array_equal(dataset.train.rows, [0, 0, 1, 1])
    assert data.count(name="doubled") == (3, 4, 3)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"split_size": 3}, "'stripes' are given.*split_size=3.*num_train"),
        ({"test_split": "valid"}, "test_split='valid'"),
        ({"train_split": "train[:3]"}, r"train_split='train\[:3\]'"),
        ({"keep": "encoded"}, "cannot be kept encoded"),
        ({"image_size": 60_000}, "would not fit into memory"),
    ],
)
def test_what_a_source_does_not_take(kwargs, message):
    with pytest.raises(UserError, match=message):
        data.load("stripes", **kwargs)


@pytest.mark.parametrize("name", ["mnist", "folder", "chexpert"])
def test_parts_of_splits_are_not_ignored(name, tmp_path):
    with pytest.raises(UserError, match=r"train_split='train\[:50%\]'"):
        data.load(name, 8, data_dir=str(tmp_path), train_split="train[:50%]")


def test_a_source_asks_for_arguments_of_load_only():
    @sources.register("cloudy")
    def find_cloudy(weather):
        return weather

    with pytest.raises(UserError, match="find_cloudy with weather.*from_arr"):
        data.load("cloudy")


def test_a_name_is_registered_once():
    with pytest.raises(UserError, match="'folder'.*find_folder already"):
        sources.register("folder")(find_stripes)
    # Running a notebook's cell again is no mistake.
    sources.register("stripes")(find_stripes)
