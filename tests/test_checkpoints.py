import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from keras_transfer.errors import UserError
from keras_transfer.runs.checkpoints import read_arrays, write_arrays

ARRAYS = {
    "z/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/scalar": np.array(3, np.int64),
    "seed/state": np.array([1, 2**32 - 1], np.uint32),
    "m/half": np.array([0.5], np.float16),
    "b/brain": np.array([[1.5]], ml_dtypes.bfloat16),
    "e/nothing": np.zeros((0, 4), np.float32),
    "é/flags": np.array([True, False]),
    "k/turned": np.arange(6.0).reshape(2, 3).T,
}


def test_arrays_come_back_in_their_order(tmp_path):
    write_arrays(tmp_path / "a.safetensors", ARRAYS)
    found = read_arrays(tmp_path / "a.safetensors")
    assert list(found) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_the_library_itself_reads_what_is_written(tmp_path):
    arrays = {k: v for k, v in ARRAYS.items() if k != "b/brain"}
    write_arrays(tmp_path / "a.safetensors", arrays)
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys()
    for name, expected in arrays.items():
        np.testing.assert_array_equal(found[name], expected)


def test_files_of_others_are_read(tmp_path):
    arrays = {"b": np.ones(3, np.float32), "a": np.zeros((2, 2), np.int32)}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    found = read_arrays(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys()
    for name, expected in arrays.items():
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\xff" * len(content),
        lambda content: content.replace(b"kernel", b"kernol"),
        lambda content: content.replace(b'"order"', b'"ardor"'),
        lambda content: content.replace(b"F16", b"I16"),
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    ],
)
def test_damage_is_a_sentence(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    write_arrays(path, ARRAYS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="a.safetensors is damaged: it cannot"):
        read_arrays(path)


def test_absent_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_arrays(tmp_path / "a.safetensors")
