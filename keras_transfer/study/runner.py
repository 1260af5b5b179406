"""Carrying out a study: what is done is not done again."""

import dataclasses
import functools
import gc
import json
import pathlib
import shutil
import time
import traceback
import uuid

import gin
import keras
from absl import logging
from tqdm import tqdm

from keras_transfer import config, locking
from keras_transfer.analysis import analyze
from keras_transfer.errors import UserError
from keras_transfer.runs import write_text
from keras_transfer.study.plan import Place
from keras_transfer.training import train

_RECORD = "task.json"
_LOG = "error.log"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: the `Task`.
        state: "finished", "failed" or "not run" (for want of another).
        seconds: float, what it took when it was carried out.
        log: str, why it failed or was not run; "" for a finished one.
    """

    task: object
    state: str
    seconds: float = float("nan")
    log: str = ""


class Runner:
    """Carries out tasks in a study's directory.

    Beside what a task leaves stands task.json: its configuration, which
    completions of other tasks it has read, and whether it is finished. A task
    is done again if its configuration has changed, or a task that it needs was
    done again; one that was interrupted goes on from where it was.

    Args:
        work_dir: the study's directory, made when something is run.
        tasks: list of `Task`, each after those it needs.

    Raises:
        UserError: if a task's configuration cannot be used.
    """

    def __init__(self, work_dir, tasks):
        self.path = pathlib.Path(work_dir).absolute()
        self.tasks = tasks
        # Where the study lies is no part of what it is.
        self._configs = {
            task.name: configure(task, lambda place: place.name)
            for task in tasks
        }
        self._loaded = None

    def run(self):
        """Carries out what is not finished.

        A task that fails does not stop those that do not need it; it is tried
        again the next time.

        Returns:
            list of `Outcome`, one per task.
        """
        outcomes = {}
        with tqdm(
            total=len(self.tasks), unit="task", dynamic_ncols=True
        ) as bar:
            for task in self.tasks:
                bar.set_description(task.name)
                outcomes[task.name] = self._settle(task, outcomes)
                bar.update()
            bar.set_description("study")
        return list(outcomes.values())

    def record(self, task):
        """Returns what task.json says of a task, {} if it says nothing."""
        path = self.path / task.name / _RECORD
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            logging.warning(
                "%s is damaged (%s); the task is done again.", path, error
            )
            return {}

    def is_current(self, task):
        """Returns whether a task is finished and what it read still stands."""
        record = self.record(task)
        return record.get("state") == "finished" and self._same(task, record)

    def _settle(self, task, outcomes):
        """Carries out one task if need be; returns its `Outcome`."""
        missing = [
            name for name in task.needs if outcomes[name].state != "finished"
        ]
        if missing:
            return Outcome(
                task, "not run", log=f"It needs {', '.join(missing)}."
            )
        if not self.is_current(task):
            with locking.hold(self.path / task.name):
                self._carry_out(task)
        record = self.record(task)
        log = self.path / task.name / _LOG
        return Outcome(
            task,
            record["state"],
            record["seconds"],
            log.read_text(encoding="utf-8") if log.is_file() else "",
        )

    def _carry_out(self, task):
        path = self.path / task.name
        old = self.record(task)
        if not self._same(task, old):
            # Another configuration's, or made from what has been made anew.
            _clear(path)
            old = {}
        (path / _LOG).unlink(missing_ok=True)
        record = self._identity(task) | {"state": "begun"}
        spent = old.get("seconds", 0.0)
        self._write(path, record | {"seconds": spent})
        began = time.perf_counter()
        try:
            self._execute(task, path)
            record["state"], record["completion"] = "finished", uuid.uuid4().hex
        except UserError as error:
            record["state"] = "failed"
            write_text(path / _LOG, f"{error}\n")
        except Exception:
            record["state"] = "failed"
            write_text(path / _LOG, traceback.format_exc())
        finally:
            # Also when interrupted, so that its time counts.
            record["seconds"] = spent + time.perf_counter() - began
            self._write(path, record)
            gin.clear_config()
        if record["state"] == "failed":
            tqdm.write(f"{task.name} failed; see {path / _LOG}.")

    def _execute(self, task, path):
        configure(task, lambda place: str(self.path / place.name))
        if task.command == "analyze":
            self._loaded = analyze(path, loaded=self._loaded)
            return
        self._loaded = None
        train(path)
        # Models, and the functions compiled for them, are large.
        keras.backend.clear_session()
        gc.collect()

    def _identity(self, task):
        """Returns what must be the same for a result to stand."""
        completions = {
            name: self.record(self._by_name[name]).get("completion")
            for name in task.needs
        }
        return {
            "command": task.command,
            "config": self._configs[task.name],
            "needs": completions,
        }

    def _same(self, task, record):
        identity = self._identity(task)
        return {key: record.get(key) for key in identity} == identity

    @functools.cached_property
    def _by_name(self):
        return {task.name: task for task in self.tasks}

    def _write(self, path, record):
        write_text(path / _RECORD, json.dumps(record, indent=2) + "\n")


def _clear(directory):
    """Removes what a held directory contains, save the lock."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != locking.NAME:
            path.unlink()


def configure(task, resolve):
    """Reads a task's configuration into gin, in place of what was there.

    Args:
        task: `Task`.
        resolve: function from a `Place` to the str that stands for it.

    Returns:
        str, the configuration as gin writes it.

    Raises:
        UserError: if a file is missing or a binding names nothing.
    """
    bindings = [
        f"{name} = {_resolved(value, resolve)!r}"
        for name, value in task.bindings.items()
    ]
    gin.clear_config()
    config.parse(task.files, bindings)
    return gin.config_str()


def _resolved(value, resolve):
    """Returns a value with a str in place of each `Place` within."""
    if isinstance(value, Place):
        return resolve(value)
    if isinstance(value, dict):
        return {k: _resolved(v, resolve) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(v, resolve) for v in value]
    return value
