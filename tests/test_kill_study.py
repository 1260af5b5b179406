"""The short version of kill_study.py: a tiny study, killed twice."""

import json

import commands
import kill_study
import numpy as np
import pytest

from keras_transfer.runs.checkpoints import write_arrays

FLAGS = [
    *commands.SMALL_STUDY,
    "--gin_bindings=Study.bindings = {'train.epochs': 2, "
    "'load.image_size': 8, 'load.num_train': 64, 'fixup_resnet.widths': (4,)}",
    "--gin_bindings=Study.source = {}",
    "--gin_bindings=Study.analyses = ['distance.gin', 'interpolation.gin']",
]


@pytest.mark.long
def test_a_killed_study_ends_as_if_left_alone(tmp_path):
    results, different = kill_study.run(tmp_path, 2, FLAGS, at_report=1 / 2)
    assert [result["lost"] for result in results] == [[], []]
    assert results[-1]["task"] == "claims and report"
    assert different == []


def write_weights(study, value):
    path = study / "runs" / "P" / "checkpoints" / "epoch-0001"
    path.mkdir(parents=True, exist_ok=True)
    arrays = {"dense/kernel": np.array([value], np.float32)}
    write_arrays(path / "weights.safetensors", arrays)


@pytest.fixture
def studies(tmp_path):
    """Two studies of one finished task each, alike."""
    for name in ("whole", "killed"):
        task = tmp_path / name / "runs" / "P"
        task.mkdir(parents=True)
        record = {"state": "finished", "completion": "a", "seconds": 1.0}
        (task / "task.json").write_text(json.dumps(record))
        (task / "results.jsonl").write_text('{"id": 1}\n{"id": ')
        (task / "metrics.csv").write_text("epoch\n0\n")
        (tmp_path / name / "report.html").write_text("")
        write_weights(tmp_path / name, 1.0)
    return tmp_path / "whole", tmp_path / "killed"


def test_what_is_lost_or_different_is_noticed(studies):
    whole, killed = studies
    assert kill_study.differences(whole, killed) == []
    completions, epochs, points = kill_study.kept(killed)
    assert completions == {("runs/P", "a")}
    assert points == {("runs/P/results.jsonl", '{"id": 1}')}
    assert epochs == {("runs/P", 0), ("runs/P", 1)}
    (killed / "runs/P/metrics.csv").write_text("epoch\n1\n")
    (killed / "report.html").unlink()
    write_weights(killed, 1.0000001)
    assert kill_study.differences(whole, killed) == [
        "runs/P/metrics.csv",
        "runs/P/checkpoints/epoch-0001",
        "report.html",
    ]
    assert kill_study.is_reporting(killed, 1)
    record = {"state": "begun", "seconds": 0.0}
    (killed / "runs/P/task.json").write_text(json.dumps(record))
    assert not kill_study.is_reporting(killed, 1)
    assert kill_study.working_on(killed) == "runs/P"
    assert not kill_study.is_writing(killed)
    (killed / "runs/P/checkpoints/.epoch-0002.tmp").mkdir()
    assert kill_study.is_writing(killed)
