"""Batches dealt out to the replicas of a strategy, and kept there."""

import itertools
import math

import numpy as np
import tensorflow as tf

from keras_transfer.data.streams import PARALLEL_CALLS, prefetch
from keras_transfer.errors import UserError

# A replica is given many batches at a time, so that what is done once for all
# of them costs little beside a forward pass over them.
_CHUNK_BYTES = 128 * 2**20


class DistributedBatches:
    """Iterates over chunks of batches that lie on the strategy's devices.

    Batches are dealt out whole: batch j goes to replica j mod R, so that what
    is computed from a batch does not depend on R. A chunk holds m batches for
    each replica, stacked. The last round and the last chunk are filled up with
    blank batches, and a smaller last batch with blank examples, of weight 0, so
    that all shapes are static.

    Attributes:
        num_batches: int, batches of each replica.
        kept: bool, whether the chunks stay on the devices; otherwise they are
            read again in each iteration.
        chunk_spec: list of the type specifications of a chunk.

    Args:
        batches: finite `tf.data.Dataset` of (inputs, targets) or (inputs,
            targets, weights), in batches of one size b, the last one possibly
            smaller; weights float [b].
        strategy: the `tf.distribute.Strategy`.
        memory_budget: GiB on each device up to which chunks are kept.

    Yields:
        The number of each replica's batches in a chunk, those that fill up a
        round included and those that fill up the chunk not; and the chunk:
        inputs [m, b, ...], targets [m, b, ...] and weights float32 [m, b] of
        each replica, as the strategy distributes them.

    Raises:
        UserError: if there are no batches, or infinitely many.
    """

    def __init__(self, batches, strategy, memory_budget):
        total = _count(batches)
        batches, batch_bytes = _fill_up(batches)
        self.num_batches = math.ceil(total / strategy.num_replicas_in_sync)
        self.kept = self.num_batches * batch_bytes <= memory_budget * 2**30
        self._chunk_size = max(
            1, min(self.num_batches, _CHUNK_BYTES // batch_bytes)
        )
        num_chunks = math.ceil(self.num_batches / self._chunk_size)
        rounds = num_chunks * self._chunk_size
        missing = rounds * strategy.num_replicas_in_sync - total
        self._chunks = strategy.distribute_datasets_from_function(
            lambda context: _deal_out(
                batches, missing, self._chunk_size, context
            )
        )
        self.chunk_spec = list(self._chunks.element_spec)
        self._kept_chunks = None

    def __iter__(self):
        if self.kept and self._kept_chunks is None:
            self._kept_chunks = list(self._chunks)
        left = self.num_batches
        for chunk in self._kept_chunks if self.kept else self._chunks:
            yield min(left, self._chunk_size), chunk
            left -= self._chunk_size


def on_replicas(strategy, functions, batches):
    """Applies functions to batches, one batch on each replica at a time.

    Args:
        strategy: the `tf.distribute.Strategy`. Of several workers, each does
            all batches, on its own devices.
        functions: functions of a batch, run as `tf.function`s, that give a
            tensor or a list of them.
        batches: iterable of tensors [b, ...].

    Yields:
        For each batch, in order, the list of all tensors the functions give.
    """
    functions = [_on_replicas(strategy, function) for function in functions]
    replicas = len(strategy.extended.worker_devices)
    for group in _groups(batches, replicas):
        # A replica for which none is left repeats another's.
        values = strategy.experimental_distribute_values_from_function(
            lambda context, own=group: own[
                context.replica_id_in_sync_group % len(own)
            ]
        )
        found = [f for function in functions for f in function(values)]
        found = map(strategy.experimental_local_results, found)
        yield from itertools.islice(zip(*found, strict=True), len(group))


def _on_replicas(strategy, function):
    return tf.function(
        lambda batch: tf.nest.flatten(strategy.run(function, args=(batch,)))
    )


def _groups(batches, size):
    """Yields lists of up to `size` consecutive batches of one shape."""
    group = []
    for batch in batches:
        if len(group) == size or group and batch.shape != group[0].shape:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def has_other_workers(strategy):
    """Returns whether some replicas are another process's."""
    workers = strategy.extended.worker_devices
    return len(workers) < strategy.num_replicas_in_sync


def arrays(strategy, size):
    """Returns a `tf.TensorArray` for each of this worker's replicas."""
    return [
        tf.TensorArray(tf.float32, size)
        for _ in strategy.extended.worker_devices
    ]


def write(strategy, arrays, index, value):
    """Writes what `strategy.run` returned; returns the arrays then."""
    local = strategy.experimental_local_results(value)
    return [
        array.write(index, v) for array, v in zip(arrays, local, strict=True)
    ]


def gather(strategy, value, axis):
    """Returns the replicas' tensors, concatenated, as a NumPy array.

    Args:
        strategy: the `tf.distribute.Strategy`.
        value: what its `run` returned, or a list of the tensors of this
            worker's replicas, of any shapes that fit together.
        axis: int, along which to concatenate.
    """
    local = value
    if not isinstance(value, list):
        local = strategy.experimental_local_results(value)
    if not has_other_workers(strategy):
        # One process needs no collective operation.
        return np.concatenate([v.numpy() for v in local], axis)
    value = strategy.experimental_distribute_values_from_function(
        lambda context: local[context.replica_id_in_sync_group % len(local)]
    )
    return strategy.gather(value, axis).numpy()


def _count(batches):
    count = int(batches.cardinality())
    if count == tf.data.UNKNOWN_CARDINALITY:
        count = int(batches.reduce(0, lambda n, *_: n + 1))
    if count in (0, tf.data.INFINITE_CARDINALITY):
        raise UserError(
            "Batches must be finite and at least one. Received: "
            f"{'none' if count == 0 else 'infinitely many; use .take(n)'}."
        )
    return count


def _fill_up(batches):
    """Gives all batches the first one's size, and weights.

    Returns:
        The batches, of static shapes, and the bytes of one.
    """
    first = next(iter(batches))
    size = len(first[0])

    def fill_up(inputs, targets, weights=None):
        if weights is None:
            weights = tf.ones(tf.shape(inputs)[:1])
        tensors = inputs, targets, tf.cast(weights, tf.float32)
        return tuple(_pad(tensor, size) for tensor in tensors)

    batches = batches.map(fill_up, num_parallel_calls=PARALLEL_CALLS)
    num_bytes = sum(
        spec.dtype.size * math.prod(spec.shape) for spec in batches.element_spec
    )
    return batches, num_bytes


def _pad(tensor, size):
    shape = [size, *tensor.shape[1:]]
    missing = size - tf.shape(tensor)[0]
    padding = [[0, missing]] + [[0, 0]] * (len(shape) - 1)
    return tf.ensure_shape(tf.pad(tensor, padding), shape)


def _deal_out(batches, missing, chunk_size, context):
    """Returns one worker's chunks, those of its replicas in turn."""
    replicas = context.num_replicas_in_sync
    own = replicas // context.num_input_pipelines
    first = context.input_pipeline_id * own
    blank = tf.data.Dataset.from_tensors(
        tuple(tf.zeros(s.shape, s.dtype) for s in batches.element_spec)
    )
    rounds = batches.concatenate(blank.repeat(missing)).batch(
        replicas, drop_remainder=True
    )

    def replicas_first(*tensors):
        return tuple(
            tf.transpose(t, [1, 0, *range(2, len(t.shape))]) for t in tensors
        )

    chunks = rounds.map(lambda *ts: tuple(t[first : first + own] for t in ts))
    chunks = chunks.batch(chunk_size, drop_remainder=True).map(replicas_first)
    return prefetch(chunks.unbatch())
