"""How far apart models lie in parameter space (paper section 3.2)."""

import math

import gin
import numpy as np

from keras_transfer.analysis.output import new_figure, plot_by
from keras_transfer.errors import UserError
from keras_transfer.models import module_chain

TOTAL = "total"


def module_distances(first, second):
    """Computes the L2 distance of two models' parameters, module by module.

    Trainable parameters only; batch statistics are no parameters.

    Args:
        first: functional `keras.Model`.
        second: functional `keras.Model` of the same architecture, its head
            aside, which may have another number of outputs.

    Returns:
        dict from module name, in order of depth, to float; NaN for a module
        whose shapes differ. Then "total", over all others.

    Raises:
        UserError: if the models have different modules.
    """
    chains = module_chain(first), module_chain(second)
    names = [[module.name for module in chain] for chain in chains]
    if names[0] != names[1]:
        raise UserError(
            "Distances are taken between models of one architecture. Received: "
            f"modules {', '.join(names[0])} and {', '.join(names[1])}."
        )
    squares = {
        a.name: _squared_distance(a.trainable_variables, b.trainable_variables)
        for a, b in zip(*chains, strict=True)
    }
    squares[TOTAL] = np.nansum(list(squares.values()))
    return {name: float(np.sqrt(value)) for name, value in squares.items()}


@gin.configurable
def distance(subjects, output):
    """Measures L2 distances of every pair of subjects (paper section 3.2).

    Each model trained on the target is also compared with where it came from:
    "P to P-T" and "RI to RI-T", epoch 0 of the same run (a P-T's new head, the
    same module as every other, starts at random). A pair's distance relative to
    the distance travelled is l2 / mean of the two models' own: 0 for one and
    the same model, sqrt(2) for orthogonal ways from one start.

    Args:
        subjects: `Subjects`.
        output: `Output`; receives distance.csv and the figure distance.

    Returns:
        `pandas.DataFrame`, one row per pair and module, in order of depth, and
        a last one of module "total" (and depth NaN): pair, first, second,
        module, depth (0, 1, ...), l2, relative (NaN with RI or P), parameters
        (their number).

    Raises:
        UserError: if the models are of different architectures.
    """
    import pandas

    travelled = {
        s: module_distances(
            subjects.model(subjects.start(s)), subjects.model(s)
        )
        for s in subjects.trained()
    }
    sizes = {
        module.name: sum(math.prod(v.shape) for v in module.trainable_variables)
        for module in module_chain(subjects.model(next(iter(subjects))))
    }
    compared = [
        (f"{subjects.start(s).kind} to {s.kind}", subjects.start(s), s, own)
        for s, own in travelled.items()
    ]
    compared += [
        (
            pair,
            first,
            second,
            module_distances(subjects.model(first), subjects.model(second)),
        )
        for pair, first, second in subjects.pairs()
    ]
    table = pandas.DataFrame(
        {
            "pair": pair,
            "first": first.name,
            "second": second.name,
            "module": module,
            "depth": np.nan if module == TOTAL else depth,
            "l2": l2,
            "relative": _relative(l2, module, (first, second), travelled),
            "parameters": sizes.get(module, sum(sizes.values())),
        }
        for pair, first, second, distances in compared
        for depth, (module, l2) in enumerate(distances.items())
    )
    output.table("distance", table)
    output.figure("distance", _figure(table))
    return table


def closeness(table):
    """Returns the first statistic of claim C5, "P-Ts are close".

    Args:
        table: what `distance` returns.

    Returns:
        float, mean total L2 of two P-Ts over that of two RI-Ts. Below 1, P-Ts
        are closer.

    Raises:
        UserError: if a kind of pair is missing.
    """
    total = table[table.module == TOTAL].groupby("pair").l2.mean()
    needed = ("P-T/P-T", "RI-T/RI-T")
    if missing := [kind for kind in needed if kind not in total]:
        raise UserError(
            "This statistic compares pairs of P-Ts with pairs of RI-Ts, so two "
            f"runs of each must be named. Received: no {', '.join(missing)}."
        )
    return float(total[needed[0]] / total[needed[1]])


def depth_correlation(table, column="l2"):
    """Returns the second statistic of claim C5, "distance grows with depth".

    Args:
        table: what `distance` returns.
        column: "l2" or "relative". A larger module has more coordinates and so
            a larger L2 for the same change of each; "relative" does not.

    Returns:
        `pandas.Series` by pair kind: mean over pairs of Spearman's rank
        correlation of a module's distance with its depth, in [-1, 1].
    """
    ranks = (
        table[table.module != TOTAL]
        .dropna(subset=[column])
        .groupby(["pair", "first", "second"], sort=False)[["depth", column]]
        .apply(lambda rows: rows.depth.rank().corr(rows[column].rank()))
    )
    return ranks.groupby("pair", sort=False).mean()


def _squared_distance(first, second):
    if [v.shape for v in first] != [v.shape for v in second]:
        return np.nan
    return sum(
        np.sum(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)))
        for a, b in zip(first, second, strict=True)
    )


def _relative(l2, module, pair, travelled):
    """Returns L2 over the mean distance that the two models travelled."""
    if any(s not in travelled for s in pair):
        return np.nan
    mean = np.mean([travelled[s][module] for s in pair])
    return l2 / mean if mean else np.nan


def _figure(table):
    modules = table[table.module != TOTAL]
    figure, axes = new_figure(9.6, 4.0, columns=2)
    plot_by(axes[0], modules, "module", "l2", "pair")
    plot_by(
        axes[1],
        modules.dropna(subset=["relative"]),
        "module",
        "relative",
        "pair",
    )
    axes[0].set(xlabel="module", ylabel="L2 distance", title="Distance")
    axes[1].set(
        xlabel="module",
        ylabel="L2 / distance travelled",
        title="Relative to the distance travelled",
    )
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(bottom=0)
    return figure
