"""The logits of a model that ends in probabilities."""

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.models import graph

_PROBABILITIES = (
    keras.activations.softmax,
    keras.activations.sigmoid,
    keras.ops.softmax,
    keras.ops.sigmoid,
    tf.nn.softmax,
    tf.nn.sigmoid,
)


def logits_model(model):
    """Returns the model without the softmax or sigmoid that it ends in.

    A loss of probabilities is inexact where they underflow, and one of logits
    is wrong for probabilities. What is left out is the activation of the last
    layer (Dense, Conv2D, EinsumDense, ...), or an Activation or Softmax layer,
    or keras.ops.softmax or sigmoid; at the end of the model or of a model that
    is its last layer, also where only casting or reshaping follows. A function
    of one's own that ends in probabilities (in a Lambda layer, say) cannot be
    seen in a model's graph and stays: let such a model end in logits.

    Example:
        model = keras.applications.ResNet50(weights=None)    # ends in softmax
        loss = cross_entropy(labels, logits_model(model)(images))

    Args:
        model: functional or built sequential `keras.Model` with one input and
            one output. It is not changed.

    Returns:
        A functional `keras.Model` of the same layers and variables, which gives
        logits in the precision of the variables (float32 in mixed precision);
        `model` itself if it does not end in probabilities.

    Raises:
        UserError: if the model is of a class of its own, or has several inputs
            or outputs.
    """
    graph.check(model)
    calls = graph.calls(model)
    if not _ends_in_probabilities(calls):
        return model
    logits = _logits(calls)
    dtype = _last_float(model.weights)
    if dtype is not None and logits.dtype != dtype:
        logits = keras.ops.cast(logits, dtype)
    return keras.Model(model.inputs[0], logits, name=model.name)


@keras.saving.register_keras_serializable(package="keras_transfer")
class WithoutActivation(keras.layers.Wrapper):
    """Calls a layer as if it had no activation.

    The layer stays as it is: it has its activation again after each call.
    """

    def call(self, *args, **kwargs):
        """Returns what `layer` gives before its activation."""
        attributes = vars(self.layer)
        # Not by `setattr`: an activation may be a layer, which Keras tracks.
        attributes["activation"], activation = (
            keras.activations.linear,
            self.layer.activation,
        )
        try:
            return self.layer(*args, **kwargs)
        finally:
            attributes["activation"] = activation

    def compute_output_spec(self, *args, **kwargs):
        """Returns the specification of the layer's output."""
        return self.layer.compute_output_spec(*args, **kwargs)


def _ends_in_probabilities(calls):
    if not calls:
        return False
    last = calls[-1]
    if _is_activation(last) or _has_activation(last):
        return True
    if _passes_on(last):
        return _ends_in_probabilities(calls[:-1])
    inside = graph.contents(last)
    return inside is not None and _ends_in_probabilities(graph.calls(inside))


def _logits(calls):
    """Returns the tensor of logits of calls that end in probabilities."""
    *before, last = calls
    if _is_activation(last):
        return last.inputs[0]
    if _has_activation(last):
        layer = last.operation
        # Named alike, so that modules have the names that they always had.
        elsewhere = any(call.operation is layer for call in before)
        name = None if elsewhere else layer.name
        return WithoutActivation(layer, name=name)(*last.args, **last.kwargs)
    if _passes_on(last):
        args, kwargs = last.with_inputs([_logits(before)])
        return last.operation(*args, **kwargs)
    return _logits(before + graph.inlined(last, graph.contents(last)))


def _is_activation(call):
    """Whether the call is a softmax or sigmoid and nothing else."""
    operation = call.operation
    if isinstance(operation, keras.layers.Activation):
        return _gives_probabilities(operation.activation)
    if isinstance(operation, keras.layers.Layer):
        return _gives_probabilities(operation)
    # Operations have no public classes.
    name = type(operation).__name__
    return name == "Sigmoid" or (
        name == "Softmax" and _of_classes(operation, call)
    )


def _has_activation(call):
    """Whether a layer ends with an activation that is a softmax or sigmoid."""
    layer = call.operation
    if not isinstance(layer, keras.layers.Layer):
        return False
    if not _gives_probabilities(getattr(layer, "activation", None)):
        return False
    # Nothing says what a layer does with its activation; a recurrent one has it
    # inside.
    try:
        args, kwargs = call.with_inputs([_random_like(x) for x in call.inputs])
        expected = layer(*args, **kwargs)
        found = layer.activation(WithoutActivation(layer)(*args, **kwargs))
    except Exception:
        return False
    expected, found = (
        keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))
        for x in (expected, found)
    )
    return np.allclose(expected, found, rtol=1e-2, atol=1e-3)


def _random_like(tensor):
    shape = [size or 1 for size in tensor.shape]
    random = np.random.default_rng(0).normal(size=shape)
    return keras.ops.convert_to_tensor(random, tensor.dtype)


def _gives_probabilities(activation):
    if isinstance(activation, keras.layers.Activation):
        return _gives_probabilities(activation.activation)
    if isinstance(activation, keras.layers.Softmax):
        return activation.axis == -1
    return activation in _PROBABILITIES


def _of_classes(softmax, call):
    return softmax.axis in (-1, len(call.inputs[0].shape) - 1)


def _passes_on(call):
    """Whether the call hands on each value, with its class, as it is."""
    layer = call.operation
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return False
    if call.inputs[0].shape[-1] != call.outputs[0].shape[-1]:
        return False
    if isinstance(layer, keras.layers.Activation):
        return layer.activation is keras.activations.linear
    kinds = keras.layers.Identity, keras.layers.Flatten, keras.layers.Reshape
    return isinstance(layer, kinds) or type(layer).__name__ in (
        "Cast",
        "Reshape",
    )


def _last_float(weights):
    dtypes = [w.dtype for w in weights if "float" in w.dtype]
    return dtypes[-1] if dtypes else None
