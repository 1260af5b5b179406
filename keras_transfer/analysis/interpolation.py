"""Loss between two solutions and beyond them (paper section 3.3)."""

import itertools
import math
from typing import Annotated

import numpy as np
import pandas

from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    Table,
    declare_analysis,
)
from keras_transfer.analysis.drawing import colour, dash, marker, new_figure
from keras_transfer.analysis.statistics import BARRIER
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.landscape.loss_surface import examples_surface
from keras_transfer.landscape.weight_space import Points

# Of a model, one or more; see `interpolation`.
Epochs = Annotated[tuple[str | int, ...], schema.NotEmpty()]

# The columns that tell one line of points from another; epochs is there only
# where some were asked for.
_LINE = ["pair", "first", "second", "epochs", "split"]
_STYLES = ("-", "--", ":", "-.")


def alpha_grid(num_points=50, extent=(-0.5, 1.5)):
    """Returns positions along a line that hit both ends exactly.

    Source: paper section 3.3, with points beyond the ends as well.

    Args:
        num_points: int, evenly spaced points from 0 to 1, both included.
        extent: (first, last), first <= 0 and last >= 1; outside [0, 1] come
            further points at the same distance, as many as there is room for.

    Returns:
        float64 [num_points or more], ascending.

    Raises:
        UserError: if the extent leaves out an end or there are too few points.
    """
    first, last = extent
    if first > 0 or last < 1:
        raise UserError(
            "The extent must hold both ends, 0 and 1. "
            f"Received: extent={extent}."
        )
    if num_points < 2:
        raise UserError(
            "A line has two ends, which are points, too. Received: "
            f"num_points={num_points}."
        )
    steps = num_points - 1
    # What is a whole number of steps may be less by rounding.
    before = math.floor(-first * steps + 1e-9)
    after = math.floor((last - 1) * steps + 1e-9)
    return np.arange(-before, steps + after + 1) / steps


def barrier_height(alphas, values, higher_is_better):
    """Computes the height of the barrier between two solutions.

    The maximum over alpha in [0, 1] of how much worse the measured value is
    than what the straight line between the two end values promises. It is 0 if
    there is no barrier, never less, as both ends lie on the line; NaN if a
    value is.

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
    return float(np.maximum(0.0, np.max(worse)))


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


def mean_barrier(heights, pair):
    """Returns the statistics of claim C6: the mean barrier of a kind of pair.

    Args:
        heights: what `barriers` returns. Of several splits and epochs, test
            images and the epochs named first count.
        pair: "P-T/P-T", "P-T/RI-T" (in either order) or "RI-T/RI-T".

    Returns:
        float, mean height in test accuracy or AUC, a share.

    Raises:
        UserError: if there is no such pair, or the models between two give
            outputs that are not finite.
    """
    metric = "auc" if "auc" in set(heights.measure) else "accuracy"
    if "epochs" in heights:
        heights = heights[heights.epochs == heights.epochs.iloc[0]]
    rows = heights[
        (heights.split == "test")
        & (heights.measure == metric)
        & (heights.pair.replace("RI-T/P-T", "P-T/RI-T") == pair)
    ]
    if rows.empty:
        raise UserError(
            f"Barriers of {pair} are measured on test images, between two "
            "models; name both in Models.models. Received: "
            f"{', '.join(heights.pair.unique())} on "
            f"{', '.join(heights.split.unique())} images."
        )
    unknown = rows[rows.height.isna()]
    if len(unknown):
        names = unknown["first"] + " and " + unknown["second"]
        raise UserError(
            "Where outputs are not finite there is no accuracy, and the height "
            f"of a barrier is unknown. Received: such between {names.iloc[0]}."
        )
    return float(rows.height.mean())


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
            f"barrier height of {pair}",
            direction,
            BARRIER,
            lambda table, pair=pair: mean_barrier(barriers(table), pair),
            unit="points",
        )
        for pair, direction in (
            ("P-T/P-T", "<"),
            ("P-T/RI-T", ">"),
            ("RI-T/RI-T", ">"),
        )
    ],
    cost=lambda options, models: _cost(options, models),
)
def interpolation(
    models,
    num_points: schema.Several = 50,
    extent: tuple[float, float] = (-0.5, 1.5),
    splits: schema.Splits | None = None,
    epochs: Epochs | None = None,
):
    """Measures loss and metric along the line through every pair.

    Batch normalization's statistics at each point are by `Models.batch_norm`.

    Args:
        models: `Models`, at least two of them trained on the target.
        num_points: int, points of each pair from one model to the other, both
            included; the paper takes 50 for DomainNet and 20 for CheXpert.
        extent: (first, last) alpha; beyond [0, 1] is extrapolation, in points
            of the same distance.
        splits: of "test" and "train"; None: those that the data have.
        epochs: of every model, "best", "last" or int; None: that of
            `Models.epoch`. Of several, each is compared with the same of every
            other model, and the first with the others of the same model: the
            paper takes "best" and "last" for CheXpert.

    Returns:
        `Table`, one row per pair, split and alpha: pair, first, second, epochs
        (such as "best-last"; only if `epochs` are given), split, alpha, loss
        (nats), accuracy (share of right answers, for multi-label data of right
        findings) and for multi-label data auc and auc_<finding>. Beside it
        interpolation_barriers, see `barriers`, and interpolation_summary: of
        each kind of pair (epochs, split and measure) how many there are, and
        their mean, least and greatest height.

    Raises:
        UserError: if there are fewer than two models or they do not fit.
    """
    members = models.trained(2, "Interpolation")
    alphas = alpha_grid(num_points, extent)
    ends, lines = _lines(members, epochs)
    points = Points(
        np.concatenate(
            [
                segment(alphas, i, j, len(ends)).coefficients
                for *_, i, j in lines
            ]
        )
    )
    tables = []
    for split in splits or models.examples.splits:
        columns = _surface(models, ends, split).evaluate(
            points, models.evaluations, f"interpolation, {split}"
        )
        labels = pandas.DataFrame(
            [
                (*line, split, alpha)
                for *line, _, _ in lines
                for alpha in alphas
            ],
            columns=[*_LINE, "alpha"],
        )
        tables.append(labels.assign(**columns))
    table = pandas.concat(tables, ignore_index=True)
    if epochs is None:
        table = table.drop(columns="epochs")
    heights = barriers(table)
    return Table(
        table,
        interpolation_barriers=heights,
        interpolation_summary=_summary(heights),
    )


def _lines(members, epochs):
    """Returns the ends of the lines, and between which of them they run.

    Args:
        members: list of `Member`.
        epochs: see `interpolation`.

    Returns:
        ends: list of (`Member`, int, its epoch), each once.
        lines: list of (kind of pair, first name, second name, epochs, position
            of the first among the ends, position of the second).
    """
    ends = {}

    def end(member, epoch):
        resolved = (
            member.epoch
            if epoch is None
            else member.source.resolve_epoch(epoch)
        )
        return ends.setdefault((member, resolved), len(ends))

    lines, names = [], epochs or (None,)
    for epoch in names:
        lines += [
            (f"{a.kind}/{b.kind}", a.name, b.name, f"{epoch}-{epoch}")
            + (end(a, epoch), end(b, epoch))
            for a, b in itertools.combinations(members, 2)
        ]
    for epoch in names[1:]:
        own = [(m, end(m, names[0]), end(m, epoch)) for m in members]
        lines += [
            (f"{m.kind}/{m.kind}", m.name, m.name, f"{names[0]}-{epoch}", i, j)
            for m, i, j in own
            if i != j
        ]
    return list(ends), lines


def _surface(models, ends, split):
    """Returns the `LossSurface` over the ends of lines."""
    if ends == [(member, member.epoch) for member in models.trained()]:
        return models.surface(split)
    return examples_surface(
        models.model(ends[0][0]),
        [models.weights(member, epoch) for member, epoch in ends],
        models.examples,
        split,
        models.batch_norm,
        strategy=models.strategy,
    )


def _cost(options, models):
    """Returns how often the whole network is run on the images of a split."""
    others = len(options["epochs"] or (None,)) - 1
    lines = (1 + others) * math.comb(models, 2) + others * models
    points = len(alpha_grid(options["num_points"], options["extent"]))
    return points * lines * len(options["splits"] or ("test", "train"))


def barriers(table):
    """Returns the barrier height of each pair.

    Args:
        table: what `interpolation` returns.

    Returns:
        `pandas.DataFrame`, one row per pair, split and measure: pair, first,
        second, epochs (if the table has them), split, measure ("loss",
        "accuracy" or "auc"), height (nats, or share).
    """
    by = [column for column in _LINE if column in table]
    measures = [m for m in ("loss", "accuracy", "auc") if m in table]
    return pandas.DataFrame(
        [
            dict(zip(by, key, strict=True))
            | {
                "measure": measure,
                "height": barrier_height(
                    rows.alpha, rows[measure], measure != "loss"
                ),
            }
            for key, rows in table.groupby(by, sort=False)
            for measure in measures
        ]
    )


def _summary(heights):
    """Returns number, mean and range of heights, one row a kind of pair."""
    by = [
        column
        for column in heights
        if column in ("pair", "epochs", "split", "measure")
    ]
    found = heights.groupby(by, sort=False).height
    return found.agg(
        pairs="size", mean="mean", least="min", greatest="max"
    ).reset_index()


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
    handles = _legend(axes[0][0], table)
    # As many beside each other as there is room for.
    columns = min(len(handles), 3 * len(splits))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    return figure


def _styles(table):
    """Returns {epochs: line style}, {} of a table without that column."""
    epochs = table.epochs.unique() if "epochs" in table else []
    return {e: _STYLES[i % len(_STYLES)] for i, e in enumerate(epochs)}


def _draw(axes, table, measure):
    styles, by = _styles(table), [c for c in _LINE[:-1] if c in table]
    for (kind, _, _, *epochs), rows in table.groupby(by, sort=False):
        axes.plot(
            rows.alpha,
            rows[measure],
            color=colour(kind),
            linestyle=styles[epochs[0]] if styles else dash(kind),
            marker=marker(kind),
            markevery=0.1,
            markersize=4,
            lw=1.2,
        )
    if measure == "loss":
        # Far outside, the loss leaves the picture by orders of magnitude.
        inside = table.loss[table.alpha.between(0, 1)]
        axes.set_ylim(0, 1.1 * inside[np.isfinite(inside)].max())
    for end in (0, 1):
        axes.axvline(end, color="0.8", lw=0.8, zorder=0)


def _legend(axes, table):
    """Returns a line of each colour and, of several epochs, of each style."""
    styles = _styles(table)
    looks = {
        kind: {
            "color": colour(kind),
            "linestyle": "-" if styles else dash(kind),
            "marker": marker(kind),
            "markersize": 4,
        }
        for kind in table.pair.unique()
    }
    for epochs, style in styles.items():
        looks[epochs] = {"color": "0.4", "linestyle": style}
    return [
        axes.plot([], label=label, lw=1.2, **look)[0]
        for label, look in looks.items()
    ]
