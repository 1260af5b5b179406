import hashlib
import os
import stat
import zipfile

import pytest

from keras_transfer import unpacking
from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest
from keras_transfer.unpacking import unpack


@pytest.fixture
def content(tmp_path):
    """{name: bytes} of a directory that says to be a run."""
    Manifest(tmp_path / "run", "run").claim()
    manifest = (tmp_path / "run" / "manifest.json").read_bytes()
    return {
        "README.md": b"---\nlicense: CC0-1.0\n---\n",
        "manifest.json": manifest,
        "checkpoints/epoch-0001/weights.safetensors": os.urandom(5000),
    }


def _sums(content):
    """Returns what `sha256sum` would write."""
    lines = (
        f"{hashlib.sha256(value).hexdigest()}  {name}\n"
        for name, value in content.items()
    )
    return "".join(lines).encode()


def _archive(path, entries):
    """Writes a zip file of (name or `ZipInfo`, bytes)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in entries:
            archive.writestr(name, value)
    return path


def _entries(content):
    return [*content.items(), ("SHA256SUMS", _sums(content))]


def _check_refused(tmp_path, archive, words, **options):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=words) as caught:
        unpack(archive, tmp_path / "out" / "new", **options)
    assert str(archive) in str(caught.value)
    assert "Nothing was written" in str(caught.value)
    # At most the empty folder that was to hold it.
    left = set(tmp_path.rglob("*")) - set(before)
    assert left <= {tmp_path / "out"}


def test_what_is_unpacked_is_what_was_packed(tmp_path, content):
    archive = _archive(tmp_path / "a.zip", _entries(content))
    unpack(archive, tmp_path / "new")
    found = {
        path.relative_to(tmp_path / "new").as_posix(): path.read_bytes()
        for path in (tmp_path / "new").rglob("*")
        if path.is_file()
    }
    assert found == content | {"SHA256SUMS": _sums(content)}
    with pytest.raises(UserError, match="exists already"):
        unpack(archive, tmp_path / "new")


def test_the_hash_of_the_archive_may_be_given(tmp_path, content):
    archive = _archive(tmp_path / "a.zip", _entries(content))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    wrong = digest[::-1]
    _check_refused(tmp_path, archive, f"SHA-256 is {digest}", expected=wrong)
    unpack(archive, tmp_path / "new", digest.upper())


@pytest.mark.parametrize(
    "name",
    [
        "../out.csv",
        "a/../../out.csv",
        "/tmp/out.csv",
        "a//b.csv",
        "./a.csv",
        "a\\..\\b.csv",
        ".hidden/a.csv",
        ".lock",
        "a/.git/config.gin",
        "a.csv\n",
        "a\x1b.csv",
        "folder/",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(tmp_path, content, name):
    content[name] = b""
    archive = _archive(tmp_path / "a.zip", _entries(content))
    _check_refused(tmp_path, archive, "leads out of the directory or is hidden")


def test_a_name_that_is_cut_at_nul_is_refused(tmp_path, content):
    content["a.csv_b.py"] = b""
    archive = _archive(tmp_path / "a.zip", _entries(content))
    text = archive.read_bytes().replace(b"a.csv_b.py", b"a.csv\0b.py")
    archive.write_bytes(text)
    _check_refused(tmp_path, archive, "hidden|cannot be read")


@pytest.mark.parametrize("name", ["a.py", "a.so", "run", "a.csv.exe", "a.pkl"])
def test_files_of_other_kinds_are_refused(tmp_path, content, name):
    content[name] = b""
    archive = _archive(tmp_path / "a.zip", _entries(content))
    _check_refused(tmp_path, archive, "none of ours")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path, content, kind):
    entry = zipfile.ZipInfo("link.csv")
    entry.create_system = 3
    entry.external_attr = (kind | 0o777) << 16
    content["link.csv"] = b"/etc/passwd"
    entries = [
        (entry if name == "link.csv" else name, value)
        for name, value in _entries(content)
    ]
    archive = _archive(tmp_path / "a.zip", entries)
    _check_refused(tmp_path, archive, "a link or a device")


def test_a_changed_file_is_refused(tmp_path, content):
    entries = _entries(content)
    entries[2] = (entries[2][0], b"x" + entries[2][1][1:])
    archive = _archive(tmp_path / "a.zip", entries)
    _check_refused(tmp_path, archive, "weights.safetensors has not the hash")


@pytest.mark.parametrize("change", ["more", "fewer", "no sums"])
def test_files_that_the_sums_do_not_name_are_refused(tmp_path, content, change):
    entries = _entries(content)
    if change == "more":
        entries.append(("more.csv", b""))
    elif change == "fewer":
        del entries[0]
    else:
        del entries[-1]
    archive = _archive(tmp_path / "a.zip", entries)
    _check_refused(tmp_path, archive, "SHA256SUMS")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["README.md", "readme.md"])
def test_two_files_of_one_name_are_refused(tmp_path, content, name):
    archive = _archive(tmp_path / "a.zip", [*_entries(content), (name, b"")])
    _check_refused(tmp_path, archive, "have one name")


def test_what_would_fill_the_disk_is_refused(tmp_path, content, monkeypatch):
    monkeypatch.setattr(unpacking, "_MOST_COMPRESSED", 10**6)
    entry = zipfile.ZipInfo("zeros.csv")
    entry.compress_type = zipfile.ZIP_DEFLATED
    content["zeros.csv"] = bytes(10**6 + 1)
    entries = [
        (entry if name == "zeros.csv" else name, value)
        for name, value in _entries(content)
    ]
    archive = _archive(tmp_path / "a.zip", entries)
    assert archive.stat().st_size < 10**4
    _check_refused(tmp_path, archive, "what is compressed would take 1000")


def test_a_size_that_is_not_true_is_refused(tmp_path, content):
    entry = zipfile.ZipInfo("zeros.csv")
    entry.compress_type = zipfile.ZIP_DEFLATED
    content["zeros.csv"] = bytes(10**6)
    entries = [
        (entry if name == "zeros.csv" else name, value)
        for name, value in _entries(content)
    ]
    archive = _archive(tmp_path / "a.zip", entries)
    size, told = (n.to_bytes(4, "little") for n in (10**6, 1000))
    archive.write_bytes(archive.read_bytes().replace(size, told))
    _check_refused(tmp_path, archive, "cannot be read|not the hash")


def test_files_that_overlap_are_refused(tmp_path, content):
    # Two entries of the directory that name one stretch of the archive.
    content["a.png"] = content["b.png"] = os.urandom(2000)
    archive = _archive(tmp_path / "a.zip", _entries(content))
    with zipfile.ZipFile(archive) as opened:
        first, second = (
            opened.getinfo(name).header_offset for name in ("a.png", "b.png")
        )
        end = opened.getinfo("SHA256SUMS").header_offset
        start = opened.start_dir
    text = archive.read_bytes()
    directory = text[start:].replace(
        second.to_bytes(4, "little"), first.to_bytes(4, "little")
    )
    moved = second - end
    directory = directory.replace(
        end.to_bytes(4, "little"), second.to_bytes(4, "little")
    ).replace(
        start.to_bytes(4, "little"), (start + moved).to_bytes(4, "little")
    )
    archive.write_bytes(text[:second] + text[end:start] + directory)
    _check_refused(tmp_path, archive, "overlap|cannot be read")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compressions_are_refused(tmp_path, content, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, value in _entries(content):
            archive.writestr(name, value)
    _check_refused(tmp_path, path, "compressed in another way")


@pytest.mark.parametrize("damage", ["cut", "noise", "flipped", "empty"])
def test_damaged_archives_are_refused(tmp_path, content, damage):
    archive = _archive(tmp_path / "a.zip", _entries(content))
    text = bytearray(archive.read_bytes())
    if damage == "cut":
        text = text[:-100]
    elif damage == "noise":
        text = os.urandom(1000)
    elif damage == "flipped":
        text[4000] ^= 1
    else:
        text = b""
    archive.write_bytes(text)
    _check_refused(tmp_path, archive, "cannot be read")


def test_what_is_neither_run_nor_study_is_refused(tmp_path, content):
    Manifest(tmp_path / "looked", "analysis").claim()
    text = (tmp_path / "looked" / "manifest.json").read_bytes()
    content["manifest.json"] = text
    archive = _archive(tmp_path / "a.zip", _entries(content))
    _check_refused(tmp_path, archive, "neither a run nor a study")
    del content["manifest.json"]
    archive = _archive(tmp_path / "b.zip", _entries(content))
    _check_refused(tmp_path, archive, "neither a run nor a study")


def test_every_single_byte_counts(tmp_path, content):
    archive = _archive(tmp_path / "a.zip", _entries(content))
    text = archive.read_bytes()
    whole = {n: v for n, v in _entries(content)}
    for position in range(0, len(text), 97):
        changed = bytearray(text)
        changed[position] ^= 0x55
        archive.write_bytes(changed)
        try:
            unpack(archive, tmp_path / str(position))
        except UserError:
            assert not (tmp_path / str(position)).exists()
            continue
        # What does not matter was hit, such as a date.
        for name, value in whole.items():
            found = tmp_path / str(position) / name
            assert found.read_bytes() == value


def test_an_archive_that_is_absent(tmp_path):
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "none.zip", tmp_path / "new")
