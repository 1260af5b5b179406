import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import time

import commands
import filelock
import pytest
import tensorflow as tf

from keras_transfer import files
from keras_transfer.errors import UserError

# Writes into what stands aside and waits there to be killed.
_WRITER = """
import os, sys, time
from keras_transfer import files
with getattr(files, sys.argv[1])(sys.argv[2]) as aside:
    part = aside / "part" if aside.is_dir() else aside
    part.write_text("half")
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def _writer(kind, path):
    """Gives a process that is in the middle of writing `path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, kind, str(path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
    )
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _fill(kind, aside):
    (aside / "a" if kind == "whole_directory" else aside).write_text("new")


def _read(kind, path):
    return (path / "a" if kind == "whole_directory" else path).read_text()


KINDS = pytest.mark.parametrize("kind", ["whole_file", "whole_directory"])


@KINDS
def test_appears_when_whole(tmp_path, kind):
    path = tmp_path / "x"
    with getattr(files, kind)(path) as aside:
        assert aside.parent == tmp_path and aside.name.startswith(".x.")
        _fill(kind, aside)
        assert not path.exists()
    assert os.listdir(tmp_path) == ["x"]
    assert _read(kind, path) == "new"


@KINDS
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()],
)
def test_what_fails_leaves_the_old(tmp_path, kind, error):
    path = tmp_path / "x"
    with getattr(files, kind)(path) as aside:
        _fill(kind, aside)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), getattr(files, kind)(path) as aside:
        (aside / "b" if aside.is_dir() else aside).write_text("half")
        raise error
    assert os.listdir(tmp_path) == ["x"]
    assert _read(kind, path) == "new"


def test_a_failure_of_tensorflow_is_a_sentence(tmp_path):
    error = tf.errors.ResourceExhaustedError(None, None, "Disk is full.")
    with (
        pytest.raises(UserError, match="x cannot be written: Disk is full. "),
        files.whole_directory(tmp_path / "x"),
    ):
        raise error


@KINDS
def test_other_errors_stay_what_they_are(tmp_path, kind):
    with (
        pytest.raises(ZeroDivisionError),
        getattr(files, kind)(tmp_path / "x"),
    ):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


@KINDS
def test_what_a_killed_process_left_is_cleared(tmp_path, kind):
    path = tmp_path / "x"
    with _writer(kind, path) as process:
        (left,) = os.listdir(tmp_path)
        process.kill()
        process.wait()
        assert os.listdir(tmp_path) == [left]
    # Whatever process id the next one has: its name tells nothing.
    with getattr(files, kind)(path) as aside:
        assert os.listdir(tmp_path) == [aside.name]
        _fill(kind, aside)
    assert os.listdir(tmp_path) == ["x"]


@KINDS
def test_what_another_process_is_writing_stays(tmp_path, kind):
    path = tmp_path / "x"
    with _writer(kind, path):
        (other,) = os.listdir(tmp_path)
        with getattr(files, kind)(path) as aside:
            _fill(kind, aside)
        assert sorted(os.listdir(tmp_path)) == [other, "x"]
    assert _read(kind, path) == "new"


@KINDS
def test_nothing_else_is_cleared(tmp_path, kind):
    names = (
        ".x.tmp",
        f".x.{os.getpid()}.tmp",
        ".x.old",
        ".x",
        ".y.0123456789abcdef.tmp",
        ".x.0123456789abcdef.tmp.mine",
        "x.0123456789abcdef.tmp",
    )
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("mine")
    with getattr(files, kind)(tmp_path / "x") as aside:
        _fill(kind, aside)
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "x"])
    assert all((tmp_path / n / "notes").exists() for n in names)


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "notes").write_text("mine")
    for kind in ("whole_file", "whole_directory"):
        path = tmp_path / kind
        path.symlink_to(target / "notes" if "file" in kind else target)
        with getattr(files, kind)(path) as aside:
            _fill(kind, aside)
        assert not path.is_symlink() and _read(kind, path) == "new"
    assert (target / "notes").read_text() == "mine"
    assert os.listdir(target) == ["notes"]


def test_a_directory_is_replaced_only_if_that_is_meant(tmp_path):
    path = tmp_path / "deep" / "x"
    for text in ("old", "new"):
        with files.whole_directory(path) as aside:
            (aside / text).write_text(text)
    assert os.listdir(path) == ["new"]
    with (
        pytest.raises(UserError, match="x cannot be written: Directory not em"),
        files.whole_directory(path, replace=False),
    ):
        pass
    assert os.listdir(path) == ["new"]
    assert os.listdir(path.parent) == ["x"]


def test_files_have_the_mode_that_the_umask_leaves(tmp_path):
    old = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a.csv", "")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.csv").stat().st_mode) == 0o640


def test_removal_is_whole(tmp_path, monkeypatch):
    for name in ("directory", "file"):
        (tmp_path / name).mkdir()
    (tmp_path / "directory" / "a").write_text("")
    (tmp_path / "file").rmdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "directory")
    for name in ("link", "file", "absent"):
        files.remove(tmp_path / name)
    assert os.listdir(tmp_path) == ["directory"]
    # Killed in its midst: no half of it has the name.
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    files.remove(tmp_path / "directory")
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".directory.")
    monkeypatch.undo()
    files.remove(tmp_path / "absent")
    with files.whole_directory(tmp_path / "directory"):
        assert left not in os.listdir(tmp_path)


# Locks.


def test_a_lock_tells_who_holds_it(tmp_path):
    with files.hold(tmp_path / "run"):
        lock = tmp_path / "run" / files.LOCK_NAME
        told = json.loads(lock.read_text())
        assert told["process"] == os.getpid()
        words = f"run is being worked on by process {os.getpid()} on "
        with (
            pytest.raises(UserError, match=words) as caught,
            files.hold(tmp_path / "run"),
        ):
            pass
        assert told["command"] in str(caught.value)
        assert told["since"] in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_lock_is_waited_for(tmp_path):
    began = time.monotonic()
    with (
        files.hold(tmp_path),
        pytest.raises(UserError, match="worked on"),
        files.hold(tmp_path, seconds=0.5),
    ):
        pass
    assert 0.4 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    "make",
    [
        lambda lock, target: lock.symlink_to(target),
        lambda lock, target: lock.hardlink_to(target),
        lambda lock, target: os.mkfifo(lock),
        lambda lock, target: lock.mkdir(),
        lambda lock, target: lock.symlink_to(target.with_name("absent")),
    ],
    ids=["link", "second name", "pipe", "directory", "dangling link"],
)
def test_what_is_no_lock_is_left_alone(tmp_path, make):
    (tmp_path / "target").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    make(run / files.LOCK_NAME, tmp_path / "target")
    with (
        pytest.raises(UserError, match=r"\.lock is a .* Remove it and run"),
        files.hold(run),
    ):
        pass
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "absent").exists()
    assert os.listdir(run) == [files.LOCK_NAME]


def _as_nobody(function):
    """Runs a function in a child process of another user; returns status."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
            function()
            os._exit(0)
        except UserError as error:
            print(error, file=sys.stderr)
            os._exit(1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def shared():
    """A directory that other users reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield pathlib.Path(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["plain", "sticky"])
def test_a_killed_colleagues_lock_does_not_bar(shared, mode):
    run = shared / "run"
    run.mkdir()
    run.chmod(mode)
    lock = run / files.LOCK_NAME
    lock.write_text('{"process": 1}')
    lock.chmod(0o644)

    def work():
        with files.hold(run):
            (run / "result").write_text("")

    assert _as_nobody(work) == 0
    assert (run / "result").exists()
    (run / "result").unlink()
    # While the colleague works there, it does.
    lock.write_text("{}")
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert _as_nobody(work) == 1
    assert not (run / "result").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_without_locks_there_is_a_warning(
    tmp_path, monkeypatch, caplog, number
):
    def no_locks(descriptor, blocking):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock, "lock_descriptor", no_locks)
    with files.hold(tmp_path / "run"):
        files.write_text(tmp_path / "run" / "a", "x")
        # It may be another process'.
        left = ".b.0123456789abcdef.tmp"
        (tmp_path / "run" / left).write_text("half")
        files.write_text(tmp_path / "run" / "b", "x")
    assert sorted(os.listdir(tmp_path / "run")) == [left, "a", "b"]
    assert "knows no locks" in caplog.text


def test_a_lock_that_others_put_there_meanwhile_stays(tmp_path):
    with files.hold(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / files.LOCK_NAME).write_text("another's")
    assert (tmp_path / "run" / files.LOCK_NAME).read_text() == "another's"
