"""What a study answers, in a few sentences made from what it has measured."""

import math

import numpy as np

from keras_transfer.analysis.declaration import Refuted
from keras_transfer.analysis.pretraining import first_in_basin
from keras_transfer.analysis.statistics import HARM
from keras_transfer.errors import UserError
from keras_transfer.study.intervals import FEWEST, median_interval
from keras_transfer.study.report.numbers import amount, extent

# A sentence that names more modules than these is not read to its end.
_MOST_NAMED = 5
# Of more replications than these nobody thinks.
_MOST_REPLICATIONS = 1000


def answers(report, tables, modules, target):
    """Answers what a newcomer asks of a study, for one target.

    Args:
        report: `Report`.
        tables: `Tables`.
        modules: what `by_module` returns.
        target: str.

    Returns:
        list of (question, sentences), five.
    """
    claims = report.claims
    own = claims[claims.target == target] if len(claims) else claims
    return [
        ("What did P give?", _gains(report, own, target)),
        ("Where is it?", _where(modules)),
        ("May I average?", _basin(own)),
        ("From which checkpoint?", _checkpoint(own, tables, target)),
        ("How sure is it?", _sureness(report, own, target)),
    ]


# What P gave.


def _gains(report, claims, target):
    said = [
        _gain(report, target, "final", "after the last epoch"),
        _gain(report, target, "speed", "averaged over all epochs, its speed"),
    ]
    saved = _statistic(claims, "L1", "how many times")
    if saved is None or math.isnan(saved.value):
        said.append("Labels: not measured.")
    else:
        said.append(
            f"Labels: RI-Ts need {amount(saved.value, 'times')} as many"
            f"{_range(saved)} to reach what P-Ts reach with the fewest."
        )
    return " ".join(said)


def _gain(report, target, column, when):
    """Returns a sentence on what P gave in one column of the runs."""
    gains = _gains_of(report, target, column)
    if not len(gains):
        return f"Test metric {when}: not measured."
    curves = report.curves
    metric = curves.metric[curves.target == target].iloc[0]
    metric = metric.upper() if metric == "auc" else metric.capitalize()
    gain, low, high = median_interval(gains)
    measured = f"{amount(gain, 'points')}{_ends(low, high, 'points')}"
    if low > 0:
        found = f"P gave {measured}"
    elif high < 0:
        cost = amount(-gain, "points")
        found = f"P cost {cost}{_ends(-high, -low, 'points')}"
    elif math.isnan(low):
        found = f"P-T minus RI-T is {measured}"
    else:
        found = f"nothing that can be told from chance, {measured}"
    return f"{metric} {when}: {found}."


def _gains_of(report, target, column):
    """Returns P-T minus RI-T of each replication, means over models."""
    runs, curves = report.runs, report.curves
    if not len(curves) or not {"replication", column} <= set(runs):
        return []
    main = runs[runs.name.isin(curves.run) & (runs.target == target)]
    means = main.pivot_table(
        index="replication", columns="kind", values=column, aggfunc="mean"
    )
    if not {"P-T", "RI-T"} <= set(means):
        return []
    return (means["P-T"] - means["RI-T"]).dropna()


# Where in the network.


def _where(modules):
    own = modules[modules.kind == "P-T"] if len(modules) else modules
    if not len(own):
        return "Not measured: criticality and rewinding tell."
    by_cost = own.dropna(subset=["cost"]).sort_values("cost", ascending=False)
    touched = by_cost[by_cost.cost > HARM]
    kept = by_cost[by_cost.cost <= HARM].sort_values("depth")
    said = []
    if len(kept):
        verb = "carry" if len(kept) > 1 else "carries"
        said.append(
            f"{_named(kept.module)} {verb} it: P's own weights still serve "
            "there, and setting back one module costs "
            f"{amount(HARM, 'points')} of accuracy or less."
        )
    if len(touched):
        costs = [
            f"{row.module} ({amount(row.cost, 'points')})"
            for row in touched.itertuples()
        ]
        said.append(
            f"Do not touch {_named(costs)}, which is what setting each back "
            "costs."
        )
    critical = own.dropna(subset=["criticality"])
    critical = critical[critical.criticality > 0]
    if len(critical):
        critical = critical.sort_values("criticality", ascending=False)
        said.append(f"Most critical: {_named(critical.module[:3])}.")
    return " ".join(said) or "Not measured: criticality and rewinding tell."


def _named(names):
    names = list(names)
    shown = names[:_MOST_NAMED]
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} more")
    *first, last = shown
    return f"{', '.join(first)} and {last}" if first else last


# One basin or not.

_BARRIER = {
    "reproduced": "There is no barrier between two P-Ts",
    "not reproduced": "There is a barrier between two P-Ts",
}
_SHARED = {
    "reproduced": "and they share one basin by Definition 3.1",
    "not reproduced": "and by Definition 3.1 they do not share a basin",
}
_AVERAGE = {
    "reproduced": "You may average them",
    "not reproduced": "Do not average them",
}


def _basin(claims):
    barrier = _statistic(claims, "C6", "P-T/P-T")
    shared = _statistic(claims, "C7", "P-T/P-T")
    average = _statistic(claims, "C12", "")
    scratch = _statistic(claims, "C6", " RI-T/RI-T")
    said = []
    if barrier is not None:
        opening = _BARRIER.get(
            barrier.finding, "Whether two P-Ts are parted by a barrier is open"
        )
        said.append(f"{opening}: {_measured(barrier)}")
        if shared is not None:
            said[-1] += ", " + _SHARED.get(
                shared.finding, "and whether they share a basin is open"
            )
        said[-1] += "."
    if average is not None:
        opening = _AVERAGE.get(
            average.finding, "Whether averaging them does harm is open"
        )
        said.append(
            f"{opening}: their average is "
            f"{_apart(average, 'better', 'worse')} than they are."
        )
    if scratch is not None and scratch.finding == "reproduced":
        said.append(
            f"Do not average RI-Ts, whose barrier is {_measured(scratch)}."
        )
    return " ".join(said) or "Not measured: interpolation and averaging tell."


# From which checkpoint.


def _checkpoint(claims, tables, target):
    sweep = tables.read(target, "pretraining", "pretraining")
    heights = tables.read(target, "pretraining", "pretraining_barriers")
    plateau = _statistic(claims, "C11", "final accuracy")
    if not len(sweep) or not len(heights) or plateau is None:
        return "Not measured: a sweep over P's checkpoints tells."
    firsts, last = [], None
    for replication, own in sweep.groupby("replication"):
        rows = heights[heights.replication == replication]
        try:
            first, last = first_in_basin(own, rows)
        except (Refuted, UserError, ValueError):
            continue
        firsts.append(first)
    if not firsts:
        return (
            "Start from the last: no earlier checkpoint of P lies in its basin."
        )
    # The most that any replication needs is safe in all.
    safe, least = max(firsts), min(firsts)
    where = f"epoch {safe}" if least == safe else f"epochs {least} to {safe}"
    said = (
        f"P enters the basin of its last checkpoint at {where} of {last}. P-Ts "
        f"from there end {_apart(plateau, 'above', 'below')} those from the "
        "last."
    )
    advice = {
        "reproduced": f"Start from epoch {safe}: the rest gives nothing.",
        "not reproduced": "Start from the last: earlier ones do harm.",
    }
    unsure = "Whether that is harm is open, so start from the last if you can."
    return f"{said} {advice.get(plateau.finding, unsure)}"


# How sure.


def _sureness(report, claims, target):
    if not len(claims):
        return "No claim was examined."
    counts = claims.groupby("claim").verdict.first().value_counts()
    told = [f"{count} {verdict}" for verdict, count in counts.items()]
    plural = "s" if report.replications != 1 else ""
    said = [
        f"Of {counts.sum()} claims: {', '.join(told)}, by "
        f"{report.replications} independent replication{plural}, each with its "
        "own P, draw of images and seeds."
    ]
    if report.replications < FEWEST:
        said.append(f"Verdicts need {FEWEST}.")
    else:
        said.append("Intervals hold the median 95 times in 100.")
    notes = report.values.note.fillna("").astype(str)
    mine = report.values.target == target
    if notes[mine].str.contains("not converged").any():
        said.append(
            "Some RI-Ts were still learning at their end, which flatters P."
        )
    said.append("It speaks of these data and this network, not of others.")
    return " ".join(said)


# What would change a verdict.


def change(rows):
    """Returns what would change the verdict of a claim on a target.

    Args:
        rows: `pandas.DataFrame`, its rows of `Report.claims`.

    Returns:
        str, a sentence or two.
    """
    deciding = rows[rows.decides]
    verdict = rows.verdict.iloc[0]
    if not len(deciding) or verdict == "not decided":
        return (
            f"A verdict needs {FEWEST} replications or more that give a number."
        )
    worst = deciding[deciding.finding == verdict]
    if verdict == "inconclusive":
        return " ".join(map(_more_replications, worst.itertuples()))
    margins = [(_margin(row), row) for row in worst.itertuples()]
    margin, row = min(margins, key=lambda pair: pair[0])
    line = amount(row.threshold, row.unit)
    if verdict == "reproduced":
        return (
            f"An interval that reaches the threshold. The nearest, of "
            f"“{row.statistic}”, ends {amount(margin, row.unit)} from {line}."
        )
    return (
        "An interval on the other side of the threshold. That of "
        f"“{row.statistic}” ends {amount(margin, row.unit)} short of {line}."
    )


def _margin(row):
    """Returns how far an interval's nearer end is from the threshold."""
    return float(np.min(np.abs(np.array([row.low, row.high]) - row.threshold)))


def _more_replications(row):
    """Returns how many replications would take a straddling one off."""
    name, line = row.statistic, amount(row.threshold, row.unit)
    if math.isnan(row.low):
        return (
            f"Replications that differ: for “{name}” there is no interval "
            "as long as most give the same."
        )
    distance = abs(row.value - row.threshold)
    end = row.low if row.value > row.threshold else row.high
    more = f"The interval of “{name}” straddles {line}."
    if not distance or not math.isfinite(end - row.value):
        return more
    # An interval narrows as the root of the number of replications.
    needed = math.ceil(row.replications * ((end - row.value) / distance) ** 2)
    if needed > _MOST_REPLICATIONS:
        return f"{more} More replications like these would not decide it."
    return (
        f"{more} Some {max(needed, row.replications + 1)} replications like "
        "these would decide it, if the median stays."
    )


# Of a statistic.


def _statistic(claims, claim, part):
    """Returns the row of a claim's deciding statistic, None if there is none.

    Args:
        claims: `pandas.DataFrame`, of one target.
        claim: str.
        part: str, what its name holds.
    """
    if not len(claims):
        return None
    chosen = (claims.claim == claim) & claims.decides
    rows = claims[chosen & claims.statistic.str.contains(part, regex=False)]
    return next(rows.itertuples(), None)


def _measured(row):
    return f"{amount(row.value, row.unit)}{_range(row)}"


def _apart(row, more, less):
    """Returns by how much, with a word for each direction, such as "above"."""
    if math.isnan(row.value):
        return "by a number that is not known"
    word = more if row.value >= 0 else less
    return f"{amount(abs(row.value), row.unit)} {word}{_range(row)}"


def _range(row):
    return _ends(row.low, row.high, row.unit)


def _ends(low, high, unit):
    found = extent(low, high, unit)
    return f" (95% interval {found})" if found else " (no interval)"
