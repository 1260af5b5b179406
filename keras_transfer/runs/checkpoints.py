"""Checkpoints: arrays by name in safetensors files, one directory an epoch.

    checkpoints/epoch-0001/weights.safetensors      by variable path
                           optimizer.safetensors    to go on training
                .epoch-0002.partial/                the same within an epoch,
                           steps.safetensors        and what its steps gave
                best.json                           which epoch is the best

Every file and directory appears whole or not at all. A checksum tells what has
been damaged since, and the run's identity and the checkpoint's name, which are
in each file, what has been put in another's place.
"""

import contextlib
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

# Within the run directory.
BEST = "checkpoints/best.json"
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
    RecursionError,
    MemoryError,
)


class Absent(UserError):
    """A checkpoint that was there a moment ago."""


def to_bytes(arrays, **labels):
    """Returns the content of a safetensors file.

    Args:
        arrays: {name: array}; the order is kept.
        **labels: str, what else is written into its header.
    """
    arrays = {
        name: np.require(value, requirements="C")
        for name, value in arrays.items()
    }
    metadata = labels | {
        "order": json.dumps(list(arrays)),
        "checksum": str(_checksum(arrays, labels)),
    }
    return safetensors.numpy.save(arrays, metadata)


def from_bytes(content, **labels):
    """Returns {name: array}, in the order in which `to_bytes` was given them.

    Args:
        content: bytes of any safetensors file. Without the order that
            `to_bytes` notes, arrays come in that of the file's header.
        **labels: str, what `to_bytes` was given, if it was given any.

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
    written = {
        name: value
        for name, value in metadata.items()
        if name not in ("order", "checksum")
    }
    if "checksum" in metadata:
        if metadata["checksum"] != str(_checksum(arrays, written)):
            raise ValueError("its checksum is another than what was written")
        for name, expected in labels.items():
            if written.get(name, expected) != expected:
                raise ValueError(
                    f"it is of another {name}, {written[name]}, and not of "
                    f"{expected}"
                )
    return arrays


def _checksum(arrays, labels):
    checksum = zlib.crc32(json.dumps(labels, sort_keys=True).encode())
    # As in files without labels.
    checksum = checksum if labels else 0
    for name, value in arrays.items():
        label = f"{name} {value.dtype.name} {value.shape}"
        checksum = zlib.crc32(label.encode(), checksum)
        checksum = zlib.crc32(value.reshape(-1).view(np.uint8), checksum)
    return checksum


def write_arrays(path, arrays, **labels):
    """Writes named arrays into a safetensors file, in their order.

    Args:
        path: the file.
        arrays: {name: array}.
        **labels: str, what they belong to, such as run="...".

    Raises:
        UserError: if it cannot be written.
    """
    with files.writing(path):
        pathlib.Path(path).write_bytes(to_bytes(arrays, **labels))


def read_arrays(path, **labels):
    """Returns what a safetensors file holds.

    Args:
        path: the file.
        **labels: str, what it must belong to, if it tells.

    Returns:
        {name: array}, in the order in which `write_arrays` was given them.

    Raises:
        UserError: if the file is absent, cut short or changed.
    """
    try:
        return from_bytes(pathlib.Path(path).read_bytes(), **labels)
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path} is damaged: it cannot be read. {reason.rstrip('.')}."
        ) from error


def check_finite(arrays, what):
    """Checks that weights are numbers that can be computed with.

    Args:
        arrays: {name: array}.
        what: str, whose they are: the start of a sentence.

    Raises:
        UserError: naming the first that is not.
    """
    for name, value in arrays.items():
        # NumPy does not know bfloat16 for a number.
        if value.dtype.kind not in "iub" and not np.isfinite(value).all():
            raise UserError(
                f"{what} holds weights that are NaN or infinite: {name}. "
                "Training diverged, or something else has written them; name "
                "another epoch, or train with a lower learning rate."
            )


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
        manifest: the run's `Manifest`, whose identity they carry.
    """

    def __init__(self, path, manifest):
        self.path = path
        self._manifest = manifest

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
        directory = self.directory(epoch)
        files.check_held(self._manifest.directory)
        with files.whole_directory(directory) as aside:
            _write_state(aside, weights, optimizer, self._labels(directory))
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
        directory = self._partial_directory(epoch)
        labels = self._labels(directory)
        files.check_held(self._manifest.directory)
        with files.whole_directory(directory) as aside:
            _write_state(aside, weights, optimizer, labels)
            write_arrays(
                aside / "steps.safetensors", {"steps": steps}, **labels
            )

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
            read_arrays(
                directory / f"{name}.safetensors", **self._labels(directory)
            )
            for name in ("weights", "optimizer", "steps")
        )
        return Checkpoint(epoch - 1, weights, optimizer, steps["steps"])

    def remove(self, epoch):
        """Removes one epoch's checkpoint."""
        files.remove(self.directory(epoch))

    def write_best(self, epoch, metric, value):
        """Records which epoch is the best by a test metric."""
        record = {"epoch": epoch, "metric": metric, "value": value}
        self._manifest.write_text(BEST, json.dumps(record) + "\n")

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

    def identity(self):
        """Returns the identity of the run whose checkpoints these say to be.

        Returns:
            str, None if none tells.
        """
        for epoch in self.epochs():
            path = self.directory(epoch) / "weights.safetensors"
            with (
                contextlib.suppress(*_DAMAGED),
                safetensors.safe_open(path, "numpy") as file,
            ):
                return (file.metadata() or {}).get("run")
        return None

    def _labels(self, directory):
        """Returns what is written into a checkpoint, to tell it from others."""
        identity = self._manifest.identity
        place = {"checkpoint": directory.name.strip(".")}
        return place | ({"run": identity} if identity else {})

    def _read(self, path):
        try:
            return read_arrays(path, **self._labels(path.parent))
        except UserError as error:
            # A run that goes on may have removed it since it was looked for.
            if not path.parent.exists():
                raise Absent(
                    f"{self.path.parent} no longer has a checkpoint of "
                    f"{path.parent.name}: it was removed just now, as the "
                    "run's keep_epochs has it. Name another epoch."
                ) from error
            raise UserError(
                f"The checkpoint {path.parent} is damaged: {error} Remove "
                "that directory and run the training command again, or name "
                "another epoch."
            ) from error


def _write_state(directory, weights, optimizer, labels):
    write_arrays(directory / "weights.safetensors", weights, **labels)
    if optimizer is not None:
        write_arrays(directory / "optimizer.safetensors", optimizer, **labels)
