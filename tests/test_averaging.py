import keras
import numpy as np
import pytest
import tensorflow as tf
import written_runs
from scipy import special

from keras_transfer import models
from keras_transfer.analysis import (
    Output,
    Subjects,
    averaging,
    interpolation,
)
from keras_transfer.analysis.averaging import gain, greedy_soup
from keras_transfer.errors import UserError
from keras_transfer.export import export
from keras_transfer.runs import Run


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
def subjects(tmp_path_factory):
    return written_runs.write_subjects(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def result(subjects, tmp_path_factory):
    path = tmp_path_factory.mktemp("averages")
    return averaging(subjects, Output(path)), path


def logits(model, dataset):
    images, targets, _ = next(iter(dataset.eval_batches(batch_size=797)))
    outputs = model(images, training=False).numpy().astype(np.float64)
    return outputs, targets.numpy().argmax(axis=1)


def test_table(subjects, result):
    table, _ = result
    rows = table[(table.kind == "RI-T") & (table.examples == "all")]
    rows = rows.set_index(["model", "members"])
    members = [
        logits(subjects.model(s), subjects.dataset)
        for s in subjects.of_kind("RI-T")
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
    assert gain(table)["RI-T"] == pytest.approx(expected)


def test_greedy_is_never_worse_on_what_chose_it(result):
    table, _ = result
    chosen = table[table.examples == "selection"].groupby(["kind", "model"])
    best = chosen.accuracy.max().unstack()
    assert np.all(best["greedy"] >= best["member"])


def test_average_is_a_run_like_any_other(subjects, result, tmp_path):
    table, path = result
    run = Run(path / "average_P-T_uniform")
    members = subjects.of_kind("P-T")
    model = run.load_model()
    for epoch in (0, "best"):
        averages = [
            np.mean(arrays, axis=0)
            for arrays in zip(
                *(
                    subjects.weights(s, 0 if epoch == 0 else None)
                    for s in members
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
    export(run, "best", tmp_path / "exported")
    served = tf.saved_model.load(str(tmp_path / "exported/saved_model"))
    raw = subjects.dataset.test.raw_images(np.arange(20))
    found = served.signatures["serving_default"](images=tf.constant(raw))
    expected, _ = logits(model, subjects.dataset)
    np.testing.assert_allclose(found["logits"], expected[:20], atol=1e-5)
    together = Subjects(
        runs={"average": str(run.path), "P-T": str(members[0].run.path)}
    )
    interpolated = interpolation(
        together, Output(tmp_path / "i"), 5, (0, 1), ("test",)
    )
    assert interpolated.loss[0] == pytest.approx(row.loss, rel=1e-5)
    fresh = written_runs.build(3, (8, 8, 1))
    models.initialize_from(fresh, model)
    np.testing.assert_array_equal(
        fresh.get_layer("conv1.conv").kernel,
        model.get_layer("conv1.conv").kernel,
    )


def test_made_again_it_is_renewed(subjects, tmp_path):
    for _ in range(2):
        averaging(subjects, Output(tmp_path))
        run = Run(tmp_path / "average_RI-T_greedy")
        assert run.epochs() == [0, 2]
        # As after a run of other members, with another last epoch.
        run.save(9, tf.train.Checkpoint(model=run.load_model()))


def test_a_saved_average_has_its_own_batch_statistics(tmp_path):
    dataset = written_runs.digits()
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(6, 3),
                keras.layers.BatchNormalization(),
                keras.layers.ReLU(),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
            ]
        )
        run = Run(tmp_path / f"bn{seed}")
        run.save(1, tf.train.Checkpoint(model=model))
        run.describe("", model, dataset)
    subjects = Subjects(runs={"RI-T": [f"{tmp_path}/bn0", f"{tmp_path}/bn1"]})
    table = averaging(subjects, Output(tmp_path))
    model = Run(tmp_path / "average_RI-T_uniform").load_model()
    # All 32 training images are one batch.
    images = next(iter(dataset.eval_batches("train", batch_size=32)))[0]
    features = model.layers[0](images).numpy()
    found = model.layers[1]
    np.testing.assert_allclose(
        found.moving_mean, features.mean((0, 1, 2)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        found.moving_variance, features.var((0, 1, 2)), rtol=1e-4
    )
    outputs, labels = logits(model, dataset)
    row = table[(table.model == "uniform") & (table.examples == "all")].iloc[0]
    right = np.mean(outputs.argmax(axis=1) == labels)
    assert row.accuracy == pytest.approx(right, abs=1.5 / 797)


def test_no_two_of_a_kind(subjects, tmp_path):
    runs = {"P-T": str(subjects.of_kind("P-T")[0].run.path)}
    with pytest.raises(UserError, match="two or more models of one kind"):
        averaging(Subjects(runs=runs), Output(tmp_path))
