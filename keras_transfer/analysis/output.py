"""Where an analysis leaves its tables and figures."""

import functools
import io
import pathlib

import numpy as np
import tensorflow as tf

from keras_transfer.landscape.evaluations import Evaluations
from keras_transfer.manifest import Manifest, csv_text
from keras_transfer.runs import Summaries


class Output:
    """A directory of tables, figures and TensorBoard events.

    Args:
        work_dir: the directory, made if need be.

    Raises:
        UserError: here and from the methods that write, if that is impossible,
            as on a full disk.
    """

    def __init__(self, work_dir):
        self.path = pathlib.Path(work_dir)
        self._manifest = Manifest(self.path, "analysis")
        if self._manifest.kind is None and self._is_of_former_version():
            self._manifest.adopt(p.name for p in self.path.glob("[!.]*.*"))
        self._manifest.claim(("config.gin",))
        self._summaries = Summaries(self.path / "tensorboard")

    def _is_of_former_version(self):
        """Whether an analysis has left something here, and no manifest."""
        names = ("evaluated.jsonl", "tensorboard")
        of_a_run = ("model.json", "checkpoints")
        return any((self.path / name).exists() for name in names) and not any(
            (self.path / name).exists() for name in of_a_run
        )

    def text(self, name, text):
        """Writes a text file of that name."""
        self._manifest.write_text(name, text)

    @functools.cached_property
    def evaluations(self):
        """`Evaluations` kept here, so that a stopped analysis continues."""
        return Evaluations(self.path / "evaluated.jsonl")

    def table(self, name, table):
        """Writes a tidy table, one observation a row, as <name>.csv.

        Args:
            name: str, without suffix.
            table: `pandas.DataFrame`; its index is not written.
        """
        self._manifest.write_text(f"{name}.csv", csv_text(table))
        with self._summaries.at(step=0):
            text = _preformatted(table.head(200).to_string())
            # TensorBoard keeps one plugin a tag, and the figure has this name.
            tf.summary.text(f"tables/{name}", text)

    def figure(self, name, figure):
        """Writes a Matplotlib figure as <name>.png and <name>.svg.

        Args:
            name: str, without suffix.
            figure: `matplotlib.figure.Figure`.
        """
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.image import imsave

        # Laid out and drawn but once each; savefig would for every format.
        pixels = _pixels(figure)
        figure.set_layout_engine("none")
        png, svg = io.BytesIO(), io.BytesIO()
        imsave(png, pixels, format="png", dpi=figure.dpi)
        self._manifest.write_bytes(f"{name}.png", png.getvalue())
        FigureCanvasSVG(figure).print_svg(svg)
        self._manifest.write_bytes(f"{name}.svg", svg.getvalue())
        with self._summaries.at(step=0):
            tf.summary.image(f"figures/{name}", pixels[None])


def _pixels(figure):
    """Lays a figure out and returns its pixels, uint8 [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _preformatted(text):
    return "\n".join("    " + line for line in text.splitlines())
