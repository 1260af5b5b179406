"""Analyses of trained models (paper section 3 and appendix)."""

from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.output import Output
from keras_transfer.analysis.subjects import Subject, Subjects

__all__ = ["Output", "Subject", "Subjects", "analyze"]
