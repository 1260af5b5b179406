"""Models called with other weights, and batch normalization's statistics."""

import contextlib

import keras
import numpy as np
import tensorflow as tf


def batch_norms(model):
    """Returns a model's batch normalization layers, however deep they lie."""
    layers = {id(layer): layer for layer in model._flatten_layers()}
    return [
        layer
        for layer in layers.values()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def statistics_of(layers):
    """Returns the variables that batch normalization layers estimate."""
    return [
        variable
        for layer in layers
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def stateless_call(model, value, inputs, training, layers=()):
    """Calls a model with other weights than its own.

    Args:
        model: `keras.Model`.
        value: {id of a variable: tensor}. What is not named, such as the states
            of random number generators, is the model's.
        inputs: tensor [b, ...].
        training: bool.
        layers: batch normalization layers that forget: in training mode their
            new statistics are those of this batch alone.

    Returns:
        The outputs, and {id of a variable: tensor}, the new values of those
        that are not trained.
    """
    trainable, others = (
        [value.get(id(v), v.value) for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
        )
    )
    with _no_momentum(layers):
        outputs, updated = model.stateless_call(
            trainable, others, inputs, training=training
        )
    names = map(id, model.non_trainable_variables)
    return outputs, dict(zip(names, updated, strict=True))


@contextlib.contextmanager
def _no_momentum(layers):
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


class StatisticsEstimator:
    """Gives weights of one architecture the statistics that belong to them.

    The mean, over batches, of each batch's own statistics in training mode
    (Izmailov et al. 2018, section 3.2): what `LossSurface` and `ModuleLoss`
    give every point that they evaluate.

    Args:
        model: `keras.Model`; its own weights do not matter and stay.
        batches: finite `tf.data.Dataset` of (inputs, ...), all of one size,
            see `loss_surface.statistics_batches`.
    """

    def __init__(self, model, batches):
        self._model = model
        self._batches = [batch[0] for batch in batches]
        self._layers = batch_norms(model)
        self._statistics = statistics_of(self._layers)
        position = {id(v): i for i, v in enumerate(model.weights)}
        self._places = [position[id(v)] for v in self._statistics]
        self._seen = tf.function(self._seen)

    def estimated(self, weights):
        """Returns weights with statistics estimated anew.

        Args:
            weights: list of arrays, as `model.get_weights()` gives them.

        Returns:
            A new list of arrays.
        """
        tensors = list(map(tf.constant, weights))
        seen = [self._seen(tensors, inputs) for inputs in self._batches]
        result = list(weights)
        for place, values in zip(
            self._places, zip(*seen, strict=True), strict=True
        ):
            mean = np.mean([v.numpy() for v in values], 0, np.float64)
            result[place] = mean.astype(weights[place].dtype)
        return result

    def _seen(self, weights, inputs):
        """Returns the statistics of one batch."""
        value = dict(zip(map(id, self._model.weights), weights, strict=True))
        _, new = stateless_call(
            self._model, value, inputs, training=True, layers=self._layers
        )
        return [new[id(v)] for v in self._statistics]
