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
    module_criticality,
    path_agreement,
    smallest,
)
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.analysis.output import Output
from keras_transfer.errors import UserError
from keras_transfer.landscape.evaluations import Evaluations
from keras_transfer.landscape.module_loss import (
    ModuleLoss,
    Perturbations,
    parts,
)
from keras_transfer.landscape.weight_space import noise_seeds

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
        if row.draws < 32 and row.sigma:
            # Whatever further draws give, the mean of all is too large.
            assert row.draws == 2
            assert 2 * row.error / 32 > row.epsilon and expected > row.epsilon
        else:
            # With 31 degrees of freedom, 5 is seen once in 50,000.
            assert abs(row.error - expected) <= 5 * row.standard_error + 1e-4
        assert row.distance == pytest.approx(
            linear.distance(module, corners, row.a), abs=1e-5
        )
    noisy = grid[grid.sigma > 0]
    assert len(noisy[noisy.refinement == 0]) == 2 * 2 * 11 * 9
    assert set(grid.refinement) == {0, 1, 2, 3}
    assert set(noisy.draws) == {2, 32}
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
        assert row.fresh_error <= row.epsilon
        expected = linear.mean_loss(module, corners, row.a, row.sigma)
        deviation = abs(row.fresh_error - expected)
        assert deviation <= 5 * row.fresh_standard_error
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


def test_the_minimum_holds_on_fresh_draws(linear):
    """What was smaller and met epsilon by luck fails on them."""
    parts_by_name = parts(linear.module_loss.chain, "block")
    turned_down = 0
    for seed in range(4):
        table, grid = module_criticality(
            linear.module_loss,
            {"direct": [linear.start, linear.end]},
            ("block",),
            np.linspace(0, 1, 6),
            np.geomspace(0.02, 1, 12),
            num_draws=2,
            refinements=1,
            margin=1.0,
            seed=seed,
        )
        for row in table[table.module != "total"].itertuples():
            own = grid[(grid.module == row.module) & (grid.sigma > 0)]
            ratio = (own.distance / own.sigma) ** 2
            smaller = own[(ratio < row.at_most) & (own.error <= row.epsilon)]
            assert (smaller.fresh_error > row.epsilon).all()
            assert len(smaller) <= row.turned_down
            assert row.fresh_error <= row.epsilon
            # One point after the other, and no more than needed.
            assert own.fresh_error.notna().sum() == row.turned_down + 1
            turned_down += row.turned_down
            # The very mean over the seeds that follow.
            fresh = linear.module_loss.evaluate(
                [linear.start, linear.end],
                1,
                {
                    parts_by_name[row.module]: Perturbations(
                        np.full(2, row.a),
                        np.full(2, row.sigma),
                        noise_seeds(seed, 4)[2:],
                    )
                },
            )
            (columns,) = fresh.values()
            assert row.fresh_error == pytest.approx(np.mean(columns["error"]))
        total = table[table.module == "total"].iloc[0]
        assert total.turned_down == table.turned_down.sum() / 2
        assert total.parameters == 3 * 5 + 5 * 2
    assert turned_down


def test_fresh_draws_take_most_of_the_bias_of_selection(linear):
    """Of two draws, against the same grid's minimum in closed form."""
    corners = [linear.start, linear.end]
    selected, confirmed = [], []
    for seed in range(12):
        table, grid = module_criticality(
            linear.module_loss,
            {"direct": corners},
            ("block",),
            np.linspace(0, 1, 11),
            np.geomspace(0.02, 1, 12),
            num_draws=2,
            refinements=0,
            margin=1.0,
            seed=seed,
        )
        for row in table[table.module != "total"].itertuples():
            own = grid[(grid.module == row.module) & (grid.sigma > 0)]
            losses = [
                linear.mean_loss(int(row.depth), corners, a, sigma)
                for a, sigma in zip(own.a, own.sigma, strict=True)
            ]
            met = np.array(losses) <= row.epsilon
            exact = ((own.distance / own.sigma) ** 2)[met].min()
            before = smallest(own.assign(fresh_error=np.nan), row.epsilon)
            selected.append(np.log(before["at_most"] / exact))
            confirmed.append(np.log(row.at_most / exact))
    # By almost half too low, and then by a fifth.
    assert np.mean(selected) < -0.5
    assert abs(np.mean(confirmed)) < 0.5 * abs(np.mean(selected))


def test_a_module_that_need_not_move_is_not_critical(linear):
    """At a = 0, or where both ends are one, and little noise is borne."""
    paths = {"direct": [linear.end, linear.end]}
    table, _ = module_criticality(
        linear.module_loss,
        paths,
        ("block",),
        (0.0, 1.0),
        (0.9, 1.0),
        num_draws=2,
        refinements=2,
        margin=1e-6,
    )
    own = table[table.module != "total"]
    for column in ("mu", "low", "high", "at_most", "a", "sigma", "distance"):
        assert (own[column] == 0).all()
    assert (own.status == "finite").all() and own.fresh_error.isna().all()


def test_infeasible_grids_are_carried_on(linear):
    """Towards a = 1 and less noise, where every margin is met."""
    table, grid = module_criticality(
        linear.module_loss,
        {"direct": [linear.start, linear.end]},
        ("block",),
        (0.0, 1.0),
        (0.5, 1.0),
        num_draws=2,
        refinements=4,
        margin=0.5,
    )
    own = grid[(grid.module == "a") & (grid.sigma > 0)]
    first = smallest(own[own.refinement == 0], table.epsilon.iloc[0])
    assert first["status"] == "infeasible" and np.isnan(first["at_most"])
    added = own[own.refinement == 1]
    assert set(added.a) == {0.5, 1.0}
    np.testing.assert_allclose(
        sorted(set(added.sigma)), [0.25, 0.5, np.sqrt(0.5)]
    )
    found = table[table.module == "a"].iloc[0]
    assert found.status != "infeasible" and found.sigma < 0.5


def grid_of(rows):
    """Returns a grid of which nothing was drawn afresh."""
    columns = ["a", "sigma", "distance", "error", "standard_error"]
    return pandas.DataFrame(rows, columns=columns).assign(
        draws=8, fresh_error=np.nan, fresh_standard_error=np.nan
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
        # Borne without noise, at a distance of 0: by definition.
        ((0.0, 0.2, 0.2), 0.0, "finite", 0.0),
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
    found = smallest(grid, 0.1)
    for name in ("fresh_error", "fresh_standard_error"):
        assert np.isnan(found.pop(name))
    assert found == {
        **dict.fromkeys(("mu", "low", "high", "at_most"), 4.0),
        **{"status": "finite", "a": 1.0, "sigma": 1.0},
        **{"distance": 2.0, "epsilon": 0.1, "turned_down": 0},
    }


def test_a_point_that_fails_afresh_gives_way():
    grid = grid_of([(1.0, s, 2.0, 0.1, 0.0) for s in (0.1, 0.2, 0.5, 1.0)])
    grid.loc[grid.sigma == 1.0, "fresh_error"] = 0.3
    grid.loc[grid.sigma == 0.5, "fresh_error"] = 0.05
    found = smallest(grid, 0.1)
    assert (found["mu"], found["sigma"]) == (16.0, 0.5)
    assert (found["fresh_error"], found["turned_down"]) == (0.05, 1)
    assert (found["low"], found["high"]) == (4.0, 16.0)
    grid["fresh_error"] = 0.3
    found = smallest(grid, 0.1)
    assert found["status"] == "infeasible" and found["turned_down"] == 4
    # Without noise nothing is drawn.
    still = grid_of([(0.0, 0.0, 0.0, 0.1, 0.0)])
    found = smallest(pandas.concat([still, grid], ignore_index=True), 0.1)
    assert (found["mu"], found["status"]) == (0.0, "finite")


def test_points_that_were_soon_given_up_have_no_say():
    low = [(1.0, sigma, 1.0, 0.01, 0.0) for sigma in (0.05, 0.1)]
    grid = grid_of([*low, (1.0, 0.8, 1.0, 0.4, 0.3)])
    assert smallest(grid, 0.05)["low"] == pytest.approx(1 / 0.64)
    grid.loc[2, "draws"] = 2
    assert smallest(grid, 0.05)["low"] == pytest.approx(100)


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
                | {"parameters": 4.0**depth}
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


def statistics(claim):
    """Returns {name: `Statistic`} of one claim."""
    declared = find_analysis("criticality").statistics
    return {s.name: s for s in declared if s.claim == claim}


def test_depth_decides_by_permutation():
    """Of each kind by itself; ranks are means over its models."""
    tables = [synthetic(MU), synthetic(MU[::-1], name="pt1")]
    tables.append(synthetic(MU[::-1], "RI-T", "rit0"))
    table = pandas.concat(tables, ignore_index=True)
    ranks = [stats.rankdata(RANKED[row]) for row in (0, 3)]
    found = statistics("C8")
    deciding = [s for s in found.values() if s.decides]
    assert [s.direction for s in deciding] == ["<", "<"]
    assert {s.threshold for s in deciding} == {0.05}
    for kind, expected in (("P-T", np.mean(ranks, axis=0)), ("RI-T", ranks[1])):
        p_value, correlation, normalized = (
            s.compute(table) for s in found.values() if f" {kind}" in s.name
        )
        tau = stats.spearmanr(range(5), expected).statistic
        assert correlation.value == pytest.approx(tau)
        as_high = [
            stats.spearmanr(order, expected).statistic >= tau - 1e-9
            for order in itertools.permutations(range(5))
        ]
        assert p_value.value == pytest.approx(np.mean(as_high))
        assert normalized.value <= correlation.value
    # Divided by 4^depth, the last row falls even faster, the first rises less.
    per_parameter = [RANKED[row] / 4.0 ** np.arange(5) for row in (0, 3)]
    expected = np.mean([stats.rankdata(row) for row in per_parameter], axis=0)
    (_, _, normalized) = (
        s.compute(table) for s in found.values() if " P-T" in s.name
    )
    assert normalized.value == pytest.approx(
        stats.spearmanr(range(5), expected).statistic
    )


def test_no_trend_is_no_error():
    equal = synthetic([[2.0] * 5] * 4)
    p_value, correlation, normalized = (
        s.compute(equal) for n, s in statistics("C8").items() if " P-T" in n
    )
    assert p_value == (1.0, "All modules are equally critical.")
    assert correlation.value == 0.0
    assert normalized.value == pytest.approx(-1)
    few = synthetic([[1.0, 2.0]] * 4)
    for statistic in statistics("C8").values():
        kind = "RI-T" if "RI-T" in statistic.name else "P-T"
        with pytest.raises(UserError, match="three or more modules.*m0, m1"):
            statistic.compute(few.assign(kind=kind))
    with pytest.raises(UserError, match="of RI-Ts.*P-T, block"):
        next(s for n, s in statistics("C8").items() if "RI-T" in n).compute(
            equal
        )


def test_what_is_not_known_is_said():
    """The unbounded rank by their bound, the infeasible above all."""
    table = synthetic(MU)
    row = (table.module == "m1") & (table.end_point == "final")
    table.loc[row, ["mu", "status"]] = np.nan, "unbounded"
    for statistic in (*statistics("C8").values(), *statistics("C9").values()):
        if " P-T" in statistic.name:
            value, note = statistic.compute(table)
            known, _ = statistic.compute(synthetic(MU))
            assert value == pytest.approx(known)
            assert "enter with an upper bound" in note
    _, note = statistics("C8").popitem()[1].compute(table.assign(kind="RI-T"))
    assert note == (
        "Of 5 modules, 1 enter with an upper bound, 1 as infinitely critical."
    )


def test_path_agreement_is_the_least_spearman():
    found = path_agreement(synthetic(MU, epochs=(9, 7)))
    expected = min(
        stats.spearmanr(a, b).statistic
        for a, b in itertools.combinations(RANKED, 2)
    )
    assert found.agreement.item() == pytest.approx(expected)
    assert found.paths.item() == 4
    # Final and optimal are one and the same: two paths.
    mu = [MU[0], MU[0], MU[2], MU[2]]
    found = path_agreement(synthetic(mu))
    expected = stats.spearmanr(RANKED[0], RANKED[2]).statistic
    assert found.agreement.item() == pytest.approx(expected)
    assert found.paths.item() == 2
    # Without a pattern there is no agreement, and it is not left out.
    found = path_agreement(synthetic([MU[3], [0.0] * 5, MU[3], MU[3]]))
    assert found.agreement.item() == 1
    found = path_agreement(
        synthetic([MU[3], [0.0] * 5, MU[3], MU[3]], epochs=(9, 7))
    )
    assert found.agreement.item() == 0


def test_agreement_is_a_mean_over_models():
    tables = [synthetic(MU), synthetic([MU[0]] * 4, name="pt1")]
    tables.append(synthetic([MU[3]] * 4, "RI-T", "rit0"))
    table = pandas.concat(tables, ignore_index=True)
    of_pts, of_rits = statistics("C9").values()
    assert of_pts.decides and of_pts.direction == ">"
    alone = stats.spearmanr(RANKED[0], RANKED[2]).statistic
    assert of_pts.compute(table).value == pytest.approx((alone + 1) / 2)
    assert of_rits.compute(table).value == pytest.approx(1)
    with pytest.raises(UserError, match="paths of a RI-T are one"):
        of_rits.compute(table[table.path == "direct"])


def heads(*rows, **arguments):
    """Returns C10's ratio and rank of P-Ts with these rows on every path."""
    tables = [
        synthetic([row] * 4, name=f"pt{i}", **arguments)
        for i, row in enumerate(rows)
    ]
    table = pandas.concat(tables, ignore_index=True)
    ratio, rank = statistics("C10").values()
    assert (ratio.decides, ratio.direction, ratio.threshold) == (True, ">", 1)
    assert not rank.decides and rank.direction == "<"
    return ratio.compute(table), rank.compute(table)


def test_head():
    """Its mu over the median of the others, and its rank from the top."""
    ratio, rank = heads([1.0, 8.0, 4.0, 2.0, 6.0])
    assert (ratio.value, rank) == (pytest.approx(6 / 3), 2)
    # Models by the geometric and by the plain mean; equals share a rank.
    ratio, rank = heads([1.0, 8.0, 4.0, 2.0, 6.0], [1.0, 2.0, 2.0, 3.0, 1.0])
    assert ratio.value == pytest.approx(np.sqrt(2 * 0.5))
    assert rank == (2 + 4.5) / 2
    ratio, rank = heads([0.0, 0.0, 0.0, 8.0, 6.0])
    assert (ratio.value, rank) == (np.inf, 2)
    ratio, rank = heads([0.0, 2.0, 3.0, 8.0, np.inf])
    assert (ratio.value, rank) == (np.inf, 1)
    assert ratio.note == "Of 5 modules, 1 as infinitely critical."
    # A head that may be set back without harm is not critical at all.
    ratio, rank = heads([0.0, 0.0, 0.0, 0.0, 0.0])
    assert (ratio.value, rank) == (0.0, 3)
    with pytest.raises(UserError, match="infinity over infinity"):
        heads([0.0, np.inf, np.inf, np.inf, np.inf])
    with pytest.raises(UserError, match="infinite for one P-T and 0"):
        heads([0.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0, np.inf])
    with pytest.raises(UserError, match="of P-Ts is asked for"):
        heads([1.0, 2.0, 3.0], kind="RI-T")


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
    given = 4 * 7 * (4 + 3 + 4)
    assert len(models.evaluations) == given + 2 * count_drawn_afresh(table)
    monkeypatch.setattr(ModuleLoss, "_run", None)
    other = Models(runs)
    other.evaluations = Evaluations(tmp_path / "evaluated.jsonl")
    again = criticality(other, **options)
    pandas.testing.assert_frame_equal(again, table)


def count_drawn_afresh(table):
    """Counts points with fresh draws, those on both paths once."""
    grid = table.further["criticality_grid"]
    grid = grid[(grid.level == "block") & grid.fresh_error.notna()]
    two_ways = (grid.name == "P-T") & (grid.epoch == 2) & (grid.a == 0.5)
    way = grid.path.where(two_ways, "")
    points = grid.assign(way=way)[
        ["name", "epoch", "module", "a", "sigma", "way"]
    ]
    return len(points.drop_duplicates())


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


def test_cost():
    """Four paths of 2 x (1 + 3 x 2) points, 8 x 3 refined, 2 x 3 afresh."""
    options = {"positions": (0.0, 1.0), "sigmas": (0.1, 0.2)}
    options |= {"num_draws": 3, "refinements": 1}
    assert find_analysis("criticality").cost(options, 5) == 5 * 4 * (
        14 + 24 + 6
    )


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
