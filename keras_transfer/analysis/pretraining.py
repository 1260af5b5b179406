"""Which checkpoint of P to start from (paper section 3.5)."""

import numpy as np
import pandas

from keras_transfer.analysis.declaration import (
    Figure,
    Refuted,
    Statistic,
    Table,
    declare_analysis,
)
from keras_transfer.analysis.drawing import colour, new_figure, plot_by
from keras_transfer.analysis.feature_reuse import (
    check_same_data,
    learning_summary,
)
from keras_transfer.analysis.interpolation import (
    alpha_grid,
    barrier_height,
    segment,
)
from keras_transfer.analysis.models import Models
from keras_transfer.analysis.statistics import BARRIER, HARM, mean_over_seeds
from keras_transfer.analysis.trajectory import Trajectory, learning_curve
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.landscape.loss_surface import examples_surface
from keras_transfer.landscape.weight_space import Points
from keras_transfer.runs import Run


@declare_analysis(
    figures=[
        Figure(
            "pretraining",
            lambda table, heights: _figure(table, heights),
            "Which checkpoint of P to start from",
            "What P-Ts learn by the epoch of P that they start from, and below "
            "it the barrier between that epoch and the converged P.",
            tables=("pretraining", "pretraining_barriers"),
        )
    ],
    statistics=[
        Statistic(
            "C11",
            "An earlier pre-training checkpoint suffices; final accuracy "
            "plateaus once it has entered the basin of the converged P.",
            "final accuracy from the checkpoints in that basin, the last "
            "excepted, minus that from the last",
            ">",
            -HARM,
            lambda table, heights: _gain(table, heights),
            tables=("pretraining", "pretraining_barriers"),
        )
    ],
)
def pretraining(
    models,
    pretrained=None,
    pretrained_data=None,
    num_points: schema.Several = 20,
):
    """Compares P-Ts that were fine-tuned from various epochs of one P.

    Beside what they learned stands the barrier between P at that epoch and the
    converged P, its last checkpoint, on the test images of P's own data. Which
    epoch a model started from is read from a run's config.gin; a trajectory
    says it: Trajectory(pretrained_epoch=3).

    Args:
        models: `Models` of kind "P-T" from two or more epochs of P; RI-Ts among
            them are shown for comparison. Runs or `Trajectory`s.
        pretrained: P, a run directory, `Run` or `Trajectory`; None: the one of
            kind "P" among the models, or else the run that the P-Ts name, where
            a relative path starts at the working directory.
        pretrained_data: `Examples` of P's own data, or what else `Models.data`
            takes; None: those of its run.
        num_points: int, points on the line from P at an epoch to the last.

    Returns:
        `Table`, one row per model, in order of epoch: kind, epoch (of P,
        missing for an RI-T), name, repeat (0 for the model named first of its
        kind and epoch, 1, ...), epochs, final and speed (see
        `learning_summary`), and their metric ("accuracy" or "auc"). Beside it
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
        | learning_summary(m.source)
        | {"metric": learning_curve(m.source)[0]}
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
        source, epochs, num_points, models.evaluations
    )
    # Of the models compared none was run.
    table["batch_norm"] = heights["batch_norm"] = source.batch_norm_used
    return Table(table, pretraining_barriers=heights)


def checkpoint_barriers(source, epochs, num_points, evaluations):
    """Returns the barriers between checkpoints of one model and its last.

    Args:
        source: `Models` of one, with the data on whose test images barriers are
            measured.
        epochs: integers, its epochs to compare with the last; one or more
            before it.
        num_points: int, points on each line, both ends included.
        evaluations: the `Evaluations` in which evaluated points are kept.

    Returns:
        `pandas.DataFrame`, one row per measure and epoch, the last included,
        whose height is 0: epoch, measure ("loss", "accuracy" or "auc") and
        height in nats or share (see `barrier_height`).

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
        for epoch, values in zip(
            before, columns[measure].reshape(-1, num_points), strict=True
        ):
            height = barrier_height(alphas, values, measure != "loss")
            rows.append((epoch, measure, height))
        rows.append((last, measure, 0.0))
    return pandas.DataFrame(rows, columns=["epoch", "measure", "height"])


def plateau(table, heights, threshold=BARRIER):
    """Returns the statistic of claim C11, "an earlier checkpoint suffices".

    Args:
        table: what `pretraining` returns.
        heights: what `checkpoint_barriers` returns.
        threshold: float, the highest barrier in accuracy or AUC at which a
            checkpoint counts as in the basin of the converged P.

    Returns:
        first: int, the earliest epoch that P-Ts started from and whose barrier
            is at most `threshold`.
        gains: `pandas.Series` by repeat: the mean final metric of the P-Ts from
            `first` and later epochs, the last left out, minus that of the P-T
            from the last. Repeats that lack one of these are left out; none is
            left if `first` is the last.

    Raises:
        UserError: if no P-T started from the converged P.
    """
    own = heights[heights.measure == _metric(heights)]
    fine_tuned = table[table.kind == "P-T"].astype({"epoch": int})
    finals = fine_tuned.pivot(index="repeat", columns="epoch", values="final")
    last = int(own.epoch.max())
    if last not in finals:
        raise UserError(
            "A plateau is measured against P-Ts from the converged P. "
            f"Received: P-Ts from epochs {', '.join(map(str, finals))}; add "
            f"some from epoch {last}."
        )
    low = own.epoch[(own.height <= threshold) & own.epoch.isin(finals.columns)]
    first = int(low.min())
    earlier = finals.loc[:, (finals.columns >= first) & (finals.columns < last)]
    gains = earlier.mean(axis=1, skipna=False) - finals[last]
    return first, gains.dropna()


def _gain(table, heights):
    """Returns the mean of `plateau` over repeats, with its interval."""
    first, gains = plateau(table, heights)
    if not len(gains):
        raise Refuted(
            "No earlier checkpoint was in the basin of the converged P: the "
            f"first at which the barrier is at most {BARRIER} is the last one, "
            f"epoch {first}."
        )
    return mean_over_seeds(gains)


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
    for panel, measure in zip(axes[1], (_metric(heights), "loss"), strict=True):
        own = heights[heights.measure == measure]
        panel.plot(
            own.epoch.astype(str),
            own.height,
            "o-",
            color=colour("P"),
            markersize=3,
            clip_on=False,
        )
        unit = " (nats)" if measure == "loss" else ""
        panel.set(
            ylabel=f"barrier in {measure}{unit}",
            title="Barrier to the converged P",
            xlabel="epoch of P (not to scale)",
        )
        panel.set_ylim(bottom=0)
        if own.epoch.nunique() > 8:
            panel.tick_params("x", rotation=90)
    return figure
