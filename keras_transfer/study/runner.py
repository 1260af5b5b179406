"""Running a study: what is done is not done again."""

import dataclasses
import inspect
import os
import pathlib
import sys

import gin
from tqdm import tqdm

from keras_transfer import config
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.errors import UserError
from keras_transfer.study import tasks
from keras_transfer.study.plan import DirectoryOf
from keras_transfer.training import train

_COMMANDS = {"train": train, "analyze": analyze}
# A task takes a second or two besides, as long as so many operations on a core.
_OPERATIONS_BESIDES = 1e11
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: the `Task`.
        state: "finished", "failed" or "not run" (for want of another).
        seconds: float, what it took when it was run.
        log: str, why it failed or was not run; "" for a finished one.
    """

    task: object
    state: str
    seconds: float = float("nan")
    log: str = ""


class Runner:
    """Runs tasks in a study's directory.

    Beside what a task leaves stands task.json: its configuration, which
    completions of other tasks it has read, and whether it is finished. A task
    is done again if its configuration has changed, or a task that it needs was
    done again; one that was interrupted goes on from where it was.

    Args:
        work_dir: the study's directory, made when something is run.
        tasks: list of `Task`, each after those it needs.
        threads: int, that the executor gives each task: numbers depend on it,
            and with another one all is done again.
        on_read: function called with each task while its configuration is
            gin's; every one is read only once.

    Raises:
        UserError: if a task's configuration cannot be used.
    """

    def __init__(self, work_dir, tasks, threads=1, on_read=lambda task: None):
        self.path = pathlib.Path(work_dir).absolute()
        self.tasks = tasks
        self._threads = threads
        self._by_name = {task.name: task for task in tasks}
        self._configs = {}
        self._priorities = {}
        for task in tasks:
            self._configs[task.name] = _read(task)
            on_read(task)
        gin.clear_config()

    def run(self, executor=None, costs=None):
        """Runs what is not finished.

        A task is begun when those that it needs are finished. One that fails
        does not stop those that do not need it; it is tried again the next
        time.

        Args:
            executor: what runs the jobs, such as `Workers`; None for `InTurn`,
                in this process, with the threads of the study.
            costs: {task: floating-point operations, None if not known}. Of the
                tasks that can be begun, that with the costliest chain of others
                behind it comes first; without costs, that which the plan has
                first. The progress bar moves by them.

        Returns:
            list of `Outcome`, one per task.

        Raises:
            UserError: if a task's directory holds what is not the study's.
        """
        self.check_free()
        costs = costs or {}
        self._priorities = self._costs_to_the_end(costs)
        weights = {
            name: (costs.get(name) or 0.0) + _OPERATIONS_BESIDES
            for name in self._by_name
        }
        # Still each after those it needs: of equals, as they are planned.
        order = sorted(
            self.tasks, key=lambda task: -self._priorities[task.name]
        )
        outcomes = {}
        with (
            executor or tasks.InTurn(self._threads) as executor,
            tqdm(
                total=sum(weights.values()),
                bar_format=_BAR,
                # The mean rate so far: how dear tasks are comes in stretches.
                smoothing=0.0,
                dynamic_ncols=True,
                disable=None,
            ) as bar,
        ):
            while len(outcomes) < len(self.tasks):
                for name in self._submit_ready(order, executor, outcomes):
                    # It took no time, which tells nothing of the others.
                    bar.total -= weights[name]
                bar.set_postfix_str(f"{len(outcomes)} of {len(order)} tasks")
                if executor.running:
                    bar.set_description(_abridged(executor.running))
                    name = executor.wait()
                    outcomes[name] = self._outcome(self._by_name[name])
                    if outcomes[name].state == "failed":
                        log = tasks.log_path(self.path / name)
                        tqdm.write(f"{name} failed; see {log}.")
                    bar.update(weights[name])
            bar.set_description("study")
        return [outcomes[task.name] for task in self.tasks]

    def record(self, task):
        """Returns what task.json says of a task, {} if it says nothing."""
        return tasks.read_record(self.path / task.name)

    def is_current(self, task):
        """Returns whether a task is finished, from what is there now."""
        record = self.record(task)
        return (
            record.get("state") == "finished"
            and tasks.matches(record, self._identity(task))
            and (
                task.command == "train"
                or tasks.is_intact(self.path / task.name)
            )
        )

    def check_free(self):
        """Checks that no task's directory holds what is not the study's.

        Raises:
            UserError: naming the first that does.
        """
        for task in self.tasks:
            tasks.check_ours(self.path / task.name)

    def _costs_to_the_end(self, costs):
        """Returns {task: cost of the costliest chain that begins with it}."""
        behind = dict.fromkeys(self._by_name, 0.0)
        found = {}
        for task in reversed(self.tasks):
            found[task.name] = behind[task.name] + (costs.get(task.name) or 0.0)
            for name in task.needs:
                behind[name] = max(behind[name], found[task.name])
        return found

    def _submit_ready(self, order, executor, outcomes):
        """Settles what need not be done, and submits what can be begun.

        Returns:
            List of the names of those that were settled.
        """
        settled = []
        for task in order:
            if executor.is_full:
                break
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
            settled.append(task.name)
        return settled

    def _outcome(self, task):
        record = self.record(task)
        log = tasks.read_log(self.path / task.name)
        return Outcome(
            task,
            record.get("state", "failed"),
            record.get("seconds", float("nan")),
            log,
        )

    def _job(self, task):
        lines = _lines(task, lambda other: str(self.path / other.name))
        # What has been read says which directories, and these say where.
        here = [line for line in lines if line not in _lines(task)]
        return tasks.Job(
            task.name,
            self.path / task.name,
            "\n".join([self._configs[task.name], *here]),
            self._identity(task),
            tuple(map(os.path.abspath, sys.path)),
            self._priorities[task.name],
        )

    def _identity(self, task):
        """Returns what must be the same for a result to be current."""
        completions = {
            name: self.record(self._by_name[name]).get("completion")
            for name in task.needs
        }
        return {
            "command": task.command,
            "config": self._configs[task.name],
            "threads": self._threads,
            "needs": completions,
        }


def _abridged(names):
    """Returns the first of many names, and how many more there are."""
    first, *others = names
    return f"{first} and {len(others)} more" if others else first


def _read(task):
    """Reads a task's configuration into gin, in place of what was there.

    Returns:
        str, the configuration as gin writes it, with the names of other tasks
        for their directories: where a study lies is no part of what it is.

    Raises:
        UserError: if it cannot be used, or is not one of the task's command.
    """
    gin.clear_config()
    config.parse(task.files, _lines(task), included=True)
    bound = gin.get_bindings(task.command, resolve_references=False)
    function = inspect.unwrap(_COMMANDS[task.command])
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is gin.REQUIRED and name not in bound:
            raise UserError(
                f"{task.name} cannot be run: its configuration does not bind "
                f"{task.command}.{name}. Received: {', '.join(task.files)}"
            )
    if task.command == "analyze":
        _bind_seeds(task.seed)
    return gin.config_str()


def _bind_seeds(seed):
    """Has analyses draw by a seed unless theirs are bound."""
    for analysis in bound_analyses():
        options = analysis.options()
        bound = gin.get_bindings(analysis.name)
        if "seed" in options and "seed" not in bound and seed is not None:
            with gin.unlock_config():
                gin.bind_parameter(f"{analysis.name}.seed", seed)


def bound_analyses():
    """Returns what is declared of the analyses that gin binds, a list.

    Raises:
        UserError: if one is not declared.
    """
    functions = gin.get_bindings("analyze")["analyses"]
    return [find_analysis(function.__name__) for function in functions]


def _lines(task, resolve=lambda directory: directory.name):
    """Returns a task's bindings as gin reads them.

    Args:
        task: `Task`.
        resolve: function from a `DirectoryOf` to the str that stands for it.
    """
    return [
        f"{name} = {_resolved(value, resolve)!r}"
        for name, value in task.bindings.items()
    ]


def _resolved(value, resolve):
    """Returns a value with a str in place of each `DirectoryOf` within."""
    if isinstance(value, DirectoryOf):
        return resolve(value)
    if isinstance(value, dict):
        return {k: _resolved(v, resolve) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(v, resolve) for v in value]
    return value
