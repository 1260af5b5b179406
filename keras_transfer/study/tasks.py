"""Running one task of a study: in this process or, as a job, elsewhere."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time
import traceback
import uuid

import gin
import keras
from absl import logging

from keras_transfer import config, environment, files, progress, reading
from keras_transfer.analysis.analyze import analyze
from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest
from keras_transfer.training import Trainers, train

# A killed worker's process may live on for a while, and hold its directory.
SECONDS_FOR_LOCK = 120.0
# What a job that is stopped may take to save what it has done.
SECONDS_TO_STOP = 30.0

_RECORD = "task.json"
_LOG = "error.log"
# Within the study: what there was to say of tasks while they were run.
_OUTPUT = "logs"
# Within the study: what tasks were before their configuration changed.
_REPLACED = "replaced"
# What there may be in the record, and of what types.
_TYPES = {
    "state": str,
    "seconds": (float, int),
    "completion": str,
    "command": str,
    "config": str,
    "threads": int,
    "needs": dict,
}


@dataclasses.dataclass(frozen=True)
class Job:
    """All that is needed to run a task, wherever that happens.

    Attributes:
        name: str, the task's.
        path: `pathlib.Path` of its directory.
        config: str, its whole configuration as gin writes it.
        identity: dict, what must be the same for a result to be current:
            "command" ("train" or "analyze"), "config", "threads" and "needs"
            (see `Runner`).
        python_path: tuple of folders in which modules are looked for last; a
            worker must find those that the configuration imports.
        priority: float, what is to be done until the last of those that wait
            for it is finished; the largest is the most urgent.
    """

    name: str
    path: pathlib.Path
    config: str
    identity: dict
    python_path: tuple = ()
    priority: float = 0.0


def read_record(path):
    """Returns what task.json in a task's directory says, {} if nothing.

    Args:
        path: `pathlib.Path` of the directory.
    """
    path = path / _RECORD
    if not os.path.lexists(path):
        return {}
    try:
        content = reading.read_bytes(path)
        found = reading.as_object(content, path)
        types = {name: _TYPES[name] for name in _TYPES.keys() & found.keys()}
        return reading.as_object(content, path, **types)
    except UserError as error:
        logging.warning("%s The task is done again.", error)
        return {}


def log_path(path):
    """Returns where it is written why the task in a directory failed."""
    return path / _LOG


def read_log(path):
    """Returns why the task in a directory failed, "" if it did not."""
    try:
        return log_path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def output_path(job):
    """Returns where the study keeps what there was to say of a job."""
    return _study(job) / _OUTPUT / f"{job.name}.log"


def _study(job):
    return job.path.parents[len(pathlib.PurePath(job.name).parts) - 1]


def matches(record, identity):
    """Returns whether a record is of a task as it would be run now."""
    return {key: record.get(key) for key in identity} == identity


def check_ours(path):
    """Checks that a task's directory holds nothing that is not the task's.

    Args:
        path: `pathlib.Path`; the directory may be absent.

    Raises:
        UserError: if something is there and no task.json that accounts for it.
    """
    if path.is_dir() and not os.path.lexists(path / _RECORD):
        names = [
            name
            for name in sorted(os.listdir(path))
            if not name.startswith(".") and name != _LOG
        ]
        if names:
            raise UserError(
                f"{path} holds what no study has made: {', '.join(names[:5])}. "
                "Nothing was changed; move it away, or give another --work_dir."
            )


def is_intact(path):
    """Returns whether the files of a finished analysis are as written.

    Args:
        path: `pathlib.Path` of its directory.
    """
    try:
        Manifest(path).check()
    except UserError as error:
        logging.warning("%s The analysis is done again.", error)
        return False
    return True


def run_job(job, loaded=None, seconds=0.0, trainers=None):
    """Trains or analyses, and records how that ended.

    What was done of the same job before is continued; what another one left in
    the directory is moved to `replaced/` in the study, and comes back when its
    configuration does.

    Args:
        job: the `Job`.
        loaded: `Models` of the analysis before, or None.
        seconds: float, how long to wait for another process to leave the
            directory.
        trainers: `Trainers` of the runs before, or None.

    Returns:
        The `Models` of an analysis, None otherwise.

    Raises:
        UserError: if another process works in the directory, or something is
            there that no study has made.
    """
    while True:
        with files.hold(job.path, seconds):
            check_ours(job.path)
            old = read_record(job.path)
            if matches(old, job.identity) or not _is_begun(job.path):
                return _go_on(job, loaded, old, trainers)
            # Another configuration's, or made from what has been made anew.
            _set_aside(job, old)
        _bring_back(job)


def _go_on(job, loaded, old, trainers):
    if old.get("state") == "finished" and (
        job.identity["command"] == "train" or is_intact(job.path)
    ):
        # By a worker that was lost before it could tell.
        return None
    (job.path / _LOG).unlink(missing_ok=True)
    return _run_recorded(job, loaded, old.get("seconds", 0.0), trainers)


def _is_begun(path):
    return os.path.lexists(path / _RECORD)


def _set_aside(job, record):
    """Moves a held directory away as it is."""
    place = _replaced(job, record)
    place.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while os.path.lexists(target := place.with_name(f"{place.name}_{number}")):
        number += 1
    with files.writing(target):
        os.rename(job.path, target)
        (target / files.LOCK_NAME).unlink(missing_ok=True)
    logging.warning(
        "%s was of another configuration, or made from what was made anew. It "
        "is kept in %s; remove that if it is not wanted.",
        job.name,
        target,
    )


def _bring_back(job):
    """Moves what was set aside back, if it is what the job would make."""
    place = _replaced(job, job.identity)
    for found in sorted(place.parent.glob(f"{place.name}_*")):
        record = read_record(found)
        is_done = record.get("state") == "finished"
        if is_done and matches(record, job.identity):
            with contextlib.suppress(OSError):
                os.rename(found, job.path)
            return


def _replaced(job, record):
    """Returns where a task of a record is kept, without a number."""
    names = ("command", "config", "threads", "needs")
    told = [record.get(name) for name in names]
    digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=6)
    return _study(job) / _REPLACED / job.name / digest.hexdigest()


def _run_recorded(job, loaded, spent, trainers):
    record = job.identity | {"state": "begun"}
    _write(job.path, record | {"seconds": spent})
    began = time.perf_counter()
    log = ""
    try:
        with progress.logging_to(output_path(job)):
            loaded = _execute(job, loaded, trainers)
        record |= {"state": "finished", "completion": uuid.uuid4().hex}
    except UserError as error:
        log = f"{config.without_calls(error)}\n"
    except Exception:
        log = traceback.format_exc()
    finally:
        # Also when interrupted, so that its time counts.
        record["seconds"] = spent + time.perf_counter() - began
        if log:
            _write_failure(job, record, log)
        else:
            _write(job.path, record)
        gin.clear_config()
    return loaded


def _execute(job, loaded, trainers):
    gin.clear_config()
    sys.path += [f for f in job.python_path if f not in sys.path]
    config.parse([], [job.config])
    if job.identity["command"] == "analyze":
        return analyze(job.path, loaded=loaded)
    train(job.path, trainers=trainers)
    # Models, and the functions compiled for them, are large; what is no longer
    # referred to is collected, too.
    keras.backend.clear_session()
    return None


def record_failure(job, reason, seconds=0.0):
    """Records that a job could not be run; it is tried again next time.

    Args:
        job: the `Job`.
        reason: str, a sentence.
        seconds: float, how long to wait for another process to leave the
            directory.

    Raises:
        UserError: if another process works in the directory.
    """
    with files.hold(job.path, seconds):
        record = read_record(job.path)
        spent = record.get("seconds", 0.0)
        _write_failure(job, job.identity | {"seconds": spent}, f"{reason}\n")


def record_loss(job, executor, retries, remedy):
    """Records that a job has lost its worker each time that it was tried.

    Args:
        job: the `Job`.
        executor: str, the name of a class with an argument `max_retries`.
        retries: int, the value of that.
        remedy: str, the rest of a sentence: what to do against want of memory.

    Raises:
        UserError: if another process works in the job's directory.
    """
    record_failure(
        job,
        f"Its worker was lost {retries + 1} times, which is all that "
        f"{executor}.max_retries allows. Most likely it has too little memory; "
        f"{remedy}",
        SECONDS_FOR_LOCK,
    )


def _write_failure(job, record, log):
    files.write_text(job.path / _LOG, log)
    _write(job.path, record | {"state": "failed"})


def _write(path, record):
    files.write_text(path / _RECORD, json.dumps(record, indent=2) + "\n")


class InTurn:
    """Runs jobs in this process, one at a time.

    Like every executor, a context manager within which `submit` takes a `Job`
    and `wait` returns the name of one that has ended.

    Args:
        threads: int, that numerical libraries then have in this process (see
            `environment.use_threads`); None to leave them as they are.
        seconds: float, how long to wait for another process to leave a job's
            directory.

    Attributes:
        running: {name: `Job`} of those that have not ended.
    """

    def __init__(self, threads=None, seconds=0.0):
        self.running = {}
        self._threads = threads
        self._seconds = seconds
        self._loaded = None
        self._trainers = None

    def __enter__(self):
        if self._threads:
            environment.use_threads(self._threads)
        self._trainers = Trainers()
        return self

    def __exit__(self, *exception):
        self._loaded = self._trainers = None

    @property
    def is_full(self):
        """Whether another job would only have to wait."""
        return bool(self.running)

    def submit(self, job):
        """Takes a job, to be run in `wait`."""
        self.running[job.name] = job

    def wait(self):
        """Runs the job that was submitted; returns its name."""
        name, job = self.running.popitem()
        if job.identity["command"] == "train":
            self._loaded = None
        self._loaded = run_job(job, self._loaded, self._seconds, self._trainers)
        return name
