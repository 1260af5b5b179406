"""Batches dealt out to the replicas of a strategy, and kept there."""

import math

import numpy as np
import tensorflow as tf

from keras_transfer.data.pipeline import PARALLEL_CALLS, prefetch
from keras_transfer.errors import UserError

# A replica is given many batches at a time, so that what is done once for all
# of them costs little beside a forward pass over them.
_CHUNK_BYTES = 128 * 2**20


class SpreadBatches:
    """Iterates over chunks of batches that lie on the strategy's devices.

    Batches are dealt out whole: batch j goes to replica j mod R, so that what
    is computed from a batch does not depend on R. A chunk holds m batches for
    each replica, stacked. The last round is filled up with blank batches, and
    a smaller last batch with blank examples, of weight 0.

    Attributes:
        num_batches: int, batches of each replica.
        kept: bool, whether the chunks stay on the devices; otherwise they are
            read again in each iteration.
        chunk_spec: list of the type specifications of what iteration yields.

    Args:
        batches: finite `tf.data.Dataset` of (inputs, targets) or (inputs,
            targets, weights), in batches of one size b, the last one possibly
            smaller; weights float [b].
        strategy: the `tf.distribute.Strategy`.
        memory_budget: GiB on each device up to which chunks are kept.

    Yields:
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
        chunk_size = max(1, _CHUNK_BYTES // batch_bytes)
        self._chunks = strategy.distribute_datasets_from_function(
            lambda context: _deal_out(batches, chunk_size, context)
        )
        self.chunk_spec = list(self._chunks.element_spec)
        self._kept_chunks = None

    def __iter__(self):
        if not self.kept:
            return iter(self._chunks)
        if self._kept_chunks is None:
            self._kept_chunks = list(self._chunks)
        return iter(self._kept_chunks)


def has_other_workers(strategy):
    """Returns whether some replicas are another process's."""
    workers = strategy.extended.worker_devices
    return len(workers) < strategy.num_replicas_in_sync


def gather(strategy, value, axis):
    """Returns the replicas' tensors, concatenated, as a NumPy array.

    Args:
        strategy: the `tf.distribute.Strategy`.
        value: what its `run` returned, of any shapes that fit together.
        axis: int, along which to concatenate.
    """
    if has_other_workers(strategy):
        return strategy.gather(value, axis).numpy()
    # One process needs no collective operation.
    local = strategy.experimental_local_results(value)
    return np.concatenate([v.numpy() for v in local], axis)


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


def _deal_out(batches, chunk_size, context):
    """Returns one worker's chunks, those of its replicas in turn."""
    replicas = context.num_replicas_in_sync
    own = replicas // context.num_input_pipelines
    first = context.input_pipeline_id * own
    blank = tf.data.Dataset.from_tensors(
        tuple(tf.zeros(s.shape, s.dtype) for s in batches.element_spec)
    )
    rounds = batches.concatenate(blank.repeat(replicas - 1)).batch(
        replicas, drop_remainder=True
    )

    def replicas_first(*tensors):
        return tuple(
            tf.transpose(t, [1, 0, *range(2, len(t.shape))]) for t in tensors
        )

    chunks = rounds.map(lambda *ts: tuple(t[first : first + own] for t in ts))
    chunks = chunks.batch(chunk_size).map(replicas_first)
    return prefetch(chunks.unbatch())
