"""What other libraries call the weights of the networks known here."""

import re

import keras
import numpy as np

from keras_transfer.errors import UserError
from keras_transfer.models.weight_sources.keras_files import h5_names

# Names that PyTorch's wrappers put before all others.
_WRAPPERS = "module.", "_orig_mod."
# Counts that no Keras layer has.
_COUNTS = "num_batches_tracked"
_TORCH_NAMES = {
    "kernel": "weight",
    "embeddings": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_FIXUP = {
    "conv1.conv/kernel": "conv1.weight",
    "conv1.bias/bias": "bias1",
    "fc.bias/bias": "bias2",
    "fc.dense/kernel": "fc.weight",
    "fc.dense/bias": "fc.bias",
}
_FIXUP_BLOCK = re.compile(
    r"layer\d+\.\d+\.((conv\d|shortcut)/kernel|scale/scale|bias\d[ab]/bias)"
)
_HUB_BLOCK = re.compile(r"stack(\d+)_block(\d+)_(\d)_(conv|bn)")


def torch_names(variables, theirs):
    """Finds the names that variables have in a PyTorch state dict.

    Known are the published Fixup ResNets, torchvision's and timm's ResNets for
    KerasHub's, and networks whose Keras layers have the names of the PyTorch
    modules. The one of these that names most is taken.

    Args:
        variables: {path: `keras.Variable`}.
        theirs: names in the state dict.

    Returns:
        {path: name}, of those that are in `theirs`.
    """
    plain = {unwrapped(name): name for name in theirs}
    found = [
        {
            path: plain[name]
            for path in variables
            if (name := scheme(path)) in plain
        }
        for scheme in (_as_fixup, _as_torchvision, _as_modules)
    ]
    return max(found, key=len)


def torch_state(model):
    """Returns a network's weights as its state dict in PyTorch has them.

    Known are the Fixup ResNets, by the names of the published ones, and
    KerasHub's ResNets, by torchvision's and timm's.

    Args:
        model: built `keras.Model`.

    Returns:
        {name: array}, in the order of the model's weights. There are no counts
        (num_batches_tracked), which PyTorch does without.

    Raises:
        UserError: if the network is no such ResNet.
    """
    named = {variable.path: variable for variable in model.weights}
    scheme = _scheme(model, named)
    if scheme is None:
        raise UserError(
            "Weights are written as PyTorch has them of Fixup ResNets "
            "(fixup_resnet18, ...) and of KerasHub's ResNets, whose names in "
            f"PyTorch are known. Received: a network '{model.name}'. Its "
            "weights are in the formats keras and saved_model, too."
        )
    # Only this private method finds the layers that other layers hold; the
    # innermost comes last.
    holders = {
        id(variable): layer
        for layer in model._flatten_layers()
        for variable in layer.weights
    }
    return {
        scheme(path): to_torch(
            keras.ops.convert_to_numpy(variable),
            holders[id(variable)],
            variable,
        )
        for path, variable in named.items()
    }


def _scheme(model, paths):
    """Returns what names all of a network's weights in PyTorch, or None."""
    if not paths:
        return None
    if all(path in _FIXUP or _FIXUP_BLOCK.fullmatch(path) for path in paths):
        return _as_fixup
    # Those of timm that shrink shortcuts by pooling have other names.
    pools = any(
        isinstance(layer, keras.layers.AveragePooling2D)
        for layer in model._flatten_layers()
    )
    if pools or not all(map(_as_torchvision, paths)):
        return None
    return _as_torchvision


def unwrapped(name):
    """Returns a state dict's name without what wrappers put before it."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def is_count(name):
    """Whether a name is that of a count or random state, which none needs."""
    last = re.split(r"[./]", name)[-1].partition("#")[0]
    return last in (_COUNTS, "seed_generator_state")


def h5_paths(model, variables, theirs):
    """Finds the names that variables have in a .weights.h5 file.

    Args:
        model: the `keras.Model` that they are of.
        variables: {path: `keras.Variable`}.
        theirs: names in the file.

    Returns:
        {path: name}, of those that are in `theirs`.
    """
    own = h5_names(model)
    found = {
        path: own.get(id(variable)) for path, variable in variables.items()
    }
    return {path: name for path, name in found.items() if name in theirs}


def torch_name(kind):
    """Returns what PyTorch calls a variable such as "kernel"."""
    return _TORCH_NAMES.get(kind, kind)


def kernel_axes(layer, variable):
    """Tells how PyTorch's array becomes a Keras variable's.

    Args:
        layer: the `keras.Layer` that holds the variable.
        variable: `keras.Variable`.

    Returns:
        A tuple of axes for `np.transpose`; None if the array is the same.
    """
    if variable.name not in ("kernel", "depthwise_kernel"):
        return None
    rank = len(variable.shape)
    if isinstance(layer, keras.layers.Dense):
        return (1, 0)
    depthwise = keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D
    if isinstance(layer, depthwise):
        # (channels, 1, h, w) to (h, w, channels, 1).
        return (*range(2, rank), 0, 1)
    if rank >= 3:
        # (out, in, h, w) to (h, w, in, out); with a transposed convolution
        # (in, out, h, w) to (h, w, out, in).
        return (*range(2, rank), 1, 0)
    return None


def from_torch(array, layer, variable):
    """Returns PyTorch's array as a variable of a Keras layer has it."""
    axes = kernel_axes(layer, variable)
    if axes is None:
        return array
    # A linear layer may be a convolution of 1x1 there.
    if len(axes) == 2 and array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    if array.ndim != len(axes):
        return array
    return np.transpose(array, axes)


def to_torch(array, layer, variable):
    """Returns the array of a Keras layer's variable as PyTorch has it."""
    axes = kernel_axes(layer, variable)
    return array if axes is None else np.transpose(array, np.argsort(axes))


def _as_fixup(path):
    layer, _, kind = path.rpartition("/")
    # A scalar of the published networks has the layer's own name.
    return _FIXUP.get(path, f"{layer}.weight" if kind == "kernel" else layer)


def _as_torchvision(path):
    layer, _, kind = path.rpartition("/")
    last = _TORCH_NAMES.get(kind, kind)
    layer = layer.rpartition("/")[2]
    if layer in ("conv1_conv", "conv1_bn"):
        return f"{'conv1' if layer == 'conv1_conv' else 'bn1'}.{last}"
    if layer == "predictions":
        return f"fc.{last}"
    block = _HUB_BLOCK.fullmatch(layer)
    if block is None:
        return None
    stage, number, part, kind = block.groups()
    if part == "0":
        part = f"downsample.{0 if kind == 'conv' else 1}"
    else:
        part = f"{kind}{part}"
    return f"layer{int(stage) + 1}.{number}.{part}.{last}"


def _as_modules(path):
    layer, _, kind = path.rpartition("/")
    return f"{layer.replace('/', '.')}.{_TORCH_NAMES.get(kind, kind)}"
