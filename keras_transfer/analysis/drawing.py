"""What the figures of all analyses have in common."""

# Okabe and Ito's palette, safe for colour-blind readers; the same colour for
# the same model, or pair of models, everywhere.
COLOURS = {
    "P": "#009E73",
    "RI": "#999999",
    "P-T": "#0072B2",
    "RI-T": "#D55E00",
    "P-T frozen": "#56B4E9",
    "P-T/P-T": "#0072B2",
    "P-T/RI-T": "#CC79A7",
    "RI-T/P-T": "#CC79A7",
    "RI-T/RI-T": "#D55E00",
    "P to P-T": "#009E73",
    "RI to RI-T": "#999999",
}
_OTHER_COLOURS = ("#56B4E9", "#E69F00", "#F0E442", "#000000")
# Of a kind also the marker and the dash, for those who do not see its colour:
# as Matplotlib names them.
_LOOKS = {
    "P": ("^", "-"),
    "RI": ("v", "-."),
    "P-T": ("o", "-"),
    "RI-T": ("s", "--"),
    "P-T frozen": ("D", "-."),
    "P-T/P-T": ("o", "-"),
    "P-T/RI-T": ("D", "-."),
    "RI-T/P-T": ("D", "-."),
    "RI-T/RI-T": ("s", "--"),
    "P to P-T": ("^", "-"),
    "RI to RI-T": ("v", ":"),
}
_OTHER_LOOKS = (("X", "-"), ("P", "--"), ("*", ":"), ("<", "-."))


def colour(kind):
    """Returns the colour of a kind of model or pair, as "#RRGGBB"."""
    return COLOURS.get(kind) or _of_others(kind, _OTHER_COLOURS)


def marker(kind):
    """Returns the marker of a kind of model or pair, as Matplotlib names it."""
    return _look(kind)[0]


def dash(kind):
    """Returns the line style of a kind, as Matplotlib names it."""
    return _look(kind)[1]


def _look(kind):
    return _LOOKS.get(kind) or _of_others(kind, _OTHER_LOOKS)


def _of_others(kind, choices):
    """Returns the same one of several for a kind that is not known here."""
    return choices[sum(kind.encode()) % len(choices)]


def new_figure(width=6.4, height=4.0, rows=1, columns=1, **kwargs):
    """Returns (figure, axes) of Matplotlib, drawn without a display.

    Args:
        width: float, inches.
        height: float, inches.
        rows: int, rows of axes.
        columns: int, columns of axes.
        **kwargs: passed on to `Figure.subplots`.
    """
    # Not pyplot: no global state, no window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    return figure, figure.subplots(rows, columns, **kwargs)


def plot_by(axes, table, x, y, by):
    """Draws, for each kind, the mean over models and their whole range.

    Args:
        axes: of Matplotlib.
        table: tidy `pandas.DataFrame`.
        x: str, its column of positions, numbers or names in order.
        y: str, its column of values.
        by: str, its column of kinds of model or pair.
    """
    for kind, rows in table.groupby(by, sort=False):
        values = rows.groupby(x, sort=False)[y].agg(["mean", "min", "max"])
        axes.plot(
            values["mean"],
            label=kind,
            color=colour(kind),
            linestyle=dash(kind),
            marker=marker(kind) if len(values) <= 30 else None,
            markersize=4,
        )
        axes.fill_between(
            values.index,
            values["min"],
            values["max"],
            color=colour(kind),
            alpha=0.2,
            linewidth=0,
        )
    if isinstance(table[x].iloc[0], str) and table[x].nunique() > 8:
        axes.tick_params("x", rotation=90)
    axes.legend(fontsize="small")
