import importlib
import pathlib

import gin
import numpy as np
import pandas
import pytest
import small_models
import written_runs
from scipy import special

from keras_transfer import Examples, Models, rewinding
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.errors import UserError
from keras_transfer.landscape.module_loss import ModuleLoss

ROOT = pathlib.Path(__file__).parents[1]
MODULES = ["conv1", "layer1.0", "layer2.0", "fc"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A P-T of epochs 0, 1, 2 and 5, best at 2; an RI-T of 0 and 2."""
    directory = tmp_path_factory.mktemp("runs")
    dataset = written_runs.digits()
    pt = written_runs.write_run(directory / "pt0", dataset, seed=1, last=5)
    for epoch in (1, 2):
        model = pt.load_model(0)
        rng = np.random.default_rng(epoch)
        for variable in model.trainable_variables:
            variable.assign_add(rng.normal(0, 0.2, variable.shape))
        pt.save(epoch, model)
    rit = written_runs.write_run(directory / "rit0", dataset, seed=2)
    for run in (pt, rit):
        run.write_best(2, "accuracy", 0.5)
    return {"P-T": pt, "RI-T": rit}


def plain(run, end, module, epoch, split):
    """Returns loss and error, one module set back, the obvious way."""
    model, source = run.load_model(end), run.load_model(epoch)
    for v, w in zip(model.weights, source.weights, strict=True):
        if v.path.startswith(f"{module}."):
            v.assign(w)
    chosen = run.load_data().examples.split(split)
    images, targets, _ = next(iter(chosen.batches(len(chosen))))
    logits = model(images, training=False).numpy().astype(np.float64)
    targets = targets.numpy()
    loss = -np.mean(np.sum(targets * special.log_softmax(logits, 1), 1))
    return loss, np.mean(logits.argmax(1) != targets.argmax(1))


def test_each_module_at_each_epoch(runs):
    table = rewinding(Models(runs))
    assert list(table.columns) == [
        *("kind", "name", "end_point", "end_epoch", "split", "level"),
        *("module", "depth", "epoch", "loss", "accuracy", "error"),
        "batch_norm",
    ]
    # Epochs up to the end point; two splits, two levels, four modules.
    assert len(table) == (4 + 3 + 2 + 2) * 2 * 2 * 4
    blocks = table[table.level == "block"]
    assert list(blocks.module.unique()) == MODULES
    own = blocks[blocks.name == "pt0"].set_index(
        ["end_point", "split", "module", "epoch"]
    )
    assert sorted(own.loc["optimal", "test", "fc"].index) == [0, 1, 2]
    for end_point, end in (("final", 5), ("optimal", 2)):
        for split in ("train", "test"):
            for module, epoch in (("conv1", 0), ("layer2.0", 2), ("fc", 1)):
                row = own.loc[(end_point, split, module, epoch)]
                loss, error = plain(runs["P-T"], end, module, epoch, split)
                assert row.loss == pytest.approx(loss, rel=1e-5)
                assert row.error == pytest.approx(error, abs=1.5 / 797)
                assert row.accuracy == pytest.approx(1 - row.error)
    # Set back to the end point itself, nothing has changed.
    there = blocks[blocks.epoch == blocks.end_epoch]
    assert (
        there.groupby(["name", "end_point", "split"]).loss.nunique() == 1
    ).all()
    assert list(small_models.figures("rewinding", table)) == [
        "rewinding_final",
        "rewinding_optimal",
    ]


def test_chosen_epochs(runs):
    alone = Models({"P-T": runs["P-T"]})
    table = rewinding(alone, epochs=(5, 0), splits=("test",), levels=("group",))
    assert set(table.module) == {"conv1", "layer1", "layer2", "fc"}
    epochs = table.groupby("end_point").epoch.unique().map(sorted)
    assert epochs.to_dict() == {"final": [0, 5], "optimal": [0]}
    with pytest.raises(UserError, match="no checkpoint of epoch 3"):
        rewinding(alone, epochs=(0, 3))


@pytest.mark.long
def test_few_checkpoints_in_memory_change_nothing(runs, monkeypatch):
    models = Models(runs)
    whole = rewinding(models)
    module = importlib.import_module("keras_transfer.analysis.rewinding")
    monkeypatch.setattr(module, "_CHECKPOINT_BYTES", 1)
    parts = rewinding(Models(runs))
    order = ["name", "end_point", "split", "level", "module", "epoch"]
    whole, parts = (
        t.sort_values(order, ignore_index=True) for t in (whole, parts)
    )
    pandas.testing.assert_frame_equal(whole, parts, rtol=1e-6)
    # And nothing is evaluated again.
    monkeypatch.setattr(ModuleLoss, "_run", None)
    rewinding(models)


def test_a_training_set_back():
    """Of a `Trajectory`, on the split that there is."""
    trajectory = small_models.train(3)
    _, (images, labels) = small_models.digits()
    models = Models({"P-T": trajectory}, data=Examples(test=(images, labels)))
    table = rewinding(models, levels=("block",))
    assert set(table.split) == {"test"}
    assert list(table.module.unique()) == ["low", "middle", "high"]
    own = table[table.end_point == "final"].set_index(["module", "epoch"])
    end, model = trajectory.load_weights(), trajectory.load_model()
    for module in ("low", "high"):
        for epoch in range(3):
            then = trajectory.load_weights(epoch)
            model.set_weights(
                [(then if f"{module}/" in k else end)[k] for k in end]
            )
            loss, accuracy = small_models.loss_and_accuracy(
                model(images), labels
            )
            row = own.loc[module, epoch]
            assert row.loss == pytest.approx(loss, rel=1e-5)
            assert row.accuracy == pytest.approx(accuracy, abs=1e-6)


def test_batch_statistics_are_estimated_anew():
    """Set back, a layer is followed by its own statistics."""
    trajectory = small_models.train(
        4, model=small_models.build(4, batch_norm=True)
    )
    models = Models({"P-T": trajectory}, data=small_models.examples())
    table = rewinding(models, epochs=(0,), levels=("block",))
    assert set(table.batch_norm) == {"reestimate"}
    model = trajectory.load_model()
    end, then = trajectory.load_weights(), trajectory.load_weights(0)
    of_low = ("low/", "norm/")  # One module.
    model.set_weights(
        [(then if any(n in k for n in of_low) else end)[k] for k in end]
    )
    (train, labels), _ = small_models.digits()
    features = model.layers[0](train).numpy()
    norm = model.get_layer("norm")
    norm.moving_mean.assign(features.mean((0, 1, 2)))
    norm.moving_variance.assign(features.var((0, 1, 2)))
    loss, _ = small_models.loss_and_accuracy(model(train), labels)
    row = table[
        (table.module == "low")
        & (table.split == "train")
        & (table.end_point == "final")
    ]
    assert row.loss.item() == pytest.approx(loss, rel=1e-4)


def test_models_without_a_past():
    with pytest.raises(UserError, match="has no epochs.*a Trajectory"):
        rewinding(small_models.plain())


def test_cost():
    cost = find_analysis("rewinding").cost
    assert cost({"epochs": (0, 5), "splits": ("test",)}, 3) == 3 * 2 * 2
    assert cost({"epochs": None, "splits": None}, 1) == 2 * 60 * 2


def test_gin_file(runs, tmp_path):
    named = {kind: [str(run.path)] for kind, run in runs.items()}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "rewinding.gin")], [f"Models.models = {named}"]
    )
    models = analyze(tmp_path)
    written = pandas.read_csv(tmp_path / "rewinding.csv", keep_default_na=False)
    pandas.testing.assert_frame_equal(
        written, rewinding(models), check_dtype=False
    )
    for name in ("rewinding_final", "rewinding_optimal"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert (tmp_path / f"{name}.svg").exists()
