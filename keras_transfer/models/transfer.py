"""Starts a network from another: the paper's P-T from P."""

import itertools

import keras

from keras_transfer.errors import UserError
from keras_transfer.models.modules import head


def initialize_from(model, source):
    """Copies every weight of a pre-trained network except the head's.

    What is copied includes batch statistics and other weights that are not
    trained; the head of `model` (the last layer with weights, see
    `modules.head`) keeps its own values. Layers are matched by name, or, if the
    two models name theirs differently (automatic numbering), by position.

    Source: paper section 2, the initialization of P-T.

    Args:
        model: Functional `keras.Model` to initialize, changed in place.
        source: Pre-trained functional `keras.Model` of the same architecture;
            its head may have another shape.

    Raises:
        UserError: If the architectures differ; `model` is unchanged then.
    """
    layers = _layers_but_head(model)
    source_layers = _layers_but_head(source)
    by_name = {layer.name: layer for layer in source_layers}
    names = [layer.name for layer in layers]
    if len(source_layers) == len(names) and by_name.keys() == set(names):
        source_layers = [by_name[name] for name in names]
    for layer, found in itertools.zip_longest(layers, source_layers):
        if _signature(layer) != _signature(found):
            raise UserError(
                f"Model '{source.name}' cannot initialize '{model.name}': they "
                "are of different architecture. "
                f"Expected {_describe(layer)}. Received: {_describe(found)}; "
                "build both with the same factory and the same arguments, the "
                "number of classes aside."
            )
    for layer, found in zip(layers, source_layers, strict=True):
        for weight, value in zip(layer.weights, found.weights, strict=True):
            # Through NumPy, as source and model may live on other devices.
            weight.assign(keras.ops.convert_to_numpy(value))


def _layers_but_head(model):
    last = head(model)
    return [layer for layer in _layers_with_weights(model) if layer is not last]


def _layers_with_weights(model):
    """Returns the layers with weights, those of models used as layers too."""
    layers = []
    for layer in model.layers:
        if isinstance(layer, keras.Model) and layer.layers:
            layers.extend(_layers_with_weights(layer))
        elif layer.weights:
            layers.append(layer)
    return layers


def _signature(layer):
    """What must agree for one layer's weights to fit another."""
    if layer is None:
        return None
    shapes = [(w.name, tuple(w.shape)) for w in layer.weights]
    return type(layer).__name__, shapes


def _describe(layer):
    if layer is None:
        return "no further layer"
    kind, shapes = _signature(layer)
    weights = ", ".join(f"{name} {shape}" for name, shape in shapes)
    return f"layer '{layer.name}' ({kind}: {weights})"
