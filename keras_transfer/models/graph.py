"""The graph of a Keras model: which layer is called with what, in order.

A model used as a layer, and a layer that calls other layers, can be looked
into: their own calls take their place.
"""

import dataclasses
import functools
import inspect

import keras
import numpy as np

from keras_transfer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or other operation.

    Attributes:
        operation: `keras.Layer` or another operation, such as an addition.
        args: tuple of positional arguments with `keras.KerasTensor`s in it.
        kwargs: dict of keyword arguments, likewise.
        outputs: list of `keras.KerasTensor`.
        within: tuple of the names of the layers that it was found inside of,
            from the outermost.
    """

    operation: object
    args: tuple
    kwargs: dict
    outputs: list
    within: tuple = ()

    @property
    def inputs(self):
        """The symbolic tensors among the arguments, a list of each once."""
        leaves = keras.tree.flatten((self.args, self.kwargs))
        tensors = [x for x in leaves if isinstance(x, keras.KerasTensor)]
        return list({id(tensor): tensor for tensor in tensors}.values())

    def with_inputs(self, tensors):
        """Returns the arguments, (args, kwargs), with other tensors in them."""
        values = dict(zip(map(id, self.inputs), tensors, strict=True))
        return self.with_values(values)

    def with_values(self, values):
        """As `with_inputs`, by a dict from a tensor's `id` to another."""
        return keras.tree.map_structure(
            lambda leaf: values.get(id(leaf), leaf), (self.args, self.kwargs)
        )

    @property
    def weights(self):
        """The weights of the layer; an operation such as adding has none."""
        return getattr(self.operation, "weights", [])


def check(model):
    """Raises a `UserError` unless a model has a graph from one tensor to one.

    Args:
        model: what should be a functional or built sequential `keras.Model`.

    Raises:
        UserError: if it is not, or has several inputs or outputs.
    """
    if not _has_graph(model):
        raise UserError(
            "Only a functional Keras model, or a sequential one that knows its "
            "input shape, can be looked into and cut into modules. Received: "
            f"{model!r}; build it with keras.Model(inputs, outputs), from a "
            "model class of your own with `x = keras.Input(shape)` and "
            "`keras.Model(x, model.call(x))`."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UserError(
            "Only a model with one input and one output can be looked into "
            f"and cut into modules. Received: {len(model.inputs)} inputs and "
            f"{len(model.outputs)} outputs in model '{model.name}'; give the "
            "part of it that leads from images to logits, "
            "keras.Model(image_input, logits)."
        )


def calls(model):
    """Reads a model's graph.

    Args:
        model: functional or built sequential `keras.Model`.

    Returns:
        A list of `Call` in order of computation.
    """
    # What is taken from inside Keras: the graph by depth (an input lies
    # deepest) and its nodes. Rewrapping gives sequential models one, too.
    graph = keras.Model(model.inputs, model.outputs, name=model.name)
    by_depth = graph._nodes_by_depth
    return [
        Call(
            node.operation,
            node.arguments.args,
            node.arguments.kwargs,
            list(node.outputs),
        )
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if not node.is_input
    ]


def flattened(model, look_into):
    """Reads a model's graph with the contents of layers in their place.

    Args:
        model: functional or built sequential `keras.Model`.
        look_into: function from a `Call` to its `contents`, or to None.

    Returns:
        A list of `Call` in order of computation, and the output tensor.
    """
    values = {}
    flat = list(_inside_out(calls(model), values, look_into, seen=set()))
    (output,) = model.outputs
    return flat, values.get(id(output), output)


def apply(called, values):
    """Calls anew what was called, with other tensors.

    Layers are shared, and remember the new calls beside those before.

    Args:
        called: list of `Call` in order of computation.
        values: dict from the `id` of a tensor that `called` starts from to
            the one to take instead. What is computed is added to it.

    Returns:
        A list of the new `Call`s.
    """
    made = []
    for call in called:
        args, kwargs = call.with_values(values)
        outputs = keras.tree.flatten(call.operation(*args, **kwargs))
        for old, tensor in zip(call.outputs, outputs, strict=True):
            values[id(old)] = tensor
        made.append(Call(call.operation, args, kwargs, outputs, call.within))
    return made


def inlined(call, inside):
    """Replaces a call by the calls inside its layer.

    Args:
        call: `Call`.
        inside: `keras.Model`, the layer's contents.

    Returns:
        A list of new `Call`s.
    """
    casts, own = _started(call, inside)
    return casts + apply(calls(inside), own)


def _inside_out(called, values, look_into, seen, within=()):
    """Yields calls and those inside of them, with the tensors in `values`."""
    for call in called:
        args, kwargs = call.with_values(values)
        call = dataclasses.replace(
            call, args=args, kwargs=kwargs, within=within
        )
        inside = look_into(call)
        if inside is None:
            yield call
            continue
        casts, own = _started(call, inside)
        yield from casts
        called_inside = calls(inside)
        if id(inside) in seen or not _fits(call, inside):
            # Its tensors are taken, or of another shape.
            called_inside = apply(called_inside, own)
        seen.add(id(inside))
        within_layer = (*within, call.operation.name)
        yield from _inside_out(
            called_inside, own, look_into, seen, within_layer
        )
        for old, output in zip(call.outputs, inside.outputs, strict=True):
            values[id(old)] = own.get(id(output), output)


def _fits(call, inside):
    return [t.shape for t in call.inputs] == [t.shape for t in inside.inputs]


def _started(call, inside):
    """Casts a call's inputs as Keras does where a model is called.

    Returns:
        A list of calls, and a dict from the `id` of an input of `inside` to the
        tensor to take instead.
    """
    casts, own = [], {}
    for tensor, stand_in in zip(call.inputs, inside.inputs, strict=True):
        if tensor.dtype != stand_in.dtype:
            x = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
            cast = keras.Model(x, keras.ops.cast(x, stand_in.dtype))
            casts += apply(calls(cast), {id(x): tensor})
            (tensor,) = casts[-1].outputs
        own[id(stand_in)] = tensor
    return casts, own


def contents(call):
    """Looks into the layer that is called.

    Found are the calls inside a model used as a layer, and inside a layer whose
    `call` does nothing but call others: if it can be traced with symbolic
    tensors, in training and out of it alike, holds no variable but those of the
    layers that it calls, and gives what the layer gives.

    Args:
        call: `Call`.

    Returns:
        A `keras.Model` whose inputs stand for `call.inputs` and whose outputs
        for `call.outputs`; None if there is nothing to be seen.
    """
    layer = call.operation
    if _has_graph(layer):
        fits = [len(own.shape) for own in layer.inputs] == [
            len(tensor.shape) for tensor in call.inputs
        ]
        # Called with training=True, it is so whatever the rest of the model is.
        alike = len(call.inputs) == 1 and not call.kwargs.get("training")
        return layer if fits and alike else None
    if not isinstance(layer, keras.Layer) or not sublayers(layer):
        return None
    # A wrapper does things to its layer while it calls it.
    if isinstance(layer, keras.layers.Wrapper):
        return None
    if _variables(sublayers(layer)) != _variables([layer]):
        return None
    try:
        return _traced(call)
    except Exception:
        # Whatever a layer's `call` may raise when it meets symbolic tensors.
        return None


def sublayers(layer, in_lists=False):
    """Finds the layers among a layer's attributes.

    Args:
        layer: `keras.Layer`.
        in_lists: whether to give those in lists, tuples and dicts only.

    Returns:
        A list of `keras.Layer`, each once.
    """
    found = {}
    for name, value in vars(layer).items():
        if name in _attributes_of_all_layers() or name.startswith("_self_"):
            continue
        if in_lists and isinstance(value, keras.Layer):
            continue
        for leaf in _leaves(value):
            if isinstance(leaf, keras.Layer):
                found[id(leaf)] = leaf
    return list(found.values())


@functools.cache
def _attributes_of_all_layers():
    return frozenset(vars(keras.layers.Layer()))


def _leaves(value):
    # TensorFlow's wrapped tuples are none to `keras.tree`.
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple, set)):
        return [value]
    return [leaf for item in value for leaf in _leaves(item)]


def _variables(layers):
    return {id(v) for layer in layers for v in layer.variables}


def _has_graph(model):
    """Whether a model computes what its graph says."""
    if not isinstance(model, keras.Model):
        return False
    of_graph = _functional_class().call, keras.Sequential.call
    return bool(getattr(model, "inputs", None)) and type(model).call in of_graph


@functools.cache
def _functional_class():
    x = keras.Input(())
    # Keras 3.12, the last for Python 3.10, wants an operation between them.
    return type(keras.Model(x, keras.layers.Identity()(x)))


def _traced(call):
    """Returns the calls inside a layer as a model, or None."""
    layer = call.operation
    traced = _trace(call)
    if _takes_training(layer):
        in_training = _trace(call, training=True)
        outlines = [
            [_outline(inner) for inner in calls(model)]
            for model in (traced, in_training)
        ]
        if outlines[0] != outlines[1]:
            return None
    leaves = [
        leaf
        for inner in calls(traced)
        for leaf in keras.tree.flatten((inner.args, inner.kwargs))
    ]
    # A value computed while tracing would stay as it is for ever.
    if any(map(_is_value, leaves)):
        return None
    if _variables(traced.layers) != _variables([layer]):
        return None
    return traced if _computes_the_same(traced, call) else None


def _takes_training(layer):
    return "training" in inspect.signature(layer.call).parameters


def _trace(call, training=False):
    layer = call.operation
    stand_ins = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
        for tensor in call.inputs
    ]
    args, kwargs = call.with_inputs(
        [
            layer.dtype_policy.convert_input(
                tensor, layer.autocast, layer.input_dtype
            )
            for tensor in stand_ins
        ]
    )
    if _takes_training(layer):
        kwargs = {**kwargs, "training": training}
    outputs = layer.call(*args, **kwargs)
    return keras.Model(stand_ins, keras.tree.flatten(outputs))


def _outline(call):
    """What tells one call from another, the tensors aside."""
    operation = call.operation
    if not isinstance(operation, keras.Layer):
        options = {
            name: repr(value)
            for name, value in vars(operation).items()
            if name != "name" and not name.startswith("_")
        }
        operation = type(operation), options
    others = [
        leaf
        for leaf in keras.tree.flatten(
            (
                call.args,
                {k: v for k, v in call.kwargs.items() if k != "training"},
            )
        )
        if not isinstance(leaf, keras.KerasTensor)
    ]
    return operation, repr(others)


def _is_value(leaf):
    return isinstance(leaf, keras.Variable) or (
        keras.ops.is_tensor(leaf) and not isinstance(leaf, keras.KerasTensor)
    )


def _computes_the_same(traced, call):
    """Compares a traced layer with the layer itself on random numbers."""
    random = np.random.default_rng(0)
    arrays = [
        keras.ops.convert_to_tensor(
            random.normal(size=[size or 2 for size in tensor.shape]),
            tensor.dtype,
        )
        for tensor in call.inputs
    ]
    args, kwargs = call.with_inputs(arrays)
    expected = keras.tree.flatten(call.operation(*args, **kwargs))
    found = keras.tree.flatten(traced(arrays, training=False))
    return all(
        np.array_equal(*map(keras.ops.convert_to_numpy, pair), equal_nan=True)
        for pair in zip(expected, found, strict=True)
    )
