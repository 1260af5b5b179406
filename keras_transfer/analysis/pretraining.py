"""Which checkpoint of P to start from (paper section 3.5)."""

import gin
import numpy as np

from keras_transfer import objectives
from keras_transfer.analysis.feature_reuse import (
    check_same_data,
    learning_summary,
)
from keras_transfer.analysis.interpolation import (
    alpha_grid,
    barrier_height,
    segment,
)
from keras_transfer.analysis.output import colour, new_figure, plot_by
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.landscape.loss_surface import dataset_surface
from keras_transfer.landscape.weight_space import Points
from keras_transfer.runs import Run


@gin.configurable
def pretraining(
    subjects,
    output,
    pretrained: str | None = None,
    num_points: schema.Several = 20,
):
    """Compares P-Ts that were fine-tuned from various epochs of one P.

    Beside what they learned stands the barrier between P at that epoch and the
    converged P, its last checkpoint, on the test images of P's own dataset.
    Which epoch a run started from is read from its config.gin.

    Args:
        subjects: `Subjects` of kind "P-T" from two or more epochs of P; RI-Ts
            among them are shown for comparison.
        output: `Output`; receives pretraining.csv, what is returned,
            pretraining_barriers.csv (one row per epoch of P and measure: epoch,
            measure, height in nats or share, 0 for the last) and the figure
            pretraining.
        pretrained: P's run directory; None: the one that the P-Ts name, where
            a relative path starts at the working directory.
        num_points: int, points on the line from P at an epoch to the last.

    Returns:
        `pandas.DataFrame`, one row per run, in order of epoch: kind, epoch (of
        P, missing for an RI-T), name, repeat (0 for the run named first of its
        kind and epoch, 1, ...), epochs, final and speed (see
        `learning_summary`).

    Raises:
        UserError: if there are P-Ts from fewer than two epochs, P or its
            checkpoints are missing, or runs are of different data.
    """
    import pandas

    fine_tuned, others = subjects.of_kind("P-T"), subjects.of_kind("RI-T")
    if not fine_tuned:
        raise UserError(
            "The choice of a checkpoint is judged by P-Ts fine-tuned from "
            "several of them; name these in Subjects.runs. Received: no P-T."
        )
    check_same_data([*fine_tuned, *others])
    source = _source(fine_tuned, pretrained)
    epochs = _starts(fine_tuned, source)
    table = pandas.DataFrame(
        {"kind": s.kind, "epoch": epoch, "name": s.name}
        | learning_summary(s.run)
        for s, epoch in zip(
            [*fine_tuned, *others],
            [*epochs, *[None] * len(others)],
            strict=True,
        )
    ).astype({"epoch": "Int64"})
    table = table.sort_values("epoch", kind="stable", ignore_index=True)
    repeat = table.groupby(["kind", "epoch"], dropna=False).cumcount()
    table.insert(table.columns.get_loc("epochs"), "repeat", repeat)
    heights = checkpoint_barriers(source, epochs, num_points, output.results)
    output.table("pretraining", table)
    output.table("pretraining_barriers", heights)
    metric = objectives.metric_name(fine_tuned[0].run.info().multi_label)
    output.figure("pretraining", _figure(table, heights, metric))
    return table


def checkpoint_barriers(source, epochs, num_points=20, results=None):
    """Returns the barriers between checkpoints of one run and its last.

    Args:
        source: the `runs.Run`; barriers are measured on the test images of its
            own dataset.
        epochs: integers, its epochs to compare with the last; one or more
            before it.
        num_points: int, points on each line, both ends included.
        results: None, or the `Results` in which evaluated points are kept.

    Returns:
        `pandas.DataFrame`, one row per measure and epoch, the last included,
        whose height is 0: epoch, measure ("loss", "accuracy" or "auc") and
        height (see `barrier_height`).

    Raises:
        UserError: if a checkpoint is missing.
    """
    import pandas

    last = source.resolve_epoch("last")
    before = sorted(set(epochs) - {last})
    models = [source.load_model(epoch) for epoch in [*before, last]]
    surface = dataset_surface(
        models[0],
        [model.get_weights() for model in models],
        source.load_data(),
    )
    alphas = alpha_grid(num_points, (0, 1))
    lines = [
        segment(alphas, k, len(before), len(models)).coefficients
        for k in range(len(before))
    ]
    columns = surface.evaluate(
        Points(np.concatenate(lines)), results, "barriers to the last epoch"
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


def plateau(table, heights, threshold=0.05):
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


def _starts(fine_tuned, source):
    """Returns the epoch of P that each P-T started from, a list of int."""
    epochs = [
        source.resolve_epoch(s.run.binding("train.pretrained_epoch"))
        for s in fine_tuned
    ]
    if len(set(epochs)) < 2:
        raise UserError(
            "A sweep needs P-Ts from two or more epochs of P. Received: "
            f"{len(epochs)} from epoch {epochs[0]}."
        )
    return epochs


def _source(fine_tuned, pretrained):
    """Returns the `Run` of P."""
    if pretrained is not None:
        source = Run(pretrained)
        source.check_exists()
        return source
    named = {s.name: s.run.binding("train.pretrained") for s in fine_tuned}
    if scratch := [name for name, path in named.items() if path is None]:
        raise UserError(
            "P-Ts are runs with train.pretrained. Received: "
            f"{', '.join(scratch)}, trained from scratch; name it as RI-T."
        )
    sources = {path: Run(path) for path in named.values()}
    if len({source.path.resolve() for source in sources.values()}) > 1:
        raise UserError(
            "A sweep is over the checkpoints of one P. Received: P-Ts from "
            f"{', '.join(sources)}; if these are one, bind "
            "pretraining.pretrained to its run directory."
        )
    name, path = next(iter(named.items()))
    if not sources[path].exists:
        raise UserError(
            "The P that a P-T started from is looked up where the P-T's "
            "config.gin says, and no run is there. Bind "
            "pretraining.pretrained to P's run directory. Received: "
            f"{name} from {path}."
        )
    return sources[path]


def _metric(heights):
    """Returns the metric of P's own dataset, which need not be the target's."""
    return "auc" if "auc" in set(heights.measure) else "accuracy"


def _figure(table, heights, metric):
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
