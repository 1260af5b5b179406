"""The loss where one part of a network is perturbed and the rest is not.

What enters a part of the network does not depend on that part's weights. So it
is computed once for each batch, module by module, and every perturbation of the
part runs only the suffix: the part with perturbed weights, and the modules
after it with those of the end point.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import time
from typing import Annotated, Literal

import gin
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_transfer import objectives
from keras_transfer.config import schema
from keras_transfer.devices import Pace
from keras_transfer.devices import jit_compile as jit_argument
from keras_transfer.devices import strategy as default_strategy
from keras_transfer.errors import UserError
from keras_transfer.landscape import replicas
from keras_transfer.landscape.evaluations import Results
from keras_transfer.landscape.loss_surface import (
    dataset_examples,
    weighted_sums,
)
from keras_transfer.landscape.replicas import SpreadBatches
from keras_transfer.landscape.weight_space import FlatModule, check_weights
from keras_transfer.models import group, module_chain

LEVELS = ("block", "group")
Levels = Annotated[tuple[Literal["block", "group"], ...], schema.NotEmpty()]
# The end points of training, and the name of each one's epoch.
END_POINTS = {"final": "last", "optimal": "best"}
# Results are kept after each pass over the batches. A pass takes about so long,
# for at most this much is lost by an interrupt, but serves at least so many
# perturbations of each part, for it runs the unperturbed network once.
_SECONDS_PER_PASS = 60.0
_LEAST_PER_PASS = 16


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


class Suffixes:
    """Loss and metrics of one model as functions of one part's weights.

    Example:
        suffixes = Suffixes(model, batches, {"loss": loss})
        part = parts(suffixes.chain, "block")["conv1"]
        rewound = Perturbations([0.0, 1.0])   # conv1 of w0, conv1 of w1
        suffixes.evaluate([w0, w1], 1, {part: rewound})[part]["loss"]

    Batch normalization uses stored statistics, in the part perturbed those of
    the polyline, combined like weights.

    Args:
        model: functional `keras.Model`, see `models.module_chain`. Its own
            weights do not matter and stay as they are.
        batches: see `LossSurface`.
        means: see `LossSurface`.
        whole: see `LossSurface`.
        strategy: see `LossSurface`.
        memory_budget: GiB of batches kept on each device; if there are more,
            they are read again in each pass. Beside them lie the activations of
            one batch and what a call needs.
        jit_compile: bool, whether XLA compiles each module; None: yes on GPU
            and TPU, no on CPU, where it is slower.
        key: str that names the data, for the `results` of `evaluate`.

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
        strategy=None,
        memory_budget=4.0,
        jit_compile=None,
        key="",
    ):
        self._model = model
        self._means = means
        self._whole = whole
        self._key = json.dumps([key, *means, whole is not None])
        self._strategy = strategy or default_strategy()
        self.chain = module_chain(model)
        self._modules = [FlatModule(model, m.variables) for m in self.chain]
        # A function for each module, and not for each suffix, keeps tracing
        # and compiling linear in depth.
        self._call_module = [
            tf.function(
                functools.partial(self._call, m),
                jit_compile=jit_argument(jit_compile),
            )
            for m in range(len(self.chain))
        ]
        self._batches = SpreadBatches(batches, self._strategy, memory_budget)
        self._batch = tf.function(
            self._batch,
            input_signature=[
                tf.TensorSpec([], tf.int32),
                *self._batches.chunk_spec,
            ],
        )
        # By module and by part, compiled when first needed.
        self._advances, self._measures = {}, {}
        self._paces = collections.defaultdict(Pace)
        self._seconds_per_round = None

    def trained(self, part, weights):
        """Returns a part's trainable weights as one vector.

        Args:
            part: `range` of positions in the chain.
            weights: list of arrays, as `model.get_weights()` gives them.

        Returns:
            float32 [n].
        """
        modules = self._modules[part.start : part.stop]
        return np.concatenate(
            [m.flatten(weights)[: m.num_trained] for m in modules]
        )

    def evaluate(
        self, vectors, end, perturbations, results=None, description="modules"
    ):
        """Evaluates loss and metrics where one part is perturbed.

        Args:
            vectors: K lists of arrays, each as `model.get_weights()` gives
                them: the corners of the polyline.
            end: int, which of them all other modules are set to.
            perturbations: {part: `Perturbations`}, a part being a `range` of
                positions in the chain.
            results: None, or a `Results` in which evaluated points are looked
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
        flats, digests = [], []
        for m in self._modules:
            flat = np.stack([m.flatten(vector) for vector in vectors])
            digests.append([_digest(row) for row in flat])
            flats.append(tf.constant(flat))
        names = self._names(digests, end, arrays)
        results = Results() if results is None else results
        unperturbed = [
            m.split(flat[end])
            for m, flat in zip(self._modules, flats, strict=True)
        ]
        self._add(results, names, flats, unperturbed, arrays, description)
        return {
            part: {
                column: np.array([results[name][column] for name in own])
                for column in results[own[0]]
            }
            for part, own in names.items()
        }

    # In Python: which perturbations and which batches go into one call.

    def _add(self, results, names, flats, unperturbed, arrays, description):
        """Evaluates what is not among the results and adds it to them."""
        todo = {
            part: _todo(names[part], arrays[part], results) for part in names
        }
        total = sum(map(len, todo.values())) * self._batches.num_batches
        with tqdm(
            desc=description,
            total=total,
            unit="batch",
            leave=None,
            disable=not total,
        ) as bar:
            for now in self._passes(todo):
                points = {
                    part: [array[rows] for array in arrays[part]]
                    for part, rows in now.items()
                }
                found = self._run(flats, unperturbed, points, bar)
                for part, numbers in found.items():
                    done = [names[part][row] for row in now[part]]
                    results.add(dict(zip(done, numbers, strict=True)))

    def _names(self, digests, end, arrays):
        """Returns what identifies each perturbation, {part: list of str}."""
        names = {}
        for part, points in arrays.items():
            rest = [d[end] for m, d in enumerate(digests) if m not in part]
            names[part] = []
            for k, f, sigma, seed in zip(*points, strict=True):
                own = [digests[m][k] for m in part]
                # Without a way to go its direction does not matter, nor does
                # the seed without noise.
                own += [digests[m][k + 1] for m in part if f]
                noise = [sigma, seed] if sigma else []
                told = [self._key, list(part), rest, own, f, noise]
                names[part].append(_digest(json.dumps(told, default=float)))
        return names

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

    def _run(self, flats, unperturbed, points, bar):
        """Makes one pass over the batches.

        Args:
            flats: each module's share of the vectors, tensors [K, D].
            unperturbed: each module's tensors at the end point.
            points: {part: arrays}, as `Perturbations.expand` returns them.
            bar: the progress bar, counting batches times perturbations.

        Returns:
            {part: list of {name: float}}.
        """
        found = {part: _Found(self._means) for part in points}
        last = max(part.start for part in points)
        targets = []
        for count, chunk in self._batches:
            for j in range(count):
                x, *rest = self._batch(tf.constant(j), *chunk)
                real = replicas.gather(self._strategy, rest[1], 0) > 0
                if self._whole is not None:
                    targets.append(
                        replicas.gather(self._strategy, rest[0], 0)[real]
                    )
                for m in range(last + 1):
                    for part in points:
                        if part.start == m:
                            measure = functools.partial(
                                self._compiled_measure(part, [x, *rest]),
                                flats[part.start : part.stop],
                                unperturbed[part.stop :],
                            )
                            sums, outputs = self._perturb(
                                part, measure, points[part], [x, *rest], bar
                            )
                            found[part].add(sums, outputs, real)
                    if m < last:
                        advance = self._compiled_advance(m, x)
                        x = advance(unperturbed[m], x)
        return {
            part: own.numbers(self._whole, targets)
            for part, own in found.items()
        }

    def _perturb(self, part, measure, points, batch, bar):
        """Measures one batch at all perturbations of a part.

        Args:
            part: the `range`.
            measure: what `_compiled_measure` returns, given the weights.
            points: as `Perturbations.expand` returns them.
            batch: what enters the part, targets and weights.
            bar: the progress bar.

        Returns:
            sums float64 [P, 1 + Q] and outputs float32 [P, b, C], or None for
            the latter if nobody wants them.
        """
        sums, outputs = [], []
        for piece in self._calls(part, len(points[0]), bar):
            piece_sums, piece_outputs = measure(
                *(tf.constant(array[piece]) for array in points),
                *batch,
            )
            piece_sums = replicas.gather(self._strategy, piece_sums, 0)
            sums.append(piece_sums.sum(axis=0, dtype=np.float64))
            if self._whole is not None:
                outputs.append(
                    replicas.gather(self._strategy, piece_outputs, 1)
                )
        if self._whole is None:
            return np.concatenate(sums), None
        return np.concatenate(sums), np.concatenate(outputs)

    def _calls(self, part, num_points, bar):
        """Yields slices: the perturbations that are run in one call."""
        pace = self._paces[part]
        first = 0
        while first < num_points:
            size = (
                1
                if replicas.has_other_workers(self._strategy)
                else pace.count()
            )
            piece = slice(first, min(first + size, num_points))
            began = time.perf_counter()
            yield piece
            pace.note(piece.stop - first, time.perf_counter() - began)
            bar.update(piece.stop - first)
            first = piece.stop

    # In TensorFlow: P perturbations of a part and a batch of b examples. P and
    # the number of vectors are known only when it runs, so what depends on them
    # is outside of what replicas run; that sees static shapes.

    def _batch(self, j, *chunk):
        """Returns batch j of a chunk, on each replica its own."""
        return self._strategy.run(
            lambda *tensors: tuple(tensor[j] for tensor in tensors), args=chunk
        )

    def _compiled_advance(self, m, x):
        """Returns a function: what enters module m -> what leaves it."""
        if m not in self._advances:

            def advance(*arguments):
                return self._strategy.run(self._call_module[m], args=arguments)

            self._advances[m] = tf.function(
                advance,
                [
                    self._modules[m].spec,
                    tf.type_spec_from_value(x),
                ],
            ).get_concrete_function()
        return self._advances[m]

    def _compiled_measure(self, part, batch):
        """Returns a function that does `_measure` for a part."""
        if part not in self._measures:
            own = self._modules[part.start : part.stop]
            signature = [
                [tf.TensorSpec([None, m.size]) for m in own],
                [m.spec for m in self._modules[part.stop :]],
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec([None]),
                tf.TensorSpec([None]),
                tf.TensorSpec([None], tf.int32),
                *map(tf.type_spec_from_value, batch),
            ]
            self._measures[part] = tf.function(
                functools.partial(self._measure, part), signature
            ).get_concrete_function()
        return self._measures[part]

    def _measure(self, part, flats, after, k, f, sigma, seeds, *batch):
        """Measures one batch at some perturbations.

        Args:
            part: the `range`.
            flats: the vectors' shares of the part's modules, [K, D] each.
            after: the tensors of each module after the part.
            k: as `Perturbations.expand` returns it, like f, sigma, seeds.
            f: likewise.
            sigma: likewise.
            seeds: likewise.
            *batch: what enters the part, targets and weights.

        Returns:
            Of each of this worker's replicas, sums [1, P, 1 + Q] and outputs
            [P, b, C] (an empty list if nobody wants them), float32.
        """
        num_points = tf.shape(seeds)[0]
        sums = replicas.arrays(self._strategy, num_points)
        outputs = replicas.arrays(self._strategy, num_points)
        own = self._modules[part.start : part.stop]
        # Kept from one perturbation to the next, as they seldom change.
        noise, drawn = [tf.zeros([m.size]) for m in own], seeds[0] - 1
        noiseless = [_between(flat, k[0], f[0]) for flat in flats]
        # Copied to the devices once, not for each perturbation.
        after = self._strategy.run(
            lambda tensors: tf.nest.map_structure(tf.identity, tensors),
            args=(after,),
        )
        for p in tf.range(num_points):
            if sigma[p] > 0 and seeds[p] != drawn:
                noise = [self._modules[m].noise(seeds[p], m) for m in part]
                drawn = seeds[p]
            last = tf.maximum(p - 1, 0)
            if k[p] != k[last] or f[p] != f[last]:
                noiseless = [_between(flat, k[p], f[p]) for flat in flats]
            perturbed = [
                noiseless[i] + sigma[p] * noise[i] for i in range(len(own))
            ]
            row, output = self._strategy.run(
                functools.partial(self._measure_on_replica, part),
                args=(perturbed, after, *batch),
            )
            sums = replicas.write(self._strategy, sums, p, row)
            if self._whole is not None:
                outputs = replicas.write(self._strategy, outputs, p, output)
        sums = [array.stack()[None] for array in sums]
        if self._whole is None:
            return sums, []
        return sums, [array.stack() for array in outputs]

    def _measure_on_replica(self, part, flats, after, x, targets, weights):
        """Returns sums [1 + Q] and outputs [b, C], float32."""
        y = x
        for flat, m in zip(flats, part, strict=True):
            y = self._call_module[m](self._modules[m].split(flat), y)
        for tensors, m in zip(
            after, range(part.stop, len(self.chain)), strict=True
        ):
            y = self._call_module[m](tensors, y)
        y = tf.cast(y, tf.float32)
        return weighted_sums(self._means, targets, y, weights), y

    def _call(self, m, weights, x):
        """Returns what leaves module m, if such are its weights."""
        module, own = self.chain[m].model, self._modules[m]
        value = {
            id(v): tensor
            for v, tensor in zip(own.variables, weights, strict=True)
        }
        # Neither counters nor the states of random number generators matter
        # here; these are the model's.
        trainable, others = (
            [value.get(id(v), v.value) for v in variables]
            for variables in (
                module.trainable_variables,
                module.non_trainable_variables,
            )
        )
        return module.stateless_call(trainable, others, x, training=False)[0]


@gin.configurable
def dataset_suffixes(
    model,
    dataset,
    split: schema.Split = "train",
    num_examples: schema.Count | None = None,
    with_auc: bool = True,
    batch_size: schema.Count = 256,
    strategy=None,
    memory_budget: schema.NotNegative = 4.0,
    jit_compile: bool | None = None,
):
    """Returns the `Suffixes` of a data set's loss, accuracy, error and AUC.

    The columns are those of `dataset_surface`, and error, the 0-1 error: 1 -
    accuracy, and 1 for an example whose logits are not finite.

    Args:
        model: see `Suffixes`.
        dataset: `data.Dataset` with as many classes as the model has outputs.
        split: "train" (without augmentation) or "test".
        num_examples: int, examples drawn without replacement; None for all.
        with_auc: bool, whether to compute the AUC of multi-label data.
        batch_size: int, examples at a time on each device, at most.
        strategy: see `Suffixes`.
        memory_budget: see `Suffixes`.
        jit_compile: see `Suffixes`.

    Raises:
        UserError: if model and data do not fit.
    """
    if num_examples is not None:
        dataset = _draw(dataset, split, num_examples)
    strategy = strategy or default_strategy()
    examples = dataset_examples(model, dataset, split, batch_size, strategy)
    examples["means"]["error"] = functools.partial(
        _error, dataset.info.multi_label
    )
    if not with_auc:
        examples["whole"] = None
    return Suffixes(
        model,
        **examples,
        strategy=strategy,
        memory_budget=memory_budget,
        jit_compile=jit_compile,
    )


def subject_suffixes(subjects, split, with_auc=True):
    """Returns the `Suffixes` that serve all trained subjects.

    Args:
        subjects: `Subjects`, of one architecture.
        split: "train" or "test".
        with_auc: see `dataset_suffixes`.

    Raises:
        UserError: if there is none trained on the target, or they do not fit
            the dataset.
    """
    models = subjects.trained()
    if not models:
        raise UserError(
            "There is no model trained on the target among the subjects; name "
            "some in Subjects.runs."
        )
    return dataset_suffixes(
        subjects.model(models[0]),
        subjects.dataset,
        split,
        with_auc=with_auc,
        strategy=subjects.strategy,
    )


class Checkpoints(collections.abc.Sequence):
    """The weights of one run at several epochs, read when they are asked for.

    Args:
        run: the `runs.Run`.
        epochs: list of int, in order.

    Attributes:
        epochs: list of int.
    """

    def __init__(self, run, epochs):
        self.epochs = list(epochs)
        self._run = run
        self._model = None

    def __len__(self):
        return len(self.epochs)

    def __getitem__(self, index):
        """Returns a list of arrays, as `model.get_weights()` gives them.

        Raises:
            UserError: naming the checkpoint if it is damaged.
        """
        epoch = self.epochs[index]
        if self._model is None:
            self._model = self._run.load_model(epoch)
        else:
            # Another checkpoint of a run fits the same model.
            checkpoint = tf.train.Checkpoint(model=self._model)
            self._run.restore(checkpoint, epoch).expect_partial()
        return [np.asarray(w) for w in self._model.get_weights()]


class _Found:
    """What one pass finds about the perturbations of a part."""

    def __init__(self, means):
        self._means = means
        self._sums = 0.0
        self._outputs = []

    def add(self, sums, outputs, real):
        """Adds a batch: sums [P, 1 + Q], outputs [P, b, C], real bool [b]."""
        self._sums = self._sums + sums
        if outputs is not None:
            self._outputs.append(outputs[:, real])

    def numbers(self, whole, targets):
        """Returns each perturbation's {name: float}."""
        numbers = [
            dict(zip(self._means, map(float, row), strict=True))
            for row in self._sums[:, 1:] / self._sums[:, :1]
        ]
        if whole is None:
            return numbers
        targets = np.concatenate(targets)
        outputs = np.concatenate(self._outputs, axis=1)
        return [
            row | whole(targets, output)
            for row, output in zip(numbers, outputs, strict=True)
        ]


def _todo(names, arrays, results):
    """Returns the rows to evaluate, int [n], each name's first one only."""
    rows = {n: row for row, n in reversed(list(enumerate(names)))}
    rows = np.array([r for n, r in rows.items() if n not in results], int)
    # One draw of noise serves the perturbations that follow each other.
    return rows[np.argsort(arrays[-1][rows], kind="stable")]


def _between(corners, k, f):
    """Returns the point at position k + f on a polyline [K, D]."""
    second = tf.minimum(k + 1, tf.shape(corners)[0] - 1)
    # Exact at the corners.
    return (1 - f) * corners[k] + f * corners[second]


def _draw(dataset, split, num_examples):
    source = getattr(dataset, split)
    order = np.random.RandomState(0).permutation(len(source))[:num_examples]
    info = dataclasses.replace(dataset.info, **{f"num_{split}": len(order)})
    return dataclasses.replace(
        dataset, info=info, **{split: source.select(np.sort(order))}
    )


def _error(multi_label, targets, logits):
    hits = objectives.example_hits(targets, logits, multi_label)
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    return tf.where(finite, 1 - hits, 1.0)


def _digest(content):
    if isinstance(content, str):
        content = content.encode()
    else:
        content = np.ascontiguousarray(content)
    return hashlib.blake2b(content, digest_size=16).hexdigest()
