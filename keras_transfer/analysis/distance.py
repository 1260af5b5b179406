"""How far apart models lie in parameter space (paper section 3.2)."""

import math

import numpy as np
import pandas

from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    declare_analysis,
)
from keras_transfer.analysis.drawing import new_figure, plot_by
from keras_transfer.analysis.statistics import check_pairs, statistic_of_pairs
from keras_transfer.errors import UserError
from keras_transfer.models import module_chain
from keras_transfer.models.weights import parameters

TOTAL = "total"


def module_distances(first, second):
    """Computes the L2 distance of two models' parameters, module by module.

    Frozen parameters count, too; statistics of normalization layers are no
    parameters. Modules match by position: names are labels.

    Args:
        first: list of `Module`, a model's, see `models.module_chain`.
        second: list of `Module` of a model of the same architecture, its head
            aside, which may have another number of outputs.

    Returns:
        dict from the first model's name for a module, in order of depth, to
        float; NaN for a head of another size. Then "total", over all others.

    Raises:
        UserError: if the models are of different architectures.
    """
    if len(first) != len(second):
        names = [[module.name for module in chain] for chain in (first, second)]
        raise UserError(
            "Distances are taken between models of one architecture. Received: "
            f"modules {', '.join(names[0])} and {', '.join(names[1])}."
        )
    squares = {}
    for own, other in zip(first, second, strict=True):
        squares[own.name] = square = _squared_distance(own, other)
        if np.isnan(square) and own is not first[-1]:
            raise UserError(
                "Distances are taken between models of one architecture, of "
                "which only the last module may differ in size. Received: "
                f"weights of other shapes in modules {own.name} and "
                f"{other.name}."
            )
    squares[TOTAL] = np.nansum(list(squares.values()))
    return {name: float(np.sqrt(value)) for name, value in squares.items()}


_CLAIM = "P-Ts are close in parameter space; distance grows with depth."


@declare_analysis(
    figures=[
        Figure(
            "distance",
            lambda table: _figure(table),
            "Distance in parameter space",
            "L2 distance of two models by module, from the input to the head; "
            "beside it, where it is known where each model came from, relative "
            "to the distance that both have travelled from there.",
        )
    ],
    statistics=[
        Statistic(
            "C5",
            _CLAIM,
            "mean L2 distance of P-T/P-T over that of RI-T/RI-T",
            "<",
            1.0,
            lambda table: statistic_of_pairs(table, closeness),
        ),
        Statistic(
            "C5",
            _CLAIM,
            "rank correlation of a module's P-T/P-T distance with its depth",
            ">",
            0.0,
            lambda table: statistic_of_pairs(
                table, lambda t: depth_correlation(t).get("P-T/P-T", math.nan)
            ),
        ),
    ],
    cost=lambda options, models: 0,
)
def distance(models):
    """Measures L2 distances of every pair of models (paper section 3.2).

    Each model trained on the target whose start is known is also compared with
    it: "P to P-T" and "RI to RI-T", epoch 0 of the same run (a P-T's new head,
    the same module as every other, starts at random). A pair's distance
    relative to the distance travelled is l2 / mean of the two models' own: 0
    for one and the same model, sqrt(2) for orthogonal ways from one start.

    Args:
        models: `Models`; no data are needed.

    Returns:
        `pandas.DataFrame`, one row per pair and module, in order of depth, and
        a last one of module "total" (and depth NaN): pair, first, second,
        module (the first model's names for all), depth (0, 1, ...), l2,
        relative (NaN where a start is unknown, as with RI or P), parameters
        (their number).

    Raises:
        UserError: if there is nothing to compare, or the models are of
            different architectures.
    """
    starts = {
        m: models.start(m) for m in models.trained() if models.has_start(m)
    }
    compared = [
        (f"{start.kind} to {m.kind}", start, m) for m, start in starts.items()
    ] + list(models.pairs())
    if not compared:
        raise UserError(
            "Distance compares models: name two or more in Models.models. "
            f"Received: {len(models)}."
        )
    chains = {
        m: module_chain(models.model(m, statistics=False))
        for m in [*starts.values(), *models]
    }
    found = [
        list(module_distances(chains[first], chains[second]).values())
        for _, first, second in compared
    ]
    travelled = dict(zip(starts, found, strict=False))
    modules = [
        (m.name, i, sum(math.prod(v.shape) for v in _parameters(m)))
        for i, m in enumerate(chains[next(iter(models))])
    ]
    modules.append((TOTAL, np.nan, sum(size for *_, size in modules)))
    return pandas.DataFrame(
        {
            "pair": pair,
            "first": first.name,
            "second": second.name,
            "module": module,
            "depth": depth,
            "l2": distances[i],
            "relative": _relative(
                distances[i], [travelled.get(m) for m in (first, second)], i
            ),
            "parameters": size,
        }
        for (pair, first, second), distances in zip(
            compared, found, strict=True
        )
        for i, (module, depth, size) in enumerate(modules)
    )


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
    needed = ["P-T/P-T", "RI-T/RI-T"]
    check_pairs(total.index, needed)
    return float(total[needed[0]] / total[needed[1]])


def depth_correlation(table):
    """Returns the second statistic of claim C5, "distance grows with depth".

    Args:
        table: what `distance` returns.

    Returns:
        `pandas.Series` by pair kind: mean over pairs of Spearman's rank
        correlation of a module's distance with its depth, in [-1, 1].
    """
    ranks = (
        table[table.module != TOTAL]
        .dropna(subset=["l2"])
        .groupby(["pair", "first", "second"], sort=False)[["depth", "l2"]]
        .apply(lambda rows: rows.depth.rank().corr(rows.l2.rank()))
    )
    return ranks.groupby("pair", sort=False).mean()


def _parameters(module):
    """Returns a module's parameters, frozen ones included."""
    weights = module.model.weights
    flags = parameters(module.model)
    return [w for w, own in zip(weights, flags, strict=True) if own]


def _squared_distance(first, second):
    """Returns the square of two modules' distance, NaN if they do not fit."""
    first, second = _parameters(first), _parameters(second)
    if [v.shape for v in first] != [v.shape for v in second]:
        return np.nan
    return sum(
        np.sum(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)))
        for a, b in zip(first, second, strict=True)
    )


def _relative(l2, travelled, i):
    """Returns L2 over the mean distance that the two models travelled."""
    if any(own is None for own in travelled):
        return np.nan
    mean = np.mean([own[i] for own in travelled])
    return l2 / mean if mean else np.nan


def _figure(table):
    modules = table[table.module != TOTAL]
    panels = {
        "l2": ("L2 distance", "Distance"),
        "relative": (
            "L2 / distance travelled",
            "Relative to the distance travelled",
        ),
    }
    drawn = [column for column in panels if modules[column].notna().any()]
    figure, axes = new_figure(
        4.8 * len(drawn), 4.0, columns=len(drawn), squeeze=False
    )
    for panel, column in zip(axes[0], drawn, strict=True):
        known = modules.dropna(subset=[column])
        plot_by(panel, known, "module", column, "pair")
        label, title = panels[column]
        panel.set(xlabel="module", ylabel=label, title=title)
        panel.set_ylim(bottom=0)
    return figure
