"""Batch normalization's statistics for other weights than they were made by."""

import numpy as np
import tensorflow as tf

from keras_transfer.landscape.loss_surface import batch_norms, no_momentum


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
        statistics = [
            variable
            for layer in self._layers
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        position = {id(v): i for i, v in enumerate(model.weights)}
        self._places = [position[id(v)] for v in statistics]
        self._statistics = statistics
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
        model = self._model
        value = dict(zip(map(id, model.weights), weights, strict=True))
        with no_momentum(self._layers):
            _, updated = model.stateless_call(
                [value[id(v)] for v in model.trainable_variables],
                # Not among the weights: the states of random generators.
                [
                    value.get(id(v), v.value)
                    for v in model.non_trainable_variables
                ],
                inputs,
                training=True,
            )
        new = dict(
            zip(map(id, model.non_trainable_variables), updated, strict=True)
        )
        return [new[id(v)] for v in self._statistics]
