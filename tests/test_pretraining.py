import json
import warnings

import gin
import keras
import numpy as np
import pandas
import pytest
import written_models
import written_runs
from commands import ROOT
from sklearn import neural_network

import keras_transfer as kt
from keras_transfer import data, training  # noqa: F401, train is bound
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.declaration import Refuted, find_analysis
from keras_transfer.analysis.interpolation import barrier_height
from keras_transfer.analysis.pretraining import first_in_basin, plateau
from keras_transfer.errors import UserError
from keras_transfer.files import write_text
from keras_transfer.runs import Run

# Final accuracies by epoch of P and seed; speeds are half as large.
FINALS = {0: (0.3, 0.4), 2: (0.7, 0.6), 3: (0.8, 0.8), 5: (0.8, 0.7)}


def source_data():
    """Other images than the target's, so that a mix-up shows."""
    return data.load("digits", image_size=8, num_train=500, shuffle="pixels")


def write_source(path):
    """Writes a P of epochs 0, 2, 3 and 5, with barriers before 5.

    scikit-learn fits the last. The one before is close by. Epoch 2 is the last
    with its hidden units in another order: the same function, far away.
    """
    dataset = source_data()
    images, targets, _ = next(
        iter(dataset.examples.split("train").batches(500))
    )
    fitted = neural_network.MLPClassifier((16,), max_iter=60, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted.fit(np.reshape(images, (500, -1)), np.argmax(targets, axis=1))
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    (first, second), (bias, last_bias) = fitted.coefs_, fitted.intercepts_
    rng = np.random.default_rng(0)
    order, near = rng.permutation(16), rng.normal(0, 0.02, first.shape)
    points = {
        0: [rng.normal(0, 0.1, np.shape(w)) for w in model.get_weights()],
        2: [first[:, order], bias[order], second[order], last_bias],
        3: [first + near, bias, second, last_bias],
        5: [first, bias, second, last_bias],
    }
    run = Run(path)
    run.begin("", model, dataset)
    for epoch, weights in points.items():
        model.set_weights(weights)
        run.save(epoch, model)


def configure(run, final, **bindings):
    """Gives a run that was not trained a configuration and its metrics."""
    lines = [f"train.{name} = {value!r}" for name, value in bindings.items()]
    write_text(run.config_path, "\n".join(lines) + "\n")
    written_runs.reseal(run.path)
    rows = [{"epoch": 0, "step": 0, "split": "test", "accuracy": 0.9}]
    rows += [
        {"epoch": epoch, "step": epoch, "split": "test", "accuracy": value}
        for epoch, value in ((1, 0.0), (2, final))
    ]
    run.write_metrics(rows)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """P, two P-Ts from each of its epochs, and an RI-T."""
    root = tmp_path_factory.mktemp("runs")
    write_source(root / "p")
    target = written_runs.digits()
    for epoch, finals in FINALS.items():
        for seed, final in enumerate(finals):
            run = written_runs.write_run(
                root / f"pt_{epoch}_{seed}", target, seed
            )
            configure(
                run,
                final,
                pretrained=str(root / "p"),
                pretrained_epoch="last" if epoch == 5 else epoch,
            )
    run = written_runs.write_run(root / "rit", target, 9)
    configure(run, 0.5, pretrained=None, pretrained_epoch="last")
    return root


def named(root, epochs=tuple(FINALS)):
    names = [f"pt_{epoch}_{seed}" for seed in range(2) for epoch in epochs]
    return {"P-T": [str(root / name) for name in names]}


@pytest.fixture(scope="module")
def table(root):
    found = kt.Models({**named(root), "RI-T": str(root / "rit")})
    return kt.pretraining(found, num_points=5)


def test_table(table):
    rows = table[table.kind == "P-T"].set_index(["epoch", "repeat"])
    assert len(rows) == 8
    for epoch, finals in FINALS.items():
        for seed, final in enumerate(finals):
            row = rows.loc[epoch, seed]
            assert row["name"] == f"pt_{epoch}_{seed}"
            assert row.final == final
            assert row.speed == pytest.approx(final / 2)
    scratch = table[table.kind == "RI-T"]
    assert list(scratch.final) == [0.5] and scratch.epoch.isna().all()
    assert set(table.metric) == {"accuracy"}
    assert set(table.averaged) == {1}


def test_final_is_a_mean_over_the_last_epochs(root, tmp_path):
    """Of eleven epochs the last two; speed is over all."""
    rng = np.random.default_rng(0)
    curves = rng.uniform(size=(2, 11)).round(6)
    for epoch, curve in zip((2, 5), curves, strict=True):
        run = written_runs.write_run(
            tmp_path / f"pt{epoch}", written_runs.digits(), 1
        )
        configure(run, 0.0, pretrained=str(root / "p"), pretrained_epoch=epoch)
        run.write_metrics(
            [
                {"epoch": i, "step": i, "split": "test", "accuracy": value}
                for i, value in enumerate([0.9, *curve])
            ]
        )
    runs = {"P-T": [str(tmp_path / "pt2"), str(tmp_path / "pt5")]}
    table = kt.pretraining(kt.Models(runs), num_points=2)
    assert list(table.averaged) == [2, 2] and list(table.epochs) == [11, 11]
    np.testing.assert_allclose(table.final, curves[:, -2:].mean(1))
    np.testing.assert_allclose(table.speed, curves.mean(1))


def test_gin_file(root, table, tmp_path):
    """And what was evaluated is not evaluated again."""
    runs = {**named(root), "RI-T": str(root / "rit")}
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "pretraining.gin")],
        [f"Models.models = {runs}", "pretraining.num_points = 5"],
    )
    analyze(tmp_path)
    written = pandas.read_csv(
        tmp_path / "pretraining.csv", dtype={"epoch": "Int64"}
    )
    pandas.testing.assert_frame_equal(written, pandas.DataFrame(table))
    for suffix in ("png", "svg"):
        assert (tmp_path / f"pretraining.{suffix}").stat().st_size > 1000
    text = (tmp_path / "evaluated.jsonl").read_text()
    # Three lines of five points; their common end is one.
    assert len(text.splitlines()) == 3 * 4 + 1
    analyze(tmp_path)
    assert (tmp_path / "evaluated.jsonl").read_text() == text


def loss_and_accuracy(model, images, targets):
    logits = model(images, training=False).numpy().astype(np.float64)
    logs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    right = logits.argmax(1) == targets.argmax(1)
    return -np.mean(np.sum(targets * logs, axis=1)), np.mean(right)


def test_barriers_are_those_of_p_on_its_own_images(root, table):
    heights = table.further["pretraining_barriers"]
    found = heights.pivot(index="epoch", columns="measure", values="height")
    assert list(found.index) == [0, 2, 3, 5]
    source, split = Run(root / "p"), source_data().examples.split("test")
    images, targets, _ = map(np.asarray, next(iter(split.batches(797))))
    last, model = source.load_model(5).get_weights(), source.load_model(5)
    alphas = np.linspace(0, 1, 5)
    for epoch in (0, 2, 3):
        start = source.load_model(epoch).get_weights()
        values = []
        for a in alphas:
            model.set_weights(
                [(1 - a) * x + a * y for x, y in zip(start, last, strict=True)]
            )
            values.append(loss_and_accuracy(model, images, targets))
        losses, accuracies = np.transpose(values)
        line = losses[0] + alphas * (losses[-1] - losses[0])
        assert found.loss[epoch] == pytest.approx(
            np.max(losses - line), rel=1e-4, abs=1e-5
        )
        line = accuracies[0] + alphas * (accuracies[-1] - accuracies[0])
        assert found.accuracy[epoch] == pytest.approx(
            np.max(line - accuracies), abs=2 / 797
        )
        own = heights[heights.epoch == epoch].set_index("measure").value
        assert own.loss == pytest.approx(losses[0], rel=1e-4)
        assert own.accuracy == pytest.approx(accuracies[0], abs=1e-6)
    assert found.accuracy[2] > 0.1 and found.loss[2] > 0.1
    assert found.accuracy[3] < 0.02
    assert list(found.loc[5]) == [0, 0]
    # Epoch 2 is the same function as the last, behind a barrier.
    loss = heights[heights.measure == "loss"].set_index("epoch").value
    assert loss[2] == pytest.approx(loss[5], rel=1e-4)
    assert loss[0] > loss[5] + 1


def test_who_is_in_the_basin(root):
    """No barrier, and a loss within the tolerance of the last one."""
    models = kt.Models(named(root))

    def inside(**options):
        table = kt.pretraining(models, num_points=5, **options)
        heights = table.further["pretraining_barriers"]
        assert (heights.groupby("epoch").in_basin.nunique() == 1).all()
        return heights.groupby("epoch").agg(
            {"in_basin": "first", "value": list}
        )

    found = inside(tolerance=1e-9)
    loss = {epoch: value[0] for epoch, value in found.value.items()}
    assert loss[3] > loss[5]
    assert list(found.index[found.in_basin]) == [5]
    # Epoch 0 is too high and 2 behind a barrier.
    found = inside(tolerance=1.01 * (loss[3] - loss[5]))
    assert list(found.index[found.in_basin]) == [3, 5]
    found = inside(tolerance=0.99 * (loss[3] - loss[5]))
    assert list(found.index[found.in_basin]) == [5]
    # Where any loss is allowed, only barriers count.
    found = inside(tolerance=100.0)
    assert not found.in_basin[2] and found.in_basin[3]


def basin(*inside):
    """Returns P's epochs, and whether each lies in the basin of the last."""
    return pandas.DataFrame(
        {
            "epoch": [*FINALS] * 2,
            "measure": ["accuracy"] * 4 + ["loss"] * 4,
            "value": 0.5,
            "height": 0.0,
            "in_basin": [*inside, True] * 2,
        }
    )


def test_plateau_by_hand(table):
    gain, saved = find_analysis("pretraining").statistics
    assert (gain.direction, gain.threshold) == (">", -0.01)
    assert (saved.direction, saved.threshold) == (">", 0)
    assert gain.decides and saved.decides
    # Means of (0.7, 0.6) and (0.8, 0.8) against (0.8, 0.7).
    for inside, first, expected in (
        ((False, True, True), 2, 0.65 - 0.75),
        ((False, False, True), 3, 0.8 - 0.75),
        ((True, False, False), 0, 0.35 - 0.75),
    ):
        heights = basin(*inside)
        assert first_in_basin(table, heights) == (first, 5)
        assert plateau(table, heights) == pytest.approx(expected)
        assert gain.compute(table, heights) == pytest.approx(expected)
        value, note = saved.compute(table, heights)
        assert value == pytest.approx((5 - first) / 5)
        assert note == f"{5 - first} of 5 epochs."
    for statistic in (gain, saved):
        with pytest.raises(Refuted, match="No earlier checkpoint.*epoch 5"):
            statistic.compute(table, basin(False, False, False))
        with pytest.raises(UserError, match="from epochs 0, 2, 3; add some"):
            statistic.compute(table[table.epoch != 5], basin(False, True, True))
    # An epoch of P from which none started tells nothing of P-Ts.
    less = table[table.epoch != 2]
    assert first_in_basin(less, basin(False, True, True)) == (3, 5)


def test_statistics_from_files(table, tmp_path):
    """As a study computes them: epochs are missing for an RI-T."""
    table.to_csv(tmp_path / "a.csv", index=False)
    basin(False, True, True).to_csv(tmp_path / "b.csv", index=False)
    read = [pandas.read_csv(tmp_path / f"{name}.csv") for name in "ab"]
    assert plateau(*read) == pytest.approx(-0.1)


def test_p_and_target_may_have_other_metrics(root, tmp_path):
    """Such as a P of ImageNet and findings on X-rays."""
    target = written_runs.digits()
    for epoch in (2, 5):
        run = written_runs.write_run(tmp_path / f"pt{epoch}", target, 1)
        configure(run, 0.5, pretrained=str(root / "p"), pretrained_epoch=epoch)
        text = run.metrics_path.read_text().replace("accuracy", "auc")
        write_text(run.metrics_path, text)
        path = run.path / "data.json"
        description = json.loads(path.read_text())
        description["info"]["multi_label"] = True
        write_text(path, json.dumps(description))
        written_runs.reseal(run.path)
    runs = {"P-T": [str(tmp_path / "pt2"), str(tmp_path / "pt5")]}
    table = kt.pretraining(kt.Models(runs), num_points=3)
    assert list(table.final) == [0.5, 0.5]
    final, _, barrier, _ = kt.figures.pretraining(table).axes
    assert final.get_ylabel() == "test auc"
    assert barrier.get_ylabel() == "barrier in accuracy"
    assert barrier.lines[0].get_ydata()[0] > 0.1


def test_p_is_found(root, tmp_path, monkeypatch):
    """Relative to the working directory, or where it is bound to."""
    target = written_runs.digits()
    for epoch in (0, 5):
        run = written_runs.write_run(tmp_path / f"pt{epoch}", target, 1)
        configure(run, 0.5, pretrained="runs/p", pretrained_epoch=epoch)
    runs = {"P-T": [str(tmp_path / "pt0"), str(tmp_path / "pt5")]}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="pretraining.pretrained to P's"):
        kt.pretraining(kt.Models(runs))
    table = kt.pretraining(kt.Models(runs), str(root / "p"), num_points=2)
    assert list(table.epoch) == [0, 5]
    # Or it is named among the models.
    beside = kt.pretraining(
        kt.Models({**runs, "P": Run(root / "p")}), num_points=2
    )
    pandas.testing.assert_frame_equal(table, beside)
    (tmp_path / "runs").symlink_to(root)
    kt.pretraining(kt.Models(runs), num_points=2)
    # The same P by another name may stand beside it; another P may not.
    both = {"P-T": [*runs["P-T"], str(root / "pt_2_0")]}
    table = kt.pretraining(kt.Models(both), num_points=2)
    assert list(table.epoch) == [0, 2, 5]
    configure(Run(tmp_path / "pt0"), 0.5, pretrained="q", pretrained_epoch=0)
    with pytest.raises(UserError, match="P-Ts from q, runs/p"):
        kt.pretraining(kt.Models(runs))


def with_batch_norm(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(6),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("make", [written_models.net, with_batch_norm])
def test_trajectories(make):
    """P and its P-Ts as Keras has fitted them."""
    p = written_models.fitted(9, epochs=3, make=make)
    named = {
        "P-T": [
            written_models.fitted(seed, epochs=2, pretrained_epoch=epoch)
            for seed, epoch in enumerate((1, "last"))
        ],
        "RI-T": written_models.fitted(5, epochs=2),
    }
    arrays = written_models.arrays()
    own = kt.Examples(**arrays)
    table = kt.pretraining(
        kt.Models({**named, "P": p}, batch_norm="stored"),
        pretrained_data=own,
        num_points=3,
    )
    assert list(table.kind) == ["P-T", "P-T", "RI-T"]
    assert list(table.epoch[:2]) == [1, 3] and table.epoch.isna()[2]
    policy = "none" if make is written_models.net else "stored"
    assert set(table.batch_norm) == {policy}
    for row, own_history in zip(
        table.itertuples(), [*named["P-T"], named["RI-T"]], strict=True
    ):
        history = own_history.model.history.history["val_accuracy"]
        assert row.final == pytest.approx(history[-1])
        assert row.speed == pytest.approx(np.mean(history))
    heights = table.further["pretraining_barriers"]
    assert set(heights.batch_norm) == {policy}
    ends = [p.load_model(epoch).get_weights() for epoch in (1, 3)]
    model, alphas, losses = p.load_model(), [0, 0.5, 1], []
    images, labels = arrays["test"]
    for a in alphas:
        model.set_weights(
            [(1 - a) * x + a * y for x, y in zip(*ends, strict=True)]
        )
        losses.append(loss_and_accuracy(model, images, np.eye(3)[labels])[0])
    expected = barrier_height(alphas, losses, higher_is_better=False)
    found = heights[(heights.measure == "loss") & (heights.epoch == 1)]
    assert found.height.item() == pytest.approx(expected, abs=1e-5)
    assert len(kt.figures.pretraining(table).axes) == 4


def test_what_trajectories_must_say():
    fitted = written_models.fitted
    said = [fitted(0, epochs=1, pretrained_epoch=e) for e in (0, 1)]
    found, p = kt.Models({"P-T": said}), fitted(2, epochs=1)
    with pytest.raises(UserError, match="P-T 0, P-T 1, which are none"):
        kt.pretraining(found)
    with pytest.raises(UserError, match="pretrained_data=None"):
        kt.pretraining(found, p)
    data = written_models.examples()
    with pytest.raises(UserError, match="P-T 1, which does not say"):
        kt.pretraining(kt.Models({"P-T": [said[0], p]}), p, data)
    with pytest.raises(UserError, match="has no epochs"):
        kt.pretraining(
            kt.Models({"P-T": said, "P": written_models.net()}),
            pretrained_data=data,
        )
    with pytest.raises(UserError, match="2 models of kind P"):
        kt.pretraining(
            kt.Models({"P-T": said, "P": [p, fitted(3, epochs=1)]}),
            pretrained_data=data,
        )


def test_what_cannot_be_compared(root, tmp_path):
    with pytest.raises(UserError, match="Received: no P-T"):
        kt.pretraining(kt.Models({"RI-T": str(root / "rit")}))
    with pytest.raises(UserError, match="Received: 2 from epoch 3"):
        kt.pretraining(kt.Models(named(root, (3,))))
    runs = {"P-T": [str(root / "pt_0_0"), str(root / "rit")]}
    with pytest.raises(UserError, match="Received: rit, trained from scratch"):
        kt.pretraining(kt.Models(runs))
    run = written_runs.write_run(tmp_path / "pt", source_data(), 1)
    configure(run, 0.5, pretrained=str(root / "p"), pretrained_epoch=0)
    runs = {"P-T": [str(root / "pt_2_0"), str(run.path)]}
    with pytest.raises(UserError, match="num_train = 32 and pt with 500"):
        kt.pretraining(kt.Models(runs))
    configure(run, 0.5, pretrained=str(root / "p"), pretrained_epoch=4)
    with pytest.raises(UserError, match="no checkpoint of epoch 4"):
        kt.pretraining(kt.Models({"P-T": str(run.path)}))


def test_binding_is_what_gin_wrote(tmp_path):
    run = Run(tmp_path)
    long = "/runs of mine/" + "a long name with spaces " * 6 + '/p\'s "P"'
    gin.parse_config(
        f"""
        SEED = 7
        train.pretrained = {long!r}
        train.pretrained_epoch = "best"
        train.seed = %SEED
        train.augmentation = [@random_crop()]
        train.model = @fixup_resnet
        other/train.epochs = 3
        """
    )
    write_text(run.config_path, gin.config_str())
    written_runs.reseal(run.path)
    # Wrapped, or it would be no test.
    assert long not in run.config_path.read_text()
    assert run.binding("train.pretrained") == long
    assert run.binding("train.pretrained_epoch") == "best"
    assert run.binding("train.seed") == 7
    assert run.binding("train.augmentation") == ["@random_crop()"]
    assert run.binding("train.model") == "@fixup_resnet"
    with pytest.raises(UserError, match="must bind train.epochs"):
        run.binding("train.epochs")
    # As gin names a configurable whose name is not unique.
    write_text(run.config_path, "retrain.seed = 1\nloop.train.seed = 2\n")
    written_runs.reseal(run.path)
    assert run.binding("train.seed") == 2
    write_text(run.config_path, "train.pretrained = (")
    written_runs.reseal(run.path)
    with pytest.raises(UserError, match="config.gin is damaged"):
        run.binding("train.pretrained")
