"""The paper's claims C1 to C12, decided from what the analyses have found."""

import dataclasses
import math
import pathlib
import typing

import numpy as np

from keras_transfer.analysis.averaging import gains
from keras_transfer.analysis.criticality import (
    depth_correlation as criticality_depth_correlation,
)
from keras_transfer.analysis.criticality import head_rank, path_agreement
from keras_transfer.analysis.distance import closeness, depth_correlation
from keras_transfer.analysis.feature_reuse import drop_trend, statistics_gain
from keras_transfer.analysis.mistakes import shared_mistakes
from keras_transfer.analysis.pretraining import plateau
from keras_transfer.analysis.similarity import shared_features
from keras_transfer.analysis.statistics import (
    jackknife,
    mean_over_pairs,
    mean_over_seeds,
)
from keras_transfer.errors import UserError

# From here on there is a barrier: a share, of accuracy or AUC.
BARRIER = 0.05
# Less than this is no harm: a share, of accuracy or AUC.
HARM = 0.01


class _Refuted(Exception):
    """There is no number, because what is claimed was not to be found."""


@dataclasses.dataclass(frozen=True)
class Statistic:
    """One number that a claim stands or falls with.

    Attributes:
        claim: str, such as "C1".
        statement: str, what is claimed.
        name: str, what is measured, in words.
        direction: ">" or "<": on which side of the line it speaks for the
            claim.
        line: float.
        analysis: str, the analysis it is computed from.
        tables: tuple of names of that analysis' tables.
        figure: str, name of that analysis' figure.
        compute: function from these tables to (value, low, high).
    """

    claim: str
    statement: str
    name: str
    direction: str
    line: float
    analysis: str
    tables: tuple
    figure: str
    compute: typing.Callable


def decide(directory, targets):
    """Decides every claim for every target.

    A statistic is *reproduced* if its whole interval lies on the claim's side
    of the line, *not reproduced* if the whole of it lies on the other, and
    *inconclusive* if it straddles the line, or if one seed gives no interval. A
    claim with several statistics is as good as the worst of them.

    Source: paper section 5 (`paper.md`).

    Args:
        directory: `pathlib.Path` of the study's analyses, one directory a
            target and analysis.
        targets: names of the targets.

    Returns:
        `pandas.DataFrame`, one row per target and statistic: claim, target,
        statement, statistic, value, low and high (95% interval over seeds),
        direction, line, finding (the statistic's own), verdict (the claim's),
        note (why it could not be decided), figure and table (paths beside
        `directory`, without suffix).
    """
    import pandas

    rows = [
        _row(statistic, directory, target)
        for target in targets
        for statistic in STATISTICS
    ]
    table = pandas.DataFrame(rows)
    table.insert(
        table.columns.get_loc("note"),
        "verdict",
        table.groupby(["claim", "target"]).finding.transform(_worst),
    )
    return table


def find(value, low, high, direction, line):
    """Returns the finding of one statistic; see `decide`.

    Args:
        value: float, NaN if it could not be computed.
        low: float, of its interval, NaN if there is none.
        high: float.
        direction: ">" or "<".
        line: float.

    Returns:
        "reproduced", "not reproduced", "inconclusive" or "not decided".
    """
    if math.isnan(value):
        return FINDINGS[0]
    if direction == "<":
        low, high, line = -high, -low, -line
    if low > line:
        return "reproduced"
    return "not reproduced" if high < line else "inconclusive"


# From worst to best.
FINDINGS = ("not decided", "not reproduced", "inconclusive", "reproduced")


def _worst(findings):
    return min(findings, key=FINDINGS.index)


def _row(statistic, directory, target):
    import pandas

    place = directory / target / statistic.analysis
    path = f"{directory.name}/{target}/{statistic.analysis}"
    value, note, refuted = (math.nan,) * 3, "", False
    try:
        tables = [pandas.read_csv(place / f"{t}.csv") for t in statistic.tables]
        value = statistic.compute(*tables)
    except _Refuted as error:
        note, refuted = str(error), True
    except FileNotFoundError as error:
        name = pathlib.Path(error.filename).name
        note = f"{path}/{name} is not there: not run, or failed."
    except (UserError, OSError) as error:
        note = str(error)
    found = dict(zip(("value", "low", "high"), value, strict=True))
    return {
        "claim": statistic.claim,
        "target": target,
        "statement": statistic.statement,
        "statistic": statistic.name,
        **found,
        "direction": statistic.direction,
        "line": statistic.line,
        "finding": "not reproduced"
        if refuted
        else find(**found, direction=statistic.direction, line=statistic.line),
        "note": note,
        "figure": f"{path}/{statistic.figure}",
        "table": f"{path}/{statistic.tables[0]}",
    }


def _by_models(table, statistic):
    """Returns a statistic of pairs with its interval over models.

    Args:
        table: rows with columns pair ("P-T/RI-T"), first and second.
        statistic: function from such a table to float.
    """
    kinds = {}
    for pair, first, second in zip(
        table.pair, table["first"], table["second"], strict=True
    ):
        for kind, name in zip(pair.split("/"), (first, second), strict=True):
            kinds.setdefault(kind, set()).add(name)

    def of(models):
        kept = table["first"].isin(models) & table["second"].isin(models)
        try:
            return statistic(table[kept])
        except UserError:
            # Too few models are left to make a pair of each kind.
            return math.nan

    groups = [sorted(kinds.get(kind, ())) for kind in ("P-T", "RI-T")]
    statistic(table)  # Complains if a kind is missing.
    return jackknife(of, groups)


def _compared(table):
    """Returns the rows of pairs of models trained on the target."""
    return table[table.pair.isin(["P-T/P-T", "P-T/RI-T", "RI-T/RI-T"])]


def _barrier(kinds):
    def compute(heights):
        metric = "auc" if "auc" in set(heights.measure) else "accuracy"
        rows = heights[(heights.split == "test") & (heights.measure == metric)]
        return min(
            (
                mean_over_pairs(own["first"], own["second"], own.height)
                for own in (rows[rows.pair == kind] for kind in kinds)
                if len(own)
            ),
            default=(math.nan,) * 3,
        )

    return compute


def _basin_margin(kind):
    def compute(conditions):
        own = conditions[conditions.kind == kind]
        margins = own.groupby("set").margin.min()
        pairs = [name.split(", ") for name in margins.index]
        kept = [i for i, pair in enumerate(pairs) if len(pair) == 2]
        if not kept:
            raise UserError(f"There are not two {kind}s. Received: no pair.")
        first, second = np.array([pairs[i] for i in kept]).T
        return mean_over_pairs(first, second, margins.to_numpy()[kept])

    return compute


def _direct(found):
    """Returns the rows of the direct path to the final weights."""
    return found[(found.path == "direct") & (found.end_point == "final")]


def _average_gain(table):
    found = gains(table, "P-T")
    everyone = sorted(frozenset().union(*found))
    if not everyone:
        raise UserError("There are not two P-Ts to average.")
    return jackknife(
        lambda members: found.get(frozenset(members), math.nan), [everyone]
    )


def _plateau(table, barriers):
    last, values = plateau(table, barriers, BARRIER)
    if not len(values):
        raise _Refuted(
            "No earlier checkpoint was in the basin of the converged P: the "
            f"first at which the barrier is at most {BARRIER} is the last one, "
            f"epoch {last}."
        )
    return mean_over_seeds(values)


STATISTICS = (
    Statistic(
        "C1",
        "Feature reuse matters most where domains are alike.",
        "rank correlation of block size with the relative drop "
        "(A_PT - A_RIT) / A_PT in final accuracy",
        ">",
        0.0,
        "feature_reuse",
        ("feature_reuse_drop",),
        "feature_reuse",
        lambda drops: mean_over_seeds(drop_trend(drops)),
    ),
    Statistic(
        "C2",
        "Low-level statistics help too, above all speed.",
        "accuracy averaged over epochs on fully shuffled input, P-T minus RI-T",
        ">",
        0.0,
        "feature_reuse",
        ("feature_reuse",),
        "feature_reuse",
        lambda table: mean_over_seeds(statistics_gain(table)),
    ),
    Statistic(
        "C3",
        "P-Ts make similar mistakes.",
        "share of common mistakes, P-T/P-T minus the larger of P-T/RI-T and "
        "RI-T/RI-T",
        ">",
        0.0,
        "mistakes",
        ("mistakes",),
        "mistakes",
        lambda table: _by_models(_compared(table), shared_mistakes),
    ),
    Statistic(
        "C4",
        "P-Ts share features.",
        "CKA, P-T/P-T minus the larger of P-T/RI-T and RI-T/RI-T, at the "
        "module where this is least",
        ">",
        0.0,
        "similarity",
        ("similarity",),
        "similarity",
        lambda table: _by_models(
            _compared(table), lambda t: shared_features(t).min()
        ),
    ),
    Statistic(
        "C5",
        "P-Ts are close in parameter space; distance grows with depth.",
        "mean L2 distance of P-T/P-T over that of RI-T/RI-T",
        "<",
        1.0,
        "distance",
        ("distance",),
        "distance",
        lambda table: _by_models(_compared(table), closeness),
    ),
    Statistic(
        "C5",
        "P-Ts are close in parameter space; distance grows with depth.",
        "rank correlation of a module's P-T/P-T distance with its depth",
        ">",
        0.0,
        "distance",
        ("distance",),
        "distance",
        lambda table: _by_models(
            _compared(table),
            lambda t: depth_correlation(t).get("P-T/P-T", math.nan),
        ),
    ),
    Statistic(
        "C6",
        "No barrier between P-Ts; a barrier between RI-Ts and between P-T and "
        "RI-T.",
        "barrier height of P-T/P-T",
        "<",
        BARRIER,
        "interpolation",
        ("interpolation_barriers",),
        "interpolation",
        _barrier(["P-T/P-T"]),
    ),
    Statistic(
        "C6",
        "No barrier between P-Ts; a barrier between RI-Ts and between P-T and "
        "RI-T.",
        "barrier height of P-T/RI-T or RI-T/RI-T, the lower",
        ">",
        BARRIER,
        "interpolation",
        ("interpolation_barriers",),
        "interpolation",
        _barrier(["P-T/RI-T", "RI-T/RI-T"]),
    ),
    Statistic(
        "C7",
        "Two P-Ts live in one basin; two RI-Ts do not.",
        "smallest margin of the three conditions of Definition 3.1, P-T/P-T "
        "(nats)",
        ">",
        0.0,
        "basin",
        ("basin_conditions",),
        "basin",
        _basin_margin("P-T"),
    ),
    Statistic(
        "C7",
        "Two P-Ts live in one basin; two RI-Ts do not.",
        "the same for RI-T/RI-T, at the same epsilon and delta (nats)",
        "<",
        0.0,
        "basin",
        ("basin_conditions",),
        "basin",
        _basin_margin("RI-T"),
    ),
    Statistic(
        "C8",
        "Higher modules are more sensitive than lower ones.",
        "rank correlation of a module's criticality with its depth, direct "
        "path, final weights",
        ">",
        0.0,
        "criticality",
        ("criticality",),
        "criticality",
        lambda table: mean_over_seeds(
            _direct(criticality_depth_correlation(table)).correlation.dropna()
        ),
    ),
    Statistic(
        "C9",
        "The same pattern on direct and optimization paths, from final and "
        "optimal weights.",
        "rank correlation of module criticality, mean over pairs of the four "
        "paths",
        ">",
        0.0,
        "criticality",
        ("criticality",),
        "criticality",
        lambda table: mean_over_seeds(path_agreement(table).agreement.dropna()),
    ),
    Statistic(
        "C10",
        "fc is critical for P-T.",
        "share of the other modules that are less critical than the head",
        ">",
        0.5,
        "criticality",
        ("criticality",),
        "criticality",
        lambda table: mean_over_seeds(
            _direct(head_rank(table)).query("kind == 'P-T'").share
        ),
    ),
    Statistic(
        "C11",
        "An earlier pre-training checkpoint suffices; final accuracy plateaus "
        "once it has entered the basin of the converged P.",
        "final accuracy from the checkpoints in that basin, the last excepted, "
        "minus that from the last",
        ">",
        -HARM,
        "pretraining",
        ("pretraining", "pretraining_barriers"),
        "pretraining",
        _plateau,
    ),
    Statistic(
        "C12",
        "Averaging models of one basin does no harm.",
        "accuracy of the average minus the mean of its members'",
        ">",
        -HARM,
        "averaging",
        ("averaging",),
        "averaging",
        _average_gain,
    ),
)
