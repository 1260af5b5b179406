"""Several workers, one run: `MultiWorkerMirroredStrategy`'s cluster."""

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading

import gin
import tensorflow as tf

from keras_transfer.config import without_calls
from keras_transfer.errors import UserError


@contextlib.contextmanager
def joining():
    """Ends the process if the cluster in TF_CONFIG does not come together.

    TensorFlow waits for a missing worker for up to an hour, in a call that
    nothing but the end of the process interrupts. The strategy is made in this
    context; without TF_CONFIG it does nothing.

    Raises:
        UserError: if TensorFlow refuses the cluster.
    """
    if not os.environ.get("TF_CONFIG"):
        yield
        return
    received = f"Received: TF_CONFIG={os.environ['TF_CONFIG']}"
    seconds = _timeout()
    sentence = (
        f"The cluster did not come together within {seconds:g} seconds. Check "
        "that every worker has been started, with the same addresses and an "
        "index of its own, and that they can reach each other; or raise "
        f"cluster_timeout.seconds. {received}"
    )
    try:
        if not isinstance(json.loads(os.environ["TF_CONFIG"]), dict):
            raise TypeError("it must be a JSON object.")
        with _deadline(seconds, sentence):
            yield
    except UserError:
        raise
    # What TensorFlow raises over a TF_CONFIG of another form.
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        tf.errors.OpError,
    ) as error:
        said = without_calls(error)
        raise UserError(
            f"The cluster cannot be used: {said} {received}"
        ) from error


@gin.configurable("cluster_timeout")
def _timeout(seconds=300.0):
    """Returns how many seconds to wait for all workers of a cluster."""
    return seconds


@contextlib.contextmanager
def _deadline(seconds, sentence):
    """Ends the process with a sentence and status 1 when time is up.

    TensorFlow holds Python's lock while it waits, so that neither a thread nor
    a signal handler would run. The timer of faulthandler does without, and what
    it writes wakes another process, which has the sentence.
    """
    script = "import sys; sys.stdin.read() and sys.stderr.write(sys.argv[1])"
    with subprocess.Popen(
        [sys.executable, "-c", script, f"\nError: {sentence}\n"],
        stdin=subprocess.PIPE,
    ) as herald:
        is_main = threading.current_thread() is threading.main_thread()
        # For the same reason SIGTERM must end the process by itself.
        handler = is_main and signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.dump_traceback_later(seconds, file=herald.stdin, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            if is_main:
                signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def working(strategy):
    """Turns the loss of another worker into a plain sentence.

    Args:
        strategy: the `tf.distribute.Strategy`.

    Raises:
        UserError: if a worker is lost while the block runs.
    """
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.InternalError,
    ) as error:
        if num_workers(strategy) == 1:
            raise
        raise UserError(
            "Another worker of the cluster is gone. Start all of them again; "
            f"they resume. TensorFlow said: {error.message}"
        ) from error


def num_workers(strategy):
    """Returns the number of workers that train together under a strategy."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return 1
    jobs = resolver.cluster_spec().as_dict()
    return len(jobs.get("chief", ())) + len(jobs.get("worker", ()))


def is_chief(strategy):
    """Returns whether this process writes what all workers have made."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().jobs
    )
