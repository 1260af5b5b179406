import pathlib

import gin
import numpy as np
import pandas
import pytest
import small_models
import written_runs

from keras_transfer import Models, barrier_height, figures, interpolation
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.analysis.interpolation import (
    alpha_grid,
    barriers,
    segment,
)
from keras_transfer.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three P-Ts and two RI-Ts."""
    directory = tmp_path_factory.mktemp("runs")
    written_runs.write_models(directory)
    third = written_runs.write_run(
        directory / "pt2", written_runs.digits(), seed=2, start_seed=7
    )
    runs = written_runs.named(directory)
    return Models({**runs, "P-T": [*runs["P-T"], third]})


def test_alpha_grid_hits_both_ends():
    alphas = alpha_grid()
    assert len(alphas) == 50 and np.all(np.diff(alphas) > 0)
    assert (alphas[0], alphas[-1]) == (-0.5, 1.5)
    assert 0.0 in alphas and 1.0 in alphas
    np.testing.assert_allclose(np.diff(alphas), 0.0408, atol=0.001)
    np.testing.assert_allclose(
        alpha_grid(11, (0, 1)), np.linspace(0, 1, 11), atol=1e-15
    )
    for num_points in range(8, 60):
        grid = alpha_grid(num_points, (-0.3, 2.0))
        assert len(grid) == num_points
        assert 0.0 in grid and 1.0 in grid and np.all(np.diff(grid) > 0)
    with pytest.raises(UserError, match=r"extent=\(0.1, 1\)"):
        alpha_grid(50, (0.1, 1))
    with pytest.raises(UserError, match="num_points=1"):
        alpha_grid(1)


def test_barrier_height_of_a_parabola():
    """Over the line through its ends, 4 h a (1 - a) rises by h."""
    alphas = np.linspace(-0.5, 1.5, 81)
    hill = 0.3 + 0.2 * alphas + 4 * 0.7 * alphas * (1 - alphas)
    assert barrier_height(alphas, hill, False) == pytest.approx(0.7)
    assert barrier_height(alphas, -hill, True) == pytest.approx(0.7)
    # What is better than promised is no barrier, nor is what lies outside.
    assert barrier_height(alphas, hill, True) == 0
    assert barrier_height(alphas, np.abs(alphas - 0.5), False) == 0
    with pytest.raises(UserError, match="hold 0 and 1"):
        barrier_height([0, 0.5], [1, 1], True)


def test_segment():
    points = segment([0.0, 1.0, 1.5], 2, 0, 3).coefficients
    np.testing.assert_array_equal(
        points, [[0, 0, 1], [1, 0, 0], [1.5, 0, -0.5]]
    )


def test_interpolation_of_all_pairs(models):
    table = interpolation(models, num_points=9)
    assert list(table.columns) == [
        *("pair", "first", "second", "split", "alpha", "loss", "accuracy"),
        "batch_norm",
    ]
    assert len(table) == 10 * 2 * 9
    counts = table[table.split == "test"].pair.value_counts() // 9
    assert counts.to_dict() == {"P-T/P-T": 3, "P-T/RI-T": 6, "RI-T/RI-T": 1}
    rows = table[
        (table["first"] == "pt1")
        & (table["second"] == "rit0")
        & (table.split == "test")
    ].set_index("alpha")
    first, second = models.of_kind("P-T")[1], models.of_kind("RI-T")[0]
    model = written_runs.build(10, (8, 8, 1))
    split = models.examples.split("test")
    images, _, _ = next(iter(split.batches(len(split))))
    for alpha in (-0.5, 0.0, 0.5, 1.0):
        a, b = models.weights(first), models.weights(second)
        model.set_weights(
            [(1 - alpha) * x + alpha * y for x, y in zip(a, b, strict=True)]
        )
        loss, accuracy = small_models.loss_and_accuracy(
            model(images, training=False), split.labels
        )
        row = rows.loc[rows.index[np.argmin(np.abs(rows.index - alpha))]]
        assert row.name == pytest.approx(alpha)
        assert row.loss == pytest.approx(loss, rel=1e-4)
        assert row.accuracy == pytest.approx(accuracy, abs=1.5 / 797)
    heights = table.further["interpolation_barriers"]
    assert len(heights) == 10 * 2 * 2
    assert heights.batch_norm.unique() == ["none"]
    assert list(small_models.figures("interpolation", table)) == [
        "interpolation"
    ]


@pytest.mark.parametrize("batch_norm", ["reestimate", "stored"])
def test_models_in_memory(batch_norm):
    """One that ends in a softmax, one that does not; both as they are."""
    built = [
        small_models.build(0, "softmax", batch_norm=True),
        small_models.build(1, "softmax", batch_norm=True),
    ]
    statistics = [m.get_layer("norm").moving_mean.numpy() for m in built]
    models = Models(
        {"P-T": built[0], "RI-T": built[1]},
        data=small_models.examples(),
        batch_norm=batch_norm,
    )
    table = interpolation(models, num_points=3, extent=(0.0, 1.0))
    assert set(table.batch_norm) == {batch_norm}
    assert list(table.split.unique()) == ["test", "train"]
    (train, _), (images, labels) = small_models.digits()
    halfway = small_models.build(2, "softmax", batch_norm=True)
    halfway.set_weights(
        [
            (a + b) / 2
            for a, b in zip(*(m.get_weights() for m in built), strict=True)
        ]
    )
    if batch_norm == "reestimate":
        features = halfway.layers[0](train).numpy()
        norm = halfway.get_layer("norm")
        norm.moving_mean.assign(features.mean((0, 1, 2)))
        norm.moving_variance.assign(features.var((0, 1, 2)))
    probabilities = halfway(images).numpy()
    loss, accuracy = small_models.loss_and_accuracy(
        np.log(probabilities), labels
    )
    row = table[(table.split == "test") & (table.alpha == 0.5)]
    assert row.loss.item() == pytest.approx(loss, rel=1e-4)
    assert row.accuracy.item() == pytest.approx(accuracy, abs=1e-6)
    for model, before in zip(built, statistics, strict=True):
        np.testing.assert_array_equal(
            model.get_layer("norm").moving_mean, before
        )


def test_trainings():
    """A `Trajectory` stands for its last epoch, or the one that is asked for.

    Their layers are numbered differently (dense_1, dense_2): labels only.
    """
    trajectories = [small_models.train(seed) for seed in range(2)]
    _, (images, labels) = small_models.digits()
    for epoch in ("last", 1):
        models = Models(
            {"P-T": trajectories}, data=small_models.examples(), epoch=epoch
        )
        table = interpolation(models, 2, (0.0, 1.0), ("test",))
        for end, trajectory in enumerate(trajectories):
            loss, _ = small_models.loss_and_accuracy(
                trajectory.load_model(epoch)(images), labels
            )
            assert table.loss[end] == pytest.approx(loss, rel=1e-5)
    figure = figures.interpolation(table)
    assert len(figure.axes) == 2


def test_barriers():
    alphas = [0, 0.5, 1]
    accuracy = {("a", "b"): 0.7, ("a", "c"): 0.8, ("b", "c"): 0.3}
    table = pandas.DataFrame(
        [
            (
                "RI-T/P-T" if "c" in pair else "P-T/P-T",
                *pair,
                "test",
                alpha,
                1.0,
                value,
            )
            for pair, middle in accuracy.items()
            for alpha, value in zip(alphas, (0.9, middle, 0.7), strict=True)
        ],
        columns=[
            "pair",
            "first",
            "second",
            "split",
            "alpha",
            "loss",
            "accuracy",
        ],
    )
    heights = barriers(table)
    assert len(heights) == 6
    heights = heights[heights.measure == "accuracy"]
    np.testing.assert_allclose(heights.height, [0.1, 0, 0.5])


def test_claims():
    """Of unlike pairs the kind with the lower mean barrier."""
    names = {"P-T/P-T": "ab", "P-T/RI-T": "ac", "RI-T/RI-T": "cd"}
    dips = {"P-T/P-T": 0.01, "P-T/RI-T": 0.5, "RI-T/RI-T": 0.3}
    table = pandas.DataFrame(
        [
            {"pair": pair, "first": first, "second": second, "alpha": alpha}
            | {"split": "test", "loss": 1.0}
            | {"accuracy": 0.9 - (dips[pair] if alpha == 0.5 else 0)}
            for pair, (first, second) in names.items()
            for alpha in (0.0, 0.5, 1.0)
        ]
    )
    same, other = find_analysis("interpolation").statistics
    assert same.compute(table)[0] == pytest.approx(0.01)
    assert other.compute(table)[0] == pytest.approx(0.3)
    # Nothing is made of pairs that there are not.
    assert np.isnan(other.compute(table[table.pair == "P-T/P-T"])[0])


def test_cost():
    options = {"num_points": 20, "splits": ("test",)}
    assert find_analysis("interpolation").cost(options, 4) == 20 * 6
    options = {"num_points": 20, "splits": None}
    assert find_analysis("interpolation").cost(options, 4) == 20 * 6 * 2


def test_one_model_is_not_enough(models):
    alone = Models({"P-T": models.of_kind("P-T")[0].source})
    with pytest.raises(UserError, match="needs 2 or more models"):
        interpolation(alone)


def test_gin_file(models, tmp_path):
    named = {"P-T": [str(m.source.path) for m in models.of_kind("P-T")]}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "interpolation.gin")],
        [
            f"Models.models = {named}",
            "interpolation.num_points = 8",
            "plane.num_points = 2",
        ],
    )
    analyze(tmp_path)
    for name in ("interpolation", "interpolation_barriers", "plane"):
        assert len(pandas.read_csv(tmp_path / f"{name}.csv"))
    for name in ("interpolation", "plane_P-T"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert (tmp_path / f"{name}.svg").stat().st_size > 1000
