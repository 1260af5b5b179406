"""The cache of decoded images: damaged, another user's, being written."""

import errno
import fcntl
import os
import threading

import numpy as np
import pytest
from absl import logging

from keras_transfer.data import cache
from keras_transfer.errors import UserError

SHAPE = (600, 8, 8, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(cache, "_BLOCK", 10_000)


@pytest.fixture
def store(tmp_path):
    """Returns a function that stores `IMAGES`, and a list of its writings."""
    writings = []

    def fill(array):
        writings.append(1)
        array[:] = IMAGES
        return {
            "valid": np.ones(len(array), bool),
            "contents": np.arange(len(array), dtype=np.uint64),
        }

    def store(fill=fill):
        return cache.store(SHAPE, fill, "key", 0.0, str(tmp_path))

    return store, writings


def _entry(folder):
    (entry,) = (path for path in folder.iterdir() if path.is_dir())
    return entry


def test_what_is_stored_is_read(store):
    store, writings = store
    for _ in range(2):
        images, found = store()
        np.testing.assert_array_equal(images.array, IMAGES)
        np.testing.assert_array_equal(images.contents, np.arange(len(IMAGES)))
        assert found["valid"].all()
    assert writings == [1]


@pytest.mark.parametrize("name", ["images.npy", "valid.npy", "contents.npy"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_one_flipped_bit_is_noticed(store, tmp_path, name, place):
    store, writings = store
    store()
    path = _entry(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    images, found = store()
    np.testing.assert_array_equal(images.array, IMAGES)
    assert found["valid"].all() and writings == [1, 1]
    store()
    assert writings == [1, 1]


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, "\xff", '{"images.npy": 3}', "{}"]
)
def test_damaged_checksums_are_damage(store, tmp_path, text):
    store, writings = store
    store()
    path = _entry(tmp_path) / "checksums.json"
    path.write_text(text, encoding="latin-1")
    images, _ = store()
    np.testing.assert_array_equal(images.array, IMAGES)
    assert writings == [1] * (1 if text == "{}" else 2)


def test_the_cache_of_another_user_is_read(store, tmp_path, monkeypatch):
    store, writings = store
    store()
    real = os.open

    def refusing(path, flags, *args, **kwargs):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    images, _ = store()
    np.testing.assert_array_equal(images.array, IMAGES)
    assert writings == [1]


def test_a_lock_of_another_user_can_be_locked(tmp_path, monkeypatch):
    path = str(tmp_path / "x.lock")
    os.close(cache._open_lock(path))
    real = os.open

    def refusing(path, flags, *args, **kwargs):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    descriptor = cache._open_lock(path)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_a_lock_that_is_a_link_is_not_followed(store, tmp_path):
    store, _ = store
    store()
    entry = _entry(tmp_path)
    for path in entry.iterdir():
        path.unlink()
    precious = tmp_path / "precious"
    precious.write_text("of the user")
    lock = tmp_path / f"{entry.name}.lock"
    lock.unlink()
    lock.symlink_to(precious)
    with pytest.raises(UserError, match="cannot be cached"):
        store()
    assert precious.read_text() == "of the user"


def test_waiting_for_another_process_is_said(store, tmp_path, monkeypatch):
    store, writings = store
    store()
    entry = _entry(tmp_path)
    (entry / "valid.npy").unlink()
    messages = []
    released = threading.Event()
    descriptor = os.open(f"{entry}.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    def warn(text, *args):
        messages.append(text % args)
        if "Waiting" in text:
            os.close(descriptor)  # The other process ends.
            released.set()

    monkeypatch.setattr(logging, "warning", warn)
    store()
    assert released.is_set() and str(entry) in messages[0]
    assert writings == [1, 1]
    # What is whole is read at once, whoever holds the lock.
    messages.clear()
    descriptor = os.open(f"{entry}.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    store()
    os.close(descriptor)
    assert messages == []


def test_room_is_taken_before_a_memory_map_is_written(store, monkeypatch):
    store, writings = store

    def full(descriptor, start, length):
        assert length > IMAGES.nbytes
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left"):
        store()
    assert writings == []


def test_what_cannot_be_read_is_no_fault_of_the_cache(store, tmp_path):
    store, _ = store

    def fill(array):
        raise cache.ReadingFailed("a.png cannot be read")

    with pytest.raises(UserError, match="^a.png cannot be read$"):
        store(fill)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
