"""SavedModels that have variables."""

import itertools
import re

import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from keras_transfer.errors import UserError
from keras_transfer.models.weight_sources.weights import Weights, damaged


def is_saved_model(path):
    """Whether a directory is a SavedModel, or has versions of one."""
    return _newest(path) is not None


def _newest(path):
    """Returns the SavedModel in a directory, the newest version's, or None.

    TensorFlow Serving takes directories with a folder for each version, which
    has a number for a name.
    """
    versions = (
        p for p in path.iterdir() if re.fullmatch("[0-9]{1,18}", p.name)
    )
    newest = sorted(versions, key=lambda p: int(p.name), reverse=True)
    return next(
        (p for p in (path, *newest) if (p / "saved_model.pb").is_file()), None
    )


def read(path):
    """Returns the `Weights` of a SavedModel; its graph is not loaded.

    Args:
        path: `pathlib.Path` of a directory for which `is_saved_model` holds.

    Raises:
        UserError: if it has no variables, or is damaged.
    """
    variables = _newest(path) / "variables"
    if not (variables / "variables.index").is_file():
        raise UserError(
            f"{path} is a SavedModel without variables: its weights are frozen "
            "into its graph. Give what it was exported from."
        )
    with damaged(path, "a SavedModel"):
        named, ordered = _read(variables / "variables")
        return Weights(named, path, ordered=ordered)


def _read(path):
    checkpoint = tf.train.load_checkpoint(str(path))
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        checkpoint.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    )
    found = [
        (_place(attribute.checkpoint_key), attribute)
        for node in graph.nodes
        for attribute in node.attributes
        if attribute.name == "VARIABLE_VALUE"
    ]
    # Keras' `export` lists the model's variables in their order, and again
    # together with those of the preprocessing, in any order.
    listed = [item for item in found if item[0][0] == "variables"]
    named = {}
    for _, attribute in sorted(listed or found, key=lambda item: item[0][1]):
        name, numbers = attribute.full_name, itertools.count(2)
        while name in named:
            name = f"{attribute.full_name}#{next(numbers)}"
        named[name] = checkpoint.get_tensor(attribute.checkpoint_key)
    owners = {owner for (owner, _), _ in listed or found}
    return named, owners <= {"variables", "_layers", "_operations"}


def _place(key):
    """Returns the list that a key is of, and its numbers there."""
    owner, *rest = key.split("/")
    return owner, [int(part) for part in rest if part.isdigit()]
