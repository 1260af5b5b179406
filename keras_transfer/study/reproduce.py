"""A study from its configuration to its report."""

import importlib.metadata
import os
import platform

import gin

from keras_transfer import objectives
from keras_transfer.analysis.declaration import all_analyses
from keras_transfer.analysis.learning import learning_summary
from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest, csv_text
from keras_transfer.runs import Run
from keras_transfer.study.claims import decide, shown_figure, statistics
from keras_transfer.study.estimate import Estimate
from keras_transfer.study.report import (
    Report,
    write_report,
    write_tensorboard,
)
from keras_transfer.study.runner import Runner

_PACKAGES = (
    "keras_transfer",
    "tensorflow",
    "keras",
    "tensorflow-probability",
    "tensorflow-datasets",
    "gin-config",
    "numpy",
)


def reproduce(study, work_dir, executor=None):
    """Trains everything a study needs, analyses it, and writes the report.

    Leaves in `work_dir`: replication_<number>/runs/ and analyses/, each task in
    a directory of its own, config.gin (the study's), claims.csv and
    replications.csv (what `decide` returns), report.html and tensorboard/, in
    which runs are named as people would say them. The same call goes on with
    what is not finished (see `Runner`).

    Args:
        study: `Study`.
        work_dir: str, made if need be.
        executor: what runs the tasks, such as `Workers`; None for `InTurn`, in
            this process.

    Raises:
        UserError: after everything else has been done and reported, if a task
            failed; before, if the configuration of one cannot be used.
    """
    config = gin.config_str()
    estimate = Estimate(study.num_images)
    runner = Runner(
        work_dir, study.tasks(), study.threads, on_read=estimate.add
    )
    runner.check_free()
    manifest = _claimed(runner.path)
    manifest.write_text("config.gin", config)
    outcomes = runner.run(executor, estimate.costs)
    claims, values = decide(runner.path, study.targets, study.replications)
    manifest.write_text("claims.csv", csv_text(claims))
    manifest.write_text("replications.csv", csv_text(values))
    report = _report(study, runner.path, outcomes, claims, values, config)
    write_report(runner.path / "report.html", report)
    write_tensorboard(runner.path / "tensorboard", report)
    print(f"\n{_summary(claims)}\n\nReport: {runner.path / 'report.html'}")
    failed = [o.task.name for o in outcomes if o.state != "finished"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(outcomes)} tasks are not finished: "
            f"{', '.join(failed)}. The report shows why; the same command "
            "tries them again."
        )


def _claimed(path):
    """Returns the `Manifest` of a study's directory, made if need be."""
    manifest = Manifest(path, "study")
    names = ("config.gin", "claims.csv", "replications.csv", "report.html")
    if manifest.kind is None and next(path.glob("runs/*/task.json"), None):
        # Of a version that wrote none.
        manifest.adopt(names)
    manifest.claim(names)
    return manifest


def _summary(claims):
    """Returns one line per claim and target, with values if undecided."""
    lines = []
    for (claim, target), rows in claims.groupby(
        ["claim", "target"], sort=False
    ):
        first, deciding = rows.iloc[0], rows[rows.decides]
        lines.append(
            f"{claim:>4}  {first.verdict:<14}  {target}: {first.statement}"
        )
        if first.verdict == "not decided":
            lines += [
                f"{'':22}{row.value:.3g} ({row.direction} {row.threshold:g} is "
                f"asked): {row.statistic}"
                for row in deciding.itertuples()
            ]
    return "\n".join(lines)


def _report(study, path, outcomes, claims, values, config):
    import pandas

    runs, curves = [], []
    for outcome in outcomes:
        if outcome.task.command == "train":
            row, metrics = _run(outcome, path)
            runs.append(row)
            curves.append(metrics)
    return Report(
        title=study.title,
        question=" ".join(study.question.split()),
        claims=claims,
        values=values,
        runs=pandas.DataFrame(runs),
        curves=pandas.concat(curves, ignore_index=True),
        sections=_sections(study, path),
        failures=[(o.task.name, o.log) for o in outcomes if o.log],
        facts=_facts(study, outcomes),
        config=config,
        directory=path,
    )


def _run(outcome, path):
    """Returns one row about a run, and its learning curve.

    Only the four models' curves are drawn; those of the sweeps are in the
    figures of their analyses.
    """
    import pandas

    task, run = outcome.task, Run(path / outcome.task.name)
    row = {
        "name": task.name.replace("/runs/", "/"),
        "kind": task.kind,
        "target": task.target,
        "replication": task.replication,
        "seed": task.bindings.get("train.seed"),
        "block_size": task.bindings.get("load.block_size"),
        "from_epoch": task.bindings.get("train.pretrained_epoch"),
        "num_train": task.bindings.get("load.num_train"),
        "final": None,
        "best": None,
        "speed": None,
        "seconds": outcome.seconds,
        "state": outcome.state,
    }
    if outcome.state != "finished":
        return row, pandas.DataFrame()
    row |= learning_summary(run) | {"best": run.best()["value"]}
    if task.in_sweep:
        return row, pandas.DataFrame()
    metrics = run.metrics()
    name = objectives.metric_name(run.info().multi_label)
    curve = metrics[["epoch", "split", "loss"]].assign(
        run=row["name"],
        kind=task.kind,
        target=task.target,
        metric=name,
        value=metrics[name],
    )
    return row, curve


def _sections(study, path):
    """Returns the figures that no claim shows, as `Report.sections` has them.

    They are the first replication's: by target, in the order in which its
    analyses are run and their figures are declared.
    """
    shown = {(a.name, shown_figure(a, s)) for a, s in statistics()}
    figures = [
        figure
        for analysis in all_analyses()
        for figure in analysis.figures
        if figure.title and (analysis.name, figure.name) not in shown
    ]
    return [
        (f"{title}: {target}", figure.text, image, figure.text, table)
        for target in study.targets
        for task in study.tasks()
        if task.command == "analyze"
        and (task.target, task.replication) == (target, 0)
        for figure in figures
        for title, image, table in _drawn(figure, task.name, path)
    ]


def _drawn(figure, place, path):
    """Yields (title, image, table) of a figure in an analysis' directory.

    Args:
        figure: `Figure`.
        place: str, the directory within the study's.
        path: `pathlib.Path` of the study.
    """
    # Some are drawn from what is in no table, and have one of their own name.
    written = [
        f"{place}/{name}"
        for name in (*figure.tables, figure.name)
        if (path / place / f"{name}.csv").is_file()
    ]
    table = next(iter(written), "")
    titles = {figure.name: figure.title}
    if "{kind}" in figure.name and table:
        file = path / f"{table}.csv"
        read = Manifest(file.parent).read_table(file.name, usecols=["kind"])
        kinds = read.kind
        titles = {
            figure.name.replace("{kind}", kind): f"{figure.title}, {kind}"
            for kind in kinds.unique()
        }
    for name, title in titles.items():
        if (path / place / f"{name}.png").is_file():
            yield title, f"{place}/{name}", table


def _facts(study, outcomes):
    seconds = sum(o.seconds for o in outcomes if o.seconds == o.seconds)
    trained = sum(o.task.command == "train" for o in outcomes)
    return {
        "Runs and analyses": f"{trained} and {len(outcomes) - trained}",
        "Time they took": f"{seconds / 60:.1f} minutes",
        "Replications": f"{study.replications}, from seed {study.first_seed}",
        "Threads of each": str(study.threads),
        "Processor cores": str(os.cpu_count()),
        "Python": platform.python_version(),
    } | {name: importlib.metadata.version(name) for name in _PACKAGES}
