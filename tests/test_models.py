import importlib
import pathlib
import sys

import keras
import numpy as np
import pytest

import keras_transfer as kt
from keras_transfer import data
from keras_transfer.errors import UserError

layers = keras.layers


def network(seed=0, num_classes=3):
    """A network whose batch normalization matters."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(num_classes)(x))
    rng = np.random.default_rng(seed)
    norm = model.layers[2]
    # Statistics that fit no data.
    norm.moving_mean.assign(rng.normal(0, 2, 4))
    norm.moving_variance.assign(rng.uniform(5, 50, 4))
    return model


def arrays(count, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.normal(size=(count, 4, 4, 1)) + labels[:, None, None, None]
    return images.astype(np.float32), labels


@pytest.fixture(scope="module")
def examples():
    return data.Examples(train=arrays(60, 0), test=arrays(30, 1))


def accuracies(models):
    """What several analyses say of one model's test accuracy."""
    first, second = list(models)
    labels = models.examples.split("test").labels
    line = kt.interpolation(models, num_points=2, extent=(0, 1))
    ends = line[(line.split == "test") & (line.alpha == 0)].accuracy
    mistakes = kt.mistakes(models)
    overall = mistakes[mistakes["class"] == "all"].iloc[0]
    wrong = overall.only_first_wrong + overall.both_wrong_same
    wrong += overall.both_wrong_different
    average = kt.averaging(models)
    member = average[
        (average.model == "member")
        & (average.members == first.name)
        & (average.examples == "all")
    ].accuracy
    logits = models.logits(first)
    assert second.name != first.name
    return {
        "logits": np.mean(logits.argmax(1) == labels),
        "interpolation": ends.iloc[0],
        "mistakes": 1 - wrong / overall.decisions,
        "averaging": member.iloc[0],
    }


@pytest.mark.parametrize("batch_norm", ["reestimate", "stored"])
def test_one_policy_for_batch_normalization(examples, batch_norm):
    """Every analysis gives one model one accuracy, that of the policy."""
    nets = [network(0), network(1)]
    before = [net.get_weights() for net in nets]
    models = kt.Models({"P-T": nets}, examples, batch_norm=batch_norm)
    found = accuracies(models)
    np.testing.assert_allclose(list(found.values()), found["logits"], atol=1e-6)
    images, _ = arrays(30, 1)
    logits = models.logits(next(iter(models)))
    as_stored = np.allclose(logits, nets[0](images), atol=1e-5)
    assert as_stored == (batch_norm == "stored")
    # The models stay the user's own.
    for net, weights in zip(nets, before, strict=True):
        for a, b in zip(net.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_statistics_are_those_of_the_training_images(examples):
    """Against NumPy: one batch, so its own mean and variance."""
    net = network()
    models = kt.Models({"P-T": [net, network(1)]}, examples)
    member = next(iter(models))
    images, _ = arrays(60, 0)
    x = keras.ops.conv(
        images, net.layers[1].kernel, padding="same"
    ).numpy() + np.asarray(net.layers[1].bias)
    mean, variance = models.weights(member)[4:6]
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(variance, x.var((0, 1, 2)), rtol=1e-4)


def test_the_policy_is_named_in_every_table(examples):
    for batch_norm in ("reestimate", "stored"):
        models = kt.Models(
            {"P-T": [network(0), network(1)]}, examples, batch_norm=batch_norm
        )
        for function in (kt.mistakes, kt.distance, kt.similarity):
            assert set(function(models).batch_norm) == {batch_norm}
    plain = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten()])
    plain.add(layers.Dense(3))
    models = kt.Models(
        {"A": plain, "B": keras.models.clone_model(plain)}, examples
    )
    assert set(kt.mistakes(models).batch_norm) == {"none"}


def test_without_training_images_there_is_a_sentence():
    examples = data.Examples(test=arrays(30, 1))
    models = kt.Models({"P-T": [network(0), network(1)]}, examples)
    with pytest.raises(UserError, match='batch_norm="stored"'):
        kt.mistakes(models)


def test_a_softmax_at_the_end_changes_nothing(examples):
    """Loss, barrier and basin are those of the linear twin."""
    nets = [network(0), network(1)]
    twins = [
        keras.Model(net.inputs, layers.Softmax()(net.outputs[0]))
        for net in nets
    ]
    tables = [
        kt.interpolation(
            kt.Models({"P-T": pair}, examples), num_points=5, extent=(0, 1)
        )
        for pair in (nets, twins)
    ]
    np.testing.assert_allclose(tables[0].loss, tables[1].loss, rtol=1e-5)


def test_models_from_files_runs_and_memory(tmp_path, examples):
    net = network()
    net.save(tmp_path / "a.keras")
    models = kt.Models({"X": [tmp_path / "a.keras", net]}, examples)
    assert [m.name for m in models] == ["a.keras", "X 0"]
    total = kt.distance(models).query("module == 'total'").l2
    assert total.iloc[0] == 0


def test_a_trajectory_is_recorded_in_fit(examples):
    net = network()
    net.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(True),
        metrics=["accuracy"],
    )
    trajectory = kt.Trajectory(epochs=[1])
    start = net.get_weights()
    net.fit(
        *arrays(60, 0),
        validation_data=arrays(30, 1),
        epochs=3,
        verbose=0,
        callbacks=[trajectory],
    )
    assert trajectory.epochs() == [0, 1, 3]
    metric, curve = trajectory.learning_curve()
    assert metric == "accuracy" and list(curve.index) == [1, 2, 3]
    for a, b in zip(trajectory.load_model(0).get_weights(), start, strict=True):
        np.testing.assert_array_equal(a, b)
    models = kt.Models({"RI-T": trajectory}, examples, batch_norm="stored")
    member = next(iter(models))
    assert member.epoch == 3 and models.has_start(member)
    rewound = kt.rewinding(models, epochs=(0, 1), splits=("test",))
    assert set(rewound.epoch) == {0, 1}
    with pytest.raises(UserError, match="epochs 0, 1, 3. Received: epoch 2"):
        trajectory.resolve_epoch(2)


def test_a_trajectory_that_recorded_nothing_is_a_sentence(examples):
    with pytest.raises(UserError, match="callbacks"):
        kt.Models({"RI-T": kt.Trajectory()}, examples)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "by their kind"),
        ({"P-T": []}, "by their kind"),
        ([network], "by their kind"),
        ({"a/b": [1]}, "without a slash"),
        ({"P-T": [3]}, "keras.Model"),
        ({"P-T": ["nowhere"]}, "nowhere is not a run directory"),
        ({"P-T": ["nowhere.keras"]}, "no file"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(examples, models, message):
    with pytest.raises(UserError, match=message):
        kt.Models(models, examples)


def test_models_are_named_once_and_need_data(examples):
    net = network()
    with pytest.raises(UserError, match="named once"):
        kt.Models({"P-T": [net, net]}, examples)
    with pytest.raises(UserError, match="Examples"):
        kt.mistakes(kt.Models({"P-T": [net, network(1)]}))
    with pytest.raises(UserError, match="data=3"):
        kt.Models({"P-T": net}, 3)
    with pytest.raises(UserError, match="takes Models"):
        kt.interpolation({"P-T": net})


def test_models_that_look_back_need_a_history(examples):
    models = kt.Models({"P-T": [network(0), network(1)]}, examples)
    with pytest.raises(UserError, match="no epochs"):
        kt.rewinding(models)
    with pytest.raises(UserError, match="no epochs"):
        kt.criticality(models, positions=(0, 1), sigmas=(0.1, 0.2))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(keras.ops.reshape(x, (-1, 16)))


def test_subclassed_models_and_several_inputs_are_a_sentence(examples):
    subclassed = [Subclassed(), Subclassed()]
    for net in subclassed:
        net(np.zeros((1, 4, 4, 1), np.float32))
    with pytest.raises(UserError, match="keras.Model"):
        kt.mistakes(kt.Models({"P-T": subclassed}, examples))
    inputs = [keras.Input((4, 4, 1)), keras.Input((4, 4, 1))]
    x = layers.Flatten()(layers.Add()(inputs))
    nets = [keras.Model(inputs, layers.Dense(3)(x)) for _ in range(2)]
    with pytest.raises(UserError, match="2 inputs"):
        kt.mistakes(kt.Models({"P-T": nets}, examples))


def test_what_the_package_exports_is_there():
    for name in kt.__all__:
        assert getattr(kt, name) is not None, name
    assert kt.__version__
    # No module is hidden behind a function of its name.
    root = pathlib.Path(kt.__file__).parent
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] in ("__init__", "all"):
            continue
        name = ".".join([kt.__name__, *parts])
        module = importlib.import_module(name)
        package, _, last = name.rpartition(".")
        assert getattr(sys.modules[package], last) is module, name


def test_figures_are_drawn_from_tables(examples):
    models = kt.Models({"P-T": [network(0), network(1)]}, examples)
    table = kt.interpolation(models, num_points=3, extent=(0, 1))
    figure = kt.figures.interpolation(table)
    assert len(figure.axes) >= 2
    assert "similarity_matrix" in dir(kt.figures)
    with pytest.raises(AttributeError, match="There are: "):
        kt.figures.nothing  # noqa: B018
