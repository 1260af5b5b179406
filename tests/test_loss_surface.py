import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from sklearn import metrics

from keras_transfer import data, devices, models
from keras_transfer.errors import UserError
from keras_transfer.landscape.batch_norm import batch_norms
from keras_transfer.landscape.evaluations import Evaluations
from keras_transfer.landscape.loss_surface import LossSurface, examples_surface
from keras_transfer.landscape.weight_space import Points

layers = keras.layers
NUM_VECTORS = 3


@pytest.fixture(scope="module")
def dataset():
    return data.load("digits", image_size=8, num_train=100)


@pytest.fixture(scope="module")
def multi_label(dataset):
    """Digits by two properties: "even" and "small" (and "none", never so)."""
    splits = []
    for split in (dataset.train, dataset.test):
        classes = [split.labels % 2 == 0, split.labels < 3, split.labels < 0]
        labels = np.stack(classes, 1).astype(np.float32)
        splits.append(dataclasses.replace(split, labels=labels))
    info = dataclasses.replace(
        dataset.info, multi_label=True, class_names=("even", "small", "none")
    )
    return data.Dataset(info, *splits)


def fixup(num_classes=10):
    return models.fixup_resnet(num_classes, (8, 8, 1), widths=(4, 8))


def with_batch_norm(num_classes=10):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, strides=2),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(6),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(num_classes),
        ]
    )


def vectors(model, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [
            w + rng.uniform(-0.1, 0.1, w.shape).astype(w.dtype)
            for w in model.get_weights()
        ]
        for _ in range(NUM_VECTORS)
    ]


def some_points(count=5, seed=0):
    rng = np.random.default_rng(seed)
    return Points(rng.dirichlet(np.ones(NUM_VECTORS), count))


def forward(model, weights, split, info):
    """Returns logits the obvious way, and targets."""
    kept = model.get_weights()
    model.set_weights(weights)
    images = data.preprocess(split.raw_images(np.arange(len(split))), info)
    logits = model(images, training=False).numpy().astype(np.float64)
    model.set_weights(kept)
    return logits, split.targets(len(info.class_names))


def combine(vectors, coefficients):
    return [
        np.einsum("k,k...->...", coefficients, np.stack(arrays))
        for arrays in zip(*vectors, strict=True)
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_values_are_those_of_the_obvious_way(dataset, split):
    model = fixup()
    stored, points = vectors(model), some_points()
    # A batch size that leaves a remainder in both splits.
    surface = examples_surface(
        model, stored, dataset.examples, split, batch_size=45
    )
    before = model.get_weights()
    found = surface.evaluate(points)
    for p, coefficients in enumerate(points.coefficients):
        logits, targets = forward(
            model,
            combine(stored, coefficients),
            getattr(dataset, split),
            dataset.info,
        )
        labels = targets.argmax(1)
        loss = metrics.log_loss(
            labels, np.exp(logits - np.logaddexp.reduce(logits, 1)[:, None])
        )
        np.testing.assert_allclose(found["loss"][p], loss, rtol=1e-5)
        assert found["accuracy"][p] == np.mean(logits.argmax(1) == labels)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_multi_label_auc(multi_label):
    model = fixup(3)
    stored, points = vectors(model), some_points()
    surface = examples_surface(
        model, stored, multi_label.examples, batch_size=60
    )
    found = surface.evaluate(points)
    logits, targets = forward(
        model,
        combine(stored, points.coefficients[1]),
        multi_label.test,
        multi_label.info,
    )
    aucs = [metrics.roc_auc_score(targets[:, k], logits[:, k]) for k in (0, 1)]
    np.testing.assert_allclose(found["auc_even"][1], aucs[0], rtol=1e-5)
    np.testing.assert_allclose(found["auc"][1], np.mean(aucs), rtol=1e-5)
    assert np.isnan(found["auc_none"]).all()
    probabilities = 1 / (1 + np.exp(-logits))
    loss = [
        metrics.log_loss(targets[:, k], probabilities[:, k], labels=[0, 1])
        for k in range(3)
    ]
    np.testing.assert_allclose(found["loss"][1], np.mean(loss), rtol=1e-5)
    right = np.mean((logits > 0) == targets)
    np.testing.assert_allclose(found["accuracy"][1], right, rtol=1e-6)


@pytest.mark.parametrize("build", [fixup, with_batch_norm])
def test_replicas_and_reading_again_change_nothing(multi_label, build):
    model = build(3)
    stored, points = vectors(model), some_points()
    points = dataclasses.replace(points, sigma=np.arange(5) * 0.02)

    def evaluate(**arguments):
        surface = examples_surface(
            model, stored, multi_label.examples, batch_size=30, **arguments
        )
        return surface.evaluate(points), surface.outputs(points)

    whole, (targets, outputs) = evaluate()
    assert outputs.shape == (5, multi_label.info.num_test, 3)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for other in (
        {"strategy": strategy},
        {"memory_budget": 0},
        {"strategy": strategy, "memory_budget": 0},
    ):
        found, (other_targets, other_outputs) = evaluate(**other)
        for name, values in whole.items():
            np.testing.assert_allclose(found[name], values, rtol=2e-5)
        np.testing.assert_array_equal(other_targets, targets)
        np.testing.assert_allclose(other_outputs, outputs, rtol=1e-3, atol=1e-3)


def test_ends_are_hit_exactly(dataset):
    model = fixup()
    stored = vectors(model)
    surface = examples_surface(model, stored, dataset.examples)
    for found, vector in zip(
        surface.weights(Points(np.eye(NUM_VECTORS))), stored, strict=True
    ):
        for a, b in zip(found, vector, strict=True):
            np.testing.assert_array_equal(a, b)


def test_noise_is_normal_and_common(dataset):
    model = fixup()
    surface = examples_surface(model, vectors(model), dataset.examples)
    base, one, two, other = (
        np.concatenate([np.ravel(w) for w in weights])
        for weights in surface.weights(
            Points(
                np.tile([1.0, 0, 0], (4, 1)),
                sigma=[0, 0.5, 1.0, 1.0],
                seeds=[5, 7, 7, 8],
            )
        )
    )
    np.testing.assert_allclose(two - base, 2 * (one - base), atol=1e-6)
    assert stats.kstest(two - base, "norm").pvalue > 0.01
    assert stats.kstest(other - base, "norm").pvalue > 0.01
    assert abs(np.corrcoef(two - base, other - base)[0, 1]) < 0.1
    # Without noise, its seed makes no other point.
    values = surface.evaluate(
        Points(np.tile([1.0, 0, 0], (2, 1)), [0.0, 0.0], [1, 2])
    )["loss"]
    assert values[0] == values[1]


def test_batch_statistics_are_those_of_the_point(dataset):
    """Against NumPy, both layers, the second fed through the first."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(22, 3)).astype(np.float32)
    targets = np.zeros((22, 2), np.float32)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4),
            layers.BatchNormalization(epsilon=1e-3),
            layers.Dense(2),
            layers.BatchNormalization(epsilon=1e-3),
        ]
    )
    stored = vectors(model)
    # The smaller last batch is left out.
    batches = tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(5)
    surface = LossSurface(
        model,
        stored,
        batches,
        {"loss": keras.losses.mean_squared_error},
        statistics_batches=batches,
    )
    points = Points([[0.5, 0.5, 0]])
    (found,) = surface.weights(points)
    w = combine(stored, points.coefficients[0])
    for i in (0, 1, 2, 3, 6, 7, 8, 9):
        np.testing.assert_allclose(found[i], w[i], rtol=1e-5)
    firsts, seconds = [], []
    for start in range(0, 20, 5):
        x = inputs[start : start + 5] @ w[0] + w[1]
        firsts.append((x.mean(0), x.var(0)))
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) * w[2] + w[3]
        x = x @ w[6] + w[7]
        seconds.append((x.mean(0), x.var(0)))
    first, second = np.mean(firsts, 0), np.mean(seconds, 0)
    np.testing.assert_allclose(found[4:6], first, rtol=1e-4)
    np.testing.assert_allclose(found[10:12], second, rtol=1e-4)
    # And the loss uses them.
    x = inputs @ w[0] + w[1]
    x = (x - first[0]) / np.sqrt(first[1] + 1e-3) * w[2] + w[3]
    x = x @ w[6] + w[7]
    x = (x - second[0]) / np.sqrt(second[1] + 1e-3) * w[8] + w[9]
    np.testing.assert_allclose(
        surface.evaluate(points)["loss"], np.mean(x**2), rtol=1e-4
    )
    assert [m.momentum for m in batch_norms(model)] == [0.99, 0.99]


def test_batch_statistics_can_be_combined_like_weights(dataset):
    model = with_batch_norm()
    stored = vectors(model)
    surface = examples_surface(
        model, stored, dataset.examples, batch_norm="stored"
    )
    points = some_points(1)
    (found,) = surface.weights(points)
    expected = combine(stored, points.coefficients[0])
    for a, b in zip(found, expected, strict=True):
        # Where terms nearly cancel, what is left has their rounding.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_xla_gives_the_same(dataset):
    model = fixup()
    stored, points = vectors(model), some_points(2)
    plain, compiled = (
        examples_surface(
            model, stored, dataset.examples, jit_compile=jit
        ).evaluate(points)
        for jit in (False, True)
    )
    np.testing.assert_allclose(plain["loss"], compiled["loss"], rtol=1e-5)


def test_one_trace_serves_all_points(dataset):
    model = fixup()
    surface = examples_surface(model, vectors(model), dataset.examples)
    for count in (1, 7, 2):
        surface.evaluate(some_points(count))
    surface.evaluate(Points(np.eye(NUM_VECTORS), sigma=[0.1] * 3))
    surface.outputs(some_points(2))
    assert surface._measure.experimental_get_tracing_count() == 1


def test_an_interrupted_evaluation_continues(dataset, tmp_path, monkeypatch):
    # One point at a time, so that there is something between points.
    monkeypatch.setattr(devices, "_SECONDS_PER_CALL", 1e-9)
    model = fixup()
    surface = examples_surface(model, vectors(model), dataset.examples)
    points = some_points(6)
    expected = surface.evaluate(points)
    add = Evaluations.add
    results = Evaluations(tmp_path / "evaluated.jsonl")

    def interrupted_add(self, numbers):
        add(self, numbers)
        if len(self) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Evaluations, "add", interrupted_add)
    with pytest.raises(KeyboardInterrupt):
        surface.evaluate(points, results)
    monkeypatch.setattr(Evaluations, "add", add)
    # The process may be killed within a line, too.
    with open(results.path, "a") as file:
        file.write('["abc", {"lo')
    again = Evaluations(results.path)
    assert len(again) == 4
    evaluated = []
    run = surface._run
    monkeypatch.setattr(
        surface,
        "_run",
        lambda arrays, bar: (
            evaluated.append(len(arrays[0])) or run(arrays, bar)
        ),
    )
    found = surface.evaluate(points, again)
    assert sum(evaluated) == 2
    surface.evaluate(points, Evaluations(results.path))
    assert sum(evaluated) == 2
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    lines = results.path.read_text().splitlines()
    assert len([line for line in lines if line.endswith("]")]) == 6
    assert json.loads(lines[-1])[1]["loss"] == expected["loss"][5]


def test_other_weights_or_data_are_other_results(dataset, tmp_path):
    model = fixup()
    results = Evaluations()
    for seed, split in ((0, "test"), (1, "test"), (1, "train")):
        surface = examples_surface(
            model, vectors(model, seed), dataset.examples, split
        )
        surface.evaluate(some_points(3), results)
    assert len(results) == 9
    batches = dataset.eval_batches("test")
    for name in ("loss", "another"):
        means = {name: keras.losses.mean_squared_error}
        surface = LossSurface(model, vectors(model), batches, means)
        assert set(surface.evaluate(some_points(1), results)) == {name}


def test_other_data_are_other_evaluations_without_a_key(dataset):
    """Two data sets, one `Evaluations`: neither gives the other's numbers."""
    model = fixup()
    evaluations, point = Evaluations(), Points([[1.0, 0.0, 0.0]])
    means = {"loss": keras.losses.mean_squared_error}

    def loss(split, evaluations):
        batches = dataset.eval_batches(split, 50)
        surface = LossSurface(model, vectors(model), batches, means)
        return surface.evaluate(point, evaluations)["loss"][0]

    alone = [loss(split, None) for split in ("train", "test")]
    assert [loss(s, evaluations) for s in ("train", "test")] == alone
    assert alone[0] != alone[1]
    assert loss("train", evaluations) == alone[0] and len(evaluations) == 2


def test_a_damaged_line_is_evaluated_again(tmp_path):
    evaluations = Evaluations(tmp_path / "evaluated.jsonl")
    evaluations.add({"a": {"loss": 0.125}, "b": {"loss": 2.0}})
    text = evaluations.path.read_text()
    evaluations.path.write_text(text.replace("0.125", "0.175"))
    again = Evaluations(evaluations.path)
    assert "a" not in again and again["b"] == {"loss": 2.0}


def test_frozen_weights_are_points_without_noise(dataset):
    """Trainability decides what gets noise, not what is moved or measured."""
    model = fixup()
    model.layers[1].trainable = False
    stored = vectors(model)
    surface = examples_surface(model, stored, dataset.examples)
    half = Points([[0.5, 0.5, 0.0]] * 2, [0.0, 1.0], [3, 3])
    plain, noisy = surface.weights(half)
    frozen = [not v.trainable for v in model.weights]
    assert sum(frozen) == 1
    for i, is_frozen in enumerate(frozen):
        expected = 0.5 * stored[0][i] + 0.5 * stored[1][i]
        np.testing.assert_allclose(plain[i], expected, rtol=1e-6)
        assert np.array_equal(plain[i], noisy[i]) == is_frozen
    flat = [np.concatenate([np.ravel(a) for a in w]) for w in stored]
    squared = np.sum(np.square((flat[1] - flat[0]).astype(np.float64)))
    np.testing.assert_allclose(surface.space.gram()[1, 1], squared, rtol=1e-6)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (Points(np.ones((2, 4))), r"K = 3 vectors.*Received: .*\(2, 4\)"),
        (Points(np.ones((0, 3))), r"\(0, 3\)"),
        (Points(np.ones((2, 3)), seeds=[1]), r"seeds \(1,\)"),
        (Points(np.ones((2, 3)), sigma=np.ones((2, 9))), r"sigma \(2, 9\)"),
    ],
)
def test_points_must_fit(dataset, points, message):
    model = fixup()
    surface = examples_surface(model, vectors(model), dataset.examples)
    with pytest.raises(UserError, match=message):
        surface.evaluate(points)


def test_models_must_fit(dataset):
    model = fixup()
    with pytest.raises(UserError, match="vector 1 does not fit"):
        examples_surface(
            model,
            [model.get_weights(), fixup(3).get_weights()],
            dataset.examples,
        )
    with pytest.raises(UserError, match="3 logits.*10 classes"):
        examples_surface(fixup(3), [fixup(3).get_weights()], dataset.examples)
    broken = model.get_weights()
    broken[0] = broken[0] * np.nan
    with pytest.raises(UserError, match="not finite"):
        examples_surface(model, [broken], dataset.examples)
    with pytest.raises(UserError, match="infinitely many"):
        LossSurface(
            model,
            [model.get_weights()],
            dataset.train_batches(4, seed=0),
            {"loss": keras.losses.mean_squared_error},
        )
