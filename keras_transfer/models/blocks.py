"""Which stretches of a network make a module: its blocks, or its stages."""

import itertools
import re

# More modules than this are no longer looked at one by one. ResNet-152 has 52.
_MOST_MODULES = 56


def default_ends(calls, cuts):
    """Chooses where modules end; the rules are in `modules.module_chain`.

    Args:
        calls: list of `graph.Call` in order of computation.
        cuts: positions in `calls` after which modules may end, in order; the
            last is that of the last call.

    Returns:
        A dict from module name to the position of its last call.
    """
    stretches = _split(calls, cuts)
    if all("." in call.operation.name for call in calls if call.weights):
        labels = [_dotted_name(stretch) for stretch in stretches]
        ends = _ends(cuts, labels)
        names = [_dotted_name(module) for module in _split(calls, ends)]
    else:
        labels = _block_labels(stretches)
        ends = _ends(cuts, labels)
        names = _names(calls, cuts, labels, ends)
        if len(ends) > _MOST_MODULES:
            sizes = [_resolution(module) for module in _split(calls, ends)]
            stages = _ends(ends, sizes)
            names = _stage_names(names, ends, stages)
            ends = stages
    names = _unique(names, _split(calls, ends))
    return dict(zip(names, ends, strict=True))


def _split(items, ends):
    """Splits a list after each of the positions `ends`."""
    return [items[a + 1 : b + 1] for a, b in itertools.pairwise([-1, *ends])]


def _ends(cuts, labels):
    """Joins stretches of one label.

    Args:
        cuts: the positions where the stretches end.
        labels: one for each. A stretch whose label is None joins the one before
            it; those at the very beginning join the first with a label.

    Returns:
        A list of those `cuts` after which the label is another, and the last.
    """
    current = next((label for label in labels if label is not None), None)
    joined = []
    for label in labels:
        current = current if label is None else label
        joined.append(current)
    return [
        cut
        for i, cut in enumerate(cuts)
        if joined[i : i + 1] != joined[i + 1 : i + 2]
    ]


# --- Blocks ------------------------------------------------------------------


def _block_labels(stretches):
    """Returns what tells each stretch's module, None if it joins another's."""
    own = [
        position if any(map(_has_kernel, stretch)) else None
        for position, stretch in enumerate(stretches)
    ]
    in_one_layer = _labels_of_layers_looked_into(stretches, own)
    in_block = _labels_of_blocks(stretches)
    labels = [
        next((label for label in found if label is not None), None)
        for found in zip(in_block, in_one_layer, own, strict=True)
    ]
    _join_transformer_halves(stretches, labels)
    return labels


def _has_kernel(call):
    """Whether the layer has weights to multiply its input with."""
    return any(_is_kernel(weight, call) for weight in call.weights)


def _is_kernel(weight, call):
    if "kernel" in weight.name:
        return len(weight.shape) >= 2
    shape = tuple(itertools.dropwhile(lambda size: size == 1, weight.shape))
    if len(shape) < 2:
        return False
    # One value for each of the output's, such as a position embedding, is
    # added to what passes.
    return not any(tuple(x.shape)[-len(shape) :] == shape for x in call.outputs)


def _branches(stretch):
    # Between two calls of it, more than one tensor is needed.
    return len(stretch) > 1 and any(map(_has_kernel, stretch))


def _labels_of_layers_looked_into(stretches, own):
    """Labels the stretches inside of a layer that holds but one kernel."""
    inside, kernels = {}, {}
    for position, stretch in enumerate(stretches):
        shared = _common([call.within for call in stretch])
        for depth in range(1, len(shared) + 1):
            inside.setdefault(position, []).append(shared[:depth])
            if own[position] is not None:
                kernels[shared[:depth]] = kernels.get(shared[:depth], 0) + 1
    return [
        next(
            (
                layer
                for layer in inside.get(position, [])
                if kernels.get(layer) == 1
            ),
            None,
        )
        for position in range(len(stretches))
    ]


def _labels_of_blocks(stretches):
    """Labels stretches by the block that their layers' names begin with."""
    patterns = _block_patterns(stretches)
    return [_block(stretch, patterns) for stretch in stretches]


def _block_patterns(stretches):
    r"""Finds how residual blocks are named.

    Args:
        stretches: list of lists of calls.

    Returns:
        A list of regular expressions such as r"conv\d+_block\d+", from the
        shortest.
    """
    branching = [stretch for stretch in stretches if _branches(stretch)]
    patterns = set()
    for stretch in branching:
        prefix = _common_prefix(_given_names(stretch))
        # It ends in a number, or in one with a letter (block2b), unless that is
        # a kind of layer (conv2d).
        found = re.fullmatch(r"(.*\d)([a-z]?)", prefix)
        if found and not prefix.endswith(("1d", "2d", "3d")):
            parts = re.split(r"(\d+)", found[1])
            pattern = "".join(
                r"\d+" if part.isdigit() else re.escape(part) for part in parts
            )
            patterns.add(pattern + ("[a-z]" if found[2] else ""))
    return [
        pattern
        for pattern in sorted(patterns, key=len)
        if _tells_blocks_apart(pattern, branching)
    ]


def _tells_blocks_apart(pattern, branching):
    """Whether no two residual blocks have one label by a pattern."""
    found = [
        (_block(stretch, [pattern]), _attends(stretch)) for stretch in branching
    ]
    found = [pair for pair in found if pair[0] is not None]
    return len(found) == len(set(found))


def _block(stretch, patterns):
    """Returns the block that all the layers' names begin with, or None."""
    names = _given_names(stretch)
    for pattern in patterns:
        found = {_match(pattern, name) for name in names}
        if len(found) == 1 and None not in found:
            return found.pop()
    return None


def _match(pattern, name):
    found = re.match(rf"{pattern}(?=[._-]|$)", name)
    return found and found.group()


def _join_transformer_halves(stretches, labels):
    """Labels what follows attention, the perceptron, as the attention is."""
    with_kernel = [
        position
        for position, stretch in enumerate(stretches)
        if any(map(_has_kernel, stretch))
    ]
    for i, j in itertools.pairwise(with_kernel):
        first, second = stretches[i], stretches[j]
        if (
            _branches(first)
            and _branches(second)
            and _attends(first)
            and not _attends(second)
            and first[-1].outputs[0].shape == second[-1].outputs[0].shape
        ):
            for position in range(i, j + 1):
                labels[position] = labels[i]


def _attends(stretch):
    kinds = {type(call.operation).__name__ for call in stretch}
    by_hand = "Softmax" in kinds and kinds & {"Matmul", "Einsum", "Dot"}
    return bool(by_hand) or any("Attention" in kind for kind in kinds)


# --- Stages ------------------------------------------------------------------


def _resolution(module):
    """Returns the height and width, or length, of what the last kernel gives.

    That before a pooling at the module's end, if there is one.
    """
    last = [call for call in module if _has_kernel(call)] or module
    return tuple(last[-1].outputs[0].shape)[1:-1]


# --- Names -------------------------------------------------------------------


def _names(calls, cuts, labels, ends):
    """Names modules after their blocks or layers."""
    insides = _insides(calls)
    last_cuts = [cuts.index(end) for end in ends]
    stretches = _split(_split(calls, cuts), last_cuts)
    return [
        _name(module, labels_of_module, insides)
        for module, labels_of_module in zip(
            stretches, _split(labels, last_cuts), strict=True
        )
    ]


def _name(stretches, labels, insides):
    own = [
        (label, stretch)
        for label, stretch in zip(labels, stretches, strict=True)
        if label is not None
    ]
    label, (*_, last) = own[-1] if own else (None, stretches[-1])
    if isinstance(label, str):
        return label
    if isinstance(label, tuple):
        # The layers that the stretch is inside of.
        return label[-1]
    calls = list(itertools.chain(*stretches))
    layers = [call for call in calls if call.weights] or calls
    within = _common([call.within for call in layers])
    for depth in range(1, len(within) + 1):
        if insides.get(within[:depth]) == len(layers):
            return within[depth - 1]
    shared = _common_prefix(_given_names(calls))
    if (
        not shared
        and len(last.inputs) > 1
        and not _is_automatic(last.operation)
    ):
        # The end of several branches, which somebody named ("mixed3").
        return last.operation.name
    return shared or layers[0].operation.name


def _insides(calls):
    """Counts the calls with weights inside of each layer looked into."""
    counts = {}
    for call in calls:
        for depth in range(1, len(call.within) + 1 if call.weights else 1):
            layer = call.within[:depth]
            counts[layer] = counts.get(layer, 0) + 1
    return counts


def _stage_names(names, ends, stages):
    """Names each stage as what its modules' names share, or as its first."""
    members = _split(names, [ends.index(stage) for stage in stages])
    return [
        _common_prefix(inside[:-1] or inside)
        or _common_prefix(inside)
        or inside[0]
        for inside in members
    ]


def _unique(names, modules):
    """Replaces names unless they differ: by those of the first layers."""
    if len(set(names)) < len(names):
        names = [_layer_names(module)[0] for module in modules]
    unique = []
    for name in names:
        numbers = (f"{name}_{number}" for number in itertools.count(2))
        unique.append(
            next(x for x in itertools.chain([name], numbers) if x not in unique)
        )
    return unique


def _layer_names(calls):
    """Returns the names of the layers with weights, or of all if none has."""
    with_weights = [call for call in calls if call.weights]
    return [call.operation.name for call in with_weights or calls]


def _given_names(calls):
    """Returns those of `_layer_names` that somebody gave, or all of them."""
    layers = [call for call in calls if call.weights] or calls
    given = [c for c in layers if not _is_automatic(c.operation)] or layers
    return [call.operation.name for call in given]


def _is_automatic(operation):
    """Whether Keras named an operation: by its class, and a number."""
    stem = re.sub(r"_\d+$", "", operation.name).replace("_", "")
    return stem == type(operation).__name__.lower()


def _dotted_name(calls):
    """Returns the module of layers named `<module>.<part>`, None if none is."""
    modules = [n.rpartition(".")[0] for n in _layer_names(calls) if "." in n]
    if not modules:
        return None
    return _common_prefix(modules) or modules[0]


def _common_prefix(names):
    """Returns the leading parts, between any of ".", "_" and "-", all share."""
    parts = _common([re.split(r"([._-])", name) for name in names])
    return "".join(parts).rstrip("._-")


def _common(sequences):
    """Returns the leading items that all sequences share, as a tuple."""
    shared = itertools.takewhile(
        lambda column: len(set(column)) == 1, zip(*sequences, strict=False)
    )
    return tuple(column[0] for column in shared)
