"""The figures of the analyses, drawn from their tables.

    table = keras_transfer.interpolation(models)
    figure = keras_transfer.figures.interpolation(table)

There is a function for each figure that an analysis declares, your own too. It
takes the table that the analysis returned (or the tables of a figure that needs
several, which may as well have been read from .csv files) and returns a
`matplotlib.figure.Figure`. `dir(keras_transfer.figures)` lists them.
"""

import importlib

from keras_transfer.analysis.declaration import all_analyses, tables_of
from keras_transfer.errors import UserError


def __getattr__(name):
    importlib.import_module("keras_transfer.analysis.all")
    for analysis in all_analyses():
        for figure in analysis.figures:
            if name == figure.name.replace("_{kind}", ""):
                return _function(analysis, figure)
    raise AttributeError(
        f"There is no figure {name!r}. There are: {', '.join(__dir__())}."
    )


def __dir__():
    importlib.import_module("keras_transfer.analysis.all")
    return sorted(
        figure.name.replace("_{kind}", "")
        for analysis in all_analyses()
        for figure in analysis.figures
    )


def _function(analysis, figure):
    def draw(*tables):
        if len(tables) == 1 and figure.tables != (analysis.name,):
            known = tables_of(analysis.name, tables[0])
            if all(name in known for name in figure.tables):
                tables = [known[name] for name in figure.tables]
        if len(tables) != len(figure.tables):
            raise UserError(
                f"{figure.name} is drawn from what {analysis.name} returned, "
                f"or from {', '.join(figure.tables)}. Received: {len(tables)} "
                "tables."
            )
        return figure(*tables)

    draw.__name__ = figure.name
    draw.__doc__ = (
        f"{figure.title}.\n\nArgs:\n    *tables: {', '.join(figure.tables)}, "
        f"or what {analysis.name} returned.\n\nReturns:\n    "
        "A `matplotlib.figure.Figure`.\n"
    )
    return draw
