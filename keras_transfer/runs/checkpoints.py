"""Checkpoints: arrays by name in safetensors files, one directory an epoch.

    checkpoints/epoch-0001/weights.safetensors      by variable path
                           optimizer.safetensors    to go on training
                .epoch-0002.partial/                the same within an epoch,
                           steps.safetensors        and what its steps gave
                best.json                           which epoch is the best

Every file and directory appears whole or not at all, and a checksum tells what
has been damaged since.
"""

import dataclasses
import json
import os
import pathlib
import re
import zlib

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from keras_transfer import files
from keras_transfer.errors import UserError

_EPOCH_DIRECTORY = re.compile(r"epoch-(\d{4,})")
# As safetensors names them in a file.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# What damaged content leads to.
_DAMAGED = (
    safetensors.SafetensorError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)


def to_bytes(arrays):
    """Returns the content of a safetensors file.

    Args:
        arrays: {name: array}; the order is kept.
    """
    arrays = {
        name: np.require(value, requirements="C")
        for name, value in arrays.items()
    }
    metadata = {
        "order": json.dumps(list(arrays)),
        "checksum": str(_checksum(arrays)),
    }
    return safetensors.numpy.save(arrays, metadata)


def from_bytes(content):
    """Returns {name: array}, in the order in which `to_bytes` was given them.

    Args:
        content: bytes of any safetensors file. Without the order that
            `to_bytes` notes, arrays come in that of the file's header.

    Raises:
        One of several errors, if they are damaged.
    """
    found = {
        name: np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(
            tensor["shape"]
        )
        for name, tensor in safetensors.deserialize(content)
    }
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    order = json.loads(metadata["order"]) if "order" in metadata else header
    if sorted(order) != sorted(found):
        raise ValueError("its arrays are not those that it names")
    arrays = {name: found[name] for name in order}
    expected = metadata.get("checksum", str(_checksum(arrays)))
    if expected != str(_checksum(arrays)):
        raise ValueError("its checksum is another than what was written")
    return arrays


def _checksum(arrays):
    checksum = 0
    for name, value in arrays.items():
        label = f"{name} {value.dtype.name} {value.shape}"
        checksum = zlib.crc32(label.encode(), checksum)
        checksum = zlib.crc32(value.reshape(-1).view(np.uint8), checksum)
    return checksum


def write_arrays(path, arrays):
    """Writes named arrays into a safetensors file, in their order.

    Args:
        path: the file.
        arrays: {name: array}.

    Raises:
        UserError: if it cannot be written.
    """
    with files.writing(path):
        pathlib.Path(path).write_bytes(to_bytes(arrays))


def read_arrays(path):
    """Returns what a safetensors file holds.

    Args:
        path: the file.

    Returns:
        {name: array}, in the order in which `write_arrays` was given them.

    Raises:
        UserError: if the file is absent, cut short or changed.
    """
    try:
        return from_bytes(pathlib.Path(path).read_bytes())
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path} is damaged: it cannot be read. {reason.rstrip('.')}."
        ) from error


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What it takes to go on with a run.

    Attributes:
        epoch: int, epochs finished.
        weights: {path: array} of the model.
        optimizer: {path: array} of its state.
        steps: float32 array [steps taken in the epoch after that, 2], what
            they gave: loss and accuracy, summed over each step's examples.
    """

    epoch: int
    weights: dict
    optimizer: dict
    steps: np.ndarray


class Checkpoints:
    """The checkpoints of one run.

    Args:
        path: `pathlib.Path` of their directory, which may be absent.
    """

    def __init__(self, path):
        self.path = path
        self._best_path = path / "best.json"

    def epochs(self):
        """Returns the epochs that have a checkpoint, ascending."""
        if not self.path.is_dir():
            return []
        matches = map(_EPOCH_DIRECTORY.fullmatch, os.listdir(self.path))
        return sorted(int(match[1]) for match in matches if match)

    def write(self, epoch, weights, optimizer=None):
        """Writes the checkpoint of a finished epoch.

        Args:
            epoch: int, epochs finished.
            weights: {path: array}.
            optimizer: {path: array}, or None if nobody is to go on from here.

        Raises:
            UserError: if it cannot be written; those before are kept.
        """
        with files.whole_directory(self.directory(epoch)) as aside:
            _write_state(aside, weights, optimizer)
        for partial in self.path.glob(".epoch-*.partial"):
            with files.writing(partial):
                files.remove(partial)

    def write_partial(self, epoch, weights, optimizer, steps):
        """Writes a checkpoint within an epoch; `write` removes it.

        Args:
            epoch: int, the epoch that is not finished (1 is the first).
            weights: {path: array}.
            optimizer: {path: array}.
            steps: float32 array, see `Checkpoint`.

        Raises:
            UserError: if it cannot be written; the checkpoints are kept.
        """
        with files.whole_directory(self._partial_directory(epoch)) as aside:
            _write_state(aside, weights, optimizer)
            write_arrays(aside / "steps.safetensors", {"steps": steps})

    def read_weights(self, epoch):
        """Returns one epoch's weights, {path: array}.

        Raises:
            UserError: naming the file if it is damaged.
        """
        self.check_format(epoch)
        return self._read(self.directory(epoch) / "weights.safetensors")

    def read(self, epoch):
        """Returns the `Checkpoint` of a finished epoch.

        Raises:
            UserError: naming the file that is damaged.
        """
        optimizer = self.directory(epoch) / "optimizer.safetensors"
        return Checkpoint(
            epoch,
            self.read_weights(epoch),
            self._read(optimizer),
            np.empty((0, 2), np.float32),
        )

    def read_partial(self, epoch):
        """Returns what `write_partial` wrote, as a `Checkpoint`.

        Args:
            epoch: int, the epoch that was not finished.

        Returns:
            The `Checkpoint`, or None if there is nothing.

        Raises:
            UserError: if it is damaged.
        """
        directory = self._partial_directory(epoch)
        if not directory.is_dir():
            return None
        weights, optimizer, steps = (
            read_arrays(directory / f"{name}.safetensors")
            for name in ("weights", "optimizer", "steps")
        )
        return Checkpoint(epoch - 1, weights, optimizer, steps["steps"])

    def remove(self, epoch):
        """Removes one epoch's checkpoint."""
        files.remove(self.directory(epoch))

    def write_best(self, epoch, metric, value):
        """Records which epoch is the best by a test metric."""
        record = {"epoch": epoch, "metric": metric, "value": value}
        files.write_text(self._best_path, json.dumps(record) + "\n")

    def directory(self, epoch):
        """Returns where an epoch's checkpoint lies."""
        return self.path / f"epoch-{epoch:04d}"

    def check_format(self, epoch):
        """Raises a `UserError` about a checkpoint of former versions."""
        directory = self.directory(epoch)
        if (directory / "checkpoint.index").exists():
            raise UserError(
                f"The checkpoint {directory} was written by an earlier version "
                "of keras_transfer, in a form that is no longer read. Train "
                "the run again in another directory; its configuration "
                f"repeats it: bin/train --gin_file={self.path.parent}/"
                "config.gin --work_dir=DIR"
            )

    def _partial_directory(self, epoch):
        return self.path / f".epoch-{epoch:04d}.partial"

    def _read(self, path):
        try:
            return read_arrays(path)
        except UserError as error:
            raise UserError(
                f"The checkpoint {path.parent} is damaged: {error} Remove "
                "that directory and run the training command again, or name "
                "another epoch."
            ) from error


def _write_state(directory, weights, optimizer):
    write_arrays(directory / "weights.safetensors", weights)
    if optimizer is not None:
        write_arrays(directory / "optimizer.safetensors", optimizer)
