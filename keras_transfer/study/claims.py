"""The claims of a study, decided from what its analyses have found.

Each analysis declares the statistics that its claims stand or fall with; the
paper's are C1 to C12.
"""

import errno
import math
import os
import pathlib
import re

from absl import logging

from keras_transfer.analysis.declaration import Refuted, all_analyses
from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest

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


def decide(directory, targets):
    """Decides every claim for every target.

    A statistic is *reproduced* if its whole interval lies on the claim's side
    of the threshold, *not reproduced* if the whole of it lies on the other, and
    *inconclusive* if it straddles the threshold, or if one seed gives no
    interval. A claim with several statistics is as good as the worst of them.

    Source: paper section 5 (`paper.md`).

    Args:
        directory: `pathlib.Path` of the study's analyses, one directory a
            target, and in it one or more that hold tables.
        targets: names of the targets.

    Returns:
        `pandas.DataFrame`, one row per target and statistic: claim, target,
        statement, statistic, value, low and high (95% interval over seeds),
        direction, threshold, finding (the statistic's own), verdict (the
        claim's), note (why it could not be decided), figure and table (paths
        beside `directory`, without suffix).
    """
    import pandas

    rows = [
        _row(analysis, statistic, directory, target)
        for target in targets
        for analysis, statistic in statistics()
    ]
    table = pandas.DataFrame(rows)
    table.insert(
        table.columns.get_loc("note"),
        "verdict",
        table.groupby(["claim", "target"]).finding.transform(_worst),
    )
    return table


def finding(value, low, high, direction, threshold):
    """Returns the finding of one statistic; see `decide`.

    Args:
        value: float, NaN if it could not be computed.
        low: float, of its interval, NaN if there is none.
        high: float.
        direction: ">" or "<".
        threshold: float.

    Returns:
        "reproduced", "not reproduced", "inconclusive" or "not decided".
    """
    if math.isnan(value):
        return FINDINGS[0]
    if direction == "<":
        low, high, threshold = -high, -low, -threshold
    if low > threshold:
        return "reproduced"
    return "not reproduced" if high < threshold else "inconclusive"


def _worst(findings):
    return min(findings, key=FINDINGS.index)


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


def _read_table(path):
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return Manifest(path.parent).read_table(path.name)


def _row(analysis, statistic, directory, target):
    paths = [
        find_table(directory / target, name, analysis.name)
        for name in statistic.tables
    ]
    place = paths[0].parent.relative_to(directory.parent).as_posix()
    figure = shown_figure(analysis, statistic)
    value = low = high = math.nan
    note, refuted = "", False
    try:
        value, low, high = statistic.compute(*map(_read_table, paths))
    except Refuted as error:
        note, refuted = str(error), True
    except FileNotFoundError as error:
        missing = pathlib.Path(error.filename).relative_to(directory.parent)
        note = f"{missing.as_posix()} is not there: not run, or failed."
    except (UserError, OSError) as error:
        note = str(error)
    except Exception as error:  # In a statistic of the user's own.
        logging.exception("%s, %s", statistic.claim, statistic.name)
        note = f"It cannot be computed. {type(error).__name__}: {error}"
    found = {"value": value, "low": low, "high": high}
    against = {
        "direction": statistic.direction,
        "threshold": statistic.threshold,
    }
    return {
        "claim": statistic.claim,
        "target": target,
        "statement": statistic.statement,
        "statistic": statistic.name,
        **found,
        **against,
        "finding": "not reproduced" if refuted else finding(**found, **against),
        "note": note,
        "figure": figure and f"{place}/{figure}",
        "table": f"{place}/{statistic.tables[0]}",
    }
