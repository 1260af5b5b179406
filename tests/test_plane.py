import gin
import numpy as np
import pandas
import pytest
import small_models
import written_runs
from commands import ROOT
from scipy.spatial import distance

from keras_transfer import Models, plane
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.analysis.plane import (
    plane_coefficients,
    plane_coordinates,
    through_solutions,
)


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


def check_solutions(models, table, images, labels):
    """Asserts that the three solutions have their own losses."""
    solutions = table[table.solution != ""]
    assert len(solutions) == 3
    for row in solutions.itertuples():
        member = next(m for m in models if m.name == row.solution)
        loss, _ = small_models.loss_and_accuracy(
            models.model(member)(images, training=False), labels
        )
        assert row.loss == pytest.approx(loss, rel=1e-5)


def test_plane_of_three(models):
    table = plane(models, num_points=3)
    # There are only two RI-Ts.
    assert list(table.kind.unique()) == ["P-T"] and len(table) == 9 + 3
    split = models.examples.split("test")
    images, _, _ = next(iter(split.batches(len(split))))
    check_solutions(models, table, images, split.labels)
    assert list(small_models.figures("plane", table)) == ["plane_P-T"]


@pytest.mark.parametrize("recorded", [False, True])
def test_models_in_memory(recorded):
    make = small_models.train if recorded else small_models.build
    models = Models(
        {"P-T": [make(seed) for seed in range(3)]},
        data=small_models.examples(),
    )
    table = plane(models, num_points=2, split="train", margin=0.0)
    (images, labels), _ = small_models.digits()
    check_solutions(models, table, images, labels)
    # The first two are corners of the grid; x is the distance of the first two.
    weights = [
        np.concatenate([np.ravel(w) for w in models.weights(m)]) for m in models
    ]
    x = table.x[table.solution == "P-T 1"].item()
    assert x == pytest.approx(np.linalg.norm(weights[1] - weights[0]), rel=1e-5)


def test_the_figure_passes_through_its_solutions(tmp_path):
    """Also where they lie off the grid, as a table that was read back."""
    x, y = np.meshgrid(np.linspace(-1, 5, 4), np.linspace(-2, 4, 3))
    table = pandas.DataFrame(
        {
            "kind": "RI-T",
            "split": "test",
            "x": [*x.ravel(), 0.0, 3.3, 1.7],
            "y": [*y.ravel(), 0.0, 0.0, 2.9],
            "solution": [""] * 12 + ["a", "b", "c"],
            "loss": [2.0] * 12 + [0.1, 0.2, 0.3],
            "accuracy": [0.4] * 12 + [0.91, 0.87, 0.9],
        }
    )
    table.to_csv(tmp_path / "plane.csv", index=False)
    for rows in (table, pandas.read_csv(tmp_path / "plane.csv")):
        across, up, accuracy = through_solutions(rows, rows.accuracy)
        for row in rows[-3:].itertuples():
            i, j = list(up).index(row.y), list(across).index(row.x)
            assert accuracy[i, j] == pytest.approx(row.accuracy)
        # Between what was measured it is linear: 0.4 all along an edge.
        np.testing.assert_allclose(accuracy[0], 0.4)
        (figure,) = small_models.figures("plane", rows).values()
        shown = {t.get_text() for axes in figure.axes for t in axes.texts}
        assert {"a: 0.91", "b: 0.87", "c: 0.9", "a: 0.1"} <= shown
    # Three on one line span no plane.
    assert not small_models.figures("plane", table.assign(y=np.nan))


def test_too_few(capsys):
    table = plane(small_models.plain())
    assert not len(table) and "no kind has three" in capsys.readouterr().out
    assert not small_models.figures("plane", table)


def test_cost():
    assert find_analysis("plane").cost({"num_points": 5}, 9) == 2 * 25


def test_gin_file(models, tmp_path):
    named = {"P-T": [str(m.source.path) for m in models.of_kind("P-T")]}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "plane.gin")],
        [f"Models.models = {named}", "plane.num_points = 2"],
    )
    analyze(tmp_path)
    assert len(pandas.read_csv(tmp_path / "plane.csv")) == 4 + 3
    for suffix in ("png", "svg"):
        assert (tmp_path / f"plane_P-T.{suffix}").stat().st_size > 1000
