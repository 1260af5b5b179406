"""What an analysis leaves, as TensorBoard itself reads it."""

import io

import gin
import matplotlib.figure
import numpy as np
import pandas
import pytest
import written_runs
from PIL import Image
from tensorboard.backend.event_processing.event_multiplexer import (
    EventMultiplexer,
)
from tensorboard.util import tensor_util

from keras_transfer import config
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.output import Output


def _read(directory):
    """Returns {plugin: {tag: what it shows}} of all events in a directory."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(directory))
    multiplexer.Reload()
    (run,) = multiplexer.Runs()
    return {
        plugin: {
            tag: tensor_util.make_ndarray(
                multiplexer.Tensors(run, tag)[0].tensor_proto
            )
            for tag in multiplexer.PluginRunToTagToContent(plugin)[run]
        }
        for plugin in ("images", "text")
    }


def _pixels(shown):
    width, height, encoded = shown
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    assert image.size == (int(width), int(height))
    return np.asarray(image)


def test_a_table_and_a_figure_of_one_name(tmp_path):
    output = Output(tmp_path)
    table = pandas.DataFrame({"epoch": [0, 1], "barrier": [0.5, 0.25]})
    figure = matplotlib.figure.Figure(figsize=(2, 1), dpi=100)
    figure.add_subplot().plot(table.epoch, table.barrier)
    output.table("barriers", table)
    output.figure("barriers", figure)
    read = _read(tmp_path)
    assert list(read["images"]) == ["figures/barriers"]
    assert list(read["text"]) == ["tables/barriers"]
    (text,) = np.atleast_1d(read["text"]["tables/barriers"])
    lines = text.decode().splitlines()
    # Four spaces: TensorBoard shows it as it is.
    assert lines[0].split() == ["epoch", "barrier"]
    assert lines[2].split() == ["1", "1", "0.25"]
    assert all(line.startswith("    ") for line in lines)
    shown = _pixels(read["images"]["figures/barriers"])
    written = np.asarray(Image.open(tmp_path / "barriers.png").convert("RGB"))
    assert shown.shape == (100, 200, 3)
    np.testing.assert_array_equal(shown, written)


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """Four analyses of runs that were not trained, in one directory."""
    root = tmp_path_factory.mktemp("runs")
    written_runs.write_models(root)
    gin.clear_config()
    # So that gin knows them.
    import keras_transfer.analysis.all  # noqa: F401

    config.parse(
        [],
        [
            f"Models.models = {written_runs.named(root)}",
            "analyze.analyses = "
            "[@interpolation, @mistakes, @similarity, @distance, @spectrum]",
            "interpolation.num_points = 3",
            "plane.num_points = 3",
        ],
    )
    analyze(str(root / "analysis"))
    return root / "analysis"


def test_all_figures_and_tables_appear(analysed):
    read = _read(analysed)
    figures = {f"figures/{path.stem}" for path in analysed.glob("*.png")}
    tables = {f"tables/{path.stem}" for path in analysed.glob("*.csv")}
    assert len(figures) >= 7 and len(tables) >= 5
    assert set(read["images"]) == figures
    assert set(read["text"]) == tables
    # That some share a name is what once hid them.
    assert {f.partition("/")[2] for f in figures} & {
        t.partition("/")[2] for t in tables
    }


def test_they_are_what_was_written(analysed):
    read = _read(analysed)
    for path in analysed.glob("*.png"):
        shown = _pixels(read["images"][f"figures/{path.stem}"])
        written = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(shown, written)
    for path in analysed.glob("*.csv"):
        (text,) = np.atleast_1d(read["text"][f"tables/{path.stem}"])
        rows = min(200, len(pandas.read_csv(path)))
        assert len(text.decode().splitlines()) == rows + 1
