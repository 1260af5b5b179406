import json
import os
import signal
import subprocess
import sys
import time

import commands
import pandas
import pytest
from test_study import ONE, TINY, check_own, completions, tiny, write_own
from test_workers import FLAGS, threads_here

from keras_transfer.errors import UserError
from keras_transfer.runs import Run
from keras_transfer.study import OnRay, Runner
from keras_transfer.study.reproduce import reproduce

ray = pytest.importorskip("ray", reason="Ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")

# Long enough to be met at work: half a second or so an epoch.
SLOW = TINY | {"train.epochs": 4, "load.num_train": 500, "train.batch_size": 2}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of a head without cores and two machines of one core each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # What workers inherit: where this package is, and the tests'.
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(commands.ROOT), path])
    started = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0}
    )
    nodes = [started.add_node(num_cpus=1) for _ in range(2)]
    started.wait_for_nodes()
    yield started, nodes
    started.shutdown()
    os.environ["PYTHONPATH"] = path


def holder(path):
    """Returns the process that works in a directory, None if none does."""
    try:
        lock = json.loads((path / ".lock").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return lock["process"]


class Watched(OnRay):
    """Calls a function, once it returns True no more, while jobs run."""

    def __init__(self, *arguments, watch, **options):
        super().__init__(*arguments, **options)
        self._watch = watch

    def wait(self):
        while not self._watch():
            done, _ = self._ray.wait(list(self._references), timeout=0.05)
            if done:
                break
        else:
            self._watch = lambda: True
        return super().wait()


@pytest.mark.long
def test_same_claims_as_in_one_process(cluster, tmp_path):
    study = tiny(analyses=("distance.gin", "mistakes.gin"))
    reproduce(study, tmp_path / "local")
    executor = OnRay(cluster[0].address, threads_here(), cpus_per_job=1.0)
    reproduce(study, tmp_path / "ray", executor)
    local, on_ray = tmp_path / "local", tmp_path / "ray"
    claims = (on_ray / "claims.csv").read_bytes()
    assert claims == (local / "claims.csv").read_bytes()
    values = pandas.read_csv(on_ray / "claims.csv", index_col="claim").value
    assert {"C3", "C5"} <= set(values.dropna().index)
    for table in [*local.rglob("metrics.csv"), *local.rglob("distance.csv")]:
        again = on_ray / table.relative_to(local)
        assert again.read_bytes() == table.read_bytes()
    assert (on_ray / "report.html").is_file()
    # And what the one has finished, the other does not do again.
    outcomes = Runner(on_ray, study.tasks()).run()
    assert {outcome.state for outcome in outcomes} == {"finished"}


@pytest.mark.long
def test_a_killed_worker_costs_its_own_job_only(cluster, tmp_path):
    study = tiny(bindings=SLOW, source={}, analyses=())
    path = tmp_path / "study"
    doomed = Run(path / ONE / "runs/digits/RI-T_1")
    killed, kept = [], {}

    def kill_once():
        if 2 not in doomed.epochs():
            return False
        process = holder(doomed.path)
        kept.update(completions(path, study.tasks()))
        os.kill(process, signal.SIGKILL)
        killed.append((process, doomed.checkpoints_path / "epoch-0002"))
        killed.append(killed[0][1].stat().st_mtime_ns)
        return True

    runner = Runner(path, study.tasks())
    outcomes = runner.run(Watched(cluster[0].address, watch=kill_once))
    assert {outcome.state for outcome in outcomes} == {"finished"}
    (_, checkpoint), written = killed
    # It went on from what it had saved, and nothing else was done again.
    assert checkpoint.stat().st_mtime_ns == written
    after = completions(path, study.tasks())
    assert kept[f"{ONE}/runs/digits/RI-T_1"] is None
    assert {n: after[n] for n, c in kept.items() if c} == {
        n: c for n, c in kept.items() if c
    }
    # Nor is anything to be seen of it in the result.
    other = Runner(tmp_path / "other", study.tasks()[-1:])
    other.run()
    metrics = Run(
        other.path / ONE / "runs/digits/RI-T_1"
    ).metrics_path.read_bytes()
    assert doomed.metrics_path.read_bytes() == metrics


@pytest.mark.long
def test_a_lost_machine_costs_its_own_jobs_only(cluster, tmp_path):
    started, nodes = cluster
    study = tiny(bindings=SLOW, source={}, analyses=())
    path = tmp_path / "study"
    first = Run(path / ONE / "runs/digits/RI-T_0")

    def lose_once():
        if 1 not in first.epochs():
            return False
        started.remove_node(nodes.pop(), allow_graceful=False)
        return True

    runner = Runner(path, study.tasks())
    executor = Watched(started.address, watch=lose_once)
    outcomes = runner.run(executor)
    nodes.append(started.add_node(num_cpus=1))
    assert {outcome.state for outcome in outcomes} == {"finished"}


@pytest.mark.long
def test_a_job_whose_workers_are_all_lost_has_failed(cluster, tmp_path):
    study = tiny(bindings=SLOW, source={}, analyses=())
    path = tmp_path / "study"
    doomed, victims = path / ONE / "runs/digits/RI-T_0", set()

    def kill_always():
        process = holder(doomed)
        if process not in victims | {None}:
            victims.add(process)
            os.kill(process, signal.SIGKILL)
        return False

    executor = Watched(cluster[0].address, watch=kill_always, max_retries=1)
    outcomes = {
        o.task.name: o for o in Runner(path, study.tasks()).run(executor)
    }
    failed = outcomes[f"{ONE}/runs/digits/RI-T_0"]
    assert (failed.state, len(victims)) == ("failed", 2)
    assert "Its worker was lost 2 times" in failed.log
    assert outcomes[f"{ONE}/runs/digits/P-T_0"].state == "finished"


def test_a_job_that_fails_is_not_tried_again(cluster, tmp_path):
    study = tiny(bindings=TINY | {"load.num_train": 10**6}, source={})
    outcomes = Runner(tmp_path, study.tasks()).run(OnRay(cluster[0].address))
    states = {outcome.task.name: outcome.state for outcome in outcomes}
    assert states[f"{ONE}/runs/P"] == "failed"
    assert states[f"{ONE}/runs/digits/P-T_0"] == "not run"
    assert "Received: num_train=1000000" in outcomes[0].log


def test_impossible_demands_are_sentences(cluster, tmp_path, monkeypatch):
    runner = Runner(tmp_path, tiny().tasks())
    address = cluster[0].address
    with pytest.raises(UserError, match="has 64 CPUs for a job; .* has 1"):
        runner.run(OnRay(address, cpus_per_job=64))
    with pytest.raises(UserError, match="has 1 GPUs for a job; .* has 0"):
        runner.run(OnRay(address, gpus_per_job=1))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="needs Ray. Install it with"):
        runner.run(OnRay())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "address, said",
    [
        ("127.0.0.1:1", "Connection refused"),
        ("nowhere.invalid:6379", "not known"),
        ("127.0.0.1:99999", "Port out of range"),
        ("127.0.0.1:port", "could not be cast"),
    ],
)
def test_a_cluster_that_is_not_there_is_a_sentence(tmp_path, address, said):
    runner = Runner(tmp_path, tiny().tasks())
    sentence = f"No Ray cluster could be reached at '{address}'.*{said}"
    with pytest.raises(UserError, match=sentence):
        runner.run(OnRay(address))


@pytest.mark.long
def test_the_command_says_that_no_cluster_is_there(tmp_path):
    status, _, errors = commands.run(
        "reproduce",
        f"--gin_file={commands.ROOT}/gin/study_digits.gin",
        f"--work_dir={tmp_path}/study",
        "--executor=ray",
        "--ray_address=127.0.0.1:1",
    )
    assert status == 1, errors
    assert "No Ray cluster could be reached at '127.0.0.1:1'" in errors
    assert "Traceback" not in errors


@pytest.mark.long
def test_the_command_is_stopped_and_goes_on(tmp_path):
    flags = [
        *FLAGS,
        f"--gin_bindings=Study.bindings = {SLOW}",
        f"--work_dir={tmp_path}/study",
        "--executor=ray",
    ]
    process = commands.start("reproduce", *flags)
    first = Run(tmp_path / "study" / ONE / "runs" / "P")
    while 1 not in first.epochs():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert time.monotonic() - began < 30
    assert "Traceback" not in errors
    assert holder(first.path) is None
    status, _, errors = commands.run("reproduce", *flags)
    assert status == 0, errors


@pytest.mark.long
def test_a_new_analysis_is_found_by_workers(tmp_path):
    flags = write_own(tmp_path)
    status, _, errors = commands.run("reproduce", *flags, "--executor=ray")
    assert status == 0, errors
    check_own(tmp_path / "study")


# Starts a cluster and tells the addresses that its processes listen at.
_LISTENING = """
import json, os, pathlib
from keras_transfer.study import OnRay

def descendants():
    parents = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "stat").read_text().rpartition(")")[2]
        except OSError:
            continue
        parents[int(process.name)] = int(text.split()[1])
    found, more = {os.getpid()}, True
    while more:
        more = {p for p, q in parents.items() if q in found} - found
        found |= more
    return found

def sockets(process):
    try:
        return {os.readlink(f) for f in process.glob("fd/*") if f.is_symlink()}
    except OSError:
        return set()

with OnRay() as executor:
    executor._ray.get(executor._ray.remote(lambda: 3).remote())
    ours = set()
    for process in descendants():
        ours |= sockets(pathlib.Path(f"/proc/{process}"))
    found = []
    for name in ("tcp", "tcp6"):
        lines = pathlib.Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        for fields in map(str.split, lines):
            # 0A: it listens.
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in ours:
                found.append(fields[1].split(":")[0])
print(json.dumps(found))
"""
# 127.0.0.1 and ::ffff:127.0.0.1, as the kernel writes them.
_THIS_MACHINE = {"0100007F", "0000000000000000FFFF00000100007F"}


def test_a_cluster_of_our_own_listens_to_this_machine_alone():
    finished = subprocess.run(
        [sys.executable, "-c", _LISTENING],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout.splitlines()[-1])
    assert len(found) > 3 and set(found) <= _THIS_MACHINE
