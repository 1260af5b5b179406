"""What a study knows of each module: where in the network transfer is."""

import numpy as np
import pandas

# Of a kind, the pairs that tell how far it has moved, and how alike two are.
_MOVED = {"P-T": "P to P-T", "RI-T": "RI to RI-T"}
_ALIKE = {"P-T": "P-T/P-T", "RI-T": "RI-T/RI-T"}
MEASURES = ("criticality", "distance", "cka", "cost")


def by_module(tables, target, runs):
    """Returns what is known of each module of P-Ts and of RI-Ts.

    Args:
        tables: `Tables`.
        target: str.
        runs: `pandas.DataFrame`, see `Report.runs`.

    Returns:
        `pandas.DataFrame`, one row per kind and module, from the input to the
        head: kind, module, depth, and each of `MEASURES` as the median over
        models and replications, NaN if it is not known: criticality (direct
        path, final weights), distance (root mean square change of a weight
        since the start), cka (of two models of that kind) and cost (share of
        test accuracy or AUC lost if the module is set back to the start).
        Empty if nothing is known.
    """
    parts = [
        _criticality(tables.read(target, "criticality", "criticality")),
        _distance(tables.read(target, "distance", "distance")),
        _similarity(tables.read(target, "similarity", "similarity")),
        _cost(tables.read(target, "rewinding", "rewinding"), target, runs),
    ]
    found = [part for part in parts if len(part)]
    if not found:
        return pandas.DataFrame()
    rows = pandas.concat(found, ignore_index=True)
    order = rows.groupby("module").depth.first()
    values = rows.pivot_table(
        index=["kind", "module"],
        columns="measure",
        values="value",
        aggfunc="median",
    )
    values = values.reindex(columns=MEASURES).reset_index()
    values["depth"] = values.module.map(order)
    return values.sort_values(["kind", "depth"], ignore_index=True)


def _rows(table, measure, value):
    """Returns (kind, module, depth, measure, value) of a table's rows."""
    rows = table[["kind", "module", "depth"]].assign(
        measure=measure, value=value
    )
    rows = rows[(rows.module != "total") & rows.depth.notna()]
    return rows[rows.kind.isin(list(_MOVED))]


def _finest(table):
    """Returns the rows of blocks, or of groups if there are no blocks."""
    return table[table.level == table.level.iloc[0]] if len(table) else table


def _criticality(table):
    if not len(table):
        return table
    table = table[(table.path == "direct") & (table.end_point == "final")]
    table = _finest(table)
    return _rows(table, "criticality", table.at_most)


def _distance(table):
    if not len(table):
        return table
    kinds = {pair: kind for kind, pair in _MOVED.items()}
    table = table.assign(kind=table.pair.map(kinds))
    size = np.sqrt(table.parameters.clip(lower=1))
    return _rows(table, "distance", table.l2 / size)


def _similarity(table):
    if not len(table):
        return table
    kinds = {pair: kind for kind, pair in _ALIKE.items()}
    order = {name: k for k, name in enumerate(table.first_module.unique())}
    same = table[table.first_module == table.second_module]
    same = same.assign(
        kind=same.pair.map(kinds),
        module=same.first_module,
        depth=same.first_module.map(order),
    )
    return _rows(same, "cka", same.cka)


def _cost(table, target, runs):
    if not len(table) or "replication" not in runs:
        return pandas.DataFrame()
    metric = "auc" if "auc" in table else "accuracy"
    chosen = (table.end_point == "final") & (table.epoch == 0)
    table = _finest(table[chosen & (table.split == "test")])
    ends = runs[runs.target == target].assign(
        name=lambda own: own.name.str.split("/").str[-1]
    )
    ends = ends[["name", "replication", "final"]].drop_duplicates(
        ["name", "replication"]
    )
    table = table.merge(ends, on=["name", "replication"])
    return _rows(table, "cost", table.final - table[metric])
