"""Networks, their chain of modules, and initializing one from another."""

from keras_transfer.models.fixup import (
    ScalarBias,
    ScalarScale,
    fixup_resnet,
    fixup_resnet18,
    fixup_resnet34,
    fixup_resnet50,
    fixup_resnet101,
    fixup_resnet152,
)
from keras_transfer.models.logits import logits_model
from keras_transfer.models.modules import Module, group, head, module_chain
from keras_transfer.models.named import (
    keras_application,
    keras_hub_classifier,
)
from keras_transfer.models.transfer import Initialization, initialize_from
from keras_transfer.models.weight_sources import read_weights
from keras_transfer.models.weights import (
    assign_weights,
    named_weights,
    parameters,
)

__all__ = [
    "Initialization",
    "Module",
    "ScalarBias",
    "ScalarScale",
    "assign_weights",
    "fixup_resnet",
    "fixup_resnet18",
    "fixup_resnet34",
    "fixup_resnet50",
    "fixup_resnet101",
    "fixup_resnet152",
    "group",
    "head",
    "initialize_from",
    "keras_application",
    "keras_hub_classifier",
    "logits_model",
    "module_chain",
    "named_weights",
    "parameters",
    "read_weights",
]
