"""Figures that one can touch: drawn by Plotly from the tidy tables.

Colours of lines and letters are left to the page, which knows whether it is
shown light or dark.
"""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from keras_transfer.analysis.drawing import colour, dash, marker, new_figure
from keras_transfer.analysis.plane import (
    near_bottom,
    solutions_of,
    through_solutions,
)
from keras_transfer.study.report.numbers import amount, number, scaled

_MARKERS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "D": "diamond",
    "X": "x",
    "P": "cross",
    "*": "star",
    "<": "triangle-left",
}
_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
_SHADE = "#56b4e9"
_SCALE = "Cividis"
# Of the diagram of modules: {measure: (title, on a logarithmic scale)}.
_MEASURES = {
    "criticality": ("criticality", True),
    "distance": ("distance", False),
    "cka": ("CKA", False),
}
_KINDS = ("P-T", "RI-T")


def to_json(figure):
    """Returns a figure of Plotly as JSON that may stand in a page."""
    return figure.to_json().replace("<", "\\u003c")


def statistic(row, values, ends):
    """Draws a statistic: replications, median, interval and threshold.

    Args:
        row: named tuple, of `Report.claims`.
        values: `pandas.DataFrame`, its rows of `Report.values`.
        ends: (least, greatest) value that is shown.
    """
    figure = go.Figure()
    shown = [scaled(end, row.unit) for end in ends]

    def place(value):
        # What is infinite lies at the edge.
        return np.clip(scaled(value, row.unit), *shown)

    line = place(row.threshold)
    holds = (line, shown[1]) if row.direction == ">" else (shown[0], line)
    figure.add_shape(
        type="rect",
        x0=holds[0],
        x1=holds[1],
        y0=-1,
        y1=1,
        fillcolor=_SHADE,
        opacity=0.3,
        line_width=0,
        layer="below",
    )
    figure.add_scatter(
        x=[line, line],
        y=[-1, 1],
        mode="lines",
        line_dash="dash",
        line_width=1.5,
        hovertemplate=f"threshold {amount(row.threshold, row.unit)}"
        "<extra></extra>",
    )
    if np.isfinite([row.low]).all() or np.isfinite([row.high]).all():
        figure.add_scatter(
            x=[place(row.low), place(row.high)],
            y=[0, 0],
            mode="lines+markers",
            marker={"symbol": "line-ns-open", "size": 14},
            line_width=2,
            text=[amount(end, row.unit) for end in (row.low, row.high)],
            hovertemplate="95% interval: %{text}<extra></extra>",
        )
    known = values[values.value.notna()]
    figure.add_scatter(
        x=place(known.value),
        y=_spread(len(known)),
        mode="markers",
        marker={"symbol": "circle-open", "size": 9, "line": {"width": 1.5}},
        text=[
            f"replication {one.replication}: {amount(one.value, row.unit)}"
            for one in known.itertuples()
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    figure.add_scatter(
        x=[place(row.value)],
        y=[0],
        mode="markers",
        marker={"symbol": "diamond", "size": 12},
        hovertemplate=f"median {amount(row.value, row.unit)}<extra></extra>",
    )
    figure.update_xaxes(
        range=shown,
        zeroline=False,
        title={"text": row.unit, "standoff": 4},
    )
    figure.update_yaxes(range=[-1, 1], visible=False, fixedrange=True)
    margin = {"l": 12, "r": 12, "t": 6, "b": 40 if row.unit else 22}
    return _finish(figure, 76 + margin["b"], margin=margin)


def _spread(count):
    """Returns heights at which equal values do not hide each other."""
    return 0.12 * (np.arange(count) - (count - 1) / 2) if count < 12 else 0.0


def interpolation(table):
    """Draws metric and loss between two solutions, of all replications.

    Args:
        table: `pandas.DataFrame`, see the analysis interpolation, of test
            images, with the column replication.
    """
    if "epochs" in table:
        table = table[table.epochs == table.epochs.iloc[0]]
    if "test" in set(table.split):
        table = table[table.split == "test"]
    metric = "auc" if "auc" in table else "accuracy"
    figure = make_subplots(
        rows=2, shared_xaxes=True, vertical_spacing=0.06, row_heights=[3, 2]
    )
    for pair, rows in table.groupby("pair", sort=False):
        lines = [
            line.sort_values("alpha")
            for _, line in rows.groupby(["replication", "first", "second"])
        ]
        between = _between(lines)
        for panel, measure in enumerate((metric, "loss"), 1):
            figure.add_scatter(
                x=_broken(line.alpha for line in lines),
                y=_broken(line[measure] for line in lines),
                text=between,
                row=panel,
                col=1,
                mode="lines+markers",
                name=pair,
                legendgroup=pair,
                showlegend=panel == 1,
                opacity=0.75,
                hovertemplate=f"%{{text}}<br>α = %{{x:.2f}}: {measure} "
                "%{y:.3g}<extra></extra>",
                **_look(pair),
            )
    figure.update_yaxes(title_text=f"test {metric}", row=1, col=1)
    figure.update_yaxes(title_text="test loss (nats)", type="log", row=2, col=1)
    figure.update_xaxes(title_text="α", row=2, col=1)
    return _finish(figure, 460, legend=_ABOVE)


def _between(lines):
    """Returns between which models each point of broken lines lies."""
    said = []
    for line in lines:
        one = line.iloc[0]
        name = f"{one['first']} to {one['second']}"
        said += [f"{name}, replication {one.replication}"] * len(line) + [""]
    return said


def _broken(lines):
    """Returns lines one after the other, with gaps between them."""
    gap = [np.nan]
    return np.concatenate([part for line in lines for part in (line, gap)])


def plane(table):
    """Draws the loss on the plane through three models, twice.

    Args:
        table: `pandas.DataFrame`, the rows of one kind, see the analysis plane.

    Returns:
        two figures: contours, and the same in three dimensions.
    """
    if not np.isfinite(table[["x", "y"]]).all(axis=None):
        return []
    metric = "auc" if "auc" in table else "accuracy"
    loss = near_bottom(table.loss)
    x, y, z = through_solutions(table, loss)
    _, _, shown = through_solutions(table, table[metric])
    solutions = solutions_of(table)
    ends = np.log10(loss[solutions.index])
    # A little above the surface, which would hide half of each.
    ends += 0.04 * np.ptp(np.log10(loss))
    hover = (
        f"loss %{{customdata[0]:.3g}} nats<br>{metric} "
        "%{customdata[1]:.3g}<extra></extra>"
    )
    surface = {
        "x": x.round(3),
        "y": y.round(3),
        "z": np.log10(z).round(4),
        "customdata": np.stack([z, shown], axis=-1).round(4),
        "colorscale": _SCALE,
        "hovertemplate": hover,
    }
    marks = {
        "x": solutions.x,
        "y": solutions.y,
        "text": solutions.solution,
        "customdata": solutions[["loss", metric]],
        "mode": "markers+text",
        "textposition": "top center",
        "hovertemplate": "%{text}: " + hover,
    }
    flat = go.Figure(
        [go.Contour(**surface, ncontours=16, colorbar=_log_bar(z))]
    )
    flat.add_scatter(
        **marks,
        marker={
            "size": 11,
            "color": "white",
            "line": {"color": "black", "width": 2},
        },
        textfont_color="white",
    )
    flat.update_xaxes(title_text="L2 distance", constrain="domain")
    flat.update_yaxes(
        title_text="L2 distance", scaleanchor="x", constrain="domain"
    )
    deep = go.Figure([go.Surface(**surface, showscale=False)])
    deep.add_scatter3d(
        **marks,
        z=ends,
        marker={
            "size": 5,
            "color": "white",
            "line": {"color": "black", "width": 2},
        },
    )
    axis = {"title": "L2 distance", "showbackground": False}
    upright = axis | {"title": "log₁₀ loss"}
    deep.update_layout(
        scene={"xaxis": axis, "yaxis": axis, "zaxis": upright},
        scene_camera_eye={"x": 1.6, "y": -1.6, "z": 1.2},
    )
    options = {"showlegend": False}
    return [_finish(flat, 420, **options), _finish(deep, 420, **options)]


def _log_bar(z):
    """Returns a colour bar of nats for logarithms of a loss."""
    low, high = np.log10([np.nanmin(z), np.nanmax(z)])
    ticks = np.linspace(low, high, 5)
    return {
        "title": {"text": "loss (nats)", "side": "right"},
        "tickvals": ticks,
        "ticktext": [number(10**tick) for tick in ticks],
        "thickness": 14,
    }


def where(modules):
    """Draws the network, its modules coloured by what is known of them.

    Args:
        modules: what `by_module` returns.

    Returns:
        a figure of Plotly, None if nothing is known.
    """
    columns, names = _columns(modules), _names(modules)
    if not columns:
        return None
    figure = go.Figure()
    for k, (measure, kind, values) in enumerate(columns):
        shades = _colour_value(values, measure)
        figure.add_heatmap(
            x=[k],
            y=names,
            z=shades[:, None],
            zmin=0,
            zmax=1,
            customdata=[[said] for said in _said(modules, kind, names)],
            hovertemplate="%{customdata}<extra></extra>",
            colorscale=_SCALE,
            showscale=False,
            xgap=4,
            ygap=8,
        )
        figure.add_scatter(
            x=[k] * len(names),
            y=names,
            text=[_short(value) for value in values],
            mode="text",
            textfont={"color": [_ink_on(shade) for shade in shades]},
            hoverinfo="skip",
        )
        # What comes before is joined to what comes after.
        figure.add_shape(
            type="line",
            x0=k,
            x1=k,
            y0=names[0],
            y1=names[-1],
            layer="below",
            line={"width": 2, "color": "#808080"},
        )
    for title, first, last in _groups(columns):
        figure.add_annotation(
            x=(first + last) / 2,
            y=1,
            yref="paper",
            yshift=36,
            text=title,
            showarrow=False,
        )
    figure.update_xaxes(
        tickvals=list(range(len(columns))),
        ticktext=[kind for _, kind, _ in columns],
        side="top",
        showgrid=False,
        fixedrange=True,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, fixedrange=True)
    margin = {"l": 10, "r": 10, "t": 56, "b": 10}
    return _finish(figure, 66 + 34 * len(names), margin=margin)


def where_still(modules):
    """Draws the same by Matplotlib, for paper."""
    columns, names = _columns(modules), _names(modules)
    if not columns:
        return None
    height = 1.2 + 0.36 * len(names)
    figure, axes = new_figure(7.2, height, columns=1)
    colours = [_colour_value(values, m) for m, _, values in columns]
    axes.imshow(
        np.stack(colours, axis=1),
        cmap="cividis",
        vmin=0,
        vmax=1,
        aspect="auto",
    )
    for k, (_, _, values) in enumerate(columns):
        for row, (value, shade) in enumerate(
            zip(values, colours[k], strict=True)
        ):
            axes.text(
                k,
                row,
                _short(value),
                ha="center",
                va="center",
                color=_ink_on(shade),
            )
    # Gaps, as between the modules of a drawing of a network.
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=4)
    axes.tick_params(which="both", length=0, labeltop=True, labelbottom=False)
    axes.set_xticks(range(len(columns)), [kind for _, kind, _ in columns])
    axes.set_yticks(range(len(names)), names)
    for title, first, last in _groups(columns):
        axes.text(
            (first + last) / 2,
            1.0 + 0.34 / height,
            title,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
        )
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _names(modules):
    if not len(modules):
        return []
    return list(dict.fromkeys(modules.sort_values("depth").module))


def _columns(modules):
    """Returns [(measure, kind, float [modules])] of what is known."""
    names = _names(modules)
    found = [
        (
            measure,
            kind,
            modules[modules.kind == kind]
            .set_index("module")[measure]
            .reindex(names)
            .to_numpy(np.float64),
        )
        for measure in _MEASURES
        for kind in _KINDS
        if names
    ]
    return [column for column in found if np.isfinite(column[2]).any()]


def _groups(columns):
    """Yields (title, first, last column) of each measure."""
    for measure, (title, _) in _MEASURES.items():
        own = [k for k, column in enumerate(columns) if column[0] == measure]
        if own:
            yield title, own[0], own[-1]


def _colour_value(values, measure):
    """Returns values from 0, the least, to 1, the greatest of a column."""
    finite = np.where(np.isfinite(values), values, np.nan)
    largest = np.nanmax(finite) if np.isfinite(finite).any() else 0.0
    finite = np.where(np.isposinf(values), largest, finite)
    if _MEASURES[measure][1]:
        finite = np.log1p(finite)
    low, high = np.nanmin(finite), np.nanmax(finite)
    return (finite - low) / ((high - low) or 1.0)


def _short(value):
    """Returns a number of few letters."""
    if not np.isfinite(value):
        return number(value)
    if value >= 1000:
        return f"{value / 1000:.2g}k"
    return f"{value:.2g}" if value < 0.1 else f"{value:.3g}"


def _ink_on(shade):
    """Returns the colour of letters on a colour of the scale, from 0 to 1."""
    return "black" if shade > 0.48 else "white"


def _said(modules, kind, names):
    """Returns what hovering tells of each module of a kind."""
    own = modules[modules.kind == kind].set_index("module").reindex(names)
    return [
        f"{name}, {kind}<br>criticality {number(row.criticality)}<br>"
        f"moved by {number(row.distance)} a weight<br>CKA {number(row.cka)}"
        f"<br>set back to the start: {amount(row.cost, 'points')} lost"
        for name, row in zip(names, own.itertuples(), strict=True)
    ]


_ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def _look(kind):
    return {
        "line": {
            "color": colour(kind),
            "dash": _DASHES[dash(kind)],
            "width": 1.5,
        },
        "marker": {"symbol": _MARKERS[marker(kind)], "size": 4},
    }


def _finish(figure, height, **options):
    options.setdefault("margin", {"l": 10, "r": 10, "t": 10, "b": 10})
    figure.update_layout(
        template={},
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=options.pop("showlegend", "legend" in options),
        hovermode="closest",
        **options,
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure
