"""What has been evaluated already, so that an analysis can be stopped."""

import json
import pathlib
import zlib

from absl import logging

from keras_transfer.files import append_text


class Evaluations:
    """Named numbers by identifier, kept in a file that grows line by line.

    What has been added is found again after an interruption, also one that cuts
    a line short, and by every later analysis in the same directory. A line that
    was damaged since, which its checksum tells, is evaluated again.

    Args:
        path: JSON-lines file, made at the first `add`; None to keep nothing
            beyond this object's life.
    """

    def __init__(self, path=None):
        self.path = None if path is None else pathlib.Path(path)
        self._known, self._torn = {}, False
        if self.path is not None and self.path.is_file():
            self._read()

    def __contains__(self, identifier):
        return identifier in self._known

    def __getitem__(self, identifier):
        """Returns the numbers of one identifier, as a dict."""
        return self._known[identifier]

    def __len__(self):
        return len(self._known)

    def add(self, numbers):
        """Keeps further numbers; they are on the disk on return.

        Args:
            numbers: {identifier: {name: float}}, identifiers and names str.

        Raises:
            UserError: if the file cannot be written.
        """
        self._known.update(numbers)
        if self.path is None:
            return
        lines = "".join(
            _line(identifier, values) for identifier, values in numbers.items()
        )
        append_text(self.path, "\n" + lines if self._torn else lines)
        self._torn = False

    def _read(self):
        # An interrupted write can end within a character, too.
        text = self.path.read_text(encoding="utf-8", errors="replace")
        self._torn = bool(text) and not text.endswith("\n")
        damaged = 0
        for line in filter(None, text.splitlines()):
            try:
                identifier, values, checksum = json.loads(line)
                if checksum != _checksum(identifier, values):
                    raise ValueError("its checksum is another")
                self._known[identifier] = values
            except (ValueError, TypeError, RecursionError):
                damaged += 1
        if damaged > self._torn:
            logging.warning(
                "%d lines of %s are damaged; what stood there is evaluated "
                "again.",
                damaged,
                self.path,
            )


def _line(identifier, values):
    return json.dumps([identifier, values, _checksum(identifier, values)]) + (
        "\n"
    )


def _checksum(identifier, values):
    return zlib.crc32(json.dumps([identifier, values]).encode())
