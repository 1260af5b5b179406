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
from keras_transfer.models.modules import Module, group, head, module_chain
from keras_transfer.models.transfer import initialize_from

__all__ = [
    "Module",
    "ScalarBias",
    "ScalarScale",
    "fixup_resnet",
    "fixup_resnet18",
    "fixup_resnet34",
    "fixup_resnet50",
    "fixup_resnet101",
    "fixup_resnet152",
    "group",
    "head",
    "initialize_from",
    "module_chain",
]
