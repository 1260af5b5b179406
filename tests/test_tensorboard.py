"""A study's runs, and one run, as TensorBoard's own readers see them."""

import pandas
import pytest
from tensorboard.backend.event_processing.event_multiplexer import (
    EventMultiplexer,
)
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.util import tensor_util

from keras_transfer.runs import Summaries
from keras_transfer.study.report import Report, write_tensorboard
from keras_transfer.study.report.tensorboard import run_name

NAN = float("nan")


def read(directory):
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(directory))
    multiplexer.Reload()
    return multiplexer


def value(multiplexer, run, tag, index=0):
    tensor = multiplexer.Tensors(run, tag)[index].tensor_proto
    return tensor_util.make_ndarray(tensor)


def layout_of(multiplexer, run):
    text = value(multiplexer, run, "custom_scalars__config__").item()
    return layout_pb2.Layout.FromString(text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("replication_0/P", "P, replication 0"),
        ("replication_3/digits/RI-T_1", "digits, RI-T 1, replication 3"),
        (
            "replication_2/digits/blocks_4/P-T",
            "digits, P-T on blocks of 4 px, replication 2",
        ),
        (
            "replication_0/a/from_epoch_12/P-T",
            "a, P-T from epoch 12 of P, replication 0",
        ),
        (
            "replication_0/a/images_50/P-T_frozen",
            "a, P-T frozen with 50 images, replication 0",
        ),
        (
            "replication_0/a/pixels/RI-T",
            "a, RI-T on shuffled pixels, replication 0",
        ),
    ],
)
def test_names(name, said):
    assert run_name(name) == said


def report(directory):
    columns = ["name", "kind", "target", "replication", "block_size"]
    columns += ["final", "best", "speed", "state"]
    rows = [
        (
            "replication_0/t/P-T_0",
            "P-T",
            "t",
            0,
            NAN,
            0.9,
            0.95,
            0.7,
            "finished",
        ),
        ("replication_0/t/blocks_4/P-T", "P-T", "t", 0, 4.0, 0.5, 0.6, 0.4)
        + ("finished",),
        (
            "replication_0/t/RI-T_0",
            "RI-T",
            "t",
            0,
            NAN,
            NAN,
            NAN,
            NAN,
            "failed",
        ),
    ]
    curves = pandas.DataFrame(
        {
            "run": "replication_0/t/P-T_0",
            "kind": "P-T",
            "target": "t",
            "epoch": epoch,
            "split": split,
            "loss": 2.0 - epoch,
            "metric": "accuracy",
            "value": 0.25 * epoch,
        }
        for epoch in range(3)
        for split in ("train", "test")
        if epoch or split == "test"
    )
    runs = pandas.DataFrame(rows, columns=columns)
    empty = pandas.DataFrame()
    return Report(
        "T", "Q", empty, empty, runs, curves, [], [], {}, "", directory
    )


def test_a_study_as_a_whole(tmp_path):
    place = tmp_path / "tensorboard"
    for _ in range(2):
        # The second time the first is replaced.
        write_tensorboard(place, report(tmp_path))
    found = read(place)
    main = "t, P-T 0, replication 0"
    sweep = "t, P-T on blocks of 4 px, replication 0"
    # Of the one that failed there is nothing to show.
    assert set(found.Runs()) == {".", main, sweep}
    assert value(found, sweep, "final") == pytest.approx(0.5)
    assert len(found.Tensors(sweep, "final")) == 1
    curve = [event.step for event in found.Tensors(main, "accuracy/test")]
    assert curve == [0, 1, 2]
    assert value(found, main, "accuracy/train", 1) == pytest.approx(0.5)
    assert [
        chart.title for chart in layout_of(found, main).category[0].chart
    ] == [
        "loss",
        "accuracy",
    ]


def test_hparams_of_a_sweep(tmp_path):
    write_tensorboard(tmp_path / "tensorboard", report(tmp_path))
    found = read(tmp_path / "tensorboard")
    told = found.PluginRunToTagToContent(metadata.PLUGIN_NAME)
    sweep = told["t, P-T on blocks of 4 px, replication 0"]
    (content,) = sweep.values()
    data = metadata.parse_session_start_info_plugin_data(content)
    kinds = {
        name: getattr(one, one.WhichOneof("kind"))
        for name, one in data.hparams.items()
    }
    assert kinds == {
        "kind": "P-T",
        "target": "t",
        "replication": 0,
        "block size": 4,
    }
    (content,) = told["."].values()
    assert plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    experiment = metadata.parse_experiment_plugin_data(content)
    names = [one.name for one in experiment.hparam_infos]
    assert names == ["kind", "target", "replication", "block size"]
    tags = [one.name.tag for one in experiment.metric_infos]
    assert tags == ["final", "best", "speed"]


def test_training_and_test_are_in_one_chart(tmp_path):
    summaries = Summaries(tmp_path)
    summaries.write_scalars(0, {"test": {"loss": 2.0, "auc": 0.5}}, {})
    both = {split: {"loss": 1.0, "auc": 0.7} for split in ("train", "test")}
    summaries.write_scalars(1, both, {"learning_rate": 0.1})
    summaries.close()
    found = read(tmp_path)
    assert len(found.Tensors(".", "custom_scalars__config__")) == 1
    (category,) = layout_of(found, ".").category
    tags = {c.title: list(c.multiline.tag) for c in category.chart}
    assert tags == {"loss": ["^loss/"], "auc": ["^auc/"]}
    scalars = set(found.PluginRunToTagToContent("scalars")["."])
    assert scalars == {
        "loss/test",
        "loss/train",
        "auc/test",
        "auc/train",
        "learning_rate",
    }
