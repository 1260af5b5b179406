"""Studies: which runs and analyses, carrying them out, claims, the report."""

from keras_transfer.study.claims import decide
from keras_transfer.study.estimate import plan_text
from keras_transfer.study.plan import Study, Task
from keras_transfer.study.ray_executor import OnRay
from keras_transfer.study.report import Report, write_report
from keras_transfer.study.reproduce import reproduce
from keras_transfer.study.runner import Runner
from keras_transfer.study.tasks import InTurn

__all__ = [
    "InTurn",
    "OnRay",
    "Report",
    "Runner",
    "Study",
    "Task",
    "decide",
    "plan_text",
    "reproduce",
    "write_report",
]
