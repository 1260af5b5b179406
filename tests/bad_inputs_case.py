"""What cases of bad inputs consist of, and what several kinds share."""

import dataclasses
import io
import pathlib
import shutil
from collections.abc import Callable

import domains
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
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


def encoded(array, kind="PNG", mode=None, **options):
    """Returns an image file's bytes, by Pillow."""
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def write_images(directory, bad, name):
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


def remove(path):
    return lambda root: shutil.rmtree(root / path)


def file_instead(path):
    def change(root):
        shutil.rmtree(root / path)
        (root / path).write_text("a file")

    return change


def emptied(path):
    def change(root):
        shutil.rmtree(root / path)
        (root / path).mkdir()

    return change
