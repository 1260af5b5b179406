"""Singular values of every layer of a model (paper, appendix).

A dense layer is its kernel. A convolution is a linear operator from its input
feature map to its output; padded circularly, the Fourier transform makes it
block-diagonal, one block a frequency, and its singular values are those of the
blocks: Sedghi, Gupta and Long, "The Singular Values of Convolutional Layers"
(ICLR 2019). A stride s folds s^2 input frequencies into each output frequency.

Networks pad with zeros, not circularly. No transform is known that makes such
an operator block-diagonal, so of its singular values only the largest, which is
its norm, is computed: by the Lanczos method, from the convolution and its
transpose.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import os

import keras
import numpy as np
import pandas
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from keras_transfer.analysis.declaration import (
    Figure,
    Table,
    declare_analysis,
)
from keras_transfer.analysis.drawing import colour, new_figure, plot_by
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.models import module_chain
from keras_transfer.models.weights import parameters

# An operator with so short a side is written out.
_DENSE = 8
# Of the residual, relative to the square of the largest singular value. That is
# found more exactly than its vector: to some 1e-5.
_TOLERANCE = 1e-3
_OPERATORS = (
    keras.layers.Dense,
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
)


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The singular values of a linear operator.

    Attributes:
        values: float64 [m], descending.
        counts: int64 [m], how often each occurs.
        norm: float, the largest singular value of the layer as the network has
            it, padded with zeros or not at all; NaN if it was not computed.
    """

    values: np.ndarray
    counts: np.ndarray
    norm: float = math.nan

    def at(self, fractions):
        """Returns singular values by their place in descending order.

        Args:
            fractions: float [q] in [0, 1]: 0 is the largest, 1 the smallest.

        Returns:
            float64 [q].
        """
        ends = np.cumsum(self.counts)
        places = np.round(np.asarray(fractions) * (ends[-1] - 1))
        return self.values[np.searchsorted(ends, places, side="right")]

    def summary(self):
        """Returns what is reported of an operator.

        Returns:
            dict: "number" of singular values; the "largest"; and, NaN where
            that is 0, "stable_rank" (sum of squares over the largest square),
            "effective_rank" (exp of the entropy of the values as shares of
            their sum: Roy and Vetterli 2007) and "fraction_90" (the fraction of
            the values, largest first, that holds 90% of the sum of squares).
        """
        number, largest = int(self.counts.sum()), float(self.values[0])
        summary = {"number": number, "largest": largest}
        if largest == 0:
            keys = ("stable_rank", "effective_rank", "fraction_90")
            return summary | dict.fromkeys(keys, math.nan)
        # Zeros have no part in any of the three.
        values = self.values[self.values > 0] / largest
        counts = self.counts[: len(values)]
        energy = np.cumsum(counts * values**2)
        shares = values / np.sum(counts * values)
        # As if the energy grew evenly among equal values.
        held = np.interp(
            0.9 * energy[-1], [0, *energy], [0, *np.cumsum(counts)]
        )
        return summary | {
            "stable_rank": float(energy[-1]),
            "effective_rank": float(
                np.exp(-np.sum(counts * shares * np.log(shares)))
            ),
            "fraction_90": float(held) / number,
        }


def matrix_spectrum(matrix):
    """Returns the `Spectrum` of a matrix [m, n], such as a dense kernel."""
    values = _singular_values(np.asarray(matrix, np.float64))
    ones = np.ones(len(values), np.int64)
    return Spectrum(values, ones, float(values[0]))


def conv_spectrum(
    kernel, feature_map, strides=(1, 1), dilation=(1, 1), groups=1
):
    """Computes the singular values of a two-dimensional convolution.

    Exact for circular padding. Source: Sedghi, Gupta and Long 2019, theorem 6.
    With strides (s, t), the output's frequency (u, v) sees the s t frequencies
    of the input that subsampling folds onto it, side by side in one block.

    Args:
        kernel: float [height, width, inputs / groups, outputs], as Keras has
            it; larger than the feature map, it wraps around.
        feature_map: (height, width) of the input, multiples of the strides.
        strides: (vertical, horizontal).
        dilation: (vertical, horizontal).
        groups: int, groups of channels.

    Returns:
        The `Spectrum` of the operator from [height, width, inputs] to
        [height / s, width / t, outputs].

    Raises:
        UserError: if the feature map is no multiple of the strides, or the
            outputs are none of the groups.
    """
    kernel = np.asarray(kernel, np.float64)
    if any(n % s for n, s in zip(feature_map, strides, strict=True)) or (
        kernel.shape[-1] % groups
    ):
        raise UserError(
            "A feature map is a multiple of the strides and the outputs are of "
            f"the groups. Received: feature_map={tuple(feature_map)}, strides="
            f"{tuple(strides)}, {kernel.shape[-1]} outputs, groups={groups}."
        )
    # [height, width, inputs of a group, groups, outputs of a group]
    kernel = kernel.reshape(*kernel.shape[:3], groups, -1)
    height, width = (n // s for n, s in zip(feature_map, strides, strict=True))
    if kernel.shape[:2] == (1, 1):
        # The same matrix at every frequency, however they are folded.
        values = _singular_values(kernel[0, 0].transpose(1, 2, 0))
        # What subsampling drops adds columns that depend on the others.
        columns = kernel.shape[2] * math.prod(strides)
        zeros = min(kernel.shape[4], columns) - values.shape[1]
        values = np.pad(values, ((0, 0), (0, zeros)))
        return _spectrum(values, np.full(values.shape, height * width))
    fourier = [
        # [frequency, place in the kernel]
        np.exp(-2j * np.pi * dilated / n * np.outer(range(n), range(size)))
        for n, size, dilated in zip(
            feature_map, kernel.shape, dilation, strict=False
        )
    ]
    values, counts = [], []
    # A real kernel has the same singular values at opposite frequencies, so
    # half of the rows do, and half of a row that is its own opposite.
    for u in range(height // 2 + 1):
        is_own_opposite = 2 * u % height == 0
        v = np.arange(width // 2 + 1 if is_own_opposite else width)
        blocks = _blocks(
            kernel,
            fourier[0][u::height],
            fourier[1].reshape(-1, width, kernel.shape[1])[:, v],
        )
        values.append(_singular_values(blocks / math.sqrt(math.prod(strides))))
        multiple = np.where(is_own_opposite & (2 * v % width == 0), 1, 2)
        counts.append(
            np.broadcast_to(multiple[:, None, None], values[-1].shape)
        )
    return _spectrum(*map(np.concatenate, (values, counts)))


def conv_norm(
    kernel,
    feature_map,
    padding=((0, 0), (0, 0)),
    strides=(1, 1),
    dilation=(1, 1),
    groups=1,
):
    """Computes the largest singular value of a zero-padded convolution.

    It is the norm of the operator from [height, width, inputs], padded with
    zeros as told, to what the convolution gives; to a relative error of about
    1e-5. By the Lanczos method on the product of the transpose and the operator
    (ARPACK), in float32; neither of the two is ever written out.

    Args:
        kernel: float [height, width, inputs / groups, outputs], as Keras has
            it.
        feature_map: (height, width) of the input before padding.
        padding: ((top, bottom), (left, right)), rows and columns of zeros.
        strides: (vertical, horizontal).
        dilation: (vertical, horizontal).
        groups: int, groups of channels.

    Returns:
        float.
    """
    from scipy.sparse import linalg

    kernel = np.asarray(kernel, np.float64)
    scale = np.abs(kernel).max()
    if scale == 0:
        return 0.0
    # [height, width, inputs of a group, groups, outputs of a group]
    kernel = kernel.reshape(*kernel.shape[:3], groups, -1) / scale
    if kernel.shape[:2] == (1, 1):
        # The same matrix at every pixel, and zeros give zeros.
        matrices = kernel[0, 0].transpose(1, 0, 2)
        return float(scale * _singular_values(matrices).max())
    convolution = _convolution(kernel, feature_map, padding, strides, dilation)
    side = min(convolution.shape)
    if side <= _DENSE:
        is_tall = convolution.shape[1] == side
        tall = convolution if is_tall else convolution.H
        return float(
            scale * np.linalg.norm(tall @ np.eye(side, dtype=np.float32), 2)
        )
    (found,) = linalg.svds(
        convolution,
        k=1,
        tol=_TOLERANCE,
        v0=np.random.default_rng(0).normal(size=side).astype(np.float32),
        return_singular_vectors=False,
    )
    return float(scale * found)


def model_spectra(models, image_shape=None):
    """Computes the singular values of every layer of several models.

    Of dense layers and (grouped, dilated, depthwise) two-dimensional
    convolutions, also those that another layer or model holds; other layers
    with kernels are named in a warning. The feature map of a convolution is its
    output's size times its strides, which for "same" and symmetric padding is
    its input's. Its norm is that of the operator with its own zero padding,
    also if a `ZeroPadding2D` right before it pads. Equal operators are computed
    once.

    Layers match by position, in models of equal chains of layers: names are
    labels, those of the first such model. A name that occurs again begins with
    the name of the layer or module that it lies in.

    Args:
        models: list of functional `keras.Model`s, see `models.module_chain`.
        image_shape: shape of an image, for models that take any.

    Returns:
        list, for each model a dict from (module's name, layer's name), in order
        of depth, to `Spectrum`.

    Raises:
        UserError: if a model takes images of any size, so that feature maps
            have none, or has no such layer.
    """
    jobs, keys, names, left_out = {}, [], {}, {}
    for model in models:
        sizes = _FeatureMaps(model, image_shape)
        found = list(_operators(model, left_out))
        if not found:
            raise UserError(
                "A spectrum is of dense layers and two-dimensional "
                f"convolutions. Received: model '{model.name}' without any."
            )
        kinds = tuple(type(layer).__name__ for _, layer in found)
        names.setdefault(kinds, _labels([path for path, _ in found]))
        own = {}
        for name, (_, layer) in zip(names[kinds], found, strict=True):
            own[name], job = _job(layer, sizes)
            jobs.setdefault(own[name], job)
        keys.append(own)
    if left_out:
        logging.warning(
            "The spectrum leaves out layers that are neither dense nor a "
            "two-dimensional convolution: %s.",
            ", ".join(f"{name} ({kind})" for name, kind in left_out.items()),
        )
    spectra = _computed(jobs)
    return [{name: spectra[k] for name, k in own.items()} for own in keys]


@declare_analysis(
    figures=[
        Figure(
            "spectrum",
            lambda table: _spectrum_figure(table),
            "Singular values",
            "Singular values of layers in descending order: how training "
            "changed what each layer can pass on. Those of convolutions are of "
            "circular padding (Sedghi et al. 2019), not of the zeros that the "
            "network pads with.",
        ),
        Figure(
            "spectrum_layers",
            lambda layers: _layers_figure(layers),
            "Singular values by layer",
            "The largest singular value of each layer, as the network pads "
            "it with zeros and (dotted) for circular padding; for circular "
            "padding also its stable rank, and the share of singular values "
            "that holds 90% of their squares.",
            tables=("spectrum_layers",),
        ),
    ],
    cost=lambda options, models: 0,
)
def spectrum(models, num_values: schema.Count = 101):
    """Compares the singular values of all layers (paper, appendix).

    Every model is looked at, and what one trained on the target started from,
    where that is known: the RI of an RI-T, the P of a P-T.

    Args:
        models: `Models`; no data are needed, unless a model takes images of any
            size.
        num_values: int, singular values listed for each layer, evenly spaced
            in descending order from the largest to the smallest.

    Returns:
        `Table`, one row per listed value: kind, model, module, layer, fraction
        (place in descending order, 0 to 1), singular_value. Beside it
        spectrum_layers (one row per model and layer, see `Spectrum.summary`,
        and operator_norm, the largest singular value with the network's own
        zero padding). All others are those of convolutions padded circularly.

    Raises:
        UserError: see `model_spectra`.
    """
    starts = [models.start(m) for m in models.trained() if models.has_start(m)]
    members = [*starts, *models]
    networks = [models.model(m, statistics=False) for m in members]
    image_shape = None
    if any(None in network.input_shape[1:] for network in networks):
        image_shape = models.examples.image_shape
    spectra = model_spectra(networks, image_shape)
    fractions = np.linspace(0, 1, num_values)
    about = [
        (
            {
                "kind": m.kind,
                "model": m.name,
                "module": module,
                "layer": layer,
            },
            found,
        )
        for m, layers in zip(members, spectra, strict=True)
        for (module, layer), found in layers.items()
    ]
    table = pandas.DataFrame(
        row | {"fraction": fraction, "singular_value": value}
        for row, found in about
        for fraction, value in zip(fractions, found.at(fractions), strict=True)
    )
    layers = pandas.DataFrame(
        row | found.summary() | {"operator_norm": found.norm}
        for row, found in about
    )
    return Table(table, spectrum_layers=layers)


def _blocks(kernel, vertical, horizontal):
    """Returns one row of the operator's blocks, up to the strides' factor.

    Args:
        kernel: [a, b, i, g, o]: places, inputs, groups, outputs.
        vertical: [s, a], Fourier factors of the rows folded onto this one.
        horizontal: [t, v, b], of the columns folded onto each of v.

    Returns:
        complex128 [v, g, o, s t i].
    """
    rows = np.tensordot(vertical, kernel, 1)
    both = np.tensordot(horizontal, rows, ((2,), (1,)))  # [t, v, s, i, g, o]
    both = both.transpose(1, 4, 5, 2, 0, 3)
    return both.reshape(*both.shape[:3], -1)


def _convolution(kernel, feature_map, padding, strides, dilation):
    """Returns a zero-padded convolution as a SciPy `LinearOperator`.

    Args:
        kernel: float [a, b, i, g, o]: places, inputs, groups, outputs.
        feature_map: (height, width) before padding.
        padding: ((top, bottom), (left, right)).
        strides: (vertical, horizontal).
        dilation: (vertical, horizontal).

    Returns:
        `LinearOperator`, float32, from vectors [g height width i] to
        [g rows columns o].
    """
    from scipy.sparse import linalg

    rows, columns, inputs, groups, outputs = kernel.shape
    padded = [n + sum(p) for n, p in zip(feature_map, padding, strict=True)]
    (top, _), (left, _) = padding
    height, width = feature_map
    inside = np.s_[:, top : top + height, left : left + width]
    sizes = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, d, s in zip(
            padded, (rows, columns), dilation, strides, strict=True
        )
    ]

    def window(*place):
        """What one place of the kernel sees."""
        starts = [k * d for k, d in zip(place, dilation, strict=True)]
        rows, columns = (
            slice(start, start + (n - 1) * s + 1, s)
            for start, n, s in zip(starts, sizes, strides, strict=True)
        )
        return np.s_[:, rows, columns]

    windows = [[window(a, b) for b in range(columns)] for a in range(rows)]
    # One product for each row of the kernel: [a, g, b i, o].
    matrices = kernel.transpose(0, 3, 1, 2, 4).astype(np.float32)
    matrices = matrices.reshape(rows, groups, columns * inputs, outputs)

    def blank():
        return np.zeros((groups, *padded, inputs), np.float32)

    def forward(x):
        image, total = blank(), 0
        image[inside] = x.reshape(groups, *feature_map, inputs)
        for row, matrix in zip(windows, matrices, strict=True):
            seen = np.concatenate([image[place] for place in row], -1)
            total += seen.reshape(groups, -1, columns * inputs) @ matrix
        return total.ravel()

    def backward(y):
        image, y = blank(), y.reshape(groups, -1, outputs)
        for row, matrix in zip(windows, matrices, strict=True):
            parts = y @ matrix.transpose(0, 2, 1)
            parts = parts.reshape(groups, *sizes, columns, inputs)
            for b, place in enumerate(row):
                image[place] += parts[..., b, :]
        return image[inside].ravel()

    ends = (sizes, outputs), (feature_map, inputs)
    return linalg.LinearOperator(
        tuple(groups * math.prod(sides) * n for sides, n in ends),
        matvec=forward,
        rmatvec=backward,
        dtype=np.float32,
    )


def _singular_values(matrices):
    return np.linalg.svd(matrices, compute_uv=False)


def _spectrum(values, counts):
    """Returns the `Spectrum` of values and counts of the same shape."""
    order = np.argsort(-values, axis=None, kind="stable")
    return Spectrum(values.ravel()[order], counts.ravel()[order])


def _computed(jobs):
    """Returns {key: what its function returned}, computed side by side."""
    import threadpoolctl

    # Many small decompositions: one thread each is many times as fast as many
    # threads on each in turn.
    with (
        threadpoolctl.threadpool_limits(1, "blas"),
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        found = pool.map(lambda job: job(), jobs.values())
        found = tqdm(
            found,
            "spectra",
            len(jobs),
            unit="layer",
            disable=None,
            leave=None,
        )
        return dict(zip(jobs, found, strict=True))


def _operators(model, left_out):
    """Yields the layers that are linear operators, in order of depth.

    Args:
        model: functional `keras.Model`.
        left_out: {name: class's name}, to which other layers are added.

    Yields:
        The names of what holds the layer, from its module on, and its own, as a
        tuple; and the layer.
    """
    seen = set()
    for module in module_chain(model):
        for path, layer in _flattened(module.model, (module.name,), seen):
            if isinstance(layer, _OPERATORS):
                yield path, layer
            elif _has_kernel(layer):
                left_out[layer.name] = type(layer).__name__


def _flattened(layer, path, seen):
    """Yields what a layer holds, and what that holds, each layer once."""
    # Keras lists what is held in lists and dicts in this private method alone;
    # left to recurse, it turns their order round.
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        if id(inner) not in seen:
            seen.add(id(inner))
            inner_path = (*path, inner.name)
            yield inner_path, inner
            yield from _flattened(inner, inner_path, seen)


def _has_kernel(layer):
    """Whether a layer has a matrix of parameters that no layer in it has."""
    held = layer._flatten_layers(include_self=False)
    inner = {id(w) for one in held for w in one.weights}
    return any(
        own and len(weight.shape) > 1 and id(weight) not in inner
        for weight, own in zip(layer.weights, parameters(layer), strict=True)
    )


def _labels(paths):
    """Returns (module, layer) for each path, all layers different.

    A layer's label is the end of its path that no other path has.
    """
    counts = collections.Counter(
        path[-length:] for path in paths for length in range(1, len(path) + 1)
    )
    labels, numbers = [], collections.Counter()
    for path in paths:
        label = next(
            (
                path[-length:]
                for length in range(1, len(path) + 1)
                if counts[path[-length:]] == 1
            ),
            path,
        )
        numbers[label] += 1
        again = f"#{numbers[label]}" if numbers[label] > 1 else ""
        labels.append((path[0], "/".join(label) + again))
    return labels


class _FeatureMaps:
    """The sizes of what the convolutions of a model give.

    Args:
        model: functional `keras.Model`.
        image_shape: shape of an image, where the model takes any.
    """

    def __init__(self, model, image_shape):
        self._model = model
        self._image_shape = image_shape

    def of(self, layer):
        """Returns the (height, width) of the input, as far as strides tell.

        Raises:
            UserError: if the model takes images of any size.
        """
        sides = self._sides(layer, "output")
        return tuple(n * s for n, s in zip(sides, layer.strides, strict=True))

    def padded(self, layer):
        """Returns the input of a layer and the zeros it is padded with.

        Returns:
            (height, width) before padding, and ((top, bottom), (left, right)).

        Raises:
            UserError: if the model takes images of any size.
        """
        sides = self._sides(layer, "input")
        if layer.padding == "same":
            return sides, tuple(
                _same_padding(*about)
                for about in zip(
                    sides,
                    layer.kernel_size,
                    layer.strides,
                    layer.dilation_rate,
                    strict=True,
                )
            )
        padding = _padding_before(layer)
        sides = (n - sum(p) for n, p in zip(sides, padding, strict=True))
        return tuple(sides), padding

    def _sides(self, layer, end):
        """Returns the (height, width) of a layer's "input" or "output"."""
        try:
            shape = getattr(layer, end).shape
        # Of a layer that another one calls, the graph tells nothing.
        except (AttributeError, ValueError):
            shape = (None,) * 4
        if None in _sides(layer, shape):
            shape = self._traced.get((id(layer), end), shape)
        sides = _sides(layer, shape)
        if None in sides:
            raise UserError(
                "A convolution's singular values depend on the size of its "
                f"feature map. Received: layer '{layer.name}' with {end}s of "
                f"{tuple(shape)}; build the model for one image size."
            )
        return tuple(sides)

    @functools.cached_property
    def _traced(self):
        """{(id of a layer, "input" or "output"): shape, of its first call}."""
        shapes = {}
        layers = [
            layer
            for layer in self._model._flatten_layers()
            if isinstance(layer, _OPERATORS)
        ]

        def recorded(layer, call):
            def record(inputs, *args, **kwargs):
                output = call(inputs, *args, **kwargs)
                for end, x in (("input", inputs), ("output", output)):
                    shapes.setdefault((id(layer), end), tuple(x.shape))
                return output

            return record

        image_shape = self._image_shape or self._model.input_shape[1:]
        for layer in layers:
            # Not by `setattr`, which is Keras' own.
            vars(layer)["call"] = recorded(layer, layer.call)
        try:
            tf.function(
                lambda images: self._model(images, training=False)
            ).get_concrete_function(tf.TensorSpec([1, *image_shape]))
        finally:
            for layer in layers:
                del vars(layer)["call"]
        return shapes


def _same_padding(size, kernel_size, stride, dilation):
    """Returns the zeros before and after that "same" pads with."""
    outputs = -(-size // stride)
    extent = (kernel_size - 1) * dilation + 1
    total = max((outputs - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2


def _padding_before(layer):
    """Returns the padding of a `ZeroPadding2D` whose output a layer takes."""
    try:
        before = layer.input._keras_history.operation
    except (AttributeError, ValueError):
        before = None
    if isinstance(before, keras.layers.ZeroPadding2D):
        return before.padding
    return (0, 0), (0, 0)


def _sides(layer, shape):
    last = layer.data_format == "channels_last"
    return shape[1:3] if last else shape[2:]


def _job(layer, feature_maps):
    """Returns a key equal for equal operators and what computes `Spectrum`."""
    kernel = np.asarray(layer.kernel, np.float64)
    if isinstance(layer, keras.layers.Dense):
        job = functools.partial(matrix_spectrum, kernel)
    else:
        groups = getattr(layer, "groups", 1)
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            # [height, width, channels, multiplier]: every channel on its own.
            groups = kernel.shape[2]
            kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
        job = functools.partial(
            _padded_spectrum,
            kernel,
            feature_maps.of(layer),
            feature_maps.padded(layer),
            (layer.strides, layer.dilation_rate, groups),
        )
    digest = hashlib.sha256(kernel.tobytes()).digest()
    return (digest, kernel.shape, job.args[1:]), job


def _padded_spectrum(kernel, feature_map, padded, how):
    """Returns a convolution's `Spectrum`, with the norm of its own padding."""
    found = conv_spectrum(kernel, feature_map, *how)
    return dataclasses.replace(found, norm=conv_norm(kernel, *padded, *how))


def _spectrum_figure(table, most_panels=12, columns=4):
    layers = list(dict.fromkeys(table.layer))
    # Evenly spaced in depth, the first and the last among them.
    chosen = np.linspace(0, len(layers) - 1, min(len(layers), most_panels))
    chosen = [layers[int(i)] for i in np.round(chosen)]
    rows = -(-len(chosen) // columns)
    figure, axes = new_figure(
        2.8 * columns, 2.4 * rows + 0.6, rows, columns, squeeze=False
    )
    for panel in axes.flat[len(chosen) :]:
        panel.axis("off")
    for panel, layer in zip(axes.flat, chosen, strict=False):
        own = table[(table.layer == layer) & (table.singular_value > 0)]
        panel.set_title(layer)
        if len(own):
            plot_by(panel, own, "fraction", "singular_value", "kind")
            panel.get_legend().remove()
            panel.set_yscale("log")
            _label_decades(panel.yaxis, own.singular_value)
    some = f"; {len(chosen)} of {len(layers)} layers"
    figure.supxlabel(
        "place in descending order (fraction of all values"
        f"{some if len(chosen) < len(layers) else ''})"
    )
    figure.supylabel("singular value (circular padding)")
    handles = {
        label: handle
        for panel in axes.flat
        for handle, label in zip(
            *panel.get_legend_handles_labels(), strict=True
        )
    }
    figure.legend(
        handles.values(), handles, loc="outside upper center", ncols=4
    )
    return figure


def _label_decades(axis, values):
    from matplotlib import ticker

    if values.max() < 100 * values.min():
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(ticker.NullLocator())


def _layers_figure(layers):
    width = max(6.4, 0.2 * layers.layer.nunique())
    figure, axes = new_figure(width, 6.8, rows=3, sharex=True)
    for panel, (column, label) in zip(
        axes,
        {
            "operator_norm": "largest\nsingular value",
            "stable_rank": "stable rank\n(circular)",
            "fraction_90": "fraction that holds\n90% of squares\n(circular)",
        }.items(),
        strict=True,
    ):
        plot_by(panel, layers, "layer", column, "kind")
        panel.set(ylabel=label)
        panel.get_legend().remove()
    for kind, rows in layers.groupby("kind", sort=False):
        circular = rows.groupby("layer", sort=False).largest.mean()
        axes[0].plot(circular, ":", color=colour(kind))
    axes[0].plot([], ":", color="black", label="for circular padding")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=5)
    axes[0].set_title("Singular values by layer")
    axes[2].set_xlabel("layer")
    axes[2].tick_params("x", rotation=90)
    return figure
