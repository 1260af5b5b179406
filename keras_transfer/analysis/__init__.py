"""Analyses of trained models (paper section 3 and appendix)."""

from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.averaging import averaging
from keras_transfer.analysis.basin import Basin, basin
from keras_transfer.analysis.criticality import (
    criticality,
    module_criticality,
)
from keras_transfer.analysis.distance import distance, module_distances
from keras_transfer.analysis.feature_reuse import feature_reuse
from keras_transfer.analysis.interpolation import (
    barrier_height,
    interpolation,
)
from keras_transfer.analysis.mistakes import (
    error_consistency,
    expected_calibration_error,
    mistakes,
)
from keras_transfer.analysis.models import Subject, Subjects
from keras_transfer.analysis.output import Output
from keras_transfer.analysis.plane import plane
from keras_transfer.analysis.pretraining import pretraining
from keras_transfer.analysis.rewinding import rewinding
from keras_transfer.analysis.similarity import (
    feature_similarity,
    linear_cka,
    rbf_cka,
    similarity,
)
from keras_transfer.analysis.spectrum import (
    conv_spectrum,
    model_spectra,
    spectrum,
)
from keras_transfer.landscape.loss_surface import LossSurface, dataset_surface
from keras_transfer.landscape.module_loss import (
    Perturbations,
    Suffixes,
    dataset_suffixes,
)
from keras_transfer.landscape.weight_space import Points

__all__ = [
    "Basin",
    "LossSurface",
    "Output",
    "Perturbations",
    "Points",
    "Subject",
    "Subjects",
    "Suffixes",
    "analyze",
    "averaging",
    "barrier_height",
    "basin",
    "conv_spectrum",
    "criticality",
    "dataset_suffixes",
    "dataset_surface",
    "distance",
    "error_consistency",
    "expected_calibration_error",
    "feature_reuse",
    "feature_similarity",
    "interpolation",
    "linear_cka",
    "mistakes",
    "model_spectra",
    "module_criticality",
    "module_distances",
    "plane",
    "pretraining",
    "rbf_cka",
    "rewinding",
    "similarity",
    "spectrum",
]
