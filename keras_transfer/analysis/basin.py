"""(epsilon, delta)-basins (paper section 3.3, Definition 3.1)."""

import dataclasses
import itertools
import math
from typing import Annotated

import numpy as np
import pandas

from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    Table,
    Value,
    declare_analysis,
)
from keras_transfer.analysis.drawing import colour, new_figure
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.landscape.weight_space import Points, noise_seeds

# Steps of the boundary search that are evaluated together.
_STEPS_AHEAD = 5
# The sets that epsilon and delta are chosen on meet every condition with this
# factor to spare.
_TO_SPARE = 2.0
# Figures do not tell smaller numbers from zero, in nats.
_LEAST_SHOWN = 1e-6
_Deltas = Annotated[tuple[schema.Positive, ...], schema.NotEmpty()]


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

    Points of S are drawn by stratified sampling: one in each of as many pieces
    of the segment, or of the hull, of one volume. There are two independent
    samples of them, and each point is compared with the mean of the other
    sample: the mean of its own would lie too near. Rays are drawn in pairs,
    from w1 through w2 and back, so that half of those on a segment leave it at
    either end. All is drawn once and serves every delta, and every set with the
    same seed and K (common random numbers).

    Args:
        evaluate: function of `Points` [P] -> losses [P] >= 0.
        vertices: float [K, V], as combinations of V weight vectors; rows sum to
            1.
        gram: float [V, V], inner products of the vectors
            (`WeightSpace.gram`).
        num_trained: n, the dimension of parameter space: as frozen weights
            have no noise, the number of the others.
        num_samples: int, draws for each expectation, in pairs: at least two.
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
        vertices = np.asarray(vertices, np.float64)
        self._gram = np.asarray(gram, np.float64)
        sides = (vertices[:, None] - vertices).reshape(-1, vertices.shape[1])
        self.diameter = float(np.max(self._norm(sides)))
        num_pairs = max(2, math.ceil(num_samples / 2))
        inside, starts, exits, self._radii = _draw(
            len(vertices), num_pairs, seed
        )
        self._seeds = noise_seeds(seed, 2 * num_pairs)
        self._boundary = exits @ vertices
        way = (exits - starts) @ vertices
        self._direction = way / self._norm(way)[:, None]
        losses = self._loss(Points(np.concatenate(inside) @ vertices))
        self.mu, self.epsilon = _deviation(losses.reshape(2, -1))

    def rises(self, deltas):
        """Returns how far the loss rises off the boundary of S, above mu.

        Args:
            deltas: float [D], L2 distances >= 0.

        Returns:
            {2: E l(f(w1, w2) + v) - mu, v ~ N(0, delta^2/n I);
            3: E l(k(w1, w2, |v|)) - mu, v ~ N(0, delta^2)}: a list of D
            `Estimate`s each. These conditions ask for 2 epsilon.
        """
        deltas = np.asarray(deltas, np.float64)
        scale = np.repeat(deltas, len(self._boundary))
        boundary, direction = (
            np.tile(rows, [len(deltas), 1])
            for rows in (self._boundary, self._direction)
        )
        further = scale * np.tile(self._radii, len(deltas))
        points = {
            2: Points(
                boundary,
                scale / np.sqrt(self._num_trained),
                np.tile(self._seeds, len(deltas)),
            ),
            3: Points(boundary + further[:, None] * direction),
        }
        return {
            condition: [
                self._rise(losses)
                for losses in self._loss(own).reshape(len(deltas), -1)
            ]
            for condition, own in points.items()
        }

    def _rise(self, losses):
        """Returns the `Estimate` of their mean, less mu."""
        if np.isinf(self.mu.value):
            return Estimate(-np.inf, np.nan)
        # The two rays of a pair are not independent, the pairs are.
        pairs = losses.reshape(2, -1).mean(axis=0)
        with np.errstate(invalid="ignore"):
            error = np.std(pairs, ddof=1) / np.sqrt(len(pairs))
        return Estimate(
            float(np.mean(pairs) - self.mu.value),
            float(np.hypot(error, self.mu.error)),
        )

    def _loss(self, points):
        return _not_nan(self._evaluate(points))

    def _norm(self, differences):
        """Returns L2 norms of combinations [n, V] whose rows sum to 0."""
        squares = np.einsum("ni,ij,nj->n", differences, self._gram, differences)
        return np.sqrt(np.maximum(squares, 0.0))


def _draw(num_vertices, num_pairs, seed):
    """Draws all that is random about a set, but for noise of all weights.

    Returns:
        Two samples of U_S, a list of float64 [num_pairs, K], the i-th points of
        both in the same stratum; where rays start and where they leave S,
        float64 [2 num_pairs, K], those that belong together num_pairs apart;
        and |v|, v ~ N(0, 1), float64 [2 num_pairs]. Points are in barycentric
        coordinates.
    """
    rng = np.random.default_rng(seed)
    ones = np.ones(num_vertices - 1)
    low, sides = np.stack(_strata(num_pairs, 0 * ones, ones), axis=1)
    inside = [
        _on_simplex(low + sides * rng.random(sides.shape)) for _ in range(2)
    ]
    first, second = rng.dirichlet(np.ones(num_vertices), [2, num_pairs])
    starts, through = np.stack([[first, second], [second, first]]).reshape(
        2, -1, num_vertices
    )
    radii = np.abs(rng.normal(size=2 * num_pairs))
    return inside, starts, boundary(starts, through), radii


def _strata(count, low, sides):
    """Cuts a box into as many of one volume.

    Args:
        count: int.
        low: float [d], the corner where all coordinates are least.
        sides: float [d], its lengths.

    Returns:
        list of (low, sides), one for each box.
    """
    if count == 1:
        return [(low, sides)]
    first, axis = count // 2, np.argmax(sides)
    cut = np.zeros_like(sides)
    cut[axis] = sides[axis] * first / count
    rest = np.where(cut, cut, sides)
    return _strata(first, low, rest) + _strata(
        count - first, low + cut, sides - cut
    )


def _on_simplex(cube):
    """Maps uniform points of a cube [n, K - 1] to the simplex, [n, K].

    Each coordinate but the last takes a share, of what those before have left,
    by the quantile of Beta(1, number of those after).
    """
    left = (1 - cube) ** (1 / np.arange(cube.shape[1], 0, -1))
    return -np.diff(np.cumprod(left, axis=1), axis=1, prepend=1, append=0)


def _deviation(losses):
    """Estimates mu and E |l - mu| from two samples, losses [2, M].

    Standard errors are those of stratified sampling, for the i-th of both
    samples lie in one stratum; that of E |l - mu| by the delta method, as mu is
    an estimate, too.
    """
    with np.errstate(invalid="ignore"):
        mu = np.mean(losses)
        other = np.mean(losses, axis=1)[::-1, None]
        deviation = np.abs(losses - other)
        slope = np.mean(np.sign(losses - mu))
        influence = np.abs(losses - mu) - slope * (losses - mu)
        errors = [
            np.sqrt(np.sum((first - second) ** 2)) / losses.size
            for first, second in (losses, influence)
        ]
    # Of infinite losses.
    epsilon = _not_nan(np.mean(deviation))
    return (
        Estimate(float(mu), float(errors[0])),
        Estimate(float(epsilon), float(errors[1])),
    )


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


def margins(rows, epsilon):
    """Returns by how much the conditions of Definition 3.1 are met.

    Args:
        rows: `pandas.DataFrame`, rows of basin_deltas (see `basin`).
        epsilon: float, nats.

    Returns:
        `pandas.DataFrame` [rows, 3], its columns the conditions 1, 2 and 3: in
        nats, met where >= 0.
    """
    return pandas.DataFrame(
        {
            1: epsilon - rows.epsilon,
            2: rows.rise_2 - 2 * epsilon,
            3: rows.rise_3 - 2 * epsilon,
        }
    )


def choose(rows):
    """Chooses the epsilon and delta of sets that are taken to be basins.

    Definition 3.1 leaves both open. Epsilon is twice the median of E |l - mu|;
    delta is the smallest of those tried, of which the median set's loss rises
    by twice what conditions 2 and 3 ask for. So the median set meets each of
    the three with a factor of two to spare, and one set that is no basin does
    not decide for the others.

    Args:
        rows: `pandas.DataFrame`, rows of basin_deltas (see `basin`).

    Returns:
        epsilon: float, nats.
        delta: float, an L2 distance; infinite if none of those tried does.
    """
    epsilon = _TO_SPARE * float(rows.epsilon.median())
    rise = rows[["rise_2", "rise_3"]].min(axis=1).groupby(rows.delta).median()
    enough = rise.index[rise >= _TO_SPARE * 2 * epsilon]
    return epsilon, float(min(enough, default=np.inf))


def _pairs(rows, kind):
    """Returns the rows of all pairs of a kind of model."""
    pairs = rows[(rows.kind == kind) & (rows.num_models == 2)]
    if not len(pairs):
        raise UserError(
            "A basin is sought between two models of one kind. Received: no "
            f"pair of {kind}s."
        )
    return pairs


def _calibrate(others):
    """Chooses epsilon and delta on the P-Ts of other replications."""
    if not others:
        raise UserError(
            "The epsilon and delta of a basin are chosen on other replications "
            "than the one they are tested on. Received: no other; set "
            "Study.replications to 2 or more."
        )
    rows = pandas.concat([_pairs(rows, "P-T") for (rows,) in others])
    epsilon, delta = choose(rows)
    if np.isinf(delta):
        raise UserError(
            "No delta lets the loss around P-Ts of the other replications rise "
            f"by 4 epsilon (epsilon = {epsilon:.2g} nats). Received: basin."
            f"deltas up to {rows.delta.max():g}; bind larger ones."
        )
    return epsilon, delta


def _smallest_margin(kind):
    """Returns a statistic: how well pairs of a kind meet the definition."""

    def compute(rows, chosen):
        epsilon, delta = chosen
        own = _pairs(rows, kind)
        own = own[own.delta == delta]
        if not len(own):
            raise UserError(
                "All replications need the same basin.deltas. Received: one "
                f"without the {delta:g} that was chosen on the others."
            )
        # Of several pairs the median one.
        smallest = margins(own, epsilon).min(axis=1).median()
        return Value(
            float(smallest),
            f"At epsilon = {epsilon:.2g} nats, delta = {delta:g}.",
        )

    return compute


def _cost(options, models):
    # As if there were two kinds, with as many models each.
    sets = 2 * (math.comb(max(models // 2, 1), 2) + 1)
    # The search for its boundary, then an expectation inside and two for each
    # delta.
    expectations = 1 + 2 * len(options["deltas"])
    return sets * (40 + expectations * options["num_samples"])


_CLAIM = "Two P-Ts live in one basin; two RI-Ts do not."


@declare_analysis(
    figures=[
        Figure(
            "basin",
            lambda table, conditions: _figure(table, conditions),
            "Which solutions share a basin",
            "By how much each set of models meets the three conditions of an "
            "(epsilon, delta)-basin, with two standard errors: in the shaded "
            "half it does. Epsilon and delta are chosen on the sets of P-Ts "
            "that are shown; the claim's are chosen on other replications.",
            tables=("basin", "basin_conditions"),
        ),
        Figure(
            "basin_deltas",
            lambda rows: _rise_figure(rows),
            "How far the loss rises around two solutions",
            "How far the loss rises, above its mean between two models, at the "
            "boundary of the set around them: under noise in all directions "
            "and straight on, both of length delta. Dashed: how much it varies "
            "inside, E |l - mu|. In a basin it varies little and rises by at "
            "least twice as much.",
            tables=("basin_deltas",),
        ),
    ],
    statistics=[
        Statistic(
            "C7",
            _CLAIM,
            "smallest margin of the three conditions of Definition 3.1, "
            "P-T/P-T, at the epsilon and delta of the other replications",
            ">",
            0.0,
            _smallest_margin("P-T"),
            tables=("basin_deltas",),
            calibrate=_calibrate,
            unit="nats",
        ),
        Statistic(
            "C7",
            _CLAIM,
            "the same for RI-T/RI-T, at the same epsilon and delta",
            "<",
            0.0,
            _smallest_margin("RI-T"),
            tables=("basin_deltas",),
            calibrate=_calibrate,
            unit="nats",
        ),
    ],
    cost=_cost,
)
def basin(
    models,
    split: schema.Split = "test",
    tolerance: schema.Positive = 0.05,
    deltas: _Deltas = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
    num_samples: schema.Several = 64,
    seed: schema.Seed = 0,
    reference: str = "P-T",
    sensitivity: bool = True,
):
    """Asks which solutions share an (epsilon, delta)-basin (Definition 3.1).

    The sets S are, for each kind of model, the segment through every pair and,
    of three or more models, the hull of all; each is grown to the basin's
    boundary, where the loss has risen by `tolerance` above that of the worst
    member (see `grow`). All are judged at one epsilon and delta. Here these are
    chosen on the sets of `reference` models (see `choose`), so that what is
    said of the other kinds is a test, and what is said of the reference is not.
    The claim is decided at those chosen on the P-Ts of other replications.

    Args:
        models: `Models`, two or more of one kind.
        split: "test" or "train": on whose images the loss is measured.
        tolerance: float, nats.
        deltas: floats > 0, L2 distances, of which delta is chosen. The paper's
            are multiples of one another by two (49.14 and 98.28).
        num_samples: int, draws for each expectation.
        seed: int, of the draws.
        reference: kind of model on whose sets epsilon and delta are chosen; if
            there are not two of it, the first kind of which there are.
        sensitivity: bool, whether to repeat that set with half and twice the
            tolerance, half the samples under another seed, and half the step of
            the boundary search.

    Returns:
        `Table`, one row per set: kind, set (the members' names), num_models,
        diameter (L2), extension (smallest and largest, in distances from the
        members' mean), mu and epsilon (E |l - mu|, nats) with standard errors,
        delta (L2; the smallest of `deltas` that meets conditions 2 and 3 at
        this epsilon, infinite if none does), and verdict ("basin", or "not
        condition 1" and the like). Beside it basin_deltas, one row per set and
        delta: kind, set, num_models, epsilon, delta, rise_2 and rise_3 (nats;
        see `Basin.rises`) with standard errors; basin_conditions, one row per
        set and condition, at the epsilon and delta chosen here: kind, set,
        epsilon, delta, condition, margin, margin_error, met; and, if wanted,
        basin_sensitivity: the first set of `reference` models again, one choice
        changed in each row.

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
        return _estimate(models, split, chosen, deltas, **(choices | changed))

    found = [estimate(chosen) for chosen in sets]
    table = pandas.DataFrame([row for row, _ in found])
    rows = pandas.concat([rows for _, rows in found], ignore_index=True)
    kinds = list(table.kind)
    reference = reference if reference in kinds else kinds[0]
    epsilon, delta = choose(rows[rows.kind == reference])
    # If none suffices, the largest one tells most.
    delta = min(delta, max(deltas))
    conditions = _conditions(rows[rows.delta == delta], epsilon)
    verdicts = {
        name: _verdict(own)
        for name, own in conditions.groupby("set", sort=False)
    }
    table = table.assign(verdict=table.set.map(verdicts))
    further = {"basin_deltas": rows, "basin_conditions": conditions}
    if sensitivity:
        chosen = sets[kinds.index(reference)]
        further["basin_sensitivity"] = pandas.DataFrame(
            choices | change | estimate(chosen, **change)[0]
            for change in _changes(**choices)
        )
    return Table(table, **further)


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


def _estimate(
    models, split, chosen, deltas, tolerance, num_samples, seed, step
):
    """Returns a grown set's row of the table, and its rows of basin_deltas."""
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
    labels = {
        "kind": members[chosen[0]].kind,
        "set": names,
        "num_models": len(chosen),
    }
    inside = {
        "epsilon": region.epsilon.value,
        "epsilon_error": region.epsilon.error,
    }
    rows = pandas.DataFrame({"delta": deltas}).assign(**labels, **inside)
    rows = rows[[*labels, *inside, "delta"]]
    for condition, rises in region.rises(deltas).items():
        rows[f"rise_{condition}"] = [rise.value for rise in rises]
        rows[f"rise_{condition}_error"] = [rise.error for rise in rises]
    enough = margins(rows, region.epsilon.value)[[2, 3]].min(axis=1) >= 0
    row = labels | {
        "diameter": region.diameter,
        "least_extension": extensions.min(),
        "largest_extension": extensions.max(),
        "mu": region.mu.value,
        "mu_error": region.mu.error,
        **inside,
        "delta": rows.delta[enough].min() if enough.any() else np.inf,
    }
    return row, rows


def _conditions(rows, epsilon):
    """Returns the table basin_conditions from rows of one delta."""
    labels = ["kind", "set", "epsilon", "delta"]
    errors = {1: "epsilon_error", 2: "rise_2_error", 3: "rise_3_error"}
    tables = [
        rows.assign(
            epsilon=epsilon,
            condition=condition,
            margin=margin,
            margin_error=rows[errors[condition]],
            met=margin >= 0,
        )
        for condition, margin in margins(rows, epsilon).items()
    ]
    kept = [*labels, "condition", "margin", "margin_error", "met"]
    table = pandas.concat(tables).sort_index(kind="stable")
    return table[kept].reset_index(drop=True)


def _verdict(conditions):
    failed = [str(c) for c in conditions.condition[~conditions.met]]
    return f"not condition {', '.join(failed)}" if failed else "basin"


def _not_nan(losses):
    """Returns losses, those beyond what floats can hold as infinite."""
    losses = np.asarray(losses, np.float64)
    return np.where(np.isnan(losses), np.inf, losses)


def _figure(table, conditions):
    epsilon, delta = conditions.epsilon.iloc[0], conditions.delta.iloc[0]
    if not np.isfinite(epsilon):
        return None
    names = {
        1: "1: E |l - mu| <= epsilon",
        2: "2: noise off the boundary\nadds 2 epsilon",
        3: "3: straight over the boundary\nadds 2 epsilon",
    }
    reach = conditions.margin.abs() + 2 * conditions.margin_error.fillna(0)
    limit = 2 * max([*reach[np.isfinite(reach)], epsilon, _LEAST_SHOWN])
    linear = max(epsilon, _LEAST_SHOWN)
    figure, axes = new_figure(
        10, 1.6 + 0.3 * len(table), columns=3, sharey=True
    )
    for panel, (condition, title) in zip(axes, names.items(), strict=True):
        rows = conditions[conditions.condition == condition]
        for y, row in enumerate(rows.itertuples()):
            panel.errorbar(
                # Infinite ones at the edge.
                np.clip(row.margin, -limit, limit),
                y,
                xerr=2 * row.margin_error,
                fmt="o",
                color=colour(row.kind),
            )
        panel.set_xscale("symlog", linthresh=linear)
        panel.set_xticks(_decades(limit, linear))
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


def _decades(limit, linear):
    """Returns every other power of ten between both, either sign, and 0."""
    powers = np.arange(np.floor(np.log10(limit)), np.log10(linear), -2)
    return [*-(10**powers), 0, *10**powers]


def _rise_figure(rows):
    """Draws conditions 2 and 3 against delta, a line for each set."""
    epsilon = rows.epsilon[np.isfinite(rows.epsilon)]
    linear = max([_LEAST_SHOWN, *epsilon.nsmallest(1)])
    # What rises far beyond need not be read off.
    limit = 100 * max([_LEAST_SHOWN, *epsilon.nlargest(1)])
    figure, axes = new_figure(9, 4, columns=2, sharex=True, sharey=True)
    for panel, condition in zip(axes, (2, 3), strict=True):
        for (kind, name), own in rows.groupby(["kind", "set"], sort=False):
            rise = own[f"rise_{condition}"].clip(-limit, 2 * limit)
            label = f"{kind}: {name}"
            panel.plot(own.delta, rise, "o-", color=colour(kind), label=label)
            panel.axhline(own.epsilon.iloc[0], color=colour(kind), ls="--")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_yscale("symlog", linthresh=linear)
        panel.set_yticks(_decades(limit, linear))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_ylim(-limit, limit)
        panel.axhline(0, color="0.5", lw=0.8)
        panel.set_xlabel("delta (L2)")
    axes[0].set(title="2: noise off the boundary", ylabel="rise (nats)")
    axes[1].set(title="3: straight over the boundary")
    axes[0].legend(fontsize="small")
    figure.suptitle("Rise of the loss above mu (dashed: E |l - mu| inside)")
    return figure
