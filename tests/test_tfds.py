import json
import os

import commands
import domains
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification.domainnet import domainnet

from keras_transfer import data
from keras_transfer.errors import UserError
from keras_transfer.runs import Run

SYNSETS = ["n01440764", "n01443537"]


def _prepare_domainnet(root, data_dir, domain, **kwargs):
    """Lets TFDS' own builder prepare a domain from its published layout."""
    files = domains.write_domainnet(root, domain, **kwargs)
    manager = tfds.download.DownloadManager
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            manager,
            "download_and_extract",
            lambda self, url: str(files["images"]),
        )
        patch.setattr(
            manager,
            "download",
            lambda self, urls: {split: str(files[split]) for split in urls},
        )
        name = f"domainnet/{domain}"
        tfds.builder(name, data_dir=str(data_dir)).download_and_prepare()
    return files


@pytest.fixture(scope="module")
def domainnet_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("domainnet")
    files = _prepare_domainnet(root / "files", root / "tfds", "real")
    return root / "tfds", files


@pytest.fixture(scope="module")
def imagenet_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    domains.write_imagenet(root, SYNSETS)
    return root


def _load(name, root, cache, **kwargs):
    arguments = {"image_size": 32, "resize": 40, "keep": "encoded"} | kwargs
    return data.load(
        name, data_dir=str(root), cache_dir=str(cache), **arguments
    )


def _contents(split):
    images = split.images
    return [images.read(tf.constant(row)).numpy() for row in split.rows]


def test_domainnet_is_read_from_tfds_files(domainnet_dir, tmp_path):
    root, files = domainnet_dir
    dataset = _load("domainnet/real", root, tmp_path)
    assert len(dataset.info.class_names) == 345
    assert dataset.info.class_names[344] == "zigzag"
    assert (dataset.info.num_train, dataset.info.num_test) == (12, 6)
    lines = files["train"].read_text().splitlines()
    expected = {}
    for line in lines:
        path, label = line.split(" ")
        expected[(files["images"] / path).read_bytes()] = int(label)
    # TFDS stores examples in another order, but the very same bytes.
    contents = _contents(dataset.train)
    assert dict(zip(contents, dataset.train.labels, strict=True)) == expected


def test_index_and_copy_give_the_same(domainnet_dir, tmp_path, monkeypatch):
    root, _ = domainnet_dir
    indexed = _load("domainnet/real", root, tmp_path / "a")
    monkeypatch.setattr(data.sources.tfds, "_record_files", lambda *_: None)
    copied = _load("domainnet/real", root, tmp_path / "b")
    assert copied.train.images.paths != indexed.train.images.paths
    assert _contents(copied.train) == _contents(indexed.train)
    np.testing.assert_array_equal(copied.train.labels, indexed.train.labels)
    a, b = (
        next(iter(d.train_batches(4, 0, [data.random_resized_crop()])))
        for d in (indexed, copied)
    )
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_index_is_read_back_and_made_again_if_damaged(domainnet_dir, tmp_path):
    root, _ = domainnet_dir
    first = _contents(_load("domainnet/real", root, tmp_path).train)
    indexes = list(tmp_path.glob("*/index.npy"))
    assert len(indexes) == 2
    for index in indexes:
        os.truncate(index, 100)
    assert _contents(_load("domainnet/real", root, tmp_path).train) == first


def test_parts_of_splits(domainnet_dir, tmp_path):
    root, _ = domainnet_dir
    whole = _load("domainnet/real", root, tmp_path)
    part = _load(
        "domainnet/real",
        root,
        tmp_path,
        train_split="train[2:9]",
        test_split="train[9:]",
    )
    contents = _contents(whole.train)
    assert _contents(part.train) == contents[2:9]
    np.testing.assert_array_equal(part.test.labels, whole.train.labels[9:])


def test_a_split_for_validation(domainnet_dir, tmp_path, monkeypatch):
    root, _ = domainnet_dir
    splits = {"train_split": "train[:9]", "validation_split": "train[9:]"}
    whole = _load("domainnet/real", root, tmp_path)
    part = _load("domainnet/real", root, tmp_path, **splits)
    assert _contents(part.train) == _contents(whole.train)[:9]
    np.testing.assert_array_equal(
        part.validation.labels, whole.train.labels[9:]
    )
    assert (part.info.num_test, part.info.num_validation) == (6, 3)
    overlapping = splits | {"validation_split": "test[:2]"}
    with pytest.raises(UserError, match="Test and validation .*overlap"):
        _load("domainnet/real", root, tmp_path, **overlapping)
    monkeypatch.setattr(
        data.sources.tfds,
        "_find_builder",
        lambda name, _: tfds.builder(name, data_dir=str(root)),
    )
    counts = data.count(name="domainnet/real", validation_split=0.25)
    assert counts == (345, 9, 6)


def test_at_most_so_many_of_a_split_drawn_by_seed(domainnet_dir, tmp_path):
    root, _ = domainnet_dir
    whole = _load("domainnet/real", root, tmp_path)
    drawn = _load(
        "domainnet/real", root, tmp_path, split_size=8, split_seed=2020
    )
    # The published draw: RandomState(2020).choice without replacement.
    rows = np.random.RandomState(2020).choice(12, 8, replace=False)
    assert set(_contents(drawn.train)) == {
        _contents(whole.train)[row] for row in rows
    }
    assert (drawn.info.num_train, drawn.info.num_test) == (8, 6)


@pytest.mark.parametrize(
    "train, test", [("train", "train[9:]"), ("train[:7]", "train[6:]")]
)
def test_splits_that_overlap_are_refused(domainnet_dir, tmp_path, train, test):
    with pytest.raises(UserError, match="overlap.*train_split"):
        _load(
            "domainnet/real",
            domainnet_dir[0],
            tmp_path,
            train_split=train,
            test_split=test,
        )


@pytest.fixture(scope="module")
def array_record_dir(tmp_path_factory):
    """A data set of our own, stored as ArrayRecord."""
    pytest.importorskip("array_record")
    root = tmp_path_factory.mktemp("array_record")
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    labels = np.arange(9) % 2
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "label": tfds.features.ClassLabel(names=["x", "y"]),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mini",
        version="1.0.0",
        features=features,
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(
                {"image": images[part], "label": labels[part]}
            )
            for split, part in (("train", slice(6)), ("test", slice(6, 9)))
        },
        data_dir=str(root),
        file_format="array_record",
    )
    path = root / "mini" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    # The helper has no argument for it.
    keys = [{"featureKey": "image"}, {"featureKey": "label"}]
    path.write_text(
        json.dumps(info | {"supervisedKeys": {"tuple": {"items": keys}}})
    )
    return root, images, labels


@pytest.mark.parametrize("keep", ["decoded", "encoded"])
def test_array_records_are_read(array_record_dir, tmp_path, keep):
    root, images, labels = array_record_dir
    dataset = _load(
        "mini", root, tmp_path, keep=keep, image_size=8, resize=None
    )
    found = {
        image.tobytes(): label
        for split in (dataset.train, dataset.test)
        for image, label in zip(
            split.raw_images(np.arange(len(split))), split.labels, strict=True
        )
    }
    assert found == {
        image.tobytes(): label
        for image, label in zip(images, labels, strict=True)
    }
    part = _load(
        "mini",
        root,
        tmp_path,
        image_size=8,
        resize=None,
        train_split="train[:4]",
        test_split="train[4:]",
    )
    assert (part.info.num_train, part.info.num_test) == (4, 2)


def test_array_records_that_cannot_be_read_are_a_sentence(
    array_record_dir, tmp_path, monkeypatch
):
    def missing(*_, **__):
        raise ImportError("No module named array_record")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_data_source", missing)
    with pytest.raises(UserError, match="ArrayRecord.*array_record"):
        _load("mini", array_record_dir[0], tmp_path, image_size=8, resize=None)


@pytest.mark.parametrize(
    "name, data_dir",
    [
        ("huggingface:glue", None),
        ("cifar10", "gs://somewhere/of/a/stranger"),
        ("cifar10", "nothing is here"),
    ],
)
def test_a_record_has_nothing_fetched(tmp_path, name, data_dir, monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", None)
    if data_dir and "://" not in data_dir:
        data_dir = str(tmp_path)
    with pytest.raises(UserError, match="not fetched"):
        data.rebuild("load", {"name": name, "data_dir": data_dir})


@pytest.mark.parametrize("name", ["imagenet2012", "domainnet/quickdraw"])
@pytest.mark.parametrize("keep", ["encoded", "decoded"])
def test_tfds_mock_data(name, keep, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda _: True)
    with tfds.testing.mock_data(num_examples=5):
        dataset = data.load(
            name,
            16,
            resize=20,
            keep=keep,
            test_split="validation",
            cache_dir=str(tmp_path),
        )
        builder = tfds.builder(name)
        labels = [int(x["label"]) for x in builder.as_dataset(split="train")]
    assert len(dataset.info.class_names) == (1000 if "net2" in name else 345)
    np.testing.assert_array_equal(dataset.train.labels, labels)
    images, targets = next(
        iter(dataset.train_batches(5, 0, [data.random_flip()]))
    )
    assert images.shape == (5, 16, 16, 3)
    assert sorted(np.argmax(targets, axis=1)) == sorted(labels)


@pytest.mark.parametrize(
    "name, image_size, shape",
    [
        ("mnist:3.*.*", None, (28, 28, 1)),
        ("cifar10", None, (32, 32, 3)),
        ("oxford_flowers102", 24, (24, 24, 3)),
    ],
)
def test_any_classification_dataset_by_name(name, image_size, shape, tmp_path):
    with tfds.testing.mock_data(num_examples=4):
        dataset = data.load(name, image_size, cache_dir=str(tmp_path))
    assert dataset.info.image_shape == shape
    assert dataset.train.raw_images(np.arange(4)).shape == (4, *shape)
    assert dataset.in_memory


def test_imagenet_through_the_command(imagenet_dir, tmp_path):
    flags = [
        f"--gin_file={commands.ROOT}/gin/p_imagenet.gin",
        "--gin_bindings=train.model = @fixup_resnet",
        "--gin_bindings=fixup_resnet.widths = (4, 8)",
        f"--gin_bindings=load.data_dir = '{imagenet_dir}'",
        f"--gin_bindings=load.cache_dir = '{tmp_path / 'cache'}'",
        "--gin_bindings=load.image_size = 24",
        "--gin_bindings=load.resize = 28",
        "--gin_bindings=train.batch_size = 4",
        "--gin_bindings=train.epochs = 2",
        "--gin_bindings=train.keep_epochs = [1]",
        f"--work_dir={tmp_path / 'run'}",
    ]
    status, output, errors = commands.run("train", *flags)
    assert status == 0, errors
    rows = Run(tmp_path / "run").metrics()
    assert list(rows.step) == [0, 3, 3, 6, 6]
    assert np.isfinite(rows.loss).all()
    info = Run(tmp_path / "run").info()
    assert (info.num_train, info.num_test) == (12, 4)
    assert info.class_names[:2] == tuple(SYNSETS)
    # The first class's first validation image, by TFDS' list of labels.
    dataset = Run(tmp_path / "run").load_data()
    assert sorted(np.bincount(dataset.train.labels)[:2]) == [6, 6]


@pytest.mark.long
def test_shuffled_domainnet_through_the_command(domainnet_dir, tmp_path):
    root, _ = domainnet_dir
    run = Run(tmp_path / "run")
    status, _, errors = commands.run(
        "train",
        f"--gin_file={commands.ROOT}/gin/rit_real.gin",
        f"--gin_file={commands.ROOT}/gin/shuffled.gin",
        "--gin_bindings=load.block_size = 7",
        "--gin_bindings=train.model = @fixup_resnet",
        "--gin_bindings=fixup_resnet.widths = (4, 8)",
        f"--gin_bindings=load.data_dir = '{root}'",
        f"--gin_bindings=load.cache_dir = '{tmp_path / 'cache'}'",
        "--gin_bindings=load.image_size = 28",
        "--gin_bindings=load.resize = 32",
        "--gin_bindings=train.batch_size = 4",
        "--gin_bindings=train.epochs = 1",
        f"--work_dir={run.path}",
    )
    assert status == 0, errors
    assert list(run.metrics().step) == [0, 3, 3]
    # What the model saw is the definition's shuffle of the plain image.
    shuffled = run.load_data()
    plain = data.load(
        **shuffled.arguments | {"shuffle": None, "block_size": None}
    )
    seen, expected = (
        next(iter(d.eval_batches("test", 6)))[0].numpy()
        for d in (shuffled, plain)
    )
    permutation = np.random.RandomState(1234).permutation(16)
    blocks = expected.reshape(6, 4, 7, 4, 7, 3).swapaxes(2, 3)
    blocks = blocks.reshape(6, 16, 7, 7, 3)[:, permutation]
    moved = blocks.reshape(6, 4, 4, 7, 7, 3).swapaxes(2, 3).reshape(seen.shape)
    np.testing.assert_array_equal(seen, moved)


def test_interrupted_preparation_starts_again(tmp_path, monkeypatch):
    domains.write_imagenet(tmp_path / "data", SYNSETS)
    builder = type(tfds.builder("imagenet2012", data_dir=str(tmp_path)))
    generate = builder._generate_examples

    def interrupted(self, *args, **kwargs):
        examples = generate(self, *args, **kwargs)
        yield next(examples)
        raise KeyboardInterrupt

    def load():
        return _load(
            "imagenet2012",
            tmp_path / "data",
            tmp_path / "cache",
            test_split="validation",
        )

    with monkeypatch.context() as patch:
        patch.setattr(builder, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load()
    dataset = load()
    assert (dataset.info.num_train, dataset.info.num_test) == (12, 4)


@pytest.mark.parametrize(
    "present", [(), ("ILSVRC2012_img_train.tar",)], ids=["none", "train"]
)
def test_missing_imagenet_is_asked_for(tmp_path, present):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    for name in present:
        (manual / name).write_bytes(b"")
    with pytest.raises(UserError, match="downloads/manual") as error:
        _load("imagenet2012", tmp_path, tmp_path / "cache")
    assert "register on https://image-net.org" in str(error.value)
    assert "load.data_dir" in str(error.value)
    # Nothing was prepared from what was there.
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_failed_download_is_a_sentence(tmp_path, monkeypatch):
    def unreachable(self, **_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(
        domainnet.Domainnet, "_download_and_prepare", unreachable
    )
    with pytest.raises(UserError, match="no route to host") as error:
        _load("domainnet/clipart", tmp_path, tmp_path / "cache")
    assert "load.data_dir" in str(error.value)


def test_truncated_records_are_named(domainnet_dir, tmp_path):
    root, files = domainnet_dir
    _prepare_domainnet(tmp_path / "files", tmp_path / "tfds", "sketch")
    (record,) = (tmp_path / "tfds").rglob("*train.tfrecord*")
    os.truncate(record, record.stat().st_size - 20)
    with pytest.raises(UserError, match=f"{record.name} is cut short"):
        _load("domainnet/sketch", tmp_path / "tfds", tmp_path / "cache")


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"name": "imdb_reviews"}, "one image to one class.*imdb_reviews"),
        ({"train_split": "training"}, "no split 'training'; it has.*test"),
        ({"keep": "both"}, "load.keep .*Received: 'both'"),
        ({"image_size": None, "resize": None}, "image_size=None"),
    ],
)
def test_mistakes_are_named(domainnet_dir, tmp_path, kwargs, message):
    arguments = {"name": "domainnet/real"} | kwargs
    name = arguments.pop("name")
    with pytest.raises(UserError, match=message):
        _load(name, domainnet_dir[0], tmp_path, **arguments)


def test_arguments_reload(domainnet_dir, tmp_path):
    dataset = _load("domainnet/real", domainnet_dir[0], tmp_path, num_train=5)
    again = data.load(**json.loads(json.dumps(dataset.arguments)))
    assert again.info == dataset.info
    assert _contents(again.train) == _contents(dataset.train)
