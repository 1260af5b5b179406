"""Running one task of a study: in this process or, as a job, elsewhere."""

import dataclasses
import json
import pathlib
import shutil
import sys
import time
import traceback
import uuid

import gin
import keras
from absl import logging
from tqdm import tqdm

from keras_transfer import config, files
from keras_transfer.analysis.analyze import analyze
from keras_transfer.errors import UserError
from keras_transfer.training import train

_RECORD = "task.json"
_LOG = "error.log"


@dataclasses.dataclass(frozen=True)
class Job:
    """All that is needed to run a task, wherever that happens.

    Attributes:
        name: str, the task's.
        path: `pathlib.Path` of its directory.
        config: str, its whole configuration as gin writes it.
        identity: dict, what must be the same for a result to be current:
            "command" ("train" or "analyze"), "config" and "needs" (see
            `Runner`).
        python_path: tuple of folders in which modules are looked for last; a
            worker must find those that the configuration imports.
    """

    name: str
    path: pathlib.Path
    config: str
    identity: dict
    python_path: tuple = ()


def read_record(path):
    """Returns what task.json in a task's directory says, {} if nothing.

    Args:
        path: `pathlib.Path` of the directory.
    """
    path = path / _RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        logging.warning(
            "%s is damaged (%s); the task is done again.", path, error
        )
        return {}


def read_log(path):
    """Returns why the task in a directory failed, "" if it did not."""
    log = path / _LOG
    return log.read_text(encoding="utf-8") if log.is_file() else ""


def matches(record, identity):
    """Returns whether a record is of a task as it would be run now."""
    return {key: record.get(key) for key in identity} == identity


def run_job(job, loaded=None, seconds=0.0):
    """Trains or analyses, and records how that ended.

    What was done of the same job before is continued; what another one left in
    the directory is removed.

    Args:
        job: the `Job`.
        loaded: `Models` of the analysis before, or None.
        seconds: float, how long to wait for another process to leave the
            directory.

    Returns:
        The `Models` of an analysis, None otherwise.

    Raises:
        UserError: if another process works in the directory.
    """
    with files.hold(job.path, seconds):
        old = read_record(job.path)
        if not matches(old, job.identity):
            # Another configuration's, or made from what has been made anew.
            _clear(job.path)
            old = {}
        elif old.get("state") == "finished":
            # By a worker that was lost before it could tell.
            return None
        (job.path / _LOG).unlink(missing_ok=True)
        return _run_recorded(job, loaded, old.get("seconds", 0.0))


def _run_recorded(job, loaded, spent):
    record = job.identity | {"state": "begun"}
    _write(job.path, record | {"seconds": spent})
    began = time.perf_counter()
    log = ""
    try:
        loaded = _execute(job, loaded)
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


def _execute(job, loaded):
    gin.clear_config()
    sys.path += [f for f in job.python_path if f not in sys.path]
    config.parse([], [job.config])
    if job.identity["command"] == "analyze":
        return analyze(job.path, loaded=loaded)
    train(job.path)
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


def _write_failure(job, record, log):
    files.write_text(job.path / _LOG, log)
    _write(job.path, record | {"state": "failed"})
    tqdm.write(f"{job.name} failed; see {job.path / _LOG}.")


def _write(path, record):
    files.write_text(path / _RECORD, json.dumps(record, indent=2) + "\n")


def _clear(directory):
    """Removes what a held directory contains, save the lock."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != files.LOCK_NAME:
            path.unlink()


class InTurn:
    """Runs jobs in this process, one at a time.

    Like every executor, a context manager within which `submit` takes a `Job`
    and `wait` returns the name of one that has ended.

    Attributes:
        running: {name: `Job`} of those that have not ended.
    """

    def __init__(self):
        self.running = {}
        self._loaded = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._loaded = None

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
        self._loaded = run_job(job, self._loaded)
        return name
