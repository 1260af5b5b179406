"""Loss between two solutions and beyond them (paper section 3.3)."""

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
from keras_transfer.analysis.statistics import BARRIER, mean_over_pairs
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.landscape.weight_space import Points

# The columns that tell one line of points from another.
_PAIR = ["pair", "first", "second", "split"]


def alpha_grid(num_points=50, extent=(-0.5, 1.5)):
    """Returns positions along a line that hit both ends exactly.

    Three grids glued together: evenly spaced below 0, from 0 to 1, and above 1,
    each with its share of the points (50 on [-0.5, 1.5] are 12, 26 and 12, in
    steps of 1/24, 1/25 and 1/24).

    Args:
        num_points: int.
        extent: (first, last), first <= 0 and last >= 1.

    Returns:
        float64 [num_points], ascending.

    Raises:
        UserError: if the extent leaves out an end or there are too few points.
    """
    first, last = extent
    if first > 0 or last < 1:
        raise UserError(
            "The extent must hold both ends, 0 and 1. "
            f"Received: extent={extent}."
        )
    per_unit = (num_points - 1) / (last - first)
    below, above = round(-first * per_unit), round((last - 1) * per_unit)
    inside = num_points - below - above
    if inside < 2:
        raise UserError(
            "Both ends and what lies outside need more points. Received: "
            f"num_points={num_points} for extent={extent}."
        )
    return np.concatenate(
        [
            np.linspace(first, 0, below, endpoint=False),
            np.linspace(0, 1, inside),
            1 + np.linspace(last - 1, 0, above, endpoint=False)[::-1],
        ]
    )


def barrier_height(alphas, values, higher_is_better):
    """Computes the height of the barrier between two solutions.

    The maximum over alpha in [0, 1] of how much worse the measured value is
    than what the straight line between the two end values promises. It is 0 if
    there is no barrier, never less, as both ends lie on the line.

    Source: paper section 3.3.

    Args:
        alphas: float [n], among them 0 and 1.
        values: float [n], a loss or metric at (1 - alpha) w1 + alpha w2.
        higher_is_better: bool; True for accuracy and AUC, False for loss.

    Returns:
        float, in the values' unit.

    Raises:
        UserError: if an end is missing.
    """
    alphas, values = np.asarray(alphas), np.asarray(values, np.float64)
    if not (np.any(alphas == 0) and np.any(alphas == 1)):
        raise UserError(
            "A barrier is measured from end to end: alphas must hold 0 and 1. "
            f"Received: alphas from {min(alphas)} to {max(alphas)}."
        )
    start, end = values[alphas == 0][0], values[alphas == 1][0]
    inside = (alphas >= 0) & (alphas <= 1)
    line = (1 - alphas[inside]) * start + alphas[inside] * end
    worse = line - values[inside] if higher_is_better else values[inside] - line
    # At the ends themselves rounding must not leave a trace.
    return float(max(0.0, np.max(worse)))


def segment(alphas, first, second, num_vectors):
    """Returns the `Points` (1 - alpha) w_first + alpha w_second.

    Args:
        alphas: float [n].
        first: int, index of a weight vector.
        second: int, index of another.
        num_vectors: int, weight vectors of the surface.
    """
    ends = np.eye(num_vectors)[[first, second]]
    alphas = np.asarray(alphas)[:, None]
    return Points((1 - alphas) * ends[0] + alphas * ends[1])


def _barrier_of(kinds):
    """Returns a statistic: the lowest mean barrier of some kinds of pair."""

    def compute(table):
        heights = barriers(table)
        metric = "auc" if "auc" in set(heights.measure) else "accuracy"
        rows = heights[(heights.split == "test") & (heights.measure == metric)]
        return min(
            (
                mean_over_pairs(own["first"], own["second"], own.height)
                for own in (rows[rows.pair == kind] for kind in kinds)
                if len(own)
            ),
            default=(math.nan,) * 3,
        )

    return compute


_CLAIM = (
    "No barrier between P-Ts; a barrier between RI-Ts and between P-T and RI-T."
)


@declare_analysis(
    figures=[
        Figure(
            "interpolation",
            lambda table: _figure(table),
            "Loss between two solutions",
            "Accuracy and loss along the line from one model (0) to another "
            "(1): a dip in accuracy between them is a barrier.",
        )
    ],
    statistics=[
        Statistic(
            "C6",
            _CLAIM,
            "barrier height of P-T/P-T",
            "<",
            BARRIER,
            _barrier_of(["P-T/P-T"]),
        ),
        Statistic(
            "C6",
            _CLAIM,
            "barrier height of P-T/RI-T or RI-T/RI-T, the lower",
            ">",
            BARRIER,
            _barrier_of(["P-T/RI-T", "RI-T/RI-T"]),
        ),
    ],
    cost=lambda options, models: (
        options["num_points"]
        * math.comb(models, 2)
        * len(options["splits"] or ("test", "train"))
    ),
)
def interpolation(
    models,
    num_points: schema.Several = 50,
    extent: tuple[float, float] = (-0.5, 1.5),
    splits: schema.Splits | None = None,
):
    """Measures loss and metric along the line through every pair.

    Batch normalization's statistics at each point are by `Models.batch_norm`.

    Args:
        models: `Models`, at least two of them trained on the target.
        num_points: int, points of each pair; the paper takes 50 for DomainNet
            and 20 for CheXpert.
        extent: (first, last) alpha; beyond [0, 1] is extrapolation.
        splits: of "test" and "train"; None: those that the data have.

    Returns:
        `Table`, one row per pair, split and alpha: pair, first, second, split,
        alpha, loss (nats), accuracy (share of right answers, for multi-label
        data of right findings) and for multi-label data auc and auc_<finding>.
        Beside it interpolation_barriers, see `barriers`.

    Raises:
        UserError: if there are fewer than two models or they do not fit.
    """
    members = models.trained(2, "Interpolation")
    alphas = alpha_grid(num_points, extent)
    pairs = list(itertools.combinations(range(len(members)), 2))
    points = Points(
        np.concatenate(
            [segment(alphas, i, j, len(members)).coefficients for i, j in pairs]
        )
    )
    tables = []
    for split in splits or models.examples.splits:
        columns = models.surface(split).evaluate(
            points, models.evaluations, f"interpolation, {split}"
        )
        rows = [
            (
                f"{members[i].kind}/{members[j].kind}",
                members[i].name,
                members[j].name,
                split,
                alpha,
            )
            for i, j in pairs
            for alpha in alphas
        ]
        labels = pandas.DataFrame(rows, columns=[*_PAIR, "alpha"])
        tables.append(labels.assign(**columns))
    table = pandas.concat(tables, ignore_index=True)
    return Table(table, interpolation_barriers=barriers(table))


def barriers(table):
    """Returns the barrier height of each pair.

    Args:
        table: what `interpolation` returns.

    Returns:
        `pandas.DataFrame`, one row per pair, split and measure: pair, first,
        second, split, measure ("loss", "accuracy" or "auc"), height (nats, or
        share).
    """
    measures = [m for m in ("loss", "accuracy", "auc") if m in table]
    return pandas.DataFrame(
        [
            dict(zip(_PAIR, key, strict=True))
            | {
                "measure": measure,
                "height": barrier_height(
                    rows.alpha, rows[measure], measure != "loss"
                ),
            }
            for key, rows in table.groupby(_PAIR, sort=False)
            for measure in measures
        ]
    )


def _figure(table):
    metric = "auc" if "auc" in table else "accuracy"
    splits = table.split.unique()
    figure, axes = new_figure(
        4.8 * len(splits), 6.0, 2, len(splits), sharex=True, squeeze=False
    )
    for row, measure in zip(axes, (metric, "loss"), strict=True):
        for panel, split in zip(row, splits, strict=True):
            _draw(panel, table[table.split == split], measure)
        row[0].set_ylabel(f"{measure} (nats)" if measure == "loss" else measure)
    for top, bottom, split in zip(*axes, splits, strict=True):
        top.set_title(f"{split} images")
        bottom.set_xlabel("alpha: first model at 0, second at 1")
    handles, kinds = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, kinds, loc="outside upper center", ncols=len(kinds))
    return figure


def _draw(axes, table, measure):
    labelled = set()
    for (kind, *_), rows in table.groupby(
        ["pair", "first", "second"], sort=False
    ):
        label = None if kind in labelled else kind
        labelled.add(kind)
        axes.plot(
            rows.alpha, rows[measure], color=colour(kind), label=label, lw=1.2
        )
    if measure == "loss":
        # Far outside, the loss leaves the picture by orders of magnitude.
        inside = table[table.alpha.between(0, 1)].loss
        axes.set_ylim(0, 1.1 * inside.max())
    for end in (0, 1):
        axes.axvline(end, color="0.8", lw=0.8, zorder=0)
