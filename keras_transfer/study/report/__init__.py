"""A study's report, its runs in TensorBoard, and two studies side by side."""

from keras_transfer.study.report.page import Report, write_report
from keras_transfer.study.report.tensorboard import write_tensorboard

__all__ = ["Report", "write_report", "write_tensorboard"]
