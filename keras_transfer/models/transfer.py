"""Starts a network from another: the paper's P-T from P."""

import itertools

import keras

from keras_transfer.errors import UserError
from keras_transfer.models.modules import head


def initialize_from(model, source):
    """Copies every weight of a pre-trained network except the head's.

    What is copied includes batch statistics and other weights that are not
    trained; the head of `model` (the last layer with weights, see
    `modules.head`) keeps its own values. Weights are matched by path where both
    models have the same paths, otherwise by position: Keras numbers layers
    without a name of their own as they are made (dense, dense_1), and such
    names tell nothing.

    Source: paper section 2, the initialization of P-T.

    Args:
        model: functional `keras.Model` to initialize, changed in place.
        source: pre-trained functional `keras.Model` of the same architecture;
            its head may have another shape.

    Raises:
        UserError: if the architectures differ; `model` is unchanged then.
    """
    weights, sources = _weights_but_head(model), _weights_but_head(source)
    by_path = {weight.path: weight for weight in sources}
    paths = [weight.path for weight in weights]
    if len(by_path) == len(sources) and sorted(by_path) == sorted(paths):
        sources = [by_path[path] for path in paths]
    for weight, found in itertools.zip_longest(weights, sources):
        if weight is None or found is None or weight.shape != found.shape:
            raise UserError(
                f"Model '{source.name}' cannot initialize '{model.name}': they "
                "are of different architecture. "
                f"Expected {_describe(weight)}. Received: {_describe(found)}; "
                "build both with the same factory and the same arguments, the "
                "number of classes aside."
            )
    for weight, found in zip(weights, sources, strict=True):
        # Through NumPy, as source and model may live on other devices.
        weight.assign(keras.ops.convert_to_numpy(found))


def _weights_but_head(model):
    of_head = {id(weight) for weight in head(model).weights}
    return [weight for weight in model.weights if id(weight) not in of_head]


def _describe(weight):
    if weight is None:
        return "no further layer"
    layer, _, name = weight.path.rpartition("/")
    return f"layer '{layer}' with {name} {tuple(weight.shape)}"
