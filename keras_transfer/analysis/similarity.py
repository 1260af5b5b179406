"""Feature similarity: CKA between modules of two models (paper section 3.2).

Centred kernel alignment (Kornblith et al. 2019) of features X [n, p], Y [n, q]
with Gram matrices K, L [n, n] is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).

Exactly, HSIC(K, L) is the inner product of the centred Gram matrices, for the
linear kernel ||Y'X||_F^2. With few examples of many features this is biased
towards 1. The minibatch estimator (Nguyen, Raghu and Kornblith 2021) averages
the unbiased HSIC_1 of Song et al. (2012) over minibatches before it divides,
and keeps nothing but one number a pair of modules.
"""

import dataclasses
import functools
import math

import numpy as np
import pandas
import tensorflow as tf
from tqdm import tqdm

from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    Value,
    declare_analysis,
)
from keras_transfer.analysis.drawing import new_figure, plot_by
from keras_transfer.analysis.statistics import excess_of_pretrained_pairs
from keras_transfer.config import schema
from keras_transfer.devices import strategy as default_strategy
from keras_transfer.errors import UserError
from keras_transfer.landscape.loss_surface import check_inputs
from keras_transfer.landscape.replicas import on_replicas
from keras_transfer.models import module_chain

KERNELS = ("linear", "rbf")
# What is nearer to 1 is 1 up to rounding, and its arctanh would be anything.
_LARGEST_CKA = 1 - 1e-6
# HSIC_1 divides by n (n - 3).
_SMALLEST_BATCH = 4
# Columns in one product: beyond some 500,000 TensorFlow's takes several times
# as long for each, on CPU.
_COLUMNS = 2**18


def linear_cka(x, y):
    """Returns the linear CKA of two sets of features of the same examples.

    CKA = ||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F), columns centred, through Gram
    matrices where there are more features than examples. 1 for features equal
    up to rotation and isotropic scaling. Source: Kornblith et al. 2019, sec. 3.

    Example:
        linear_cka(features_of_one_model, features_of_another)

    Args:
        x: array [n, ...], flattened to [n, p].
        y: array [n, ...], flattened to [n, q].

    Returns:
        float in [0, 1]; NaN if all examples' features are alike.

    Raises:
        UserError: if the numbers of examples differ.
    """
    return _cka(x, y, _linear_kernel)


def rbf_cka(x, y, bandwidth=1.0):
    """Returns the CKA with kernel exp(-||xi - xj||^2 / (2 sigma^2)).

    Source: Kornblith et al. 2019, section 3.

    Args:
        x: array [n, ...], flattened to [n, p].
        y: array [n, ...], flattened to [n, q].
        bandwidth: float, sigma as a multiple of the median distance between
            two examples.

    Returns:
        float in [0, 1]; NaN if all examples' features are alike.

    Raises:
        UserError: if the numbers of examples differ.
    """
    return _cka(x, y, functools.partial(_rbf_kernel, bandwidth=bandwidth))


@dataclasses.dataclass(frozen=True)
class FeatureSimilarity:
    """CKA between all modules of several models.

    Attributes:
        modules: list of (index of the model, module's name), length R.
        cka: float64 array [R, R].
        method: "exact" or "minibatch".
        num_examples: int, the examples that entered.
    """

    modules: list
    cka: np.ndarray
    method: str
    num_examples: int


def feature_similarity(
    models,
    batches,
    kernel="linear",
    bandwidth=1.0,
    memory_budget=4.0,
    strategy=None,
    names=None,
):
    """Computes CKA between all modules of several models.

    One forward pass per model yields the features of all its modules. If the
    features of all models fit the memory budget they are kept and CKA is
    exact; otherwise it is estimated over the given minibatches, which must
    then be random draws of one size. A module's features are its outputs,
    flattened; the head's are the logits.

    Args:
        models: list of functional `keras.Model`s, see `models.module_chain`.
        batches: finite `tf.data.Dataset` of images [b, ...] or of tuples that
            begin with them. Under "minibatch", batches of fewer than four are
            not used.
        kernel: "linear" or "rbf".
        bandwidth: float, see `rbf_cka`; under "minibatch" the median distance
            is each minibatch's own.
        memory_budget: float, GiB.
        strategy: `tf.distribute.Strategy` to whose replicas batches are dealt
            out; None for all GPUs of this machine, or else its CPU. For a TPU,
            the models must have been made in its scope.
        names: list of str, what to call the models; None for their own names.

    Returns:
        A `FeatureSimilarity`.

    Raises:
        UserError: for an unknown kernel, no batches, a model without modules,
            or features that are not finite.
    """
    if kernel not in KERNELS or not bandwidth > 0:
        raise UserError(
            "The kernel is 'linear', or 'rbf' with a bandwidth above 0. "
            f"Received: kernel={kernel!r}, bandwidth={bandwidth!r}."
        )
    chains = [module_chain(model) for model in models]
    modules = [(i, m.name) for i, chain in enumerate(chains) for m in chain]
    batches = batches.map(lambda *element: element[0])
    most, image = _most_examples(batches)
    extractors = [_Extractor(chain, image) for chain in chains]
    widths = [width for e in extractors for width in e.widths]
    if kernel == "rbf":
        widths = [max(width, most) for width in widths]
    if 4 * most * sum(widths) <= memory_budget * 2**30:
        method, compute = "exact", _exact_hsic
    else:
        method, compute = "minibatch", _minibatch_hsic
    hsic, num_examples = compute(
        extractors, batches, kernel, bandwidth, strategy or default_strategy()
    )
    for (i, module), own in zip(modules, np.diag(hsic), strict=True):
        # Also of constant features it is a number.
        if not np.isfinite(own):
            name = names[i] if names else models[i].name
            raise UserError(
                "CKA compares finite features. Received: NaN or infinity in "
                f"module {module} of model '{name}'; take an epoch before "
                "training diverged, or leave the model out."
            )
    return FeatureSimilarity(modules, _normalized(hsic), method, num_examples)


def shared_features(table, other):
    """Compares pairs of P-Ts with others at each module, for claim C4.

    CKA is bounded by 1, near which the features of all lower modules crowd; its
    arctanh, as of a correlation (Fisher 1915), is not.

    Args:
        table: what `similarity` returns.
        other: "P-T/RI-T" or "RI-T/RI-T".

    Returns:
        `pandas.Series` by module, in order of depth: mean arctanh CKA of two
        P-Ts minus that of the others. Above 0, P-Ts share more; NaN where
        features are constant.

    Raises:
        UserError: if a kind of pair is missing.
    """
    same = table[table.first_module == table.second_module]
    same = same.assign(scaled=_arctanh(same.cka))
    return same.groupby("first_module", sort=False)[["pair", "scaled"]].apply(
        lambda rows: excess_of_pretrained_pairs(rows.pair, rows.scaled, other)
    )


def least_shared(table, other):
    """Returns a statistic of claim C4, "P-Ts share features".

    Args:
        table: what `similarity` returns.
        other: "P-T/RI-T" or "RI-T/RI-T".

    Returns:
        `Value`: the least of `shared_features` over all modules but the first,
        whose features hardly differ between any models.

    Raises:
        UserError: if a kind of pair is missing, or there is no such module.
    """
    above = shared_features(table, other).iloc[1:]
    known = above.dropna()
    if not len(known):
        raise UserError(
            "Features are compared above the first module. Received: models of "
            "one module, or of constant features; name others."
        )
    left_out = ", ".join(above.index[above.isna()])
    return Value(
        float(known.min()),
        left_out and f"Without {left_out}, where features are constant.",
    )


def _arctanh(cka):
    return np.arctanh(np.clip(cka, -_LARGEST_CKA, _LARGEST_CKA))


def _statistic(other, above_first):
    """Declares that P-T/P-T shares more than another kind of pair."""
    where = "the first module"
    if above_first:
        where = "the module, of all but the first, where this is least"
    return Statistic(
        "C4",
        "P-Ts share features.",
        f"arctanh CKA, P-T/P-T minus {other}, at {where}",
        ">",
        0.0,
        lambda table: (
            least_shared(table, other)
            if above_first
            else shared_features(table, other).iloc[0]
        ),
        decides=above_first,
    )


@declare_analysis(
    figures=[
        Figure(
            "similarity",
            lambda table: _diagonal_figure(table),
            "Feature similarity by module",
            "CKA of the same module in two models, from the input to the "
            "logits: 1 for features alike up to rotation and scale. The scale "
            "is that of its arctanh, on which differences near 1 show.",
        ),
        Figure(
            "similarity_matrix",
            lambda table: _matrix_figure(table),
            "Feature similarity of all modules",
            "CKA of each module of one model with each of another, a panel for "
            "each kind of pair.",
        ),
    ],
    statistics=[
        _statistic(other, above_first)
        for above_first in (True, False)
        for other in ("P-T/RI-T", "RI-T/RI-T")
    ],
)
def similarity(
    models,
    split: schema.Split = "test",
    num_examples: schema.Count = 2048,
    seed: schema.Seed = 0,
    batch_size: schema.Count = 32,
    kernel: str = "linear",
    bandwidth: schema.Positive = 1.0,
    memory_budget: schema.NotNegative = 4.0,
):
    """Compares features of every pair of models (paper section 3.2).

    The features of the last module are the logits. In models with as many
    modules, these match by position and have the names of the first such model.
    Models of different architectures may be compared.

    Args:
        models: `Models`, two or more.
        split: "test" or "train".
        num_examples: int, examples drawn without replacement, at most.
        seed: int, of that draw.
        batch_size: int; also the minibatch of the estimator, whose variance
            falls, and whose cost an example rises, with it.
        kernel: "linear" or "rbf".
        bandwidth: float, see `rbf_cka`.
        memory_budget: float, GiB of features up to which CKA is exact.

    Returns:
        `pandas.DataFrame`, one row per pair of models and pair of modules:
        pair, first, second, first_module, second_module, cka, method
        ("exact" or "minibatch"), examples.

    Raises:
        UserError: if there is no pair of models, or one does not fit the data.
    """
    if len(models) < 2:
        raise UserError(
            "Feature similarity compares models: name at least two in "
            f"Models.models. Received: {len(models)}."
        )
    for member in models:
        check_inputs(models.model(member), models.examples, member.name)
    found = feature_similarity(
        [models.model(member) for member in models],
        _draw(models.examples.split(split), num_examples, seed, batch_size),
        kernel,
        bandwidth,
        memory_budget,
        models.strategy,
        [member.name for member in models],
    )
    labels = dict(zip(models, _labels(found.modules), strict=True))
    return pandas.DataFrame(
        {
            "pair": pair,
            "first": first.name,
            "second": second.name,
            "first_module": first_module,
            "second_module": second_module,
            "cka": found.cka[i, j],
            "method": found.method,
            "examples": found.num_examples,
        }
        for pair, first, second in models.pairs()
        for i, first_module in labels[first]
        for j, second_module in labels[second]
    )


def _cka(x, y, factor):
    x, y = np.asarray(x), np.asarray(y)
    if not x.ndim or not y.ndim or len(x) != len(y):
        raise UserError(
            "CKA compares two sets of features of the same examples. Received: "
            f"arrays of shape {x.shape} and {y.shape}; give [n, ...] twice."
        )
    return float(_normalized(_all_pairs([factor(x), factor(y)]))[0, 1])


def _normalized(hsic):
    """Returns HSIC [R, R] divided by the roots of its diagonal."""
    # The unbiased estimate of something near 0 can be negative.
    scale = np.sqrt(np.maximum(np.diag(hsic), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return hsic / np.outer(scale, scale)


# Exact: each module's centred kernel matrix K [n, n], or, where that is
# smaller, centred features X [n, p] with K = X X'. In float32; sums over more
# than one row or column are taken in float64.


@dataclasses.dataclass(frozen=True)
class _Kernel:
    array: np.ndarray
    is_factor: bool


def _linear_kernel(x):
    x = _centred(x)
    if x.shape[1] <= len(x):
        return _Kernel(x, is_factor=True)
    return _Kernel(x @ x.T, is_factor=False)


def _rbf_kernel(x, bandwidth):
    x = _centred(x)
    gram = (x @ x.T).astype(np.float64)
    norms = np.diag(gram)
    squared = np.maximum(norms[:, None] + norms - 2 * gram, 0)
    median = np.median(np.sqrt(squared[np.triu_indices(len(x), k=1)]))
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = squared / (2 * (bandwidth * median) ** 2)
    # Where most are alike, also the median is 0. What is subtracted from all,
    # centring takes out; but of constant features it leaves 0 exactly.
    kernel = np.expm1(-np.where(squared == 0, 0, exponent))
    rows = kernel.mean(axis=0)
    kernel = kernel - rows - rows[:, None] + rows.mean()
    return _Kernel(kernel.astype(np.float32), is_factor=False)


def _centred(x):
    x = np.asarray(x).reshape(len(x), -1)
    x = x - x.mean(axis=0, dtype=np.float64)
    # CKA does not depend on the scale; fourth powers in float32 do.
    return (x / (np.abs(x).max() or 1)).astype(np.float32)


def _all_pairs(kernels):
    """Returns HSIC float64 [R, R], up to a constant factor."""
    hsic = np.empty((len(kernels), len(kernels)))
    for i, a in enumerate(kernels):
        for j, b in enumerate(kernels[: i + 1]):
            hsic[i, j] = hsic[j, i] = _inner_product(a, b)
    return hsic


def _inner_product(a, b):
    """Returns the inner product of two kernel matrices."""
    if a.is_factor and b.is_factor:
        return np.sum(np.square(a.array.T @ b.array), dtype=np.float64)
    if b.is_factor:
        a, b = b, a
    # <X X', L> = <X, L X>
    other = b.array @ a.array if a.is_factor else b.array
    return np.einsum("ij,ij->i", a.array, other).sum(dtype=np.float64)


def _exact_hsic(extractors, batches, kernel, bandwidth, strategy):
    """Returns HSIC float64 [R, R] and the number of examples."""
    to_kernel = _linear_kernel
    if kernel == "rbf":
        to_kernel = functools.partial(_rbf_kernel, bandwidth=bandwidth)
    functions = [e.lister(tf.identity) for e in extractors]
    batches = tqdm(batches, "features", unit="batch", disable=None, leave=None)
    features = [
        [np.asarray(f, np.float32) for f in row]
        for row in on_replicas(strategy, functions, batches)
    ]
    features = list(map(list, zip(*features, strict=True)))
    kernels = []
    while features:
        # Frees one module's features when their kernel is made.
        kernels.append(to_kernel(np.concatenate(features.pop(0))))
    return _all_pairs(kernels), len(kernels[0].array)


# Minibatches. HSIC_1 (Song et al. 2012) is the inner product of two
# "U-centred" kernel matrices (Szekely and Rizzo 2014) over n (n - 3).


def _minibatch_hsic(extractors, batches, kernel, bandwidth, strategy):
    """Returns the mean HSIC_1 float64 [R, R] and the number of examples."""

    def u_centred_kernel(x):
        return _u_centred(_batch_kernel(x, kernel, bandwidth))

    functions = [e.lister(u_centred_kernel) for e in extractors]
    batches = tqdm(batches, "features", unit="batch", disable=None, leave=None)
    batches = (images for images in batches if len(images) >= _SMALLEST_BATCH)
    total, num_examples = 0.0, 0
    for kernels in on_replicas(strategy, functions, batches):
        stack = np.array(kernels)
        n = stack.shape[1]
        stack = stack.reshape(len(stack), -1)
        total = total + n * (stack @ stack.T) / (n * (n - 3))
        num_examples += n
    if not num_examples:
        raise UserError(
            "The unbiased estimate of CKA takes minibatches of at least "
            f"{_SMALLEST_BATCH}. Received: none; make batch_size larger, or "
            "memory_budget, so that CKA is exact."
        )
    return total / num_examples, num_examples


def _batch_kernel(x, kernel, bandwidth):
    """Returns the kernel matrix float64 [n, n] of features [n, p]."""
    gram = 0.0
    for i in range(0, x.shape[1], _COLUMNS):
        part = tf.cast(x[:, i : i + _COLUMNS], tf.float32)
        # Does not change HSIC_1 but, where features have a large mean, its
        # rounding error. Any of the examples will do; their mean takes longer.
        part -= part[:1]
        # For few rows several times as fast as `tf.matmul` on CPU.
        gram += tf.cast(tf.einsum("ip,jp->ij", part, part), tf.float64)
    if kernel == "linear":
        return gram
    norms = tf.linalg.diag_part(gram)
    squared = tf.maximum(norms[:, None] + norms - 2 * gram, 0)
    n = tf.shape(x)[0]
    # Sorted, the n zeros of the diagonal come first.
    distances = tf.sqrt(tf.sort(tf.reshape(squared, [-1]))[n:])
    last = tf.size(distances) - 1
    median = (distances[last // 2] + distances[(last + 1) // 2]) / 2
    exponent = squared / (2 * (bandwidth * median) ** 2)
    # As in `_rbf_kernel`.
    return tf.math.expm1(
        -tf.where(squared == 0, tf.zeros_like(squared), exponent)
    )


def _u_centred(gram):
    n = tf.cast(tf.shape(gram)[0], gram.dtype)
    # Not a constant: graphs multiply by a constant's reciprocal, which rounds.
    n = tf.compat.v1.placeholder_with_default(n, [])
    gram = tf.linalg.set_diag(gram, tf.zeros_like(gram[0]))
    rows = tf.reduce_sum(gram, axis=0) / (n - 2)
    total = tf.reduce_sum(gram) / ((n - 1) * (n - 2))
    gram = gram - rows - rows[:, None] + total
    return tf.linalg.set_diag(gram, tf.zeros_like(gram[0]))


class _Extractor:
    """The modules' outputs, all from one forward pass.

    Args:
        chain: list of `Module`.
        image: `tf.TensorSpec` of one image.
    """

    def __init__(self, chain, image):
        self._chain = chain
        # The number of features of each module.
        shape, self.widths = (1, *image.shape), []
        for module in chain:
            shape = module.model.compute_output_shape(shape)
            self.widths.append(math.prod(shape))

    def lister(self, function):
        """Returns a function of images that lists function(features [n, p])."""

        def outputs(images):
            x, found = images, []
            for module, width in zip(self._chain, self.widths, strict=True):
                x = module.model(x, training=False)
                found.append(function(tf.reshape(x, [-1, width])))
            return found

        return outputs


def _most_examples(batches):
    """Returns how many examples there are at most, and the spec of one."""
    steps = batches.cardinality().numpy()
    if steps == tf.data.UNKNOWN_CARDINALITY:
        steps = sum(1 for _ in batches)
    if steps < 1:
        raise UserError(
            "CKA takes a finite dataset of one batch or more. Received: "
            f"{'none' if steps == 0 else 'an infinite one, see take(n)'}."
        )
    first = next(iter(batches))
    return int(steps) * len(first), tf.TensorSpec(first.shape[1:], first.dtype)


def _draw(split, num_examples, seed, batch_size):
    """Returns batches of images of a random draw, without padding."""
    order = np.random.RandomState(seed).permutation(len(split))
    return split.batches(batch_size, order=order[:num_examples]).map(
        lambda images, _, weights: tf.boolean_mask(images, weights > 0)
    )


def _labels(modules):
    """Returns [(row, label)] of the modules of each model, in order.

    Args:
        modules: `FeatureSimilarity.modules`.
    """
    rows = {}
    for row, (model, name) in enumerate(modules):
        rows.setdefault(model, []).append((row, name))
    names = {}
    for own in rows.values():
        names.setdefault(len(own), [name for _, name in own])
    return [
        [
            (row, name)
            for (row, _), name in zip(own, names[len(own)], strict=True)
        ]
        for own in rows.values()
    ]


def _diagonal_figure(table):
    same = table[table.first_module == table.second_module]
    if not len(same):
        return None
    figure, axes = new_figure()
    same = same.assign(scaled=_arctanh(same.cka))
    plot_by(axes, same, "first_module", "scaled", "pair")
    ticks = np.array([0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999, 1])
    low, high = axes.get_ylim()
    shown = (_arctanh(ticks) >= low) & (_arctanh(ticks) <= high)
    axes.set_yticks(_arctanh(ticks[shown]), [f"{t:g}" for t in ticks[shown]])
    axes.set(
        xlabel="module",
        ylabel=f"CKA ({table.method.iloc[0]}), scaled by arctanh",
        title=f"Feature similarity, {table.examples.iloc[0]:,} images",
    )
    return figure


def _matrix_figure(table):
    kinds = list(dict.fromkeys(table.pair))
    figure, axes = new_figure(
        3.4 * len(kinds) + 0.8, 3.8, columns=len(kinds), squeeze=False
    )
    for panel, kind in zip(axes[0], kinds, strict=True):
        mean = table[table.pair == kind].pivot_table(
            "cka", "first_module", "second_module", sort=False
        )
        image = panel.imshow(mean, vmin=0, vmax=1, origin="lower")
        first, second = kind.split("/")
        panel.set(
            title=kind,
            xlabel=f"module of {second}",
            ylabel=f"module of {first}",
        )
        panel.set_xticks(range(mean.shape[1]), mean.columns, rotation=90)
        panel.set_yticks(range(mean.shape[0]), mean.index)
        panel.tick_params(labelsize="x-small" if len(mean) > 10 else "medium")
    figure.colorbar(
        image, ax=axes[0], label=f"mean CKA ({table.method.iloc[0]})"
    )
    return figure
