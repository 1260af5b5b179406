"""Starts a network from another: the paper's P-T from P."""

import dataclasses
import itertools
import re
from typing import Literal

import gin
import keras
import numpy as np

from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.models import graph, names, weight_sources
from keras_transfer.models.modules import head as last_layer

# The share of the weights that a source must have, and be used of it.
_LEAST_FIT = 0.9
# Layers that end a network without classifying.
_NO_HEADS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
# Heads by their names in other libraries.
_HEADS = "fc", "head", "head.fc", "classifier", "predictions", "logits"
_NAMED = 4  # Names that a sentence lists.
_COLOURS = 3


@dataclasses.dataclass(frozen=True)
class Initialization:
    """What `initialize_from` did.

    Its `str` is a line to print.

    Attributes:
        source: str, where the weights came from.
        copied: {path in the model: name in the source}.
        fresh: tuple of the paths that kept their values: the head's, and those
            that the source does not have.
        unused: tuple of the source's names that were not copied, such as its
            head's.
        reshaped: {path: how}, of those among `copied` that were changed.
    """

    source: str
    copied: dict
    fresh: tuple
    unused: tuple
    reshaped: dict

    def __str__(self):
        """Returns a line that says how much, and names the rest."""
        total = len(self.copied) + len(self.fresh)
        parts = [
            f"{len(self.copied)} of {total} weights are those of {self.source}"
        ]
        if self.fresh:
            parts.append(f"fresh: {_listed(self.fresh)}")
        if self.unused:
            parts.append(f"unused: {_listed(self.unused)}")
        parts += [f"{path}: {how}" for path, how in self.reshaped.items()]
        return "; ".join(parts) + "."


@gin.configurable(denylist=["model", "source"])
def initialize_from(
    model,
    source,
    head: str | tuple[str, ...] | None = None,
    weight_names: dict | None = None,
    channels: Literal["rgb", "bgr"] = "rgb",
):
    """Copies the weights of a pre-trained network, except the head's.

    What is copied includes batch statistics and other weights that are not
    trained; the head of `model` keeps its own values. Weights of Keras models
    are matched by path where both have the same paths, otherwise by position
    (Keras numbers layers without a name of their own as they are made: dense,
    dense_1, and such names tell nothing), otherwise by the names that the user
    gave. Those of a .weights.h5 file are matched by their place in it, those of
    PyTorch by the names of the published Fixup ResNets, of torchvision's and
    timm's ResNets (for KerasHub's), or of modules that the Keras layers are
    named after.

    Kernels of PyTorch are transposed. If the source saw images of one channel
    and the model sees n, the first kernel is repeated and divided by n; if it
    is the other way round, the kernel is summed over its channels: on gray
    images the outputs stay what they were. Nothing else is reshaped.

    Example:
        print(initialize_from(model, "resnet50.safetensors"))

    Source: paper section 2, the initialization of P-T.

    Args:
        model: functional `keras.Model` to initialize, changed in place.
        source: pre-trained `keras.Model` of the same architecture, whose head
            may have another shape, or whatever `read_weights` takes.
        head: name of the layer that keeps its values, or several; () for none.
            None: the last layer with weights, if it is one that classifies: a
            backbone, which ends in features, takes all.
        weight_names: for names that are not known here: a dict from a path in
            the model ("conv1/kernel") to the name in the source
            ("features.0.weight"), or from a layer ("conv1") to what holds the
            layer's weights there ("features.0"). What it does not name is
            fresh.
        channels: the order in which the source saw the colours of an image,
            "bgr" for weights that come from Caffe, as those that
            keras.applications publishes of VGG and ResNet do: the channels of
            the first kernel are then reversed, so that on RGB images the
            outputs are the source's.

    Returns:
        `Initialization`, which says what was copied.

    Raises:
        UserError: if the source has, or the model takes of it, less than 90% of
            the weights, or a shape differs; `model` is unchanged then.
    """
    schema.check_arguments(initialize_from, locals())
    graph.check(model)
    opened = weight_sources.open_source(source)
    if hasattr(opened, "load_model"):
        described = str(getattr(opened, "path", source))
        opened = opened.load_model()
    else:
        described = _describe_source(opened)
    target = _Target(model, _head_layers(model, head))
    if isinstance(opened, keras.Model):
        graph.check(opened)
        theirs, their_head = _of_model(opened, head)
    else:
        theirs, their_head = dict(opened), set()
    layout = getattr(opened, "layout", "keras")
    if weight_names:
        pairs = _chosen(target, theirs, layout, weight_names)
    else:
        ordered = getattr(opened, "ordered", True)
        pairs = _found(target, theirs, their_head, layout, ordered)
        their_head |= {pairs[p] for p in target.heads_paths if p in pairs}
        pairs = {path: pairs[path] for path in target.body if path in pairs}
        _check_fit(target, theirs, their_head, pairs, described)
    arrays, reshaped = _arrays(target, theirs, pairs, layout, described)
    if channels == "bgr":
        _reverse_channels(target, arrays, reshaped)
    for path, array in arrays.items():
        target.variables[path].assign(array)
    used = set(pairs.values())
    return Initialization(
        source=described,
        copied=pairs,
        fresh=tuple(path for path in target.variables if path not in pairs),
        unused=tuple(
            name for name in theirs if name not in used and _counts(name)
        ),
        reshaped=reshaped,
    )


class _Target:
    """The model to initialize.

    Attributes:
        model: `keras.Model`.
        variables: {path: `keras.Variable`} of `model.weights`.
        body: the same without the head.
        layers: {path: the `keras.Layer` that holds it}.
    """

    def __init__(self, model, heads):
        self.model = model
        self.variables = _by_path(model.weights)
        of_head = {id(w) for layer in heads for w in layer.weights}
        self.body = {
            path: variable
            for path, variable in self.variables.items()
            if id(variable) not in of_head
        }
        holders = {}
        # Only this private method finds the layers that other layers hold; the
        # innermost comes last.
        for layer in model._flatten_layers():
            for variable in layer.weights:
                holders[id(variable)] = layer
        self.layers = {
            path: holders.get(id(variable))
            for path, variable in self.variables.items()
        }

    @property
    def heads_paths(self):
        """The paths of the head's weights, as a list."""
        return [path for path in self.variables if path not in self.body]


def _by_path(variables):
    named = {}
    for variable in variables:
        name, numbers = variable.path, itertools.count(2)
        while name in named:
            name = f"{variable.path}#{next(numbers)}"
        named[name] = variable
    return named


def _of_model(model, head):
    """Returns a source's weights by path, and the paths that are its head's.

    Args:
        model: `keras.Model`.
        head: as for `initialize_from`. If the user named it, it is of as many
            layers in the source.
    """
    named = _by_path(model.weights)
    if head is None:
        heads = {id(w) for layer in _head_layers(model) for w in layer.weights}
        return named, {p for p, v in named.items() if id(v) in heads}
    count = 1 if isinstance(head, str) else len(head)
    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in named))
    last = layers[len(layers) - count :]
    return named, {p for p in named if p.rpartition("/")[0] in last}


def _head_layers(model, named=None):
    if named is None:
        layer = last_layer(model)
        return [layer] if _classifies(layer, model) else []
    wanted = [named] if isinstance(named, str) else list(named)
    layers = {layer.name: layer for layer in model._flatten_layers()}
    for name in wanted:
        if name not in layers:
            raise UserError(
                f"Model '{model.name}' has no layer to be its head. Received: "
                f"head={name!r}; its last one with weights is "
                f"'{last_layer(model).name}'."
            )
    return [layers[name] for name in wanted]


def _classifies(layer, model):
    """Whether the last layer with weights is a head, not a backbone's end."""
    if isinstance(layer, _NO_HEADS):
        return False
    kernel = getattr(layer, "kernel", None)
    if kernel is None or len(kernel.shape) <= 2:
        return len(model.outputs[0].shape) <= 2
    is_convolution = len(kernel.shape) >= 3 and hasattr(layer, "strides")
    return not is_convolution or set(kernel.shape[:-2]) == {1}


# Which of their weights is which of ours.


def _found(target, theirs, their_head, layout, ordered):
    """Returns {path: name}, of the head as well where that is told by name."""
    if layout == "torch":
        return names.torch_names(target.variables, theirs)
    if layout == "keras_h5":
        return names.h5_paths(target.model, target.variables, theirs)
    ours = list(target.body)
    left = [n for n in theirs if n not in their_head and _counts(n)]
    if set(ours) == set(left):
        return dict(zip(ours, ours, strict=True))
    by_path = {path: path for path in ours if path in set(left)}
    if len(by_path) == len(ours) and not their_head:
        heads = set(left) - set(ours)
        if heads <= set(target.heads_paths) or _are_heads(heads):
            return by_path
    for candidates in _without_head(left, their_head) if ordered else ():
        if _fits(target, ours, candidates, theirs):
            return dict(zip(ours, candidates, strict=False))
    return _by_name(ours, left, ordered)


def _without_head(left, their_head):
    """Yields lists of their names: all, and all but a last layer's."""
    yield left
    if not their_head and left:
        last = left[-1].rpartition("/")[0]
        yield [name for name in left if name.rpartition("/")[0] != last]


def _fits(target, ours, candidates, theirs):
    """Whether ours are theirs by position, further Dense layers aside."""
    if not candidates or len(ours) < len(candidates):
        return False
    further = ours[len(candidates) :]
    dense = keras.layers.Dense
    if not all(isinstance(target.layers[path], dense) for path in further):
        return False
    is_input = _input_kernel(target)
    return all(
        _same_shape(target.body[path].shape, theirs[name].shape)
        or (path == is_input and _channels_differ(target, path, theirs[name]))
        for path, name in zip(ours, candidates, strict=False)
    )


def _by_name(ours, left, ordered):
    """Matches what the user named, layer by layer."""
    groups = {}
    for name in left:
        layer, _, last = _without_model(name).rpartition("/")
        groups.setdefault(layer, {})[last] = name
    own = {}
    for path in ours:
        layer, _, last = _without_model(path).rpartition("/")
        own.setdefault(layer, {})[last] = path
    pairs = {}
    for layer, paths in own.items():
        if layer not in groups or _is_automatic(layer):
            continue
        found = groups[layer]
        if set(found) & set(paths):
            pairs |= {paths[k]: found[k] for k in paths if k in found}
        elif ordered and len(found) == len(paths):
            # Other names of old: conv1_W_1.
            pairs |= dict(zip(paths.values(), found.values(), strict=True))
    return pairs


def _without_model(path):
    return re.sub(r"^(sequential|functional|model)(_\d+)?/", "", path)


def _is_automatic(layer):
    """Whether part of a layer's path is a name that Keras gave it."""
    kinds = {_snake(kind) for kind in dir(keras.layers)}
    return any(re.sub(r"_\d+$", "", part) in kinds for part in layer.split("/"))


def _snake(name):
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _chosen(target, theirs, layout, weight_names):
    """Returns {path: name} as the user says."""
    pairs = {}
    for ours, their in weight_names.items():
        if ours in target.variables:
            pairs[ours] = their
            continue
        paths = [p for p in target.variables if p.rpartition("/")[0] == ours]
        if not paths:
            raise UserError(
                f"Model '{target.model.name}' has neither a weight nor a layer "
                f"of this name. Received: weight_names={{{ours!r}: ...}}; its "
                f"weights are {_listed(target.variables)}."
            )
        pairs |= _of_layer(paths, their, theirs, layout)
    for path, name in pairs.items():
        if name not in theirs:
            raise UserError(
                "The source has no weight of this name. Received: "
                f"weight_names={{{path!r}: {name!r}}}; it has "
                f"{_listed(theirs)}."
            )
    return pairs


def _of_layer(paths, prefix, theirs, layout):
    if layout == "torch":
        return {
            path: f"{prefix}.{names.torch_name(path.rpartition('/')[2])}"
            for path in paths
        }
    starts = f"{prefix}/", f"{prefix}/vars/"
    inside = [n for n in theirs if f"{n.rpartition('/')[0]}/" in starts]
    if not inside:
        raise UserError(
            f"The source has no weights of {prefix!r}. Received: "
            f"weight_names={{{paths[0].rpartition('/')[0]!r}: {prefix!r}}}; it "
            f"has {_listed(theirs)}."
        )
    if len(inside) != len(paths):
        raise UserError(
            f"The source has {len(inside)} weights in {prefix!r}, and the "
            f"model {len(paths)} in '{paths[0].rpartition('/')[0]}'. Name them "
            "one by one in weight_names."
        )
    return dict(zip(paths, inside, strict=True))


# Whether they fit.


def _check_fit(target, theirs, their_head, pairs, described):
    ours = target.body
    used = set(pairs.values())
    left = [
        name
        for name in theirs
        if name not in used
        and name not in their_head
        and _counts(name)
        and not _are_heads([name])
        and name not in target.heads_paths
    ]
    if used and _ends(left, theirs):
        left = []
    fit = len(pairs) / max(len(ours), len(pairs) + len(left), 1)
    # Of a small network 90% may be all but a layer.
    if fit >= _LEAST_FIT:
        return
    if not _is_torch(theirs):
        expected, received = _first_difference(ours, theirs, their_head)
        detail = f"Expected {expected}. Received: {received}"
    else:
        detail = f"Received: {len(theirs)} weights"
    missing = [path for path in ours if path not in pairs]
    raise UserError(
        f"{_capitalized(described)} cannot initialize '{target.model.name}': "
        "they are of different architecture, or have other names: "
        f"{len(pairs)} of {len(ours)} weights match. {detail}; without a match "
        f"are {_listed(missing) or 'none'} here and {_listed(left) or 'none'} "
        "there. Build both with the same factory and the same arguments, the "
        "number of classes aside; or name the layers of a larger head in "
        "initialize_from.head, or what is what in initialize_from.weight_names."
    )


def _ends(left, theirs):
    """Whether what is left over is the last layer of theirs."""
    rest = {name.rpartition("/")[0] for name in left}
    return (
        len(rest) == 1
        and not _is_torch(theirs)
        and list(theirs)[-len(left) :] == left
    )


def _first_difference(ours, theirs, their_head):
    left = [
        (name, value)
        for name, value in theirs.items()
        if name not in their_head and _counts(name)
    ]
    for own, their in itertools.zip_longest(ours.items(), left):
        if (
            own is None
            or their is None
            or not _same_shape(own[1].shape, their[1].shape)
        ):
            return _describe(own), _describe(their)
    # All shapes are alike, and names are not.
    for own, their in zip(ours.items(), left, strict=True):
        if own[0] != their[0]:
            return _describe(own), _describe(their)
    return "other names", "the same shapes"


def _arrays(target, theirs, pairs, layout, described):
    """Returns {path: array} as the model has them, and what was reshaped."""
    arrays, reshaped = {}, {}
    first = _input_kernel(target)
    for path, name in pairs.items():
        variable = target.variables[path]
        # Through NumPy, as source and model may live on other devices.
        array = theirs[name]
        if isinstance(array, keras.Variable):
            array = keras.ops.convert_to_numpy(array)
        array = np.asarray(array)
        if layout == "torch":
            array = names.from_torch(array, target.layers[path], variable)
        if path == first and _channels_differ(target, path, array):
            array, reshaped[path] = _with_channels(array, variable.shape[-2])
        if not _same_shape(array.shape, variable.shape):
            raise UserError(
                f"{_capitalized(described)} cannot initialize "
                f"'{target.model.name}': they are of different architecture. "
                f"Expected {_describe((path, variable))}. Received: "
                f"{_describe((name, array))}; build both with the same factory "
                "and the same arguments, the number of classes aside."
            )
        arrays[path] = array
    return arrays, reshaped


def _reverse_channels(target, arrays, reshaped):
    """Has the first kernel, among arrays, take the colours the other way."""
    first = _input_kernel(target)
    kernel = arrays.get(first)
    if kernel is None or kernel.shape[2] != _COLOURS or first in reshaped:
        raise UserError(
            "Channels can only be reversed in a first convolution that sees "
            "colours here and in the source. Received: "
            f"channels='bgr' for model '{target.model.name}'."
        )
    arrays[first] = kernel[:, :, ::-1]
    reshaped[first] = "its channels reversed, from BGR to RGB"


def _input_kernel(target):
    """Returns the path of the convolution that sees the images, or None."""
    channels = target.model.inputs[0].shape[-1]
    for path, variable in target.body.items():
        if variable.name == "kernel":
            is_one = len(variable.shape) == 4 and variable.shape[2] == channels
            return path if is_one else None
    return None


def _channels_differ(target, path, array):
    """Whether a kernel differs in its channels alone: one, and several."""
    ours, theirs = tuple(target.body[path].shape), tuple(array.shape)
    if len(theirs) != 4 or 1 not in (ours[2], theirs[2]) or ours == theirs:
        return False
    return ours[:2] == theirs[:2] and ours[3] == theirs[3]


def _with_channels(kernel, channels):
    if channels == 1:
        how = f"summed over the source's {kernel.shape[2]} channels"
        return kernel.sum(axis=2, keepdims=True), how
    how = f"the source's one channel repeated, divided by {channels}"
    return np.repeat(kernel / channels, channels, axis=2), how


# Words.


def _counts(name):
    return not names.is_count(name)


def _are_heads(found):
    return all(
        re.sub(r"[./][^./]+$", "", names.unwrapped(name)) in _HEADS
        for name in found
    )


def _is_torch(theirs):
    return not any("/" in name for name in theirs)


def _same_shape(ours, theirs):
    return tuple(ours) == tuple(theirs)


def _listed(found):
    found = list(found)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(f"'{name}'" for name in found[:_NAMED]) + more


def _describe(item):
    if item is None:
        return "no further layer"
    layer, _, name = item[0].rpartition("/")
    return f"layer '{layer}' with {name} {tuple(item[1].shape)}"


def _describe_source(opened):
    own = getattr(opened, "source", None)
    return own or f"model '{opened.name}'"


def _capitalized(text):
    return text[0].upper() + text[1:] if text.startswith("m") else text
