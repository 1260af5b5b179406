"""Draws the documentation's figures from what the tutorial leaves.

    python docs/make_figures.py DIRECTORY

DIRECTORY is where the commands of docs/tutorial.md, and those at the head of
docs/gallery.md, were run. Figures have few colours and few pixels, to be small.
"""

import io
import pathlib
import sys

import numpy as np
import pandas
from PIL import Image

from keras_transfer import figures
from keras_transfer.analysis.drawing import colour, dash, marker, new_figure

_FIGURES = pathlib.Path(__file__).parent / "figures"
_DOTS_PER_INCH = 80
_COLOURS = 64
# Of each: the directory of its tables, and their names.
_GALLERY = {
    "interpolation": ("look", "interpolation"),
    "averaging": ("look", "averaging"),
    "mistakes_agreement": ("look", "mistakes_agreement"),
    "distance": ("look", "distance"),
    "similarity": ("look", "similarity"),
    "criticality": ("where", "criticality"),
    "rewinding_final": ("gallery", "rewinding"),
    "basin": ("gallery", "basin", "basin_conditions"),
    "spectrum": ("gallery", "spectrum"),
    "plane": ("plane", "plane"),
}


def write(name, figure):
    """Writes a Matplotlib figure as a small PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS_PER_INCH)
    image = Image.open(content).convert("RGB").quantize(_COLOURS)
    image.save(_FIGURES / f"{name}.png", optimize=True)


def overview(root):
    """What P gave, whether there is one basin, and where it is, in a row."""
    figure, (learning, line, modules) = new_figure(10.5, 3.1, columns=3)
    _draw_learning(learning, root)
    _draw_line(line, root)
    _draw_modules(modules, root)
    return figure


def _look(kind):
    return {
        "color": colour(kind),
        "linestyle": dash(kind),
        "label": kind,
    }


def _draw_learning(axes, root):
    for kind, names in _runs():
        curves = []
        for name in names:
            table = pandas.read_csv(root / "runs" / name / "metrics.csv")
            rows = table[(table.split == "test") & (table.epoch > 0)]
            curves.append(rows.set_index("epoch").accuracy)
        axes.plot(sum(curves) / len(curves), **_look(kind))
    axes.set(title="What did P give?", xlabel="epoch", ylabel="test accuracy")
    axes.legend(fontsize="small", loc="lower right")


def _runs():
    return ("P-T", ("pt0", "pt1")), ("RI-T", ("rit0", "rit1"))


def _draw_line(axes, root):
    table = pandas.read_csv(root / "analyses" / "look" / "interpolation.csv")
    for pair, rows in table.groupby("pair", sort=False):
        axes.plot(rows.groupby("alpha").accuracy.mean(), **_look(pair))
    axes.set(
        title="One basin? May I average?",
        xlabel="from one model (0) to another (1)",
        ylim=(0, 1),
    )
    axes.legend(fontsize="small")


def _draw_modules(axes, root):
    table = pandas.read_csv(root / "analyses" / "where" / "criticality.csv")
    rows = table[
        (table.path == "direct")
        & (table.end_point == "final")
        & (table.module != "total")
    ]
    for kind, of_kind in rows.groupby("kind"):
        values = of_kind.groupby("module", sort=False).mu.median()
        style = _look(kind) | {"linestyle": "none"}
        axes.plot(np.maximum(values, 1), marker=marker(kind), **style)
    axes.set(title="Where is it?", ylabel="criticality", yscale="log")
    axes.legend(fontsize="small")


def main(root):
    """Draws them all."""
    root = pathlib.Path(root)
    _FIGURES.mkdir(exist_ok=True)
    write("overview", overview(root))
    for name, (place, *tables) in _GALLERY.items():
        read = [
            pandas.read_csv(root / "analyses" / place / f"{table}.csv")
            for table in tables
        ]
        write(name, getattr(figures, name)(*read))


if __name__ == "__main__":
    main(*sys.argv[1:])
