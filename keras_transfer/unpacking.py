"""Taking a stranger's archive apart; `packing` makes them.

An archive is a zip file of a run's or a study's directory: README.md (its
card), weights (.safetensors, stored as they are), tables, figures,
configurations, and SHA256SUMS, as `sha256sum` writes and checks it, which names
every other file.
"""

import hashlib
import pathlib
import re
import stat
import zipfile
import zlib

from keras_transfer import files
from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest

SUMS = "SHA256SUMS"
CARD = "README.md"
WEIGHTS = ".safetensors"
# What is packed, and all that is unpacked: nothing that is ever executed.
SUFFIXES = {
    WEIGHTS,
    *(".csv", ".gin", ".html", ".json", ".md", ".parquet", ".png", ".svg"),
}

_MOST_FILES = 1_000_000
# Of what is compressed, unpacked; what is stored is no larger than the archive.
_MOST_COMPRESSED = 4 * 2**30
_MOST_SUMS = 256 * 2**20
_PIECE = 2**20
# No "..", nothing hidden, and no backslash, which leads elsewhere on Windows.
_PART = re.compile(r"(?!\.)[^\x00-\x1f\x7f\\]+")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
# What a damaged zip file leads to.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
    ValueError,
    OverflowError,
)


def unpack(archive, output, expected=None):
    """Puts what an archive holds into a new directory, once it is checked.

    Args:
        archive: path of the zip file.
        output: path of the directory; must not exist.
        expected: str, the SHA-256 that the whole archive must have; None if
            only its files are to be checked, by the hashes within.

    Raises:
        UserError: if the archive is damaged or not one of `packing.pack`'s; if
            it holds a link, a path that leads out of `output`, or more than it
            may; or if `output` exists. Nothing is left behind then.
    """
    archive, output = pathlib.Path(archive), pathlib.Path(output)
    if output.exists() or output.is_symlink():
        raise UserError(
            f"{output} exists already. Remove it or give another --output."
        )
    try:
        with open(archive, "rb") as file:
            if expected is not None:
                _check_hash(file, archive, expected)
            with zipfile.ZipFile(file) as opened:
                members = _members(opened, archive)
                with files.whole_directory(output, replace=False) as aside:
                    _extract(opened, members, archive, aside)
                    _check_kind(aside, archive)
    except _DAMAGED as error:
        raise _refusal(archive, f"it cannot be read: {error}") from error


def is_safe(name):
    """Returns whether a path within an archive stays there and is not hidden.

    Args:
        name: str, with slashes.
    """
    return all(map(_PART.fullmatch, name.split("/")))


def sha256(file):
    """Returns the SHA-256 of a binary file from where it stands, a str."""
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _refusal(archive, reason):
    return UserError(
        f"{archive} is not unpacked: {reason.rstrip('.')}. Nothing was "
        "written; ask for another copy of it."
    )


def _check_hash(file, archive, expected):
    found = sha256(file)
    file.seek(0)
    if found != expected.strip().lower():
        raise _refusal(
            archive, f"its SHA-256 is {found}. Received: --sha256={expected}"
        )


def _members(opened, archive):
    """Returns {name: `zipfile.ZipInfo`}, if all may be unpacked."""
    found = opened.infolist()
    if len(found) > _MOST_FILES:
        raise _refusal(archive, f"it holds {len(found)} files")
    for member in found:
        if problem := _problem(member):
            raise _refusal(archive, f"{problem}: {member.filename!r:.200}")
    # Upper and lower case are the same to some file systems.
    if len({m.filename.casefold() for m in found}) < len(found):
        raise _refusal(archive, "two of its files have one name")
    # One stretch of the archive, named many times, would fill any disk.
    if sum(m.compress_size for m in found) > archive.stat().st_size:
        raise _refusal(archive, "its files overlap")
    compressed = sum(
        m.file_size for m in found if m.compress_type != zipfile.ZIP_STORED
    )
    if compressed > _MOST_COMPRESSED:
        raise _refusal(
            archive, f"what is compressed would take {compressed} bytes"
        )
    return {member.filename: member for member in found}


def _problem(member):
    """Returns why a member cannot be unpacked, "" if it can."""
    path = pathlib.PurePosixPath(member.filename)
    # `orig_filename` is what stands in the archive, with NUL and all.
    if not is_safe(member.orig_filename):
        return "a path leads out of the directory or is hidden"
    if member.filename != SUMS and path.suffix not in SUFFIXES:
        return "there is a file that is none of ours"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "there is a link or a device"
    if member.flag_bits & 0x1:
        return "there is a file that is encrypted"
    is_stored = member.compress_type == zipfile.ZIP_STORED
    if is_stored and member.file_size != member.compress_size:
        return "there is a file of two sizes"
    if not is_stored and member.compress_type != zipfile.ZIP_DEFLATED:
        return "there is a file compressed in another way than ours"
    return ""


def _extract(opened, members, archive, directory):
    """Writes every file into a directory, and compares the hashes."""
    sums = _sums(opened, members, archive)
    for name, expected in sums.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if _written(opened, members[name], path) != expected:
            raise _refusal(archive, f"{name} has not the hash in {SUMS}")


def _sums(opened, members, archive):
    """Returns {name: SHA-256} of every file, itself too."""
    if SUMS not in members or members[SUMS].file_size > _MOST_SUMS:
        raise _refusal(archive, f"it has no {SUMS} as `pack` writes it")
    content = opened.read(members[SUMS])
    matches = map(_LINE.fullmatch, content.decode("utf-8").splitlines())
    sums = {match[2]: match[1] for match in matches if match}
    if sums.keys() != members.keys() - {SUMS}:
        raise _refusal(archive, f"its files are not those that {SUMS} names")
    return sums | {SUMS: hashlib.sha256(content).hexdigest()}


def _written(opened, member, path):
    """Writes one file; returns the SHA-256 of what was written."""
    digest = hashlib.sha256()
    with opened.open(member) as source, open(path, "xb") as target:
        # `zipfile` reads no more than the size that the member tells.
        while piece := source.read(_PIECE):
            digest.update(piece)
            target.write(piece)
    return digest.hexdigest()


def _check_kind(directory, archive):
    if Manifest(directory).kind not in ("run", "study"):
        raise _refusal(archive, "it holds neither a run nor a study")
