"""How many labels P saves: accuracy against the number of training images."""

import numpy as np
import pandas

from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    Value,
    declare_analysis,
)
from keras_transfer.analysis.drawing import new_figure, plot_by
from keras_transfer.analysis.learning import (
    check_metric,
    check_same_data,
    learned,
    mark_unconverged,
    unconverged,
)
from keras_transfer.analysis.trajectory import about
from keras_transfer.errors import UserError

_FROZEN = "P-T frozen"
_KINDS = ("P-T", "RI-T", _FROZEN)


@declare_analysis(
    figures=[
        Figure(
            "label_efficiency",
            lambda table: _figure(table),
            "How many labels P saves",
            "Performance of P-Ts, of RI-Ts and of P-Ts of which the head alone "
            "was trained, by the number of training images. The dotted line is "
            "what P-Ts reach with the fewest: where RI-Ts meet it, P saves the "
            "images to the left. Rings: models that were still learning when "
            "their training ended.",
        )
    ],
    statistics=[
        Statistic(
            "L1",
            "P saves labels.",
            "how many times as many images RI-Ts need to reach what P-Ts reach "
            "with the fewest",
            ">",
            1.0,
            lambda table: labels_saved(table),
            unit="times",
        ),
        Statistic(
            "L1",
            "P saves labels.",
            "final accuracy with the most images, P-T minus P-T of frozen "
            "features",
            ">",
            0.0,
            lambda table: gain_of_fine_tuning(table),
            decides=False,
            unit="points",
        ),
    ],
    cost=lambda options, models: 0,
)
def label_efficiency(models):
    """Compares what P-Ts and RI-Ts learn from fewer and from more images.

    The models are of one target, of whose training images some had fewer than
    others (load.num_train). Those of kind "P-T frozen" are P-Ts of which the
    head alone was trained (train.trained_modules). Whatever else is named is
    left aside. Weights and images are not looked at, only how accuracy grew:
    metrics.csv of a run, or what a `Trajectory` recorded, which also says on
    how many images: Trajectory(num_train=200).

    Args:
        models: `Models` of kinds "P-T", "RI-T" and "P-T frozen", one or more of
            each per number of images; runs or `Trajectory`s.

    Returns:
        `pandas.DataFrame`, one row per model, in order of images: kind, name,
        num_images (training images), repeat (0 for the model named first of its
        kind and number, 1, ...), epochs, final and speed (see
        `learning_summary`; final is the mean of the last fifth of the epochs),
        averaged (how many these are), rise (see `last_fifth`), whether it has
        converged, and the metric ("accuracy" or "auc").

    Raises:
        UserError: if no model was trained on another number of images, or
            models are of different data otherwise.
    """
    members = [m for kind in _KINDS for m in models.of_kind(kind)]
    if not members:
        raise UserError(
            "What P saves is seen by P-Ts and RI-Ts trained on different "
            "numbers of images; name them in Models.models. Received: no "
            f"{', no '.join(_KINDS)}."
        )
    check_same_data(members, ignored=("num_train",))
    table = pandas.DataFrame(
        {"kind": m.kind, "name": m.name, "num_images": _num_images(m)}
        | learned(m.source, averaged=True)
        for m in members
    )
    check_metric(table)
    if table.num_images.nunique() < 2:
        raise UserError(
            "A curve needs models of two or more numbers of training images. "
            f"Received: {len(table)} of {table.num_images[0]} images."
        )
    repeat = table.groupby(["kind", "num_images"]).cumcount()
    table.insert(table.columns.get_loc("epochs"), "repeat", repeat)
    return table.sort_values("num_images", kind="stable", ignore_index=True)


def labels_saved(table):
    """Returns the statistic of claim L1, "P saves labels".

    Args:
        table: what `label_efficiency` returns.

    Returns:
        `Value`: how many times as many images RI-Ts need to reach what P-Ts
        reach with the fewest, between measured numbers by a straight line in
        the logarithm of images. Where RI-Ts never reach it, or with the fewest
        images already, it is the bound that these give, and the note says so.

    Raises:
        UserError: if there are no P-Ts or no RI-Ts.
    """
    curves = {
        kind: _curve(table, kind, f"P-Ts with RI-Ts: no {kind}")
        for kind in ("P-T", "RI-T")
    }
    fewest, level = curves["P-T"].index[0], curves["P-T"].iloc[0]
    needed, bound = images_to_reach(level, curves["RI-T"])
    notes = [unconverged(table)]
    if bound:
        notes.insert(0, f"{bound} {needed / fewest:.3g} times as many.")
    return Value(float(needed / fewest), " ".join(filter(None, notes)))


def images_to_reach(level, curve):
    """Returns with how many images a learning curve reaches a level.

    Args:
        level: float, of the metric.
        curve: `pandas.Series` of the metric by number of images, ascending.

    Returns:
        number: float, where the straight lines through the curve, in the
            logarithm of images, first reach the level.
        bound: "At least" if none does, and the number is the greatest measured;
            "At most" if the first already has; "" otherwise.
    """
    reached = np.flatnonzero(curve >= level)
    if not len(reached):
        return float(curve.index[-1]), "At least"
    k = reached[0]
    if k == 0:
        bound = "At most" if curve.iloc[0] > level else ""
        return float(curve.index[0]), bound
    low, high = curve.iloc[k - 1], curve.iloc[k]
    ends = np.log2([curve.index[k - 1], curve.index[k]])
    return float(2 ** np.interp(level, [low, high], ends)), ""


def gain_of_fine_tuning(table):
    """Returns what training all layers adds to training the head alone.

    Args:
        table: what `label_efficiency` returns.

    Returns:
        `Value`: the final metric of P-Ts minus that of those with frozen
        features, means over models, at the most images of both.

    Raises:
        UserError: if there is no number of images with both.
    """
    curves = [
        _curve(table, kind, f"P-Ts with frozen ones: no {kind}")
        for kind in ("P-T", _FROZEN)
    ]
    gains = (curves[0] - curves[1]).dropna()
    if gains.empty:
        raise UserError(
            "P-Ts are compared with frozen ones of as many images. Received: "
            "no number of images of which there are both."
        )
    return Value(float(gains.iloc[-1]), f"With {gains.index[-1]} images.")


def _curve(table, kind, missing):
    """Returns the mean final metric of one kind by number of images."""
    rows = table[table.kind == kind]
    if rows.empty:
        raise UserError(
            f"What P saves is told by comparing {missing} is named."
        )
    return rows.groupby("num_images").final.mean()


def _num_images(member):
    """Returns how many training images a model had."""
    known = about(member.source).get("num_train")
    if known is None:
        raise UserError(
            "Of each model it must be known on how many images it was trained. "
            f"Received: {member.name}, which does not say; record it with "
            "Trajectory(num_train=200)."
        )
    return known


def _figure(table):
    metric = table.metric.iloc[0]
    figure, axes = new_figure(6.4, 4.4)
    fewest = table[table.kind == "P-T"]
    if len(fewest):
        level = fewest.final[fewest.num_images == fewest.num_images.min()]
        axes.axhline(level.mean(), color="0.6", linestyle=":", zorder=0)
    plot_by(axes, table, "num_images", "final", "kind")
    mark_unconverged(axes, table, "num_images", "final")
    ticks = sorted(table.num_images.unique())
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{number:,}" for number in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training images", ylabel=f"test {metric}")
    axes.legend(fontsize="small", loc="lower right")
    return figure
