"""Two studies side by side: claims, verdicts, intervals and differences."""

import math
import pathlib

import numpy as np
import pandas

from keras_transfer.errors import UserError
from keras_transfer.files import write_text
from keras_transfer.manifest import Manifest, check_kind
from keras_transfer.study.report.numbers import amount, extent
from keras_transfer.study.report.page import SYMBOLS, environment

_SHOWN = ("value", "low", "high", "verdict", "finding", "target")
# Characters of the columns that are printed.
_WIDTHS = (58, 30, 30, 24)


def compare(first, second):
    """Holds what one study has found against what another has.

    Statistics are matched by claim, target and name. Two studies of one target
    each are matched whatever the names of their targets.

    Args:
        first: path of a study's directory.
        second: path of another's.

    Returns:
        `pandas.DataFrame`, one row per claim, target and statistic that either
        has, in the first's order: claim, target, statement, statistic, unit,
        threshold, direction, decides; of each study value, low, high, finding
        and verdict, with "_1" and "_2" behind them (NaN and "" of what it has
        not); difference (the second's median minus the first's) and intervals
        ("apart", "overlap", or "" where one has none).

    Raises:
        UserError: if one is no study that has decided its claims, or nothing is
            common to both.
    """
    tables = [_claims(path) for path in (first, second)]
    keys = ["claim", "statistic"]
    if any(table.target.nunique() > 1 for table in tables):
        keys.append("target")
    both = pandas.merge(*tables, on=keys, how="outer", suffixes=("_1", "_2"))
    order = pandas.concat([t[keys] for t in tables]).drop_duplicates(keys)
    both = order.merge(both, on=keys)
    if not both[["verdict_1", "verdict_2"]].notna().all(axis=1).any():
        raise UserError(
            "The two studies have no statistic in common: other claims or "
            f"other targets. Received: {first} and {second}."
        )
    for name in ("statement", "unit", "threshold", "direction", "decides"):
        both[name] = both.pop(f"{name}_1").combine_first(both.pop(f"{name}_2"))
    if "target" not in both:
        both["target"] = [
            " / ".join(dict.fromkeys(t for t in pair if isinstance(t, str)))
            for pair in zip(both.target_1, both.target_2, strict=True)
        ]
    words = [
        "unit",
        *(f"{w}_{k}" for w in ("verdict", "finding") for k in "12"),
    ]
    both[words] = both[words].astype(object).fillna("")
    both["difference"] = both.value_2 - both.value_1
    both["intervals"] = [_intervals(row) for row in both.itertuples()]
    order = ["claim", "target", "statement", "statistic", "unit", "threshold"]
    order += ["direction", "decides"]
    order += [
        f"{name}_{k}"
        for k in "12"
        for name in ("value", "low", "high", "finding", "verdict")
    ]
    return both[[*order, "difference", "intervals"]]


def _claims(path):
    manifest = Manifest(pathlib.Path(path))
    check_kind(path, "study", manifest.kind)
    if not (manifest.directory / "claims.csv").is_file():
        raise UserError(
            "A study whose claims are decided has a table claims.csv. "
            f"Received: {path}, which has none; carry it out with "
            "bin/reproduce."
        )
    table = manifest.read_table("claims.csv")
    names = ["claim", "target", "statement", "statistic", "unit", "threshold"]
    names += ["direction", "decides", *_SHOWN[:-1]]
    # What it wrote before statistics had units.
    return table.reindex(columns=names)


def _intervals(row):
    ends = np.array([[row.low_1, row.high_1], [row.low_2, row.high_2]])
    if np.isnan(ends).any():
        return ""
    is_apart = ends[:, 0].max() > ends[:, 1].min()
    return "apart" if is_apart else "overlap"


def comparison_text(table, names):
    """Returns a comparison as lines to be printed.

    Only the statistics that decide are in it.

    Args:
        table: what `compare` returns.
        names: the two studies' names.
    """
    lines = [_line("", *names, "second minus first")]
    for (claim, target), rows in _by_claim(table):
        one = rows.iloc[0]
        title = f"{claim} {target}: {one.statement}"
        verdicts = [_verdict(one.verdict_1), _verdict(one.verdict_2)]
        lines.append(_line(title, *verdicts, ""))
        lines += [
            _line(f"  {row.statistic}", *_values(row), _difference(row))
            for row in rows[rows.decides.astype(bool)].itertuples()
        ]
    return "\n".join(lines)


def write_comparison(path, table, names):
    """Writes a comparison as one HTML file that needs nothing beside it.

    Args:
        path: where the file will be.
        table: what `compare` returns.
        names: the two studies' names.
    """
    claims = [
        {
            "name": claim,
            "target": target,
            "statement": rows.statement.iloc[0],
            "verdicts": [rows.verdict_1.iloc[0], rows.verdict_2.iloc[0]],
            "rows": [
                (row, *_values(row), _difference(row))
                for row in rows.itertuples()
            ],
        }
        for (claim, target), rows in _by_claim(table)
    ]
    template = environment().get_template("comparison.html.jinja")
    changed = sum(len(set(claim["verdicts"])) > 1 for claim in claims)
    page = template.render(
        claims=claims, names=names, symbols=SYMBOLS, changed=changed
    )
    write_text(path, page)


def _by_claim(table):
    return table.groupby(["claim", "target"], sort=False)


def _verdict(verdict):
    return f"{SYMBOLS[verdict]} {verdict}" if verdict else "not examined"


def _values(row):
    """Returns the value and the interval of each study, as they are shown."""
    return [
        _value(*(getattr(row, f"{name}_{k}") for name in _SHOWN[:3]), row.unit)
        for k in "12"
    ]


def _value(value, low, high, unit):
    ends = extent(low, high, unit)
    return f"{amount(value, unit)} ({ends})" if ends else amount(value, unit)


def _difference(row):
    if math.isnan(row.difference):
        return ""
    sign = "+" if row.difference > 0 else ""
    said = f"{sign}{amount(row.difference, row.unit)}"
    return f"{said}, {row.intervals}" if row.intervals else said


def _line(*cells):
    return "  ".join(
        f"{_fitting(cell, width):<{width}}"
        for cell, width in zip(cells, _WIDTHS, strict=True)
    ).rstrip()


def _fitting(cell, width):
    """Returns a cell no wider than that, without its middle if need be."""
    if len(cell) <= width:
        return cell
    end = (width - 5) * 2 // 5
    return f"{cell[: width - 5 - end].rstrip()} ... {cell[-end:].lstrip()}"
