"""The loss at many points of parameter space.

Under interpolation, basins, averages and criticality lies one question: what is
the loss at this combination of these weight vectors, perhaps with noise? The
vectors are kept on the device; a point is a row of coefficients; its weights
are made inside a `tf.function`, and neither they nor the images return to the
host. Batches are preprocessed once and kept on the device if they fit the
memory budget; otherwise one pass over them serves many points.
"""

import functools
import hashlib
import json
import math
import time
from typing import Literal

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
from keras_transfer.landscape.batch_norm import (
    batch_norms,
    stateless_call,
    statistics_of,
)
from keras_transfer.landscape.evaluations import Evaluations
from keras_transfer.landscape.replicas import DistributedBatches
from keras_transfer.landscape.weight_space import WeightSpace

# Points that share one reading of batches too many to be kept; so many at most
# are lost by an interrupt.
_POINTS_PER_READING = 32
# Training images that the statistics of batch normalization are taken from.
_STATISTICS_EXAMPLES = 2048

BatchNorm = Literal["reestimate", "stored"]


class LossSurface:
    """Loss and metrics of one model as a function of its weights.

    Example:
        loss = keras.losses.mean_squared_error
        surface = LossSurface(model, [w1, w2], batches, {"loss": loss})
        losses = surface.evaluate(Points([[1, 0], [0.5, 0.5], [0, 1]]))["loss"]

    Args:
        model: `keras.Model` of one input and one output. Its own weights do not
            matter and stay as they are.
        weights: K lists of arrays, each as `model.get_weights()` gives them.
        batches: finite `tf.data.Dataset` of (inputs, targets) or (inputs,
            targets, weights), in batches of one size, the last one possibly
            smaller; float weights [b] of the examples in all means.
        means: {name: function of (targets, outputs) -> [b]}: quantities of each
            example, whose means over the examples are evaluated.
        whole: None, or a function of (targets [N, ...], outputs [N, C]), NumPy
            arrays of all examples, -> {name: float}, for metrics that are no
            means, such as the AUC.
        statistics_batches: batches over which the statistics of batch
            normalization are estimated anew at each point, as the mean over
            batches of those in training mode (Izmailov et al. 2018, section
            3.2), a smaller last batch left out. None to combine the stored
            statistics as any other weight.
        strategy: `tf.distribute.Strategy` to whose replicas batches are dealt
            out; None for all GPUs of this machine, or else its CPU.
        memory_budget: GiB of batches kept on each device, and as many of
            `statistics_batches`. If there are more, they are read again for
            every 32 points.
        jit_compile: bool, whether XLA compiles the forward pass; None: yes on
            GPU and TPU, no on CPU, where it is slower.
        key: str that changes with the data, for the `evaluations` of
            `evaluate`; None to find one by reading all batches when it is
            needed.

    Attributes:
        space: the `WeightSpace` of the weight vectors.

    Raises:
        UserError: if weights or batches cannot be used.
    """

    def __init__(
        self,
        model,
        weights,
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
        self._all_batches = [batches, statistics_batches]
        self._strategy = strategy or default_strategy()
        self.space = WeightSpace(model, weights, self._strategy)
        self._call_model = tf.function(
            self._call_model, jit_compile=jit_argument(jit_compile)
        )
        self._batch_norms = []
        if statistics_batches is not None:
            self._batch_norms = batch_norms(model)
        self._statistics_variables = statistics_of(self._batch_norms)
        self._num_statistics = sum(
            math.prod(v.shape) for v in self._statistics_variables
        )
        if self._batch_norms:
            self._statistics_batches = DistributedBatches(
                statistics_batches, self._strategy, memory_budget
            )
            self._sum_statistics = self._compile(
                self._sum_statistics, self._statistics_batches
            )
        self._batches = DistributedBatches(
            batches, self._strategy, memory_budget
        )
        self._measure = self._compile(self._measure, self._batches)
        self._pace = Pace()

    def evaluate(self, points, evaluations=None, description="loss surface"):
        """Evaluates loss and metrics at many points.

        Args:
            points: the `Points`.
            evaluations: None, or an `Evaluations` in which points are looked
                up and kept, so that an interrupted evaluation continues.
            description: str, beside the progress bar.

        Returns:
            {name: float64 [P]}: means over all examples, then `whole`'s values.

        Raises:
            UserError: if the points do not fit the surface.
        """
        arrays = self._expand(points)
        salt = "" if evaluations is None else self._key
        names = self.space.names(arrays, salt)
        if evaluations is None:
            evaluations = Evaluations()
        todo = {n: p for p, n in enumerate(names) if n not in evaluations}
        rows = np.array(list(todo.values()), int)
        with self._progress(description, len(todo)) as bar:
            for group in self._groups(len(todo)):
                part = [array[rows[group]] for array in arrays]
                numbers = self._numbers(*self._run(part, bar))
                found = dict(zip(list(todo)[group], numbers, strict=True))
                evaluations.add(found)
        return {
            column: np.array([evaluations[name][column] for name in names])
            for column in evaluations[names[0]]
        }

    def outputs(self, points, description="predictions"):
        """Evaluates the model's outputs on all examples.

        Args:
            points: the `Points`.
            description: str, beside the progress bar.

        Returns:
            targets [N, ...] and outputs float32 [P, N, C].

        Raises:
            UserError: if the points do not fit the surface.
        """
        arrays = self._expand(points)
        outputs = []
        with self._progress(description, len(points)) as bar:
            for group in self._groups(len(points)):
                part = [array[group] for array in arrays]
                _, targets, part_outputs = self._run(part, bar, collect=True)
                outputs.append(part_outputs)
        return targets, np.concatenate(outputs)

    def weights(self, points):
        """Returns the weights at each point.

        Args:
            points: the `Points`.

        Returns:
            P lists of arrays, as `model.get_weights()` gives them; batch
            statistics are estimated anew if `evaluate` does so.

        Raises:
            UserError: if the points do not fit the surface.
        """
        arrays = self._expand(points)
        return [
            [np.asarray(w) for w in self._weights(*map(tf.constant, point))]
            for point in zip(*arrays, self._statistics(arrays), strict=True)
        ]

    @functools.cached_property
    def _key(self):
        """What tells these data, quantities and this network from others."""
        key = self._given_key
        if key is None:
            key = [b and fingerprint(b) for b in self._all_batches]
        key = [key, bool(self._batch_norms)]
        return description_of(self._model, self._means, self._whole, key)

    # In Python: which points and which batches go into one call.

    def _expand(self, points):
        return points.expand(self.space.num_vectors)

    def _progress(self, description, num_points):
        total = num_points * self._batches.num_batches
        return tqdm(
            desc=description,
            total=total,
            unit="batch",
            leave=None,
            disable=None if num_points else True,
        )

    def _groups(self, num_points):
        """Yields slices: the points that are evaluated at a time."""
        first = 0
        while first < num_points:
            size = _POINTS_PER_READING
            if self._batches.kept:
                size = self._points_per_call(self._batches.num_batches)
            yield slice(first, min(first + size, num_points))
            first += size

    def _run(self, arrays, bar, collect=False):
        """Runs all batches at a group of points.

        Args:
            arrays: as `Points.expand` returns them.
            bar: the progress bar, counting batches times points.
            collect: bool, whether outputs are wanted though `whole` is None.

        Returns:
            Weighted sums over the examples of 1 and of the quantities in
            `means`, float64 [P, 1 + Q]; and, if wanted, targets [N, ...] and
            outputs float32 [P, N, C], else None twice.
        """
        arrays = [*arrays, self._statistics(arrays)]
        sums = np.zeros((len(arrays[0]), 1 + len(self._means)))
        targets, outputs = [], [[] for _ in sums]
        collect = collect or self._whole is not None
        for count, chunk in self._batches:
            if collect:
                real = self._gather(chunk[2], axis=1)[:count] > 0
                targets.append(self._gather(chunk[1], axis=1)[:count][real])
            for part in self._calls(len(sums), count, bar):
                part_sums, part_outputs = self._measure(
                    *(array[part] for array in arrays), count, *chunk
                )
                part_sums = self._gather(part_sums, axis=1)
                sums[part] += part_sums.sum(axis=1, dtype=np.float64)
                if collect:
                    part_outputs = self._gather(part_outputs, axis=2)
                    for p, output in enumerate(part_outputs, part.start):
                        outputs[p].append(output[real])
        if not collect:
            return sums, None, None
        outputs = np.stack([np.concatenate(chunks) for chunks in outputs])
        return sums, np.concatenate(targets), outputs

    def _statistics(self, arrays):
        """Returns batch statistics at points [P], float32 [P, S]; S may be 0.

        Raises:
            UserError: if not even one batch is full.
        """
        num_points = len(arrays[0])
        if not self._batch_norms:
            return np.zeros((num_points, 0), np.float32)
        arrays = [*arrays, np.zeros((num_points, self._num_statistics))]
        sums = np.zeros((num_points, 1 + self._num_statistics))
        for count, chunk in self._statistics_batches:
            for part in self._calls(num_points, count):
                part_sums = self._sum_statistics(
                    *(array[part] for array in arrays), count, *chunk
                )
                sums[part] += self._gather(part_sums, axis=0).sum(axis=0)
        if not sums[:, 0].all():
            raise UserError(
                "No batch is full, so batch statistics cannot be estimated; "
                "choose statistics_batches of a smaller batch size."
            )
        return (sums[:, 1:] / sums[:, :1]).astype(np.float32)

    def _calls(self, num_points, num_batches, bar=None):
        """Yields slices: the points at which a chunk is run in one call."""
        first = 0
        while first < num_points:
            size = self._points_per_call(num_batches)
            part = slice(first, min(first + size, num_points))
            began = time.perf_counter()
            yield part
            work = (part.stop - part.start) * num_batches
            self._pace.note(work, time.perf_counter() - began)
            if bar is not None:
                bar.update(work)
            first = part.stop

    def _points_per_call(self, num_batches):
        # Workers must agree, which their clocks do not.
        if replicas.has_other_workers(self._strategy):
            return 1
        return self._pace.count(num_batches)

    def _gather(self, value, axis):
        return replicas.gather(self._strategy, value, axis)

    def _numbers(self, sums, targets, outputs):
        """Returns each point's {name: float}, from what `_run` returns."""
        numbers = [
            dict(zip(self._means, map(float, means), strict=True))
            for means in sums[:, 1:] / sums[:, :1]
        ]
        if self._whole is None:
            return numbers
        return [
            row | self._whole(targets, output)
            for row, output in zip(numbers, outputs, strict=True)
        ]

    # In TensorFlow: P points and a chunk of m batches of b examples, one call.
    # How many of each is known only when it runs, so the loops over them are
    # outside of what replicas run; that sees static shapes.

    def _compile(self, function, batches):
        return tf.function(
            function,
            input_signature=[
                tf.TensorSpec([None, self.space.num_vectors]),
                tf.TensorSpec([None]),
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec([None, self._num_statistics]),
                tf.TensorSpec([], tf.int32),
                *batches.chunk_spec,
            ],
        )

    def _measure(
        self, coefficients, sigma, seeds, statistics, num_batches, *chunk
    ):
        """Measures a chunk at some points.

        Returns:
            Of each of this worker's replicas, sums [P, m, 1 + Q] and outputs
            [P, m, b, C], float32.
        """
        shape = num_points, num_batches = tf.shape(seeds)[0], num_batches
        sums = replicas.arrays(self._strategy, num_points * num_batches)
        outputs = replicas.arrays(self._strategy, num_points * num_batches)
        for p in tf.range(num_points):
            point = self._strategy.run(
                self._weights,
                args=(coefficients[p], sigma[p], seeds[p], statistics[p]),
            )
            for i in tf.range(num_batches):
                row, output = self._strategy.run(
                    self._measure_on_replica, args=(point, i, *chunk)
                )
                j = p * num_batches + i
                sums = replicas.write(self._strategy, sums, j, row)
                outputs = replicas.write(self._strategy, outputs, j, output)
        return (
            [_unflatten(array.stack(), shape) for array in sums],
            [_unflatten(array.stack(), shape) for array in outputs],
        )

    def _measure_on_replica(self, point, i, inputs, targets, weights):
        """Returns sums [1 + Q] and outputs [b, C] of batch i, float32."""
        output = self._call_model(point, inputs[i], training=False)[0]
        row = weighted_sums(self._means, targets[i], output, weights[i])
        return row, output

    def _sum_statistics(
        self, coefficients, sigma, seeds, unknown, num_batches, *chunk
    ):
        """Sums over full batches 1 and the statistics, at some points.

        Returns:
            Of each of this worker's replicas, float32 [1, P, 1 + S].
        """
        del unknown
        inputs, _, weights = chunk
        sums = replicas.arrays(self._strategy, tf.shape(seeds)[0])
        for p in tf.range(tf.shape(seeds)[0]):
            point = self._strategy.run(
                self.space.combine, args=(coefficients[p], sigma[p], seeds[p])
            )
            totals = [tf.zeros([1 + self._num_statistics]) for _ in sums]
            for i in tf.range(num_batches):
                row = self._strategy.run(
                    self._statistics_on_replica,
                    args=(point, i, inputs, weights),
                )
                row = self._strategy.experimental_local_results(row)
                totals = [a + b for a, b in zip(totals, row, strict=True)]
            sums = [
                array.write(p, total)
                for array, total in zip(sums, totals, strict=True)
            ]
        return [array.stack()[None] for array in sums]

    def _statistics_on_replica(self, point, i, inputs, weights):
        """Returns 1 and S of batch i, [1 + S]; zeros if it is not full."""
        updated = self._call_model(point, inputs[i], training=True)[1]
        full = tf.cast(tf.reduce_all(weights[i] > 0), tf.float32)
        return full * tf.concat([[1.0], updated], 0)

    def _weights(self, coefficients, sigma, seed, statistics):
        """Returns one point's tensors, in the order of `model.weights`."""
        weights = self.space.combine(coefficients, sigma, seed)
        position = {id(v): i for i, v in enumerate(self._model.weights)}
        sizes = [math.prod(v.shape) for v in self._statistics_variables]
        parts = tf.split(statistics, sizes) if sizes else []
        for v, part in zip(self._statistics_variables, parts, strict=True):
            weights[position[id(v)]] = tf.reshape(part, v.shape)
        return weights

    def _call_model(self, weights, inputs, training):
        """Returns outputs [b, C] and the batch's own statistics [S]."""
        value = dict(zip(map(id, self._model.weights), weights, strict=True))
        outputs, new = stateless_call(
            self._model, value, inputs, training, self._batch_norms
        )
        statistics = [
            tf.reshape(new[id(v)], [-1]) for v in self._statistics_variables
        ]
        return tf.cast(outputs, tf.float32), tf.concat(
            [*statistics, tf.zeros(0)], 0
        )


@gin.configurable
def examples_surface(
    model,
    weights,
    examples,
    split: schema.Split = "test",
    batch_norm: BatchNorm = "reestimate",
    batch_size: schema.Count = 256,
    strategy=None,
    memory_budget: schema.NotNegative = 4.0,
    jit_compile: bool | None = None,
):
    """Returns the `LossSurface` of loss, accuracy and AUC on examples.

    The columns are loss (nats), accuracy (share of right answers, for
    multi-label data of right findings; 1 - accuracy is the 0-1 error), and for
    multi-label data auc and auc_<finding>. At points far out, where logits are
    not finite, accuracy and AUC are NaN.

    Args:
        model: `keras.Model` giving logits, see `LossSurface`.
        weights: see `LossSurface`.
        examples: `data.Examples` with as many classes as the model has outputs.
        split: "test" or "train" (without augmentation).
        batch_norm: "reestimate": models with batch normalization get its
            statistics estimated anew at each point (see `statistics_batches`),
            for between two models neither one's fit; "stored": statistics are
            combined like weights.
        batch_size: int, examples at a time on each device, at most.
        strategy: see `LossSurface`.
        memory_budget: see `LossSurface`.
        jit_compile: see `LossSurface`.

    Raises:
        UserError: if model, weights and data do not fit.
    """
    strategy = strategy or default_strategy()
    return LossSurface(
        model,
        weights,
        **evaluated(model, examples, split, batch_size, strategy),
        statistics_batches=statistics_batches(
            model, examples, batch_norm, batch_size
        ),
        strategy=strategy,
        memory_budget=memory_budget,
        jit_compile=jit_compile,
    )


def evaluated(model, examples, split, batch_size, strategy):
    """Returns what is evaluated on examples.

    Args:
        model: `keras.Model` giving logits that takes their images.
        examples: `data.Examples` with as many classes as the model has outputs.
        split: "test" or "train".
        batch_size: int, examples at a time on each device, at most.
        strategy: the `tf.distribute.Strategy`.

    Returns:
        dict of the arguments batches, means, whole and key of `LossSurface`.

    Raises:
        UserError: if model and data do not fit.
    """
    check_fit(model, examples)
    chosen = examples.split(split)
    # Equal batches, so that next to nothing is padded and no replica idle.
    per_step = batch_size * strategy.num_replicas_in_sync
    steps = -(-len(chosen) // per_step) * strategy.num_replicas_in_sync
    batch_size = -(-len(chosen) // steps)
    multi_label = examples.multi_label
    return {
        "batches": chosen.batches(batch_size),
        "means": {
            "loss": functools.partial(_loss, multi_label),
            "accuracy": functools.partial(_accuracy, multi_label),
        },
        "whole": functools.partial(_aucs, examples) if multi_label else None,
        "key": json.dumps(
            [examples.fingerprint, split, len(chosen), batch_size]
        ),
    }


def statistics_batches(model, examples, batch_norm, batch_size=256):
    """Returns the batches that statistics of batch normalization come from.

    At most 2,048 training images in whole batches, the same ones in the same
    random order every time, without augmentation.

    Args:
        model: `keras.Model`.
        examples: `data.Examples`.
        batch_norm: "reestimate" or "stored".
        batch_size: int, at most.

    Returns:
        `tf.data.Dataset` of (inputs, targets, weights); None if statistics are
        not to be estimated, or the model has none.

    Raises:
        UserError: if there are no training images.
    """
    if batch_norm == "stored" or not batch_norms(model):
        return None
    if not examples.has("train"):
        raise UserError(
            f"Model '{model.name}' has batch normalization, whose statistics "
            "are estimated anew from training images. Received: data without "
            'them; give Examples(train=...), or batch_norm="stored".'
        )
    chosen = examples.split("train")
    batch_size = min(batch_size, len(chosen))
    order = np.random.RandomState(0).permutation(len(chosen))
    order = order[: max(_STATISTICS_EXAMPLES // batch_size, 1) * batch_size]
    order = order[: len(order) // batch_size * batch_size]
    return chosen.batches(batch_size, order=order)


def fingerprint(batches):
    """Returns a str that changes with what batches hold, by reading them."""
    state = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for tensor in batch:
            array = np.ascontiguousarray(tensor)
            state.update(f"{array.dtype}{array.shape}".encode())
            state.update(array)
    return state.hexdigest()


def description_of(model, means, whole, key):
    """Returns what the numbers of a network depend on beside its weights.

    Args:
        model: `keras.Model`.
        means: see `LossSurface`.
        whole: see `LossSurface`.
        key: JSON-able value that changes with the data.

    Returns:
        str.
    """
    layers = [
        [type(layer).__name__, str(getattr(layer, "activation", ""))[:40]]
        for layer in model.layers
    ]
    return json.dumps([key, layers, list(means), whole is not None])


def weighted_sums(means, targets, outputs, weights):
    """Sums quantities over the examples of a batch, in a `tf.function`.

    Args:
        means: {name: function of (targets, outputs) -> [b]}.
        targets: tensor [b, ...].
        outputs: tensor [b, ...].
        weights: float32 tensor [b], 0 for blank examples.

    Returns:
        float32 tensor [1 + Q]: the sum of the weights, then of each quantity
        times the weights.
    """
    quantities = [tf.ones_like(weights)]
    quantities += [mean(targets, outputs) for mean in means.values()]
    values = tf.stack([tf.cast(q, tf.float32) for q in quantities], 1)
    # Blank examples may give anything, also what is not a number.
    values = tf.where(weights[:, None] > 0, values * weights[:, None], 0.0)
    return tf.reduce_sum(values, axis=0)


def _loss(multi_label, targets, logits):
    return objectives.example_losses(targets, logits, multi_label)


def _accuracy(multi_label, targets, logits):
    return objectives.example_accuracy(targets, logits, multi_label)


def _aucs(examples, targets, logits):
    summary = objectives.summarize(targets, logits, examples)
    return {k: v for k, v in summary.items() if k.startswith("auc")}


def check_inputs(model, examples, name=None):
    """Raises a `UserError` unless a model takes the inputs of examples.

    Args:
        model: `keras.Model`.
        examples: `data.Examples`.
        name: str, what to call the model; None for its own name.
    """
    takes = model.input_shape[1:]
    sides = zip(takes, examples.image_shape, strict=False)
    if len(takes) != len(examples.image_shape) or any(
        a not in (None, b) for a, b in sides
    ):
        raise UserError(
            f"Model '{name or model.name}' takes images {takes}. Received: "
            f"images of {examples.image_shape}; compare models on data that "
            "fit them (Models.data)."
        )


def check_fit(model, examples, name=None):
    """Raises a `UserError` unless a model takes examples and tells classes.

    Args:
        model: `keras.Model` giving logits.
        examples: `data.Examples`.
        name: str, what to call the model; None for its own name.
    """
    check_inputs(model, examples, name)
    gives = model.output_shape[1:]
    if gives != (examples.num_classes,):
        raise UserError(
            f"Model '{name or model.name}' gives "
            f"{' x '.join(map(str, gives))} logits. Received: "
            f"{examples.num_classes} classes; compare models on data "
            "that fit them (Models.data)."
        )


def _unflatten(tensor, shape):
    """Returns a tensor [m * n, ...] as [m, n, ...]."""
    return tf.reshape(tensor, tf.concat([shape, tf.shape(tensor)[1:]], 0))
