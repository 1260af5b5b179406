"""What a page carries within itself: figures and tables, as data: addresses."""

import base64
import dataclasses
import io
import pathlib
import struct

from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest

# Browsers do not save data: addresses of more than 2 MiB, and pages are sent.
_LARGEST_TABLE = 400_000
# Of a page, without its script: what comes later is named, not embedded.
_LARGEST_PAGE = 5_500_000
# Pixels; wider figures would be unreadable on a phone if they were made to fit.
_WIDEST_ON_PHONE = 640
# Pixels of a figure (120 an inch, see `new_figure`) to one of CSS (96 an inch).
_DENSITY = 120 / 96
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Image:
    """A figure where it is referred to.

    Attributes:
        name: str, its path in the study, or what it is if it was drawn here.
        alt: str, what it shows, for those who do not see it.
        caption: str, sentences.
        number: int, 0 if it is not available.
        source: str, data: address; "" if it is embedded further up, or the page
            is large enough already.
        width: int, CSS pixels.
        height: int, CSS pixels.
        plots: tuple of str, the same as figures of Plotly, in JSON.
        embedded_above: bool, whether it is further up in the page.
    """

    name: str
    alt: str
    caption: str = ""
    number: int = 0
    source: str = ""
    width: int = 0
    height: int = 0
    plots: tuple = ()
    embedded_above: bool = False

    @property
    def wide(self):
        """Whether it would be unreadable if made to fit a phone."""
        return self.width > _WIDEST_ON_PHONE


@dataclasses.dataclass(frozen=True)
class Data:
    """A table where it is referred to.

    Attributes:
        name: str, its path in the study.
        source: str, data: address; "" if it is too large, not available, or
            embedded further up.
        size: int, bytes; 0 if it is not available.
        number: int, tells it from others; 0 if it is not embedded.
    """

    name: str
    source: str = ""
    size: int = 0
    number: int = 0

    @property
    def file_name(self):
        """What it is saved as: tables of two targets share a last name."""
        return "_".join(pathlib.PurePosixPath(self.name).parts)


class Files:
    """Reads a study's figures and tables; each is embedded only once.

    Args:
        directory: path of the study.
    """

    def __init__(self, directory):
        self._directory = pathlib.Path(directory)
        self._images, self._tables = {}, {}
        self._number = self._bytes = 0

    def image(self, name, alt, caption="", plots=()):
        """Returns the `Image` of that name, None if there is no name.

        Args:
            name: str, its path in the study without suffix.
            alt: str.
            caption: str.
            plots: the same as figures of Plotly, in JSON.
        """
        if not name:
            return None
        if name in self._images:
            known = self._images[name]
            is_there = bool(known.source)
            return dataclasses.replace(
                known, source="", alt=alt, plots=(), embedded_above=is_there
            )
        content = _read(self._directory / f"{name}.png")
        if not content.startswith(_PNG_SIGNATURE) or len(content) < 24:
            return Image(name, alt, caption)
        found = self._numbered(Image(name, alt, caption), content, _DENSITY)
        self._images[name] = self._with_plots(found, plots)
        return self._images[name]

    def drawn(self, figure, name, alt, caption="", plots=()):
        """Returns the `Image` of one of Matplotlib's figures."""
        content = io.BytesIO()
        # Sharp on a phone, whose pixels are smaller than those of CSS.
        figure.savefig(content, format="png", dpi=2 * figure.dpi)
        image = Image(name, alt, caption)
        image = self._numbered(image, content.getvalue(), 2 * _DENSITY)
        return self._with_plots(image, plots)

    def table(self, name):
        """Returns the `Data` of that name, None if there is no name."""
        if not name:
            return None
        name = f"{name.removesuffix('.csv')}.csv"
        if name in self._tables:
            return dataclasses.replace(self._tables[name], source="")
        table = self.text(name, _read(self._directory / name))
        if table.source:
            number = len(self._tables) + 1
            table = dataclasses.replace(table, number=number)
            self._tables[name] = table
        return table

    def text(self, name, content):
        """Returns the `Data` of a text, bytes."""
        source = ""
        if content and len(content) <= _LARGEST_TABLE:
            source = self._embed("text/csv;charset=utf-8", content)
        return Data(name, source, len(content))

    def _numbered(self, image, content, density):
        self._number += 1
        # The header of a PNG begins with both, big-endian.
        size = (
            round(s / density) for s in struct.unpack(">II", content[16:24])
        )
        width, height = size
        return dataclasses.replace(
            image,
            number=self._number,
            source=self._embed("image/png", _smaller(content)),
            width=width,
            height=height,
        )

    def _with_plots(self, image, plots):
        plots = tuple(plots)
        self._bytes += sum(map(len, plots))
        return dataclasses.replace(image, plots=plots)

    def _embed(self, kind, content):
        source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        if self._bytes + len(source) > _LARGEST_PAGE:
            return ""
        self._bytes += len(source)
        return source


def _smaller(content):
    """Returns a PNG in 256 colours, if that is smaller."""
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            few = image.convert("RGB").quantize(256)
    except OSError:
        return content
    small = io.BytesIO()
    few.save(small, format="png")
    return min(content, small.getvalue(), key=len)


def _read(path):
    """Returns a file's bytes, none if there is no such file."""
    try:
        return Manifest(path.parent).read_bytes(path.name)
    except UserError:
        return b""
