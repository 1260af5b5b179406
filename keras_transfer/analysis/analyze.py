"""Running analyses on finished runs."""

from typing import Protocol

import gin

from keras_transfer.analysis.models import Subjects
from keras_transfer.analysis.output import Output
from keras_transfer.errors import UserError
from keras_transfer.runs import write_text


class Analysis(Protocol):
    """What `analyze` runs."""

    def __call__(self, subjects, output):
        """Looks at `Subjects` and leaves tables and figures in `Output`."""


@gin.configurable
def analyze(
    work_dir, analyses: tuple[Analysis, ...] = gin.REQUIRED, loaded=None
):
    """Runs one or more analyses, which share one loading of models and data.

    Args:
        work_dir: directory for tables, figures and TensorBoard files.
        analyses: functions of (subjects, output), run in turn.
        loaded: `Subjects` of an earlier call; if they are the same ones, what
            was loaded and computed for them is not loaded again.

    Returns:
        The `Subjects`.

    Raises:
        UserError: if there is none, or a run is missing.
    """
    if not analyses:
        raise UserError(
            "analyze.analyses is empty; bind it to at least one analysis, "
            "such as [@interpolation]."
        )
    subjects = Subjects()
    if loaded is not None:
        subjects.reuse(loaded)
    output = Output(work_dir)
    for analysis in analyses:
        analysis(subjects, output)
    write_text(output.path / "config.gin", gin.operative_config_str())
    return subjects
