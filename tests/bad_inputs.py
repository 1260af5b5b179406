"""A corpus of inputs nobody should give, and what the commands do with them.

    python tests/bad_inputs.py DIRECTORY [--every N]

Writes each input below DIRECTORY, puts it through the real command and prints
a line of JSON on how that ended. TensorFlow is imported once; every case is a
process of its own, forked from here before TensorFlow's runtime has started.
"""

import argparse
import dataclasses
import io
import json
import os
import pathlib
import resource
import runpy
import shutil
import sys
import time
import traceback
import zlib
from collections.abc import Callable

import domains
import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
# No machine has less, and an image that needs more is named instead.
MEMORY = 3 * 2**30
_ADDRESS_SPACE = 16 * 2**30
_SECONDS = 120
_TRAIN = [
    "fixup_resnet.widths = (2,)",
    "fixup_resnet.blocks_per_stage = 1",
    "train.epochs = 1",
    "train.batch_size = 4",
    "cosine.warmup_epochs = 0.0",
]


@dataclasses.dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        kind: str, what sort of thing is bad.
        name: str, unique within the kind.
        make: writes the input into a directory; returns the command's name and
            flags. The command is to write into `directory / "output"`.
        ends: "well", "sentence" or "either".
        says: str that the sentence must hold, what is wrong or where.
    """

    kind: str
    name: str
    make: Callable
    ends: str = "sentence"
    says: str = ""


# Images.


def encoded(array, kind="PNG", mode=None, **options):
    """Returns an image file's bytes, by Pillow."""
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def _chunk(name, content):
    check = zlib.crc32(name + content)
    return (
        len(content).to_bytes(4, "big")
        + name
        + content
        + check.to_bytes(4, "big")
    )


def flat_png(width, height):
    """Returns a black gray PNG of any size, in a few KB."""
    packer = zlib.compressobj(9)
    row, packed = bytes(width + 1), []
    for _ in range(height):
        packed.append(packer.compress(row))
    packed.append(packer.flush())
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header + bytes([8, 0, 0, 0, 0]))
        + _chunk(b"IDAT", b"".join(packed))
        + _chunk(b"IEND", b"")
    )


def deep_png(array):
    """Returns a PNG of 16 bits a channel, in colour and maybe with alpha."""
    height, width, channels = array.shape
    rows = (array.astype(">u2") * 257).reshape(height, -1)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    kind = {3: 2, 4: 6}[channels]
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header + bytes([16, kind, 0, 0, 0]))
        + _chunk(b"IDAT", zlib.compress(content))
        + _chunk(b"IEND", b"")
    )


def lying_png(width, height):
    """Returns a PNG whose header promises more pixels than there are."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header + bytes([8, 2, 0, 0, 0]))
        + _chunk(b"IDAT", zlib.compress(bytes(100)))
        + _chunk(b"IEND", b"")
    )


def _patched(content, position, replacement):
    end = position + len(replacement)
    return content[:position] + replacement + content[end:]


def _frames(kind, **options):
    frames = [Image.fromarray(domains.photograph(i, 24, 30)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(
        file, kind, save_all=True, append_images=frames[1:], **options
    )
    return file.getvalue()


def _write_images(directory, bad, name):
    """Writes 2 classes of 6 images, one of them bad; returns its path."""
    root = directory / "images"
    for i in range(12):
        folder = root / ("test" if i >= 8 else "train") / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image = domains.photograph(i, 20 + i, 30 - i)
        (folder / f"{i}.png").write_bytes(encoded(image))
    path = root / "train" / "class0" / name
    path.write_bytes(bad)
    return path


def train(directory, *bindings, config="p_folder.gin"):
    """Returns the training command of a tiny network."""
    bindings = [
        *_TRAIN,
        f"load.cache_dir = '{directory.parent / 'cache'}'",
        *bindings,
    ]
    return "train", [
        f"--gin_file={ROOT / 'gin' / config}",
        *(f"--gin_bindings={b}" for b in bindings),
        f"--work_dir={directory / 'output'}",
    ]


def on_folder(directory, *bindings):
    """Returns the training command on `directory`/images."""
    return train(
        directory,
        f"load.data_dir = {str(directory / 'images')!r}",
        "load.image_size = 8",
        *bindings,
    )


def image_case(name, content, ends="sentence", bindings=()):
    """Returns a case of one bad image file among good ones."""

    def make(directory):
        bad = content() if callable(content) else content
        _write_images(directory, bad, name)
        return on_folder(directory, *bindings)

    says = name if ends != "well" else ""
    label = f"{name} {' '.join(bindings)}".strip()
    return Case("image", label, make, ends, says)


def truncated_images():
    """Yields files of each format cut off at many places."""
    array = domains.photograph(1, 40, 30)
    files = {
        "cut.jpg": encoded(array, "JPEG"),
        "cut_progressive.jpg": encoded(array, "JPEG", progressive=True),
        "cut.png": encoded(array),
        "cut.gif": encoded(array, "GIF"),
        "cut.bmp": encoded(array, "BMP"),
    }
    for name, content in files.items():
        stem, suffix = name.split(".")
        for percent in (0, 1, 5, 20, 50, 80, 99):
            yield image_case(
                f"{stem}_{percent}.{suffix}",
                content[: len(content) * percent // 100],
                # The end of a file can be mere padding, or a trailer.
                "either" if percent == 99 else "sentence",
            )


def odd_images():
    """Yields whole files of unusual kinds."""
    array = domains.photograph(2, 26, 34)
    gray, deep = array[..., 0], array[..., 0].astype(np.uint16) * 257
    alpha = np.dstack([array, gray])
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "cmyk.jpg": encoded(array, "JPEG", "CMYK"),
        "gray.jpg": encoded(gray, "JPEG"),
        "progressive.jpg": encoded(array, "JPEG", progressive=True),
        "rotated.jpg": encoded(array, "JPEG", exif=exif),
        "deep.png": encoded(deep),
        "deep_color.png": deep_png(array),
        "deep_alpha.png": deep_png(alpha),
        "palette.png": encoded(array, mode="P"),
        "one_bit.png": encoded(array, mode="1"),
        "alpha.png": encoded(alpha),
        "gray_alpha.png": encoded(array, mode="LA"),
        "animated.gif": _frames("GIF"),
        "animated.png": _frames("PNG"),
        "really_a_png.jpg": encoded(array),
        "really_a_jpeg.png": encoded(array, "JPEG"),
        "really_a_gif.jpg": encoded(array, "GIF"),
        "really_a_bmp.jpg": encoded(array, "BMP"),
        "alpha.bmp": encoded(alpha, "BMP"),
        "gray.bmp": encoded(gray, "BMP"),
        "palette.bmp": encoded(array, "BMP", "P"),
        "one_pixel.png": encoded(array[:1, :1]),
        "one_pixel.jpg": encoded(array[:1, :1], "JPEG"),
        "one_pixel.gif": encoded(array[:1, :1], "GIF"),
        "thin.png": encoded(array[:, :1]),
        "no_suffix": encoded(array),
    }
    decodable = {"alpha.bmp", "palette.bmp", "gray_alpha.png", "one_bit.png"}
    for name, content in files.items():
        yield image_case(
            name, content, "either" if name in decodable else "well"
        )
    others = {
        "tiff.tif": encoded(array, "TIFF"),
        "webp.webp": encoded(array, "WEBP"),
        "webp.jpg": encoded(array, "WEBP"),
        "animated.webp": _frames("WEBP"),
        "icon.ico": encoded(array, "ICO"),
        "portable.ppm": encoded(array, "PPM"),
        "text.png": b"not an image\n",
        "text.jpg": "nicht wahr \N{PILE OF POO}".encode(),
        "page.png": b"<html><body>404</body></html>",
        "empty.png": b"",
        "empty.jpg": b"",
        "one_byte.png": b"\x89",
        "zeros.jpg": bytes(1000),
        "noise.png": np.random.RandomState(0).bytes(2000),
        "noise.jpg": b"\xff\xd8\xff" + np.random.RandomState(1).bytes(2000),
        "noise.gif": b"GIF89a" + np.random.RandomState(2).bytes(2000),
        "noise.bmp": b"BM" + np.random.RandomState(3).bytes(2000),
        "archive.png": b"PK\x03\x04" + bytes(200),
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\n",
    }
    for name, content in others.items():
        yield image_case(name, content)
    for name in ("text.png", "empty.jpg", "noise.bmp"):
        skip = "load.on_damaged = 'skip'"
        yield image_case(name, others[name], "well", [skip])


def corrupt_headers():
    """Yields files in which a few bytes are wrong."""
    array = domains.photograph(3, 30, 30)
    png, jpeg = encoded(array), encoded(array, "JPEG")
    gif, bmp = encoded(array, "GIF"), encoded(array, "BMP")
    most = b"\xff\xff\xff\x7f"
    files = {
        "width_0.png": lying_png(0, 10),
        "height_0.png": lying_png(10, 0),
        "color_type.png": _patched(png, 25, b"\x07"),
        "depth.png": _patched(png, 24, b"\x03"),
        "checksum.png": _patched(png, 29, b"\0\0\0\0"),
        "signature.png": _patched(png, 1, b"GNP"),
        "data.png": _patched(png, 60, bytes(40)),
        "signature.jpg": _patched(jpeg, 0, b"\0\0"),
        "tables.jpg": _patched(jpeg, 30, bytes(200)),
        "signature.gif": _patched(gif, 0, b"GIG"),
        "offset.bmp": _patched(bmp, 10, most),
        "width_large.bmp": _patched(bmp, 18, most),
        "height_large.bmp": _patched(bmp, 22, most),
        "height_least.bmp": _patched(bmp, 22, b"\0\0\0\x80"),
        "bits.bmp": _patched(bmp, 28, b"\x07\0"),
        "width_0.bmp": _patched(bmp, 18, bytes(4)),
    }
    for name, content in files.items():
        yield image_case(name, content, "either")


def large_images():
    """Yields images that would not fit into memory, or nearly."""
    bound = 2**31 - 1
    files = {
        "bomb_20000.png": lambda: flat_png(20_000, 20_000),
        "bomb_60000.png": lambda: lying_png(60_000, 60_000),
        "bomb_most.png": lambda: lying_png(bound, bound),
        "bomb_wide.png": lambda: lying_png(bound, 1),
        "bomb_thin.png": lambda: flat_png(1, 20_000),
        "bomb_flat.png": lambda: flat_png(60_000, 1),
        "bomb_thin.jpg": lambda: encoded(
            np.zeros((60_000, 1), np.uint8), "JPEG", "L"
        ),
        "bomb.gif": lambda: _patched(
            encoded(np.zeros((9, 9), np.uint8), "GIF", "L"), 6, b"\xff" * 4
        ),
        "bomb_lying.jpg": lambda: _sized_jpeg(65_000, 65_000),
        "bomb.bmp": lambda: _patched(
            encoded(np.zeros((9, 9), np.uint8), "BMP", "L"),
            18,
            (40_000).to_bytes(4, "little") * 2,
        ),
    }
    for name, content in files.items():
        yield image_case(name, content)
        encode = ["load.keep = 'encoded'"]
        yield image_case(name, content, bindings=encode)
    large = "large_4000.png"
    yield image_case(large, lambda: flat_png(4_000, 4_000), "well")


def _sized_jpeg(width, height):
    content = encoded(domains.photograph(1, 16, 16), "JPEG")
    frame = content.index(b"\xff\xc0") + 5
    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return _patched(content, frame, sides)


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
        _write_images(directory, encoded(domains.photograph(1, 9, 9)), "a.png")
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
    yield folder_case("without test", _remove("test"), "test")
    yield folder_case("without train", _remove("train"), "train")
    yield folder_case("a file", _file_instead("."), "images")
    yield folder_case("test a file", _file_instead("test"), "test")
    yield folder_case("class a file", _file_instead("train/class1"), "class1")
    yield folder_case("class only in test", _remove("train/class1"), "class1")
    yield folder_case(
        "class only in train", _remove("test/class1"), ends="either"
    )
    for split in ("train", "test"):
        yield folder_case(
            f"empty class in {split}", _emptied(f"{split}/class1"), "class1"
        )
        yield folder_case(f"no class in {split}", _emptied(split), split)
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


def _remove(path):
    return lambda root: shutil.rmtree(root / path)


def _file_instead(path):
    def change(root):
        shutil.rmtree(root / path)
        (root / path).write_text("a file")

    return change


def _emptied(path):
    def change(root):
        shutil.rmtree(root / path)
        (root / path).mkdir()

    return change


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


# Configurations.

_WRONG_VALUES = {
    "train.epochs": (
        "9" * 30,
        "'x'",
        "0",
        "-1",
        "1.5",
        "None",
        "[1]",
        "True",
        "@SGD",
    ),
    "train.batch_size": ("'x'", "0", "-1", "1.5", "None", "10**9", "[4]"),
    "train.seed": ("'x'", "1.5", "None", "-1"),
    "train.mixup_alpha": ("'x'", "-1.0", "None", "[1.0]", "1e999"),
    "train.eval_batch_size": ("'x'", "1.5", "None", "0", "-1"),
    "train.keep_epochs": ("3", "'some'", "None", "{1: 2}", "['x']"),
    "train.dtype_policy": ("'float99'", "3", "None"),
    "train.schedule": ("'cosine'", "3", "None", "@load", "@cosine()"),
    "train.model": ("'resnet'", "3", "None", "@SGD", "@fixup_resnet()"),
    "train.dataset": ("'digits'", "3", "None", "@strategy", "@SGD"),
    "train.optimizer": ("'SGD'", "3", "None", "@load", "@fixup_resnet"),
    "train.strategy": ("'mirrored'", "3", "None", "@load", "@strategy()"),
    "train.augmentation": (
        "3",
        "'flip'",
        "[1]",
        "[@random_crop]",
        "@random_crop()",
        "[@load()]",
    ),
    "train.pretrained": ("3", "'nowhere'", "''", "['a']"),
    "train.pretrained_epoch": ("1.5", "None", "[1]"),
    "train.jit_compile": ("'x'", "3"),
    "strategy.name": ("'none'", "3", "['tpu']", "'tpu'"),
    "strategy.devices": ("3", "'CPU:0'", "['CPU:99']", "[0]", "[]"),
    "load.name": ("3", "'no_such_data'", "None", "''"),
    "load.image_size": ("'x'", "0", "-1", "8.5", "[8]", "1000000"),
    "load.channels": ("'x'", "0", "2", "4", "[1]"),
    "load.resize": ("'x'", "-1", "2", "8.5"),
    "load.num_train": ("'x'", "0", "-1", "1.5", "1000000"),
    "load.seed": ("'x'", "-1", "1.5", "None"),
    "load.mean": ("'x'", "[0.1, 0.2]", "{}"),
    "load.std": ("'x'", "0", "-1.0", "[]"),
    "load.shuffle": ("'x'", "3", "'blocks'"),
    "load.block_size": ("'x'", "3", "0"),
    "load.shuffle_seed": ("'x'", "-1", "None"),
    "load.memory_budget": ("'x'", "None", "-1.0"),
    "load.cache_dir": ("3", "['a']"),
    "load.keep": ("3", "'all'"),
    "load.on_damaged": ("3", "'ignore'"),
    "load.data_dir": ("3", "['a']"),
    "load.train_split": ("3", "'nowhere'"),
    "load.test_split": ("3", "'nowhere'"),
    "load.split_size": ("'x'", "0", "-1"),
    "load.split_seed": ("'x'", "-1"),
    "fixup_resnet.widths": ("3", "'x'", "()", "(0,)", "(-2,)", "('a',)"),
    "fixup_resnet.blocks_per_stage": ("'x'", "0", "-1", "1.5"),
    "cosine.base_rate": ("'x'", "-1.0", "None", "1e999"),
    "cosine.warmup_epochs": ("'x'", "-1.0", "None", "1e999"),
    "SGD.momentum": ("'x'", "None", "-1.0"),
    "SGD.weight_decay": ("'x'", "-1.0"),
    "SGD.global_clipnorm": ("'x'", "-1.0", "0.0"),
    "SGD.scalar_multiplier": ("'x'", "-1.0"),
    "random_crop.padding": ("'x'", "-1", "1.5"),
}
# What stands for a number that has been worked out.
_COMPUTED = {"10**9": "1000000000"}


def value_cases():
    """Yields bindings of the wrong type or size."""
    for parameter, values in _WRONG_VALUES.items():
        for value in values:
            binding = f"{parameter} = {_COMPUTED.get(value, value)}"
            says = parameter.split(".")[1]

            def make(directory, binding=binding):
                small = "load.num_train = 8"
                return train(directory, small, binding, config="rit_digits.gin")

            yield Case("binding", binding, make, "either", says)


_CONFIGS = {
    "empty": ("", "configuration"),
    "unknown configurable": ("no_such.parameter = 1", "no_such"),
    "unknown parameter": ("train.no_such = 1", "no_such"),
    "unknown reference": ("train.model = @no_such", "no_such"),
    "unknown macro": ("train.epochs = %no_such", "no_such"),
    "missing include": ("include 'nowhere.gin'", "nowhere.gin"),
    "includes itself": ("include 'config.gin'", "config.gin"),
    "includes a directory": ("include '.'", ""),
    "missing import": ("import no_such_module", "no_such_module"),
    "no value": ("train.epochs =", "config.gin"),
    "no equals sign": ("train.epochs 3", "config.gin"),
    "open bracket": ("train.augmentation = [", "config.gin"),
    "open quote": ("load.name = 'digits", "config.gin"),
    "an expression": ("train.epochs = 1 + 1", "config.gin"),
    "a call": ("train.epochs = int('3')", "config.gin"),
    "Python": ("def train():\n    pass\n", "config.gin"),
    "JSON": ('{"train.epochs": 3}', "config.gin"),
    "YAML": ("train:\n  epochs: 3\n", "config.gin"),
    "an odd character": ("train.epochs = 3 \N{PILE OF POO}", "config.gin"),
    "indented": ("  train.epochs = 3", ""),
    "macro of itself": ("a = %a\ntrain.epochs = %a", "%a = %a"),
    "macro of itself, unused": ("a = %a", "%a = %a"),
    "macros in a ring": ("a = [%b]\nb = {'x': %a}", "%a = %b"),
    "macro without a value": ("train.epochs = %a/b", "a/b"),
    "macro of another type": ("a = 'x'\ntrain.epochs = %a", "train.epochs"),
    "reference to itself": (
        "random_crop.padding = @random_crop()",
        "@random_crop()",
    ),
    "call without an argument": (
        "train.augmentation = [@random_crop()]",
        "random_crop.padding",
    ),
    "reference without an argument": ("train.dataset = @load", "load.name"),
    "configurable of Python": ("train.model = @print", "print"),
    "import of a secret": ("import os\nos.system = 'true'", "os"),
    "bound twice": ("train.epochs = 1\ntrain.epochs = 'x'", "train.epochs"),
    "deep brackets": ("train.keep_epochs = " + "[" * 3000, "config.gin"),
    "zero bytes": ("train.epochs = 3\0", ""),
}


def config_cases():
    """Yields gin files that cannot be used."""
    for name, (text, says) in _CONFIGS.items():
        yield config_case(name, text.encode(), says)
    yield config_case("binary", np.random.RandomState(0).bytes(3000), "")
    yield config_case("Latin-1", b"load.name = 'Fr\xe4ulein'", "config.gin")
    yield config_case("UTF-16", "train.epochs = 3".encode("utf-16"), "")
    yield config_case("absent", None, "config.gin")
    yield Case("configuration", "directory", _directory_as_config)
    yield Case("configuration", "loop of two", _loop_of_two, says="a.gin")


def config_case(name, content, says):
    """Returns a case of one gin file."""

    def make(directory):
        path = directory / "config.gin"
        if content is not None:
            path.write_bytes(content)
        return "train", [
            f"--gin_file={path}",
            f"--work_dir={directory / 'output'}",
        ]

    return Case("configuration", name, make, says=says)


def _directory_as_config(directory):
    return "train", [
        f"--gin_file={directory}",
        f"--work_dir={directory / 'output'}",
    ]


def _loop_of_two(directory):
    (directory / "a.gin").write_text("include 'b.gin'\n")
    (directory / "b.gin").write_text("include 'a.gin'\n")
    return "train", [
        f"--gin_file={directory / 'a.gin'}",
        f"--work_dir={directory / 'output'}",
    ]


# Run directories.

_RUN_FILES = ("config.gin", "model.json", "data.json", "metrics.csv")
_CHECKPOINT = "checkpoints/epoch-0001"
_CHECKPOINT_FILES = (
    f"{_CHECKPOINT}/checkpoint.index",
    f"{_CHECKPOINT}/checkpoint.data-00000-of-00001",
)


def run_case(name, change, commands, says="", ends="sentence"):
    """Yields cases of a changed run directory, one a command.

    Args:
        name: str, of the case.
        change: function of the run's directory.
        commands: keys of `_RUN_COMMANDS`.
        says: as in `Case`.
        ends: as in `Case`.
    """
    for command in commands:

        def make(directory, command=command):
            run = directory / "run"
            shutil.copytree(directory.parent / "trained", run)
            change(run)
            return _RUN_COMMANDS[command](directory, run)

        yield Case(f"run for {command}", name, make, ends, says)


def _analysis(name, *bindings):
    def flags(directory, run):
        both = {"P-T": [str(run)], "RI-T": [str(directory.parent / "other")]}
        runs = f"Subjects.runs = {both}"
        return "analyze", [
            f"--gin_file={ROOT}/gin/{name}.gin",
            *(f"--gin_bindings={b}" for b in (runs, *bindings)),
            f"--work_dir={directory / 'output'}",
        ]

    return flags


def _export(epoch):
    def flags(directory, run):
        return "export", [
            f"--run={run}",
            f"--epoch={epoch}",
            f"--output={directory / 'output'}",
        ]

    return flags


def _from_pretrained(directory, run):
    bindings = ["load.num_train = 8", f"train.pretrained = {str(run)!r}"]
    return train(directory, *bindings, config="pt_digits.gin")


_RUN_COMMANDS = {
    "distance": _analysis("distance"),
    "mistakes": _analysis("mistakes"),
    "feature_reuse": _analysis("feature_reuse"),
    "export": _export("best"),
    "export_last": _export("last"),
    "pretrained": _from_pretrained,
}


def run_cases():
    """Yields run directories that are foreign or damaged."""
    damages = {
        "absent": lambda p: p.unlink(),
        "emptied": lambda p: p.write_bytes(b""),
        "cut": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
        "a directory": _directory_in_place,
        "binary": lambda p: p.write_bytes(np.random.RandomState(0).bytes(2000)),
    }
    for damage, change in damages.items():
        for file in ("config.gin", "model.json", "data.json"):
            # What a command does not read need not be whole.
            ends = "either" if file == "config.gin" else "sentence"
            yield from run_case(
                f"{file} {damage}",
                lambda run, f=file, c=change: c(run / f),
                ("mistakes", "export"),
                "run",
                ends,
            )
        for file in _CHECKPOINT_FILES:
            yield from run_case(
                f"{file.split('.')[-1]} {damage}",
                lambda run, f=file, c=change: c(run / f),
                ("distance", "export_last", "pretrained"),
                "epoch-0001",
            )
        yield from run_case(
            f"metrics.csv {damage}",
            lambda run, c=change: c(run / "metrics.csv"),
            ("feature_reuse",),
            "metrics.csv",
        )
        yield from run_case(
            f"best.json {damage}",
            lambda run, c=change: c(run / "checkpoints/best.json"),
            ("export",),
            "best.json",
        )
    yield from _json_cases()
    yield from _metrics_cases()
    yield from _foreign_runs()


def _directory_in_place(path):
    path.unlink()
    path.mkdir()


def _json_cases():
    texts = ("null", "3", "[]", "{}", '"x"', "true", "NaN", '{"a": 1}')
    files = {
        "model.json": "export",
        "data.json": "mistakes",
        "checkpoints/best.json": "export",
    }
    for file, command in files.items():
        for text in texts:
            yield from run_case(
                f"{file} is {text}",
                lambda run, f=file, t=text: (run / f).write_text(t),
                (command,),
                file.split("/")[-1],
            )
    yield from _changed_data()
    for key, value in (
        ("epoch", "x"),
        ("epoch", 99),
        ("epoch", None),
        ("epoch", -1),
        ("epoch", 1.5),
    ):
        yield from run_case(
            f"best.json: {key} is {value!r}",
            lambda run, k=key, v=value: _change_json(
                run / "checkpoints/best.json", k, v
            ),
            ("export",),
            "run",
        )


def _changed_data():
    for part, key, value in (
        ("arguments", "name", "nothing_known"),
        ("arguments", "no_such", 1),
        ("arguments", "num_train", "x"),
        ("info", "no_such", 1),
        ("info", "image_shape", 3),
        ("info", "class_names", None),
        ("info", "mean", ["x"]),
        ("info", "image_shape", [9, 9, 1]),
    ):

        def change(run, part=part, key=key, value=value):
            path = run / "data.json"
            content = json.loads(path.read_text())
            content[part][key] = value
            path.write_text(json.dumps(content))

        name = f"data.json: {part}.{key} is {value!r}"
        # Numbers that only an export needs are not looked at.
        ends = "either" if key == "mean" else "sentence"
        yield from run_case(name, change, ("mistakes",), ends=ends)


def _change_json(path, key, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def _metrics_cases():
    header = "epoch,step,split,loss,accuracy\n"
    for name, text in {
        "header only": header,
        "without header": "0,0,test,2.3,0.1\n",
        "accuracy a word": header + "0,0,test,2.3,high\n1,2,test,2.2,x\n",
        "accuracy NaN": header + "0,0,test,nan,nan\n1,2,test,nan,nan\n",
        "epoch a word": header + "first,0,test,2.3,0.1\n",
        "short row": header + "0,0\n",
        "long row": header + "0,0,test,2.3,0.1,7,8\n",
        "open quote": header + '0,0,"test,2.3,0.1\n',
        "other columns": "a,b\n1,2\n",
        "no test row": header + "1,2,train,2.3,0.1\n",
        "zeros": "\0" * 500,
    }.items():
        yield from run_case(
            f"metrics.csv {name}",
            lambda run, t=text: (run / "metrics.csv").write_text(t),
            ("feature_reuse",),
            # A run that diverged has NaN, and is no damage.
            "" if name == "accuracy NaN" else "metrics.csv",
            # Cells beyond the columns are left out.
            "either" if name == "long row" else "sentence",
        )


def _foreign_runs():
    commands = ("distance", "export_last", "pretrained")
    names = {
        "absent": shutil.rmtree,
        "an empty directory": _emptied("."),
        "a file": _file_instead("."),
        "photographs": _photographs,
    }
    for name, change in names.items():
        yield from run_case(name, change, commands, "run")
    for name, change in {
        "no checkpoints": _remove("checkpoints"),
        "checkpoints a file": _file_instead("checkpoints"),
        "no checkpoint": _emptied("checkpoints"),
        "checkpoint emptied": _emptied(_CHECKPOINT),
        "checkpoint a file": _file_instead(_CHECKPOINT),
    }.items():
        yield from run_case(name, change, commands, "run")
    yield from run_case(
        "of another architecture", _other_model, commands, "run"
    )
    yield from run_case(
        "foreign files besides", _foreign_files, commands, ends="well"
    )


def subjects_cases():
    """Yields bindings of what to analyze that name nothing."""
    for binding in (
        "Subjects.runs = 3",
        "Subjects.runs = {}",
        "Subjects.runs = {'P-T': []}",
        "Subjects.runs = {'P-T': 3}",
        "Subjects.runs = {'P-T': [3]}",
        "Subjects.runs = {3: ['nowhere']}",
        "Subjects.runs = {'P-T': ['nowhere']}",
        "Subjects.runs = 'nowhere'",
        "Subjects.runs = {'P-T': ['../trained', '../trained']}",
        "Subjects.runs = {'P-T': ['../trained'], 'P': '../other/../trained'}",
        "Subjects.epoch = 99",
        "Subjects.epoch = 'first'",
        "Subjects.epoch = 1.5",
        "Subjects.epoch = -1",
        "Subjects.data_from = 3",
        "Subjects.data_from = 'nowhere'",
        "analyze.analyses = []",
        "analyze.analyses = 3",
        "analyze.analyses = ['mistakes']",
        "analyze.analyses = @mistakes",
        "analyze.analyses = [@mistakes()]",
        "analyze.analyses = [@load]",
        "analyze.analyses = [@SGD]",
        "analyze.analyses = [@mistakes, None]",
    ):

        def make(directory, binding=binding):
            run = directory.parent / "trained"
            return _analysis("mistakes", binding)(directory, run)

        yield Case("binding of an analysis", binding, make)
    for parameter, values in _WRONG_OF_ANALYSES.items():
        for value in values:
            yield _analysis_case(parameter, value)


_WRONG_OF_ANALYSES = {
    "mistakes.split": ("'valid'", "3", "None"),
    "mistakes.num_bins": ("'x'", "0", "-1", "1.5"),
    "mistakes.images_shown": ("'x'", "0", "-1"),
    "basin.split": ("'valid'", "3"),
    "basin.tolerance": ("'x'", "0.0", "-1.0"),
    "basin.num_samples": ("'x'", "0", "-1", "1"),
    "basin.seed": ("'x'", "-1", "1.5"),
    "basin.reference": ("3", "None"),
    "basin.sensitivity": ("'x'",),
    "criticality.positions": ("3", "[]", "['x']", "[-1.0]", "[2.0]"),
    "criticality.sigmas": ("3", "[]", "['x']", "[-1.0]", "[0.0]"),
    "criticality.num_draws": ("'x'", "0", "-1"),
    "criticality.refinements": ("'x'", "-1"),
    "criticality.margin": ("'x'", "-1.0"),
    "criticality.levels": ("3", "'block'", "['x']", "[]"),
    "criticality.seed": ("'x'", "-1"),
    "interpolation.num_points": ("'x'", "0", "1", "-1"),
    "interpolation.extent": ("3", "[0.0]", "[1.0, 0.0]", "['a', 'b']"),
    "interpolation.splits": ("3", "'test'", "['valid']", "[]"),
    "plane.num_points": ("'x'", "0", "1", "-1"),
    "plane.margin": ("'x'", "-1.0"),
    "plane.split": ("'valid'",),
    "rewinding.epochs": ("3", "['x']", "[99]", "[-1]", "[]"),
    "rewinding.splits": ("'test'", "['valid']", "[]"),
    "rewinding.levels": ("'block'", "['x']", "[]"),
    "similarity.split": ("'valid'", "3"),
    "similarity.num_examples": ("'x'", "0", "-1", "1"),
    "similarity.seed": ("'x'", "-1"),
    "similarity.batch_size": ("'x'", "0", "-1", "1"),
    "similarity.kernel": ("'x'", "3"),
    "similarity.bandwidth": ("'x'", "0.0", "-1.0"),
    "similarity.memory_budget": ("'x'", "-1.0", "0.0"),
    "spectrum.num_values": ("'x'", "0", "-1", "1"),
    "pretraining.pretrained": ("3", "'nowhere'"),
    "pretraining.num_points": ("'x'", "0", "-1"),
    "dataset_surface.batch_size": ("'x'", "0", "-1"),
    "dataset_surface.memory_budget": ("'x'", "-1.0"),
    "dataset_surface.modules": ("3", "['x']", "[]"),
    "dataset_suffixes.batch_size": ("'x'", "0", "-1"),
    "dataset_suffixes.num_examples": ("'x'", "0", "-1"),
    "dataset_suffixes.memory_budget": ("'x'", "-1.0"),
}
# What reads a parameter that is not an analysis' own.
_READS = {
    "plane": "interpolation",
    "dataset_surface": "interpolation",
    "dataset_suffixes": "criticality",
}
_QUICK = [
    "basin.num_samples = 2",
    "basin.sensitivity = False",
    "criticality.positions = (0.0, 1.0)",
    "criticality.sigmas = (0.1, 1.0)",
    "criticality.num_draws = 2",
    "interpolation.num_points = 3",
    "plane.num_points = 3",
    "similarity.num_examples = 8",
    "similarity.batch_size = 4",
    "spectrum.num_values = 3",
]


def _analysis_case(parameter, value):
    binding = f"{parameter} = {value}"
    function, name = parameter.split(".")
    analysis = _READS.get(function, function)
    says = "checkpoint of epoch 99" if value == "[99]" else name
    says = value.strip("'") if value == "'nowhere'" else says

    def make(directory):
        names = ("trained", "other", "third")
        subjects = {"P-T": [str(directory.parent / n) for n in names]}
        quick = [b for b in _QUICK if not b.startswith(parameter)]
        return "analyze", [
            f"--gin_file={ROOT}/gin/{analysis}.gin",
            f"--gin_bindings=Subjects.runs = {subjects}",
            *(f"--gin_bindings={b}" for b in (*quick, binding)),
            f"--work_dir={directory / 'output'}",
        ]

    return Case("binding of an analysis", binding, make, "either", says)


# Studies.


_STUDIES = {
    "title": ("3", "None"),
    "pretrain": (
        "3",
        "''",
        "'nowhere.gin'",
        "'{target}.gin'",
        "'../gin'",
        "'mistakes.gin'",
    ),
    "scratch": (
        "3",
        "'nowhere.gin'",
        "'rit_{nobody}.gin'",
        "'rit_{.gin'",
        "'rit_{}.gin'",
        "'rit_{target.x}.gin'",
        "'rit_{target!z}.gin'",
    ),
    "fine_tune": ("3", "'nowhere.gin'", "'pt_{nobody}.gin'"),
    "targets": (
        "3",
        "{}",
        "[]",
        "['digits']",
        "'digits'",
        "{'nowhere': {}}",
        "{3: {}}",
        "{'': {}}",
        "{'../digits': {}}",
        "{'digits': 3}",
        "{'digits': {'P-T': 3}}",
        "{'digits': {'no.such': 1}}",
        "{'digits': {'load.num_train': 'x'}}",
        "{'digits': {3: 4}}",
        "{'digits': {'load.name = 1': 4}}",
    ),
    "source": ("3", "'x'", "{'no.such': 1}", "[1]"),
    "seeds": ("3", "'x'", "[]", "['a']", "[1.5]", "[-1]", "[0, 0]", "None"),
    "block_sizes": ("3", "['x']", "[0]", "[-1]", "[1.5]", "[4, 4]"),
    "shuffle_seeds": ("3", "['x']", "[1]", "[]"),
    "pretrained_epochs": ("3", "['x']", "[-1]", "[1.5]", "[0, 0]"),
    "analyses": (
        "3",
        "'mistakes.gin'",
        "[3]",
        "['nowhere.gin']",
        "['mistakes']",
        "['']",
        "[@train]",
        "['pt_digits.gin']",
        "['mistakes.gin', 'mistakes.gin']",
    ),
    "bindings": (
        "3",
        "[]",
        "{3: 4}",
        "{'': 1}",
        "{'train.no_such': 1}",
        "{'train.epochs': 'x'}",
        "{'train.model': 'x'}",
        "{'train.epochs = 1\\ntrain.seed': 1}",
    ),
    "sweep_bindings": ("3", "{'train.no_such': 1}"),
    "analysis_bindings": ("3", "{'basin.num_samples': 'x'}"),
    "no_such": ("3",),
}


def study_cases():
    """Yields studies that cannot be carried out, and say so at once."""
    for attribute, values in _STUDIES.items():
        for value in values:
            binding = f"Study.{attribute} = {value}"
            yield _study_case(binding, binding)
    for value in ("3", "{'': 3}", "{'': ('a', 'b')}", "{'digits': [1]}"):
        binding = f"Study.num_images = {value}"
        yield _study_case(binding, binding, ("--dry_run",))
    yield _study_case("of a run", "", config="pt_digits.gin", says="Study")
    yield _study_case(
        "below a file", "", ("--work_dir={directory}/stdout/output",)
    )


def _study_case(
    name, binding, flags=(), ends="sentence", config="study_digits.gin", says=""
):
    def make(directory):
        return "reproduce", [
            f"--gin_file={ROOT / 'gin' / config}",
            *([f"--gin_bindings={binding}"] if binding else []),
            f"--work_dir={directory / 'output'}",
            *(flag.format(directory=directory) for flag in flags),
        ]

    return Case("study", name, make, ends, says)


def _photographs(run):
    shutil.rmtree(run)
    run.mkdir()
    (run / "cat.png").write_bytes(encoded(domains.photograph(0, 9, 9)))


def _other_model(run):
    path = run / "model.json"
    text = path.read_text()
    changed = text.replace('"filters": 2', '"filters": 3')
    if changed == text:
        raise ValueError("model.json does not have what this case changes")
    path.write_text(changed)


def _foreign_files(run):
    (run / "notes.txt").write_text("mine")
    (run / "checkpoints/epoch-x").mkdir()
    (run / "checkpoints/epoch-2.zip").write_bytes(b"PK")
    (run / "tensorboard/desktop.ini").write_bytes(b"\xff\xfe")


def corpus():
    """Returns all cases, in a fixed order."""
    return [
        *truncated_images(),
        *odd_images(),
        *corrupt_headers(),
        *large_images(),
        *chexpert_cases(),
        *folder_cases(),
        *config_cases(),
        *value_cases(),
        *run_cases(),
        *subjects_cases(),
        *study_cases(),
    ]


# Running.


def _become(command, flags, directory):
    """Runs bin/<command> in this process, which ends with it."""
    limit = (_ADDRESS_SPACE, _ADDRESS_SPACE)
    resource.setrlimit(resource.RLIMIT_AS, limit)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(directory / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.chdir(directory)
    sys.argv = [str(ROOT / "bin" / command), *flags]
    status = 70
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child):
    """Returns (status, resources) of a child, killed if it takes too long."""
    end = time.monotonic() + _SECONDS
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), used
        if time.monotonic() > end:
            os.kill(child, 9)
        time.sleep(0.02)


def _fork(command, flags, directory):
    began = time.monotonic()
    child = os.fork()
    if not child:
        _become(command, flags, directory)
    status, used = _wait(child)
    return {
        "status": status,
        "errors": (directory / "stderr").read_text(errors="replace"),
        "output": _listing(directory / "output"),
        "memory": used.ru_maxrss * 1024,
        "seconds": round(time.monotonic() - began, 2),
    }


def _listing(directory):
    if not directory.is_dir():
        return ["."] if directory.exists() else []
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*")
    )


def run_cases_of(cases, directory):
    """Yields (case, how it ended) one by one.

    Args:
        cases: list of `Case`.
        directory: `pathlib.Path` that holds a run, `trained`.
    """
    for i, case in enumerate(cases):
        own = directory / f"case{i:03d}"
        own.mkdir()
        command, flags = case.make(own)
        yield case, _fork(command, flags, own)
        shutil.rmtree(own, ignore_errors=True)


def _train_once(directory):
    own = directory / "made"
    own.mkdir()
    flags = train(own, "load.num_train = 8", config="rit_digits.gin")
    ended = _fork(*flags, own)
    if ended["status"]:
        raise RuntimeError(ended["errors"])
    (own / "output").rename(directory / "trained")
    # To compare with, and themselves never damaged.
    for name in ("other", "third"):
        shutil.copytree(directory / "trained", directory / name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--kind", default="")
    arguments = parser.parse_args()
    # All that the commands import, so that no case waits for it.
    import matplotlib.figure  # noqa: F401
    import pandas  # noqa: F401
    import tqdm  # noqa: F401

    from keras_transfer import (  # noqa: F401
        analysis,
        app,
        export,
        study,
        training,
    )

    _train_once(arguments.directory)
    cases = [c for c in corpus() if arguments.kind in c.kind]
    cases = cases[:: arguments.every]
    for case, ended in run_cases_of(cases, arguments.directory):
        record = {
            "kind": case.kind,
            "name": case.name,
            "ends": case.ends,
            "says": case.says,
        }
        print(json.dumps(record | ended), flush=True)


if __name__ == "__main__":
    main()
