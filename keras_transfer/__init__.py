"""What is being transferred in transfer learning, and where in the network.

Models, data pipelines, training and analyses that reproduce Neyshabur, Sedghi
and Zhang, "What is being transferred in transfer learning?" (NeurIPS 2020), for
any Keras model and any images:

    import keras_transfer as kt

    models = kt.Models({"P-T": [m1, m2], "RI-T": [r1, r2]},
                       data=kt.Examples(train=train, test=(x, y)))
    table = kt.interpolation(models)
    kt.figures.interpolation(table)

Names are imported when they are first used, so that what imports this package
may still set up TensorFlow.
"""

import importlib

__version__ = "0.1.0"

_FROM = {
    "keras_transfer.analysis.averaging": ["averaging"],
    "keras_transfer.analysis.basin": ["basin"],
    "keras_transfer.analysis.criticality": ["criticality"],
    "keras_transfer.analysis.declaration": [
        "Figure",
        "Statistic",
        "Table",
        "declare_analysis",
    ],
    "keras_transfer.analysis.distance": ["distance"],
    "keras_transfer.analysis.feature_reuse": ["feature_reuse"],
    "keras_transfer.analysis.interpolation": [
        "barrier_height",
        "interpolation",
    ],
    "keras_transfer.analysis.label_efficiency": ["label_efficiency"],
    "keras_transfer.analysis.mistakes": ["mistakes"],
    "keras_transfer.analysis.models": ["Models"],
    "keras_transfer.analysis.plane": ["plane"],
    "keras_transfer.analysis.pretraining": ["pretraining"],
    "keras_transfer.analysis.rewinding": ["rewinding"],
    "keras_transfer.analysis.similarity": [
        "linear_cka",
        "rbf_cka",
        "similarity",
    ],
    "keras_transfer.analysis.spectrum": ["spectrum"],
    "keras_transfer.analysis.trajectory": ["Trajectory"],
    "keras_transfer.data": ["Examples"],
    "keras_transfer.errors": ["UserError"],
    "keras_transfer.models": ["module_chain"],
    "keras_transfer.runs": ["Run", "initialize_from", "read_weights"],
}
_MODULE_OF = {name: module for module, names in _FROM.items() for name in names}

__all__ = ["__version__", "figures", *sorted(_MODULE_OF)]


def __getattr__(name):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    try:
        return importlib.import_module(f"keras_transfer.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"keras_transfer.{name}":
            raise
        raise AttributeError(
            f"module 'keras_transfer' has no attribute {name!r}"
        ) from None


def __dir__():
    return sorted([*globals(), *__all__])
