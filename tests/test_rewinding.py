import importlib
import pathlib

import gin
import numpy as np
import pandas
import pytest
import tensorflow as tf
import written_runs
from scipy import special

from keras_transfer.analysis import (
    Output,
    Subjects,
    Suffixes,
    analyze,
    rewinding,
)
from keras_transfer.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
MODULES = ["conv1", "layer1.0", "layer2.0", "fc"]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """A P-T of epochs 0, 1, 2 and 5, best at 2; an RI-T of 0 and 2."""
    directory = tmp_path_factory.mktemp("runs")
    dataset = written_runs.digits()
    run = written_runs.write_run(directory / "pt0", dataset, seed=1, last=5)
    for epoch in (1, 2):
        model = run.load_model(0)
        rng = np.random.default_rng(epoch)
        for variable in model.trainable_variables:
            variable.assign_add(rng.normal(0, 0.2, variable.shape))
        run.save(epoch, tf.train.Checkpoint(model=model))
    run.write_best(2, "accuracy", 0.5)
    run = written_runs.write_run(directory / "rit0", dataset, seed=2)
    run.write_best(2, "accuracy", 0.5)
    return Subjects(
        runs={"P-T": f"{directory}/pt0", "RI-T": f"{directory}/rit0"}
    )


def plain(run, end, module, epoch, split):
    """Returns loss and error, one module set back, the obvious way."""
    model, source = run.load_model(end), run.load_model(epoch)
    for v, w in zip(model.weights, source.weights, strict=True):
        if v.path.startswith(f"{module}."):
            v.assign(w)
    dataset = run.load_data()
    number = len(getattr(dataset, split))
    images, targets, _ = next(iter(dataset.eval_batches(split, number)))
    logits = model(images, training=False).numpy().astype(np.float64)
    targets = targets.numpy()
    loss = -np.mean(np.sum(targets * special.log_softmax(logits, 1), 1))
    return loss, np.mean(logits.argmax(1) != targets.argmax(1))


def test_each_module_at_each_epoch(subjects, tmp_path):
    table = rewinding(subjects, Output(tmp_path))
    assert list(table.columns) == [
        *("kind", "name", "end_point", "end_epoch", "split", "level"),
        *("module", "depth", "epoch", "loss", "accuracy", "error"),
    ]
    # Epochs up to the end point; two splits, two levels, four modules.
    assert len(table) == (4 + 3 + 2 + 2) * 2 * 2 * 4
    blocks = table[table.level == "block"]
    assert list(blocks.module.unique()) == MODULES
    run = subjects.of_kind("P-T")[0].run
    own = blocks[blocks.name == "pt0"].set_index(
        ["end_point", "split", "module", "epoch"]
    )
    assert sorted(own.loc["optimal", "test", "fc"].index) == [0, 1, 2]
    for end_point, end in (("final", 5), ("optimal", 2)):
        for split in ("train", "test"):
            for module, epoch in (("conv1", 0), ("layer2.0", 2), ("fc", 1)):
                row = own.loc[(end_point, split, module, epoch)]
                loss, error = plain(run, end, module, epoch, split)
                assert row.loss == pytest.approx(loss, rel=1e-5)
                assert row.error == pytest.approx(error, abs=1.5 / 797)
                assert row.accuracy == pytest.approx(1 - row.error)
    # Set back to the end point itself, nothing has changed.
    there = blocks[blocks.epoch == blocks.end_epoch]
    assert (
        there.groupby(["name", "end_point", "split"]).loss.nunique() == 1
    ).all()
    for name in ("rewinding_final", "rewinding_optimal"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert (tmp_path / f"{name}.svg").exists()
    written = pandas.read_csv(tmp_path / "rewinding.csv")
    pandas.testing.assert_frame_equal(written, table, check_dtype=False)


def test_chosen_epochs(subjects, tmp_path):
    alone = Subjects(runs={"P-T": str(subjects.of_kind("P-T")[0].run.path)})
    table = rewinding(
        alone,
        Output(tmp_path),
        epochs=(5, 0),
        splits=("test",),
        levels=("group",),
    )
    assert set(table.module) == {"conv1", "layer1", "layer2", "fc"}
    epochs = table.groupby("end_point").epoch.unique().map(sorted)
    assert epochs.to_dict() == {"final": [0, 5], "optimal": [0]}
    with pytest.raises(UserError, match="no checkpoint of epoch 3"):
        rewinding(alone, Output(tmp_path), epochs=(0, 3))


@pytest.mark.long
def test_few_checkpoints_in_memory_change_nothing(
    subjects, tmp_path, monkeypatch
):
    whole = rewinding(subjects, Output(tmp_path / "whole"))
    module = importlib.import_module("keras_transfer.analysis.rewinding")
    monkeypatch.setattr(module, "_CHECKPOINT_BYTES", 1)
    parts = rewinding(subjects, Output(tmp_path / "parts"))
    order = ["name", "end_point", "split", "level", "module", "epoch"]
    whole, parts = (
        t.sort_values(order, ignore_index=True) for t in (whole, parts)
    )
    pandas.testing.assert_frame_equal(whole, parts, rtol=1e-6)
    # And nothing is evaluated again.
    monkeypatch.setattr(Suffixes, "_run", None)
    rewinding(subjects, Output(tmp_path / "whole"))


def test_gin_file(subjects, tmp_path):
    named = {s.kind: [str(s.run.path)] for s in subjects}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "rewinding.gin")], [f"Subjects.runs = {named}"]
    )
    analyze(tmp_path)
    assert (tmp_path / "rewinding.csv").stat().st_size > 1000
