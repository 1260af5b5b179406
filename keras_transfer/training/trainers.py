"""Trainers of earlier runs in this process, for runs that compute the same.

To trace and optimize a step takes longer than many an epoch of a small network.
"""

import json
import re

import gin

from keras_transfer.models.weights import named_weights
from keras_transfer.runs import architecture

# What may differ: it is in the weights, the optimizer's state, the dataset's
# tensors and the stream of batches, which are not compiled. Gin breaks lines.
_OWN = re.compile(
    r"^(train\.(seed|pretrained|pretrained_epoch)|load\.seed) = (\\\n)?.*$",
    re.M,
)
# Compared to what a larger network computes, tracing is nothing.
_MOST_BYTES = 2**26
_MOST = 4


class Trainers:
    """Keeps the last few trainers, of small networks."""

    def __init__(self):
        self._kept = {}

    def trainer(self, model, what_else, make):
        """Returns a trainer that begins with a model.

        What gin binds tells most of what is compiled.

        Args:
            model: the `keras.Model` to start from.
            what_else: tuple of what else is compiled.
            make: function that makes the `Trainer` of this model.

        Returns:
            The `Trainer`, and whether it is one of an earlier run, whose model
            is another `keras.Model` with the same weights.
        """
        if model.count_params() * 4 > _MOST_BYTES:
            return make(), False
        config = _OWN.sub("", gin.config_str())
        key = config, *what_else, _without_initializers(model)
        if key in self._kept:
            # It is the last to go.
            trainer, optimizer = self._kept[key] = self._kept.pop(key)
            trainer.begin(model, optimizer)
            return trainer, True
        trainer = make()
        self._kept[key] = trainer, named_weights(trainer.optimizer)
        while len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]
        return trainer, False


def _without_initializers(model):
    """Returns a model's architecture, which they are no part of, as text."""

    def cut(value):
        if isinstance(value, list):
            return [cut(each) for each in value]
        if not isinstance(value, dict):
            return value
        return {
            name: cut(each)
            for name, each in value.items()
            if not name.endswith("_initializer")
        }

    return json.dumps(cut(json.loads(architecture.to_text(model))))
