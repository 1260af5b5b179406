"""Carrying out a study: what is done is not done again."""

import dataclasses
import functools
import pathlib

import gin
from tqdm import tqdm

from keras_transfer import config
from keras_transfer.errors import UserError
from keras_transfer.study import tasks
from keras_transfer.study.plan import Place

# What the configuration of a command binds, by which it is told from others.
_NEEDED = {"train": "model", "analyze": "analyses"}


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
    """Has tasks carried out in a study's directory.

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
        self._configs = {task.name: _checked(task) for task in tasks}

    def run(self, executor=None):
        """Has carried out what is not finished.

        A task is begun when those that it needs are finished. One that fails
        does not stop those that do not need it; it is tried again the next
        time.

        Args:
            executor: what carries out the jobs, such as `OnRay`; None for
                `InTurn`, in this process.

        Returns:
            list of `Outcome`, one per task.
        """
        outcomes = {}
        with (
            executor or tasks.InTurn() as executor,
            tqdm(total=len(self.tasks), unit="task", dynamic_ncols=True) as bar,
        ):
            while len(outcomes) < len(self.tasks):
                self._submit_ready(executor, outcomes, bar)
                if executor.running:
                    bar.set_description(_abridged(executor.running))
                    name = executor.wait()
                    outcomes[name] = self._outcome(self._by_name[name])
                    bar.update()
            bar.set_description("study")
        return [outcomes[task.name] for task in self.tasks]

    def record(self, task):
        """Returns what task.json says of a task, {} if it says nothing."""
        return tasks.read_record(self.path / task.name)

    def is_current(self, task):
        """Returns whether a task is finished and what it read still stands."""
        record = self.record(task)
        return record.get("state") == "finished" and tasks.stands(
            record, self._identity(task)
        )

    def _submit_ready(self, executor, outcomes, bar):
        """Settles what need not be done, and submits what can be begun."""
        for task in self.tasks:
            if executor.is_full:
                return
            if (
                task.name in outcomes
                or task.name in executor.running
                or any(name not in outcomes for name in task.needs)
            ):
                continue
            missing = [
                name
                for name in task.needs
                if outcomes[name].state != "finished"
            ]
            if not missing and not self.is_current(task):
                executor.submit(self._job(task))
                continue
            outcomes[task.name] = (
                Outcome(task, "not run", log=f"It needs {', '.join(missing)}.")
                if missing
                else self._outcome(task)
            )
            bar.update()

    def _outcome(self, task):
        record = self.record(task)
        log = tasks.read_log(self.path / task.name)
        return Outcome(task, record["state"], record["seconds"], log)

    def _job(self, task):
        text = configure(task, lambda place: str(self.path / place.name))
        gin.clear_config()
        path = self.path / task.name
        return tasks.Job(task.name, path, text, self._identity(task))

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

    @functools.cached_property
    def _by_name(self):
        return {task.name: task for task in self.tasks}


def _abridged(names):
    """Returns the first of many names, and how many more there are."""
    first, *others = names
    return f"{first} and {len(others)} more" if others else first


def _checked(task):
    """Returns a task's configuration without the places of others.

    Raises:
        UserError: if it cannot be used, or is not one of the task's command.
    """
    text = configure(task, lambda place: place.name)
    name = _NEEDED[task.command]
    if name not in gin.get_bindings(task.command, resolve_references=False):
        raise UserError(
            f"{task.name} cannot be carried out: its configuration does not "
            f"bind {task.command}.{name}. Received: {', '.join(task.files)}"
        )
    return text


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
    config.parse(task.files, bindings, included=True)
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
