"""Files and directories that are whole or absent, and one process at a time.

What is written stands aside under a hidden name, such as
.metrics.csv.0123456789abcdef.tmp, and is renamed when it is complete. While it
is written it is locked; what a killed process left is not, and is cleared
before the same path is written again.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import stat
import sys
import time

import filelock
from absl import logging

from keras_transfer.errors import UserError

LOCK_NAME = ".lock"
_SECONDS_BETWEEN_TRIES = 0.2
# File systems that know no locks say one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# Nothing of ours is opened through a link, and a pipe is not waited for.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TOKEN_BYTES = 8
# What this process holds: {real path of the directory: descriptor of its lock}.
_HELD = {}


def user_path(path, name):
    """Returns a path as its user means it: `~` is the home directory.

    Args:
        path: str or path, from a flag or a binding.
        name: str, what gave it, such as "--work_dir".

    Returns:
        `pathlib.Path`.

    Raises:
        UserError: if it is empty, or there is no such home directory.
    """
    text = os.fspath(path)
    if not text.strip():
        raise UserError(
            f"{name} is empty, as a variable of the shell is that was never "
            "set. Give a path."
        )
    if "\0" in text:
        raise UserError(f"{name} cannot be a path. Received: {text!r}")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~") and not os.path.lexists(text):
        raise UserError(
            f"{name} begins with ~, and no such home directory is known. "
            f"Received: {text}. Write it in full."
        )
    return pathlib.Path(expanded)


# Writing.


@contextlib.contextmanager
def writing(path):
    """Turns what stops a write, such as a full disk, into a plain sentence.

    Args:
        path: what is written in the block, to name it.

    Raises:
        UserError: instead of an OSError or an error of TensorFlow.
    """
    try:
        yield
    except Exception as error:
        if not _stops_a_write(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path} cannot be written: {reason.rstrip('.')}. Mend that and "
            "run the same command again; what was written before is kept."
        ) from error


def _stops_a_write(error):
    # Whoever raises TensorFlow's has imported it; nobody else has to.
    tensorflow = sys.modules.get("tensorflow")
    kinds = (tensorflow.errors.OpError,) if tensorflow else ()
    return isinstance(error, (OSError, *kinds))


@contextlib.contextmanager
def whole_file(path):
    """Gives a path aside; the file there takes its place when it is whole.

    Args:
        path: where the file will be; its directory exists. A file of that name
            is replaced.

    Raises:
        UserError: if it cannot be written.
    """
    path = pathlib.Path(path)
    with writing(path), _aside(path, _make_file) as aside:
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)


@contextlib.contextmanager
def whole_directory(path, replace=True):
    """Gives a directory aside, which takes its place when it is filled.

    Args:
        path: where the directory will be; its parents are made if need be.
        replace: bool, whether what has this name is removed; otherwise nothing
            may have it, save an empty directory.

    Raises:
        UserError: if it cannot be written.
    """
    path = pathlib.Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _aside(path, os.mkdir) as aside:
            yield aside
            if replace:
                remove(path)
            os.replace(aside, path)


def add_lines(path, lines):
    """Adds lines to a log, best effort: nothing is lost that counts.

    Args:
        path: `pathlib.Path`, made with its folders if need be.
        lines: iterable of str.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _SAFELY
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, flags, 0o666), "a") as log:
            log.writelines(f"{line}\n" for line in lines)


def write_text(path, text):
    """Writes a text file whole or not at all.

    Args:
        path: where the file will be; its directory exists.
        text: str, the content.

    Raises:
        UserError: if it cannot be written.
    """
    with (
        whole_file(path) as aside,
        open(aside, "w", encoding="utf-8", newline="") as file,
    ):
        file.write(text)


def append_text(path, text):
    """Adds to the end of a text file; it is on the disk on return.

    Args:
        path: the file, made if need be; not a link.
        text: str.

    Raises:
        UserError: if it cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _SAFELY
    with (
        writing(path),
        open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file,
    ):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def remove(path):
    """Removes a file, a link or a directory, the last one whole or not at all.

    Args:
        path: what to remove; it may be absent.

    Raises:
        OSError: if that cannot be.
    """
    path = pathlib.Path(path)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    with _aside(path, os.mkdir) as aside:
        os.replace(path, aside)


@contextlib.contextmanager
def _aside(path, make):
    """Makes what will be `path` under a locked name; removes what is left.

    Args:
        path: `pathlib.Path`.
        make: function that makes a file or directory of a given path.
    """
    _clear_leftovers(path)
    stem = f".{path.name.lstrip('.')}."
    while True:
        token = secrets.token_hex(_TOKEN_BYTES)
        aside = path.with_name(f"{stem}{token}.tmp")
        make(aside)
        descriptor = os.open(aside, os.O_RDONLY | _SAFELY)
        # Another process may just have looked whether it is a leftover.
        if _is_locked(descriptor, aside, without_locks=True):
            break
        os.close(descriptor)
    try:
        yield aside
    finally:
        _remove_now(aside)
        os.close(descriptor)


def _make_file(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def _clear_leftovers(path):
    """Removes what processes that are gone have left aside of a path."""
    stem = re.escape(f".{path.name.lstrip('.')}.")
    pattern = re.compile(rf"{stem}[0-9a-f]{{{2 * _TOKEN_BYTES}}}\.tmp")
    try:
        names = os.listdir(path.parent)
    except OSError:
        return
    for leftover in map(path.with_name, filter(pattern.fullmatch, names)):
        try:
            descriptor = os.open(leftover, os.O_RDONLY | _SAFELY)
        except OSError:
            continue
        try:
            if _is_locked(descriptor, leftover, without_locks=False):
                _remove_now(leftover)
        finally:
            os.close(descriptor)


def _is_locked(descriptor, path, without_locks):
    """Tries once to lock what was opened at a path.

    Args:
        descriptor: int.
        path: `pathlib.Path`.
        without_locks: bool, the answer where a file system knows no locks.

    Returns:
        Whether nobody else holds it, nor has removed it.
    """
    try:
        is_free = filelock.lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        is_free = without_locks
    return is_free and _is_file_of(descriptor, path)


def _remove_now(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


# One process at a time.


@contextlib.contextmanager
def hold(directory, seconds=0.0, again=False):
    """Keeps other processes out of a directory while the block runs.

    The lock is the operating system's, on a file named .lock, so it is gone
    with the process, however that ends. The file is removed on leaving, and so
    is the directory if nothing else was put into it.

    Args:
        directory: path, made if need be.
        seconds: float, how long to wait for another process that holds it.
        again: bool, whether this process may hold it already; it then keeps it
            until the outer block is left.

    Raises:
        UserError: if another process still holds it, saying which; or if
            nothing can be written there.
    """
    path = pathlib.Path(directory) / LOCK_NAME
    if again and _is_held(directory):
        yield
        return
    descriptor = _acquire(path, time.monotonic() + seconds)
    real = os.path.realpath(directory)
    _HELD[real] = descriptor
    try:
        yield
    finally:
        _HELD.pop(real, None)
        # First the name, then the lock: see `_acquire`.
        with contextlib.suppress(OSError):
            if _is_file_of(descriptor, path):
                path.unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def check_held(directory):
    """Checks that a directory that is held is still the one that it was.

    Args:
        directory: path. If this process does not hold it, nothing is checked.

    Raises:
        UserError: if it was removed meanwhile, and perhaps made again.
    """
    if os.path.realpath(directory) in _HELD and not _is_held(directory):
        raise UserError(
            f"{directory} was removed or moved while this process worked "
            "there; it stops, and writes nothing into what is there now. Run "
            "the same command again."
        )


def _is_held(directory):
    descriptor = _HELD.get(os.path.realpath(directory))
    return descriptor is not None and _is_file_of(
        descriptor, pathlib.Path(directory) / LOCK_NAME
    )


def _acquire(path, deadline):
    """Returns the descriptor of the locked file, which tells who holds it."""
    while True:
        descriptor, is_writable = _open(path)
        try:
            _lock(descriptor, path, deadline)
            # Between opening and locking, its holder may have removed it.
            if _is_file_of(descriptor, path):
                if is_writable:
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, _holder().encode())
                    return descriptor
                # Left by a killed process of another user.
                if not _unlinked(path):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path):
    """Opens a lock file, made if need be.

    Returns:
        (descriptor, whether it can be written): int, bool.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o644)
            is_writable = True
        except PermissionError:
            # Another user's; to lock it, reading is enough.
            descriptor = os.open(path, os.O_RDONLY | _SAFELY)
            is_writable = False
    except OSError as error:
        raise _refusal(path, error) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise _not_a_lock(path, "a pipe, a device or a file of two names")
    return descriptor, is_writable


def _refusal(path, error):
    if path.is_symlink():
        return _not_a_lock(path, "a symbolic link")
    if path.is_dir():
        return _not_a_lock(path, "a directory")
    return UserError(
        f"Nothing can be written into {path.parent}: {error.strerror}. Give "
        "another --work_dir."
    )


def _not_a_lock(path, what):
    return UserError(
        f"{path} is {what} and not the file that tells who works there. "
        "Remove it and run the same command again."
    )


def _unlinked(path):
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _lock(descriptor, path, deadline):
    try:
        while not filelock.lock_descriptor(descriptor, blocking=False):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{path.parent} is being worked on by "
                    f"{_describe(descriptor)}. Wait for it to end, or give "
                    "another --work_dir."
                )
            time.sleep(_SECONDS_BETWEEN_TRIES)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _refusal(path, error) from error
        logging.warning(
            "The file system of %s knows no locks: see to it that only one "
            "process works there.",
            path.parent,
        )


def _is_file_of(descriptor, path):
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), found)


def _holder():
    now = datetime.datetime.now().astimezone()
    return json.dumps(
        {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": now.isoformat(sep=" ", timespec="seconds"),
            "command": " ".join(sys.argv),
        }
    )


def _describe(descriptor):
    try:
        holder = json.loads(os.pread(descriptor, 2**16, 0))
        return (
            f"process {holder['process']} on {holder['host']} since "
            f"{holder['since']}: {holder['command']}"
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process, which has only just begun"
