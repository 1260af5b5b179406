"""Loss between two solutions and beyond them (paper section 3.3)."""

import itertools

import gin
import numpy as np

from keras_transfer import objectives
from keras_transfer.analysis.output import colour, new_figure
from keras_transfer.analysis.statistics import mean_over_pairs
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


@gin.configurable
def interpolation(
    subjects,
    output,
    num_points: schema.Several = 50,
    extent: tuple[float, float] = (-0.5, 1.5),
    splits: schema.Splits = ("test", "train"),
):
    """Measures loss and metric along the line through every pair.

    Batch normalization's statistics are estimated anew at each point (see
    `dataset_surface`); Fixup models need nothing.

    Args:
        subjects: `Subjects`, at least two of them trained on the target.
        output: `Output`; receives interpolation.csv, what is returned, and
            interpolation_barriers.csv (`barriers`), interpolation_summary.csv
            (`mean_barriers`) and the figure interpolation.
        num_points: int, points of each pair; the paper takes 50 for DomainNet
            and 20 for CheXpert.
        extent: (first, last) alpha; beyond [0, 1] is extrapolation.
        splits: of "test" and "train".

    Returns:
        `pandas.DataFrame`, one row per pair, split and alpha: pair, first,
        second, split, alpha, loss (nats), accuracy (share of right answers,
        for multi-label data of right findings) and for multi-label data auc
        and auc_<finding>.

    Raises:
        UserError: if there are fewer than two subjects or they do not fit.
    """
    import pandas

    models = subjects.trained()
    if len(models) < 2:
        raise UserError(
            "Interpolation needs at least two models trained on the target. "
            f"Received: {len(models)}; name more in Subjects.runs."
        )
    alphas = alpha_grid(num_points, extent)
    pairs = list(itertools.combinations(range(len(models)), 2))
    coefficients = [
        segment(alphas, i, j, len(models)).coefficients for i, j in pairs
    ]
    points = Points(np.concatenate(coefficients))
    tables = []
    for split in splits:
        columns = subjects.surface(split).evaluate(
            points, output.results, f"interpolation, {split}"
        )
        rows = [
            (
                f"{models[i].kind}/{models[j].kind}",
                models[i].name,
                models[j].name,
                split,
                alpha,
            )
            for i, j in pairs
            for alpha in alphas
        ]
        labels = pandas.DataFrame(rows, columns=[*_PAIR, "alpha"])
        tables.append(labels.assign(**columns))
    table = pandas.concat(tables, ignore_index=True)
    metric = objectives.metric_name(subjects.info.multi_label)
    heights = barriers(table)
    output.table("interpolation", table)
    output.table("interpolation_barriers", heights)
    output.table("interpolation_summary", mean_barriers(heights))
    output.figure("interpolation", _figure(table, metric))
    return table


def barriers(table):
    """Returns the barrier height of each pair.

    Args:
        table: what `interpolation` returns.

    Returns:
        `pandas.DataFrame`, one row per pair, split and measure: pair, first,
        second, split, measure ("loss", "accuracy" or "auc"), height (nats, or
        share).
    """
    import pandas

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


def mean_barriers(heights):
    """Returns the statistic of claim C6: mean barrier by kind of pair.

    Args:
        heights: what `barriers` returns.

    Returns:
        `pandas.DataFrame`, one row per kind of pair, split and measure: pair,
        split, measure, pairs (their number), mean, low and high (95% interval
        over models, see `mean_over_pairs`), worst (the highest barrier).
    """
    import pandas

    kinds = heights.pair.replace("RI-T/P-T", "P-T/RI-T")
    keys = ["pair", "split", "measure"]
    rows = []
    for key, group in heights.assign(pair=kinds).groupby(keys, sort=False):
        mean, low, high = mean_over_pairs(
            group["first"], group["second"], group.height
        )
        rows.append(
            dict(zip(keys, key, strict=True))
            | {"pairs": len(group), "mean": mean, "low": low, "high": high}
            | {"worst": group.height.max()}
        )
    return pandas.DataFrame(rows)


def _figure(table, metric):
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
