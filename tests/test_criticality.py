import itertools
import pathlib

import gin
import keras
import numpy as np
import pandas
import pytest
import small_models
import tensorflow as tf
import written_runs
from scipy import optimize, stats

from keras_transfer import Models, criticality
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.criticality import (
    depth_correlation,
    head_rank,
    module_criticality,
    path_agreement,
    smallest,
)
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.analysis.output import Output
from keras_transfer.errors import UserError
from keras_transfer.landscape.evaluations import Evaluations
from keras_transfer.landscape.module_loss import ModuleLoss

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

        self.module_loss = ModuleLoss(model, batches, {"error": loss})

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
        linear.module_loss,
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
        linear.module_loss,
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
        linear.module_loss,
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
        linear.module_loss,
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
def runs(tmp_path_factory):
    """A P-T with an epoch in between, its best; an RI-T best at its last."""
    directory = tmp_path_factory.mktemp("runs")
    dataset = written_runs.digits()
    found = {}
    for kind, best in (("P-T", 1), ("RI-T", 2)):
        run = written_runs.write_run(directory / kind, dataset, seed=best)
        model = run.load_model(0)
        rng = np.random.default_rng(5)
        for variable in model.trainable_variables:
            variable.assign_add(rng.normal(0, 0.1, variable.shape))
        run.save(1, model)
        run.write_best(best, "accuracy", 0.5)
        found[kind] = run
    return found


def plain_error(run, end, module, first, second, fraction):
    """The training error, one module between two epochs, the obvious way."""
    model = run.load_model(end)
    a, b = run.load_model(first), run.load_model(second)
    for v, x, y in zip(model.weights, a.weights, b.weights, strict=True):
        if v.path.startswith(f"{module}."):
            v.assign((1 - fraction) * x + fraction * y)
    split = run.load_data().examples.split("train")
    images, targets, _ = next(iter(split.batches(32)))
    logits = model(images, training=False).numpy()
    return np.mean(logits.argmax(1) != targets.numpy().argmax(1))


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time."""
    monkeypatch.setattr(Output, "figure", lambda *arguments: None)


def test_four_paths_of_runs(runs):
    table = criticality(Models(runs), **GRID)
    # 2 models, 4 paths, 4 modules at either level and the total.
    assert len(table) == 2 * 4 * 2 * 5
    assert list(table.columns[:8]) == [
        *("kind", "name", "path", "end_point", "epoch", "level"),
        *("module", "depth"),
    ]
    assert set(table.batch_norm) == {"none"}
    grid = table.further["criticality_grid"]
    still = grid[(grid.name == "P-T") & (grid.sigma == 0) & (grid.a == 0.5)]
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
                plain_error(runs["P-T"], *way)
            )
    own = table[(table.level == "block") & (table.module != "total")]
    groups = table[(table.level == "group") & (table.module != "total")]
    # With one block in each group, they are one and the same.
    np.testing.assert_array_equal(own.at_most, groups.at_most)
    assert list(groups.module[:4]) == ["conv1", "layer1", "layer2", "fc"]
    epochs = table.groupby(["name", "end_point"]).epoch.unique()
    assert epochs["P-T", "optimal"] == [1] and epochs["P-T", "final"] == [2]
    by_case = ["name", "path", "end_point"]
    levels = table.groupby(by_case).epsilon.first()
    pandas.testing.assert_series_equal(
        grid.groupby(by_case).epsilon.first(), levels
    )
    assert list(small_models.figures("criticality", table)) == [
        "criticality",
        "criticality_first_module",
        "criticality_direct_final",
        "criticality_direct_optimal",
        "criticality_optimization_final",
        "criticality_optimization_optimal",
    ]


def test_nothing_is_evaluated_twice(runs, tmp_path, monkeypatch):
    models = Models(runs)
    models.evaluations = Evaluations(tmp_path / "evaluated.jsonl")
    options = GRID | {"refinements": 0}
    table = criticality(models, **options)
    # 4 modules: two positions (with 2 draws at 3 noise levels, and 1 without)
    # are on both paths, one is on each of them, unless the path is straight; of
    # the RI-T only to one end point, the best epoch being the last.
    assert len(models.evaluations) == 4 * 7 * (4 + 3 + 4)
    monkeypatch.setattr(ModuleLoss, "_run", None)
    other = Models(runs)
    other.evaluations = Evaluations(tmp_path / "evaluated.jsonl")
    again = criticality(other, **options)
    pandas.testing.assert_frame_equal(again, table)


def test_paths_that_pass_each_epoch_of_trainings():
    """The middle of the optimization path of three epochs is the second."""
    trajectories = [small_models.train(seed) for seed in range(2)]
    models = Models(
        {"P-T": trajectories[0], "RI-T": trajectories[1]},
        data=small_models.examples(),
    )
    table = criticality(models, **GRID)
    grid = table.further["criticality_grid"]
    (images, labels), _ = small_models.digits()
    for trajectory, name in zip(trajectories, ("P-T 0", "RI-T 0"), strict=True):
        model = trajectory.load_model()
        end, middle = (trajectory.load_weights(epoch) for epoch in ("last", 1))
        first = trajectory.load_weights(0)
        for path, mixed in {
            "optimization": middle,
            "direct": {k: (first[k] + end[k]) / 2 for k in end},
        }.items():
            model.set_weights(
                [(mixed if "middle" in k else end)[k] for k in end]
            )
            _, accuracy = small_models.loss_and_accuracy(model(images), labels)
            row = grid[
                (grid.name == name)
                & (grid.path == path)
                & (grid.end_point == "final")
                & (grid.module == "middle")
                & (grid.level == "block")
                & (grid.a == 0.5)
                & (grid.sigma == 0)
            ]
            assert row.error.item() == pytest.approx(1 - accuracy, abs=1e-6)
            moved = [mixed[k] - first[k] for k in end if "middle" in k]
            assert row.distance.item() == pytest.approx(
                np.linalg.norm(np.concatenate([np.ravel(m) for m in moved])),
                rel=1e-5,
            )
    assert small_models.figures("criticality", table)


def test_a_frozen_layer_that_differs_has_a_distance_and_no_noise():
    trajectory = small_models.train(0)
    trajectory.model.get_layer("low").trainable = False
    models = Models({"P-T": trajectory}, data=small_models.examples())
    table = criticality(models, **GRID, levels=("block",))
    grid = table.further["criticality_grid"]
    own = grid[(grid.module == "low") & (grid.path == "direct")]
    first, last = (trajectory.load_weights(epoch) for epoch in (0, "last"))
    moved = [last[k] - first[k] for k in last if k.split("/")[-2] == "low"]
    distance = np.linalg.norm(np.concatenate([np.ravel(m) for m in moved]))
    assert distance > 1e-3
    np.testing.assert_allclose(
        own[(own.a == 1) & (own.end_point == "final")].distance,
        distance,
        rtol=1e-5,
    )
    assert (own.groupby(["end_point", "a"]).error.nunique() == 1).all()
    # Others get noise, and not the same result under each.
    other = grid[(grid.module == "high") & (grid.path == "direct")]
    assert (other.groupby(["end_point", "a"]).error.nunique() > 1).any()


def test_models_without_a_past():
    with pytest.raises(UserError, match="has no epochs.*a Trajectory"):
        criticality(small_models.plain(), **GRID)


def test_frozen_models():
    trajectory = small_models.train(0, epochs=1)
    trajectory.model.trainable = False
    models = Models({"P-T": trajectory}, data=small_models.examples())
    with pytest.raises(UserError, match="Received: P-T 0, all frozen"):
        criticality(models, **GRID)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": (0.0, 0.5)}, r"Received: positions=\(0.0, 0.5\)"),
        ({"positions": (0.0, 0.7, 0.5, 1.0)}, "ascend from 0 to 1"),
        ({"sigmas": (0.0, 0.5)}, r"Received: sigmas=\(0.0, 0.5\)"),
        ({"sigmas": (0.5, 2.0)}, "at most at 1"),
        ({"sigmas": (0.5,)}, "two or more"),
        ({"num_draws": 1}, "of at least 2. Received: 1"),
        ({"levels": ("stage",)}, r"Received: \('stage',\)"),
    ],
)
def test_arguments_are_checked(runs, arguments, message):
    with pytest.raises(UserError, match=message):
        criticality(Models(runs), **GRID | arguments)


def test_runs_are_checked(runs, tmp_path):
    alone = Models({"P": runs["P-T"]})
    with pytest.raises(UserError, match="needs 1 or more models trained"):
        criticality(alone, **GRID)
    run = written_runs.write_run(tmp_path / "x", written_runs.digits(), seed=0)
    run.write_best(1, "accuracy", 0.5)
    with pytest.raises(UserError, match="no checkpoint of epoch 1"):
        criticality(Models({"P-T": run}), **GRID)
    run.remove(0)
    with pytest.raises(UserError, match="no checkpoint of epoch 0"):
        criticality(Models({"P-T": run}), **GRID)


def test_claims():
    """Mean over models of the direct path to the final weights; see above."""
    tables = [synthetic(MU), synthetic(MU, name="pt1")]
    tables.append(synthetic(MU[::-1], "RI-T", "rit0"))
    table = pandas.concat(tables, ignore_index=True)
    found = {
        s.claim: s.compute(table)[0]
        for s in find_analysis("criticality").statistics
    }
    correlations = [
        stats.spearmanr(RANKED[row], range(5)).statistic for row in (0, 0, 3)
    ]
    assert found["C8"] == pytest.approx(np.mean(correlations))
    # Best and last are one epoch: one pair of paths of each model.
    paths = [
        stats.spearmanr(RANKED[a], RANKED[b]).statistic
        for a, b in ((0, 2), (0, 2), (3, 1))
    ]
    assert found["C9"] == pytest.approx(np.mean(paths))
    assert found["C10"] == 1.0


def test_cost():
    """Of each of four paths 2 x (1 + 3 x 2) points, and 8 x 3 refined."""
    options = {"positions": (0.0, 1.0), "sigmas": (0.1, 0.2)}
    options |= {"num_draws": 3, "refinements": 1}
    assert find_analysis("criticality").cost(options, 5) == 5 * 4 * (14 + 24)


def test_gin_file(runs, tmp_path, undrawn):
    named = {kind: [str(run.path)] for kind, run in runs.items()}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "criticality.gin")],
        [
            f"Models.models = {named}",
            "criticality.num_draws = 2",
            "criticality.positions = (0.0, 1.0)",
        ],
    )
    analyze(tmp_path)
    table = pandas.read_csv(tmp_path / "criticality.csv")
    assert set(table.status) <= {"finite", "infeasible", "unbounded"}
    assert table.mu.notna().equals(table.status == "finite")
    assert len(pandas.read_csv(tmp_path / "criticality_grid.csv"))
    # What is not bound is there, too.
    config = (tmp_path / "config.gin").read_text()
    assert "criticality.seed = 0" in config
