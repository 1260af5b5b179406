"""Cuts a Keras model into its chain of named modules.

A module is a part of the network through which all computation flows from one
tensor to the next: the modules, applied in turn, are the network. For a Fixup
ResNet they are those of the paper (section 2 of `paper.md`): conv1, each
residual block layer1.0, layer1.1, ..., and fc.
"""

import dataclasses

import gin
import keras

from keras_transfer.errors import UserError
from keras_transfer.models import graph
from keras_transfer.models.blocks import default_ends
from keras_transfer.models.logits import WithoutActivation


@dataclasses.dataclass(frozen=True)
class Module:
    """One link of the chain.

    Attributes:
        name: the module's name, unique in its chain.
        model: `keras.Model` from the module's input tensor to its output. Its
            layers and variables *are* those of the whole network.
    """

    name: str
    model: keras.Model

    @property
    def variables(self):
        """The module's weights, as a list of `keras.Variable`.

        Trainable or not (batch statistics), without the state of random number
        generators (dropout), which is not part of a point in parameter space.
        """
        return self.model.weights

    @property
    def trainable_variables(self):
        """The module's trainable weights, as a list of `keras.Variable`."""
        return self.model.trainable_weights


@gin.configurable
def module_chain(model, boundaries: dict | None = None):
    """Cuts a functional model into its chain of modules.

    Models used as layers are looked into, and so are layers that hold others in
    lists or dicts (a transformer's encoder), where that can be done without a
    change of what is computed. A cut lies where exactly one tensor is still
    needed. Then:

    1.  If every layer with weights has a dotted name, `<module>.<part>`,
        consecutive layers of one name make a module.
    2.  Otherwise each stretch between cuts that holds a kernel begins a module:
        a residual block, a layer such as Dense. What follows without a kernel
        (activation, pooling, batch normalization) belongs to it.
    3.  Layers named as those of the residual blocks are (block_1, conv2_block1)
        belong to the block of their name, with a shortcut or without. The two
        residual halves of a transformer's block, attention and perceptron, are
        one module.
    4.  If these are more than 56, consecutive ones of one resolution (sequence
        length) make a module.

    A module's name is what the names of its layers with weights have in common,
    or that of the layer that it is the inside of; where that names nothing or
    two modules alike, the first of its layers' names.

    A layer with weights that is called several times keeps all its calls in one
    module.

    Example:
        for module in module_chain(model):
            x = module.model(x)     # ends as model(x)

    Args:
        model: A functional (or built sequential) `keras.Model` with one input
            and one output tensor. It is not changed. The last module gives what
            the model gives: for logits, pass `logits_model(model)`.
        boundaries: optional dict from module name to the name of the module's
            last layer, in the order of computation; the last module ends with
            the model's last layer. Overrides the rules above.

    Returns:
        A list of `Module`, from input to output.

    Raises:
        UserError: if the model is not a chain from one input to one output, has
            no weights, or cannot be cut at a given boundary.
    """
    _check(model)
    calls, output = graph.flattened(model, _look_into)
    start = model.inputs[0]
    cuts = _cut_tensors(calls, output)
    if boundaries is None:
        ends = default_ends(calls, list(cuts))
    else:
        ends = _chosen_ends(calls, cuts, boundaries)
    modules, previous = [], -1
    for name, position in ends.items():
        inside = calls[previous + 1 : position + 1]
        part = _part(name, inside, start, cuts[position])
        modules.append(Module(name, part))
        start, previous = cuts[position], position
    return modules


def group(name):
    """Returns the group a module is reported with.

    Args:
        name: A module's name.

    Returns:
        What comes before the first dot: "layer1" for "layer1.0", "fc" for "fc".
    """
    return name.partition(".")[0]


def head(model):
    """Returns the head: the last layer that has weights.

    Args:
        model: A functional (or built sequential) `keras.Model` with one input
            and one output tensor.

    Returns:
        The layer (for a Fixup ResNet, `fc.dense`). If a model is used as the
        last layer, the head of that model.

    Raises:
        UserError: if the model is not a chain from one input to one output, or
            has no weights.
    """
    _check(model)
    return _last_layer(graph.calls(model))


def _last_layer(calls):
    last = [call for call in calls if call.weights][-1]
    inside = _look_into(last)
    if inside is not None:
        return _last_layer(graph.calls(inside))
    layer = last.operation
    return layer.layer if isinstance(layer, WithoutActivation) else layer


def _check(model):
    graph.check(model)
    if not model.weights:
        raise UserError(
            f"Model '{model.name}' has no weights and hence no modules. "
            "Give a model with layers to train."
        )


def _look_into(call):
    """Returns the contents of models and of layers that hold layers."""
    return graph.contents(call) if _holds_layers(call.operation) else None


def _holds_layers(layer):
    """Whether a layer is a model, or has several layers in lists or dicts."""
    if not isinstance(layer, keras.Layer):
        return False
    held = [x for x in graph.sublayers(layer, in_lists=True) if x.weights]
    return isinstance(layer, keras.Model) or len(held) > 1


def _cut_tensors(calls, output):
    """Finds where the graph can be cut.

    Args:
        calls: the graph's calls in order of computation.
        output: the graph's output tensor.

    Returns:
        A dict from each position in `calls` after which exactly one tensor is
        still needed, to that tensor.
    """
    last_use = {}
    for position, call in enumerate(calls):
        # Weights used again later forbid a cut between.
        for used in (*call.inputs, *call.weights):
            last_use[id(used)] = position
    last_use[id(output)] = len(calls)
    cuts, alive = {}, {}
    for position, call in enumerate(calls):
        for thing in (*call.inputs, *call.weights, *call.outputs):
            alive[id(thing)] = thing
        alive = {
            key: value
            for key, value in alive.items()
            if last_use.get(key, -1) > position
        }
        if len(alive) == 1:
            (cuts[position],) = alive.values()
    return cuts


def _part(name, calls, start, end):
    """Builds the model of some of the calls, from one tensor to another."""
    new = keras.Input(batch_shape=start.shape, dtype=start.dtype)
    values = {id(start): new}
    graph.apply(_with_unique_names(calls), values)
    return keras.Model(new, values[id(end)], name=name)


def _with_unique_names(calls):
    """Renames operations of one name, which Keras does not allow in a model.

    Models used as layers, and layers that hold others, may have them.
    """
    named, renamed = {}, []
    for call in calls:
        operation = call.operation
        if named.setdefault(operation.name, operation) is not operation:
            place = "-".join((*call.within, operation.name))
            operation = named.setdefault(place, _Renamed(operation, name=place))
        renamed.append(dataclasses.replace(call, operation=operation))
    return renamed


class _Renamed(keras.layers.Layer):
    """Calls a layer or other operation that has another name."""

    def __init__(self, operation, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.operation = operation

    def call(self, *args, **kwargs):
        return self.operation(*args, **kwargs)


def _chosen_ends(calls, cuts, boundaries):
    """Returns a dict from module name to the position of its last call."""
    positions = {}
    for position, call in enumerate(calls):
        for name in (*call.within, call.operation.name):
            positions[name] = position
    last = calls[-1].operation.name
    ends, previous = {}, -1
    for module, layer in boundaries.items():
        if layer not in positions:
            raise UserError(
                f"The model has no layer to end module '{module}' with. "
                f"Received: '{layer}'; give one of its layers' names."
            )
        position = positions[layer]
        if position not in cuts:
            raise UserError(
                f"Module '{module}' cannot end here, as not all computation "
                f"flows through this layer's output. Received: '{layer}'; "
                f"nearby, it can end with {_nearest(position, calls, cuts)}."
            )
        if position <= previous:
            raise UserError(
                "Module boundaries must follow the order of computation. "
                f"Received: '{layer}' for module '{module}', which does not "
                "come after the boundary before it; reorder them."
            )
        ends[module] = previous = position
    if previous != len(calls) - 1:
        raise UserError(
            "The last module must end with the model's last layer, "
            f"'{last}'. Received: {boundaries!r}; add it."
        )
    return ends


def _nearest(position, calls, cuts):
    before = [cut for cut in cuts if cut < position][-1:]
    after = [cut for cut in cuts if cut > position][:1]
    return " or ".join(f"'{calls[i].operation.name}'" for i in before + after)
