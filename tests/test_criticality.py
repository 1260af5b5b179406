import itertools
import pathlib

import gin
import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
import written_runs
from scipy import optimize, stats

from keras_transfer.analysis import (
    Output,
    Subjects,
    Suffixes,
    analyze,
    criticality,
    module_criticality,
)
from keras_transfer.analysis.criticality import (
    depth_correlation,
    head_rank,
    path_agreement,
    run_paths,
    smallest,
)
from keras_transfer.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
GRID = {
    "positions": (0.0, 0.5, 1.0),
    "sigmas": (0.05, 0.2, 1.0),
    "num_draws": 2,
    "refinements": 1,
}


class Linear:
    """y = x A B with loss ||y - t||^2, whose expectations are known.

    With noise of variance s^2 on A the loss grows by s^2 |x|^2 |B|^2, and with
    noise on B by s^2 |x A|^2 times the number of outputs.
    """

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(40, 3))
        self.start, self.end = (
            [rng.normal(size=(3, 5)) * scale, rng.normal(size=(5, 2)) * scale]
            for scale in (0.4, 0.8)
        )
        self.middle = [rng.normal(size=w.shape) for w in self.end]
        self.targets = self.x @ self.end[0] @ self.end[1]
        self.targets += rng.normal(size=self.targets.shape) * 0.3
        model = keras.Sequential([keras.Input((3,))])
        for name, width in (("a", 5), ("b", 2)):
            model.add(keras.layers.Dense(width, use_bias=False, name=name))
        batches = tf.data.Dataset.from_tensor_slices(
            (self.x.astype("f4"), self.targets.astype("f4"))
        ).batch(16)

        def loss(targets, outputs):
            return tf.reduce_sum(tf.square(outputs - targets), axis=-1)

        self.suffixes = Suffixes(model, batches, {"error": loss})

    def weights(self, module, corners, a):
        """Returns the weights at position a of one module on a polyline."""
        at = a * (len(corners) - 1)
        k = min(int(at), len(corners) - 2)
        first, second = corners[k][module], corners[k + 1][module]
        return first + (at - k) * (second - first)

    def mean_loss(self, module, corners, a, sigma):
        parts = list(self.end)
        parts[module] = self.weights(module, corners, a)
        outputs = self.x @ parts[0] @ parts[1]
        loss = np.mean(np.sum((outputs - self.targets) ** 2, axis=1))
        if module == 0:
            slope = np.mean(np.sum(self.x**2, 1)) * np.sum(self.end[1] ** 2)
        else:
            slope = 2 * np.mean(np.sum((self.x @ self.end[0]) ** 2, 1))
        return loss + sigma**2 * slope

    def distance(self, module, corners, a):
        return np.linalg.norm(
            self.weights(module, corners, a) - corners[0][module]
        )

    def smallest(self, module, corners, epsilon):
        """Returns criticality over all a and sigma, to 4 digits."""

        def ratio(a):
            room = epsilon - self.mean_loss(module, corners, a, 0)
            slope = self.mean_loss(module, corners, a, 1) - epsilon + room
            variance = min(1.0, room / slope)
            if variance <= 0:
                return np.inf
            return self.distance(module, corners, a) ** 2 / variance

        grid = np.linspace(0, 1, 2001)
        best = grid[np.argmin([ratio(a) for a in grid])]
        return optimize.minimize_scalar(
            ratio, bounds=(best - 1e-3, min(1, best + 1e-3)), method="bounded"
        ).fun


@pytest.fixture(scope="module")
def linear():
    return Linear()


@pytest.fixture(scope="module")
def measured(linear):
    """Two paths of the linear network: table, grid, corners, epsilon."""
    paths = {
        "direct": [linear.start, linear.end],
        "optimization": [linear.start, linear.middle, linear.end],
    }
    table, grid = module_criticality(
        linear.suffixes,
        paths,
        ("block",),
        np.linspace(0, 1, 11),
        np.geomspace(0.01, 1, 9),
        num_draws=32,
        refinements=3,
        margin=1.0,
    )
    return table, grid, paths


def test_errors_are_those_of_the_closed_form(linear, measured):
    _, grid, paths = measured
    for row in grid.itertuples():
        corners, module = paths[row.path], int(row.depth)
        expected = linear.mean_loss(module, corners, row.a, row.sigma)
        # With 31 degrees of freedom, 5 is seen once in 50,000.
        assert abs(row.error - expected) <= 5 * row.standard_error + 1e-4
        assert row.distance == pytest.approx(
            linear.distance(module, corners, row.a), abs=1e-5
        )
    noisy = grid[grid.sigma > 0]
    assert len(noisy[noisy.refinement == 0]) == 2 * 2 * 11 * 9
    assert set(grid.refinement) == {0, 1, 2, 3}
    assert (noisy.standard_error > 0).all()


def test_criticality_agrees_with_the_closed_form(linear, measured):
    table, grid, paths = measured
    end_loss = linear.mean_loss(0, paths["direct"], 1, 0)
    modules = table[table.module != "total"]
    assert list(modules.module) == ["a", "b", "a", "b"]
    for row in modules.itertuples():
        assert row.epsilon == pytest.approx(end_loss + 1, rel=1e-5)
        module, corners = int(row.depth), paths[row.path]
        own = grid[(grid.path == row.path) & (grid.module == row.module)]
        own = own[own.sigma > 0]
        # On the very points that were evaluated.
        losses = np.array(
            [
                linear.mean_loss(module, corners, a, sigma)
                for a, sigma in zip(own.a, own.sigma, strict=True)
            ]
        )
        ratios = (own.distance / own.sigma)[losses <= row.epsilon] ** 2
        assert row.low <= ratios.min() <= row.high
        assert row.high / row.low < 3
        assert row.low <= row.mu <= row.high and row.status == "finite"
        assert row.mu == pytest.approx((row.distance / row.sigma) ** 2)
        # Over all points, to which the refined grid comes close.
        exact = linear.smallest(module, corners, row.epsilon)
        assert row.low / 1.15 <= exact <= row.high
    total = table[table.module == "total"].set_index("path").mu
    for path, rows in modules.groupby("path"):
        assert total[path] == pytest.approx(rows.mu.sum())


def test_common_random_numbers(linear):
    """The same draws at all points: noise scaled by s adds s^2 as much."""
    _, grid = module_criticality(
        linear.suffixes,
        {"direct": [linear.end, linear.end]},
        ("block",),
        (0.0, 1.0),
        (0.1, 0.2, 0.4),
        num_draws=2,
        refinements=0,
        margin=1.0,
        seed=3,
    )
    own = grid[(grid.module == "b") & (grid.a == 1)].set_index("sigma")
    # Quadratic in s for each draw, so for their mean: three points tell all.
    added = own.error - own.error[0.0]
    quadratic = np.polyfit(added.index[:3], added.iloc[:3], 2)
    assert np.polyval(quadratic, 0.4) == pytest.approx(added[0.4], rel=1e-3)
    assert (grid[grid.a == 0].error.values == grid[grid.a == 1].error).all()


def grid_of(rows):
    return pandas.DataFrame(
        rows, columns=["a", "sigma", "distance", "error", "standard_error"]
    )


LADDER = [
    (a, sigma, 2.0 * a)
    for a in (0.0, 0.5, 1.0)
    for sigma in (0.0, 0.1, 0.2, 0.4)
]


@pytest.mark.parametrize(
    ("allowed", "mu", "status", "at_most"),
    [
        # The largest sigma at which error is low, by position.
        ((-1, 0.1, 0.2), np.nan, "unbounded", 100.0),
        ((-1, -1, 0.2), 100.0, "finite", 100.0),
        ((-1, 0.0, 0.2), 100.0, "finite", 100.0),
        ((-1, 0.0, 0.1), np.nan, "unbounded", 400.0),
        ((-1, 0.0, 0.4), np.nan, "unbounded", 25.0),
        ((-1, 0.0, 0.0), np.nan, "infeasible", np.nan),
        ((0.1, 0.2, 0.2), 0.0, "finite", 0.0),
        ((0.0, 0.2, 0.2), 25.0, "finite", 25.0),
    ],
)
def test_status(allowed, mu, status, at_most):
    largest = dict(zip((0.0, 0.5, 1.0), allowed, strict=True))
    grid = grid_of(
        [(*p, 0.1 if p[1] <= largest[p[0]] else 0.5, 0.0) for p in LADDER]
    )
    if allowed == (-1, 0.1, 0.2):
        # (0.5, 0.1) and (1, 0.2) are equal; the one with more noise counts.
        mu, status = 100.0, "finite"
    found = smallest(grid, 0.1)
    assert found["status"] == status
    for name, expected in (("mu", mu), ("at_most", at_most)):
        np.testing.assert_equal(found[name], expected)
    np.testing.assert_equal(found["low"], mu)


def test_the_definition_bounds_sigma_by_one():
    grid = grid_of([(1.0, s, 2.0, 0.0, 0.0) for s in (0.25, 0.5, 1.0)])
    assert smallest(grid, 0.1) == {
        **dict.fromkeys(("mu", "low", "high", "at_most"), 4.0),
        **{"status": "finite", "a": 1.0, "sigma": 1.0},
        **{"distance": 2.0, "epsilon": 0.1},
    }


def test_error_bars():
    """Two standard errors move the first, second or third noise level in."""
    grid = grid_of(
        [
            (1.0, 0.1, 1.0, 0.00, 0.02),
            (1.0, 0.2, 1.0, 0.03, 0.015),
            (1.0, 0.4, 1.0, 0.07, 0.015),
            (1.0, 0.8, 1.0, 0.50, 0.20),
        ]
    )
    found = smallest(grid, 0.05)
    assert found["mu"] == pytest.approx(25)
    assert found["low"] == pytest.approx(1 / 0.16)
    assert found["high"] == pytest.approx(100)
    assert np.isnan(smallest(grid.iloc[1:], 0.05)["high"])


def test_refinement_halves_the_grid_around_the_minimum(linear):
    rows = module_criticality(
        linear.suffixes,
        {"direct": [linear.start, linear.end]},
        ("block",),
        (0.0, 0.5, 1.0),
        (0.01, 0.1, 1.0),
        num_draws=2,
        refinements=1,
        margin=1.0,
    )
    table, grid = (t[t.module == "a"] for t in rows)
    first = grid[grid.refinement == 0]
    best = smallest(first, table.epsilon.iloc[0])
    assert (best["a"], best["sigma"]) == (1.0, 0.1)
    added = grid[grid.refinement == 1]
    near = [10**-1.5, 0.1, 10**-0.5]
    expected = set(itertools.product([0.75, 1.0], np.round(near, 6)))
    found = set(zip(added.a, added.sigma.round(6), strict=True))
    assert found == expected - {(1.0, 0.1)} and len(added) == 5
    assert table.mu.iloc[0] <= best["mu"]


def test_refinement_steps_over_the_edge(linear):
    """At the smallest sigma the grid is carried on by the same ratio."""
    table, grid = module_criticality(
        linear.suffixes,
        {"direct": [linear.start, linear.end]},
        ("block",),
        (0.0, 1.0),
        (0.1, 0.4, 0.8),
        num_draws=2,
        refinements=1,
        margin=0.3,
    )
    own = grid[grid.module == "a"]
    best = smallest(own[own.refinement == 0], table.epsilon.iloc[0])
    assert best["sigma"] == 0.1 and best["status"] == "unbounded"
    assert own.sigma[own.sigma > 0].min() == pytest.approx(0.1 / 4)
    assert table.status[table.module == "a"].item() == "finite"


def synthetic(mu, kind="P-T", name="pt0", epochs=(9, 9)):
    """A table of one model: mu [4 paths, M]; inf is infeasible."""
    rows = []
    cases = itertools.product(
        ("direct", "optimization"),
        zip(("final", "optimal"), epochs, strict=True),
    )
    for (path, (end_point, epoch)), values in zip(cases, mu, strict=True):
        labels = {"kind": kind, "name": name, "path": path}
        labels |= {"end_point": end_point, "epoch": epoch, "level": "block"}
        for depth, value in enumerate(values):
            finite = np.isfinite(value)
            rows.append(
                labels
                | {"module": f"m{depth}", "depth": depth}
                | {"mu": value if finite else np.nan}
                | {"at_most": value if finite else np.nan}
                | {"status": "finite" if finite else "infeasible"}
            )
        rows.append(labels | {"module": "total", "mu": 1e9, "at_most": 1e9})
        rows.append(rows[-2] | {"level": "group", "at_most": -1e9})
    return pandas.DataFrame(rows)


MU = [
    [0.0, 3.0, 2.0, 70.0, np.inf],
    [0.0, 0.0, 5.0, 4.0, 1.0],
    [np.inf, 8.0, 2.0, np.inf, 3.0],
    [9.0, 5.0, 4.0, 2.0, 1.0],
]
RANKED = np.where(np.isinf(MU), 1e6, MU)


def test_depth_correlation_is_spearmans():
    found = depth_correlation(synthetic(MU))
    assert list(found.path) == ["direct"] * 2 + ["optimization"] * 2
    expected = [stats.spearmanr(row, range(5)).statistic for row in RANKED]
    np.testing.assert_allclose(found.correlation, expected)
    assert found.correlation.iloc[3] == pytest.approx(-1)


def test_an_unbounded_module_ranks_by_its_bound():
    table = synthetic(MU)
    row = (table.module == "m1") & (table.end_point == "final")
    table.loc[row, ["mu", "status"]] = np.nan, "unbounded"
    found = depth_correlation(table)
    np.testing.assert_allclose(
        found.correlation, depth_correlation(synthetic(MU)).correlation
    )


def test_path_agreement_is_the_mean_spearman():
    found = path_agreement(synthetic(MU, epochs=(9, 7)))
    expected = np.mean(
        [
            stats.spearmanr(a, b).statistic
            for a, b in itertools.combinations(RANKED, 2)
        ]
    )
    assert found.agreement.item() == pytest.approx(expected)
    assert found.paths.item() == 4
    # Final and optimal are one and the same: two paths.
    mu = [MU[0], MU[0], MU[2], MU[2]]
    found = path_agreement(synthetic(mu))
    expected = stats.spearmanr(RANKED[0], RANKED[2]).statistic
    assert found.agreement.item() == pytest.approx(expected)
    assert found.paths.item() == 2


def test_head_rank():
    tables = [synthetic(MU), synthetic(MU[::-1], "RI-T", "rit0")]
    found = head_rank(pandas.concat(tables, ignore_index=True))
    shares = [1.0, 2 / 4, 1 / 4, 0.0]
    np.testing.assert_allclose(found.share, [*shares, *shares[::-1]])
    assert list(found.kind) == ["P-T"] * 4 + ["RI-T"] * 4
    tied = head_rank(synthetic([[1.0, 2.0, 2.0]] * 4))
    np.testing.assert_allclose(tied.share, 0.75)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """A P-T with an epoch in between, its best; an RI-T best at its last."""
    directory = tmp_path_factory.mktemp("runs")
    dataset = written_runs.digits()
    for name, best in (("pt0", 1), ("rit0", 2)):
        run = written_runs.write_run(directory / name, dataset, seed=best)
        model = run.load_model(0)
        rng = np.random.default_rng(5)
        for variable in model.trainable_variables:
            variable.assign_add(rng.normal(0, 0.1, variable.shape))
        run.save(1, tf.train.Checkpoint(model=model))
        run.write_best(best, "accuracy", 0.5)
    return Subjects(
        runs={"P-T": f"{directory}/pt0", "RI-T": f"{directory}/rit0"}
    )


def plain_error(run, end, module, first, second, fraction):
    """The training error, one module between two epochs, the obvious way."""
    model = run.load_model(end)
    a, b = run.load_model(first), run.load_model(second)
    for v, x, y in zip(model.weights, a.weights, b.weights, strict=True):
        if v.path.startswith(f"{module}."):
            v.assign((1 - fraction) * x + fraction * y)
    dataset = run.load_data()
    images, targets, _ = next(iter(dataset.eval_batches("train", 32)))
    logits = model(images, training=False).numpy()
    return np.mean(logits.argmax(1) != targets.numpy().argmax(1))


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time."""
    monkeypatch.setattr(Output, "figure", lambda *arguments: None)


def test_four_paths_of_runs(subjects, tmp_path):
    table = criticality(subjects, Output(tmp_path), **GRID)
    # 2 models, 4 paths, 4 modules at either level and the total.
    assert len(table) == 2 * 4 * 2 * 5
    assert list(table.columns[:8]) == [
        *("kind", "name", "path", "end_point", "epoch", "level"),
        *("module", "depth"),
    ]
    grid = pandas.read_csv(tmp_path / "criticality_grid.csv")
    run = subjects.of_kind("P-T")[0].run
    still = grid[(grid.name == "pt0") & (grid.sigma == 0) & (grid.a == 0.5)]
    still = still[(still.refinement == 0) & (still.level == "block")]
    still = still.set_index(["path", "end_point", "module"]).error
    for module in ("conv1", "layer1.0", "layer2.0", "fc"):
        for case, way in {
            ("direct", "final"): (2, module, 0, 2, 0.5),
            ("direct", "optimal"): (1, module, 0, 1, 0.5),
            ("optimization", "final"): (2, module, 1, 1, 0.0),
            ("optimization", "optimal"): (1, module, 0, 1, 0.5),
        }.items():
            assert still[(*case, module)] == pytest.approx(
                plain_error(run, *way)
            )
    own = table[(table.level == "block") & (table.module != "total")]
    groups = table[(table.level == "group") & (table.module != "total")]
    # With one block in each group, they are one and the same.
    np.testing.assert_array_equal(own.at_most, groups.at_most)
    assert list(groups.module[:4]) == ["conv1", "layer1", "layer2", "fc"]
    epochs = table.groupby(["name", "end_point"]).epoch.unique()
    assert epochs["pt0", "optimal"] == [1] and epochs["pt0", "final"] == [2]
    for name in (
        "criticality",
        "criticality_conv1",
        "criticality_direct_final",
    ):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert (tmp_path / f"{name}.svg").exists()


def test_nothing_is_evaluated_twice(subjects, tmp_path, monkeypatch, undrawn):
    output = Output(tmp_path)
    table = criticality(subjects, output, **GRID | {"refinements": 0})
    # 4 modules: two positions (with 2 draws at 3 noise levels, and 1 without)
    # are on both paths, one is on each of them, unless the path is straight; of
    # the RI-T only to one end point, the best epoch being the last.
    assert len(output.results) == 4 * 7 * (4 + 3 + 4)
    monkeypatch.setattr(Suffixes, "_run", None)
    again = criticality(subjects, Output(tmp_path), **GRID | {"refinements": 0})
    pandas.testing.assert_frame_equal(again, table)


def test_paths_of_a_run(subjects):
    run = subjects.of_kind("P-T")[0].run
    epochs = {
        (end, name): path.epochs
        for end in ("final", "optimal")
        for name, path in run_paths(run, end).items()
    }
    assert epochs == {
        ("final", "direct"): [0, 2],
        ("final", "optimization"): [0, 1, 2],
        ("optimal", "direct"): [0, 1],
        ("optimal", "optimization"): [0, 1],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": (0.0, 0.5)}, r"Received: positions=\(0.0, 0.5\)"),
        ({"positions": (0.0, 0.7, 0.5, 1.0)}, "ascend from 0 to 1"),
        ({"sigmas": (0.0, 0.5)}, r"Received: sigmas=\(0.0, 0.5\)"),
        ({"sigmas": (0.5, 2.0)}, "at most at 1"),
        ({"sigmas": (0.5,)}, "two or more"),
        ({"num_draws": 1}, "Received: num_draws=1"),
        ({"levels": ("stage",)}, "Received: 'stage'"),
    ],
)
def test_arguments_are_checked(subjects, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        criticality(subjects, Output(tmp_path), **GRID | arguments)


def test_runs_are_checked(subjects, tmp_path):
    path = subjects.of_kind("P-T")[0].run.path
    alone = Subjects(runs={"P": str(path)})
    with pytest.raises(UserError, match="no model trained on the target"):
        criticality(alone, Output(tmp_path), **GRID)
    run = written_runs.write_run(tmp_path / "x", written_runs.digits(), seed=0)
    run.write_best(1, "accuracy", 0.5)
    with pytest.raises(UserError, match="no checkpoint of epoch 1"):
        run_paths(run, "optimal")
    run.remove(0)
    with pytest.raises(UserError, match="no checkpoint of epoch 0"):
        run_paths(run, "final")


def test_gin_file(subjects, tmp_path, undrawn):
    named = {s.kind: [str(s.run.path)] for s in subjects}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "criticality.gin")],
        [
            f"Subjects.runs = {named}",
            "criticality.num_draws = 2",
            "criticality.positions = (0.0, 1.0)",
        ],
    )
    analyze(tmp_path)
    table = pandas.read_csv(tmp_path / "criticality.csv")
    assert set(table.status) <= {"finite", "infeasible", "unbounded"}
    assert table.mu.notna().equals(table.status == "finite")
