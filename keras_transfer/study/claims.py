"""The claims of a study, decided from what its analyses have found.

Each analysis declares the statistics that its claims stand or fall with; the
paper's are C1 to C12.
"""

import math
import re

from absl import logging

from keras_transfer.analysis.declaration import Refuted, Value, all_analyses
from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest
from keras_transfer.study.intervals import FEWEST, median_interval
from keras_transfer.study.plan import replication_directory

# From worst to best.
FINDINGS = ("not decided", "not reproduced", "inconclusive", "reproduced")


def statistics():
    """Returns what is held against the claims, in the claims' order.

    Returns:
        list of (`Analysis`, `Statistic`): C1, C2, ..., C10, then those of other
        names.
    """
    found = [
        (analysis, statistic)
        for analysis in all_analyses()
        for statistic in analysis.statistics
    ]
    return sorted(found, key=lambda pair: _order(pair[1].claim))


def _order(claim):
    number = re.fullmatch(r"C(\d+)", claim)
    return (0, int(number[1]), "") if number else (1, 0, claim)


def shown_figure(analysis, statistic):
    """Returns the name of the figure that shows a statistic, "" for none."""
    names = [figure.name for figure in analysis.figures]
    return statistic.figure or next(iter(names), "")


def decide(work_dir, targets, replications):
    """Decides every claim for every target.

    A statistic is *reproduced* if the whole interval for its median over
    replications lies on the claim's side of the threshold, *not reproduced* if
    the whole of it lies on the other, and *inconclusive* if it straddles the
    threshold, or if so many replications give the same number that there is no
    interval. Of too few replications for one it is *not decided*. A claim is as
    good as the worst of the statistics that decide it.

    Source: paper section 5 (`paper.md`).

    Args:
        work_dir: `pathlib.Path` of the study.
        targets: names of the targets.
        replications: int, how many there are.

    Returns:
        claims: `pandas.DataFrame`, one row per target and statistic: claim,
            target, statement, statistic, unit (see `Statistic`), value (median
            over replications), low and high (95% interval for it, NaN if there
            is none), direction, threshold, decides, finding (the statistic's
            own, "" if it decides nothing), verdict (the claim's), replications
            (how many gave a number), note, figure and table (paths within the
            study, without suffix).
        values: `pandas.DataFrame`, one row per target, statistic and
            replication: claim, target, statistic, replication, value (NaN if it
            could not be computed, infinite if what is claimed was not to be
            found) and note.
    """
    import pandas

    rows, values = [], []
    directories = [
        work_dir / replication_directory(r) for r in range(replications)
    ]
    for target in targets:
        for analysis, statistic in statistics():
            found = _values(analysis, statistic, directories, target)
            row = _row(analysis, statistic, found, target)
            place = _place(analysis, statistic, directories, target)
            rows.append(row | _shown(analysis, statistic, place, work_dir))
            values += [
                {name: row[name] for name in ("claim", "target", "statistic")}
                | {"replication": number, "value": value, "note": note}
                for number, (value, note) in enumerate(found)
            ]
    claims = pandas.DataFrame(rows)
    deciding = claims.finding.where(claims.decides)
    claims.insert(
        claims.columns.get_loc("replications"),
        "verdict",
        deciding.groupby([claims.claim, claims.target]).transform(_worst),
    )
    return claims, pandas.DataFrame(values)


def finding(value, low, high, direction, threshold):
    """Returns the finding of one statistic; see `decide`.

    Args:
        value: float, NaN if it could not be computed.
        low: float, of its interval.
        high: float.
        direction: ">" or "<".
        threshold: float.

    Returns:
        "reproduced", "not reproduced" or "inconclusive".
    """
    if direction == "<":
        low, high, threshold = -high, -low, -threshold
    if low > threshold:
        return "reproduced"
    return "not reproduced" if high < threshold else "inconclusive"


def _worst(findings):
    return min(findings.dropna(), key=FINDINGS.index, default=FINDINGS[0])


def find_table(directory, name, analysis):
    """Returns where a table is, or would be.

    Args:
        directory: `pathlib.Path` of a target's analyses.
        name: str, the table's.
        analysis: str, the analysis that makes it: if it has a directory of its
            own, that is looked at first.

    Returns:
        `pathlib.Path`.
    """
    expected = directory / analysis / f"{name}.csv"
    found = sorted(directory.glob(f"*/{name}.csv"))
    return expected if expected in found or not found else found[0]


def _read_tables(analysis, statistic, directory, target):
    """Returns the tables of a statistic in one replication, a tuple."""
    paths = [
        find_table(directory / "analyses" / target, name, analysis.name)
        for name in statistic.tables
    ]
    for path in paths:
        if not path.exists():
            shown = path.relative_to(directory).as_posix()
            raise UserError(f"{shown} is not there: not run, or failed.")
    return tuple(Manifest(p.parent).read_table(p.name) for p in paths)


def _values(analysis, statistic, directories, target):
    """Returns the `Value` of a statistic in each replication."""
    tables = []
    for directory in directories:
        try:
            found = _read_tables(analysis, statistic, directory, target)
        except (UserError, OSError) as error:
            found = error
        tables.append(found)
    return [_value(statistic, tables, r) for r in range(len(tables))]


def _value(statistic, tables, number):
    """Returns the `Value` of a statistic in one replication.

    Args:
        statistic: `Statistic`.
        tables: of each replication its tables, or why they cannot be read.
        number: int, the replication's.
    """
    own = tables[number]
    if isinstance(own, Exception):
        return Value(math.nan, str(own))
    others = [t for t in tables[:number] + tables[number + 1 :] if _is_read(t)]
    try:
        chosen = [statistic.calibrate(others)] if statistic.calibrate else []
        found = statistic.compute(*own, *chosen)
        return found if isinstance(found, Value) else Value(float(found))
    except Refuted as error:
        worst = -math.inf if statistic.direction == ">" else math.inf
        return Value(worst, str(error))
    except UserError as error:
        return Value(math.nan, str(error))
    except Exception as error:  # In a statistic of the user's own.
        logging.exception("%s, %s", statistic.claim, statistic.name)
        reason = f"It cannot be computed. {type(error).__name__}: {error}"
        return Value(math.nan, reason)


def _is_read(tables):
    return not isinstance(tables, Exception)


def _row(analysis, statistic, found, target):
    """Returns what is said of a statistic over all replications."""
    values = [value for value, _ in found if not math.isnan(value)]
    value, low, high = math.nan, math.nan, math.nan
    if values:
        value, low, high = median_interval(values)
    notes = [_about(values, low)] + _notes(found)
    against = {
        "direction": statistic.direction,
        "threshold": statistic.threshold,
    }
    known = {"value": value, "low": low, "high": high}
    decided = "not decided"
    if len(values) >= FEWEST:
        decided = finding(**known, **against)
    return {
        "claim": statistic.claim,
        "target": target,
        "statement": statistic.statement,
        "statistic": statistic.name,
        "unit": statistic.unit,
        **known,
        **against,
        "decides": statistic.decides,
        "finding": decided if statistic.decides else "",
        "replications": len(values),
        "note": " ".join(filter(None, notes)),
    }


def _about(values, low):
    """Returns why there is no interval, "" if there is one."""
    if not values or not math.isnan(low):
        return ""
    if len(values) < FEWEST:
        return (
            f"Of {len(values)} replication{'s' * (len(values) > 1)}: a value, "
            f"and no verdict, for which {FEWEST} are needed."
        )
    how_many = f"All {len(values)}" if len(set(values)) == 1 else "Most"
    return f"{how_many} replications give the same: there is no interval."


def _notes(found):
    """Returns the notes on replications, each with their numbers."""
    by_note = {}
    for number, (_, note) in enumerate(found):
        if note:
            by_note.setdefault(note, []).append(str(number))
    if len(by_note) == 1 and len(found) == len(next(iter(by_note.values()))):
        return list(by_note)
    return [
        f"Replication {', '.join(numbers)}: {note}"
        for note, numbers in by_note.items()
    ]


def _place(analysis, statistic, directories, target):
    """Returns the directory of the first replication's tables."""
    found = find_table(
        directories[0] / "analyses" / target, statistic.tables[0], analysis.name
    )
    return found.parent


def _shown(analysis, statistic, place, work_dir):
    """Returns which figure and table a report shows of a statistic."""
    figure = shown_figure(analysis, statistic)
    place = place.relative_to(work_dir).as_posix()
    return {
        "figure": figure and f"{place}/{figure}",
        "table": f"{place}/{statistic.tables[0]}",
    }
