import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pytest
from written_runs import build, digits, named, write_models

from keras_transfer import files
from keras_transfer.errors import UserError
from keras_transfer.runs import Run
from keras_transfer.study import Runner
from keras_transfer.training import train
from keras_transfer.training.interruption import DeferredSignals, Stop
from keras_transfer.training.schedules import constant

# A tiny network, whose epochs are long: each takes a second or so.
LONG_EPOCHS = [
    f"--gin_file={commands.ROOT}/gin/rit_digits.gin",
    "--gin_bindings=fixup_resnet.widths = (4,)",
    "--gin_bindings=load.image_size = 8",
    "--gin_bindings=load.num_train = 600",
    "--gin_bindings=train.batch_size = 2",
    "--gin_bindings=train.epochs = 3",
]


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def partials(run):
    return sorted(
        path.name for path in run.checkpoints_path.glob(".epoch-*.partial")
    )


def train_digits(path, **changes):
    arguments = {
        "model": lambda **kwargs: build(**kwargs),
        "dataset": digits,
        "epochs": 3,
        "batch_size": 8,
        "schedule": lambda **kwargs: constant(base_rate=0.02, **kwargs),
    }
    return train(path, **(arguments | changes))


def assert_same_run(run, expected):
    assert run.epochs() == expected.epochs()
    for a, b in zip(
        run.load_model().get_weights(),
        expected.load_model().get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    metrics = run.metrics_path.read_text()
    assert metrics == expected.metrics_path.read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("finished") / "run")


# Locks.


def test_second_command_says_who_works_there(tmp_path):
    flags = [*LONG_EPOCHS, f"--work_dir={tmp_path}/run"]
    first = commands.start("train", *flags)
    lock = tmp_path / "run" / files.LOCK_NAME
    wait_for(lambda: lock.exists() and lock.read_text(), first)
    for command in ("train", "analyze", "reproduce"):
        status, _, errors = commands.run(command, *flags)
        assert status == 1
        assert f"is being worked on by process {first.pid} on " in errors
        assert re.search(r"since 20\d\d-\d\d-\d\d \d\d:", errors)
        assert "bin/train --gin_file=" in errors
        assert "Traceback" not in errors
    first.kill()
    first.communicate()
    # What is left of a killed process locks nothing.
    assert lock.exists()
    with files.hold(tmp_path / "run"):
        assert json.loads(lock.read_text())["process"] == os.getpid()
    assert not lock.exists()


def test_lock_leaves_no_trace_in_a_directory_that_stays_empty(tmp_path):
    with files.hold(tmp_path / "a" / "b"):
        assert os.listdir(tmp_path / "a" / "b") == [files.LOCK_NAME]
    assert os.listdir(tmp_path / "a") == []


def test_task_held_by_another_process_is_not_touched(tmp_path, monkeypatch):
    from test_study import tiny

    tasks = tiny().tasks()
    script = (
        "import sys, time\n"
        "from keras_transfer import files\n"
        "with files.hold(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    held = tmp_path / tasks[0].name
    process = subprocess.Popen(
        [sys.executable, "-c", script, held],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
    )
    process.stdout.readline()
    try:
        with pytest.raises(UserError, match=f"by process {process.pid} on"):
            Runner(tmp_path, tasks).run()
        assert os.listdir(held) == [files.LOCK_NAME]
    finally:
        process.kill()
        process.communicate()


def test_directory_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Nothing can be written into .*file"):
        files.hold(tmp_path / "file" / "run").__enter__()


# Signals.


def test_sigterm_saves_within_the_epoch_and_resumes(tmp_path):
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    status, _, errors = commands.run(
        "train", *LONG_EPOCHS, f"--work_dir={whole.path}"
    )
    assert status == 0, errors
    flags = [*LONG_EPOCHS, f"--work_dir={parts.path}"]
    stopped_within = []
    for number, expected in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        # Jobs in the background of a shell ignore Ctrl-C, and so would these.
        process = commands.start(
            "train",
            *flags,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        begun = parts.epochs()
        wait_for(lambda: parts.epochs() > (begun or [0]), process)  # noqa: B023
        process.send_signal(number)
        began = time.monotonic()
        _, errors = process.communicate()
        assert time.monotonic() - began < 15
        assert process.returncode == expected, errors
        assert "the same command resumes" in errors
        assert "Traceback" not in errors
        stopped_within += partials(parts)
    # Between epochs there would be nothing to save.
    assert len(stopped_within) == 2
    status, _, errors = commands.run("train", *flags)
    assert status == 0, errors
    assert partials(parts) == []
    assert_same_run(parts, whole)


@pytest.mark.long
def test_sigterm_stops_an_analysis_which_goes_on(tmp_path):
    write_models(tmp_path)
    runs_of = named(tmp_path)
    results = {}
    for name in ("whole", "parts"):
        directory = tmp_path / name
        flags = [
            f"--gin_file={commands.ROOT}/gin/interpolation.gin",
            f"--gin_bindings=Models.models = {runs_of}",
            "--gin_bindings=analyze.analyses = [@interpolation]",
            "--gin_bindings=interpolation.num_points = 200",
            f"--work_dir={directory}",
        ]
        if name == "parts":
            process = commands.start("analyze", *flags)
            wait_for((directory / "evaluated.jsonl").exists, process)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            _, errors = process.communicate()
            assert time.monotonic() - began < 15
            assert process.returncode == 143, errors
            assert "the same command resumes" in errors
            assert not list(directory.glob("*.csv"))
        status, _, errors = commands.run("analyze", *flags)
        assert status == 0, errors
        results[name] = {
            path.name: path.read_bytes() for path in directory.glob("*.csv")
        }
    assert results["whole"] and results["parts"] == results["whole"]


def stop_after(call):
    """Makes `DeferredSignals.check` see SIGTERM at its n-th call."""
    calls = iter(range(1, 10**6))

    def check(self):
        if next(calls) == call:
            signal.raise_signal(signal.SIGTERM)
            if self._received is not None:
                raise Stop

    return check


class Terminated(BaseException):
    pass


@pytest.fixture
def terminated():
    def handler(number, frame):
        raise Terminated

    previous = signal.signal(signal.SIGTERM, handler)
    yield
    signal.signal(signal.SIGTERM, previous)


# Calls 1 to 4 are the evaluation of the initialization; then come the first
# step, the second, the others, and four batches of evaluation.
@pytest.mark.parametrize(
    "call",
    [5, 6, 13, *(pytest.param(n, marks=pytest.mark.long) for n in (7, 9, 11))],
)
def test_stopped_after_any_call_is_the_same_run(
    tmp_path, finished, monkeypatch, terminated, call
):
    monkeypatch.setattr(DeferredSignals, "check", stop_after(call))
    path = tmp_path / "run"
    with pytest.raises(Terminated):
        train_digits(path)
    monkeypatch.undo()
    assert len(partials(Run(path))) == 1
    assert_same_run(train_digits(path), finished)
    assert partials(Run(path)) == []


def test_deferred_signal_comes_when_the_block_is_left(terminated):
    reached = []
    with pytest.raises(Terminated), DeferredSignals() as signals:
        signals.check()
        signal.raise_signal(signal.SIGTERM)
        reached.append(1)
        with pytest.raises(Stop):
            signals.check()
        reached.append(2)
    assert reached == [1, 2]
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)


def test_second_signal_comes_at_once(terminated):
    with pytest.raises(Terminated), DeferredSignals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("The second signal was held back.")


# Disks.


@pytest.mark.parametrize("name", ["weights", "optimizer"])
def test_full_disk_is_a_sentence_and_the_run_goes_on(
    tmp_path, finished, monkeypatch, name
):
    write, path = pathlib.Path.write_bytes, tmp_path / "run"

    def full(self, content):
        if "epoch-0002" in str(self.parent) and self.stem == name:
            write(self, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(UserError, match="epoch-0002.* cannot .*No space left"):
        train_digits(path)
    monkeypatch.undo()
    assert sorted(os.listdir(path / "checkpoints")) == [
        "best.json",
        "epoch-0000",
        "epoch-0001",
    ]
    assert_same_run(train_digits(path), finished)


@pytest.fixture
def disk(tmp_path, finished, request):
    """A file system that has room for a part of a run."""
    path = tmp_path / "disk"
    path.mkdir()
    whole = sum(file.stat().st_size for file in finished.path.rglob("*"))
    size = int(whole * getattr(request, "param", 1.0))
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system cannot be mounted here: {error}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def remount(path, option):
    subprocess.run(["mount", "-o", f"remount,{option}", path], check=True)


# Room for the configuration, for the initialization, and for an epoch or two.
@pytest.mark.parametrize(
    "disk",
    [0.1, 0.6, *(pytest.param(n, marks=pytest.mark.long) for n in (0.3, 0.8))],
    indirect=True,
)
def test_a_disk_that_is_really_full(disk, finished):
    run = Run(disk / "run")
    with pytest.raises(UserError, match="cannot be .*: .*No space left"):
        train_digits(run.path)
    assert 3 not in run.epochs()
    for epoch in run.epochs():
        run.load_model(epoch)
    remount(disk, "size=64m")
    assert_same_run(train_digits(run.path), finished)


def test_a_disk_that_is_read_only(disk):
    remount(disk, "ro")
    for command in ("train", "reproduce"):
        status, _, errors = commands.run(
            command, *LONG_EPOCHS, f"--work_dir={disk}/run"
        )
        assert status == 1
        assert "Error: Nothing can be written into" in errors
        assert "Read-only file system. Give another --work_dir." in errors
        assert "Traceback" not in errors


def test_text_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write_text(tmp_path / "a.csv", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="a.csv cannot be .*No space left"):
        files.write_text(tmp_path / "a.csv", "new")
    assert os.listdir(tmp_path) == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "old"


# Damage.


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text.split("\n")[0] + "\n",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("test", "tset"),
        lambda text: text.replace("0.", "zero.", 1),
        lambda text: "\0" * len(text),
    ],
)
def test_damaged_metrics_are_a_sentence(tmp_path, finished, damage):
    shutil.copytree(finished.path, tmp_path / "run")
    path = tmp_path / "run" / "metrics.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match="metrics.csv is damaged"):
        train_digits(tmp_path / "run")


def test_run_without_a_readable_checkpoint_is_a_sentence(tmp_path, finished):
    shutil.copytree(finished.path, tmp_path / "run")
    for file in (tmp_path / "run").glob("checkpoints/*/weights.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="None of the checkpoints in .*run"):
        train_digits(tmp_path / "run")


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << position % 8
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["header", "arrays"])
def test_no_flipped_bit_changes_weights_unnoticed(tmp_path, finished, place):
    expected = finished.load_weights()
    run = Run(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    path = run.checkpoints_path / "epoch-0003" / "weights.safetensors"
    original = path.read_bytes()
    first = 8 + int.from_bytes(original[:8], "little")
    ends = (0, first) if place == "header" else (first, len(original))
    for position in np.linspace(ends[0], ends[1] - 1, 60, dtype=int).tolist():
        flip_bit(path, position)
        try:
            weights = run.load_weights(3)
        except UserError:
            pass
        else:
            # A space that became another one, say.
            assert place == "header" and list(weights) == list(expected)
            for name in expected:
                np.testing.assert_array_equal(weights[name], expected[name])
        path.write_bytes(original)


def test_damaged_partial_epoch_is_trained_from_its_beginning(
    tmp_path, finished, monkeypatch, terminated, caplog
):
    monkeypatch.setattr(DeferredSignals, "check", stop_after(6))
    with pytest.raises(Terminated):
        train_digits(tmp_path / "run")
    monkeypatch.undo()
    run = Run(tmp_path / "run")
    (partial,) = run.checkpoints_path.glob(".epoch-0001.partial")
    file = partial / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert_same_run(train_digits(run.path), finished)
    assert "trained from its beginning" in caplog.text
