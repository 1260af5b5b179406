"""What every stream of batches of this package has in common."""

import os

import tensorflow as tf

# Threads that make batches; see `prefetch`.
PARALLEL_CALLS = os.cpu_count() or 1
_PREFETCHED = 2


def prefetch(batches):
    """Returns batches that are made ahead, by a fixed number of threads.

    tf.data's tuning of such numbers, which is switched off, can hold up the end
    of an iteration for as long as that has lasted, at most for a minute: its
    own thread, which sleeps ever longer, is waited for (TensorFlow 2.21).

    Args:
        batches: `tf.data.Dataset` whose `num_parallel_calls` are
            `PARALLEL_CALLS`.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(_PREFETCHED).with_options(options)


def in_order(batches, cardinality):
    """Returns batches made ahead, in their own order and not to be sharded.

    Args:
        batches: as `prefetch` takes them.
        cardinality: int, how many there are.
    """
    options = tf.data.Options()
    options.deterministic = True
    # The parts are already cut out for this worker.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    batches = prefetch(batches.with_options(options))
    return batches.apply(tf.data.experimental.assert_cardinality(cardinality))
