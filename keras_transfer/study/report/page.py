"""A study's report: one HTML file that needs nothing beside it.

Style, script, figures and the tables behind them are inside, so that it can be
sent, printed and read offline; nothing is fetched from anywhere.
"""

import base64
import dataclasses
import functools
import gzip
import pathlib

import jinja2

from keras_transfer.analysis.drawing import colour, new_figure
from keras_transfer.files import write_text
from keras_transfer.study.report import paper
from keras_transfer.study.report.answers import answers
from keras_transfer.study.report.embedding import Files
from keras_transfer.study.report.modules import by_module
from keras_transfer.study.report.numbers import amount, extent, number
from keras_transfer.study.report.results import (
    Pictures,
    counts,
    filled,
    told_claims,
)
from keras_transfer.study.report.tables import Tables

# A verdict's symbol; none depends on its colour to be told from another.
SYMBOLS = {
    "reproduced": "✓",
    "inconclusive": "≈",
    "not reproduced": "✗",
    "not decided": "?",
}
MODELS = {name: paper.GLOSSARY[name] for name in ("RI", "P", "RI-T", "P-T")}
_WHERE = (
    "The network from its input to its head, coloured by what is known of each "
    "module in P-Ts and in RI-Ts, medians over models and replications: its "
    "criticality, its distance from the start as the root mean square change "
    "of a weight, and the CKA of two models. Yellow is the most of a column, "
    "blue the least."
)


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

    First the answers, then the verdicts, the network, the four models with
    their learning curves, the claims one by one, further analyses, and how it
    was run. Figures are embedded as PNG, and where they can be touched also as
    data for Plotly, which is embedded once; the tables behind them as CSV up to
    400 kB each. The page stays below 8 MB: what would make it larger is named.

    Args:
        path: where the file will be; its directory exists.
        report: `Report`.
    """
    # Not above: half a second that nothing but a report needs.
    from keras_transfer.study.report import plots

    files = Files(report.directory)
    tables = Tables(report.directory, report.replications)
    modules = {
        target: by_module(tables, target, report.runs)
        for target in _targets(report)
    }
    # Figures are numbered as they are asked for: in the order of the page.
    where = [
        _where(files, plots, target, known) for target, known in modules.items()
    ]
    curves = [
        files.drawn(
            _curves_figure(rows),
            f"learning curves on {domain}",
            _curves_text(domain, rows),
            f"How the models learned on {domain}: one line a run, test "
            "solid, training dotted.",
        )
        for domain, rows in _domains(report.curves)
    ]
    pictures = Pictures(files, tables)
    claims = told_claims(report, pictures)
    sections = [_section(section, pictures) for section in report.sections]
    csv = {
        name: files.text(f"{name}.csv", frame.to_csv(index=False).encode())
        for name, frame in {
            "claims": report.claims,
            "replications": report.values,
            "runs": report.runs,
            "curves": report.curves,
        }.items()
    }
    page = (
        environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            answers=[
                (target, answers(report, tables, known, target))
                for target, known in modules.items()
            ],
            symbols=SYMBOLS,
            definitions=MODELS,
            glossary=paper.GLOSSARY,
            citation=paper.CITATION,
            where=[image for image in where if image],
            curves=curves,
            models=_models(report),
            claims=claims,
            counts=counts(claims, SYMBOLS),
            sections=sections,
            csv=csv,
            library=_library() if _is_live(claims, where, sections) else "",
        )
    )
    write_text(path, page)


def environment():
    """Returns what renders the templates that lie beside this file."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "amount": amount}
    made.globals["extent_of"] = extent
    return made


def _is_live(claims, where, sections):
    """Returns whether a page has figures that one can touch."""
    images = [*where, *(image for _, _, image, _ in sections)]
    return bool(claims) or any(image and image.plots for image in images)


@functools.cache
def _library():
    """Returns Plotly's JavaScript, compressed, in base64."""
    import plotly.offline

    script = plotly.offline.get_plotlyjs().encode()
    return base64.b64encode(gzip.compress(script, mtime=0)).decode()


def _targets(report):
    """Returns the names of the targets, in their order."""
    known = report.claims if "target" in report.claims else report.runs
    targets = known.target.dropna() if "target" in known else []
    return [target for target in dict.fromkeys(targets) if target]


def _where(files, plots, target, modules):
    """Returns the `Image` of a target's network, None if nothing is known."""
    still = plots.where_still(modules)
    if still is None:
        return None
    alt = f"The modules of the networks trained on {target}, coloured."
    live = plots.to_json(plots.where(modules))
    return files.drawn(still, f"where: {target}", alt, _WHERE, [live])


def _section(section, pictures):
    """Returns (title, text, `Image`, `Data`) of a further analysis."""
    title, text, figure, alt, table = section
    parts = pathlib.PurePosixPath(figure).parts
    target = parts[-3] if len(parts) > 2 else ""
    return title, text, *pictures.of(figure, table, target, alt)


def _domains(curves):
    """Returns [(name, its rows of curves)], the source first."""
    if not len(curves):
        return []
    domains = filled(curves, {"target": ""}).groupby("target", sort=False)
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
        f"{kind} {number(values.mean())}" for kind, values in final
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
