import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile

import commands
import numpy as np
import pandas
import pytest
from written_runs import digits, reseal, write_run

from keras_transfer import packing
from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest
from keras_transfer.packing import pack
from keras_transfer.runs import Run
from keras_transfer.runs.checkpoints import write_arrays
from keras_transfer.unpacking import unpack


@pytest.fixture
def run(tmp_path):
    """A finished run whose every epoch has the state of an optimizer."""
    return _write_run(tmp_path / "pt")


def _write_run(path):
    run = write_run(path, digits(), seed=0, last=1)
    rows = [
        {"epoch": e, "step": e, "split": split, "loss": 1.0, "accuracy": e / 9}
        for e, split in ((0, "test"), (1, "train"), (1, "test"))
    ]
    run.write_metrics(rows)
    run.write_best(1, "accuracy", 1 / 9)
    for epoch in (0, 1):
        directory = run.checkpoints_path / f"epoch-{epoch:04}"
        write_arrays(directory / "optimizer.safetensors", {"rate": np.ones(1)})
    (path / "tensorboard").mkdir()
    (path / "tensorboard" / "images.png").write_bytes(b"somebody's")
    (path / "error.log").write_text("A path of mine.")
    (path / "notes.py").write_text("1 / 0")
    return run


@pytest.fixture
def study(tmp_path):
    """A study's directory of one run, one analysis and a report."""
    path = tmp_path / "study"
    manifest = Manifest(path, "study")
    manifest.claim()
    manifest.write_text(
        "config.gin",
        "Study.title = 'Mine'\nStudy.question = '''\nWhat is\nit?\n'''\n",
    )
    claims = pandas.DataFrame(
        {
            "claim": ["C1", "C1", "C2"],
            "target": ["digits"] * 3,
            "statement": ["It helps", "It helps", "It harms"],
            "verdict": ["reproduced", "reproduced", "inconclusive"],
            "value": [0.25, np.nan, 3.0],
        }
    )
    manifest.write_text("claims.csv", claims.to_csv(index=False))
    manifest.write_text("report.html", "<p>")
    _write_run(path / "replication_0" / "runs" / "pt0")
    analysis = Manifest(
        path / "replication_0" / "analyses" / "mistakes", "analysis"
    )
    analysis.claim()
    # A number here, text there.
    analysis.write_text("mistakes.csv", "kind,value\nP-T,0.5\nP-T,many\n")
    (path / "replaced" / "runs").mkdir(parents=True)
    (path / "replaced" / "runs" / "old.csv").write_text("a\n1\n")
    return path


def _names(archive):
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def _card(archive):
    with zipfile.ZipFile(archive) as opened:
        text = opened.read("README.md").decode()
    _, head, body = text.split("---\n", 2)
    license = re.search("^license: (.+)$", head, re.MULTILINE)[1]
    return json.loads(license), body


def test_a_run_comes_back_as_it_was(tmp_path, run):
    archive = tmp_path / "pt.zip"
    digest = pack(run.path, archive, 'CC-BY-4.0 "or\nso"', "sklearn's")
    assert digest == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert _names(archive) == {
        "README.md",
        "SHA256SUMS",
        "config.gin",
        "data.json",
        "manifest.json",
        "metrics.csv",
        "model.json",
        "checkpoints/best.json",
        "checkpoints/epoch-0000/weights.safetensors",
        "checkpoints/epoch-0001/weights.safetensors",
        # With which it can go on.
        "checkpoints/epoch-0001/optimizer.safetensors",
    }
    unpack(archive, tmp_path / "theirs", digest)
    theirs = Run(tmp_path / "theirs")
    for epoch in (0, 1):
        ours = run.load_model(epoch).get_weights()
        for a, b in zip(
            ours, theirs.load_model(epoch).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert theirs.identity == run.identity and theirs.best() == run.best()
    pandas.testing.assert_frame_equal(theirs.metrics(), run.metrics())
    assert theirs.newest("accuracy").epoch == 1
    license, body = _card(archive)
    assert license == 'CC-BY-4.0 "or\nso"'
    assert "sklearn's" in body and "0.1111, epoch 1" in body
    assert "32 to train on" in body and "10: 0, 1" in body


def test_sums_are_those_of_sha256sum(tmp_path, run):
    pack(run.path, tmp_path / "a.zip")
    unpack(tmp_path / "a.zip", tmp_path / "new")
    subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=tmp_path / "new",
        check=True,
        capture_output=True,
    )


def test_the_same_files_make_the_same_archive(tmp_path, run):
    first = pack(run.path, tmp_path / "a.zip")
    os.utime(run.config_path, (0, 0))
    assert pack(run.path, tmp_path / "b.zip") == first
    # Also what was unpacked, though a card lies there already.
    unpack(tmp_path / "a.zip", tmp_path / "pt2")
    os.rename(tmp_path / "pt2", tmp_path / "again")
    os.rename(run.path, tmp_path / "away")
    os.rename(tmp_path / "again", run.path)
    assert pack(run.path, tmp_path / "c.zip") == first


def test_all_tables_of_a_study_are_in_one_file(tmp_path, study):
    archive = tmp_path / "study.zip"
    pack(study, archive, license="CC0-1.0")
    names = _names(archive)
    assert "report.html" in names and "tables.parquet" in names
    assert not any("replaced" in name for name in names)
    unpack(archive, tmp_path / "new")
    tables = pandas.read_parquet(tmp_path / "new" / "tables.parquet")
    assert list(tables.columns[:2]) == ["task", "table"]
    assert tables.groupby(["task", "table"]).size().to_dict() == {
        ("", "claims"): 3,
        ("replication_0/analyses/mistakes", "mistakes"): 2,
        ("replication_0/runs/pt0", "metrics"): 3,
    }
    claims = tables[tables.table == "claims"]
    assert list(claims.value[[0, 2]]) == ["0.25", "3.0"]
    assert claims.value.isna().sum() == 1 and claims.epoch.isna().all()
    metrics = tables[tables.table == "metrics"]
    assert list(metrics.accuracy) == [0.0, 1 / 9, 1 / 9]
    license, body = _card(archive)
    assert license == "CC0-1.0"
    assert "# Mine\n\nWhat is it?" in body
    assert body.count("| C1 | digits | It helps | reproduced |") == 1
    assert "not stated" in body


def test_what_is_neither_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "a", tmp_path / "none"):
        with pytest.raises(UserError, match="neither .* of a run nor"):
            pack(path, tmp_path / "a.zip")
    assert os.listdir(tmp_path) == ["a"] and not os.listdir(tmp_path / "a")


def test_nothing_is_replaced(tmp_path, run):
    (tmp_path / "a.zip").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        pack(run.path, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_text() == "mine"


def test_links_are_not_packed(tmp_path, run):
    (tmp_path / "secret").write_text("")
    for name, target in (("a.csv", "secret"), ("folder", "")):
        (run.path / name).symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=f"{name} is a link"):
            pack(run.path, tmp_path / "a.zip")
        (run.path / name).unlink()
    assert not (tmp_path / "a.zip").exists()


def test_names_that_cannot_be_unpacked_are_not_packed(tmp_path, run):
    (run.path / "a\\b.csv").write_text("")
    with pytest.raises(UserError, match="cannot be packed"):
        pack(run.path, tmp_path / "a.zip")


def test_damaged_files_are_not_packed(tmp_path, run):
    text = run.metrics_path.read_text()
    run.metrics_path.write_text(text + "1,1,test,0,0\n")
    with pytest.raises(UserError, match="metrics.csv is damaged"):
        pack(run.path, tmp_path / "a.zip")
    reseal(run.path)
    weights = run.checkpoints_path / "epoch-0000" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="epoch-0000.* is damaged"):
        pack(run.path, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_nobody_works_there_meanwhile(tmp_path, run):
    script = (
        "import sys, time\n"
        "from keras_transfer import files\n"
        "with files.hold(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, run.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
    ) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match="is being worked on"):
            pack(run.path, tmp_path / "a.zip")
        process.stdin.close()


def test_a_full_disk_leaves_nothing(tmp_path, run, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.shutil, "copyfileobj", fail)
    with pytest.raises(UserError, match="a.zip cannot be written"):
        pack(run.path, tmp_path / "a.zip")
    assert os.listdir(tmp_path) == ["pt"]
