"""A study's report: one HTML file that needs nothing beside it.

Style, script, figures and the tables behind them are inside, so that it can be
sent, printed and read offline; nothing is fetched from anywhere.
"""

import base64
import dataclasses
import io
import pathlib
import struct

import jinja2
import numpy as np

from keras_transfer.analysis.drawing import colour, new_figure
from keras_transfer.errors import UserError
from keras_transfer.files import write_text
from keras_transfer.manifest import Manifest

# A verdict's symbol; none depends on its colour to be told from another.
SYMBOLS = {
    "reproduced": "✓",
    "inconclusive": "≈",
    "not reproduced": "✗",
    "not decided": "?",
}
MODELS = {
    "RI": "random initialization",
    "P": "pre-trained on the source",
    "RI-T": "trained on the target from RI",
    "P-T": "trained on the target from P, with a fresh head",
}

# Browsers do not save data: addresses beyond 2 MiB of base64.
_LARGEST_TABLE = 1_500_000
# Pixels; wider figures would be unreadable on a phone if they were made to fit.
_WIDEST_ON_PHONE = 640
# Pixels of a figure (120 an inch, see `new_figure`) to one of CSS (96 an inch).
_DENSITY = 120 / 96
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report tells, as plain data.

    Figures (.png) and tables (.csv) are named by their paths relative to
    `directory`, without suffix; "" for none. What is missing on disk is
    reported as not available.

    Attributes:
        title: str.
        question: str, what was asked, a paragraph.
        claims: `pandas.DataFrame`, as `claims.decide` returns it, in the order
            in which they are shown; finding and verdict are of `SYMBOLS`.
        values: `pandas.DataFrame`, the values of each replication, as
            `claims.decide` returns them.
        runs: `pandas.DataFrame`, one row per run: name, kind, target ("" for
            P), replication, seed, final, best and speed (test metric of the
            last and of the best epoch, and its mean over epochs), seconds,
            state ("finished", "failed", ...) and any other column, such as
            block_size; all are shown, in this order.
        curves: `pandas.DataFrame`, the learning curves to draw, one row per
            run, epoch and split: run, kind, target, epoch, split ("train" or
            "test"), loss (nats), metric (its name), value (of the metric).
        sections: list of (title, text, figure, alternative text, table) for
            analyses that belong to no claim.
        failures: list of (name, log) of what failed or could not be run.
        facts: {str: value}, such as versions and run time.
        config: str, the study's gin configuration.
        directory: `pathlib.Path` of the study.
    """

    title: str
    question: str
    claims: object
    values: object
    runs: object
    curves: object
    sections: list
    failures: list
    facts: dict
    config: str
    directory: pathlib.Path

    @property
    def replications(self):
        """How many replications there are."""
        return 1 + max(self.values.get("replication", [0]))


def write_report(path, report):
    """Writes a study's report as one self-contained HTML file.

    In the order of the paper: the question, a summary of the verdicts, the four
    models with their learning curves, the claims, further analyses, and how it
    was run. Figures are embedded as PNG, the tables behind them as CSV up to
    1.5 MB each; larger ones are named.

    Args:
        path: where the file will be; its directory exists.
        report: `Report`.
    """
    files = _Files(report.directory)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    template = environment.get_template("report.html.jinja")
    # Figures are numbered as they are asked for: in the order of the page.
    curves = [
        files.drawn(
            _curves_figure(rows),
            f"learning curves on {domain}",
            _curves_text(domain, rows),
        )
        for domain, rows in _domains(report.curves)
    ]
    claims = _claims(report, files)
    page = template.render(
        report=report,
        symbols=SYMBOLS,
        definitions=MODELS,
        curves=curves,
        models=_models(report),
        claims=claims,
        counts=_counts(claims),
        sections=[
            (title, text, files.figure(figure, alt), files.table(table))
            for title, text, figure, alt, table in report.sections
        ],
        csv={
            name: _frame(f"{name}.csv", getattr(report, name))
            for name in ("claims", "runs", "curves")
        }
        | {"replications": _frame("replications.csv", report.values)},
    )
    write_text(path, page)


@dataclasses.dataclass(frozen=True)
class _Figure:
    """A figure where it is referred to.

    Attributes:
        name: str, its path in the study, or what it is if it was drawn here.
        alt: str, what it shows, for those who do not see it.
        number: int, 0 if it is not available.
        source: str, data: address; "" if it is embedded further up.
        width: int, CSS pixels.
        height: int, CSS pixels.
    """

    name: str
    alt: str
    number: int = 0
    source: str = ""
    width: int = 0
    height: int = 0

    @property
    def wide(self):
        """Whether it would be unreadable if made to fit a phone."""
        return self.width > _WIDEST_ON_PHONE


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table where it is referred to.

    Attributes:
        name: str, its path in the study.
        source: str, data: address; "" if it is too large, not available, or
            embedded further up.
        size: int, bytes; 0 if it is not available.
        number: int, tells it from others; 0 if it is not embedded.
    """

    name: str
    source: str = ""
    size: int = 0
    number: int = 0

    @property
    def file_name(self):
        """What it is saved as: tables of two targets share a last name."""
        return "_".join(pathlib.PurePosixPath(self.name).parts)


class _Files:
    """Reads a study's figures and tables; each is embedded only once."""

    def __init__(self, directory):
        self._directory = pathlib.Path(directory)
        self._figures, self._tables = {}, {}
        self._number = 0

    def figure(self, name, alt):
        """Returns the `_Figure` of that name, None if there is no name."""
        if not name:
            return None
        if name in self._figures:
            return dataclasses.replace(self._figures[name], source="", alt=alt)
        image = _read(self._directory / f"{name}.png")
        if not image.startswith(_PNG_SIGNATURE) or len(image) < 24:
            return _Figure(name, alt)
        self._figures[name] = self._numbered(name, alt, image, _DENSITY)
        return self._figures[name]

    def drawn(self, figure, name, alt):
        """Returns the `_Figure` of one of Matplotlib's."""
        image = io.BytesIO()
        # Sharp on a phone, whose pixels are smaller than those of CSS.
        figure.savefig(image, format="png", dpi=2 * figure.dpi)
        return self._numbered(name, alt, image.getvalue(), 2 * _DENSITY)

    def table(self, name):
        """Returns the `_Table` of that name, None if there is no name."""
        if not name:
            return None
        name = f"{name.removesuffix('.csv')}.csv"
        if name in self._tables:
            return dataclasses.replace(self._tables[name], source="")
        table = _embedded(name, _read(self._directory / name))
        if table.source:
            number = len(self._tables) + 1
            table = dataclasses.replace(table, number=number)
            self._tables[name] = table
        return table

    def _numbered(self, name, alt, image, density):
        self._number += 1
        # The header of a PNG begins with both, big-endian.
        size = (round(s / density) for s in struct.unpack(">II", image[16:24]))
        source = _data_address("image/png", image)
        return _Figure(name, alt, self._number, source, *size)


def _read(path):
    """Returns a file's bytes, none if there is no such file."""
    try:
        return Manifest(path.parent).read_bytes(path.name)
    except UserError:
        return b""


def _frame(name, frame):
    return _embedded(name, frame.to_csv(index=False).encode())


def _embedded(name, content):
    if len(content) > _LARGEST_TABLE or not content:
        return _Table(name, size=len(content))
    source = _data_address("text/csv;charset=utf-8", content)
    return _Table(name, source, len(content))


def _data_address(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _number(value):
    """Returns a number with three digits, a dash for NaN, other things as is.

    Numbers of a thousand and more, and integers, keep all before the point.
    """
    import pandas

    if value is None or pandas.isna(value):
        return "–"
    if isinstance(value, str):
        return value
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.3g}"


def _filled(table, words):
    """Returns a table with words, by column, for what is missing."""
    # A column of nothing but NaN is one of numbers, which hold no words.
    return table.astype(dict.fromkeys(words, object)).fillna(words)


def _counts(claims):
    """Returns [(verdict, on how many claims and targets)] of those given."""
    given = [result["verdict"] for c in claims for result in c["results"]]
    return [(v, given.count(v)) for v in SYMBOLS if v in given]


def _claims(report, files):
    """Returns [{"name", "statement", "results"}], one per claim."""
    if not len(report.claims):
        return []
    words = dict.fromkeys(("target", "note", "figure", "table"), "")
    claims = _filled(report.claims, words)
    return [
        {
            "name": name,
            "statement": rows.statement.iloc[0],
            "results": [
                _result(own, rows, report.values, files)
                for _, own in rows.groupby("target", sort=False)
            ],
        }
        for name, rows in claims.groupby("claim", sort=False)
    ]


def _result(own, rows, values, files):
    """Returns what is shown of one claim on one target.

    Args:
        own: `pandas.DataFrame`, the rows of that claim and target.
        rows: `pandas.DataFrame`, those of the claim on any target.
        values: `pandas.DataFrame`, of replications.
        files: `_Files`.
    """
    first = own.iloc[0]
    on = f" on {first.target}" if first.target else ""
    found = "; ".join(
        f"{row.statistic}: {_number(row.value)}" for row in own.itertuples()
    )
    alt = f"{first.claim}{on}. {found}. {first.verdict.capitalize()}."
    return {
        "target": first.target,
        "verdict": first.verdict,
        "statistics": [
            (row, _drawing(row, *_same(row, rows, values)))
            for row in own.itertuples()
        ],
        # Statistics of one analysis share its figure.
        "pictures": [
            (files.figure(figure, alt), files.table(table))
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
        shares of the width, None for what is not known; None if there is no
        value or no threshold.
    """
    if not np.isfinite([row.value, row.threshold]).all():
        return None
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

    own = values.value[values.target == row.target].dropna()
    return {name: place(getattr(row, name)) for name in names} | {
        "replications": list(map(place, own))
    }


def _domains(curves):
    """Returns [(name, its rows of curves)], the source first."""
    if not len(curves):
        return []
    domains = _filled(curves, {"target": ""}).groupby("target", sort=False)
    return sorted(
        ((target or "source", rows) for target, rows in domains),
        key=lambda domain: domain[0] != "source",
    )


def _models(report):
    """Returns the four models' test metrics, for runs that have curves.

    Returns:
        list of dicts, one per domain and model: "domain", "model", "metric",
        "runs" (their number), "final" and "speed" (mean, least and greatest,
        None if not known).
    """
    models = []
    runs = report.runs
    for domain, rows in _domains(report.curves):
        metric = rows.metric.iloc[0]
        kinds = rows.groupby("run").kind.first()
        starts = rows[
            (rows.kind == "RI-T") & (rows.epoch == 0) & (rows.split == "test")
        ]
        for model in MODELS:
            own = runs[runs.name.isin(kinds.index[kinds == model])]
            final = starts.value if model == "RI" else own.final
            if len(final):
                models.append(
                    {"domain": domain, "model": model, "metric": metric}
                    | {"runs": len(final), "final": _extent(final)}
                    | {"speed": _extent(own.speed)}
                )
    return models


def _extent(values):
    """Returns (mean, least, greatest), None if there is no value."""
    values = values.dropna()
    return (values.mean(), values.min(), values.max()) if len(values) else None


def _curves_text(domain, rows):
    """Returns the alternative text of a domain's learning curves."""
    test = rows[rows.split == "test"].sort_values("epoch")
    final = test.groupby(["kind", "run"]).value.last().groupby("kind")
    ends = ", ".join(
        f"{kind} {_number(values.mean())}" for kind, values in final
    )
    metric = rows.metric.iloc[0]
    return (
        f"Learning curves on {domain}: {metric} and loss against epochs. "
        f"Test {metric} after the last epoch, mean over runs: {ends}."
    )


def _curves_figure(rows):
    """Draws metric and loss of one domain's runs against epochs."""
    figure, axes = new_figure(4.4, 4.8, rows=2, sharex=True)
    named = set()
    for (_, kind), run in rows.groupby(["run", "kind"], sort=False):
        for split, style in (("test", "-"), ("train", ":")):
            own = run[run.split == split].sort_values("epoch")
            label = f"{kind}, {split}"
            # One entry in the legend for all runs of a kind.
            shown = None if label in named or not len(own) else label
            named.add(shown)
            line = {"color": colour(kind), "linestyle": style, "lw": 1.2}
            axes[0].plot(own.epoch, own.value, label=shown, **line)
            axes[1].plot(own.epoch, own.loss, **line)
    metric = rows.metric.iloc[0]
    axes[0].set(title=rows.target.iloc[0] or "source", ylabel=metric)
    axes[1].set(xlabel="epoch", ylabel="loss (nats)")
    axes[1].set_yscale("log")
    for panel in axes:
        panel.grid(color="0.92")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure
