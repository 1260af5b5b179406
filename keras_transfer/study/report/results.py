"""What a report tells of each claim, target by target."""

import pathlib

import numpy as np

from keras_transfer.analysis.declaration import all_analyses, described_claim
from keras_transfer.study.report.answers import change
from keras_transfer.study.report.numbers import amount

_REPLICATION = "It is of the first replication."


class Pictures:
    """Finds figures, how to read them, and the tables behind them.

    Args:
        files: `Files`.
        tables: `Tables`.
    """

    def __init__(self, files, tables):
        self._files, self._tables = files, tables

    def of(self, figure, table, target, alt):
        """Returns the `Image` and the `Data` of a figure.

        Args:
            figure: str, its path in the study, without suffix; "" for none.
            table: str, likewise.
            target: str.
            alt: str, what it shows.
        """
        plots, extent = self._plots(figure, target)
        caption = f"{_reading(figure)} {extent or _REPLICATION}".strip()
        image = self._files.image(figure, alt, caption, plots)
        return image, self._files.table(table)

    def _plots(self, figure, target):
        """Returns what can be touched of a figure, and what it is of."""
        # Not above: half a second that nothing but a report needs.
        from keras_transfer.study.report import plots

        name = pathlib.PurePosixPath(figure).name
        if name == "interpolation":
            table = self._tables.read(target, name, name)
            if len(table):
                return (
                    [plots.to_json(plots.interpolation(table))],
                    "It is of all replications; on paper, of the first.",
                )
        if name.startswith("plane_"):
            table = self._tables.read(target, "plane", "plane")
            if len(table):
                own = table.kind == name.removeprefix("plane_")
                own &= table.replication == 0
                drawn = plots.plane(table[own])
                return [plots.to_json(one) for one in drawn], ""
        return [], ""


def _reading(name):
    """Returns how to read a figure, by its path; "" if nobody tells."""
    last = pathlib.PurePosixPath(name).name
    for analysis in all_analyses():
        for figure in analysis.figures:
            before, kind, after = figure.name.partition("{kind}")
            if last == figure.name or (
                kind and last.startswith(before) and last.endswith(after)
            ):
                return figure.text
    return ""


def filled(table, words):
    """Returns a table with words, by column, for what is missing."""
    # A column of nothing but NaN is one of numbers, which hold no words.
    return table.astype(dict.fromkeys(words, object)).fillna(words)


def counts(claims, verdicts):
    """Returns [(verdict, on how many claims and targets)] of those given."""
    given = [result["verdict"] for c in claims for result in c["results"]]
    return [(v, given.count(v)) for v in verdicts if v in given]


def told_claims(report, pictures):
    """Returns what is shown of each claim.

    Args:
        report: `Report`.
        pictures: `Pictures`.

    Returns:
        list of dicts: "name", "statement", "claim" (`Claim`, None if nobody has
        described it) and "results", one per target.
    """
    if not len(report.claims):
        return []
    words = dict.fromkeys(("target", "unit", "note", "figure", "table"), "")
    claims = filled(report.claims, words)
    return [
        {
            "name": name,
            "statement": rows.statement.iloc[0],
            "claim": described_claim(name),
            "results": [
                _result(own, rows, report.values, pictures)
                for _, own in rows.groupby("target", sort=False)
            ],
        }
        for name, rows in claims.groupby("claim", sort=False)
    ]


def _result(own, rows, values, pictures):
    """Returns what is shown of one claim on one target.

    Args:
        own: `pandas.DataFrame`, the rows of that claim and target.
        rows: `pandas.DataFrame`, those of the claim on any target.
        values: `pandas.DataFrame`, of replications.
        pictures: `Pictures`.
    """
    first = own.iloc[0]
    on = f" on {first.target}" if first.target else ""
    found = "; ".join(
        f"{row.statistic}: {amount(row.value, row.unit)}"
        for row in own.itertuples()
    )
    alt = f"{first.claim}{on}. {found}. {first.verdict.capitalize()}."
    return {
        "target": first.target,
        "verdict": first.verdict,
        "statistics": [
            (row, *_drawing(row, *_same(row, rows, values)))
            for row in own.itertuples()
        ],
        "change": change(own),
        # Statistics of one analysis share its figure.
        "pictures": [
            pictures.of(figure, table, first.target, alt)
            for figure, table in dict.fromkeys(
                zip(own.figure, own.table, strict=True)
            )
            if figure or table
        ],
    }


def _same(row, rows, values):
    """Returns the rows of claims and of values about a row's statistic."""
    is_same = (values.claim == row.claim) & (values.statistic == row.statistic)
    return rows[rows.statistic == row.statistic], values[is_same]


def _drawing(row, rows, values):
    """Returns where a value, its interval and its threshold are drawn.

    Args:
        row: named tuple of claims.
        rows: `pandas.DataFrame`, those to be drawn to the same scale.
        values: `pandas.DataFrame`, of replications, likewise.

    Returns:
        {"value", "low", "high", "threshold", and "replications", a list},
        shares of the width, None for what is not known; and the same as a
        figure of Plotly, in JSON. Both are None if there is no value or no
        threshold.
    """
    if np.isnan([row.value, row.threshold]).any():
        return None, None
    names = ["value", "low", "high", "threshold"]
    marks = np.append(rows[names].to_numpy(np.float64), values.value)
    marks = marks[np.isfinite(marks)]
    margin = 0.15 * (np.ptp(marks) or 1)
    start, end = marks.min() - margin, marks.max() + margin

    def place(value):
        if np.isnan(value):
            return None
        # What is infinite lies at the edge.
        return float(np.clip((value - start) / (end - start), 0, 1))

    # Not above: half a second that nothing but a report needs.
    from keras_transfer.study.report import plots

    own = values[values.target == row.target].dropna(subset=["value"])
    at = {name: place(getattr(row, name)) for name in names}
    live = plots.to_json(plots.statistic(row, own, (start, end)))
    return at | {"replications": list(map(place, own.value))}, live
