import pathlib

import gin
import numpy as np
import pandas
import pytest
import small_models
import written_runs

from keras_transfer import Models, basin
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.basin import Basin, boundary, grow
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.errors import UserError

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


def smallest_delta(epsilon):
    """Solves outside(condition, delta) = mu + 2 epsilon for both."""
    excess = (MU + 2 * epsilon - outside(2, 0)) * 2 / H
    assert excess > 0
    slope = L * np.sqrt(2 / np.pi)
    return max(np.sqrt(excess), (-slope + np.sqrt(slope**2 + 4 * excess)) / 2)


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


@pytest.mark.parametrize("delta", [0.0, 0.8, 5.0])
def test_bowl_margins(bowls, delta):
    level = 0.4
    margins = [b.margins(level, delta) for b in bowls]
    check([m[1] for m in margins], level - EPSILON)
    for condition in (2, 3):
        truth = outside(condition, delta) - MU - 2 * level
        check([m[condition] for m in margins], truth)
    # With the estimated epsilon, whose error counts, too.
    margins = [b.margins(None, delta) for b in bowls]
    for condition in (2, 3):
        truth = outside(condition, delta) - MU - 2 * EPSILON
        check([m[condition] for m in margins], truth)
    assert all(m[1].value == 0 for m in margins)


@pytest.mark.parametrize("epsilon", [None, 4.0, 40.0])
def test_bowl_smallest_delta(bowls, epsilon):
    truth = smallest_delta(EPSILON if epsilon is None else epsilon)
    found = [b.smallest_delta(epsilon) for b in bowls[:30]]
    check(found, truth)
    # Common random numbers: the margin vanishes at the very delta found.
    margins = bowls[0].margins(epsilon, found[0].value)
    assert min(abs(margins[2].value), abs(margins[3].value)) < 0.02 * truth


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


def test_delta_is_zero_where_the_boundary_is_high_enough():
    """On a segment through the middle the ends lie h L^2 / 3 above mu."""
    region = Landscape(bowl, axis(-L, L)).basin(np.eye(2))
    assert region.smallest_delta().value == 0
    assert region.margins(None, 0.0)[2].value > 0


def test_no_delta_suffices_where_the_loss_is_bounded():
    def bounded(weights):
        return np.tanh(bowl(weights))

    region = Landscape(bounded, axis(0, L)).basin(np.eye(2))
    assert region.smallest_delta(5.0).value == np.inf


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


@pytest.mark.parametrize(
    ("ends", "accepted"), [((-1, 1), False), ((0.95, 1.05), True)]
)
def test_double_well(ends, accepted):
    """Rejected across the barrier of height 1, accepted within one well."""
    tolerance = 0.05
    landscape = Landscape(double_well, axis(*ends))
    vertices, _ = grow(landscape, np.eye(2), tolerance)
    region = landscape.basin(vertices)
    delta = region.smallest_delta(tolerance)
    margins = region.margins(tolerance, delta.value + 2 * delta.error)
    # On either side beyond doubt.
    assert abs(margins[1].value) > 5 * margins[1].error
    assert (margins[1].value >= 0) == accepted
    assert margins[2].value >= 0 and margins[3].value >= 0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return written_runs.write_models(tmp_path_factory.mktemp("runs"))


def test_analysis(models):
    table = basin(models, tolerance=0.5, num_samples=4)
    assert list(table.set) == ["pt0, pt1", "rit0, rit1"]
    conditions = table.further["basin_conditions"]
    assert len(conditions) == 6 and conditions.delta.nunique() == 1
    first = conditions[conditions.condition == 1]
    np.testing.assert_allclose(first.margin, 0.5 - table.epsilon, rtol=1e-9)
    for row in table.itertuples():
        met = conditions[conditions.set == row.set].met
        assert (row.verdict == "basin") == met.all()
    check_diameters(models, table)
    variants = table.further["basin_sensitivity"]
    assert list(variants.tolerance) == [0.5, 0.25, 1.0, 0.5, 0.5]
    assert list(variants.num_samples) == [4, 4, 4, 2, 4]
    assert list(variants.step) == [0.1, 0.1, 0.1, 0.1, 0.05]
    assert variants.epsilon[0] == pytest.approx(table.epsilon[0])
    assert list(small_models.figures("basin", table)) == ["basin"]
    # Everything is found again.
    evaluated = len(models.evaluations)
    again = basin(models, tolerance=0.5, num_samples=4, sensitivity=False)
    assert len(models.evaluations) == evaluated
    pandas.testing.assert_frame_equal(again, table)
    assert list(again.further) == ["basin_conditions"]


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


def test_claims():
    """The smallest margin of each pair; the hull of three is not a pair."""
    margins = {
        "a, b": (0.3, 0.2, 0.5),
        "a, c": (0.4, 0.6, 0.5),
        "b, c": (0.9, 0.7, 0.6),
        "a, b, c": (-1.0, 1.0, 1.0),
    }
    conditions = pandas.DataFrame(
        [
            {"kind": "P-T", "set": name, "margin": value}
            for name, values in margins.items()
            for value in values
        ]
    )
    of_pts, of_rits = find_analysis("basin").statistics
    assert (of_pts.claim, of_pts.direction) == ("C7", ">")
    assert (of_rits.claim, of_rits.direction) == ("C7", "<")
    assert of_pts.tables == of_rits.tables == ("basin_conditions",)
    assert of_pts.compute(conditions)[0] == pytest.approx(1.2 / 3)
    with pytest.raises(UserError, match="not two RI-Ts"):
        of_rits.compute(conditions)


def test_no_two_of_a_kind(models):
    alone = {k: models.of_kind(k)[0].source for k in ("P-T", "RI-T")}
    with pytest.raises(UserError, match="two or more models of one kind"):
        basin(Models(alone))


def test_gin_file(models, tmp_path):
    named = {"P-T": [str(m.source.path) for m in models.of_kind("P-T")]}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "basin.gin")],
        [f"Models.models = {named}", "basin.num_samples = 2"],
    )
    analyze(tmp_path)
    for name in ("basin", "basin_conditions", "basin_sensitivity"):
        assert len(pandas.read_csv(tmp_path / f"{name}.csv"))
    assert (tmp_path / "basin.png").stat().st_size > 1000
