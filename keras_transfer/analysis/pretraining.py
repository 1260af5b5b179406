"""Which checkpoint of P to start from (paper section 3.5)."""

import numpy as np
import pandas

from keras_transfer.analysis.declaration import (
    Figure,
    Refuted,
    Statistic,
    Table,
    Value,
    declare_analysis,
)
from keras_transfer.analysis.drawing import colour, new_figure, plot_by
from keras_transfer.analysis.interpolation import (
    alpha_grid,
    barrier_height,
    segment,
)
from keras_transfer.analysis.learning import check_same_data, learned
from keras_transfer.analysis.models import Models
from keras_transfer.analysis.statistics import BARRIER, HARM
from keras_transfer.analysis.trajectory import Trajectory
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.landscape.loss_surface import examples_surface
from keras_transfer.landscape.weight_space import Points
from keras_transfer.runs import Run

_CLAIM = (
    "An earlier pre-training checkpoint suffices; final accuracy plateaus once "
    "it has entered the basin of the converged P."
)
_TABLES = ("pretraining", "pretraining_barriers")


@declare_analysis(
    figures=[
        Figure(
            "pretraining",
            lambda table, heights: _figure(table, heights),
            "Which checkpoint of P to start from",
            "What P-Ts learn by the epoch of P that they start from, and below "
            "it that epoch of P itself: the barrier between it and the "
            "converged P, and its own loss. Filled: epochs in the basin of the "
            "converged P.",
            tables=_TABLES,
        )
    ],
    statistics=[
        Statistic(
            "C11",
            _CLAIM,
            "final accuracy from the first checkpoint in that basin, minus "
            "that from the last",
            ">",
            -HARM,
            lambda table, heights: plateau(table, heights),
            tables=_TABLES,
            unit="points",
        ),
        Statistic(
            "C11",
            _CLAIM,
            "share of P's epochs that the first checkpoint in that basin saves",
            ">",
            0.0,
            lambda table, heights: _saved(table, heights),
            tables=_TABLES,
            unit="%",
        ),
    ],
)
def pretraining(
    models,
    pretrained=None,
    pretrained_data=None,
    num_points: schema.Several = 20,
    tolerance: schema.NotNegative = 0.05,
):
    """Compares P-Ts that were fine-tuned from various epochs of one P.

    Beside what they learned stands P at that epoch, on the test images of P's
    own data: whether it lies in the basin of the converged P, its last
    checkpoint. It does if there is no barrier between the two and its own loss
    is as low, within a tolerance. Which epoch a model started from is read from
    a run's config.gin; a trajectory says it: Trajectory(pretrained_epoch=3).

    Args:
        models: `Models` of kind "P-T" from two or more epochs of P; RI-Ts among
            them are shown for comparison. Runs or `Trajectory`s.
        pretrained: P, a run directory, `Run` or `Trajectory`; None: the one of
            kind "P" among the models, or else the run that the P-Ts name, where
            a relative path starts at the working directory.
        pretrained_data: `Examples` of P's own data, or what else `Models.data`
            takes; None: those of its run.
        num_points: int, points on the line from P at an epoch to the last, both
            included.
        tolerance: float, nats by which the loss of a checkpoint in the basin
            may be above that of the converged P. With 0.05 nats the probability
            that it gives to right answers is 5% less, in the geometric mean.

    Returns:
        `Table`, one row per model, in order of epoch: kind, epoch (of P,
        missing for an RI-T), name, repeat (0 for the model named first of its
        kind and epoch, 1, ...), epochs, final and speed (see
        `learning_summary`; final is the mean of the last fifth of the epochs),
        averaged (how many these are), rise (see `last_fifth`), whether it has
        converged, and the metric ("accuracy" or "auc"). Beside it
        pretraining_barriers, see `checkpoint_barriers`.

    Raises:
        UserError: if there are P-Ts from fewer than two epochs, P or its
            checkpoints are missing, or models are of different data.
    """
    fine_tuned, others = models.of_kind("P-T"), models.of_kind("RI-T")
    if not fine_tuned:
        raise UserError(
            "The choice of a checkpoint is judged by P-Ts fine-tuned from "
            "several of them; name these in Models.models. Received: no P-T."
        )
    check_same_data([*fine_tuned, *others])
    if pretrained is None:
        pretrained = _pretrained(models, fine_tuned)
    source = Models(
        {"P": pretrained}, pretrained_data, batch_norm=models.batch_norm
    )
    if pretrained_data is None and isinstance(pretrained, Trajectory):
        raise UserError(
            "Barriers are measured on P's own data, which a Trajectory does "
            "not know. Received: pretrained_data=None; give "
            "pretraining(..., pretrained_data=Examples(test=...))."
        )
    epochs = _starts(fine_tuned, source)
    table = pandas.DataFrame(
        {"kind": m.kind, "epoch": epoch, "name": m.name}
        | learned(m.source, averaged=True)
        for m, epoch in zip(
            [*fine_tuned, *others],
            [*epochs, *[None] * len(others)],
            strict=True,
        )
    ).astype({"epoch": "Int64"})
    table = table.sort_values("epoch", kind="stable", ignore_index=True)
    repeat = table.groupby(["kind", "epoch"], dropna=False).cumcount()
    table.insert(table.columns.get_loc("epochs"), "repeat", repeat)
    heights = checkpoint_barriers(
        source, epochs, num_points, tolerance, models.evaluations
    )
    # Of the models compared none was run.
    table["batch_norm"] = heights["batch_norm"] = source.batch_norm_used
    return Table(table, pretraining_barriers=heights)


def checkpoint_barriers(source, epochs, num_points, tolerance, evaluations):
    """Returns the barriers between checkpoints of one model and its last.

    Args:
        source: `Models` of one, with the data on whose test images barriers are
            measured.
        epochs: integers, its epochs to compare with the last; one or more
            before it.
        num_points: int, points on each line, both ends included.
        tolerance: float, see `pretraining`.
        evaluations: the `Evaluations` in which evaluated points are kept.

    Returns:
        `pandas.DataFrame`, one row per measure and epoch, the last included:
        epoch, measure ("loss", "accuracy" or "auc"), value (the checkpoint's
        own, in nats or share), height (of the barrier to the last, see
        `barrier_height`; 0 of the last itself) and in_basin, whether the epoch
        lies in the basin of the last: its barrier in accuracy or AUC is at most
        `BARRIER`, its loss at most the last one's plus the tolerance.

    Raises:
        UserError: if a checkpoint is missing.
    """
    (pretrained,) = source
    last = pretrained.epoch
    before = sorted(set(epochs) - {last})
    surface = examples_surface(
        source.model(pretrained, statistics=False),
        list(source.checkpoints(pretrained, [*before, last])),
        source.examples,
        "test",
        source.batch_norm,
        strategy=source.strategy,
    )
    alphas = alpha_grid(num_points, (0, 1))
    lines = [
        segment(alphas, k, len(before), len(before) + 1).coefficients
        for k in range(len(before))
    ]
    columns = surface.evaluate(
        Points(np.concatenate(lines)), evaluations, "barriers to the last epoch"
    )
    rows = []
    for measure in ("loss", "accuracy", "auc"):
        if measure not in columns:
            continue
        lines = columns[measure].reshape(-1, num_points)
        for epoch, line in zip(before, lines, strict=True):
            height = barrier_height(alphas, line, measure != "loss")
            rows.append((epoch, measure, line[0], height))
        rows.append((last, measure, lines[0][-1], 0.0))
    table = pandas.DataFrame(
        rows, columns=["epoch", "measure", "value", "height"]
    )
    return table.assign(in_basin=table.epoch.isin(_basin(table, tolerance)))


def _basin(heights, tolerance):
    """Returns the epochs that lie in the basin of the last, an index."""
    by_measure = heights.pivot(index="epoch", columns="measure")
    loss = by_measure["value"]["loss"]
    inside = by_measure["height"][_metric(heights)] <= BARRIER
    return loss.index[inside & (loss <= loss.iloc[-1] + tolerance)]


def first_in_basin(table, heights):
    """Returns the first epoch of P from which a P-T starts in the basin.

    Args:
        table: what `pretraining` returns.
        heights: what `checkpoint_barriers` returns.

    Returns:
        first, last: int, that epoch and the last of P.

    Raises:
        UserError: if no P-T started from the converged P.
        Refuted: if no earlier one was in its basin.
    """
    last = int(heights.epoch.max())
    starts = sorted(set(table.epoch[table.kind == "P-T"].astype(int)))
    if last not in starts:
        raise UserError(
            "A plateau is measured against P-Ts from the converged P. "
            f"Received: P-Ts from epochs {', '.join(map(str, starts))}; add "
            f"some from epoch {last}."
        )
    inside = heights.epoch[heights.in_basin & heights.epoch.isin(starts)]
    first = int(inside.min())
    if first == last:
        raise Refuted(
            "No earlier checkpoint was in the basin of the converged P, of "
            f"epoch {last}."
        )
    return first, last


def plateau(table, heights):
    """Returns the statistic of claim C11, "an earlier checkpoint suffices".

    Args:
        table: what `pretraining` returns.
        heights: what `checkpoint_barriers` returns.

    Returns:
        float, final metric of P-Ts from the first checkpoint in the basin of
        the converged P minus that of those from the last, means over models.

    Raises:
        UserError: if no P-T started from the converged P.
        Refuted: if no earlier checkpoint was in its basin.
    """
    first, last = first_in_basin(table, heights)
    finals = table[table.kind == "P-T"].groupby("epoch").final.mean()
    return float(finals[first] - finals[last])


def _saved(table, heights):
    first, last = first_in_basin(table, heights)
    return Value(1 - first / last, f"{last - first} of {last} epochs.")


def _starts(fine_tuned, source):
    """Returns the epoch of P that each P-T started from, a list of int."""
    (pretrained,) = source
    epochs = [
        pretrained.source.resolve_epoch(_pretrained_epoch(m))
        for m in fine_tuned
    ]
    if len(set(epochs)) < 2:
        raise UserError(
            "A sweep needs P-Ts from two or more epochs of P. Received: "
            f"{len(epochs)} from epoch {epochs[0]}."
        )
    return epochs


def _pretrained_epoch(member):
    """Returns which epoch of P a P-T says that it started from."""
    if isinstance(member.source, Run):
        return member.source.binding("train.pretrained_epoch")
    if "pretrained_epoch" not in member.source.about:
        raise UserError(
            "Of each P-T it must be known which epoch of P it started from. "
            f"Received: {member.name}, which does not say; record it with "
            "Trajectory(pretrained_epoch=3)."
        )
    return member.source.about["pretrained_epoch"]


def _pretrained(models, fine_tuned):
    """Returns where P comes from: named as such, or else by the P-Ts."""
    own = [m.source for m in models.of_kind("P")]
    if len(own) > 1:
        raise UserError(
            "A sweep is over the checkpoints of one P. Received: "
            f"{len(own)} models of kind P."
        )
    if own:
        # A single model says that it has no epochs.
        own[0].resolve_epoch(0)
        return own[0]
    unknown = [m.name for m in fine_tuned if not isinstance(m.source, Run)]
    if unknown:
        raise UserError(
            "P is looked up in the run directories of P-Ts. Received: "
            f"{', '.join(unknown)}, which are none; give P as "
            "pretraining(..., pretrained=...), a Trajectory or run directory."
        )
    named = {m.name: m.source.binding("train.pretrained") for m in fine_tuned}
    if scratch := [name for name, path in named.items() if path is None]:
        raise UserError(
            "P-Ts are runs with train.pretrained. Received: "
            f"{', '.join(scratch)}, trained from scratch; name it as RI-T."
        )
    runs = {path: Run(path) for path in named.values()}
    if len({run.path.resolve() for run in runs.values()}) > 1:
        raise UserError(
            "A sweep is over the checkpoints of one P. Received: P-Ts from "
            f"{', '.join(runs)}; if these are one, bind "
            "pretraining.pretrained to its run directory."
        )
    name, path = next(iter(named.items()))
    if not runs[path].exists:
        raise UserError(
            "The P that a P-T started from is looked up where the P-T's "
            "config.gin says, and no run is there. Bind "
            "pretraining.pretrained to P's run directory. Received: "
            f"{name} from {path}."
        )
    return runs[path]


def _metric(heights):
    """Returns the metric of P's own dataset, which need not be the target's."""
    return "auc" if "auc" in set(heights.measure) else "accuracy"


def _figure(table, heights):
    metric = table.metric.iloc[0]
    figure, axes = new_figure(8.4, 6.4, 2, 2, sharex=True)
    scratch = table[table.kind == "RI-T"]
    rows = table[table.kind == "P-T"]
    # As names: the epochs that matter lie close together, far from the others.
    rows = rows.assign(epoch=rows.epoch.astype(str))
    for panel, measure in zip(axes[0], ("final", "speed"), strict=True):
        if len(scratch):
            panel.axhline(
                scratch[measure].mean(),
                color=colour("RI-T"),
                linestyle=":",
                label="RI-T",
            )
        plot_by(panel, rows, "epoch", measure, "kind")
    axes[0][0].set(ylabel=f"test {metric}", title=f"Final {metric}")
    axes[0][1].set(
        ylabel=f"test {metric}, mean over epochs", title="Optimization speed"
    )
    metric = _metric(heights)
    losses = heights[heights.measure == "loss"]
    _draw_p(axes[1][0], heights[heights.measure == metric], "height")
    _draw_p(axes[1][1], losses, "value")
    for panel, line in zip(
        axes[1], (BARRIER, losses.value.iloc[-1]), strict=True
    ):
        panel.axhline(line, color="0.8", lw=0.8, zorder=0)
    axes[1][0].set(
        ylabel=f"barrier in {metric}", title="Barrier to the converged P"
    )
    axes[1][1].set(ylabel="test loss (nats)", title="P's own loss")
    return figure


def _draw_p(axes, own, column):
    """Draws one column of P by its epoch, filled markers in the basin."""
    epochs, inside = own.epoch.astype(str), own.in_basin
    axes.plot(epochs, own[column], color=colour("P"))
    for chosen, filled, label in (
        (inside, colour("P"), "in the basin"),
        (~inside, "white", "outside"),
    ):
        if not chosen.any():
            continue
        axes.plot(
            epochs[chosen],
            own[column][chosen],
            "o",
            color=colour("P"),
            markerfacecolor=filled,
            markersize=5,
            label=label,
            clip_on=False,
        )
    axes.set_xlabel("epoch of P (not to scale)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    if own.epoch.nunique() > 8:
        axes.tick_params("x", rotation=90)
