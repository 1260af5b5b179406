import numpy as np
import pandas
import pytest
import written_runs
from scipy import stats
from scipy.spatial import distance

from keras_transfer.analysis import (
    Output,
    Subjects,
    barrier_height,
    interpolation,
    plane,
)
from keras_transfer.analysis.interpolation import (
    alpha_grid,
    barriers,
    mean_barriers,
    segment,
)
from keras_transfer.analysis.plane import (
    plane_coefficients,
    plane_coordinates,
)
from keras_transfer.analysis.statistics import mean_over_pairs
from keras_transfer.errors import UserError


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    subjects = written_runs.write_subjects(directory)
    written_runs.write_run(
        directory / "pt2", subjects.dataset, seed=2, start_seed=7
    )
    runs = written_runs.named(directory)
    return Subjects(runs={**runs, "P-T": [*runs["P-T"], directory / "pt2"]})


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


def test_interval_over_pairs_is_students():
    """For pair values (x_i + x_j) / 2 it must be that of the mean of x."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=6)
    names = np.array(list("abcdef"))
    i, j = np.triu_indices(6, 1)
    found = mean_over_pairs(names[i], names[j], (x[i] + x[j]) / 2, 0.9)
    expected = stats.t.interval(0.9, 5, np.mean(x), stats.sem(x))
    np.testing.assert_allclose(found, [np.mean(x), *expected])
    # Two kinds: Var(mean x - mean y) = Var(x) / n + Var(y) / m.
    y = rng.normal(size=4)
    i, j = (a.ravel() for a in np.indices((6, 4)))
    mean, low, high = mean_over_pairs(
        names[i], np.array(list("stuv"))[j], x[i] - y[j]
    )
    error = np.hypot(stats.sem(x), stats.sem(y))
    half = stats.t.ppf(0.975, 3) * error
    np.testing.assert_allclose(mean, np.mean(x) - np.mean(y))
    np.testing.assert_allclose([low, high], [mean - half, mean + half])
    mean, low, high = mean_over_pairs(["a"], ["b"], [0.5])
    assert mean == 0.5 and np.isnan([low, high]).all()


def loss_and_accuracy(model, dataset):
    images, targets, weights = next(iter(dataset.eval_batches(batch_size=797)))
    assert np.all(weights == 1)
    logits = model(images, training=False).numpy().astype(np.float64)
    logs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    right = logits.argmax(1) == targets.numpy().argmax(1)
    return -np.mean(np.sum(targets * logs, axis=1)), np.mean(right)


def test_interpolation_of_all_pairs(subjects, tmp_path):
    table = interpolation(subjects, Output(tmp_path), num_points=9)
    assert list(table.columns) == [
        *("pair", "first", "second", "split", "alpha", "loss", "accuracy")
    ]
    assert len(table) == 10 * 2 * 9
    counts = table[table.split == "test"].pair.value_counts() // 9
    assert counts.to_dict() == {"P-T/P-T": 3, "P-T/RI-T": 6, "RI-T/RI-T": 1}
    rows = table[
        (table["first"] == "pt1")
        & (table["second"] == "rit0")
        & (table.split == "test")
    ].set_index("alpha")
    first, second = subjects.of_kind("P-T")[1], subjects.of_kind("RI-T")[0]
    model = written_runs.build(10, (8, 8, 1))
    for alpha in (-0.5, 0.0, 0.5, 1.0):
        a, b = subjects.weights(first), subjects.weights(second)
        model.set_weights(
            [(1 - alpha) * x + alpha * y for x, y in zip(a, b, strict=True)]
        )
        loss, accuracy = loss_and_accuracy(model, subjects.dataset)
        row = rows.loc[rows.index[np.argmin(np.abs(rows.index - alpha))]]
        assert row.name == pytest.approx(alpha)
        assert row.loss == pytest.approx(loss, rel=1e-4)
        assert row.accuracy == pytest.approx(accuracy, abs=1.5 / 797)
    for name in ("interpolation", "interpolation_barriers"):
        assert len(pandas.read_csv(tmp_path / f"{name}.csv"))
    for suffix in ("png", "svg"):
        assert (tmp_path / f"interpolation.{suffix}").stat().st_size > 1000


def test_barriers_and_their_means():
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
    summary = mean_barriers(heights).set_index("pair")
    assert summary.loc["P-T/RI-T", "mean"] == pytest.approx(0.25)
    assert summary.loc["P-T/RI-T", "worst"] == pytest.approx(0.5)
    assert list(summary.pairs) == [1, 2]


def test_plane_keeps_distances():
    vectors = np.random.default_rng(0).normal(size=(3, 20))
    relative = vectors - vectors[0]
    coordinates = plane_coordinates(relative @ relative.T)
    np.testing.assert_allclose(
        distance.pdist(coordinates), distance.pdist(vectors)
    )
    positions = np.random.default_rng(1).normal(size=(5, 2)) * 5
    coefficients = plane_coefficients(positions, coordinates)
    np.testing.assert_allclose(coefficients.sum(axis=1), 1)
    np.testing.assert_allclose(coefficients @ coordinates, positions)
    np.testing.assert_allclose(
        distance.pdist(coefficients @ vectors), distance.pdist(positions)
    )
    np.testing.assert_allclose(
        plane_coefficients(coordinates, coordinates), np.eye(3), atol=1e-12
    )


def test_plane_of_three(subjects, tmp_path):
    table = plane(subjects, Output(tmp_path), num_points=3)
    # There are only two RI-Ts.
    assert list(table.kind.unique()) == ["P-T"] and len(table) == 9 + 3
    for row in table[
        table.solution.notna() & (table.solution != "")
    ].itertuples():
        subject = next(s for s in subjects if s.name == row.solution)
        loss, _ = loss_and_accuracy(subjects.model(subject), subjects.dataset)
        assert row.loss == pytest.approx(loss, rel=1e-5)
    assert (tmp_path / "plane_P-T.png").exists()


def test_one_model_is_not_enough(subjects, tmp_path):
    alone = Subjects(runs={"P-T": [str(subjects.of_kind("P-T")[0].run.path)]})
    with pytest.raises(UserError, match="at least two"):
        interpolation(alone, Output(tmp_path))
