"""(epsilon, delta)-basins (paper section 3.3, Definition 3.1)."""

import dataclasses
import itertools
import math

import numpy as np
import pandas

from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    Table,
    declare_analysis,
)
from keras_transfer.analysis.drawing import colour, new_figure
from keras_transfer.analysis.statistics import mean_over_pairs
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.landscape.weight_space import Points

# The search for delta: doublings from the diameter of S before it gives up, and
# bisections of the interval that is found.
_DOUBLINGS = 12
_BISECTIONS = 3
# Steps of the boundary search that are evaluated together.
_STEPS_AHEAD = 5


def grow(evaluate, solutions, tolerance, step=0.1, max_extension=4.0):
    """Grows the hull of K solutions to the boundary of their basin.

    From each solution the search walks straight away from the mean of all, in
    steps of `step` times its distance from there, until the loss exceeds that
    of the worst solution by more than `tolerance`; the last position before is
    refined by bisection to 1/32 of a step. For two solutions this extrapolates
    their segment beyond both ends. What lies inside the hull is not looked at:
    whether there is a barrier is for the definition's first condition to say.

    Args:
        evaluate: function of `Points` [P] -> losses [P].
        solutions: float [K, V], the solutions as combinations of V weight
            vectors; rows sum to 1.
        tolerance: float > 0, in the loss's unit.
        step: float > 0.
        max_extension: float, where the walk ends if the loss stays low, as a
            multiple of the distance from the mean.

    Returns:
        vertices float64 [K, V] of the grown hull, and extensions float64 [K],
        in multiples of each solution's distance from the mean
        (`max_extension` where no boundary was found).
    """
    solutions = np.asarray(solutions, np.float64)
    outward = solutions - solutions.mean(axis=0)

    def low(extensions):
        """Says whether solutions, extended by [..., K], are inside."""
        points = solutions + extensions[..., None] * outward
        losses = evaluate(Points(points.reshape(-1, solutions.shape[1])))
        return _not_nan(losses).reshape(extensions.shape) <= limit

    limit = np.max(evaluate(Points(solutions))) + tolerance
    counts = np.arange(1, int(max_extension / step + 0.5) + 1)
    inside = np.ones([0, len(solutions)], bool)
    # Not the whole way at once: most basins end long before it does.
    cuts = range(_STEPS_AHEAD, len(counts), _STEPS_AHEAD)
    for ahead in np.split(counts, cuts):
        walk = np.repeat(step * ahead[:, None], len(solutions), axis=1)
        inside = np.concatenate([inside, low(walk)])
        ended = ~inside.all(axis=0)
        if ended.all():
            break
    extensions = step * np.cumprod(inside, axis=0).sum(axis=0)
    for refinement in range(1, 6):
        tried = extensions + step / 2**refinement
        extensions = np.where(ended & low(tried), tried, extensions)
    return solutions + extensions[:, None] * outward, extensions


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A Monte-Carlo estimate.

    Attributes:
        value: float.
        error: float, its standard error.
    """

    value: float
    error: float


class Basin:
    """Definition 3.1's quantities for S, the hull of K vertices.

    All draws are made once: the same points of S, pairs and directions of noise
    serve every delta and epsilon, and every set with the same seed and K
    (common random numbers). TensorFlow Probability draws them: U_S is
    Dirichlet(1, ..., 1) on the vertices, for two of them uniform on the
    segment.

    Args:
        evaluate: function of `Points` [P] -> losses [P] >= 0.
        vertices: float [K, V], as combinations of V weight vectors; rows sum to
            1.
        gram: float [V, V], inner products of the vectors
            (`WeightSpace.gram`).
        num_trained: n, the dimension of parameter space: as frozen weights
            have no noise, the number of the others.
        num_samples: int, draws for each expectation.
        seed: int.

    Attributes:
        diameter: float, the largest L2 distance of two vertices.
        mu: `Estimate` of E l(w), w ~ U_S.
        epsilon: `Estimate` of E |l(w) - mu|, the smallest epsilon that meets
            condition 1.
    """

    def __init__(
        self, evaluate, vertices, gram, num_trained, num_samples=64, seed=0
    ):
        self._evaluate = evaluate
        self._num_trained = num_trained
        self._vertices = vertices = np.asarray(vertices, np.float64)
        self._gram = np.asarray(gram, np.float64)
        sides = (vertices[:, None] - vertices).reshape(-1, vertices.shape[1])
        self.diameter = float(np.max(self._norm(sides)))
        inside, first, second, self._radii, self._seeds = _draw(
            len(vertices), num_samples, seed
        )
        exits = boundary(first, second)
        self._boundary = exits @ vertices
        way = (exits - first) @ vertices
        self._direction = way / self._norm(way)[:, None]
        self._losses = self._loss(Points(inside @ vertices))
        deviation = self._losses - np.mean(self._losses)
        # Standard errors by the delta method: epsilon depends on mu, too.
        self._epsilon_influence = np.abs(deviation) - deviation * np.mean(
            np.sign(deviation)
        )
        self.mu = _mean(self._losses)
        self.epsilon = Estimate(
            float(np.mean(np.abs(deviation))),
            _mean(self._epsilon_influence).error,
        )
        self._outside_losses = {}

    def margins(self, epsilon, delta):
        """Returns by how much each condition of the definition is met.

        Args:
            epsilon: float, or None for the estimate, whose error then counts.
            delta: float >= 0, an L2 distance.

        Returns:
            dict of `Estimate` by condition, met where >= 0:
            1: epsilon - E |l(w) - mu|;
            2: E l(f(w1, w2) + v) - mu - 2 epsilon, v ~ N(0, delta^2/n I);
            3: E l(k(w1, w2, |v|)) - mu - 2 epsilon, v ~ N(0, delta^2).
        """
        first = Estimate(0.0, 0.0)
        if epsilon is not None:
            first = Estimate(epsilon - self.epsilon.value, self.epsilon.error)
        return {
            1: first,
            2: self._margin(2, epsilon, delta),
            3: self._margin(3, epsilon, delta),
        }

    def smallest_delta(self, epsilon=None):
        """Estimates the smallest delta that meets conditions 2 and 3.

        It is taken that both keep being met as delta grows. Each is searched
        from the diameter of S by doubling or halving, then by 3 bisections of
        the logarithm and linear interpolation of the margin.

        Args:
            epsilon: float, or None for the estimate.

        Returns:
            `Estimate`, an L2 distance: 0 if the boundary itself lies 2 epsilon
            above mu, infinity if 4096 diameters do not suffice.
        """
        # Usually condition 2 needs the larger delta, and 3 no search.
        delta = self._smallest_delta(2, epsilon)
        if np.isinf(delta.value):
            return delta
        if self._margin(3, epsilon, delta.value).value < 0:
            return self._smallest_delta(3, epsilon)
        return delta

    def _smallest_delta(self, condition, epsilon):
        def margin(delta):
            return self._margin(condition, epsilon, delta)

        if margin(0.0).value >= 0:
            return Estimate(0.0, 0.0)
        low, high = self.diameter / 2, self.diameter
        for _ in range(_DOUBLINGS):
            if margin(high).value < 0:
                low, high = high, 2 * high
            elif margin(low).value >= 0:
                low, high = low / 2, low
        if margin(high).value < 0:
            return Estimate(float("inf"), float("nan"))
        low = low if margin(low).value < 0 else 0.0
        for _ in range(_BISECTIONS):
            middle = np.sqrt(low * high)
            if margin(middle).value < 0:
                low = middle
            else:
                high = middle
        below, above = margin(low), margin(high)
        slope = (above.value - below.value) / (high - low)
        return Estimate(
            float(low - below.value / slope), float(above.error / slope)
        )

    def _margin(self, condition, epsilon, delta):
        inside, level = self._losses, epsilon
        if epsilon is None:
            inside = inside + 2 * self._epsilon_influence
            level = self.epsilon.value
        outside = _mean(self._outside(condition, delta))
        return Estimate(
            outside.value - self.mu.value - 2 * level,
            float(np.hypot(outside.error, _mean(inside).error)),
        )

    def _outside(self, condition, delta):
        """Returns the losses whose mean is in condition 2 or 3, [M]."""
        if (condition, delta) not in self._outside_losses:
            points = Points(self._boundary)
            if condition == 2:
                sigma = delta / np.sqrt(self._num_trained)
                sigma = np.full(len(self._seeds), sigma)
                points = Points(self._boundary, sigma, self._seeds)
            else:
                further = delta * self._radii[:, None] * self._direction
                points = Points(self._boundary + further)
            self._outside_losses[condition, delta] = self._loss(points)
        return self._outside_losses[condition, delta]

    def _loss(self, points):
        return _not_nan(self._evaluate(points))

    def _norm(self, differences):
        """Returns L2 norms of combinations [n, V] whose rows sum to 0."""
        squares = np.einsum("ni,ij,nj->n", differences, self._gram, differences)
        return np.sqrt(np.maximum(squares, 0.0))


def boundary(first, second):
    """Returns where the ray from one point through another leaves the simplex.

    It is f(w1, w2) of Definition 3.1, in barycentric coordinates.

    Args:
        first: float [n, K], rows >= 0 that sum to 1.
        second: float [n, K], likewise, other than `first`.

    Returns:
        float64 [n, K], each row with a zero.
    """
    first = np.asarray(first, np.float64)
    step = np.asarray(second, np.float64) - first
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.where(step < 0, first / -step, np.inf)
    leaving = np.argmin(lengths, axis=1)
    rows = np.arange(len(first))
    exits = first + lengths[rows, leaving][:, None] * step
    exits[rows, leaving] = 0.0
    return np.maximum(exits, 0.0)


def _smallest_margin(kind):
    """Returns a statistic: how well pairs of a kind meet the definition."""

    def compute(conditions):
        own = conditions[conditions.kind == kind]
        margins = own.groupby("set").margin.min()
        pairs = [name.split(", ") for name in margins.index]
        kept = [i for i, pair in enumerate(pairs) if len(pair) == 2]
        if not kept:
            raise UserError(f"There are not two {kind}s. Received: no pair.")
        first, second = np.array([pairs[i] for i in kept]).T
        return mean_over_pairs(first, second, margins.to_numpy()[kept])

    return compute


def _cost(options, models):
    # As if there were two kinds, with as many models each.
    sets = 2 * (math.comb(max(models // 2, 1), 2) + 1)
    # The search for its boundary, then a dozen expectations.
    return sets * (40 + 12 * options["num_samples"])


_CLAIM = "Two P-Ts live in one basin; two RI-Ts do not."


@declare_analysis(
    figures=[
        Figure(
            "basin",
            lambda table, conditions: _figure(table, conditions),
            "Which solutions share a basin",
            "By how much each set of models meets the three conditions of an "
            "(epsilon, delta)-basin, with two standard errors: in the shaded "
            "half it does.",
            tables=("basin", "basin_conditions"),
        )
    ],
    statistics=[
        Statistic(
            "C7",
            _CLAIM,
            "smallest margin of the three conditions of Definition 3.1, "
            "P-T/P-T (nats)",
            ">",
            0.0,
            _smallest_margin("P-T"),
            tables=("basin_conditions",),
        ),
        Statistic(
            "C7",
            _CLAIM,
            "the same for RI-T/RI-T, at the same epsilon and delta (nats)",
            "<",
            0.0,
            _smallest_margin("RI-T"),
            tables=("basin_conditions",),
        ),
    ],
    cost=_cost,
)
def basin(
    models,
    split: schema.Split = "test",
    tolerance: schema.Positive = 0.05,
    num_samples: schema.Several = 64,
    seed: schema.Seed = 0,
    reference: str = "P-T",
    sensitivity: bool = True,
):
    """Asks which solutions share an (epsilon, delta)-basin (Definition 3.1).

    The sets S are, for each kind of model, the segment through every pair and,
    of three or more models, the hull of all; each is grown to the basin's
    boundary, where the loss has risen by `tolerance` above that of the worst
    member (see `grow`). So S is judged at epsilon = `tolerance`, the same for
    all: condition 1 fails if there is a barrier inside. As to delta, each set's
    smallest is estimated; all sets are judged at the largest of the sets of
    `reference` models, two standard errors added.

    Args:
        models: `Models`, two or more of one kind.
        split: "test" or "train": on whose images the loss is measured.
        tolerance: float, nats.
        num_samples: int, draws for each expectation.
        seed: int, of the draws.
        reference: kind of model whose delta all sets are judged at; if there
            are not two of it, the first kind of which there are.
        sensitivity: bool, whether to repeat that set with half and twice the
            tolerance, half the samples under another seed, and half the step of
            the boundary search.

    Returns:
        `Table`, one row per set: kind, set (the members' names), diameter (L2),
        extension (smallest and largest, in distances from the members' mean),
        mu and epsilon (nats) with standard errors, delta (L2; the smallest one
        at the estimated epsilon, often 0, as the grown boundary already lies
        2 epsilon above mu), delta_at_tolerance (the smallest one at epsilon =
        `tolerance`) with standard errors, and verdict ("basin", or "not
        condition 1" and the like). Beside it basin_conditions, one row per set
        and condition: kind, set, epsilon, delta, condition, margin,
        margin_error, met; and, if wanted, basin_sensitivity: the first set of
        `reference` models again, one choice changed in each row.

    Raises:
        UserError: if no kind has two models, or one is all frozen.
    """
    members = models.trained()
    sets = _sets(members)
    if not sets:
        raise UserError(
            "A basin is sought around two or more models of one kind. "
            f"Received: {', '.join(m.name for m in members) or 'none'}."
        )
    models.check_trainable("Condition 2 of a basin")
    choices = {
        "tolerance": tolerance,
        "num_samples": num_samples,
        "seed": seed,
        "step": 0.1,
    }

    def estimate(chosen, **changed):
        return _estimate(models, split, chosen, **(choices | changed))

    found = [estimate(chosen) for chosen in sets]
    kinds = [members[chosen[0]].kind for chosen in sets]
    reference = reference if reference in kinds else kinds[0]
    deltas = [
        row["delta_at_tolerance"] + 2 * row["delta_at_tolerance_error"]
        for (_, row), kind in zip(found, kinds, strict=True)
        if kind == reference
    ]
    # Not a number where no delta was found.
    delta = float(np.nanmax([0.0, *deltas]))
    rows, conditions = [], []
    for region, row in found:
        margins = region.margins(tolerance, delta)
        conditions += _condition_rows(row, margins, tolerance, delta)
        rows.append(row | {"verdict": _verdict(margins)})
    further = {"basin_conditions": pandas.DataFrame(conditions)}
    if sensitivity:
        chosen = sets[kinds.index(reference)]
        further["basin_sensitivity"] = pandas.DataFrame(
            choices | change | estimate(chosen, **change)[1]
            for change in _changes(**choices)
        )
    return Table(pandas.DataFrame(rows), **further)


def _changes(tolerance, num_samples, seed, step):
    """Returns what is changed of the choices, one change at a time."""
    return [
        {},
        {"tolerance": tolerance / 2},
        {"tolerance": tolerance * 2},
        {"num_samples": max(2, num_samples // 2), "seed": seed + 1},
        {"step": step / 2},
    ]


def _sets(members):
    """Returns tuples of indices: all pairs of a kind, then all of the kind."""
    sets = []
    for kind in dict.fromkeys(m.kind for m in members):
        own = [i for i, m in enumerate(members) if m.kind == kind]
        sets += itertools.combinations(own, 2)
        if len(own) > 2:
            sets.append(tuple(own))
    return sets


def _estimate(models, split, chosen, tolerance, num_samples, seed, step):
    """Returns the `Basin` of a grown set, and its row of the table."""
    members, surface = models.trained(), models.surface(split)
    names = ", ".join(members[i].name for i in chosen)

    def evaluate(points):
        return surface.evaluate(
            points, models.evaluations, f"basin of {names}"
        )["loss"]

    vertices, extensions = grow(
        evaluate, np.eye(len(members))[list(chosen)], tolerance, step
    )
    region = Basin(
        evaluate,
        vertices,
        surface.space.gram(),
        surface.space.num_trained,
        num_samples,
        seed,
    )
    delta = region.smallest_delta()
    at_tolerance = region.smallest_delta(tolerance)
    return region, {
        "kind": members[chosen[0]].kind,
        "set": names,
        "diameter": region.diameter,
        "least_extension": extensions.min(),
        "largest_extension": extensions.max(),
        "mu": region.mu.value,
        "mu_error": region.mu.error,
        "epsilon": region.epsilon.value,
        "epsilon_error": region.epsilon.error,
        "delta": delta.value,
        "delta_error": delta.error,
        "delta_at_tolerance": at_tolerance.value,
        "delta_at_tolerance_error": at_tolerance.error,
    }


def _condition_rows(row, margins, epsilon, delta):
    return [
        {
            "kind": row["kind"],
            "set": row["set"],
            "epsilon": epsilon,
            "delta": delta,
            "condition": condition,
            "margin": margin.value,
            "margin_error": margin.error,
            "met": margin.value >= 0,
        }
        for condition, margin in margins.items()
    ]


def _verdict(margins):
    failed = [str(c) for c, margin in margins.items() if margin.value < 0]
    return f"not condition {', '.join(failed)}" if failed else "basin"


def _draw(num_vertices, num_samples, seed):
    """Draws all that is random about a set, by TensorFlow Probability.

    Returns:
        Points of U_S, and pairs of them, in barycentric coordinates, float64
        [M, K] each; |v|, v ~ N(0, 1), float64 [M]; seeds of noise, int [M].
    """
    import tensorflow_probability as tfp

    simplex = tfp.distributions.Dirichlet(np.ones(num_vertices))
    normal = tfp.distributions.Normal(np.float64(0), np.float64(1))
    inside, first, second = (
        simplex.sample(num_samples, seed=(seed, i)).numpy() for i in range(3)
    )
    radii = np.abs(normal.sample(num_samples, seed=(seed, 3)).numpy())
    first_seed = (seed * num_samples) % 2**30
    return inside, first, second, radii, first_seed + np.arange(num_samples)


def _mean(values):
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return Estimate(float(np.mean(values)), float(error))


def _not_nan(losses):
    """Returns losses, those beyond what floats can hold as infinite."""
    losses = np.asarray(losses, np.float64)
    return np.where(np.isnan(losses), np.inf, losses)


def _figure(table, conditions):
    epsilon, delta = conditions.epsilon.iloc[0], conditions.delta.iloc[0]
    names = {
        1: "1: E |l - mu| <= epsilon",
        2: "2: noise off the boundary\nadds 2 epsilon",
        3: "3: straight over the boundary\nadds 2 epsilon",
    }
    largest = np.nanmax(conditions.margin.abs() + 2 * conditions.margin_error)
    limit = 2 * max(largest, epsilon)
    highest = np.floor(np.log10(limit))
    decades = 10 ** np.arange(highest, np.log10(epsilon), -2)
    figure, axes = new_figure(
        10, 1.6 + 0.3 * len(table), columns=3, sharey=True
    )
    for panel, (condition, title) in zip(axes, names.items(), strict=True):
        rows = conditions[conditions.condition == condition]
        for y, row in enumerate(rows.itertuples()):
            panel.errorbar(
                row.margin,
                y,
                xerr=2 * row.margin_error,
                fmt="o",
                color=colour(row.kind),
            )
        panel.set_xscale("symlog", linthresh=epsilon)
        panel.set_xticks([*-decades, 0, *decades])
        panel.xaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_xlim(-limit, limit)
        panel.axvspan(0, limit, color="0.92", zorder=0)
        panel.axvline(0, color="0.5", lw=0.8)
        panel.set(title=title, xlabel="margin (nats)")
    axes[0].set_yticks(range(len(table)), table.kind + ": " + table.set)
    axes[0].invert_yaxis()
    figure.suptitle(
        f"Definition 3.1 at epsilon = {epsilon:.3g} nats, delta = {delta:.3g} "
        "(shaded: met)"
    )
    return figure
