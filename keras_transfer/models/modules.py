"""Cuts a Keras model into its chain of named modules.

A module is a part of the network through which all computation flows from one
tensor to the next: the modules, applied in turn, are the network. For a Fixup
ResNet they are those of the paper (section 2 of `paper.md`): conv1, each
residual block layer1.0, layer1.1, ..., and fc.
"""

import dataclasses
import itertools
import re

import keras

from keras_transfer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Module:
    """One link of the chain.

    Attributes:
        name: The module's name, unique in its chain.
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


def module_chain(model, boundaries=None):
    """Cuts a functional model into its chain of modules.

    A cut lies where exactly one tensor is still needed. If every layer with
    weights has a dotted name, `<module>.<part>`, consecutive layers of one name
    make a module. Otherwise each stretch between cuts that holds a kernel (a
    weight of rank 2 or more) begins a module; what follows without a kernel
    (activation, pooling, batch normalization) belongs to it; and its name is
    what the names of its layers with weights have in common, or, where that
    names nothing or two modules alike, the first of these names.

    A layer with weights that is called several times keeps all its calls in one
    module. A model used as a layer is one layer and is not looked into.

    Example:
        for module in module_chain(model):
            x = module.model(x)     # ends as model(x)

    Args:
        model: A functional (or built sequential) `keras.Model` with one input
            and one output tensor. It is not changed.
        boundaries: Optional dict from module name to the name of the module's
            last layer, in the order of computation; the last module ends with
            the model's last layer. Overrides the rules above.

    Returns:
        A list of `Module`, from input to output.

    Raises:
        UserError: If the model is not a chain from one input to one output, has
            no weights, or cannot be cut at a given boundary.
    """
    nodes = _nodes_in_order(model)
    cuts = _cut_tensors(nodes, model.outputs[0])
    if boundaries is None:
        ends = _default_ends(nodes, cuts)
    else:
        ends = _chosen_ends(nodes, cuts, boundaries)
    modules, start = [], model.inputs[0]
    for name, position in ends.items():
        # Keras shares the layers between models cut from one graph.
        part = keras.Model(start, cuts[position], name=name)
        modules.append(Module(name, part))
        start = cuts[position]
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
        UserError: If the model is not a chain from one input to one output, or
            has no weights.
    """
    layers = [n.operation for n in _nodes_in_order(model) if _weights(n)]
    if isinstance(layers[-1], keras.Model):
        return head(layers[-1])
    return layers[-1]


def _nodes_in_order(model):
    """Returns the calls ("nodes") of the model's layers, inputs first."""
    inputs = getattr(model, "inputs", None)
    if not isinstance(model, keras.Model) or not inputs:
        raise UserError(
            "Only a functional Keras model, or a sequential one that knows its "
            "input shape, can be cut into modules. Received: "
            f"{model!r}; build it with keras.Model(inputs, outputs)."
        )
    if len(inputs) != 1 or len(model.outputs) != 1:
        raise UserError(
            "Only a model with one input and one output can be cut into "
            f"modules. Received: {len(inputs)} inputs and "
            f"{len(model.outputs)} outputs in model '{model.name}'."
        )
    # The one thing taken from inside Keras: the graph in order of computation
    # (an input lies deepest). Rewrapping gives sequential models one, too.
    graph = keras.Model(inputs, model.outputs, name=model.name)
    by_depth = graph._nodes_by_depth
    nodes = [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if not node.is_input
    ]
    if not any(_weights(node) for node in nodes):
        raise UserError(
            f"Model '{model.name}' has no weights and hence no modules. "
            "Give a model with layers to train."
        )
    return nodes


def _weights(node):
    # Operations such as `keras.ops.add` are not layers and hold no weights.
    return getattr(node.operation, "weights", [])


def _cut_tensors(nodes, output):
    """Finds where the graph can be cut.

    Args:
        nodes: The graph's nodes in order of computation.
        output: The graph's output tensor.

    Returns:
        A dict from each position in `nodes` after which exactly one tensor is
        still needed, to that tensor.
    """
    last_use = {}
    for position, node in enumerate(nodes):
        for used in (*node.input_tensors, node.operation):
            last_use[id(used)] = position
    last_use[id(output)] = len(nodes)
    cuts, alive = {}, {}
    for position, node in enumerate(nodes):
        alive.update({id(tensor): tensor for tensor in node.input_tensors})
        alive.update({id(tensor): tensor for tensor in node.output_tensors})
        if _weights(node):
            # Called again later, a layer with weights forbids a cut between.
            alive[id(node.operation)] = node.operation
        alive = {
            key: value
            for key, value in alive.items()
            if last_use.get(key, -1) > position
        }
        # Keras cannot start a model right after a layer that it calls again.
        called_again = last_use[id(node.operation)] > position
        if len(alive) == 1 and not called_again:
            (cuts[position],) = alive.values()
    return cuts


def _default_ends(nodes, cuts):
    """Returns a dict from module name to the position of its last node."""
    segments = _split(nodes, cuts)
    if all("." in node.operation.name for node in nodes if _weights(node)):
        name_of = _dotted_name
        labels = [_dotted_name(segment) for segment in segments]
    else:
        name_of = _common_name
        labels = [
            i if any(map(_has_kernel, segment)) else None
            for i, segment in enumerate(segments)
        ]
    # A segment without a label joins the module before it; those at the very
    # beginning join the first.
    current = next((label for label in labels if label is not None), None)
    joined = []
    for label in labels:
        current = current if label is None else label
        joined.append(current)
    # A module ends where the label changes, the last one at the end.
    ends = [
        cut
        for i, cut in enumerate(cuts)
        if joined[i : i + 1] != joined[i + 1 : i + 2]
    ]
    modules = _split(nodes, ends)
    names = [name_of(module) for module in modules]
    if len(set(names)) < len(names):
        names = [_layer_names(module)[0] for module in modules]
    return dict(zip(names, ends, strict=True))


def _split(nodes, ends):
    """Splits the list `nodes` after each of the positions `ends`."""
    return [nodes[a + 1 : b + 1] for a, b in itertools.pairwise([-1, *ends])]


def _has_kernel(node):
    return any(len(weight.shape) >= 2 for weight in _weights(node))


def _layer_names(nodes):
    """Returns the names of the layers with weights, or of all if none has."""
    with_weights = [node for node in nodes if _weights(node)]
    return [node.operation.name for node in with_weights or nodes]


def _dotted_name(nodes):
    """Returns the module of layers named `<module>.<part>`, None if none is."""
    modules = [n.rpartition(".")[0] for n in _layer_names(nodes) if "." in n]
    if not modules:
        return None
    return _common_prefix(modules) or modules[0]


def _common_name(nodes):
    names = _layer_names(nodes)
    return _common_prefix(names) or names[0]


def _common_prefix(names):
    """Returns the leading parts, between any of ".", "_" and "-", all share."""
    parts = [re.split(r"([._-])", name) for name in names]
    shared = itertools.takewhile(
        lambda column: len(set(column)) == 1, zip(*parts, strict=False)
    )
    return "".join(column[0] for column in shared).rstrip("._-")


def _chosen_ends(nodes, cuts, boundaries):
    """Returns a dict from module name to the position of its last node."""
    positions = {node.operation.name: i for i, node in enumerate(nodes)}
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
                f"nearby, it can end with {_nearest(position, nodes, cuts)}."
            )
        if position <= previous:
            raise UserError(
                "Module boundaries must follow the order of computation. "
                f"Received: '{layer}' for module '{module}', which does not "
                "come after the boundary before it; reorder them."
            )
        ends[module] = previous = position
    if previous != len(nodes) - 1:
        raise UserError(
            "The last module must end with the model's last layer, "
            f"'{nodes[-1].operation.name}'. Received: {boundaries!r}; add it."
        )
    return ends


def _nearest(position, nodes, cuts):
    before = [cut for cut in cuts if cut < position][-1:]
    after = [cut for cut in cuts if cut > position][:1]
    return " or ".join(f"'{nodes[i].operation.name}'" for i in before + after)
