import csv
import math
import warnings

import commands
import domains
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage
from sklearn import metrics

from keras_transfer import data, objectives
from keras_transfer.data import xray
from keras_transfer.data.augment import affine_matrices
from keras_transfer.errors import UserError
from keras_transfer.runs import Run

pil = pytest.importorskip("PIL.Image")

COUNT, SIZE = 40, 16
FINDINGS = [
    "Cardiomegaly",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pleural Effusion",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return domains.write_chexpert(tmp_path_factory.mktemp("chexpert"), COUNT)


@pytest.fixture(scope="module")
def load(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def load(data_dir=folder, **kwargs):
        arguments = {
            "image_size": 48,
            "split_size": SIZE,
            "split_seed": 1234,
            "cache_dir": str(cache),
        }
        return data.load(
            "chexpert", data_dir=str(data_dir), **arguments | kwargs
        )

    return load


def _rows(folder, name="train"):
    with open(folder / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def _labels(rows):
    """The policy in its own words, from the table's strings."""
    policy = {
        "Cardiomegaly": "0",
        "Edema": "1",
        "Consolidation": "0",
        "Atelectasis": "1",
        "Pleural Effusion": "0",
    }
    return np.array(
        [
            [float(row[f].replace("-1.0", policy[f]) or "0") for f in FINDINGS]
            for row in rows
        ]
    )


def _names(split):
    images = split.images
    return [images.name(row).split("/train/")[-1] for row in split.rows]


# Split and labels.


def test_split_and_labels_are_the_published_ones(folder, load):
    dataset = load()
    rows = _rows(folder)
    assert {row["Edema"] for row in rows} == {"", "0.0", "1.0", "-1.0"}
    # As published: the lines themselves are permuted.
    rng = np.random.RandomState(seed=1234)
    lines = rng.permutation([row["Path"] for row in rows])
    by_path = {row["Path"]: row for row in rows}
    train, test = (
        [by_path[path] for path in lines[part]]
        for part in (slice(SIZE), slice(SIZE, 2 * SIZE))
    )
    twice = []
    for row in train:
        positive = "1.0" in (row["Cardiomegaly"], row["Consolidation"])
        twice += [row] * (1 + positive)
    assert len(train) < len(twice) < 2 * len(train)
    assert dataset.info.multi_label
    assert list(dataset.info.class_names) == FINDINGS
    assert _names(dataset.train) == [
        row["Path"].split("/train/")[-1] for row in twice
    ]
    np.testing.assert_array_equal(dataset.train.labels, _labels(twice))
    np.testing.assert_array_equal(dataset.test.labels, _labels(test))
    assert dataset.info.num_train == len(twice)
    assert dataset.info.num_test == SIZE
    assert data.count(**dataset.arguments) == (5, len(twice), SIZE)


def test_official_validation_images_on_request(folder, load):
    dataset = load(test_split="valid")
    rows = _rows(folder, "valid")
    np.testing.assert_array_equal(dataset.test.labels, _labels(rows))
    image = tf.io.read_file(str(folder.parent / rows[1]["Path"]))
    raw = tf.io.decode_jpeg(image, channels=1)[None]
    seen = next(iter(dataset.eval_batches("test", 4)))[0]
    expected = data.preprocess(raw, dataset.info)[0]
    np.testing.assert_allclose(seen[1], expected, atol=1e-6)


def test_fewer_training_images(load):
    # Ten are drawn, then doubled.
    assert len(set(_names(load(num_train=10).train))) == 10


# The image pipeline.


@pytest.mark.parametrize("shape", [(390, 320), (320, 389)])
def test_equalization_is_opencv_s(shape):
    cv2 = pytest.importorskip("cv2", reason="reference implementation")
    images = np.stack([domains.x_ray(seed, *shape) for seed in range(3)])
    images[2] = images[2] // 3 + 40  # Few levels.
    received = xray.equalize_histogram(tf.constant(images)).numpy()
    for image, ours in zip(images, received, strict=True):
        expected = cv2.equalizeHist(image[..., 0])
        np.testing.assert_array_equal(ours[..., 0], expected)


def test_equalization_of_few_levels():
    image = np.array([[7, 7, 9], [9, 9, 200]], np.uint8)[None, ..., None]
    # C - C(v0) is 0, 3, 4 of N - C(v0) = 4.
    expected = np.array([[0, 0, 191], [191, 191, 255]])
    received = xray.equalize_histogram(tf.constant(image))[0, ..., 0]
    np.testing.assert_array_equal(received, expected)
    flat = tf.fill([1, 4, 5, 1], tf.constant(93, tf.uint8))
    np.testing.assert_array_equal(xray.equalize_histogram(flat), flat)


@pytest.mark.parametrize("shape", [(390, 320), (320, 390), (200, 200)])
def test_longer_side_is_resized_and_the_rest_padded(shape):
    image = domains.x_ray(1, *shape)
    received = xray.resize_and_pad(tf.constant(image[None]), 224)[0, ..., 0]
    h, w = (round(224 * side / max(shape)) for side in shape)
    expected = pil.fromarray(image[..., 0]).resize((w, h), pil.BILINEAR)
    difference = received[:h, :w] - np.asarray(expected, np.float32)
    assert np.abs(difference).max() < 1.1
    assert received.shape == (224, 224)
    assert np.all(received[h:] == 128) and np.all(received[:, w:] == 128)


def test_blur_is_the_binomial_kernel():
    image = domains.x_ray(2, 50, 60).astype(np.float32)
    received = xray.blur(tf.constant(image[None]))[0, ..., 0]
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    # SciPy's "mirror" reflects about the centre of the last pixel.
    expected = ndimage.convolve(image[..., 0], kernel, mode="mirror")
    np.testing.assert_allclose(received, expected, atol=1e-3)
    cv2 = pytest.importorskip("cv2", reason="reference implementation")
    np.testing.assert_allclose(
        received, cv2.GaussianBlur(image[..., 0], (3, 3), 0), atol=1e-3
    )


def test_whole_pipeline_in_its_order(load, folder):
    """Against OpenCV, but for the resizing, which is Pillow's."""
    cv2 = pytest.importorskip("cv2", reason="reference implementation")
    dataset = load(image_size=224)
    info = dataset.info
    assert info.image_shape == (224, 224, 3)
    images, _, _ = next(iter(dataset.eval_batches("train", 4)))
    assert images.shape == (4, 224, 224, 3)
    for name, ours in zip(_names(dataset.train), images, strict=False):
        path = str(folder / "train" / name)
        gray = tf.io.decode_jpeg(tf.io.read_file(path), 1).numpy()[..., 0]
        equal = cv2.equalizeHist(gray)
        h, w = (round(224 * side / max(gray.shape)) for side in gray.shape)
        small = pil.fromarray(equal).resize((w, h), pil.BILINEAR)
        padded = np.full((224, 224), 128, np.float32)
        padded[:h, :w] = small
        expected = (cv2.GaussianBlur(padded, (3, 3), 0) - 128) / 64
        # Pillow and the stored images are rounded to whole levels.
        difference = ours - expected[..., None]
        assert np.abs(difference).max() < 1.6 / 64
        assert np.abs(difference).mean() < 0.5 / 64


@pytest.mark.parametrize("shape", [(390, 320), (320, 390)])
def test_random_affine_equals_scipy_and_pillow(shape):
    uniforms = np.random.RandomState(0).uniform(size=(12, 4)).astype("float32")
    image = domains.x_ray(3, *shape)
    images = np.repeat(image[None], 12, axis=0)
    received = data.random_affine()(tf.constant(images), uniforms, 224)
    assert received.dtype == tf.uint8
    h, w = shape
    for (a, b, c, d), ours in zip(uniforms.tolist(), received, strict=True):
        # torchvision: rotate and scale about the centre, then shift.
        angle = math.radians(30 * a - 15)
        shift = round((2 * b - 1) * 0.05 * w), round((2 * c - 1) * 0.05 * h)
        cos = math.cos(angle) / (0.95 + 0.1 * d)
        sin = math.sin(angle) / (0.95 + 0.1 * d)
        x, y = w / 2 + shift[0], h / 2 + shift[1]
        matrix = (
            *(cos, sin, w / 2 - cos * x - sin * y),
            *(-sin, cos, h / 2 + sin * x - cos * y),
        )
        expected = pil.fromarray(image[..., 0]).transform(
            (w, h), pil.AFFINE, matrix, pil.NEAREST, fillcolor=128
        )
        # Pillow computes positions in fixed point, to some 0.01 pixels.
        assert np.mean(ours[..., 0] != np.asarray(expected)) < 0.03
        # SciPy counts from the first pixel's centre, and rows come first.
        backward = np.array([[cos, -sin], [sin, cos]])
        centre = np.array([h, w]) / 2 - 0.5
        offset = centre - backward @ (centre + shift[::-1])
        expected = ndimage.affine_transform(
            *(image[..., 0], backward, offset),
            order=0,
            mode="grid-constant",
            cval=128,
        )
        # Where a pixel falls between two, rounding may choose the other.
        assert np.mean(ours[..., 0] != expected) < 1e-3


def test_random_affine_covers_its_ranges():
    uniforms = np.random.RandomState(1).uniform(size=(4000, 4))
    a, b, c, d, e, f, *rest = (
        affine_matrices(
            tf.constant(uniforms, tf.float32),
            tf.constant([400.0, 200.0]),
            15.0,
            0.05,
            (0.95, 1.05),
        )
        .numpy()
        .T
    )
    assert not np.any(rest)
    degrees = np.degrees(np.arctan2(b, a))
    scale = 1 / np.hypot(a, b)
    for values, low, high in ((degrees, -15, 15), (scale, 0.95, 1.05)):
        assert low <= values.min() + 1e-4 and values.max() <= high + 1e-4
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.3)
        np.testing.assert_allclose(
            values.std(), (high - low) / math.sqrt(12), rtol=0.05
        )
    # Where the centre comes from tells the shift: whole pixels, up to 5%.
    centre = np.array([99.5, 199.5])
    inverse = np.linalg.inv(
        np.stack([np.stack([a, b], 1), np.stack([d, e], 1)], 1)
    )
    source = centre - np.stack([c, f], 1)
    shift = (inverse @ source[..., None])[..., 0] - centre
    np.testing.assert_allclose(shift, np.round(shift), atol=5e-3)
    np.testing.assert_array_equal(np.abs(np.round(shift)).max(0), [10, 20])


def test_training_images_are_transformed_before_all_else(load):
    dataset = load()
    shift = data.random_affine(degrees=0.0, translate=0.0, scale=(1.0, 1.0))
    images, _ = next(iter(dataset.train_batches(8, 3, [shift])))
    plain, _ = next(iter(dataset.train_batches(8, 3)))
    # Nothing moved: the same images as without.
    np.testing.assert_array_equal(images, plain)
    turn = data.random_affine(fill_value=128.0)
    turned, _ = next(iter(dataset.train_batches(8, 3, [turn])))
    assert np.mean(np.abs(turned - plain)) > 0.05
    # Doubled images are turned independently of each other.
    names = _names(dataset.train)
    first = next(i for i, n in enumerate(names) if n == names[i + 1])
    everything = dataset.train_batches(len(names), 3, [turn])
    order = dataset.train_parts(len(names), 3, [turn])
    images, _ = next(iter(everything))
    examples = next(iter(order))["examples"].numpy().tolist()
    pair = [examples.index(first), examples.index(first + 1)]
    assert (images[pair[0]].numpy() != images[pair[1]].numpy()).any()


# The whole.


def test_through_the_command(folder, tmp_path):
    flags = [
        f"--gin_file={commands.ROOT}/gin/rit_chexpert.gin",
        "--gin_bindings=train.model = @fixup_resnet",
        "--gin_bindings=fixup_resnet.widths = (4, 8)",
        f"--gin_bindings=load.data_dir = '{folder}'",
        f"--gin_bindings=load.cache_dir = '{tmp_path / 'cache'}'",
        f"--gin_bindings=load.split_size = {SIZE}",
        "--gin_bindings=load.image_size = 32",
        "--gin_bindings=train.batch_size = 8",
        "--gin_bindings=train.epochs = 2",
    ]
    status, _, errors = commands.run(
        "train", *flags, f"--work_dir={tmp_path / 'run'}"
    )
    assert status == 0, errors
    run = Run(tmp_path / "run")
    table = run.metrics()
    test = table[(table.split == "test") & (table.epoch == 2)].iloc[0]
    dataset = run.load_data()
    images = np.concatenate([x for x, _, _ in dataset.eval_batches("test", 8)])
    logits = run.load_model()(images).numpy()
    aucs = [
        metrics.roc_auc_score(dataset.test.labels[:, k], logits[:, k])
        for k in range(5)
    ]
    for finding, auc in zip(FINDINGS, aucs, strict=True):
        np.testing.assert_allclose(test[f"auc_{finding}"], auc, atol=1e-6)
    np.testing.assert_allclose(test.auc, np.mean(aucs), atol=1e-6)
    assert test.findings == 5
    labels = dataset.test.labels
    loss = np.mean(np.logaddexp(0, logits) - labels * logits)
    np.testing.assert_allclose(test.loss, loss, rtol=1e-5)
    assert run.best()["metric"] == "auc"


def test_finding_of_one_class_has_no_auc(load):
    info = load().info
    targets = np.zeros((6, 5), np.float32)
    targets[:3, :4] = 1
    logits = np.random.RandomState(0).normal(size=(6, 5))
    with pytest.warns(UserWarning, match="Pleural Effusion.*4 of 5"):
        summary = objectives.summarize(targets, logits, info)
    aucs = [
        metrics.roc_auc_score(targets[:, k], logits[:, k]) for k in range(4)
    ]
    assert np.isnan(summary["auc_Pleural Effusion"])
    np.testing.assert_allclose(summary["auc"], np.mean(aucs))
    assert summary["findings"] == 4
    targets[:3] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert objectives.summarize(targets, logits, info)["findings"] == 5


def test_damaged_image(tmp_path):
    folder = domains.write_chexpert(tmp_path, 8)
    path = folder / "train" / "patient00003" / "study1" / "view1_frontal.jpg"
    path.write_bytes(path.read_bytes()[:3000])
    flags = [
        f"--gin_file={commands.ROOT}/gin/rit_chexpert.gin",
        f"--gin_bindings=load.data_dir = '{folder}'",
        f"--gin_bindings=load.cache_dir = '{tmp_path / 'cache'}'",
        "--gin_bindings=load.split_size = 4",
        f"--work_dir={tmp_path / 'run'}",
    ]
    status, _, errors = commands.run("train", *flags)
    assert status == 1
    assert f"1 of 8 files cannot be decoded as images. Received: {path}" in (
        errors
    )
    assert "on_damaged='skip'" in errors and "Traceback" not in errors
    dataset = data.load(
        "chexpert",
        32,
        data_dir=str(folder),
        split_size=4,
        on_damaged="skip",
        cache_dir=str(tmp_path / "cache"),
    )
    seen = set(_names(dataset.train)) | {str(dataset.info.num_test)}
    assert not any("patient00003" in name for name in seen)
    assert len(set(_names(dataset.train))) + dataset.info.num_test == 7


def test_missing_data_say_where_to_register(tmp_path):
    status, _, errors = commands.run(
        "train",
        f"--gin_file={commands.ROOT}/gin/rit_chexpert.gin",
        f"--work_dir={tmp_path / 'run'}",
    )
    assert status == 1
    assert "Register at https://stanfordmlgroup.github.io" in errors
    assert "load.data_dir" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.replace(",-1.0", ",2.0"), "not 1, 0, -1 or empty.*'2.0'"),
        (lambda t: t.replace("Edema", "Oedema"), "lacks columns: Edema"),
        (lambda t: t.replace("view1", "view9"), "view9_frontal.jpg .No such"),
    ],
)
def test_another_table_is_named(tmp_path, load, change, message):
    folder = domains.write_chexpert(tmp_path, 4)
    table = folder / "train.csv"
    table.write_text(change(table.read_text()))
    with pytest.raises(UserError, match=message):
        load(folder, split_size=2)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"split_size": 21}, "has 40 rows.*split_size=21"),
        ({"test_split": "dev"}, "test_split='dev'"),
        ({"resize": 64}, "resize=64"),
        ({"data_dir": "/nowhere"}, "no train.csv.*Register"),
    ],
)
def test_mistakes_are_named(load, kwargs, message):
    with pytest.raises(UserError, match=message):
        load(**kwargs)
