"""A process that runs jobs for another one; see `study.workers`.

What it needs is imported when it begins to work: which devices libraries see,
and how many threads they use, is settled before.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading

from absl import flags, logging

from keras_transfer import environment


def main(jobs, output, threads, variables, verbosity):
    """Runs jobs until there are no more or SIGTERM comes.

    Args:
        jobs: connection that brings each `Job` and takes, when it has been run,
            None, or the error that kept it from being run.
        output: connection that takes what is written to the standard streams.
        threads: int, that TensorFlow and other libraries use.
        variables: {name: value} of the environment.
        verbosity: int, absl's.
    """
    # What a terminal sends to all that run in it shall come to the parent
    # alone, which ends the others once and lets them save.
    os.setsid()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(output.fileno(), descriptor)
        stream = open(descriptor, "w", buffering=1, closefd=False)  # noqa: SIM115
        # The parent may be gone before the last word.
        setattr(sys, name, environment.Stream(stream))
    output.close()
    os.environ.update(variables)
    environment.prepare()
    # Before TensorFlow sees that nobody else logs.
    flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(verbosity)
    environment.prepare_keras()
    from keras_transfer import memory
    from keras_transfer.study import tasks

    memory.keep_freed()
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The parent leaves, or has left.
    ended = contextlib.suppress(EOFError, ConnectionError)
    with ended, tasks.InTurn(threads, tasks.SECONDS_FOR_LOCK) as executor:
        _serve(executor, jobs)


def _end(number, frame):
    sys.exit(128 + number)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _serve(executor, jobs):
    while True:
        executor.submit(jobs.recv())
        try:
            executor.wait()
        except Exception as error:
            jobs.send(error)
        else:
            jobs.send(None)
