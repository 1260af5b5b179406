"""Studies: which runs and analyses, running them, claims, the report."""

# Every analysis is known to gin files, to the claims and to the report.
import keras_transfer.analysis.all  # noqa: F401
from keras_transfer.study.estimate import plan_text
from keras_transfer.study.plan import Study, Task
from keras_transfer.study.ray_executor import OnRay
from keras_transfer.study.report import Report, write_report
from keras_transfer.study.runner import Runner
from keras_transfer.study.tasks import InTurn
from keras_transfer.study.workers import Workers

__all__ = [
    "InTurn",
    "OnRay",
    "Report",
    "Runner",
    "Study",
    "Task",
    "Workers",
    "plan_text",
    "write_report",
]
