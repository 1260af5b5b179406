"""CheXpert's tables and image folders that are not quite that."""

import os
import shutil

import domains
import numpy as np
from bad_inputs_case import (
    Case,
    emptied,
    encoded,
    file_instead,
    on_folder,
    remove,
    train,
    write_images,
)

# CheXpert's tables.


def chexpert_case(name, change, says, ends="sentence"):
    """Returns a case of a changed train.csv.

    Args:
        name: str, of the case.
        change: function from the table's bytes to other bytes.
        says: str, in the sentence.
        ends: as in `Case`.
    """

    def make(directory):
        folder = domains.write_chexpert(directory, 16, valid=1)
        table = folder / "train.csv"
        table.write_bytes(change(table.read_bytes()))
        return train(
            directory,
            "train.model = @fixup_resnet",
            "train.schedule = @schedules.constant",
            f"load.data_dir = '{folder}'",
            "load.split_size = 8",
            "load.image_size = 16",
            config="rit_chexpert.gin",
        )

    return Case("chexpert table", name, make, ends, says)


def _cell(column, value, row=3):
    index = domains.CHEXPERT_COLUMNS.index(column)

    def change(content):
        lines = content.split(b"\r\n")
        cells = lines[row].split(b",")
        cells[index] = value
        lines[row] = b",".join(cells)
        return b"\r\n".join(lines)

    return change


def _without_column(name):
    def change(content):
        return content.replace(name.encode(), b"Something else", 1)

    return change


def chexpert_cases():
    """Yields tables that are not CheXpert's, or not quite."""
    for column in ("Path", *_findings()):
        change = _without_column(column)
        yield chexpert_case(f"without {column}", change, column)
    for value in (b"2.0", b"-2", b"nan", b"inf", b"yes", b"0x1", b"1;0", b" "):
        name, change = f"label {value!r}", _cell("Edema", value)
        yield chexpert_case(name, change, "Edema")
    paths = {
        "missing": b"CheXpert-v1.0-small/train/nobody.jpg",
        "empty": b"",
        "directory": b"CheXpert-v1.0-small/train",
        "of one part": b"view1.jpg",
        "long": b"a/" + b"b" * 5000,
        "with a zero byte": b"a/b\0c",
    }
    for name, path in paths.items():
        change = _cell("Path", path)
        yield chexpert_case(f"path {name}", change, "")
    yield from _chexpert_files()


def _findings():
    return (
        "Cardiomegaly",
        "Edema",
        "Consolidation",
        "Atelectasis",
        "Pleural Effusion",
    )


def _chexpert_files():
    bom = b"\xef\xbb\xbf"
    well = {
        "with BOM": lambda t: bom + t,
        "with LF": lambda t: t.replace(b"\r\n", b"\n"),
        "without last newline": lambda t: t.rstrip(b"\r\n"),
        "with blank lines": lambda t: t.replace(b"\r\n", b"\r\n\r\n"),
    }
    for name, change in well.items():
        yield chexpert_case(name, change, "", "well")
    bad = {
        "empty": lambda t: b"",
        "header only": lambda t: t[: t.index(b"\n") + 1],
        "without header": lambda t: t[t.index(b"\n") + 1 :],
        "header twice": lambda t: t[: t.index(b"\n") + 1] + t,
        "column twice": lambda t: t.replace(b"Fracture", b"Edema", 1),
        "binary": lambda t: np.random.RandomState(0).bytes(5000),
        "UTF-16": lambda t: t.decode().encode("utf-16"),
        "Latin-1": lambda t: t.replace(b"Female", b"Fr\xe4ulein"),
        "zeros": lambda t: bytes(5000),
        "an image": lambda t: encoded(domains.photograph(0, 9, 9)),
        "cut within a row": lambda t: t[: t.rindex(b"Frontal")],
        "huge field": lambda t: t.replace(b"Female", b"F" * 300_000, 1),
        "open quote": lambda t: t.replace(b"Female", b'"Female', 1),
        "semicolons": lambda t: t.replace(b",", b";"),
        "tabs": lambda t: t.replace(b",", b"\t"),
        "short row": lambda t: t + b"CheXpert-v1.0-small/train/x.jpg,Male\r\n",
        "long row": lambda t: t.replace(b"Female", b"Female,1,2", 1),
        "a page": lambda t: b"<html><body>Log in</body></html>",
    }
    for name, change in bad.items():
        yield chexpert_case(name, change, "train.csv")


# Image folders.


def folder_case(name, change, says="", ends="sentence"):
    """Returns a case of a changed image folder; `change` gets its path."""

    def make(directory):
        write_images(directory, encoded(domains.photograph(1, 9, 9)), "a.png")
        change(directory / "images")
        return on_folder(directory)

    return Case("image folder", name, make, ends, says)


def _rename(old, new):
    def change(root):
        if isinstance(new, bytes):
            target = os.fsencode(root) + b"/" + new
        else:
            target = root / new
        os.rename(root / old, target)

    return change


def _rename_class(new):
    def change(root):
        for split in ("train", "test"):
            _rename(f"{split}/class1", os.path.join(split, new))(root)

    return change


def folder_cases():
    """Yields folders of another layout, and of odd names."""
    yield folder_case("absent", shutil.rmtree, "images")
    yield folder_case("without test", remove("test"), "test")
    yield folder_case("without train", remove("train"), "train")
    yield folder_case("a file", file_instead("."), "images")
    yield folder_case("test a file", file_instead("test"), "test")
    yield folder_case("class a file", file_instead("train/class1"), "class1")
    yield folder_case("class only in test", remove("train/class1"), "class1")
    yield folder_case(
        "class only in train", remove("test/class1"), ends="either"
    )
    for split in ("train", "test"):
        yield folder_case(
            f"empty class in {split}", emptied(f"{split}/class1"), "class1"
        )
        yield folder_case(f"no class in {split}", emptied(split), split)
    yield folder_case("one level too deep", _deeper("train/class1"), "class1")
    yield folder_case("one level too high", _flattened, "train")
    yield folder_case("dangling link", _linked("nowhere"), ends="either")
    yield folder_case("link to itself", _linked("a_link.png"), ends="either")
    yield folder_case("a directory named .png", _directory_named, ends="well")
    yield folder_case("hidden files", _hidden, ends="well")
    yield folder_case("a pipe", _pipe, ends="well")
    names = (
        "with space",
        "with'quote",
        'with"quote',
        "Füße",
        "犬",
        "new\nline",
        "%s",
        "tab\there",
        "*",
        "x" * 200,
        "$HOME",
        "back\\slash",
    )
    for name in names:
        label = f"class named {name[:20]!r}"
        yield folder_case(label, _rename_class(name), ends="well")
        label = f"file named {name[:20]!r}"
        change = _rename("train/class0/a.png", f"train/class0/{name}.png")
        yield folder_case(label, change, ends="well")
    change = _rename("train/class0/a.png", b"train/class0/\xff\xfe.png")
    yield folder_case("file name not UTF-8", change, ends="well")


def _deeper(path):
    def change(root):
        (root / path).rename(root / "aside")
        (root / path).mkdir()
        (root / "aside").rename(root / path / "deeper")

    return change


def _flattened(root):
    for path in list((root / "train").glob("*/*")):
        path.rename(root / "train" / f"{path.parent.name}_{path.name}")
    for path in list((root / "train").glob("class?")):
        path.rmdir()


def _linked(target):
    return lambda root: (root / "train/class0/a_link.png").symlink_to(target)


def _directory_named(root):
    (root / "train/class0/b.png").mkdir()


def _hidden(root):
    (root / "train/class0/.DS_Store").write_text("hidden")
    (root / "train/.hidden").mkdir()


def _pipe(root):
    os.mkfifo(root / "train/class0/pipe.png")
