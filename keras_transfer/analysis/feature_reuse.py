"""What P gives as images are cut into small blocks (paper section 3.1)."""

import math

import pandas

from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    Table,
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
from keras_transfer.analysis.statistics import rank_correlation
from keras_transfer.analysis.trajectory import about
from keras_transfer.errors import UserError

# Pairs of models that saw the same images, and how these were shuffled.
_IMAGES = ["shuffle", "block_size"]
_MEASURES = ("final", "speed")

_ALIKE = "Feature reuse matters most where domains are alike."
_LOW_LEVEL = "Low-level statistics help too, above all speed."


@declare_analysis(
    figures=[
        Figure(
            "feature_reuse",
            lambda table, drops: _figure(table, drops),
            "Feature reuse",
            "Performance of P-Ts and RI-Ts, and what is missing without P, as "
            "the blocks in which images are shuffled become smaller. Rings: "
            "models that were still learning when their training ended.",
            tables=("feature_reuse", "feature_reuse_drop"),
        )
    ],
    statistics=[
        Statistic(
            "C1",
            _ALIKE,
            "relative drop (A_PT - A_RIT) / A_PT in final accuracy on whole "
            "images, minus that on the smallest blocks",
            ">",
            0.0,
            lambda table, drops: Value(excess_drop(drops), unconverged(table)),
            tables=("feature_reuse", "feature_reuse_drop"),
            unit="points",
        ),
        Statistic(
            "C1",
            _ALIKE,
            "rank correlation of block size with the relative drop",
            ">",
            0.0,
            lambda drops: drop_trend(drops),
            tables=("feature_reuse_drop",),
            decides=False,
        ),
        Statistic(
            "C2",
            _LOW_LEVEL,
            "accuracy averaged over epochs on fully shuffled input, P-T minus "
            "RI-T",
            ">",
            0.0,
            lambda table: _gain(table, "speed"),
            unit="points",
        ),
        Statistic(
            "C2",
            _LOW_LEVEL,
            "final accuracy on fully shuffled input, P-T minus RI-T",
            ">",
            0.0,
            lambda table: _gain(table, "final"),
            unit="points",
        ),
    ],
    cost=lambda options, models: 0,
)
def feature_reuse(models):
    """Compares P-Ts with RI-Ts as the images' features are destroyed.

    The models are P-Ts and RI-Ts of one target, trained on images whose blocks
    were shuffled, at several block sizes, and on whole images. At each block
    size the first P-T is compared with the first RI-T, the second with the
    second, in the order named; there may be more of them at one size than at
    another. Whatever else is named is left aside. Weights and images are not
    looked at, only how accuracy grew: metrics.csv of a run, or what a
    `Trajectory` recorded, which also says how its images were shuffled:
    Trajectory(shuffle="blocks", block_size=8, shuffle_seed=1234).

    Unshuffled images are one block of their own size. Images whose pixels were
    shuffled have blocks of 1 px, and come before real blocks of 1 px, whose
    channels stay together, where there are both. Images whose channels were
    shuffled keep their own size as the block size; they are in the tables, but
    not on the figure's axis, nor in the statistics.

    Args:
        models: `Models` of kinds "P-T" and "RI-T", runs or `Trajectory`s.

    Returns:
        `Table`, one row per model, in order of block size: kind, name, shuffle
        ("none", "blocks", "pixels" or "channels"), block_size (px),
        shuffle_seed, repeat (0 for the model named first of its kind and block
        size, 1, ...), epochs, final and speed (see `learning_summary`), rise
        (see `last_fifth`), whether it has converged, and the metric ("accuracy"
        or "auc"). Beside it feature_reuse_drop, see `relative_drops`.

    Raises:
        UserError: if there are fewer than two block sizes, models that do not
            pair up, or models of different data.
    """
    members = [*models.of_kind("P-T"), *models.of_kind("RI-T")]
    _check_kinds(members)
    check_same_data(members, ignored=("shuffle", "block_size", "shuffle_seed"))
    rows = [
        {"kind": m.kind, "name": m.name} | _shuffle(m) | learned(m.source)
        for m in members
    ]
    table = pandas.DataFrame(rows)
    check_metric(table)
    repeat = table.groupby(["kind", *_IMAGES]).cumcount()
    table.insert(table.columns.get_loc("epochs"), "repeat", repeat)
    _check_pairs(table)
    table = table.sort_values("block_size", kind="stable", ignore_index=True)
    return Table(table, feature_reuse_drop=relative_drops(table))


def relative_drops(table):
    """Returns how much of a P-T's performance is missing without P.

    Source: paper section 3.1.

    Args:
        table: what `feature_reuse` returns.

    Returns:
        `pandas.DataFrame`, one row per pair of runs and measure: shuffle,
        block_size (px), repeat, first (the P-T's name), second (the RI-T's),
        measure ("final" or "speed") and relative_drop, (A_PT - A_RIT) / A_PT.
    """
    pairs = table[table.kind == "P-T"].merge(
        table[table.kind == "RI-T"],
        on=[*_IMAGES, "repeat"],
        suffixes=("_first", "_second"),
    )
    names = {"name_first": "first", "name_second": "second"}
    labels = pairs[[*_IMAGES, "repeat", *names]].rename(columns=names)
    return pandas.concat(
        [
            labels.assign(
                measure=measure,
                relative_drop=1
                - pairs[f"{measure}_second"] / pairs[f"{measure}_first"],
            )
            for measure in _MEASURES
        ],
        ignore_index=True,
    )


def excess_drop(drops):
    """Returns the statistic of claim C1, "where domains are alike".

    Args:
        drops: what `relative_drops` returns.

    Returns:
        float, the relative drop of the final metric on whole images minus that
        on the smallest blocks (shuffled pixels if there are no blocks), means
        over pairs. Positive if P is missed most where images are whole.

    Raises:
        UserError: if there are no whole images, or no others.
    """
    rows = _on_axis(drops[drops.measure == "final"])
    whole, others = rows[rows.shuffle == "none"], rows[rows.shuffle != "none"]
    if whole.empty or others.empty:
        raise UserError(
            "Whole images are compared with shuffled ones; name models trained "
            f"on both. Received: {', '.join(rows.shuffle.unique())}."
        )
    if (others.shuffle == "blocks").any():
        others = others[others.shuffle == "blocks"]
    smallest = others[others.position == others.position.min()]
    return float(whole.relative_drop.mean() - smallest.relative_drop.mean())


def drop_trend(drops):
    """Returns how the relative drop goes with the block size.

    Args:
        drops: what `relative_drops` returns.

    Returns:
        float in [-1, 1], Spearman's rank correlation of the block size with the
        relative drop of the final metric, means over pairs. Positive if the
        drop falls as the block size falls.

    Raises:
        UserError: if there are fewer than three sizes, or the drop is the same
            at all of them.
    """
    rows = _on_axis(drops[drops.measure == "final"])
    means = rows.groupby("position").relative_drop.mean()
    trend = rank_correlation(means)
    if math.isnan(trend):
        raise UserError(
            "A rank correlation needs three or more block sizes, and drops "
            f"that differ. Received: {len(means)} sizes."
        )
    return trend


def statistics_gain(table, measure):
    """Returns the statistics of claim C2, "low-level statistics help too".

    Args:
        table: what `feature_reuse` returns. The input is fully shuffled where
            pixels and channels were, or else blocks of 1 px.
        measure: "speed" or "final".

    Returns:
        float, the measure of P-Ts minus that of RI-Ts on fully shuffled input,
        means over models.

    Raises:
        UserError: if no input was fully shuffled.
    """
    rows = _fully_shuffled(table)
    means = rows.groupby("kind")[measure].mean()
    return float(means["P-T"] - means["RI-T"])


def _fully_shuffled(table):
    for chosen in (
        table.shuffle == "pixels",
        (table.shuffle == "blocks") & (table.block_size == 1),
    ):
        if chosen.any():
            return table[chosen]
    raise UserError(
        "Low-level statistics are what is left of fully shuffled images; name "
        'models trained with load.shuffle = "pixels", or on blocks of 1 px. '
        f"Received: blocks of {table.block_size.min()} px and more."
    )


def _gain(table, measure):
    note = unconverged(_fully_shuffled(table))
    return Value(statistics_gain(table, measure), note)


def _shuffle(member):
    """Returns how a model's images were shuffled, as columns of the table."""
    known = about(member.source)
    size, shuffle = known["image_shape"][0], known.get("shuffle")
    block_size = known.get("block_size")
    if shuffle == "blocks" and block_size == size:
        shuffle = None
    size = {"blocks": block_size, "pixels": 1}.get(shuffle, size)
    if not isinstance(size, int):
        raise UserError(
            "A sweep over block sizes needs each model's. Received: "
            f"{member.name} with block_size = {size!r}; record it with "
            'Trajectory(shuffle="blocks", block_size=8, shuffle_seed=1234), of '
            "a model of one image size."
        )
    return {
        "shuffle": shuffle or "none",
        "block_size": size,
        "shuffle_seed": known.get("shuffle_seed"),
    }


def _check_kinds(members):
    kinds = {m.kind for m in members}
    if missing := [kind for kind in ("P-T", "RI-T") if kind not in kinds]:
        raise UserError(
            "Feature reuse compares P-Ts with RI-Ts; name models of both in "
            f"Models.models. Received: no {' and no '.join(missing)}."
        )


def _check_pairs(table):
    for (shuffle, size), rows in table.groupby(_IMAGES):
        first, second = (rows[rows.kind == k] for k in ("P-T", "RI-T"))
        if len(first) != len(second):
            raise UserError(
                "At each block size every P-T needs an RI-T to be compared "
                f"with. Received: {len(first)} P-T and {len(second)} RI-T at "
                f"{size} px (shuffle: {shuffle})."
            )
        seeds = [list(kind.shuffle_seed) for kind in (first, second)]
        if shuffle != "none" and seeds[0] != seeds[1]:
            raise UserError(
                "P-Ts and RI-Ts are paired in the order named; those of a pair "
                "must have one shuffle seed. Received: P-T of seeds "
                f"{seeds[0]} and RI-T of {seeds[1]} at {size} px."
            )
    sizes = _on_axis(table).position.unique()
    if len(sizes) < 2:
        raise UserError(
            "A sweep needs models at two or more block sizes. Received: "
            f"{', '.join(f'{size:g} px' for size in sizes) or 'none'}."
        )


def _on_axis(table):
    """Returns the rows that have a block size, by their `position`, px."""
    rows = table[table.shuffle != "channels"]
    blocks_of_one = (rows.shuffle == "blocks") & (rows.block_size == 1)
    before = (rows.shuffle == "pixels") & blocks_of_one.any()
    # Half a pixel stands for the channels, which are shuffled as well.
    position = rows.block_size.where(~before, 0.5)
    return rows.assign(position=position).sort_values("position", kind="stable")


def _figure(table, drops):
    metric = table.metric.iloc[0]
    figure, axes = new_figure(6.4, 8.4, rows=3, sharex=True)
    rows, drops = _on_axis(table), _on_axis(drops)
    labels = {"final": f"final {metric}", "speed": "optimization speed"}
    for panel, measure in zip(axes, _MEASURES, strict=False):
        plot_by(panel, rows, "position", measure, "kind")
    mark_unconverged(axes[0], rows, "position", "final")
    axes[0].set(ylabel=f"test {metric}", title=f"Final {metric}")
    axes[1].set(
        ylabel=f"test {metric}, mean over epochs", title="Optimization speed"
    )
    drops = drops.assign(measure=drops.measure.map(labels))
    plot_by(axes[2], drops, "position", "relative_drop", "measure")
    axes[2].axhline(0, color="0.8", lw=0.8, zorder=0)
    axes[2].set(ylabel="(P-T - RI-T) / P-T", title="Relative drop")
    ticks = rows.drop_duplicates("position").sort_values("position")
    names = ticks.block_size.astype(str)
    names = names.where(ticks.shuffle != "pixels", "pixels")
    axes[2].set_xscale("log", base=2)
    axes[2].set_xticks(ticks.position, names)
    axes[2].minorticks_off()
    if len(ticks) > 8:
        axes[2].tick_params("x", rotation=90, labelsize="small")
    whole = "".join(
        f"; {size}: the whole image"
        for size in ticks.block_size[ticks.shuffle == "none"]
    )
    axes[2].set_xlabel(f"block size (px){whole}")
    return figure
