import itertools
import pathlib

import gin
import numpy as np
import pandas
import pytest
import small_models
import written_runs

from keras_transfer import Models, basin
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.basin import (
    Basin,
    boundary,
    choose,
    grow,
    margins,
)
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.errors import UserError
from keras_transfer.landscape.weight_space import noise_seeds

ROOT = pathlib.Path(__file__).parents[1]

DIMENSIONS = 50


class Landscape:
    """A loss in closed form, evaluated as a loss surface is."""

    def __init__(self, loss, vectors):
        self.loss, self.vectors = loss, np.asarray(vectors, float)

    def __call__(self, points):
        weights = np.asarray(points.coefficients) @ self.vectors
        if points.sigma is not None:
            noise = [
                np.random.default_rng(seed).normal(size=weights.shape[1])
                for seed in points.seeds
            ]
            weights = weights + np.asarray(points.sigma)[:, None] * noise
        return self.loss(weights)

    @property
    def gram(self):
        relative = self.vectors - self.vectors[0]
        return relative @ relative.T

    def basin(self, vertices, **arguments):
        return Basin(
            self, vertices, self.gram, self.vectors.shape[1], **arguments
        )


def axis(*positions):
    """Returns vectors along the first axis."""
    return np.outer(positions, np.eye(DIMENSIONS)[0])


def bowl(weights, curvature=1.7):
    return curvature / 2 * np.sum(weights**2, axis=1)


# On the bowl l = h/2 |w|^2 and S = [0, L] e_1, with u = w/L uniform on [0, 1]:
H, L = 1.7, 3.0
MU = H * L**2 / 6
EPSILON = H * L**2 / 2 * 4 / (9 * np.sqrt(3))  # E |u^2 - 1/3| = 4 / 9 / sqrt 3


def outside(condition, delta):
    """Returns E l(f + v) or E l(k): half of the rays end at 0, half at L."""
    if condition == 2:
        return H * L**2 / 4 + H * delta**2 / 2
    return H / 2 * (L**2 / 2 + L * delta * np.sqrt(2 / np.pi) + delta**2)


def rise(delta):
    """The lesser of what conditions 2 and 3 ask to be at least 2 epsilon."""
    return min(outside(2, delta), outside(3, delta)) - MU


def rows_of(region, deltas, kind="P-T", name="a, b", num_models=2):
    """Returns a set's rows of the table basin_deltas."""
    rises = region.rises(deltas)
    return pandas.DataFrame(
        {
            "kind": kind,
            "set": name,
            "num_models": num_models,
            "epsilon": region.epsilon.value,
            "delta": deltas,
            "rise_2": [estimate.value for estimate in rises[2]],
            "rise_3": [estimate.value for estimate in rises[3]],
        }
    )


@pytest.fixture(scope="module")
def bowls():
    """S = [0, L] on the bowl, under 60 seeds."""
    landscape = Landscape(bowl, axis(0, L))
    return [
        landscape.basin(np.eye(2), num_samples=200, seed=seed)
        for seed in range(60)
    ]


def check(estimates, truth):
    """Asserts that estimates scatter about the truth as their errors say."""
    scores = np.array([(e.value - truth) / e.error for e in estimates])
    assert abs(np.mean(scores)) < 4 / np.sqrt(len(scores))
    assert 0.75 < np.std(scores) < 1.3


def test_bowl_mean_and_epsilon(bowls):
    assert bowls[0].diameter == pytest.approx(L)
    check([b.mu for b in bowls], MU)
    check([b.epsilon for b in bowls], EPSILON)


@pytest.mark.parametrize("num_samples", [8, 32])
def test_few_draws_bias_nothing(num_samples):
    """The mean over seeds is right; of unstratified draws it is 6% low."""
    landscape = Landscape(bowl, axis(0, L))
    found = [
        landscape.basin(np.eye(2), num_samples=num_samples, seed=seed)
        for seed in range(200)
    ]
    for truth, estimates in (
        (MU, [b.mu for b in found]),
        (EPSILON, [b.epsilon for b in found]),
    ):
        values = np.array([e.value for e in estimates])
        assert np.mean(values) == pytest.approx(truth, rel=0.02)
        # Errors fall faster than with the root of the number of draws, and
        # those that are told are those that are made.
        assert np.std(values) < 1.2 * truth / num_samples
        told = np.sqrt(np.mean([e.error**2 for e in estimates]))
        assert 0.8 < told / np.std(values) < 1.25


def test_bowl_rises(bowls):
    deltas = [0.0, 0.8, 5.0]
    found = [b.rises(deltas) for b in bowls]
    for condition, (i, delta) in itertools.product((2, 3), enumerate(deltas)):
        truth = outside(condition, delta) - MU
        check([rises[condition][i] for rises in found], truth)


def test_margins_are_those_of_the_definition():
    rows = pandas.DataFrame(
        {"epsilon": [0.1, 0.5], "rise_2": [0.7, 0.9], "rise_3": [2.0, 0.2]}
    )
    found = margins(rows, 0.3)
    np.testing.assert_allclose(found[1], [0.2, -0.2])
    np.testing.assert_allclose(found[2], [0.1, 0.3])
    np.testing.assert_allclose(found[3], [1.4, -0.4])


DELTAS = [2.0**k for k in range(-3, 6)]


def test_choice_on_a_bowl(bowls):
    """Twice E |l - mu|, and the first delta that rises by four times that."""
    epsilon, delta = choose(rows_of(bowls[0], DELTAS))
    assert epsilon == pytest.approx(2 * EPSILON, rel=0.02)
    expected = next(d for d in DELTAS if rise(d) >= 8 * EPSILON)
    assert delta == expected and 1 < delta < 32
    # One set of three that is no basin does not decide, nor one that is twice.
    rows = pandas.concat([rows_of(b, DELTAS) for b in bowls[:3]])
    outlier = rows.epsilon == rows.epsilon.iloc[0]
    rows.loc[outlier, ["epsilon", "rise_2"]] = 100.0, -100.0
    again = choose(rows)
    assert again == (pytest.approx(epsilon, rel=0.05), delta)


def test_bowl_hull_of_three():
    """E |w|^2 over a triangle: (|a|^2 + |b|^2 + |c|^2 + |a + b + c|^2) / 12."""
    vectors = np.random.default_rng(3).normal(size=(4, 30))
    landscape = Landscape(bowl, vectors)
    vertices = np.random.default_rng(4).dirichlet(np.ones(4), 3)
    corners = vertices @ vectors
    squares = np.sum(corners**2) + np.sum(corners.sum(axis=0) ** 2)
    estimates = [
        landscape.basin(vertices, num_samples=100, seed=seed).mu
        for seed in range(40)
    ]
    check(estimates, H / 2 * squares / 12)


def test_epsilon_of_a_hull():
    """On a triangle, l = the first barycentric coordinate ~ Beta(1, 2)."""
    landscape = Landscape(lambda w: w[:, 0], np.eye(3, DIMENSIONS))
    regions = [
        landscape.basin(np.eye(3), num_samples=30, seed=seed)
        for seed in range(40)
    ]
    # E |x - 1/3| = 2 E (1/3 - x)+ = 2 (1/3 - (1 - (2/3)^3) / 3) = 16/81.
    values = [region.epsilon.value for region in regions]
    assert np.mean(values) == pytest.approx(16 / 81, rel=0.02)
    assert np.mean([r.mu.value for r in regions]) == pytest.approx(1 / 3, 0.01)


def test_the_boundary_may_be_high_enough():
    """On a segment through the middle the ends lie h L^2 / 3 above mu."""
    region = Landscape(bowl, axis(-L, L)).basin(np.eye(2))
    rises = region.rises([0.0])
    for condition in (2, 3):
        assert rises[condition][0].value == pytest.approx(
            H * L**2 / 3, rel=0.05
        )


def test_no_delta_suffices_where_the_loss_is_bounded():
    def bounded(weights):
        return np.tanh(bowl(weights))

    region = Landscape(bounded, axis(0, L)).basin(np.eye(2))
    _, delta = choose(rows_of(region, DELTAS))
    assert delta == np.inf


def test_losses_beyond_what_floats_hold():
    def off(weights):
        return np.where(np.abs(weights[:, 0]) > 2 * L, np.nan, 1.0)

    region = Landscape(off, axis(0, L)).basin(np.eye(2))
    assert region.rises([1e3])[3][0].value == np.inf

    def inside(weights):
        return np.where(weights[:, 0] > L / 2, np.inf, 1.0)

    region = Landscape(inside, axis(0, L)).basin(np.eye(2))
    assert region.mu.value == region.epsilon.value == np.inf
    assert region.rises([1.0])[2][0].value == -np.inf
    assert (margins(rows_of(region, [1.0]), 0.5) == -np.inf).all(axis=None)


def test_noise_of_one_seed_is_not_that_of_another():
    seeds = [noise_seeds(seed, 64) for seed in range(50)]
    assert len(np.unique(seeds)) == 50 * 64
    assert np.min(seeds) >= 0 and seeds[0].dtype == np.int32
    np.testing.assert_array_equal(noise_seeds(7, 10), seeds[7][:10])


def test_boundary_of_the_simplex():
    np.testing.assert_allclose(
        boundary([[0.7, 0.3], [0.7, 0.3]], [[0.6, 0.4], [0.8, 0.2]]),
        [[0, 1], [1, 0]],
    )
    first = np.random.default_rng(0).dirichlet(np.ones(4), 200)
    second = np.random.default_rng(1).dirichlet(np.ones(4), 200)
    exits = boundary(first, second)
    np.testing.assert_array_equal(exits.min(axis=1), 0)
    np.testing.assert_allclose(exits.sum(axis=1), 1)
    # On the ray, and not before its second point.
    ratio = (exits - first) / (second - first)
    np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones(4), rtol=1e-6)
    assert np.all(ratio >= 1)


def test_grow_finds_the_boundary():
    """From +-a about the middle to where h x^2 / 2 = h a^2 / 2 + tolerance."""
    a, tolerance = 1.0, 2.0
    landscape = Landscape(bowl, axis(-a, a))
    vertices, extensions = grow(landscape, np.eye(2), tolerance)
    edge = np.sqrt(a**2 + 2 * tolerance / H)
    np.testing.assert_allclose(extensions, edge - a, atol=0.1 / 32)
    assert np.all(extensions <= edge - a)
    grown = vertices @ landscape.vectors
    np.testing.assert_allclose(grown[:, 0], [-edge, edge], atol=0.1 / 32)
    assert np.all(landscape.loss(grown) <= H / 2 * a**2 + tolerance)


def test_grow_stops_where_there_is_no_boundary():
    flat = Landscape(lambda w: np.zeros(len(w)), axis(-1, 1, 5))
    _, extensions = grow(flat, np.eye(3), 0.1, max_extension=2.0)
    np.testing.assert_array_equal(extensions, [2, 2, 2])
    # Off to one side there is one; a loss that overflows is one, too.
    half = Landscape(lambda w: np.where(w[:, 0] > 2, np.nan, 0), axis(-1, 1))
    _, extensions = grow(half, np.eye(2), 0.1)
    np.testing.assert_allclose(extensions, [4, 1], atol=0.1 / 32 + 1e-12)


def double_well(weights):
    return (weights[:, 0] ** 2 - 1) ** 2 + np.sum(weights[:, 1:] ** 2, axis=1)


def well(*ends, seed=0, kind="P-T"):
    """Returns the rows of a grown set on the double well."""
    landscape = Landscape(double_well, axis(*ends))
    vertices, _ = grow(landscape, np.eye(2), 0.05)
    return rows_of(landscape.basin(vertices, seed=seed), DELTAS, kind)


def test_double_well():
    """Rejected across the barrier of height 1, accepted within one well."""
    others = [
        (well(x - 0.06, x + 0.05, seed=i),)
        for i, x in enumerate((0.98, 1.0, 1.02))
    ]
    of_pts, of_rits = find_analysis("basin").statistics
    chosen = of_pts.calibrate(others)
    assert chosen == of_rits.calibrate(others)
    tables = pandas.concat(
        [well(0.95, 1.05, seed=9), well(-1, 1, kind="RI-T", seed=9)]
    )
    # What was chosen elsewhere holds here, and is said.
    accepted = of_pts.compute(tables, chosen)
    epsilon, delta = chosen
    assert 0.2 * epsilon < accepted.value < epsilon
    assert f"delta = {delta:g}" in accepted.note
    # (1 - x^2)^2 varies by E |l - mu| = 0.33 on [-1, 1], and a little more on
    # what is grown beyond.
    rejected = of_rits.compute(tables, chosen)
    assert -0.5 < rejected.value < epsilon - 0.3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return written_runs.write_models(tmp_path_factory.mktemp("runs"))


def test_analysis(models):
    options = {"tolerance": 0.5, "num_samples": 4, "deltas": (1.0, 4.0)}
    table = basin(models, **options)
    assert list(table.set) == ["pt0, pt1", "rit0, rit1"]
    conditions = table.further["basin_conditions"]
    assert len(conditions) == 6 and conditions.delta.nunique() == 1
    rows = table.further["basin_deltas"]
    assert list(rows.delta) == [1.0, 4.0, 1.0, 4.0]
    epsilon, delta = choose(rows[rows.kind == "P-T"])
    assert (conditions.epsilon == epsilon).all()
    assert (conditions.delta == min(delta, 4.0)).all()
    at = rows[rows.delta == conditions.delta[0]].reset_index()
    for condition, margin, error in (
        (1, epsilon - table.epsilon, at.epsilon_error),
        (2, at.rise_2 - 2 * epsilon, at.rise_2_error),
        (3, at.rise_3 - 2 * epsilon, at.rise_3_error),
    ):
        own = conditions[conditions.condition == condition]
        np.testing.assert_allclose(own.margin, margin, rtol=1e-9)
        np.testing.assert_allclose(own.margin_error, error, rtol=1e-9)
    check_deltas(table, rows)
    for row in table.itertuples():
        met = conditions[conditions.set == row.set].met
        assert (row.verdict == "basin") == met.all()
    check_diameters(models, table)
    variants = table.further["basin_sensitivity"]
    assert list(variants.tolerance) == [0.5, 0.25, 1.0, 0.5, 0.5]
    assert list(variants.num_samples) == [4, 4, 4, 2, 4]
    assert list(variants.step) == [0.1, 0.1, 0.1, 0.1, 0.05]
    assert variants.epsilon[0] == pytest.approx(table.epsilon[0])
    assert list(small_models.figures("basin", table)) == [
        "basin",
        "basin_deltas",
    ]
    # Everything is found again.
    evaluated = len(models.evaluations)
    again = basin(models, **options, sensitivity=False)
    assert len(models.evaluations) == evaluated
    pandas.testing.assert_frame_equal(again, table)
    assert list(again.further) == ["basin_deltas", "basin_conditions"]


def check_deltas(table, rows):
    """Asserts that a set's delta is the smallest that meets 2 and 3."""
    for row in table.itertuples():
        own = rows[rows.set == row.set]
        rise = own[["rise_2", "rise_3"]].min(axis=1)
        met = own.delta[rise >= 2 * row.epsilon]
        assert row.delta == min(met, default=np.inf)


def check_diameters(models, table):
    """Asserts that a grown segment is as long as its extensions say."""
    for row in table.itertuples():
        a, b = (
            np.concatenate([np.ravel(w) for w in models.weights(m)])
            for m in models.of_kind(row.kind)
        )
        reach = 1 + (row.least_extension + row.largest_extension) / 2
        assert row.diameter == pytest.approx(
            reach * np.linalg.norm(a - b), rel=1e-5
        )


@pytest.mark.parametrize("recorded", [False, True])
def test_models_in_memory(recorded):
    models = small_models.plain()
    if recorded:
        models = Models(
            {
                "P-T": [small_models.train(seed, epochs=1) for seed in (0, 1)],
                "RI-T": [small_models.train(seed, epochs=1) for seed in (2, 3)],
            },
            data=small_models.examples(),
        )
    table = basin(models, tolerance=0.2, num_samples=4, sensitivity=False)
    assert list(table.set) == ["P-T 0, P-T 1", "RI-T 0, RI-T 1"]
    check_diameters(models, table)
    assert set(table.batch_norm) == {"none"}


def test_frozen_weights_are_no_dimension_but_a_distance():
    """Noise of squared length delta^2 in all, and the frozen layer moves."""
    models = small_models.plain()
    for member in models:
        models.model(member).get_layer("middle").trainable = False
    surface, sigmas = models.surface("test"), []
    evaluate = surface.evaluate

    def spied(points, *arguments):
        sigmas.extend([] if points.sigma is None else points.sigma)
        return evaluate(points, *arguments)

    surface.evaluate = spied
    table = basin(models, tolerance=0.2, num_samples=4, sensitivity=False)
    check_diameters(models, table)
    delta = table.further["basin_conditions"].delta.iloc[0]
    # 36 + 4 of the convolution and 80 + 10 of the last layer.
    assert np.isclose(sigmas, delta / np.sqrt(130)).any()
    for member in models:
        models.model(member).trainable = False
    with pytest.raises(UserError, match="all frozen"):
        basin(models)


def replication(margin, kind="P-T", name="a, b", num_models=2):
    """Rows of a set that meets condition 1 by `margin` at epsilon = 0.5."""
    return pandas.DataFrame(
        {
            "kind": kind,
            "set": name,
            "num_models": num_models,
            "epsilon": 0.5 - margin,
            "delta": [4.0, 8.0, 16.0],
            "rise_2": [1.9, 2.1, 9.0],
            "rise_3": [3.0, 4.0, np.inf],
        }
    )


def test_claims():
    of_pts, of_rits = find_analysis("basin").statistics
    assert (of_pts.claim, of_pts.direction) == ("C7", ">")
    assert (of_rits.claim, of_rits.direction) == ("C7", "<")
    assert of_pts.tables == of_rits.tables == ("basin_deltas",)
    others = [(replication(margin),) for margin in (0.25, 0.3, -7.0)]
    # E |l - mu| is 0.25, 0.2 and 7.5: epsilon 0.5, and a rise of 2 is needed.
    assert of_pts.calibrate(others) == (0.5, 8.0)
    # The median pair; the hull of three is not a pair.
    own = pandas.concat(
        [
            replication(0.3, name="a, b"),
            replication(0.2, name="a, c"),
            replication(-9.0, name="b, c"),
            replication(-99.0, name="a, b, c", num_models=3),
            replication(-1.0, "RI-T"),
        ]
    )
    assert of_pts.compute(own, (0.5, 8.0)).value == pytest.approx(0.2)
    assert of_rits.compute(own, (0.5, 8.0)).value == pytest.approx(-1.0)
    # Another condition is met by less: 2.1 - 2 * 1.0.
    assert of_pts.compute(own, (1.0, 8.0)).value == pytest.approx(0.1)
    with pytest.raises(UserError, match="no pair of RI-Ts"):
        of_rits.compute(own[own.kind == "P-T"], (0.5, 8.0))
    with pytest.raises(UserError, match="without the 2 that was chosen"):
        of_pts.compute(own, (0.5, 2.0))


def test_what_is_chosen_is_chosen_elsewhere():
    of_pts, _ = find_analysis("basin").statistics
    with pytest.raises(UserError, match="chosen on other replications"):
        of_pts.calibrate([])
    with pytest.raises(UserError, match="no pair of P-Ts"):
        of_pts.calibrate([(replication(0.1, "RI-T"),)])
    # Epsilon 6: the loss does not rise by 24 nats anywhere.
    with pytest.raises(UserError, match="up to 16; bind larger ones"):
        of_pts.calibrate([(replication(-2.5),)])


def test_no_two_of_a_kind(models):
    alone = {k: models.of_kind(k)[0].source for k in ("P-T", "RI-T")}
    with pytest.raises(UserError, match="two or more models of one kind"):
        basin(Models(alone))


def test_gin_file(models, tmp_path):
    named = {"P-T": [str(m.source.path) for m in models.of_kind("P-T")]}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "basin.gin")],
        [
            f"Models.models = {named}",
            "basin.num_samples = 2",
            "basin.deltas = [2.0]",
        ],
    )
    analyze(tmp_path)
    for name in ("", "_deltas", "_conditions", "_sensitivity"):
        assert len(pandas.read_csv(tmp_path / f"basin{name}.csv"))
    for name in ("basin", "basin_deltas"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
