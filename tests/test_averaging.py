import pathlib

import gin
import keras
import numpy as np
import pandas
import pytest
import small_models
import tensorflow as tf
import written_runs
from scipy import special

from keras_transfer import (
    Examples,
    Models,
    averaging,
    initialize_from,
    interpolation,
)
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.averaging import gain, greedy_soup
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.errors import UserError
from keras_transfer.export import export
from keras_transfer.runs import Run

ROOT = pathlib.Path(__file__).parents[1]


def test_greedy_soup_by_hand():
    """2 is best; 0 spoils it, 1 does not, 3 would only without 1."""
    scores = {
        (0,): 0.8,
        (1,): 0.7,
        (2,): 0.9,
        (3,): 0.6,
        (0, 2): 0.85,
        (1, 2): 0.9,
        (1, 2, 3): 0.89,
    }
    tried = []

    def score(members):
        tried.append(tuple(sorted(members)))
        return scores[tried[-1]]

    assert greedy_soup(score, 4) == [2, 1]
    assert tried[4:] == [(0, 2), (1, 2), (1, 2, 3)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return written_runs.write_models(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def result(models, tmp_path_factory):
    path = tmp_path_factory.mktemp("averages")
    return averaging(models, path), path


def logits(model, examples):
    split = examples.split("test")
    images, targets, _ = next(iter(split.batches(len(split))))
    outputs = model(images, training=False).numpy().astype(np.float64)
    return outputs, targets.numpy().argmax(axis=1)


def test_table(models, result):
    table, _ = result
    rows = table[(table.kind == "RI-T") & (table.examples == "all")]
    rows = rows.set_index(["model", "members"])
    members = [
        logits(models.model(m), models.examples) for m in models.of_kind("RI-T")
    ]
    labels = members[0][1]
    for name, (outputs, _) in zip(("rit0", "rit1"), members, strict=True):
        accuracy = np.mean(outputs.argmax(axis=1) == labels)
        assert rows.accuracy["member", name] == pytest.approx(accuracy)
    probabilities = np.mean([special.softmax(o, 1) for o, _ in members], 0)
    found = rows.loc["ensemble", "rit0, rit1"]
    right = probabilities.argmax(axis=1) == labels
    assert found.accuracy == pytest.approx(np.mean(right))
    loss = -np.mean(np.log(probabilities[np.arange(len(labels)), labels]))
    assert found.loss == pytest.approx(loss, rel=1e-5)
    # Selection and report are two halves.
    parts = table[table.model == "uniform"].pivot(
        index="kind", columns="examples", values="loss"
    )
    np.testing.assert_allclose(
        parts["all"],
        (399 * parts["selection"] + 398 * parts["report"]) / 797,
        rtol=1e-5,
    )
    uniform = rows.accuracy["uniform", "rit0, rit1"]
    expected = uniform - rows.accuracy["member"].mean()
    assert gain(table, "RI-T") == pytest.approx(expected)
    assert list(small_models.figures("averaging", table)) == ["averaging"]


def test_greedy_is_never_worse_on_what_chose_it(result):
    table, _ = result
    chosen = table[table.examples == "selection"].groupby(["kind", "model"])
    best = chosen.accuracy.max().unstack()
    assert np.all(best["greedy"] >= best["member"])


def test_average_is_a_run_like_any_other(models, result, tmp_path):
    table, path = result
    run = Run(path / "average_P-T_uniform")
    members = models.of_kind("P-T")
    model = run.load_model()
    for epoch in (0, "best"):
        averages = [
            np.mean(arrays, axis=0)
            for arrays in zip(
                *(
                    models.weights(m, 0 if epoch == 0 else None)
                    for m in members
                ),
                strict=True,
            )
        ]
        found = run.load_model(epoch).get_weights()
        for a, b in zip(found, averages, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    assert run.epochs() == [0, 2]
    row = table[
        (table.kind == "P-T")
        & (table.model == "uniform")
        & (table.examples == "all")
    ].iloc[0]
    assert run.best() == {
        "epoch": 2,
        "metric": "accuracy",
        "value": row.accuracy,
    }
    assert run.metrics().loss[0] == row.loss
    assert run.info() == members[0].source.info()
    export(run, "best", tmp_path / "exported")
    served = tf.saved_model.load(str(tmp_path / "exported/1"))
    raw = run.load_data().test.raw_images(np.arange(20))
    found = served.signatures["serving_default"](images=tf.constant(raw))
    expected, _ = logits(model, models.examples)
    np.testing.assert_allclose(found["logits"], expected[:20], atol=1e-5)
    together = Models({"average": run.path, "P-T": members[0].source})
    interpolated = interpolation(together, 5, (0.0, 1.0), ("test",))
    assert interpolated.loss[0] == pytest.approx(row.loss, rel=1e-5)
    fresh = written_runs.build(3, (8, 8, 1))
    initialize_from(fresh, model)
    np.testing.assert_array_equal(
        fresh.get_layer("conv1.conv").kernel,
        model.get_layer("conv1.conv").kernel,
    )


def test_made_again_it_is_renewed(models, tmp_path):
    for _ in range(2):
        averaging(models, tmp_path)
        run = Run(tmp_path / "average_RI-T_greedy")
        assert run.epochs() == [0, 2]
        # As after a run of other members, with another last epoch.
        run.save(9, run.load_model())


def test_the_modules_that_define_layers_are_named(tmp_path):
    runs = []
    for seed in range(2):
        run = written_runs.write_run(
            tmp_path / f"run{seed}", written_runs.digits(), seed
        )
        run.config_path.write_text("import json\n\ntrain.seed = 3\n")
        written_runs.reseal(run.path)
        runs.append(run)
    averaging(Models({"RI-T": runs}), tmp_path)
    config = (tmp_path / "average_RI-T_uniform" / "config.gin").read_text()
    assert "import json\n" in config and "train.seed" not in config
    assert f"# The average of {runs[0].path} (epoch 2), " in config


def test_a_saved_average_has_its_own_batch_statistics(tmp_path):
    dataset = written_runs.digits()
    for seed in range(2):
        run = Run(tmp_path / f"bn{seed}")
        model = small_models.build(seed, batch_norm=True)
        run.begin("", model, dataset)
        run.save(1, model)
    models = Models({"RI-T": [f"{tmp_path}/bn0", f"{tmp_path}/bn1"]})
    table = averaging(models, tmp_path)
    model = Run(tmp_path / "average_RI-T_uniform").load_model()
    # All 32 training images are one batch.
    batches = models.examples.split("train").batches(32)
    check_statistics(model, next(iter(batches))[0])
    outputs, labels = logits(model, models.examples)
    row = table[(table.model == "uniform") & (table.examples == "all")].iloc[0]
    right = np.mean(outputs.argmax(axis=1) == labels)
    assert row.accuracy == pytest.approx(right, abs=1.5 / 797)
    assert row.batch_norm == "reestimate"


def check_statistics(model, images):
    """Asserts that batch statistics are those of one batch."""
    features = model.layers[0](images).numpy()
    norm = model.get_layer("norm")
    np.testing.assert_allclose(
        norm.moving_mean, features.mean((0, 1, 2)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        norm.moving_variance, features.var((0, 1, 2)), rtol=1e-4
    )


def test_averages_of_single_models_are_files(tmp_path):
    built = [
        small_models.build(seed, "softmax", batch_norm=True)
        for seed in range(3)
    ]
    before = [model.get_weights() for model in built]
    models = Models({"P-T": built}, data=small_models.examples())
    table = averaging(models, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "average_P-T_greedy.keras",
        "average_P-T_uniform.keras",
    ]
    model = keras.models.load_model(
        tmp_path / "new" / "average_P-T_uniform.keras"
    )
    np.testing.assert_allclose(
        model.get_layer("high").kernel,
        np.mean([m.get_layer("high").kernel for m in built], axis=0),
        rtol=1e-5,
        atol=1e-7,
    )
    (train, _), (images, labels) = small_models.digits()
    check_statistics(model, train)
    # A softmax at the end is still there, and counted once.
    probabilities = model(images).numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    row = table[(table.model == "uniform") & (table.examples == "all")]
    loss = -np.mean(np.log(probabilities[np.arange(len(labels)), labels]))
    assert row.loss.item() == pytest.approx(loss, rel=1e-4)
    # The user's models are as they were.
    for model, weights in zip(built, before, strict=True):
        for now, then in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(now, then)


def test_averages_of_trainings(tmp_path):
    """Files, of the last epochs; on data without training images."""
    trajectories = [small_models.train(seed, epochs=1) for seed in range(2)]
    _, test = small_models.digits()
    models = Models({"P-T": trajectories}, data=Examples(test=test))
    table = averaging(models, tmp_path)
    model = keras.models.load_model(tmp_path / "average_P-T_uniform.keras")
    ends = [trajectory.load_weights() for trajectory in trajectories]
    for found, path in zip(model.get_weights(), ends[0], strict=True):
        # Names may be numbered differently; the order is the same.
        position = list(ends[0]).index(path)
        average = np.mean([list(e.values())[position] for e in ends], axis=0)
        np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-7)
    images, labels = test
    loss, accuracy = small_models.loss_and_accuracy(model(images), labels)
    row = table[(table.model == "uniform") & (table.examples == "all")].iloc[0]
    assert row.loss == pytest.approx(loss, rel=1e-5)
    assert row.accuracy == pytest.approx(accuracy, abs=1e-6)


def test_nothing_is_written_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    averaging(small_models.plain())
    assert not list(tmp_path.iterdir())


def test_claim():
    """Accuracy of the uniform average minus its members'."""
    rows = [("member", "a", 0.8), ("member", "b", 0.9), ("member", "c", 0.7)]
    rows += [("uniform", "a, b, c", 0.85), ("greedy", "b", 0.9)]
    rows += [("ensemble", "a, b, c", 0.95)]
    own = pandas.DataFrame(rows, columns=["model", "members", "accuracy"])
    table = pandas.concat(
        [
            own.assign(kind="P-T", examples="all"),
            own.assign(kind="P-T", examples="report", accuracy=0.1),
            own.assign(kind="RI-T", examples="all", accuracy=0.2),
        ]
    )
    (statistic,) = find_analysis("averaging").statistics
    assert (statistic.claim, statistic.direction) == ("C12", ">")
    assert statistic.threshold == -0.01 and statistic.decides
    assert statistic.compute(table) == pytest.approx(0.85 - 0.8)
    assert gain(table, "RI-T") == pytest.approx(0)
    with pytest.raises(UserError, match="Received: RI-T."):
        statistic.compute(table[table.kind == "RI-T"])
    findings = table.rename(columns={"accuracy": "auc"}).assign(accuracy=0.3)
    assert statistic.compute(findings) == pytest.approx(0.05)


def test_no_two_of_a_kind(models):
    alone = Models({"P-T": models.of_kind("P-T")[0].source})
    with pytest.raises(UserError, match="two or more models of one kind"):
        averaging(alone)


def test_gin_file(models, tmp_path):
    named = {"P-T": [str(m.source.path) for m in models.of_kind("P-T")]}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "averaging.gin")], [f"Models.models = {named}"]
    )
    analyze(tmp_path)
    assert len(pandas.read_csv(tmp_path / "averaging.csv"))
    assert (tmp_path / "averaging.png").stat().st_size > 1000
    assert Run(tmp_path / "average_P-T_uniform").epochs() == [0, 2]
