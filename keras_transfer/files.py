"""One process at a time in a directory of results."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import time

from absl import logging

from keras_transfer.errors import UserError

NAME = ".lock"
_SECONDS_BETWEEN_TRIES = 0.2
# File systems that know no locks say one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def hold(directory, seconds=0.0):
    """Keeps other processes out of a directory while the block runs.

    The lock is the operating system's (`flock` on a file named .lock), so it is
    gone with the process, however that ends. The file is removed on leaving,
    and so is the directory if nothing else was put into it.

    Args:
        directory: path, made if need be.
        seconds: float, how long to wait for another process that holds it.

    Raises:
        UserError: if another process still holds it, saying which; or if
            nothing can be written there.
    """
    path = pathlib.Path(directory) / NAME
    descriptor = _acquire(path, time.monotonic() + seconds)
    try:
        yield
    finally:
        # First the name, then the lock: see `_acquire`.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _acquire(path, deadline):
    """Returns the descriptor of the locked file, which tells who holds it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"Nothing can be written into {path.parent}: "
                f"{error.strerror}. Give another --work_dir."
            ) from error
        try:
            _lock(descriptor, path, deadline)
            # Between opening and locking, its holder may have removed it.
            if _is_file_of(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _holder().encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor, path, deadline):
    try:
        while not _is_locked(descriptor, is_last=time.monotonic() > deadline):
            time.sleep(_SECONDS_BETWEEN_TRIES)
    except BlockingIOError as error:
        raise UserError(
            f"{path.parent} is being worked on by {_describe(descriptor)}. "
            "Wait for it to end, or give another --work_dir."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logging.warning(
            "The file system of %s knows no locks: see to it that only one "
            "process works there.",
            path.parent,
        )


def _is_locked(descriptor, is_last):
    """Tries once to lock a file; raises BlockingIOError if it is the last."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if is_last:
            raise
        return False
    return True


def _is_file_of(descriptor, path):
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


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
    except (ValueError, KeyError, TypeError):
        return "another process, which has only just begun"
