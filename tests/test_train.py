import functools
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import data, models
from keras_transfer.errors import UserError
from keras_transfer.runs import Run
from keras_transfer.training import SGD, constant, cosine, strategy, train

small_net = functools.partial(models.fixup_resnet, widths=(4, 8))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", image_size=8, num_train=64)


def train_digits(work_dir, dataset, **changes):
    arguments = {
        "model": small_net,
        "dataset": lambda: dataset,
        "epochs": 2,
        "batch_size": 16,
        "schedule": functools.partial(cosine, base_rate=0.05),
        "optimizer": functools.partial(SGD, global_clipnorm=2.0),
        "augmentation": [data.random_crop(padding=1)],
        "eval_batch_size": 128,
    }
    return train(work_dir, **(arguments | changes))


def weights(run, epoch="last"):
    return run.load_model(epoch).get_weights()


def assert_same(first, second, **tolerance):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 0} | tolerance))


def test_run_directory_holds_what_the_contract_says(tmp_path, digits):
    run = train_digits(tmp_path / "run", digits, epochs=3)
    assert run.epochs() == [0, 1, 2, 3]
    metrics = run.metrics()
    assert list(metrics) == ["epoch", "step", "split", "loss", "accuracy"]
    test = metrics[metrics.split == "test"]
    assert list(test.epoch) == [0, 1, 2, 3]
    assert list(test.step) == [0, 4, 8, 12]
    best = json.loads((run.checkpoints_path / "best.json").read_text())
    assert best["value"] == test.accuracy.max()
    assert best["epoch"] == test.epoch[test.accuracy.idxmax()]
    # The last row is what an independent evaluation of the model gives.
    info = run.info()
    images = data.preprocess(digits.test.raw_images(np.arange(797)), info)
    logits = run.load_model().predict(images, verbose=0)
    labels = digits.test.labels
    assert test.accuracy.iloc[-1] == pytest.approx(
        np.mean(logits.argmax(1) == labels), abs=1e-8
    )
    shifted = logits - logits.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    loss = -log_softmax[np.arange(797), labels].mean()
    assert test.loss.iloc[-1] == pytest.approx(loss, rel=1e-5)


def test_tensorboard_holds_scalars_images_and_config(tmp_path, digits):
    run = train_digits(tmp_path / "run", digits)
    tags = {}
    for file in run.tensorboard_path.iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                tags.setdefault(value.tag, []).append(event.step)
    assert tags["accuracy/test"] == [0, 1, 2]
    assert tags["loss/train"] == tags["learning_rate"] == [1, 2]
    assert tags["images_per_second"] == [1, 2]
    assert {"train_images", "config"} <= tags.keys()


def test_interrupted_and_resumed_is_the_same_run(tmp_path, digits, monkeypatch):
    whole = train_digits(tmp_path / "whole", digits, epochs=4)
    save = Run.save

    def interrupt(self, epoch, *state):
        if epoch == 3:
            raise KeyboardInterrupt
        save(self, epoch, *state)

    monkeypatch.setattr(Run, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_digits(tmp_path / "parts", digits, epochs=4)
    monkeypatch.undo()
    parts = train_digits(tmp_path / "parts", digits, epochs=4)
    assert_same(weights(whole), weights(parts), atol=0)
    assert whole.metrics_path.read_text() == parts.metrics_path.read_text()


def test_finished_run_is_left_alone(tmp_path, digits, capsys):
    run = train_digits(tmp_path / "run", digits)
    before = run.metrics_path.stat().st_mtime_ns
    train_digits(tmp_path / "run", digits)
    assert "finished" in capsys.readouterr().out
    assert run.metrics_path.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["weights", "optimizer"])
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path, digits, caplog, name, damage
):
    run = train_digits(tmp_path / "run", digits, epochs=3)
    expected = weights(run)
    file = run.checkpoints_path / "epoch-0003" / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    file.write_bytes(content if damage == "flipped" else content[:-100])
    if name == "weights":
        with pytest.raises(UserError, match="epoch-0003 is damaged"):
            run.load_model()
    train_digits(tmp_path / "run", digits, epochs=3)
    assert f"{file} is damaged" in caplog.text
    assert "Going back to an earlier one" in caplog.text
    assert_same(weights(run), expected, atol=0)


def test_run_of_the_former_checkpoint_format_is_a_sentence(tmp_path, digits):
    run = train_digits(tmp_path / "run", digits, epochs=1)
    for epoch in run.epochs():
        directory = run.checkpoints_path / f"epoch-{epoch:04d}"
        shutil.rmtree(directory)
        directory.mkdir()
        tf.train.Checkpoint(a=tf.Variable(1.0)).write(f"{directory}/checkpoint")
    for use in (
        run.load_model,
        lambda: train_digits(run.path, digits, epochs=1),
    ):
        with pytest.raises(UserError, match="earlier version.*config.gin"):
            use()


def test_only_chosen_epochs_are_kept(tmp_path, digits):
    run = train_digits(tmp_path / "run", digits, epochs=6, keep_epochs=[2])
    best = run.best()["epoch"]
    assert set(run.epochs()) == {0, 2, 6, best}


@pytest.mark.parametrize("clipnorm", [None, 0.5])
def test_two_replicas_agree_with_one_device(tmp_path, digits, clipnorm):
    def run_under(directory, **arguments):
        # 20 steps: five epochs of four.
        return train_digits(
            tmp_path / directory,
            digits,
            epochs=5,
            optimizer=functools.partial(SGD, global_clipnorm=clipnorm),
            schedule=functools.partial(constant, base_rate=0.02),
            strategy=functools.partial(strategy, **arguments),
        )

    one = run_under("one", name="one_device")
    two = run_under("two", name="mirrored", devices=["CPU:0", "CPU:1"])
    assert_same(weights(one), weights(two), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        one.metrics()[["loss", "accuracy"]],
        two.metrics()[["loss", "accuracy"]],
        rtol=1e-4,
    )


def test_pretrained_start_has_the_body_of_p_and_a_fresh_head(tmp_path, digits):
    p = train_digits(tmp_path / "p", digits, seed=5)
    pt = train_digits(
        tmp_path / "pt", digits, seed=6, pretrained=str(tmp_path / "p")
    )
    rit = train_digits(tmp_path / "rit", digits, seed=6)
    start, source = pt.load_model(0), p.load_model("last")
    scratch = rit.load_model(0)
    for variable, pretrained, fresh in zip(
        start.variables, source.variables, scratch.variables, strict=True
    ):
        is_head = variable.path.startswith("fc.dense/")
        expected = fresh if is_head else pretrained
        np.testing.assert_array_equal(variable.numpy(), expected.numpy())
        if is_head:
            assert not np.array_equal(variable.numpy(), pretrained.numpy())


def test_missing_or_foreign_p_is_a_plain_error(tmp_path, digits):
    with pytest.raises(UserError, match="no run at .*nowhere"):
        train_digits(tmp_path / "a", digits, pretrained=tmp_path / "nowhere")
    train_digits(tmp_path / "p", digits, epochs=1)
    wider = functools.partial(models.fixup_resnet, widths=(4, 12))
    with pytest.raises(UserError, match="different architecture"):
        train_digits(
            tmp_path / "b", digits, model=wider, pretrained=tmp_path / "p"
        )
    with pytest.raises(UserError, match="no checkpoint of epoch 7"):
        train_digits(
            tmp_path / "c",
            digits,
            pretrained=tmp_path / "p",
            pretrained_epoch=7,
        )


def test_diverging_run_says_so_and_keeps_its_checkpoints(tmp_path, digits):
    with pytest.raises(UserError, match=r"finite at step \d+.*base_rate"):
        train_digits(
            tmp_path / "run",
            digits,
            epochs=8,
            optimizer=SGD,
            schedule=functools.partial(constant, base_rate=1e4),
        )
    run = Run(tmp_path / "run")
    assert 0 in run.epochs()
    assert all(np.isfinite(w).all() for w in weights(run, 0))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(tmp_path, digits, policy):
    run = train_digits(tmp_path / "run", digits, dtype_policy=policy, epochs=8)
    model = run.load_model()
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    assert model.get_layer("layer1.0.conv1").compute_dtype == policy[6:]
    loss = run.metrics().query("split == 'train'").loss
    assert loss.iloc[-1] < loss.iloc[0]


def test_mixup_and_jit_compile_run(tmp_path, digits):
    run = train_digits(
        tmp_path / "run", digits, mixup_alpha=0.7, jit_compile=True
    )
    assert np.isfinite(run.metrics().loss).all()


def test_batch_normalization_statistics_are_trained_and_kept(tmp_path, digits):
    def model(num_classes, input_shape, seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [
                keras.Input(input_shape),
                keras.layers.Conv2D(4, 3),
                keras.layers.BatchNormalization(name="bn"),
                keras.layers.Flatten(),
                keras.layers.Dense(num_classes),
            ]
        )

    run = train_digits(tmp_path / "run", digits, model=model)
    before = run.load_model(0).get_layer("bn").moving_mean.numpy()
    after = run.load_model().get_layer("bn").moving_mean.numpy()
    assert not np.allclose(before, after)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"eval_batch_size": 0}, "eval_batch_size"),
        ({"mixup_alpha": float("inf")}, "mixup_alpha"),
        ({"optimizer": lambda rate: SGD(rate, momentum=-1.0)}, "momentum"),
        ({"batch_size": 65}, "batch_size"),
        ({"dtype_policy": "float13"}, "dtype_policy"),
        (
            {"strategy": functools.partial(strategy, name="cluster")},
            "strategy.name",
        ),
        (
            {"strategy": functools.partial(strategy, devices=["GPU:7"])},
            "GPU:7",
        ),
    ],
)
def test_bad_arguments_are_plain_errors(tmp_path, digits, changes, message):
    with pytest.raises(UserError, match=message):
        train_digits(tmp_path / "run", digits, **changes)
    assert not Run(tmp_path / "run").exists
