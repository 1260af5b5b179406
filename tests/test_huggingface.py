import sys

import numpy as np
import pytest

from keras_transfer import data
from keras_transfer.errors import UserError

datasets = pytest.importorskip("datasets", reason="reads Hugging Face's")
pil = pytest.importorskip("PIL.Image")
IMAGES = np.random.RandomState(0).randint(0, 256, (9, 6, 6, 3), np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2, 0, 1, 2])
NAMES = ["ant", "bee", "cat"]
PARTS = {"train": slice(5), "test": slice(5, 7), "validation": slice(7, 9)}


def make(parts=PARTS, labels=LABELS, **columns):
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=NAMES),
            **columns,
        }
    )
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {
                    "picture": [pil.fromarray(x) for x in IMAGES[part]],
                    "kind": labels[part],
                    **{column: labels[part] for column in columns},
                },
                features=features,
            )
            for name, part in parts.items()
        }
    )


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def root(tmp_path):
    make(id=datasets.Value("int64")).save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def load(root, **kwargs):
    cache = str(root.parent / "cache")
    kwargs = {"image_size": 6, "cache_dir": cache} | kwargs
    return data.load("huggingface", data_dir=str(root), **kwargs)


def raw(split):
    return split.raw_images(np.arange(len(split)))


@pytest.mark.parametrize("keep", ["decoded", "encoded"])
def test_splits_are_those_on_disk(root, keep):
    dataset = load(root, validation_split="validation", keep=keep)
    assert dataset.info.class_names == tuple(NAMES)
    for name, part in PARTS.items():
        split = dataset.splits[name]
        np.testing.assert_array_equal(raw(split), IMAGES[part])
        np.testing.assert_array_equal(split.labels, LABELS[part])
    assert data.rebuild("load", dataset.arguments).info == dataset.info


def test_counting_copies_nothing(root, monkeypatch):
    monkeypatch.setattr(data.sources.huggingface, "copy_images", None)
    counted = {"name": "huggingface", "data_dir": str(root)}
    assert data.count(**counted) == (3, 5, 2)
    assert data.count(**counted, validation_split=0.4) == (3, 3, 2)
    assert data.count(**counted, test_split="validation") == (3, 5, 2)
    with pytest.raises(UserError, match="no split 'dev'"):
        data.count(**counted, test_split="dev")


def test_images_in_files_of_their_own_and_a_held_out_share(tmp_path):
    for i, image in enumerate(IMAGES):
        pil.fromarray(image).save(tmp_path / f"{i}.png")
    found = make()
    for name, part in PARTS.items():
        paths = [str(tmp_path / f"{i}.png") for i in range(9)[part]]
        found[name] = datasets.Dataset.from_dict(
            {"picture": paths, "kind": LABELS[part]},
            features=found[name].features,
        )
    found.save_to_disk(tmp_path / "set")
    dataset = load(tmp_path / "set", validation_split=0.4)
    np.testing.assert_array_equal(raw(dataset.test), IMAGES[PARTS["test"]])
    assert (dataset.info.num_train, dataset.info.num_validation) == (3, 2)


def test_a_data_set_without_test_is_tested_on_validation(tmp_path):
    parts = {name: PARTS[name] for name in ("train", "validation")}
    make(parts).save_to_disk(tmp_path / "set")
    dataset = load(tmp_path / "set")
    np.testing.assert_array_equal(raw(dataset.test), IMAGES[7:9])
    with pytest.raises(UserError, match="to be others.*'validation'"):
        load(tmp_path / "set", validation_split="validation")


def test_another_content_in_the_same_place_is_read_anew(root):
    load(root)
    make(labels=2 - LABELS).save_to_disk(root)
    np.testing.assert_array_equal(load(root).train.labels, 2 - LABELS[:5])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["train"], "one split, .*train_test_split"),
        (lambda d: d.rename_column("kind", "id"), None),
        (lambda d: d.remove_columns("kind"), r"picture \(Image\); choose"),
        (
            lambda d: d.cast_column("kind", datasets.Value("int64")),
            r"kind \(Value\); .*class_encode_column",
        ),
    ],
)
def test_what_does_not_map_one_image_to_one_class(tmp_path, change, message):
    change(make()).save_to_disk(tmp_path / "set")
    if message is None:
        assert load(tmp_path / "set").info.num_train == 5
        return
    with pytest.raises(UserError, match=message):
        load(tmp_path / "set")


def test_unknown_splits_and_examples_without_a_class(root, tmp_path):
    with pytest.raises(UserError, match="no split 'dev'. Received: train, t"):
        load(root, train_split="dev")
    make(labels=np.where(LABELS == 2, -1, LABELS)).save_to_disk(
        tmp_path / "other"
    )
    with pytest.raises(UserError, match="'train' has .* without a class"):
        load(tmp_path / "other")


def test_places_that_hold_no_data_set(tmp_path, monkeypatch):
    for place in (None, "hf://datasets/mnist", str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match="from a folder on disk. Received"):
            data.load("huggingface", 6, data_dir=place)
    with pytest.raises(UserError, match="cannot be read as a data set.*neith"):
        load(tmp_path)
    (tmp_path / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a data set"):
        load(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'keras_transfer\[hf\]'"):
        load(tmp_path)
