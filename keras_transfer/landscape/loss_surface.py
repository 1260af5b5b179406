"""The loss at many points of parameter space.

Under interpolation, basins, averages and criticality lies one question: what is
the loss at this combination of these weight vectors, perhaps with noise? The
vectors are kept on the device; a point is a row of coefficients; its weights
are made inside a `tf.function`, and neither they nor the images return to the
host. Batches are preprocessed once and kept on the device if they fit the
memory budget; otherwise one pass over them serves many points.
"""

import contextlib
import dataclasses
import functools
import json
import math
import time

import gin
import keras
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
from keras_transfer.landscape.replicas import SpreadBatches
from keras_transfer.landscape.weight_space import WeightSpace

# Points that share one reading of batches too many to be kept; so many at most
# are lost by an interrupt.
_POINTS_PER_READING = 32


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
        modules: the parts of the model that points may treat differently: None
            for one part, or lists of variables that together hold all of
            `model.weights`, such as `[m.variables for m in
            models.module_chain(model)]`.
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
        key: str that names the data, for the `results` of `evaluate`.

    Attributes:
        space: the `WeightSpace` of the weight vectors.

    Raises:
        UserError: if weights, modules or batches cannot be used.
    """

    def __init__(
        self,
        model,
        weights,
        batches,
        means,
        whole=None,
        modules=None,
        statistics_batches=None,
        strategy=None,
        memory_budget=4.0,
        jit_compile=None,
        key="",
    ):
        self._model = model
        self._means = means
        self._whole = whole
        self._key = json.dumps([key, *means])
        self._strategy = strategy or default_strategy()
        self.space = WeightSpace(model, weights, modules, self._strategy)
        self._call_model = tf.function(
            self._call_model, jit_compile=jit_argument(jit_compile)
        )
        self._batch_norms = []
        if statistics_batches is not None:
            self._batch_norms = batch_norms(model)
        self._statistics_variables = [
            variable
            for layer in self._batch_norms
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        self._num_statistics = sum(
            math.prod(v.shape) for v in self._statistics_variables
        )
        if self._batch_norms:
            self._statistics_batches = SpreadBatches(
                statistics_batches, self._strategy, memory_budget
            )
            self._sum_statistics = self._compile(
                self._sum_statistics, self._statistics_batches
            )
        self._batches = SpreadBatches(batches, self._strategy, memory_budget)
        self._measure = self._compile(self._measure, self._batches)
        self._pace = Pace()

    def evaluate(self, points, results=None, description="loss surface"):
        """Evaluates loss and metrics at many points.

        Args:
            points: the `Points`.
            results: None, or a `Results` in which evaluated points are looked
                up and kept, so that an interrupted evaluation continues.
            description: str, beside the progress bar.

        Returns:
            {name: float64 [P]}: means over all examples, then `whole`'s values.

        Raises:
            UserError: if the points do not fit the surface.
        """
        arrays = self._expand(points)
        names = self.space.names(arrays, self._key)
        results = Results() if results is None else results
        todo = {n: p for p, n in enumerate(names) if n not in results}
        rows = np.array(list(todo.values()), int)
        with self._progress(description, len(todo)) as bar:
            for group in self._groups(len(todo)):
                part = [array[rows[group]] for array in arrays]
                numbers = self._numbers(*self._run(part, bar))
                results.add(dict(zip(list(todo)[group], numbers, strict=True)))
        return {
            column: np.array([results[name][column] for name in names])
            for column in results[names[0]]
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

    # In Python: which points and which batches go into one call.

    def _expand(self, points):
        return points.expand(self.space.num_modules, self.space.num_vectors)

    def _progress(self, description, num_points):
        total = num_points * self._batches.num_batches
        return tqdm(
            desc=description,
            total=total,
            unit="batch",
            leave=None,
            disable=not num_points,
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
        modules, vectors = self.space.num_modules, self.space.num_vectors
        return tf.function(
            function,
            input_signature=[
                tf.TensorSpec([None, modules, vectors]),
                tf.TensorSpec([None, modules]),
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
        model = self._model
        value = dict(zip(map(id, model.weights), weights, strict=True))
        # Not among the weights: the states of random number generators.
        others = [v for v in model.variables if id(v) not in value]
        value |= {id(v): v.value for v in others}
        with _no_momentum(self._batch_norms):
            outputs, updated = model.stateless_call(
                [value[id(v)] for v in model.trainable_variables],
                [value[id(v)] for v in model.non_trainable_variables],
                inputs,
                training=training,
            )
        new = dict(
            zip(map(id, model.non_trainable_variables), updated, strict=True)
        )
        statistics = [
            tf.reshape(new[id(v)], [-1]) for v in self._statistics_variables
        ]
        return tf.cast(outputs, tf.float32), tf.concat(
            [*statistics, tf.zeros(0)], 0
        )


@gin.configurable
def dataset_surface(
    model,
    weights,
    dataset,
    split: schema.Split = "test",
    modules: tuple[str, ...] | None = None,
    batch_size: schema.Count = 256,
    reestimate_batch_norm: bool = True,
    strategy=None,
    memory_budget: schema.NotNegative = 4.0,
    jit_compile: bool | None = None,
):
    """Returns the `LossSurface` of a data set's loss, accuracy and AUC.

    The columns are loss (nats), accuracy (share of right answers, for
    multi-label data of right findings; 1 - accuracy is the 0-1 error), and for
    multi-label data auc and auc_<finding>.

    Args:
        model: see `LossSurface`.
        weights: see `LossSurface`.
        dataset: `data.Dataset` with as many classes as the model has outputs.
        split: "test" or "train".
        modules: see `LossSurface`.
        batch_size: int, examples at a time on each device, at most.
        reestimate_batch_norm: bool, whether models with batch normalization get
            their statistics estimated anew at each point, from one pass over
            the training images without augmentation, in a fixed random order.
            Costs that pass; without it, points between two models are judged
            by statistics that are not theirs.
        strategy: see `LossSurface`.
        memory_budget: see `LossSurface`.
        jit_compile: see `LossSurface`.

    Raises:
        UserError: if model, weights and data do not fit.
    """
    strategy = strategy or default_strategy()
    examples = dataset_examples(model, dataset, split, batch_size, strategy)
    statistics_batches = None
    if reestimate_batch_norm and batch_norms(model):
        size = min(batch_size, dataset.info.num_train)
        statistics_batches = dataset.train_batches(size, seed=0).take(
            dataset.steps_per_epoch(size)
        )
    description = [examples.pop("key"), reestimate_batch_norm]
    return LossSurface(
        model,
        weights,
        **examples,
        modules=modules,
        statistics_batches=statistics_batches,
        strategy=strategy,
        memory_budget=memory_budget,
        jit_compile=jit_compile,
        key=json.dumps(description),
    )


def dataset_examples(model, dataset, split, batch_size, strategy):
    """Returns what is evaluated on a data set.

    Args:
        model: `keras.Model` that takes its images.
        dataset: `data.Dataset` with as many classes as the model has outputs.
        split: "test" or "train".
        batch_size: int, examples at a time on each device, at most.
        strategy: the `tf.distribute.Strategy`.

    Returns:
        dict of the arguments batches, means, whole and key of `LossSurface`.

    Raises:
        UserError: if model and data do not fit.
    """
    info = dataset.info
    _check_data(model, info)
    number = {"train": info.num_train, "test": info.num_test}[split]
    # Equal batches, so that next to nothing is padded and no replica idle.
    per_step = batch_size * strategy.num_replicas_in_sync
    steps = -(-number // per_step) * strategy.num_replicas_in_sync
    description = [dataset.arguments, dataclasses.asdict(info), split]
    description += [batch_size]
    return {
        "batches": dataset.eval_batches(split, batch_size=-(-number // steps)),
        "means": {
            "loss": functools.partial(_loss, info.multi_label),
            "accuracy": functools.partial(_accuracy, info.multi_label),
        },
        "whole": functools.partial(_aucs, info) if info.multi_label else None,
        "key": json.dumps(description, sort_keys=True, default=str),
    }


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


def batch_norms(model):
    """Returns a model's batch normalization layers, nested ones included."""
    layers = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            layers += batch_norms(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            layers.append(layer)
    return layers


def _loss(multi_label, targets, logits):
    return objectives.example_losses(targets, logits, multi_label)


def _accuracy(multi_label, targets, logits):
    return objectives.example_hits(targets, logits, multi_label)


def _aucs(info, targets, logits):
    summary = objectives.summarize(targets, logits, info)
    return {k: v for k, v in summary.items() if k.startswith("auc")}


def _check_data(model, info):
    shapes = model.input_shape[1:], model.output_shape[-1]
    if shapes != (info.image_shape, len(info.class_names)):
        raise UserError(
            f"Model '{model.name}' takes images {shapes[0]} and gives "
            f"{shapes[1]} logits. Received: data set {info.name} with images "
            f"{info.image_shape} and {len(info.class_names)} classes; bind "
            "Subjects.data_from to a run whose data fit."
        )


@contextlib.contextmanager
def _no_momentum(layers):
    """Makes layers forget: the new statistics are those of the last batch."""
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _unflatten(tensor, shape):
    """Returns a tensor [m * n, ...] as [m, n, ...]."""
    return tf.reshape(tensor, tf.concat([shape, tf.shape(tensor)[1:]], 0))
