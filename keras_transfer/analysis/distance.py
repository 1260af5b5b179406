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
from keras_transfer.analysis.statistics import (
    SIGNIFICANCE,
    check_pairs,
    rank_correlation,
    trend_p_value,
)
from keras_transfer.errors import UserError
from keras_transfer.models import module_chain
from keras_transfer.models.weights import parameters

TOTAL = "total"
# Of three modules even the order by depth has a p of 1/6.
_FEWEST_MODULES = 4


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


def distance_by_depth(table, pair, by_size=False):
    """Returns what claim C5, "distance grows with depth", is judged by.

    Deeper modules are larger as a rule, and the distance of two points drawn at
    random grows as the square root of the number of coordinates.

    Args:
        table: what `distance` returns.
        pair: kind of pair, such as "P-T/P-T".
        by_size: bool, whether to divide by the square root of a module's number
            of parameters.

    Returns:
        float array, the mean L2 of these pairs for each module, by depth,
        without modules whose distance is not known.

    Raises:
        UserError: if there is no such pair, or there are too few modules to
            tell a trend from chance.
    """
    check_pairs(set(table.pair), [pair])
    rows = table[(table.pair == pair) & (table.module != TOTAL)]
    values = rows.l2 / np.sqrt(rows.parameters) if by_size else rows.l2
    values = values.groupby(rows.depth).mean().dropna()
    if len(values) < _FEWEST_MODULES:
        raise UserError(
            f"A trend with depth takes {_FEWEST_MODULES} modules or more. "
            f"Received: {len(values)}; take deeper networks."
        )
    return values.to_numpy()


_CLAIM = "P-Ts are close in parameter space; distance grows with depth."


def _closeness_statistic():
    return Statistic(
        "C5",
        _CLAIM,
        "L2 distance, P-T/P-T over RI-T/RI-T",
        "<",
        1.0,
        closeness,
        unit="times",
    )


def _depth_statistic(pair, by_size, chance):
    """Declares one of those on distance and depth.

    Args:
        pair: kind of pair.
        by_size: bool, see `distance_by_depth`.
        chance: bool, whether it is the p-value of the rank correlation, by
            permutation of the modules, or the correlation.
    """
    measured = "rank correlation"
    if chance:
        measured = f"p of the {measured} (permutations of modules)"
    distances = "L2 distance / sqrt(parameters)" if by_size else "L2 distance"
    compute = trend_p_value if chance else rank_correlation
    return Statistic(
        "C5",
        _CLAIM,
        f"{measured} of a module's {pair} {distances} with its depth",
        "<" if chance else ">",
        SIGNIFICANCE if chance else 0.0,
        lambda table: compute(distance_by_depth(table, pair, by_size)),
        decides=chance and pair == "P-T/P-T",
    )


@declare_analysis(
    figures=[
        Figure(
            "distance",
            lambda table: _figure(table),
            "Distance in parameter space",
            "L2 distance of two models by module, from the input to the head; "
            "then over the square root of a module's number of parameters, "
            "for larger modules lie further apart for their size alone; and, "
            "where it is known where each model came from, relative to the "
            "distance that both have travelled from there.",
        )
    ],
    statistics=[
        _closeness_statistic(),
        *(
            _depth_statistic(pair, by_size, chance)
            # P-Ts and RI-Ts apart: pooled, one could make the other's trend.
            for pair, chance in (
                ("P-T/P-T", True),
                ("P-T/P-T", False),
                ("RI-T/RI-T", True),
            )
            for by_size in (False, True)
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
    modules = modules.assign(by_size=modules.l2 / np.sqrt(modules.parameters))
    panels = {
        "l2": ("L2 distance", "Distance"),
        "by_size": ("L2 / sqrt(parameters)", "For its number of parameters"),
        "relative": (
            "L2 / distance travelled",
            "Relative to the distance travelled",
        ),
    }
    drawn = [column for column in panels if modules[column].notna().any()]
    figure, axes = new_figure(
        4.4 * len(drawn), 4.0, columns=len(drawn), squeeze=False
    )
    for panel, column in zip(axes[0], drawn, strict=True):
        known = modules.dropna(subset=[column])
        plot_by(panel, known, "module", column, "pair")
        label, title = panels[column]
        panel.set(xlabel="module", ylabel=label, title=title)
        panel.set_ylim(bottom=0)
        if panel is not axes[0, 0]:
            panel.get_legend().remove()
    return figure
