"""Loss on the plane through three solutions."""

import numpy as np
import pandas

from keras_transfer.analysis.declaration import Figure, declare_analysis
from keras_transfer.analysis.drawing import new_figure
from keras_transfer.config import schema
from keras_transfer.landscape.weight_space import Points

# Lines of the grid on which a figure is drawn, along each axis.
_FINE = 41
# What a loss of 0 is drawn as, on a logarithmic scale.
_LEAST_LOSS = 1e-6


def plane_coordinates(gram):
    """Lays three weight vectors out in their plane.

    The first is the origin, the second lies on the positive x axis, the third
    has y > 0; distances are L2 distances in parameter space (Garipov et al.
    2018, appendix).

    Args:
        gram: float [3, 3], see `WeightSpace.gram`.

    Returns:
        float64 [3, 2], (x, y) of each; NaN if the three lie on one line.
    """
    squares = np.diag(gram)[:, None] - 2 * gram + np.diag(gram)
    across = np.sqrt(squares[0, 1])
    x = (squares[0, 1] + squares[0, 2] - squares[1, 2]) / (2 * across)
    y = np.sqrt(squares[0, 2] - x**2)
    return np.array([[0, 0], [across, 0], [x, y]])


def plane_coefficients(positions, coordinates):
    """Returns the combinations of three vectors that lie at given positions.

    Args:
        positions: float [n, 2], (x, y).
        coordinates: float [3, 2], of the vectors.

    Returns:
        float64 [n, 3], rows that sum to 1.
    """
    sides = coordinates[1:] - coordinates[0]
    weights = (positions - coordinates[0]) @ np.linalg.inv(sides)
    return np.column_stack([1 - weights.sum(axis=1), weights])


@declare_analysis(
    figures=[
        Figure(
            "plane_{kind}",
            lambda table: _figure(table),
            "The plane through three models",
            "Loss and accuracy on the plane through three models, each marked "
            "with its own: one valley, or three with ridges between them.",
        )
    ],
    cost=lambda options, models: 2 * options["num_points"] ** 2,
)
def plane(
    models,
    split: schema.Split = "test",
    num_points: schema.Several = 21,
    margin: schema.NotNegative = 0.5,
):
    """Measures the loss on the plane through three solutions of each kind.

    The first three models of each kind that has three are taken.

    Args:
        models: `Models`.
        split: "test" or "train".
        num_points: int, grid points along each axis.
        margin: float, how far the grid reaches beyond the solutions, as a
            fraction of their extent.

    Returns:
        `pandas.DataFrame`, one row per kind and grid point: kind, split, x, y
        (L2 distance), loss (nats), accuracy and for multi-label data auc and
        auc_<finding>; then the three solutions themselves, whose names are in
        the column solution, empty for grid points. Empty if no kind has three.
    """
    members = models.trained()
    tables = []
    for kind in dict.fromkeys(m.kind for m in members):
        own = [i for i, m in enumerate(members) if m.kind == kind][:3]
        if len(own) < 3:
            continue
        surface = models.surface(split)
        coordinates = plane_coordinates(surface.space.gram()[np.ix_(own, own)])
        positions = np.concatenate(
            [_grid(coordinates, num_points, margin), coordinates]
        )
        coefficients = np.zeros((len(positions), len(members)))
        coefficients[:, own] = plane_coefficients(positions, coordinates)
        coefficients[-3:, own] = np.eye(3)
        columns = surface.evaluate(
            Points(coefficients), models.evaluations, f"plane of {kind}"
        )
        where = {
            "kind": kind,
            "split": split,
            "x": positions[:, 0],
            "y": positions[:, 1],
            "solution": [""] * (len(positions) - 3)
            + [members[i].name for i in own],
        }
        tables.append(pandas.DataFrame(where | columns))
    if not tables:
        print("plane: no kind has three models, so there is none to draw.")
        return pandas.DataFrame({"kind": [], "solution": []})
    return pandas.concat(tables, ignore_index=True)


def _grid(coordinates, num_points, margin):
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    beyond = margin * (high - low)
    axes = np.linspace(low - beyond, high + beyond, num_points).T
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)


def solutions_of(table):
    """Returns the rows of the solutions themselves, see `plane`."""
    # Of a table that was read from a file, what is empty is missing.
    return table[table.solution.fillna("") != ""]


def through_solutions(table, values):
    """Returns values on a grid that passes through the solutions.

    They need not lie on the grid on which it was measured. Between all that was
    measured it is interpolated linearly, on triangles, so that it is at each
    solution what it is of that model.

    Args:
        table: `pandas.DataFrame`, the n rows of one kind, see `plane`.
        values: float [n].

    Returns:
        x, y: float [k], [m], ascending; z: float [m, k].
    """
    from scipy import interpolate

    between = interpolate.LinearNDInterpolator(table[["x", "y"]], values)
    solutions = solutions_of(table)
    x, y = (
        np.union1d(
            np.linspace(table[axis].min(), table[axis].max(), _FINE),
            solutions[axis],
        )
        for axis in ("x", "y")
    )
    return x, y, between(*np.meshgrid(x, y))


def near_bottom(losses):
    """Returns losses without their highest, which would hide all others.

    Args:
        losses: float [n].
    """
    finite = losses[np.isfinite(losses)]
    return np.clip(losses, _LEAST_LOSS, np.quantile(finite, 0.95))


def _figure(table):
    if not np.isfinite(table[["x", "y"]]).all(axis=None):
        # The three lie on one line.
        return None
    metric = "auc" if "auc" in table else "accuracy"
    split = table.split.iloc[0]
    figure, axes = new_figure(9.6, 4.0, columns=2)
    solutions = solutions_of(table)
    for panel, measure in zip(axes, ("loss", metric), strict=True):
        values, levels, norm = table[measure], 12, None
        if measure == "loss":
            values, norm = near_bottom(values), "log"
            # Close together at the bottom, where the solutions are.
            levels = np.geomspace(values.min(), values.max() * 1.001, 13)
        x, y, z = through_solutions(table, values)
        filled = panel.contourf(
            x, y, z, levels=levels, norm=norm, cmap="cividis"
        )
        panel.contour(x, y, z, levels=levels, colors="white", linewidths=0.4)
        panel.plot(solutions.x, solutions.y, "o", color="white", mec="black")
        for _, row in solutions.iterrows():
            panel.annotate(
                f"{row.solution}: {row[measure]:.3g}",
                (row.x, row.y),
                xytext=(5, 5),
                textcoords="offset points",
                fontsize="small",
                bbox={"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 1},
            )
        unit = "loss (nats)" if measure == "loss" else measure
        bar = figure.colorbar(filled, ax=panel, label=f"{split} {unit}")
        bar.ax.yaxis.set_major_formatter("{x:.3g}")
        bar.ax.minorticks_off()
        panel.set(xlabel="L2 distance", ylabel="L2 distance", aspect="equal")
    figure.suptitle(f"Plane through three {table.kind.iloc[0]}s")
    return figure
