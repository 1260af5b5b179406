"""What one can touch shows the numbers of the tables."""

import json

import numpy as np
import pandas
import plotly.graph_objects as go
import pytest

from keras_transfer.study.report import plots


def one_statistic(**others):
    row = {
        "statistic": "gain",
        "unit": "points",
        "value": 0.02,
        "low": 0.01,
        "high": 0.04,
        "direction": ">",
        "threshold": 0.015,
    } | others
    return next(pandas.DataFrame([row]).itertuples())


def values(*numbers):
    return pandas.DataFrame(
        {"replication": range(len(numbers)), "value": numbers}
    )


def test_a_statistic_shows_every_replication():
    given = values(0.01, 0.02, 0.05, np.nan)
    figure = plots.statistic(one_statistic(), given, (0.0, 0.06))
    line, bar, dots, median = figure.data
    np.testing.assert_allclose(line.x, [1.5, 1.5])
    np.testing.assert_allclose(bar.x, [1, 4])
    np.testing.assert_allclose(dots.x, [1, 2, 5])
    assert dots.text[2] == "replication 2: 5 points"
    # None hides another of the same value.
    assert len(set(dots.y)) == 3
    assert list(median.x) == [2]
    (shade,) = figure.layout.shapes
    assert (shade.x0, shade.x1) == (1.5, 6)
    assert figure.layout.xaxis.title.text == "points"


def test_what_is_infinite_lies_at_the_edge():
    row = one_statistic(value=np.inf, high=np.inf, direction="<", unit="")
    figure = plots.statistic(row, values(np.inf, 0.02), (0.0, 0.06))
    _, bar, dots, median = figure.data
    assert list(bar.x) == [0.01, 0.06] and list(dots.x) == [0.06, 0.02]
    assert list(median.x) == [0.06] and "∞" in median.hovertemplate
    assert figure.layout.shapes[0].x0 == 0.0
    without = one_statistic(low=np.nan, high=np.nan)
    assert len(plots.statistic(without, values(0.02), (0, 0.06)).data) == 3


def test_lines_between_models():
    table = pandas.DataFrame(
        {
            "pair": pair,
            "first": "a",
            "second": "b",
            "split": "test",
            "replication": r,
            "alpha": alpha,
            "loss": 1 + r + alpha,
            "accuracy": 0.5 - 0.1 * r,
        }
        for pair in ("P-T/P-T", "RI-T/RI-T")
        for r in range(2)
        for alpha in (0.0, 0.5, 1.0)
    )
    table = table.sample(frac=1, random_state=0)
    figure = plots.interpolation(table)
    by_name = {}
    for trace in figure.data:
        by_name.setdefault(trace.name, []).append(trace)
    for accuracy, loss in by_name.values():
        # Two lines with a gap between them.
        np.testing.assert_array_equal(accuracy.x, [0, 0.5, 1, np.nan] * 2)
        np.testing.assert_allclose(loss.y[:3], [1, 1.5, 2])
        np.testing.assert_allclose(loss.y[4:7], [2, 2.5, 3])
        assert accuracy.showlegend and not loss.showlegend
        assert accuracy.text[4] == "a to b, replication 1"
    # A kind is told by more than its colour.
    looks = [
        (traces[0].line.dash, traces[0].marker.symbol)
        for traces in by_name.values()
    ]
    assert looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]


def plane():
    x, y = np.meshgrid(np.linspace(-1, 5, 4), np.linspace(-1, 4, 3))
    grid = pandas.DataFrame({"x": x.ravel(), "y": y.ravel(), "solution": ""})
    grid["loss"] = 1 + grid.x**2 + grid.y**2
    solutions = pandas.DataFrame(
        {
            "x": [0.0, 3.3, 1.7],
            "y": [0.0, 0.0, 2.9],
            "solution": ["a", "b", "c"],
            "loss": [0.1, 0.2, 0.3],
        }
    )
    both = pandas.concat([grid, solutions], ignore_index=True)
    return both.assign(accuracy=1 / (1 + both.loss), kind="P-T", split="test")


def test_the_plane_passes_through_its_solutions():
    table = plane()
    flat, deep = plots.plane(table)
    contour, marks = flat.data
    assert list(marks.text) == ["a", "b", "c"]
    x, y = np.asarray(contour.x), np.asarray(contour.y)
    for row in table[table.solution != ""].itertuples():
        i, j = np.argmin(abs(y - row.y)), np.argmin(abs(x - row.x))
        assert (x[j], y[i]) == pytest.approx((row.x, row.y), abs=1e-3)
        assert contour.z[i][j] == pytest.approx(np.log10(row.loss), abs=1e-4)
        assert contour.customdata[i][j][1] == pytest.approx(
            row.accuracy, abs=1e-4
        )
    assert isinstance(deep.data[0], go.Surface)
    np.testing.assert_array_equal(deep.data[0].z, contour.z)
    # Three on one line span no plane.
    assert plots.plane(table.assign(y=np.nan)) == []


def modules():
    return pandas.DataFrame(
        {
            "kind": ["P-T", "P-T", "RI-T", "RI-T"],
            "module": ["conv1", "fc", "conv1", "fc"],
            "depth": [0.0, 1.0, 0.0, 1.0],
            "criticality": [0.0, np.inf, 5.0, 2500.0],
            "distance": [0.5, 0.25, np.nan, np.nan],
            "cka": np.nan,
            "cost": [0.0, 0.2, np.nan, 0.1],
        }
    )


def test_the_network_is_coloured_from_least_to_most():
    figure = plots.where(modules())
    columns = [trace for trace in figure.data if trace.type == "heatmap"]
    # Criticality of both, distance of P-Ts; nothing else is known.
    assert len(columns) == 3
    assert list(columns[0].y) == ["conv1", "fc"]
    np.testing.assert_allclose(np.ravel(columns[2].z), [1, 0])
    np.testing.assert_allclose(np.ravel(columns[1].z), [0, 1])
    said = columns[0].customdata[1][0]
    assert "fc, P-T" in said and "criticality ∞" in said
    assert "20 points lost" in said
    letters = [trace for trace in figure.data if trace.type == "scatter"]
    assert [list(trace.text) for trace in letters[1:]] == [
        ["5", "2.5k"],
        ["0.5", "0.25"],
    ]
    assert list(letters[2].textfont.color) == ["black", "white"]
    still = plots.where_still(modules())
    shown = {text.get_text() for text in still.axes[0].texts}
    assert {"2.5k", "0.25", "∞", "criticality", "distance"} <= shown
    assert plots.where(modules()[:0]) is None
    assert plots.where_still(modules()[:0]) is None


def test_json_cannot_end_the_script_that_holds_it():
    figure = go.Figure()
    figure.add_scatter(x=[1], y=[1], name="</script><b>")
    text = plots.to_json(figure)
    assert "<" not in text
    assert json.loads(text)["data"][0]["name"] == "</script><b>"
