"""Running analyses on finished runs, from a configuration."""

import inspect
from typing import Protocol

import gin

from keras_transfer import progress
from keras_transfer.analysis.declaration import find_analysis, tables_of
from keras_transfer.analysis.models import Models
from keras_transfer.analysis.output import Output
from keras_transfer.errors import UserError


class AnalysisFunction(Protocol):
    """What `analyze` runs."""

    def __call__(self, models):
        """Looks at `Models` and returns a table; see `declaration`."""


@gin.configurable
def analyze(
    work_dir,
    analyses: tuple[AnalysisFunction, ...] = gin.REQUIRED,
    loaded=None,
):
    """Runs one or more analyses, which share one loading of models and data.

    Args:
        work_dir: directory for tables, figures and TensorBoard files.
        analyses: functions of `Models`, run in turn.
        loaded: `Models` of an earlier call; if they are the same ones, what was
            loaded and computed for them is not loaded again.

    Returns:
        The `Models`.

    Raises:
        UserError: if there is none, or a run is missing.
    """
    if not analyses:
        raise UserError(
            "analyze.analyses is empty; bind it to at least one analysis, "
            "such as [@interpolation]."
        )
    models = Models()
    if loaded is not None:
        models.take_over(loaded)
    output = Output(work_dir)
    models.evaluations = output.evaluations
    for analysis in analyses:
        _run(analysis, models, output)
        progress.tell(f"{analysis.__name__}: finished")
    output.text("config.gin", gin.operative_config_str())
    return models


def _run(function, models, output):
    """Runs one analysis; leaves its tables and figures."""
    analysis = find_analysis(function.__name__)
    options = {}
    if "save_to" in inspect.signature(analysis.function).parameters:
        options["save_to"] = output.path
    table = function(models, **options)
    tables = tables_of(analysis.name, table)
    for name, each in tables.items():
        if len(each) and name not in analysis.in_memory:
            output.table(name, each)
    for figure in analysis.figures:
        for name, drawn in figure.drawn(tables):
            output.figure(name, drawn)
