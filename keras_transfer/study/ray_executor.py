"""The jobs of a study as tasks of a Ray cluster."""

import os
import signal
import socket
import threading
import urllib.parse

import gin

from keras_transfer import environment, memory
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.study import tasks
from keras_transfer.training.interruption import DeferredSignals

# How soon a signal is answered.
_SECONDS_BETWEEN_CHECKS = 0.5
_SEVERAL_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# What a cluster may take to answer; Ray itself would try for minutes.
_SECONDS_TO_REACH = 10.0


@gin.configurable
class OnRay:
    """Runs jobs as Ray tasks, as many at a time as the cluster can.

    The study's directory must be one that every machine of the cluster sees
    under the same path, and so must the data and modules of your own. A job
    whose worker or machine is lost is tried again elsewhere and goes on from
    what it has saved.

    With the same number of threads it gives the same bits as `InTurn`.

    Args:
        address: str of a running cluster, such as "auto" or "HOST:6379"; None
            to start one on this machine that ends with the study.
        threads: int, that a job's worker computes with; None for as many as
            its machine has cores.
        cpus_per_job: float, CPU cores that a job keeps from others; None for
            one a thread.
        gpus_per_job: float, GPUs, of which a job then sees no others.
        max_retries: int, how often a job is tried again when its worker is
            lost.

    Raises:
        UserError: if Ray is not installed or the cluster cannot be reached.
    """

    def __init__(
        self,
        address=None,
        threads: schema.Count | None = None,
        cpus_per_job: float | None = None,
        gpus_per_job: float = 0.0,
        max_retries: int = 3,
    ):
        self.running = {}
        self.is_full = False
        self._address = address
        self._threads = threads
        self._cpus = cpus_per_job or float(threads or 1)
        self._gpus = gpus_per_job
        self._max_retries = max_retries
        self._references = {}

    def __enter__(self):
        self._ray = _connected(self._address, self._threads)
        self._check_resources()
        remote = self._ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=self._max_retries,
            # TensorFlow gives GPU memory back only when its process ends.
            max_calls=1 if self._gpus else 0,
        )
        self._work = remote(_run_in_worker)
        return self

    def __exit__(self, *exception):
        references = list(self._references)
        for reference in references:
            self._ray.cancel(reference)
        if references:
            self._ray.wait(
                references,
                num_returns=len(references),
                timeout=tasks.SECONDS_TO_STOP,
            )
        self._ray.shutdown()

    def submit(self, job):
        """Takes a job, to be run when there is room for it."""
        self.running[job.name] = job
        self._references[self._work.remote(job, self._threads)] = job

    def wait(self):
        """Waits for one of the jobs to end; returns its name.

        Raises:
            UserError: if another process works in the job's directory.
        """
        reference = self._ended()
        job = self._references.pop(reference)
        del self.running[job.name]
        errors = self._ray.exceptions
        try:
            self._ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            tasks.record_loss(
                job,
                "OnRay",
                self._max_retries,
                "raise OnRay.cpus_per_job, so that fewer jobs share a machine. "
                f"Ray said: {error}",
            )
        return job.name

    def _ended(self):
        """Waits for one of the jobs to end; returns its reference."""
        # What a signal's handler raises within Ray comes out as another error.
        with DeferredSignals() as signals:
            ended = []
            while not ended:
                signals.check()
                ended, _ = self._ray.wait(
                    list(self._references), timeout=_SECONDS_BETWEEN_CHECKS
                )
        return ended[0]

    def _check_resources(self):
        available = self._ray.cluster_resources()
        wanted = {"CPU": self._cpus, "GPU": self._gpus}
        for kind, number in wanted.items():
            largest = max(
                node["Resources"].get(kind, 0.0)
                for node in self._ray.nodes()
                if node["Alive"]
            )
            if number > largest:
                self._ray.shutdown()
                raise UserError(
                    f"No machine of the Ray cluster has {number:g} {kind}s for "
                    f"a job; the largest has {largest:g}, the cluster "
                    f"{available.get(kind, 0.0):g}. Lower OnRay.cpus_per_job "
                    "or OnRay.gpus_per_job, or give the cluster more."
                )


def _connected(address, threads):
    """Returns the module `ray`, connected to a cluster.

    Args:
        address: str or None, see `OnRay`.
        threads: int that libraries use in workers; None for as many as here.
    """
    # Ray would report its use to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address is None:
            _listen_to_this_machine()
        import ray
    except ImportError as error:
        raise UserError(
            "--executor=ray needs Ray. Install it with pip install "
            "'keras_transfer[ray]', or leave --executor out to run everything "
            "on this machine."
        ) from error
    # Ray has a mind of its own about them, and they decide sums.
    number = threads or os.environ.get("OMP_NUM_THREADS", "")
    arguments = (
        {}
        if address
        else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _check_listens(address)
        ray.init(
            address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(number)}},
            **arguments,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"No Ray cluster could be reached at {address!r}. Start one with "
            "`ray start --head` and give its address, or leave --ray_address "
            f"out to start one on this machine. Ray said: {error}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray has put one of its own in its place, which just ends the process.
        signal.signal(signal.SIGTERM, handler)
    return ray


def _listen_to_this_machine():
    """Has a cluster that is started next listen to no other machine.

    It has no password. Ray itself replaces 127.0.0.1 by the address of the
    network, save where it knows no clusters of several machines, which is what
    this variable says, also to the processes that it starts.
    """
    os.environ[_SEVERAL_MACHINES] = "0"
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def _check_listens(address):
    """Raises an OSError or ValueError if nothing listens at "HOST:PORT"."""
    scheme = "" if "://" in address else "//"
    place = urllib.parse.urlsplit(f"{scheme}{address}")
    if place.port is not None:
        place = place.hostname, place.port
        socket.create_connection(place, _SECONDS_TO_REACH).close()


def _run_in_worker(job, threads):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    memory.keep_freed()
    if threads:
        environment.use_threads(threads)
    tasks.run_job(job, seconds=tasks.SECONDS_FOR_LOCK)
