"""A run or a study in one archive, to be shared; `unpacking` reads it."""

import os
import pathlib
import shutil
import stat
import tempfile
import zipfile

from keras_transfer import __version__, cards, files
from keras_transfer.errors import UserError
from keras_transfer.manifest import NAME as MANIFEST
from keras_transfer.manifest import Manifest
from keras_transfer.runs import Run, configuration
from keras_transfer.runs.checkpoints import read_arrays
from keras_transfer.unpacking import (
    CARD,
    SUFFIXES,
    SUMS,
    WEIGHTS,
    is_safe,
    sha256,
)

TABLES = "tables.parquet"
_OPTIMIZER = f"optimizer{WEIGHTS}"
# Events hold example images, which are often not one's own to share.
_LEFT_OUT = {"tensorboard", "replaced"}
# The same files make the same archive, byte for byte.
_DATE = (1980, 1, 1, 0, 0, 0)
_UNKNOWN = "not stated"


def pack(directory, output, license=None, data=None):
    """Writes a run's or a study's directory as one archive.

    Packed are weights, tables, figures, configurations, the report, and for a
    study all its tables once more as one Parquet file. Of the optimizer only
    the state of each run's last epoch is, with which it can go on. Left out are
    TensorBoard's events, logs, and what is hidden.

    Args:
        directory: path of the run or study.
        output: path of the archive, a zip file; must not exist.
        license: str, on what terms the archive may be used.
        data: str, where the images come from, and on what terms.

    Returns:
        str, the archive's SHA-256.

    Raises:
        UserError: if this is neither run nor study, if a file is damaged or a
            link, or if the archive cannot be written.
    """
    directory, output = pathlib.Path(directory), pathlib.Path(output)
    if os.path.lexists(output):
        raise UserError(
            f"{output} exists already. Remove it or give another --output."
        )
    kind = Manifest(directory).kind if directory.is_dir() else None
    if kind not in ("run", "study"):
        raise UserError(
            f"{directory} is neither the directory of a run nor of a study. "
            "Give the --work_dir of a bin/train or bin/reproduce command."
        )
    terms = {"license": license or _UNKNOWN, "data": data or _UNKNOWN}
    with files.hold(directory), tempfile.TemporaryDirectory() as made:
        made = pathlib.Path(made)
        members = _members(directory)
        _check(directory, members)
        if kind == "study":
            _write_tables(directory, members, made / TABLES)
        facts = _of_run(directory) if kind == "run" else _of_study(directory)
        card = cards.render(kind, version=__version__, **(facts | terms))
        files.write_text(made / CARD, card)
        members |= {path.name: path for path in made.iterdir()}
        with files.whole_file(output) as aside:
            _write(aside, members)
            with open(aside, "rb") as file:
                return sha256(file)


# What is packed.


def _members(directory):
    """Returns {path within the archive: `pathlib.Path`} of what is packed."""
    members = {}
    for folder, folders, names in os.walk(directory):
        folder = pathlib.Path(folder)
        folders[:] = sorted(n for n in folders if _is_shared(n))
        for path in (folder / name for name in sorted([*folders, *names])):
            if path.is_symlink() and _is_shared(path.name):
                raise UserError(
                    f"{path} is a link, and links are not packed. Put in its "
                    "place what it leads to."
                )
        for path in (folder / name for name in sorted(names)):
            if _is_shared(path.name) and path.suffix in SUFFIXES:
                name = path.relative_to(directory).as_posix()
                if not is_safe(name):
                    raise UserError(
                        "A name with control characters or backslashes cannot "
                        f"be packed. Received: {name!r}. Rename it."
                    )
                members[name] = path
    states = [name for name in members if name.endswith(_OPTIMIZER)]
    last = {pathlib.Path(name).parents[1]: name for name in states}
    for name in set(states) - set(last.values()):
        del members[name]
    # Of an archive that was unpacked; they are made anew.
    return {n: p for n, p in members.items() if n not in (TABLES, CARD)}


def _is_shared(name):
    return not name.startswith(".") and name not in _LEFT_OUT


def _check(directory, members):
    """Raises a `UserError` that names a file that is damaged."""
    for path in members.values():
        if path.name == MANIFEST:
            Manifest(path.parent).check()
        elif path.suffix == WEIGHTS:
            read_arrays(path)


def _write_tables(directory, members, path):
    """Writes all tables of a study into one Parquet file.

    Its columns are those of all tables and, first, where a row stood: task (""
    for the study's own) and table. What a table has no such column for is null.
    """
    import pandas

    parts = []
    for file in members.values():
        if file.suffix == ".csv":
            place = file.parent.relative_to(directory).as_posix()
            table = Manifest(file.parent).read_table(file.name)
            table.insert(0, "task", "" if place == "." else place)
            table.insert(1, "table", file.stem)
            parts.append(table)
    tables = pandas.concat(parts, ignore_index=True)
    for name, column in tables.items():
        # A number in one table, text in another.
        if column.dtype.kind == "O":
            tables[name] = column.map(str, na_action="ignore")
    with files.writing(path):
        tables.to_parquet(path, index=False)


# Its card.


def _of_run(directory):
    """Returns what the card tells of a run."""
    run = Run(directory)
    return {
        "title": directory.resolve().name,
        "best": run.best() | {"split": run.choosing_split},
        "epochs": run.epochs(),
        "info": run.info(),
        "pretrained": _bound(directory, "train.pretrained"),
    }


def _of_study(directory):
    """Returns what the card tells of a study."""
    claims = Manifest(directory).read_table("claims.csv")
    first = claims.drop_duplicates(["claim", "target"])
    title, question = (
        _bound(directory, f"Study.{name}") for name in ("title", "question")
    )
    return {
        "title": _bound(directory, "Study.title") or directory.resolve().name,
        "question": " ".join(
            (_bound(directory, "Study.question") or "").split()
        ),
        "claims": first.to_dict("records"),
    }


def _bound(directory, name):
    config = Manifest(directory).read_text("config.gin")
    try:
        return configuration.value(config, name)
    except KeyError:
        return None


# The archive.


def _write(path, members):
    """Writes files and their hashes into a zip file."""
    sums = {}
    with zipfile.ZipFile(path, "w") as archive:
        # The card first, for whoever looks at the archive from its beginning.
        for name in sorted(members, key=lambda name: (name != CARD, name)):
            sums[name] = _add(archive, name, members[name])
        text = "".join(f"{sums[name]}  {name}\n" for name in sums)
        archive.writestr(_entry(SUMS), text.encode())


def _add(archive, name, path):
    """Adds a file to an archive; returns its SHA-256."""
    with (
        open(path, "rb") as source,
        archive.open(_entry(name), "w", force_zip64=True) as target,
    ):
        shutil.copyfileobj(source, target)
        source.seek(0)
        return sha256(source)


def _entry(name):
    entry = zipfile.ZipInfo(name, _DATE)
    # Weights look like noise: to compress them costs time and saves nothing.
    is_stored = name.endswith(WEIGHTS)
    entry.compress_type = (
        zipfile.ZIP_STORED if is_stored else zipfile.ZIP_DEFLATED
    )
    entry.create_system = 3  # Unix, whose modes these are.
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry
