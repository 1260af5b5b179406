"""Jobs in processes of this machine, some of which are killed."""

import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import commands
import joblib
import kill_study
import pytest
import tensorflow as tf
import threadpoolctl
from test_study import ONE, TINY, tiny

from keras_transfer.errors import UserError
from keras_transfer.runs import Run
from keras_transfer.study import InTurn, Runner, Workers, runner, tasks, workers

# Long enough to be met at work: half a second or so an epoch.
SLOW = TINY | {"train.epochs": 40, "load.num_train": 500, "train.batch_size": 2}
FLAGS = [
    *commands.SMALL_STUDY,
    f"--gin_bindings=Study.bindings = {SLOW}",
    "--gin_bindings=Study.source = {'load.num_train': 1000}",
    "--gin_bindings=Study.analyses = ['distance.gin']",
    "--gin_bindings=Workers.num_workers = 2",
]

# What jobs do: each is a module that its configuration imports.
MODULES = {
    "killed": "import os; os.kill(os.getpid(), 9)",
    "threads": """
import json, os, pathlib, threadpoolctl
import numpy, scipy.linalg, sklearn.cluster, tensorflow as tf
libraries = [info["num_threads"] for info in threadpoolctl.threadpool_info()]
number = tf.config.threading
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps([
    number.get_intra_op_parallelism_threads(),
    number.get_inter_op_parallelism_threads(),
    int(os.environ["OMP_NUM_THREADS"]),
    *libraries,
]))
print("Here\\nit is.")
""",
}


def odd_job(directory, name):
    """Returns a job that does what a module of `MODULES` does, and fails."""
    (directory / f"{name}.py").write_text(MODULES[name])
    return job_of(directory, name, f"import {name}\n", (str(directory),))


def job_of(directory, name, config="", python_path=()):
    identity = {"command": "train", "config": config, "needs": {}}
    path = directory / "study" / name
    return tasks.Job(name, path, config, identity, python_path)


def test_a_killed_process_is_replaced(tmp_path, capsys):
    foreign = tmp_path / "study" / "foreign"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine")
    ended, refused = [], []
    # Neither as many threads as there are cores nor as this process has.
    with Workers(threads=3, num_workers=2, max_retries=1) as executor:
        for name in MODULES:
            executor.submit(odd_job(tmp_path, name))
        executor.submit(job_of(tmp_path, "foreign"))
        while executor.running:
            try:
                ended.append(executor.wait())
            except UserError as error:
                refused.append(str(error))
    # What cannot be run keeps nothing else from it.
    assert sorted(ended) == ["killed", "threads"]
    assert len(refused) == 1 and "holds what no study has made" in refused[0]
    log = tasks.read_log(tmp_path / "study" / "killed")
    assert "worker was lost 2 times, which is all that Workers.max_r" in log
    assert "The last was ended by SIGKILL" in log
    record = tasks.read_record(tmp_path / "study" / "killed")
    assert record["state"] == "failed"
    threads = json.loads((tmp_path / "threads.json").read_text())
    assert len(threads) > 3 and set(threads) == {3}
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if line.startswith("threads: ")] == [
        "threads: Here",
        "threads: it is.",
    ]


def test_a_process_that_ends_by_itself_is_not_replaced(tmp_path):
    executor = Workers(max_retries=3)
    assert not executor._begin_again(job_of(tmp_path, "ended"), 3)
    log = tasks.read_log(tmp_path / "study" / "ended")
    assert "Its process ended with status 3" in log


def threads_here():
    """Returns how many threads TensorFlow has in this process."""
    told = os.environ.get("TF_NUM_INTRAOP_THREADS")
    return int(told or len(os.sched_getaffinity(0)))


def assert_same_results(path, other):
    """Checks that two studies' directories hold the same tables and weights."""
    tables = [
        f for n in ("metrics", "distance") for f in path.rglob(f"{n}.csv")
    ]
    checkpoints = list(path.rglob("epoch-*"))
    assert tables and checkpoints
    for file in tables:
        again = other / file.relative_to(path)
        assert again.read_bytes() == file.read_bytes()
    for file in checkpoints:
        assert kill_study.same_arrays(file, other / file.relative_to(path))


def test_same_bits_as_in_this_process(tmp_path):
    # Two of the same kind of network at a time.
    planned = tiny().tasks()[-3:-1]
    for name, executor in (
        ("turn", None),
        ("workers", Workers(threads_here(), num_workers=2)),
    ):
        outcomes = Runner(tmp_path / name, planned).run(executor)
        assert [o.state for o in outcomes] == ["finished"] * 2
        for task in planned:
            log = tmp_path / name / "logs" / f"{task.name}.log"
            run = pathlib.PurePath(task.name).name
            assert f"{run}: epoch 1/1, test accuracy" in log.read_text()
    assert_same_results(tmp_path / "turn", tmp_path / "workers")


def descendants(process):
    """Returns the ids of the processes that a process has started."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "stat").read_text().rpartition(")")[2]
        except OSError:
            continue
        state, parent = text.split()[:2]
        if state != "Z":
            parents[int(path.name)] = int(parent)
    found, more = set(), {process}
    while more:
        more = {p for p, q in parents.items() if q in more}
        found |= more
    return found


def wait_until_gone(processes, seconds=20):
    end = time.monotonic() + seconds
    while left := [p for p in processes if os.path.exists(f"/proc/{p}")]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def start_and_meet(path, **options):
    """Starts the command; returns it and its processes once they have begun."""
    flags = [*FLAGS, f"--work_dir={path}"]
    process = commands.start("reproduce", *flags, **options)
    runs = [Run(path / ONE / "runs" / name) for name in ("P", "digits/RI-T_0")]
    while not all(1 in run.epochs() for run in runs):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    found = descendants(process.pid)
    assert len(found) >= 2
    return process, found


def test_the_command_is_stopped_with_its_processes(tmp_path):
    process, found = start_and_meet(tmp_path / "study")
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert time.monotonic() - began < tasks.SECONDS_TO_STOP
    assert "Traceback" not in errors
    wait_until_gone(found)
    assert not list((tmp_path / "study").rglob(".lock"))
    # What was in progress is there.
    assert len(list(tmp_path.rglob(".epoch-*.partial"))) == 2


@pytest.mark.long
def test_processes_end_with_the_command_however_that_ends(tmp_path):
    process, found = start_and_meet(tmp_path / "study")
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until_gone(found)
    assert len(list(tmp_path.rglob(".epoch-*.partial"))) == 2
    # Ctrl-C in a terminal comes to all that run in it.
    process, found = start_and_meet(tmp_path / "again", start_new_session=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    wait_until_gone(found)
    assert len(list((tmp_path / "again").rglob(".epoch-*.partial"))) == 2


class Watched(Workers):
    """Calls a function before it waits for a job, until that returns True."""

    def __init__(self, *arguments, watch, **options):
        super().__init__(*arguments, **options)
        self._watch = watch

    def _begin_jobs(self):
        super()._begin_jobs()
        while not self._watch():
            time.sleep(0.02)
        self._watch = lambda: True


@pytest.mark.long
def test_nothing_of_a_killed_process_is_to_be_seen(tmp_path):
    study = tiny(bindings=SLOW | {"train.epochs": 4}, source={})
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    doomed = Run(killed / ONE / "runs/P")

    def kill_once():
        if 2 not in doomed.epochs():
            return False
        lock = json.loads((doomed.path / ".lock").read_text())
        os.kill(lock["process"], signal.SIGKILL)
        written.append((doomed.checkpoints_path / "epoch-0002").stat())
        return True

    written = []
    executor = Watched(1, num_workers=2, watch=kill_once)
    outcomes = Runner(killed, study.tasks()).run(executor)
    assert {outcome.state for outcome in outcomes} == {"finished"}
    # It went on from what it had saved.
    after = (doomed.checkpoints_path / "epoch-0002").stat()
    assert after.st_mtime_ns == written[0].st_mtime_ns
    # One thread in turn, in a process of its own: this one may have others.
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from keras_transfer import environment\n"
        "environment.prepare(); environment.prepare_keras()\n"
        "from keras_transfer.study import InTurn, Runner\n"
        "from test_workers import SLOW, tiny\n"
        "study = tiny(bindings=SLOW | {'train.epochs': 4}, source={})\n"
        "Runner(sys.argv[2], study.tasks()).run(InTurn(threads=1))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, commands.ROOT / "tests", whole],
        check=True,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
    )
    assert_same_results(whole, killed)


class Noting(InTurn):
    """Runs nothing; notes what it is given, as one that takes all at once."""

    is_full = False

    def __init__(self):
        super().__init__()
        self.submitted = []

    def submit(self, job):
        super().submit(job)
        self.submitted.append(job)

    def wait(self):
        name, job = self.running.popitem()
        tasks.record_failure(job, "It was refused.")
        return name


def test_the_costliest_chain_comes_first(tmp_path):
    planned = tiny().tasks()
    costs = dict.fromkeys((task.name for task in planned), 1.0)
    costs |= {planned[0].name: 0.5, planned[-1].name: 10.0}
    costs |= {planned[4].name: 5.0, planned[3].name: None}
    executor = Noting()
    Runner(tmp_path, planned).run(executor, costs)
    found = [
        (pathlib.Path(j.name).name, j.priority) for j in executor.submitted
    ]
    # RI-Ts and the analysis; P, a P-T and the analysis; an RI-T of no cost.
    assert found == [("RI-T_1", 15.0), ("P", 11.5), ("RI-T_0", 10.0)]
    # Without costs, as they are planned.
    executor = Noting()
    Runner(tmp_path, planned).run(executor)
    names = [pathlib.Path(job.name).name for job in executor.submitted]
    assert names == ["P", "RI-T_0", "RI-T_1"]


class SimulatedWorker:
    """Takes as long for a job as it is told, of a time that does not pass."""

    def __init__(self, simulation):
        self._simulation = simulation
        self._last = None
        self.job, self.end = None, 0.0

    def begin(self, job):
        self._simulation.shared += self.has_loaded(job)
        self.job = self._last = job
        name = job.name
        self.end = self._simulation.now + self._simulation.seconds[name]

    def has_loaded(self, job):
        analysed = self._last and self._last.identity["command"] == "analyze"
        return bool(analysed) and needs_of(self._last) == needs_of(job)


def needs_of(job):
    return job.identity["needs"]


class Simulation(Workers):
    """Finishes jobs without doing anything.

    Attributes:
        now: float, seconds since the start.
        shared: int, analyses that came after one of the same models.
    """

    def __init__(self, seconds, **options):
        super().__init__(**options)
        self.seconds, self.now, self.shared = seconds, 0.0, 0

    def _started(self):
        number = len(self._workers)
        self._workers[number] = SimulatedWorker(self)
        return self._workers[number]

    def wait(self):
        self._begin_jobs()
        busy = [each for each in self._workers.values() if each.job]
        first = min(busy, key=lambda each: each.end)
        self.now, job, first.job = first.end, first.job, None
        job.path.mkdir(parents=True)
        record = job.identity | {"state": "finished", "completion": job.name}
        (job.path / "task.json").write_text(json.dumps(record))
        del self.running[job.name]
        return job.name

    def __exit__(self, *exception):
        pass


@pytest.mark.parametrize("number, shared", [(1, 70), (8, 60), (64, 10)])
def test_a_thousand_jobs_leave_nobody_idle(
    tmp_path, monkeypatch, number, shared
):
    monkeypatch.setattr("keras_transfer.study.runner._read", lambda task: "")
    analyses = {"similarity": 4, "interpolation": 18, "criticality": 60}
    study = tiny(
        replications=40,
        block_sizes=(1, 4, 16),
        pretrained_epochs=(0, 1, 2, 4),
        num_train={50: {}, 500: {}},
        analyses=[f"{name}.gin" for name in analyses],
    )
    planned = study.tasks()
    assert len(planned) > 1000
    costs, behind = {}, {}
    for task in planned:
        name = task.name.rpartition("/")[2]
        costs[task.name] = float(analyses.get(name, 4 + 4 * (name == "P")))
    rng = random.Random(0)
    seconds = {n: cost * rng.uniform(0.7, 1.3) for n, cost in costs.items()}
    for task in planned:
        before = max((behind[n] for n in task.needs), default=0.0)
        behind[task.name] = before + seconds[task.name]
    longest = max(behind.values())
    executor = Simulation(seconds, num_workers=number)
    outcomes = Runner(tmp_path, planned).run(executor, costs)
    assert {outcome.state for outcome in outcomes} == {"finished"}
    bound = max(longest, sum(seconds.values()) / number)
    assert executor.now < 1.05 * bound
    # Of 80; each of 40 replications has three analyses of the same models.
    assert executor.shared > shared


def test_the_bar_moves_by_cost(tmp_path, monkeypatch):
    """By what is left to do; a task takes something besides operations."""
    states = []

    class Shown(runner.tqdm):
        def __init__(self, **options):
            shown = {"disable": False, "file": io.StringIO()}
            super().__init__(**options | shown)

        def update(self, n=1):
            super().update(n)
            states.append((self.n, self.total, self.postfix))

    monkeypatch.setattr(runner, "tqdm", Shown)
    planned = [task for task in tiny().tasks() if task.command == "train"]
    costs = {task.name: 3e11 for task in planned} | {planned[0].name: 9e11}
    seconds = dict.fromkeys(costs, 1.0)
    Runner(tmp_path, planned[:1]).run(Simulation(seconds, num_workers=1), costs)
    assert states == [(1e12, 1e12, "0 of 1 tasks")]
    states.clear()
    Runner(tmp_path, planned).run(Simulation(seconds, num_workers=1), costs)
    # P is there already.
    moved = [(n, total) for n, total, _ in states]
    assert moved == [(i * 4e11, 1.6e12) for i in (1, 2, 3, 4)]
    assert states[-1][2] == "4 of 5 tasks"


def test_each_process_has_its_gpu(monkeypatch):
    def started(gpus, **options):
        """Returns the environments of the processes of one executor."""
        found = []
        monkeypatch.setattr(workers, "_take_gpus", lambda: gpus)
        monkeypatch.setattr(
            workers._Worker,
            "start",
            lambda self, threads, variables: found.append(variables),
        )
        executor = Workers(threads=1, **options)
        for _ in range(executor._num_workers):
            executor._started()
        return found

    monkeypatch.setattr(joblib, "cpu_count", lambda: 5)
    threads = {"OMP_NUM_THREADS": "1"}
    assert started([]) == [threads] * 5
    alone = [threads | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("3", "6")]
    assert started(["3", "6"]) == alone
    grow = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    shared = [each | grow for each in alone * 2]
    assert started(["3", "6"], jobs_per_gpu=2) == shared
    # No more than there are cores for, unless so many are asked for.
    assert started(["3", "6"], jobs_per_gpu=4) == [*shared, shared[0]]
    assert started(["3", "6"], num_workers=4) == shared


@pytest.mark.parametrize(
    "visible, gpus",
    [
        (None, ["0", "1"]),
        ("7,2", ["7", "2"]),
        ("MIG-a,MIG-b", ["MIG-a", "MIG-b"]),
    ],
)
def test_gpus_are_left_to_the_processes(monkeypatch, visible, gpus):
    hidden = []
    config = tf.config
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(
        config, "set_visible_devices", lambda *given: hidden.append(given)
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers._take_gpus() == gpus
    assert hidden == [([], "GPU")]


def test_a_number_of_threads_that_comes_too_late_is_told(monkeypatch, caplog):
    def refuse(number):
        raise RuntimeError("It cannot be modified after initialization.")

    limits = []
    name = "set_intra_op_parallelism_threads"
    monkeypatch.setattr(tf.config.threading, name, refuse)
    monkeypatch.setattr(threadpoolctl, "threadpool_limits", limits.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for kind in ("INTRA", "INTER"):
        monkeypatch.setenv(f"TF_NUM_{kind}OP_THREADS", "7")
    with InTurn(threads=7):
        assert not caplog.text
    with InTurn(threads=8):
        assert "another number of threads than 8" in caplog.text
    assert limits == [7, 8] and os.environ["OMP_NUM_THREADS"] == "8"
