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
    # As published, 50 points from end to end; half as far again on both sides.
    inside = alphas[(alphas >= 0) & (alphas <= 1)]
    np.testing.assert_allclose(inside, np.linspace(0, 1, 50), atol=1e-15)
    np.testing.assert_allclose(np.diff(alphas), 1 / 49)
    assert (alphas[0], alphas[-1]) == pytest.approx((-24 / 49, 73 / 49))
    np.testing.assert_allclose(
        alpha_grid(11, (0, 1)), np.linspace(0, 1, 11), atol=1e-15
    )
    # Where the extent is a whole number of steps, it is reached.
    np.testing.assert_allclose(
        alpha_grid(11, (-0.3, 2.7)), np.arange(-3, 28) / 10, atol=1e-15
    )
    for num_points in range(2, 60):
        grid = alpha_grid(num_points, (-0.3, 2.0))
        assert np.sum((grid >= 0) & (grid <= 1)) == num_points
        assert 0.0 in grid and 1.0 in grid and np.all(np.diff(grid) > 0)
        step = 1 / (num_points - 1)
        np.testing.assert_allclose(np.diff(grid), step)
        assert -0.3 - 1e-9 <= grid[0] < -0.3 + step
        assert 2.0 - step < grid[-1] <= 2.0 + 1e-9
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
    # Of what has no value nothing is known; an infinite loss is a barrier.
    unknown = np.where(alphas == 0.5, np.nan, hill)
    assert np.isnan(barrier_height(alphas, unknown, True))
    assert barrier_height([0, 0.5, 1], [1, np.inf, 1], False) == np.inf
    outside = np.where(alphas < 0, np.nan, hill)
    assert barrier_height(alphas, outside, False) == pytest.approx(0.7)
    with pytest.raises(UserError, match="hold 0 and 1"):
        barrier_height([0, 0.5], [1, 1], True)


def test_segment():
    points = segment([0.0, 1.0, 1.5], 2, 0, 3).coefficients
    np.testing.assert_array_equal(
        points, [[0, 0, 1], [1, 0, 0], [1.5, 0, -0.5]]
    )


def test_interpolation_of_all_pairs(models):
    table = interpolation(models, num_points=5)
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
    summary = table.further["interpolation_summary"]
    assert len(summary) == 3 * 2 * 2
    row = summary[
        (summary.pair == "P-T/RI-T")
        & (summary.split == "test")
        & (summary.measure == "loss")
    ].iloc[0]
    own = heights[
        (heights.pair == "P-T/RI-T")
        & (heights.split == "test")
        & (heights.measure == "loss")
    ].height
    assert row.pairs == 6
    assert row["mean"] == pytest.approx(np.mean(own))
    assert (row.least, row.greatest) == (own.min(), own.max())
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


def lines(dips, split="test"):
    """Returns a table of lines, {(pair, first, second): dip in accuracy}."""
    return pandas.DataFrame(
        [
            {"pair": pair, "first": first, "second": second, "alpha": alpha}
            | {"split": split, "loss": 1.0}
            | {"accuracy": 0.9 - (dip if alpha == 0.5 else 0)}
            for (pair, first, second), dip in dips.items()
            for alpha in (0.0, 0.5, 1.0)
        ]
    )


DIPS = {
    ("P-T/P-T", "a", "b"): 0.01,
    ("P-T/RI-T", "a", "c"): 0.5,
    ("RI-T/P-T", "c", "b"): 0.7,
    ("RI-T/RI-T", "c", "d"): 0.3,
}


def test_claims():
    """The mean over the pairs of a kind, of test images."""
    found = find_analysis("interpolation").statistics
    assert [(s.claim, s.direction, s.threshold) for s in found] == [
        ("C6", "<", 0.05),
        ("C6", ">", 0.05),
        ("C6", ">", 0.05),
    ]
    assert all(s.decides for s in found)
    train = lines(dict.fromkeys(DIPS, 0.2), "train")
    table = pandas.concat([train, lines(DIPS)])
    values = [s.compute(table) for s in found]
    np.testing.assert_allclose(values, [0.01, 0.6, 0.3])
    # Nothing is made of pairs that there are not.
    same, *others = found
    alone = lines({key: DIPS[key] for key in list(DIPS)[:1]})
    assert same.compute(alone) == pytest.approx(0.01)
    for other in others:
        with pytest.raises(UserError, match="Received: P-T/P-T on test"):
            other.compute(alone)
    with pytest.raises(UserError, match="on train images"):
        same.compute(train)
    unknown = lines(DIPS | {("RI-T/RI-T", "c", "d"): np.nan})
    assert same.compute(unknown) == pytest.approx(0.01)
    with pytest.raises(UserError, match="such between c and d"):
        others[1].compute(unknown)


def test_best_and_last(models):
    """As the paper pairs them for CheXpert."""
    for i, member in enumerate(models):
        run = member.source
        run.write_best(0 if i % 2 else 2, "accuracy", 0.5)
    table = interpolation(
        models, 2, (0.0, 1.0), ("test",), epochs=("last", "best")
    )
    counts = (table.groupby("epochs", sort=False).size() // 2).to_dict()
    # Two of the five models are the best at epoch 0, not at the last, 2.
    assert counts == {"last-last": 10, "best-best": 10, "last-best": 2}
    own = table[table.epochs == "last-best"]
    assert list(own["first"]) == list(own["second"])
    single = {
        name: interpolation(
            Models(runs_of(models), epoch=name),
            2,
            (0.0, 1.0),
            ("test",),
        )
        for name in ("last", "best")
    }
    for name, expected in single.items():
        found = table[table.epochs == f"{name}-{name}"]
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
        assert list(found["first"]) == list(expected["first"])
    last, best = (
        table[table.epochs == f"{name}-{name}"] for name in ("last", "best")
    )
    for row in own.itertuples():
        ends = last if row.alpha == 0 else best
        expected = ends[(ends["first"] == row.first) & (ends.alpha == 0)]
        assert row.loss == pytest.approx(expected.loss.iloc[0], rel=1e-5)
    heights = table.further["interpolation_barriers"]
    assert len(heights) == 22 * 2
    same = find_analysis("interpolation").statistics[0]
    chosen = heights[
        (heights.epochs == "last-last")
        & (heights.pair == "P-T/P-T")
        & (heights.measure == "accuracy")
    ]
    assert same.compute(table) == pytest.approx(chosen.height.mean())
    (legend,) = figures.interpolation(table).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("P-T/P-T", "P-T/RI-T", "RI-T/RI-T"),
        *("last-last", "best-best", "last-best"),
    ]


def runs_of(models):
    kinds = {m.kind: [] for m in models}
    for member in models:
        kinds[member.kind].append(member.source)
    return kinds


def test_cost(models):
    cost = find_analysis("interpolation").cost
    options = {"num_points": 20, "extent": (0.0, 1.0), "splits": ("test",)}
    options["epochs"] = None
    assert cost(options, 4) == 20 * 6
    assert cost(options | {"splits": None}, 4) == 20 * 6 * 2
    # 9 more on either side.
    assert cost(options | {"extent": (-0.5, 1.5)}, 4) == 38 * 6
    both = options | {"epochs": ("last", "best")}
    assert cost(both, 4) == 20 * (6 + 6 + 4)


def test_one_model_is_not_enough(models):
    alone = Models({"P-T": models.of_kind("P-T")[0].source})
    with pytest.raises(UserError, match="needs 2 or more models"):
        interpolation(alone)


def test_gin_file(models, tmp_path):
    named = {"P-T": [str(m.source.path) for m in models.of_kind("P-T")]}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "interpolation.gin")],
        [f"Models.models = {named}", "interpolation.num_points = 8"],
    )
    analyze(tmp_path)
    for name in ("", "_barriers", "_summary"):
        assert len(pandas.read_csv(tmp_path / f"interpolation{name}.csv"))
    for suffix in ("png", "svg"):
        path = tmp_path / f"interpolation.{suffix}"
        assert path.stat().st_size > 1000
