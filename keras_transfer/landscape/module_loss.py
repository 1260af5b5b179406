"""The loss where one part of a network is perturbed and the rest is not.

What enters a part of the network does not depend on that part's weights. So it
is computed once for each batch, module by module, and every perturbation runs
only the part with perturbed weights and the modules after it. Those have the
end point's weights whatever the perturbation is, so that many perturbations go
through them as one large batch.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import time
from typing import Annotated, Literal

import gin
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_transfer import objectives
from keras_transfer.config import schema
from keras_transfer.devices import Pace, has_accelerator
from keras_transfer.devices import jit_compile as jit_argument
from keras_transfer.devices import strategy as default_strategy
from keras_transfer.errors import UserError
from keras_transfer.landscape import replicas
from keras_transfer.landscape.batch_norm import (
    batch_norms,
    stateless_call,
    statistics_of,
)
from keras_transfer.landscape.evaluations import Evaluations
from keras_transfer.landscape.loss_surface import (
    BatchNorm,
    description_of,
    evaluated,
    fingerprint,
    statistics_batches,
    weighted_sums,
)
from keras_transfer.landscape.replicas import DistributedBatches
from keras_transfer.landscape.weight_space import FlatWeights, check_weights
from keras_transfer.models import group, module_chain

LEVELS = ("block", "group")
Levels = Annotated[tuple[Literal["block", "group"], ...], schema.NotEmpty()]
# Evaluations are kept after each pass over the batches. A pass takes about so
# long, for at most this much is lost by an interrupt, but serves at least so
# many perturbations of each part, for it runs the unperturbed network once.
_SECONDS_PER_PASS = 60.0
_LEAST_PER_PASS = 16
# As many perturbations go through a network together as keep what lies between
# two modules within so many bytes: with fewer, calls cost more than what they
# compute in small networks; with more, memory does.
_BYTES_TOGETHER = 32 * 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Perturbations:
    """Perturbations of one part, described compactly.

    The stored weight vectors v_0, v_1, ... are the corners of a polyline. In
    each module of the part, perturbation p has the module's share of

        (1 - f) v_k + f v_(k + 1) + sigma[p] u,   u ~ N(0, I),

    where k + f = positions[p], k whole and 0 <= f < 1, and u is a function of
    seeds[p] and the module, the same as that of `Points`: perturbations of one
    seed share their noise up to its scale (common random numbers). Only
    trainable weights get noise.

    Attributes:
        positions: float [P], each in [0, K - 1] for K vectors.
        sigma: float [P], standard deviation of the noise; None for none.
        seeds: int [P]; None for zeros.
    """

    positions: np.ndarray
    sigma: np.ndarray | None = None
    seeds: np.ndarray | None = None

    def __len__(self):
        return len(self.positions)

    def expand(self, num_vectors):
        """Returns the arrays with nothing left out.

        Args:
            num_vectors: K.

        Returns:
            list: k int32, f float32, sigma float32 and seeds int32, each [P].

        Raises:
            UserError: if a shape does not fit, or a position is off the
                polyline.
        """
        # A stored vector, not a point 1e-16 beside it.
        positions = np.round(np.asarray(self.positions, np.float64), 9)
        zeros = np.zeros(len(positions))
        sigma = zeros if self.sigma is None else np.asarray(self.sigma)
        seeds = zeros if self.seeds is None else np.asarray(self.seeds)
        if not positions.ndim == 1 or {sigma.shape, seeds.shape} != {
            positions.shape
        }:
            raise UserError(
                "Perturbations need positions, sigma and seeds [P]. Received: "
                f"positions {positions.shape}, sigma {sigma.shape}, seeds "
                f"{seeds.shape}."
            )
        if np.any((positions < 0) | (positions > num_vectors - 1)):
            raise UserError(
                f"Positions on a polyline of {num_vectors} weight vectors lie "
                f"in [0, {num_vectors - 1}]. Received: {positions.min():g} to "
                f"{positions.max():g}."
            )
        first = np.floor(positions)
        return [
            first.astype(np.int32),
            (positions - first).astype(np.float32),
            sigma.astype(np.float32),
            seeds.astype(np.int32),
        ]


def parts(chain, level):
    """Returns the parts of a network that are perturbed one at a time.

    Args:
        chain: list of `models.Module`, as `models.module_chain` gives it.
        level: "block", each module by itself, or "group", consecutive modules
            of one `models.group` together (conv1, layer1, ..., fc).

    Returns:
        dict from name to `range` of positions in the chain, in their order.

    Raises:
        UserError: for an unknown level.
    """
    if level == "block":
        return {m.name: range(i, i + 1) for i, m in enumerate(chain)}
    if level != "group":
        raise UserError(
            f"A level is one of {', '.join(LEVELS)}. Received: {level!r}"
        )
    found, start = {}, 0
    for name, members in itertools.groupby(chain, lambda m: group(m.name)):
        stop = start + len(list(members))
        # A name that comes again further up is another part.
        name = chain[start].name if name in found else name
        found[name] = range(start, stop)
        start = stop
    return found


class ModuleLoss:
    """Loss and metrics of one model as functions of one part's weights.

    Example:
        modules = ModuleLoss(model, batches, {"loss": loss})
        part = parts(modules.chain, "block")["conv1"]
        rewound = Perturbations([0.0, 1.0])   # conv1 of w0, conv1 of w1
        modules.evaluate([w0, w1], 1, {part: rewound})[part]["loss"]

    Args:
        model: functional `keras.Model`, see `models.module_chain`. Its own
            weights do not matter and stay as they are.
        batches: see `LossSurface`.
        means: see `LossSurface`.
        whole: see `LossSurface`.
        statistics_batches: batches over which the statistics of batch
            normalization are estimated anew at each point, see `LossSurface`.
            None to use the stored ones, in the part perturbed those of the
            polyline, combined like weights.
        strategy: see `LossSurface`.
        memory_budget: GiB of batches kept on each device; if there are more,
            they are read again in each pass. Beside them lie the activations of
            one batch and what a call needs.
        jit_compile: bool, whether XLA compiles each module; None: yes on GPU
            and TPU, no on CPU, where it is slower.
        key: see `LossSurface`.

    Attributes:
        chain: list of `models.Module`.

    Raises:
        UserError: if the model is no chain, or the batches cannot be used.
    """

    def __init__(
        self,
        model,
        batches,
        means,
        whole=None,
        statistics_batches=None,
        strategy=None,
        memory_budget=4.0,
        jit_compile=None,
        key=None,
    ):
        self._model = model
        self._means = means
        self._whole = whole
        self._given_key = key
        self._strategy = strategy or default_strategy()
        self.chain = module_chain(model)
        self._modules = [
            _CompiledModule(model, module, m, self._strategy, jit_compile)
            for m, module in enumerate(self.chain)
        ]
        if not any(module.num_statistics for module in self._modules):
            statistics_batches = None
        self._all_batches = [batches, statistics_batches]
        self._batches, self._statistics_batches = (
            each and DistributedBatches(each, self._strategy, memory_budget)
            for each in self._all_batches
        )
        self._measure = tf.function(self._measure, autograph=False)
        self._take = tf.function(self._take, autograph=False)
        self._paces = collections.defaultdict(Pace)
        self._seconds_per_round = None
        self._sizes = {}

    def parameters(self, part, weights):
        """Returns a part's parameters, frozen ones too, as one vector.

        Args:
            part: `range` of positions in the chain.
            weights: list of arrays, as `model.get_weights()` gives them.

        Returns:
            float32 [n].
        """
        own = [m.flat for m in self._modules[part.start : part.stop]]
        return np.concatenate(
            [m.flatten(weights)[: m.num_parameters] for m in own]
        )

    def evaluate(
        self,
        vectors,
        end,
        perturbations,
        evaluations=None,
        description="modules",
    ):
        """Evaluates loss and metrics where one part is perturbed.

        Args:
            vectors: K lists of arrays, each as `model.get_weights()` gives
                them: the corners of the polyline.
            end: int, which of them all other modules are set to.
            perturbations: {part: `Perturbations`}, a part being a `range` of
                positions in the chain.
            evaluations: None, or an `Evaluations` in which points are looked
                up and kept, so that an interrupted evaluation continues.
            description: str, beside the progress bar.

        Returns:
            {part: {name: float64 [P]}}: means over all examples, then
            `whole`'s values.

        Raises:
            UserError: if vectors or perturbations do not fit.
        """
        check_weights(self._model, vectors)
        arrays = {
            part: p.expand(len(vectors)) for part, p in perturbations.items()
        }
        flats = [
            np.stack([m.flat.flatten(vector) for vector in vectors])
            for m in self._modules
        ]
        if evaluations is None:
            evaluations, key = Evaluations(), ""
        else:
            key = self._key
        names = _names(key, flats, end, arrays)
        self._add(evaluations, names, flats, end, arrays, description)
        return {
            part: {
                column: np.array([evaluations[name][column] for name in own])
                for column in evaluations[own[0]]
            }
            for part, own in names.items()
        }

    @functools.cached_property
    def _key(self):
        """What tells these data, quantities and this network from others."""
        key = self._given_key
        if key is None:
            key = [b and fingerprint(b) for b in self._all_batches]
        key = [key, self._statistics_batches is not None]
        return description_of(self._model, self._means, self._whole, key)

    # Which perturbations and which batches go into one call.

    def _add(self, evaluations, names, flats, end, arrays, description):
        """Evaluates what is not among the evaluations and adds it to them."""
        todo = {
            part: _todo(names[part], arrays[part], evaluations)
            for part in names
        }
        total = sum(map(len, todo.values())) * self._batches.num_batches
        if not total:
            return
        state = _State(self._modules, flats, end, self._strategy)
        if self._statistics_batches is not None:
            self._estimate_unperturbed(state)
        with tqdm(
            desc=description,
            total=total,
            unit="batch",
            disable=None,
            leave=None,
        ) as bar:
            for now in self._passes(todo):
                points = {
                    part: [array[rows] for array in arrays[part]]
                    for part, rows in now.items()
                }
                found = self._run(state, points, bar)
                for part, numbers in found.items():
                    done = [names[part][row] for row in now[part]]
                    evaluations.add(dict(zip(done, numbers, strict=True)))

    def _passes(self, todo):
        """Yields {part: rows}: what is evaluated in each pass over batches."""
        while any(map(len, todo.values())):
            size = _LEAST_PER_PASS
            # Workers must agree, which their clocks do not.
            if self._seconds_per_round and not replicas.has_other_workers(
                self._strategy
            ):
                fitting = _SECONDS_PER_PASS / self._seconds_per_round
                size = max(size, int(fitting))
            now = {
                part: rows[:size] for part, rows in todo.items() if len(rows)
            }
            began = time.perf_counter()
            yield now
            seconds = time.perf_counter() - began
            self._seconds_per_round = seconds / max(map(len, now.values()))
            todo = {part: rows[size:] for part, rows in todo.items()}

    def _run(self, state, points, bar):
        """Makes one pass over the batches.

        Args:
            state: `_State`.
            points: {part: arrays}, as `Perturbations.expand` returns them.
            bar: the progress bar, counting batches times perturbations.

        Returns:
            {part: list of {name: float}}.
        """
        statistics = self._estimate(state, points)
        found = {part: _Found(self._means) for part in points}
        targets = []
        for x, *rest in self._each_batch(self._batches):
            real = replicas.gather(self._strategy, rest[1], 0) > 0
            if self._whole is not None:
                targets.append(
                    replicas.gather(self._strategy, rest[0], 0)[real]
                )
            for part, entering in self._entering(state, points, x):
                for piece in self._pieces(part, len(points[part][0]), entering):
                    y = self._perturbed(
                        state, part, points[part], piece, entering, statistics
                    )
                    sums, outputs = self._measured(y, rest)
                    found[part].add(piece, sums, outputs, real)
                    bar.update(piece.stop - piece.start)
        return {
            part: own.numbers(self._whole, targets)
            for part, own in found.items()
        }

    def _each_batch(self, batches):
        """Yields each batch's tensors, of all replicas."""
        for count, chunk in batches:
            for j in range(count):
                yield self._take(tf.constant(j), *chunk)

    def _entering(self, state, points, x, training=False):
        """Yields (part, what enters it), from the first module on."""
        last = max(part.start for part in points)
        for m in range(last + 1):
            yield from ((part, x) for part in points if part.start == m)
            if m < last:
                mode = "training" if training else "stored"
                x, _ = self._modules[m].fixed(state, x, mode=mode)

    def _perturbed(self, state, part, points, piece, x, statistics):
        """Returns what leaves the network, [P b, C] on each replica."""
        count = piece.stop - piece.start
        for m in range(part.start, len(self.chain)):
            module = self._modules[m]
            own = statistics.get((part, m))
            options = {}
            if own is not None:
                options = {"mode": "given", "statistics": own[piece]}
            if m in part:
                shared = m == part.start
                x, _ = module.perturbed(
                    state, points, piece, x, shared, **options
                )
            else:
                x, _ = module.fixed(state, x, count, **options)
        return x

    def _measured(self, y, rest):
        """Returns sums float64 [P, 1 + Q] and outputs [P, b, C] or None."""
        sums, outputs = self._measure(y, *rest)
        sums = replicas.gather(self._strategy, sums, 0)
        sums = sums.sum(axis=0, dtype=np.float64)
        if self._whole is None:
            return sums, None
        return sums, replicas.gather(self._strategy, outputs, 1)

    def _pieces(self, part, num_points, x):
        """Yields slices: the perturbations that go through together."""
        pace, first = self._paces[part], 0
        most = max(1, _BYTES_TOGETHER // self._largest(part, x))
        while first < num_points:
            size = most
            # Workers must agree, which their clocks do not.
            if not replicas.has_other_workers(self._strategy):
                size = min(most, pace.count())
            size = min(size, num_points - first)
            if _needs_static_shapes(self._strategy):
                # A power of two, so that there are few shapes to compile.
                size = 2 ** (size.bit_length() - 1)
            piece = slice(first, first + size)
            began = time.perf_counter()
            yield piece
            pace.note(piece.stop - first, time.perf_counter() - began)
            first = piece.stop

    def _largest(self, part, x):
        """Returns the bytes of the largest thing between two modules."""
        local = self._strategy.experimental_local_results(x)[0]
        if (part, local.shape) not in self._sizes:
            shape = tuple(local.shape)
            largest = math.prod(shape)
            for module in self.chain[part.start :]:
                shape = module.model.compute_output_shape(shape)
                largest = max(largest, math.prod(shape))
            self._sizes[part, local.shape] = 4 * largest
        return self._sizes[part, local.shape]

    # The statistics of batch normalization, estimated anew.

    def _estimate_unperturbed(self, state):
        """Sets the statistics of the modules at the end point."""
        sums = collections.defaultdict(float)
        for x, _, weights in self._each_batch(self._statistics_batches):
            for m, module in enumerate(self._modules):
                x, found = module.fixed(state, x, mode="training")
                if module.num_statistics:
                    sums[m] += self._over_full(found, weights)
        for m, module in enumerate(self._modules):
            if module.num_statistics:
                state.set_statistics(m, _mean_statistics(sums[m])[0])

    def _estimate(self, state, points):
        """Returns {(part, m): statistics float32 [P, S]}, {} if stored."""
        if self._statistics_batches is None:
            return {}
        sums = {
            (part, m): np.zeros((len(own[0]), 1 + module.num_statistics))
            for part, own in points.items()
            for m, module in enumerate(self._modules)
            if m >= part.start and module.num_statistics
        }
        for x, _, weights in self._each_batch(self._statistics_batches):
            for part, entering in self._entering(state, points, x, True):
                for piece in self._pieces(part, len(points[part][0]), entering):
                    seen = self._statistics_after(
                        state, part, points[part], piece, entering
                    )
                    for m, found in seen:
                        sums[part, m][piece] += self._over_full(found, weights)
        return {key: _mean_statistics(total) for key, total in sums.items()}

    def _statistics_after(self, state, part, points, piece, x):
        """Yields (m, statistics [P, S]) of the part's and later modules."""
        count = piece.stop - piece.start
        for m in range(part.start, len(self.chain)):
            module = self._modules[m]
            if m in part:
                shared = m == part.start
                x, found = module.perturbed(
                    state, points, piece, x, shared, mode="training"
                )
            else:
                x, found = module.fixed(state, x, count, mode="training")
            if module.num_statistics:
                yield m, found

    def _over_full(self, statistics, weights):
        """Sums [P, 1 + S] over replicas whose batch is full: 1, statistics."""
        found = replicas.gather(
            self._strategy, [s[None] for s in self._local(statistics)], 0
        )
        real = replicas.gather(
            self._strategy, [w[None] for w in self._local(weights)], 0
        )
        full = np.all(real > 0, axis=1).astype(np.float64)
        ones = np.ones((*found.shape[:2], 1))
        found = np.concatenate([ones, found], axis=-1)
        return np.einsum("r,rps->ps", full, found)

    def _local(self, value):
        return list(self._strategy.experimental_local_results(value))

    # On each replica.

    def _take(self, j, *chunk):
        return self._strategy.run(
            lambda *tensors: tuple(tensor[j] for tensor in tensors), args=chunk
        )

    def _measure(self, y, targets, weights):
        """Returns sums [1, P, 1 + Q] and outputs [P, b, C], float32."""

        def on_replica(y, targets, weights):
            y = tf.cast(y, tf.float32)
            count = _length(y) // _length(weights)
            y = tf.reshape(y, [count, _length(weights), *y.shape[1:]])
            sums = tf.map_fn(
                lambda one: weighted_sums(self._means, targets, one, weights),
                y,
            )
            return sums[None], y

        return self._strategy.run(on_replica, args=(y, targets, weights))


class _State:
    """The polyline's corners and the end point, on the devices.

    Args:
        modules: list of `_CompiledModule`.
        flats: each module's share of the K vectors, float32 [K, D].
        end: int, which of the vectors is the end point.
        strategy: `tf.distribute.Strategy`.
    """

    def __init__(self, modules, flats, end, strategy):
        self._modules = modules
        self._strategy = strategy
        self.corners = [self._on_replicas(flat) for flat in flats]
        self.end = [self._on_replicas(flat[end]) for flat in flats]
        self._flat = [flat[end].copy() for flat in flats]

    def set_statistics(self, m, statistics):
        """Gives module m other statistics, float [S], at the end point."""
        flat = self._modules[m].with_statistics(self._flat[m], statistics)
        self.end[m] = self._on_replicas(flat)

    def _on_replicas(self, array):
        # Copied to the devices once, not for each call.
        return self._strategy.run(tf.identity, args=(tf.constant(array),))


class _CompiledModule:
    """One module, as functions of its weights and of what enters it.

    P perturbations go through together: what enters and leaves holds P batches
    of b examples, [P b, ...] on each replica. Batch normalization has one of
    three modes: "stored", its statistics are weights like others; "training",
    it looks at each batch of b, and what it sees is returned; "given", each
    perturbation has statistics of its own.

    Args:
        model: the whole `keras.Model`.
        module: `models.Module`.
        number: int, its position in the chain.
        strategy: `tf.distribute.Strategy`.
        jit_compile: see `ModuleLoss`.

    Attributes:
        flat: `FlatWeights`.
        num_statistics: int, S, the numbers that batch normalization estimates.
    """

    def __init__(self, model, module, number, strategy, jit_compile):
        self._model = module.model
        self._number = number
        self._strategy = strategy
        self.flat = FlatWeights(model, module.variables)
        # Frozen ones do not look at batches.
        self._batch_norms = [
            layer for layer in batch_norms(module.model) if layer.trainable
        ]
        self._estimated = statistics_of(self._batch_norms)
        self._places = self.flat.places(self._estimated)
        self.num_statistics = len(self._places)
        self._call = tf.function(
            self._call,
            jit_compile=jit_argument(jit_compile),
            autograph=False,
        )
        self._functions = {}

    def with_statistics(self, flat, statistics):
        """Returns a vector float32 [D] with other statistics [S]."""
        flat = np.array(flat)
        flat[self._places] = statistics
        return flat

    def fixed(self, state, x, count=1, mode="stored", statistics=None):
        """Applies the module with the end point's weights.

        Args:
            state: `_State`.
            x: what enters.
            count: int, P.
            mode: see the class.
            statistics: float32 [P, S] for "given".

        Returns:
            What leaves; and, in mode "training", statistics float32 [P, S].
        """
        end = state.end[self._number]
        if mode == "stored" or not self.num_statistics:
            return self._function(self._together)(end, x), None
        function = self._function(self._fixed, mode)
        return function(end, x, self._each_ones(statistics, count))

    def perturbed(
        self, state, points, piece, x, shared, mode="stored", statistics=None
    ):
        """Applies the module with the perturbations' weights.

        Args:
            state: `_State`.
            points: arrays, as `Perturbations.expand` returns them.
            piece: slice of them, P long.
            x: what enters.
            shared: bool, whether x is one batch [b, ...], the same for all.
            mode: see the class.
            statistics: float32 [P, S] for "given".

        Returns:
            As `fixed`.
        """
        k, f, sigma, seeds = (array[piece] for array in points)
        # Drawn once for the perturbations that share their noise, and not for
        # those without.
        drawn, found = np.unique(seeds[sigma > 0], return_inverse=True)
        which = np.zeros(len(seeds), np.int64)
        which[sigma > 0] = found
        if not self.num_statistics:
            mode = "stored"
        return self._function(self._perturbed, mode, shared)(
            state.corners[self._number],
            x,
            self._each_ones(statistics, len(k)),
            *map(tf.constant, (k, f, sigma, which, drawn)),
        )

    def _each_ones(self, statistics, count):
        """Returns each perturbation's statistics, float32 [P, S]."""
        if statistics is None:
            statistics = np.zeros((count, self.num_statistics))
        return tf.constant(statistics, tf.float32)

    def _function(self, method, *options):
        """Returns a method, compiled, with the last arguments given."""
        key = method.__name__, *options
        if key not in self._functions:
            function = functools.partial(method, *options)
            signature = None
            # Where that is possible, one trace for any P.
            if not _needs_static_shapes(self._strategy):
                entering = self._model.input
                signature = [
                    tf.TensorSpec([None] * (1 + (method == self._perturbed))),
                    tf.TensorSpec([None, *entering.shape[1:]], entering.dtype),
                    tf.TensorSpec([None, self.num_statistics]),
                    tf.TensorSpec([None], tf.int32),
                    tf.TensorSpec([None]),
                    tf.TensorSpec([None]),
                    tf.TensorSpec([None], tf.int64),
                    tf.TensorSpec([None], tf.int32),
                ]
                used = {"_together": 2, "_fixed": 3}
                signature = signature[: used.get(method.__name__, 8)]
            self._functions[key] = tf.function(
                function, signature, autograph=False
            )
        return self._functions[key]

    def _together(self, end, x):
        def on_replica(flat, x):
            return self._call(self.flat.split(flat), x, False)[0]

        return self._strategy.run(on_replica, args=(end, x))

    def _fixed(self, mode, end, x, statistics):
        def on_replica(flat, x):
            return self._loop(lambda p: flat, x, statistics, mode)

        return self._strategy.run(on_replica, args=(end, x))

    def _perturbed(
        self, mode, shared, corners, x, statistics, k, f, sigma, which, drawn
    ):
        def on_replica(corners, x):
            noise = tf.map_fn(
                lambda seed: self.flat.noise(seed, self._number),
                drawn,
                fn_output_signature=tf.TensorSpec([self.flat.size]),
            )

            def weights(p):
                flat = _between(corners, k[p], f[p])
                return tf.cond(
                    sigma[p] > 0,
                    lambda: flat + sigma[p] * noise[which[p]],
                    lambda: flat,
                )

            return self._loop(weights, x, statistics, mode, shared)

        return self._strategy.run(on_replica, args=(corners, x))

    def _loop(self, weights, x, statistics, mode, shared=False):
        """Applies the module P times, each time with weights of its own."""
        count, size = _length(statistics), _length(x)
        if not shared:
            size = size // count
            x = tf.reshape(x, [count, size, *_lengths(x)[1:]])

        def once(p):
            flat = weights(p)
            if mode == "given":
                flat = tf.tensor_scatter_nd_update(
                    flat, self._places[:, None], statistics[p]
                )
            return self._call(
                self.flat.split(flat), x if shared else x[p], mode == "training"
            )

        leaving = self._model.output
        known = size if isinstance(size, int) else None
        y, seen = tf.map_fn(
            once,
            tf.range(count),
            parallel_iterations=1,
            fn_output_signature=(
                tf.TensorSpec([known, *leaving.shape[1:]], leaving.dtype),
                tf.TensorSpec([self.num_statistics]),
            ),
        )
        return tf.reshape(y, [count * size, *_lengths(y)[2:]]), seen

    def _call(self, weights, x, training):
        """Returns what leaves, if such are the weights, and statistics [S]."""
        value = {
            id(v): tensor
            for v, tensor in zip(self.flat.variables, weights, strict=True)
        }
        y, new = stateless_call(
            self._model, value, x, training, self._batch_norms
        )
        seen = [tf.reshape(new[id(v)], [-1]) for v in self._estimated]
        return y, tf.concat([*seen, tf.zeros(0)], 0)


@gin.configurable
def examples_modules(
    model,
    examples,
    split: schema.Split = "train",
    batch_norm: BatchNorm = "reestimate",
    num_examples: schema.Count | None = None,
    with_auc: bool = True,
    batch_size: schema.Count = 256,
    strategy=None,
    memory_budget: schema.NotNegative = 4.0,
    jit_compile: bool | None = None,
):
    """Returns the `ModuleLoss` of loss, accuracy, error and AUC on examples.

    The columns are those of `examples_surface`, and error, the 0-1 error: 1 -
    accuracy, and 1 for an example whose logits are not finite.

    Args:
        model: `keras.Model` giving logits, see `ModuleLoss`.
        examples: `data.Examples` with as many classes as the model has outputs.
        split: "train" (without augmentation) or "test".
        batch_norm: see `examples_surface`.
        num_examples: int, examples drawn without replacement; None for all.
        with_auc: bool, whether to compute the AUC of multi-label data.
        batch_size: int, examples at a time on each device, at most.
        strategy: see `ModuleLoss`.
        memory_budget: see `ModuleLoss`.
        jit_compile: see `ModuleLoss`.

    Raises:
        UserError: if model and data do not fit.
    """
    strategy = strategy or default_strategy()
    drawn = examples
    if num_examples is not None:
        drawn = examples.draw(split, num_examples, seed=0)
    arguments = evaluated(model, drawn, split, batch_size, strategy)
    arguments["means"]["error"] = functools.partial(
        _error, examples.multi_label
    )
    if not with_auc:
        arguments["whole"] = None
    return ModuleLoss(
        model,
        **arguments,
        statistics_batches=statistics_batches(
            model, examples, batch_norm, batch_size
        ),
        strategy=strategy,
        memory_budget=memory_budget,
        jit_compile=jit_compile,
    )


class _Found:
    """What one pass finds about the perturbations of a part, piece by piece."""

    def __init__(self, means):
        self._means = means
        self._sums, self._outputs = {}, collections.defaultdict(list)

    def add(self, piece, sums, outputs, real):
        """Adds a batch: sums [P, 1 + Q], outputs [P, b, C], real bool [b]."""
        key = piece.start, piece.stop
        for p, row in zip(range(*key), sums, strict=True):
            self._sums[p] = self._sums.get(p, 0.0) + row
        if outputs is not None:
            for p, output in zip(range(*key), outputs, strict=True):
                self._outputs[p].append(output[real])

    def numbers(self, whole, targets):
        """Returns each perturbation's {name: float}."""
        rows = [self._sums[p] for p in sorted(self._sums)]
        numbers = [
            dict(zip(self._means, map(float, row[1:] / row[0]), strict=True))
            for row in rows
        ]
        if whole is None:
            return numbers
        targets = np.concatenate(targets)
        return [
            row | whole(targets, np.concatenate(self._outputs[p]))
            for p, row in enumerate(numbers)
        ]


def _names(key, flats, end, arrays):
    """Returns what identifies each perturbation, {part: list of str}.

    Args:
        key: str, what else the numbers depend on.
        flats: each module's share of the K vectors, float32 [K, D].
        end: int, which of them is the end point.
        arrays: {part: as `Perturbations.expand` returns them}.
    """
    digests = [[_digest(row) for row in flat] for flat in flats]
    names = {}
    for part, points in arrays.items():
        rest = [d[end] for m, d in enumerate(digests) if m not in part]
        names[part] = []
        for k, f, sigma, seed in zip(*points, strict=True):
            own = [digests[m][k] for m in part]
            # Without a way to go its direction does not matter, nor does the
            # seed without noise.
            own += [digests[m][k + 1] for m in part if f]
            noise = [sigma, seed] if sigma else []
            told = [key, list(part), rest, own, f, noise]
            names[part].append(_digest(json.dumps(told, default=float)))
    return names


def _todo(names, arrays, evaluations):
    """Returns the rows to evaluate, int [n], each name's first one only."""
    rows = {n: row for row, n in reversed(list(enumerate(names)))}
    rows = np.array([r for n, r in rows.items() if n not in evaluations], int)
    # One draw of noise serves the perturbations that follow each other.
    return rows[np.argsort(arrays[-1][rows], kind="stable")]


def _mean_statistics(sums):
    """Returns statistics float32 [P, S] from sums [P, 1 + S] of 1 and them."""
    return (sums[:, 1:] / sums[:, :1]).astype(np.float32)


def _needs_static_shapes(strategy):
    """Returns whether XLA, or a strategy, has to know how large tensors are."""
    return has_accelerator() or strategy.num_replicas_in_sync > 1


def _lengths(tensor):
    """Returns a tensor's sides, whole numbers where they are known."""
    dynamic = tf.shape(tensor)
    return [
        dynamic[i] if side is None else side
        for i, side in enumerate(tensor.shape)
    ]


def _length(tensor):
    return _lengths(tensor)[0]


def _between(corners, k, f):
    """Returns the point at position k + f on a polyline [K, D]."""
    second = tf.minimum(k + 1, tf.shape(corners)[0] - 1)
    # Exact at the corners.
    return (1 - f) * corners[k] + f * corners[second]


def _error(multi_label, targets, logits):
    right = objectives.example_accuracy(targets, logits, multi_label)
    # Logits that are not finite are no right answer.
    return tf.where(tf.math.is_nan(right), 1.0, 1 - right)


def _digest(content):
    if isinstance(content, str):
        content = content.encode()
    else:
        content = np.ascontiguousarray(content)
    return hashlib.blake2b(content, digest_size=16).hexdigest()
