"""What tells a directory of ours from others, and its files from damaged ones.

manifest.json in a directory says what the directory is (a run, an analysis, a
study), which one, and for every small file that is read back a hash of what was
written last and of what it replaced: a process killed between noting a file and
writing it leaves the older one, which is as good.
"""

import hashlib
import io
import json
import os
import pathlib
import time
import uuid

from keras_transfer import files, reading
from keras_transfer.errors import UserError

NAME = "manifest.json"
_KINDS = {
    "run": "a run of bin/train",
    "analysis": "the results of bin/analyze",
    "study": "a study of bin/reproduce",
}
# A reader may come between two writes of a process that works there.
_TRIES, _SECONDS_BETWEEN_TRIES = 5, 0.05


class Manifest:
    """The manifest of one directory; nothing is read before it is asked for.

    Args:
        directory: path.
        kind: "run", "analysis" or "study"; what the directory becomes when
            something is written. None only to read.
    """

    def __init__(self, directory, kind=None):
        self.directory = pathlib.Path(directory)
        self.path = self.directory / NAME
        self._kind = kind

    # What it tells.

    @property
    def kind(self):
        """What the directory is, None if nothing tells."""
        return self._read().get("kind")

    @property
    def identity(self):
        """What tells the directory from all others, a str; None if unknown."""
        return self._read().get("identity")

    def note(self, name):
        """Returns what was noted under a name by `write_note`, or None."""
        return self._read().get("notes", {}).get(name)

    # Writing.

    def claim(self, names=(), identity=None):
        """Makes the directory one of its kind, if it may become that.

        Args:
            names: of files that will be written; there must not be one that
                somebody else has put there.
            identity: str it is to have if it has none yet; None for a new one.

        Raises:
            UserError: if it is of another kind, or such a file is there.
        """
        with files.writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        found = self._read()
        if found:
            check_kind(self.directory, self._kind, found["kind"])
            return
        for name in names:
            if os.path.lexists(self.directory / name):
                raise UserError(
                    f"{self.directory / name} is there already, and it is not "
                    f"known to be a part of {_KINDS[self._kind]}. Nothing was "
                    "changed; give another --work_dir, or move it away."
                )
        self._write(self._new(identity))

    def write_text(self, name, text):
        """Writes a text file of the directory; see `write_bytes`."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name, content):
        """Writes a file of the directory, whole or not at all, and its hash.

        Args:
            name: str, its path within the directory.
            content: bytes.

        Raises:
            UserError: if it cannot be written, or another process has taken
                the directory.
        """
        files.check_held(self.directory)
        path, record = self.directory / name, self._read() or self._new()
        if name not in record["files"] and os.path.lexists(path):
            raise UserError(
                f"{path} is there already, and nothing of keras_transfer has "
                "written it. Nothing was changed; move it away."
            )
        old = [h for h in record["files"].get(name, []) if h == _hash_of(path)]
        record["files"][name] = list(dict.fromkeys([_hash(content), *old]))
        self._write(record)
        with files.whole_file(path) as aside:
            aside.write_bytes(content)

    def write_note(self, name, value):
        """Notes something that can be written as JSON."""
        record = self._read() or self._new()
        record.setdefault("notes", {})[name] = value
        self._write(record)

    def adopt(self, names, identity=None):
        """Notes what a directory without manifest holds, as it is.

        Args:
            names: of its files; those that are absent are left out.
            identity: str, None for a new one.
        """
        record = self._new(identity)
        hashes = {name: _hash_of(self.directory / name) for name in names}
        hashes.pop(NAME, None)
        record["files"] = {n: [h] for n, h in hashes.items() if h}
        self._write(record)

    # Reading.

    def read_bytes(self, name):
        """Returns what a file of the directory holds.

        Raises:
            UserError: naming it, if it is not what was written.
        """
        path = self.directory / name
        for left in reversed(range(_TRIES)):
            content = reading.read_bytes(path)
            hashes = self._read().get("files", {}).get(name)
            if hashes is None or _hash(content) in hashes:
                return content
            if left:
                time.sleep(_SECONDS_BETWEEN_TRIES)
        raise UserError(
            f"{path} is damaged: it is not what was written there, by its "
            f"hash in {NAME}. Put back a copy of it, or have it made again."
        )

    def read_text(self, name):
        """Returns a text file of the directory; see `read_bytes`."""
        return reading.as_text(self.read_bytes(name), self.directory / name)

    def read_object(self, name, **types):
        """Returns the object in a JSON file; see `reading.as_object`."""
        path = self.directory / name
        return reading.as_object(self.read_bytes(name), path, **types)

    def read_table(self, name, **options):
        """Returns a table in a CSV file; see `reading.as_table`."""
        path = self.directory / name
        return reading.as_table(self.read_bytes(name), path, **options)

    def check(self):
        """Raises a `UserError` that names a file that is not as written."""
        for name in self._read().get("files", {}):
            self.read_bytes(name)

    # The file itself.

    def _new(self, identity=None):
        return {
            "kind": self._kind,
            "identity": identity or uuid.uuid4().hex,
            "files": {},
        }

    def _read(self):
        """Returns what the file says, {} if there is none."""
        if not os.path.lexists(self.path):
            return {}
        content = reading.read_bytes(self.path)
        found = reading.as_object(
            content, self.path, kind=str, identity=str, files=dict, hash=str
        )
        with reading.damaged(self.path):
            if found.pop("hash") != _hash(_encoded(found)):
                raise ValueError("it does not have the hash that it tells")
            if found["kind"] not in _KINDS:
                raise ValueError(f"it tells of {found['kind']!r}")
        return found

    def _write(self, record):
        record = record | {"hash": _hash(_encoded(record))}
        files.write_text(self.path, json.dumps(record, indent=2) + "\n")


def check_kind(directory, wanted, found):
    """Raises a `UserError` if a directory is of another kind than wanted.

    Args:
        directory: path, to name it.
        wanted: str.
        found: str, or None if nothing tells.
    """
    if found not in (None, wanted):
        raise UserError(
            f"{directory} holds {_KINDS[found]} and cannot be that of "
            f"{_KINDS[wanted]}. Nothing was changed; give another directory."
        )


def csv_text(table):
    """Returns a `pandas.DataFrame` as CSV, without its index.

    A cell of text that a spreadsheet would take for a formula is quoted.
    """
    table = table.copy()
    for name in table.columns:
        if table[name].dtype.kind == "O":
            table[name] = table[name].map(_quoted)
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n")
    return text.getvalue()


def _quoted(value):
    is_formula = isinstance(value, str) and value[:1] in tuple("=+-@\t\r")
    return f"'{value}" if is_formula else value


def _encoded(record):
    return json.dumps(record, sort_keys=True).encode()


def _hash(content):
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _hash_of(path):
    """Returns the hash of a file, None if there is none."""
    return _hash(reading.read_bytes(path)) if path.is_file() else None
