import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics

from keras_transfer import data, models
from keras_transfer.errors import UserError
from keras_transfer.landscape import module_loss as module
from keras_transfer.landscape.evaluations import Evaluations
from keras_transfer.landscape.loss_surface import LossSurface, examples_surface
from keras_transfer.landscape.module_loss import (
    ModuleLoss,
    Perturbations,
    examples_modules,
    parts,
)
from keras_transfer.landscape.weight_space import FlatWeights, Points
from keras_transfer.models import module_chain

layers = keras.layers
NUM_VECTORS = 4
POSITIONS = [0.0, 0.3, 1.0, 2.75, 3.0, 1.5]
SIGMA = [0.0, 0.05, 0.1, 0.2, 0.0, 0.1]
SEEDS = [5, 5, 3, 5, 3, 3]


@pytest.fixture(scope="module")
def dataset():
    return data.load("digits", image_size=8, num_train=100)


@pytest.fixture(scope="module")
def multi_label(dataset):
    """Digits by two properties: even, and less than three."""
    splits = []
    for split in (dataset.train, dataset.test):
        classes = [split.labels % 2 == 0, split.labels < 3]
        labels = np.stack(classes, 1).astype(np.float32)
        splits.append(dataclasses.replace(split, labels=labels))
    info = dataclasses.replace(
        dataset.info, multi_label=True, class_names=("even", "small")
    )
    return data.Dataset(info, *splits)


def fixup(num_classes=10):
    return models.fixup_resnet(
        num_classes, (8, 8, 1), widths=(4, 6), blocks_per_stage=(2, 1)
    )


def with_batch_norm(num_classes=10):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, strides=2, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(6, name="hidden"),
            layers.BatchNormalization(name="hidden_norm"),
            layers.Dropout(0.5),
            layers.Dense(num_classes, name="head"),
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


def every_part(chain):
    """The same perturbations of each block and each group."""
    found = [*parts(chain, "block").values(), *parts(chain, "group").values()]
    return {
        part: Perturbations(np.array(POSITIONS), np.array(SIGMA), SEEDS)
        for part in found
    }


def plain_points(model, stored, end, part):
    """What `every_part` has for a part, made one weight vector at a time."""
    chain = module_chain(model)
    at = {id(v): i for i, v in enumerate(model.weights)}
    for position, sigma, seed in zip(POSITIONS, SIGMA, SEEDS, strict=True):
        share = np.maximum(0, 1 - np.abs(np.arange(NUM_VECTORS) - position))
        weights = list(stored[end])
        for m in part:
            own = FlatWeights(model, chain[m].variables)
            noise = own.split(own.noise(seed, m))
            for variable, u in zip(own.variables, noise, strict=True):
                i = at[id(variable)]
                mixed = np.einsum(
                    "k,k...->...", share, np.stack([w[i] for w in stored])
                )
                weights[i] = (mixed + sigma * u.numpy()).astype(np.float32)
        yield weights


def with_module_of(model, end, other, m):
    """Returns the weights `end`, those of module m replaced by `other`."""
    own = {id(v) for v in module_chain(model)[m].variables}
    return [
        b if id(v) in own else a
        for v, a, b in zip(model.weights, end, other, strict=True)
    ]


@pytest.mark.parametrize("batch_norm", ["stored", "reestimate"])
@pytest.mark.parametrize("build", [fixup, with_batch_norm])
def test_values_are_those_of_the_plain_way(dataset, build, batch_norm):
    """In every part, with noise and without, in batches with a remainder."""
    if build == fixup and batch_norm == "reestimate":
        pytest.skip("Fixup networks have no batch normalization.")
    model = build()
    stored, end = vectors(model), 2
    arguments = {"batch_norm": batch_norm, "batch_size": 45}
    modules = examples_modules(model, dataset.examples, "test", **arguments)
    before = model.get_weights()
    requests = every_part(modules.chain)
    found = modules.evaluate(stored, end, requests)
    for part in requests:
        points = list(plain_points(model, stored, end, part))
        surface = examples_surface(
            model, points, dataset.examples, "test", **arguments
        )
        expected = surface.evaluate(Points(np.eye(len(points))))
        np.testing.assert_allclose(
            found[part]["loss"], expected["loss"], rtol=1e-5
        )
        np.testing.assert_allclose(
            found[part]["accuracy"], expected["accuracy"], atol=1.5 / 797
        )
        np.testing.assert_allclose(
            found[part]["error"], 1 - found[part]["accuracy"], atol=1e-6
        )
        assert len(np.unique(expected["loss"])) == len(POSITIONS)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_multi_label_auc(multi_label):
    model = fixup(2)
    stored = vectors(model)
    modules = examples_modules(
        model, multi_label.examples, "test", batch_size=60
    )
    part = parts(modules.chain, "block")["layer1.1"]
    found = modules.evaluate(stored, 0, {part: Perturbations([1.0, 0.0])})
    for p, rewound in enumerate((1, 0)):
        model.set_weights(
            with_module_of(model, stored[0], stored[rewound], part.start)
        )
        images, targets, _ = next(
            iter(multi_label.eval_batches("test", batch_size=797))
        )
        logits = model(images, training=False).numpy()
        targets = targets.numpy()
        aucs = [
            metrics.roc_auc_score(targets[:, i], logits[:, i]) for i in (0, 1)
        ]
        own = {name: values[p] for name, values in found[part].items()}
        assert own["auc_even"] == pytest.approx(aucs[0], abs=1e-5)
        assert own["auc"] == pytest.approx(np.mean(aucs), abs=1e-5)
        wrong = np.mean((logits > 0) != targets)
        assert own["error"] == pytest.approx(wrong, abs=1e-3)


def test_replicas_and_reading_again_change_nothing(multi_label):
    model = fixup(2)
    stored = vectors(model)

    def evaluate(**arguments):
        modules = examples_modules(
            model, multi_label.examples, "test", batch_size=30, **arguments
        )
        return modules.evaluate(stored, 1, every_part(modules.chain))

    whole = evaluate()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for other in ({"strategy": strategy}, {"memory_budget": 0}):
        found = evaluate(**other)
        for part, columns in whole.items():
            for name, values in columns.items():
                np.testing.assert_allclose(
                    found[part][name], values, rtol=1e-5, err_msg=name
                )


class Counter(layers.Layer):
    """Counts its calls, those in graphs too."""

    counts = {}

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, inputs):
        def count(x):
            self.counts[self.name] = self.counts.get(self.name, 0) + 1
            return x

        x = tf.py_function(count, [inputs], tf.float32)
        return tf.ensure_shape(x, inputs.shape) * self.scale

    def compute_output_shape(self, shape):
        return shape


def test_only_what_follows_is_run_again():
    model = keras.Sequential([keras.Input((3,))])
    for name in ("first.a", "second.a", "third.a"):
        model.add(Counter(name=name))
    batches = tf.data.Dataset.from_tensor_slices(
        (np.ones((12, 3), np.float32), np.zeros((12, 3), np.float32))
    ).batch(4)
    loss = keras.losses.mean_squared_error
    modules = ModuleLoss(model, batches, {"loss": loss})
    stored = [[np.full(3, v, np.float32)] * 3 for v in (1.0, 2.0)]
    positions = Perturbations(np.linspace(0, 1, 5))
    first, second, third = (range(m, m + 1) for m in range(3))
    Counter.counts.clear()
    found = modules.evaluate(
        stored, 0, {first: positions, second: positions, third: positions}
    )
    # 3 batches: 5 perturbations of the module itself; of an earlier one, all
    # together, save for the first two, which tell the pace; and once on the way
    # to the next.
    assert Counter.counts == {
        "first.a": 3 * 5 + 3,
        "second.a": 3 * 5 + 3 + (3 + 2),
        "third.a": 3 * 5 + 2 * (3 + 2),
    }
    for part in found:
        np.testing.assert_allclose(
            found[part]["loss"], np.linspace(1, 2, 5) ** 2, rtol=1e-6
        )


def test_noise_is_drawn_once_a_seed(dataset, monkeypatch):
    model = fixup()
    modules = examples_modules(model, dataset.examples, batch_size=100)
    draws = []
    noise = module.FlatWeights.noise

    def counted(self, seed, number):
        tf.py_function(lambda s: draws.append(int(s)), [seed], [])
        return noise(self, seed, number)

    monkeypatch.setattr(module.FlatWeights, "noise", counted)
    monkeypatch.setattr(module, "Pace", lambda: FixedPace())
    modules._paces.default_factory = FixedPace
    request = Perturbations(
        np.zeros(9), np.repeat([0.0, 0.1, 0.2], 3), np.tile([7, 8, 9], 3)
    )
    modules.evaluate(vectors(model), 0, {range(2, 3): request})
    assert draws == [7, 8, 9]


class FixedPace:
    """Everything in one call."""

    def count(self, size=1):
        return 1000

    def note(self, units, seconds):
        pass


def test_one_trace_serves_all_perturbations(dataset):
    model = fixup()
    modules = examples_modules(model, dataset.examples, batch_size=30)
    stored = vectors(model)
    for count, end in ((1, 0), (7, 1), (2, 1)):
        request = Perturbations(np.linspace(0, 1, count), np.ones(count))
        modules.evaluate(
            stored[: end + 2], end, {range(2, 3): request, range(0, 1): request}
        )
    traces = [
        function.experimental_get_tracing_count()
        for module_ in modules._modules
        for function in module_._functions.values()
    ]
    # Two perturbed, and all but the first run at the end point's weights too.
    assert traces == [1] * (2 + 5)


def test_an_interrupted_evaluation_continues(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LEAST_PER_PASS", 2)
    monkeypatch.setattr(module, "_SECONDS_PER_PASS", 1e-9)
    model = fixup()
    modules = examples_modules(model, dataset.examples, batch_size=30)
    stored, requests = vectors(model), every_part(modules.chain)
    expected = modules.evaluate(stored, 2, requests)
    evaluations = Evaluations(tmp_path / "evaluated.jsonl")
    run, passes = modules._run, []

    def interrupted(state, points, bar):
        if len(passes) == 2:
            raise KeyboardInterrupt
        passes.append({part: len(arrays[0]) for part, arrays in points.items()})
        return run(state, points, bar)

    monkeypatch.setattr(modules, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        modules.evaluate(stored, 2, requests, evaluations)
    assert set(passes[0].values()) == {2}
    again, done = Evaluations(evaluations.path), len(evaluations)
    # conv1 and fc are blocks and groups.
    assert done == 2 * 2 * len(set(requests))
    passes.clear()
    passes.append({})
    monkeypatch.setattr(module, "_LEAST_PER_PASS", 99)
    found = modules.evaluate(stored, 2, requests, again)
    assert set(passes[1].values()) == {len(POSITIONS) - 4}
    for part, columns in expected.items():
        for name, values in columns.items():
            np.testing.assert_allclose(found[part][name], values, rtol=1e-6)
    # Nothing is left to run, whatever the vectors are called.
    monkeypatch.setattr(modules, "_run", None)
    shifted = {
        part: dataclasses.replace(p, positions=p.positions + 1)
        for part, p in requests.items()
    }
    modules.evaluate(
        [stored[0], *stored], 3, shifted, Evaluations(evaluations.path)
    )


def test_other_weights_data_and_parts_are_other_evaluations(dataset):
    model = fixup()
    evaluations = Evaluations()
    request = Perturbations([0.0, 0.5], [0.1, 0.1], [1, 1])
    for split in ("train", "test"):
        modules = examples_modules(model, dataset.examples, split)
        for seed in (0, 1):
            for end in (0, 1):
                for part in (range(0, 1), range(1, 2), range(0, 2)):
                    modules.evaluate(
                        vectors(model, seed), end, {part: request}, evaluations
                    )
    assert len(evaluations) == 2 * 2 * 2 * 3 * 2


def test_a_draw_of_the_examples(dataset):
    model = fixup()
    stored = vectors(model)

    def loss(**arguments):
        modules = examples_modules(model, dataset.examples, **arguments)
        request = {range(4, 5): Perturbations([3.0])}
        return modules.evaluate(stored, 0, request)[range(4, 5)]["loss"][0]

    drawn = np.sort(np.random.RandomState(0).permutation(100)[:20])
    images, targets, _ = next(iter(dataset.eval_batches("train", 100)))
    head = with_module_of(model, stored[0], stored[3], 4)
    model.set_weights(head)
    logits = model(images, training=False).numpy()[drawn].astype(np.float64)
    logs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    expected = -np.mean(np.sum(targets.numpy()[drawn] * logs, axis=1))
    assert loss(num_examples=20) == pytest.approx(expected, rel=1e-5)
    assert loss(num_examples=500) == pytest.approx(loss(), rel=1e-6)


def test_parts():
    chain = module_chain(fixup())
    assert parts(chain, "block") == {
        "conv1": range(0, 1),
        "layer1.0": range(1, 2),
        "layer1.1": range(2, 3),
        "layer2.0": range(3, 4),
        "fc": range(4, 5),
    }
    assert parts(chain, "group") == {
        "conv1": range(0, 1),
        "layer1": range(1, 3),
        "layer2": range(3, 4),
        "fc": range(4, 5),
    }
    chain = [models.Module(name, None) for name in ("a.0", "b.0", "a.1", "a.2")]
    assert parts(chain, "group") == {
        "a": range(0, 1),
        "b": range(1, 2),
        "a.1": range(2, 4),
    }
    with pytest.raises(UserError, match="'stage'"):
        parts(chain, "stage")


def test_parameters_of_a_part():
    model = with_batch_norm()
    modules = ModuleLoss(
        model,
        tf.data.Dataset.from_tensors(
            (np.zeros((2, 8, 8, 1), np.float32), np.zeros((2, 10), np.float32))
        ),
        {"loss": keras.losses.mean_squared_error},
    )
    weights = model.get_weights()
    hidden = parts(modules.chain, "block")["hidden"]
    # Kernel, bias, gamma and beta, without the two statistics.
    np.testing.assert_array_equal(
        np.sort(modules.parameters(hidden, weights)),
        np.sort(np.concatenate([w.ravel() for w in weights[6:10]])),
    )


def test_what_is_not_finite_is_an_error():
    logits = np.array([[np.nan, 0.0], [np.inf, 0.0], [1.0, 0.0], [0.0, 1.0]])
    targets = np.tile([1.0, 0.0], (4, 1))
    np.testing.assert_array_equal(
        module._error(False, targets, tf.constant(logits)), [1, 1, 0, 1]
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Perturbations([0.0, 4.0]), r"in \[0, 3\]. Received: 0 to 4"),
        (Perturbations([-0.1]), "Received: -0.1"),
        (Perturbations([0.0, 1.0], sigma=[0.1]), r"sigma \(1,\)"),
        (Perturbations([0.0, 1.0], seeds=[1]), r"seeds \(1,\)"),
    ],
)
def test_perturbations_must_fit(request_, message):
    with pytest.raises(UserError, match=message):
        request_.expand(NUM_VECTORS)


def test_models_must_fit(dataset):
    modules = examples_modules(fixup(), dataset.examples)
    with pytest.raises(UserError, match="vector 0 does not fit"):
        modules.evaluate(
            [fixup(3).get_weights()], 0, {range(1): Perturbations([0.0])}
        )
    with pytest.raises(UserError, match="3 logits.*10 classes"):
        examples_modules(fixup(3), dataset.examples)


def test_a_loss_of_ones_own():
    """The engine does not know what a loss is."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="d")])
    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    batches = tf.data.Dataset.from_tensors((x, np.zeros((2, 1), np.float32)))
    modules = ModuleLoss(
        model, batches, {"sum": lambda t, y: y[:, 0] - t[:, 0]}
    )
    stored = [[np.ones((2, 1)), np.zeros(1)], [np.ones((2, 1)), np.ones(1)]]
    found = modules.evaluate(stored, 0, {range(1): Perturbations([0.5])})
    np.testing.assert_allclose(found[range(1)]["sum"], [(3 + 7) / 2 + 0.5])


def test_a_surface_of_one_module_agrees():
    """For a network of one module, modules are the loss surface."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, name="d")])
    rng = np.random.default_rng(0)
    batches = tf.data.Dataset.from_tensors(
        (rng.normal(size=(5, 2)).astype("f4"), np.zeros((5, 3), np.float32))
    )
    means = {"loss": keras.losses.mean_squared_error}
    stored = [[rng.normal(size=(2, 3)), rng.normal(size=3)] for _ in range(2)]
    found = ModuleLoss(model, batches, means).evaluate(
        stored, 0, {range(1): Perturbations([0.25, 0.5], [0.3, 0.2], [1, 2])}
    )
    expected = LossSurface(model, stored, batches, means).evaluate(
        Points([[0.75, 0.25], [0.5, 0.5]], [0.3, 0.2], [1, 2])
    )
    np.testing.assert_allclose(
        found[range(1)]["loss"], expected["loss"], rtol=1e-5
    )
