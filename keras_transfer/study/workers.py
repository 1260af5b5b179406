"""The jobs of a study side by side, in processes of this machine."""

import collections
import contextlib
import multiprocessing.connection
import operator
import os
import signal
import sys
import time

import gin
import joblib
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from keras_transfer import files, worker
from keras_transfer.config import schema
from keras_transfer.study import tasks

_priority = operator.attrgetter("priority")
# What a process that has closed its connections may take to be gone.
_SECONDS_TO_END = 5.0


@gin.configurable
class Workers:
    """Runs jobs in processes of this machine, many at a time.

    The processes live as long as the study, so that TensorFlow is imported once
    in each. Every job has a fixed number of threads: its numbers do not depend
    on how many cores there are, nor on what else is run. One whose process is
    killed, most often for want of memory, is tried again and goes on from what
    it has saved.

    A script that uses this must guard what it does by `if __name__ ==
    "__main__"`, as all that start processes with Python's multiprocessing. Its
    own process then leaves GPUs alone.

    Args:
        threads: int, that a job has to itself.
        num_workers: int, processes; None for as many as have their threads on
            the cores that there are and, if there are GPUs, their share of one.
        jobs_per_gpu: int, how many processes share a GPU, if there are GPUs;
            each sees but one.
        max_retries: int, how often a job is tried again when its process is
            killed.
    """

    # The more jobs there are to choose from, the better.
    is_full = False

    def __init__(
        self,
        threads: schema.Count = 1,
        num_workers: schema.Count | None = None,
        jobs_per_gpu: schema.Count = 1,
        max_retries: schema.Natural = 3,
    ):
        self.running = {}
        self._threads = threads
        self._gpus = _take_gpus()
        most = max(1, joblib.cpu_count() // threads)
        if self._gpus:
            most = min(most, len(self._gpus) * jobs_per_gpu)
        self._num_workers = num_workers or most
        self._max_retries = max_retries
        self._waiting = []
        # By number, which says which GPU is theirs.
        self._workers = {}
        self._losses = collections.Counter()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        workers, self._workers = list(self._workers.values()), {}
        for each in workers:
            each.stop()
        deadline = time.monotonic() + tasks.SECONDS_TO_STOP
        try:
            for each in workers:
                each.join(deadline)
        finally:
            # Also if a second signal has come.
            for each in workers:
                each.kill()

    def submit(self, job):
        """Takes a job, to be begun in `wait`."""
        self.running[job.name] = job
        self._waiting.append(job)

    def wait(self):
        """Waits for one of the jobs to end; returns its name.

        Raises:
            UserError: if another process works in the job's directory.
        """
        while True:
            self._begin_jobs()
            workers = list(self._workers.values())
            ready = multiprocessing.connection.wait(
                [c for each in workers for c in (each.output, each.jobs)]
            )
            for each in workers:
                each.tell()
            for number, each in list(self._workers.items()):
                if each.jobs not in ready:
                    continue
                job = each.job
                try:
                    error = each.take_answer()
                except EOFError:
                    error = None
                    del self._workers[number]
                    status = each.end()
                    if job is None or self._begin_again(job, status):
                        continue
                del self.running[job.name]
                if error is not None:
                    raise error
                return job.name

    def _begin_again(self, job, status):
        """Puts a job back whose process was killed, or records a failure.

        Args:
            job: the `Job`.
            status: int, with which the process ended; of one that was killed,
                minus the signal.

        Returns:
            Whether it is tried again.
        """
        if status >= 0:
            tasks.record_failure(
                job,
                f"Its process ended with status {status}; what it wrote may "
                "tell why.",
                tasks.SECONDS_FOR_LOCK,
            )
            return False
        self._losses[job.name] += 1
        if self._losses[job.name] <= self._max_retries:
            self._waiting.append(job)
            return True
        tasks.record_loss(
            job,
            "Workers",
            self._max_retries,
            "lower Workers.num_workers, so that fewer jobs share the machine. "
            f"The last was ended by {signal.Signals(-status).name}.",
        )
        return False

    def _begin_jobs(self):
        """Gives jobs that wait to processes that have nothing to do."""
        while self._waiting:
            free = [w for w in self._workers.values() if w.job is None]
            if not free and len(self._workers) == self._num_workers:
                return
            each = free[0] if free else self._started()
            job = self._next(each)
            self._waiting.remove(job)
            each.begin(job)

    def _next(self, each):
        """Returns what a process is to do next.

        It is the job with the most behind it. If that is an analysis, which no
        other job waits for, then rather one of the models that are loaded.
        """
        job = max(self._waiting, key=_priority)
        if job.identity["command"] != "analyze":
            return job
        loaded = [other for other in self._waiting if each.has_loaded(other)]
        return max(loaded, key=_priority, default=job)

    def _started(self):
        """Returns a new process."""
        number = next(
            number
            for number in range(self._num_workers)
            if number not in self._workers
        )
        variables = {"OMP_NUM_THREADS": str(self._threads)}
        if self._gpus:
            gpu = self._gpus[number % len(self._gpus)]
            variables["CUDA_VISIBLE_DEVICES"] = gpu
            if self._num_workers > len(self._gpus):
                # What it needs of the memory, not all that is free.
                variables["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        self._workers[number] = each = _Worker()
        each.start(self._threads, variables)
        return each


class _Worker:
    """A process that runs jobs, `worker.main`.

    Attributes:
        job: the `Job` that it runs, or None.
        jobs: connection that takes jobs and brings what became of them.
        output: connection that brings what the process writes.
    """

    def __init__(self):
        self._context = multiprocessing.get_context("spawn")
        self.jobs, self._their_jobs = self._context.Pipe()
        self.output, self._their_output = self._context.Pipe(duplex=False)
        self.job = self._last = self._process = None
        self._rest = b""

    def start(self, threads, variables):
        """Starts the process; its arguments are those of `worker.main`."""
        theirs = self._their_jobs, self._their_output
        self._process = self._context.Process(
            target=worker.main,
            args=(*theirs, threads, variables, logging.get_verbosity()),
        )
        self._process.start()
        # So that there is an end to what it says.
        for connection in theirs:
            connection.close()

    def begin(self, job):
        """Gives a job to the process."""
        self.job = self._last = job
        # If it has just been killed, `take_answer` tells.
        with contextlib.suppress(OSError):
            self.jobs.send(job)

    def take_answer(self):
        """Returns the error that kept the job from being run, or None.

        Raises:
            EOFError: if the process has ended.
        """
        try:
            error = self.jobs.recv()
        except OSError as reset:
            raise EOFError from reset
        self.tell()
        self.job = None
        return error

    def has_loaded(self, job):
        """Returns whether an analysis is of the same runs as the job before."""
        return (
            self._last is not None
            and self._last.identity["command"] == "analyze"
            and self._last.identity["needs"] == job.identity["needs"]
        )

    def tell(self):
        """Shows and keeps whole lines of what the process has written."""
        while self.output.poll():
            found = os.read(self.output.fileno(), 2**16)
            if not found:
                return
            *lines, self._rest = (self._rest + found).split(b"\n")
            texts = [line.decode(errors="replace") for line in lines]
            files.add_lines(tasks.output_path(self._last), texts)
            for text in texts:
                tqdm.write(f"{self._last.name}: {text}", file=sys.stderr)

    def stop(self):
        """Has the process save what it has done, and end."""
        if self._process:
            self._process.terminate()
        # Where it waits for a job, a signal may come to another of its threads.
        self.jobs.close()

    def join(self, deadline):
        """Waits until the process has ended or a time has come."""
        if not self._process:
            return
        sentinel = self._process.sentinel
        left = [sentinel, self.output]
        while (seconds := deadline - time.monotonic()) > 0:
            ready = multiprocessing.connection.wait(left, seconds)
            self.tell()
            if sentinel in ready:
                return

    def kill(self):
        """Ends the process if it has not ended."""
        if self._process:
            self._process.kill()
            self._process.join()

    def end(self):
        """Ends a process that has closed its connections.

        Returns:
            int, its status; minus the signal that it was killed by.
        """
        self.join(time.monotonic() + _SECONDS_TO_END)
        self.kill()
        return self._process.exitcode


def _take_gpus():
    """Returns the GPUs that there are, hidden from now on from this process.

    It would take their memory.

    Returns:
        list of str, each what CUDA_VISIBLE_DEVICES is for one.
    """
    number = len(tf.config.list_physical_devices("GPU"))
    if not number:
        return []
    # It has computed on them already.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named or ",".join(map(str, range(number)))).split(",")[:number]
