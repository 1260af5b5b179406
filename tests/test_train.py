import functools
import json
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import data, models
from keras_transfer.errors import UserError
from keras_transfer.runs import Run
from keras_transfer.runs.checkpoints import read_arrays
from keras_transfer.training import SGD, constant, cosine, strategy, train
from keras_transfer.training.step import Trainer

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
    columns = ["epoch", "step", "split", "chooses", "loss", "accuracy"]
    assert list(metrics) == columns
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


def test_weights_that_overflow_in_the_last_step_are_no_finished_run(
    tmp_path, digits
):
    with pytest.raises(UserError, match="test loss after epoch 1 is not|NaN"):
        train_digits(
            tmp_path / "run",
            digits,
            epochs=1,
            batch_size=64,
            optimizer=SGD,
            schedule=functools.partial(constant, base_rate=1e38),
        )
    assert Run(tmp_path / "run").epochs() == [0]


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


# Models of any kind.


def dense_net(num_classes, input_shape, seed, activation=None, **kwargs):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(6, activation="relu", **kwargs),
            keras.layers.Dense(num_classes, activation=activation),
        ]
    )


def noisy_net(num_classes, input_shape, seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.3),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes),
        ]
    )


def one_step(work_dir, dataset, model, **changes):
    """Trains one step of plain gradient descent at rate 0.1."""
    arguments = {
        "model": model,
        "epochs": 1,
        "batch_size": 64,
        "schedule": functools.partial(constant, base_rate=0.1),
        "optimizer": keras.optimizers.SGD,
        "augmentation": (),
    }
    return train_digits(work_dir, dataset, **(arguments | changes))


TWO_DEVICES = functools.partial(
    strategy, name="mirrored", devices=["CPU:0", "CPU:1"]
)
STRATEGIES = {
    "one": functools.partial(strategy, name="one_device"),
    "two": TWO_DEVICES,
}


def test_model_that_ends_in_softmax_is_trained_as_its_logits(tmp_path, digits):
    softmax = functools.partial(dense_net, activation="softmax")
    logits, probabilities = (
        train_digits(tmp_path / name, digits, model=model)
        for name, model in (("logits", dense_net), ("softmax", softmax))
    )
    assert_same(weights(logits), weights(probabilities), atol=0)
    assert (
        logits.metrics_path.read_text()
        == probabilities.metrics_path.read_text()
    )
    # The model stays as its user made it.
    model = probabilities.load_model()
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1))
    np.testing.assert_allclose(model(images).numpy().sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        model(images), tf.nn.softmax(logits.load_model()(images)), rtol=1e-5
    )


@pytest.mark.parametrize("devices", STRATEGIES)
def test_regularizers_are_a_part_of_the_loss(tmp_path, digits, devices):
    regularized = functools.partial(
        dense_net, kernel_regularizer=keras.regularizers.L2(0.5)
    )
    changes = {"strategy": STRATEGIES[devices]}
    plain = one_step(tmp_path / "plain", digits, dense_net, **changes)
    decayed = one_step(tmp_path / "decayed", digits, regularized, **changes)
    kernel, *others = weights(plain)
    # The gradient of 0.5 w^2 is w.
    kernel = kernel - 0.1 * weights(plain, 0)[0]
    assert_same(weights(decayed), [kernel, *others], atol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Shrink(keras.layers.Layer):
    """Adds the mean square of its input to the loss."""

    def call(self, inputs):
        self.add_loss(tf.reduce_mean(tf.square(inputs)))
        return inputs


@pytest.mark.parametrize("devices", STRATEGIES)
def test_added_losses_are_a_part_of_the_loss(tmp_path, digits, devices):
    def model(num_classes, input_shape, seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [
                keras.Input(input_shape),
                keras.layers.Flatten(),
                keras.layers.Dense(num_classes),
                Shrink(),
            ]
        )

    run = one_step(
        tmp_path / "run", digits, model, strategy=STRATEGIES[devices]
    )
    kernel, bias = (tf.Variable(w) for w in weights(run, 0))
    images, targets, _ = next(iter(digits.eval_batches("train", 64)))
    with tf.GradientTape() as tape:
        logits = tf.reshape(images, (64, -1)) @ kernel + bias
        loss = tf.reduce_mean(
            tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        ) + tf.reduce_mean(logits**2)
    gradients = tape.gradient(loss, [kernel, bias])
    expected = [
        w - 0.1 * g for w, g in zip((kernel, bias), gradients, strict=True)
    ]
    assert_same(weights(run), expected, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(keras.optimizers.SGD, global_clipnorm=0.1),
        keras.optimizers.Adam,
        functools.partial(SGD, momentum=0.0),
        *(
            pytest.param(optimizer, marks=pytest.mark.long)
            for optimizer in (
                functools.partial(keras.optimizers.SGD, momentum=0.9),
                functools.partial(keras.optimizers.AdamW, weight_decay=0.01),
            )
        ),
    ],
)
def test_any_optimizer_moves_on_two_replicas_as_on_one(
    tmp_path, digits, optimizer
):
    one, two = (
        train_digits(
            tmp_path / name,
            digits,
            model=dense_net,
            optimizer=optimizer,
            schedule=functools.partial(constant, base_rate=0.01),
            strategy=made,
        )
        for name, made in STRATEGIES.items()
    )
    moved = [a - b for a, b in zip(weights(one), weights(one, 0), strict=True)]
    assert all(np.abs(m).max() > 1e-4 for m in moved)
    assert_same(weights(one), weights(two), atol=1e-5)


@pytest.mark.parametrize(
    ("within", "devices", "policy"),
    [
        (False, "one", "float32"),
        (True, "two", "mixed_float16"),
        *(
            pytest.param(*combination, marks=pytest.mark.long)
            for combination in (
                (False, "one", "mixed_float16"),
                (False, "two", "float32"),
                (False, "two", "mixed_float16"),
                (True, "one", "float32"),
                (True, "one", "mixed_float16"),
                (True, "two", "float32"),
            )
        ),
    ],
)
def test_random_layers_statistics_and_loss_scale_are_resumed(
    tmp_path, digits, monkeypatch, policy, devices, within
):
    def run_in(directory):
        return train_digits(
            tmp_path / directory,
            digits,
            model=noisy_net,
            epochs=3,
            strategy=STRATEGIES[devices],
            dtype_policy=policy,
            optimizer=keras.optimizers.Adam,
            schedule=functools.partial(constant, base_rate=0.01),
        )

    whole = run_in("whole")
    calls = iter(range(100))
    take_steps = Trainer.take_steps

    def stopping(self, iterator, most):
        if next(calls) == 2:  # The first call is one step.
            if not within:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)
        return take_steps(self, iterator, most)

    def handler(number, frame):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, handler)
    monkeypatch.setattr(Trainer, "take_steps", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_in("parts")
    monkeypatch.undo()
    signal.signal(signal.SIGTERM, previous)
    partial = list((tmp_path / "parts" / "checkpoints").glob(".*.partial"))
    assert len(partial) == within
    parts = run_in("parts")
    expected, found = whole.load_weights(), parts.load_weights()
    assert any("seed_generator" in name for name in expected)
    assert_same(expected.values(), found.values(), atol=0)
    assert whole.metrics_path.read_text() == parts.metrics_path.read_text()
    states = [
        read_arrays(run.checkpoints_path / "epoch-0003/optimizer.safetensors")
        for run in (whole, parts)
    ]
    assert_same(states[0].values(), states[1].values(), atol=0)


@keras.saving.register_keras_serializable(package="tests")
class Branches(keras.layers.Layer):
    """Holds its layers in a list and in a dict."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.listed = [keras.layers.Dense(units) for _ in range(2)]
        self.named = {"last": keras.layers.Dense(units)}

    def build(self, input_shape):
        for layer in (*self.listed, self.named["last"]):
            layer.build((None, input_shape[-1]))

    def call(self, inputs):
        x = sum(layer(inputs) for layer in self.listed)
        return x + self.named["last"](inputs)

    def get_config(self):
        return super().get_config() | {"units": self.units}


def branching_net(num_classes, input_shape, seed):
    keras.utils.set_random_seed(seed)
    images = keras.Input(input_shape)
    x = Branches(4)(keras.layers.Flatten()(images))
    return keras.Model(images, keras.layers.Dense(num_classes)(x))


def hub_vit(num_classes, input_shape, seed):
    hub = pytest.importorskip("keras_hub", reason="builds a KerasHub model")
    keras.utils.set_random_seed(seed)
    backbone = hub.models.ViTBackbone(
        image_shape=input_shape,
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )
    return hub.models.ViTImageClassifier(
        backbone, num_classes=num_classes, dropout=0.1, preprocessor=None
    )


@pytest.mark.parametrize("model", [branching_net, hub_vit])
def test_layers_held_in_lists_come_back(tmp_path, model):
    digits = data.load("digits", image_size=8, channels=3, num_train=64)
    made = []

    def noted(**arguments):
        made.append(model(**arguments))
        return made[-1]

    run = train_digits(tmp_path / "run", digits, model=noted, epochs=1)
    (trained,), loaded = made, run.load_model()
    assert len(loaded.variables) == len(trained.variables)
    for ours, theirs in zip(loaded.variables, trained.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert len(run.load_weights()) == len(trained.variables)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3))
    np.testing.assert_array_equal(loaded(images), trained(images))


def test_dtype_policy_is_restored(tmp_path, digits):
    keras.config.set_dtype_policy("mixed_bfloat16")
    train_digits(tmp_path / "run", digits, epochs=1)
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    keras.config.set_dtype_policy("float32")

    def failing(**arguments):
        raise UserError("no model")

    with pytest.raises(UserError, match="no model"):
        train_digits(
            tmp_path / "failed",
            digits,
            model=failing,
            dtype_policy="mixed_float16",
        )
    assert keras.config.dtype_policy().name == "float32"


# Frozen modules.


def named(run, epoch="last"):
    return run.load_weights(epoch)


@pytest.mark.parametrize("devices", STRATEGIES)
def test_frozen_modules_stay_as_they_were(tmp_path, digits, devices):
    """Bit for bit, whatever decays weights; the head moves."""
    p = train_digits(tmp_path / "p", digits, seed=5)
    run = train_digits(
        tmp_path / "run",
        digits,
        seed=6,
        pretrained=str(p.path),
        optimizer=functools.partial(SGD, weight_decay=0.1),
        strategy=STRATEGIES[devices],
        trained_modules=("fc",),
    )
    source, start, end = named(p), named(run, 0), named(run)
    for path, value in end.items():
        if path.startswith("fc."):
            assert not np.array_equal(value, start[path])
        else:
            np.testing.assert_array_equal(value, start[path])
            np.testing.assert_array_equal(value, source[path])
    state = run.checkpoints_path / "epoch-0002/optimizer.safetensors"
    momenta = [name for name in read_arrays(state) if "momentum" in name]
    assert len(momenta) == sum(path.startswith("fc.") for path in end)
    # As P for another training it is a network like any other.
    again = train_digits(tmp_path / "q", digits, pretrained=str(run.path))
    moved = [
        not np.array_equal(value, end[path])
        for path, value in named(again).items()
    ]
    assert all(moved)


@pytest.mark.parametrize("devices", STRATEGIES)
def test_frozen_batch_normalization_is_in_inference_mode(
    tmp_path, digits, devices
):
    def model(num_classes, input_shape, seed):
        keras.utils.set_random_seed(seed)
        net = keras.Sequential(
            [
                keras.Input(input_shape),
                keras.layers.Conv2D(4, 3),
                keras.layers.BatchNormalization(name="norm"),
                keras.layers.Flatten(),
                keras.layers.Dense(num_classes, name="head"),
            ]
        )
        rng = np.random.default_rng(0)
        norm = net.get_layer("norm")
        norm.moving_mean.assign(rng.normal(size=4))
        norm.moving_variance.assign(rng.uniform(1, 2, size=4))
        return net

    run = one_step(
        tmp_path / "run",
        digits,
        model,
        strategy=STRATEGIES[devices],
        trained_modules=("head",),
    )
    *before, kernel, bias = weights(run, 0)
    assert_same(weights(run)[:-2], before, atol=0)
    net = run.load_model(0)
    images, targets, _ = next(iter(digits.eval_batches("train", 64)))
    for layer in net.layers[:-1]:
        images = layer(images, training=False)
    kernel, bias = tf.Variable(kernel), tf.Variable(bias)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(
            tf.nn.softmax_cross_entropy_with_logits(
                targets, images @ kernel + bias
            )
        )
    expected = [
        w - 0.1 * g
        for w, g in zip(
            (kernel, bias), tape.gradient(loss, [kernel, bias]), strict=True
        )
    ]
    assert_same(weights(run)[-2:], expected, atol=1e-6)


def test_training_of_some_modules_is_resumed(tmp_path, digits, monkeypatch):
    def run_in(directory, **changes):
        return train_digits(
            tmp_path / directory,
            digits,
            epochs=3,
            trained_modules=("layer2.0", "fc"),
            **changes,
        )

    whole = run_in("whole")
    save = Run.save

    def interrupt(self, epoch, *state):
        if epoch == 2:
            raise KeyboardInterrupt
        save(self, epoch, *state)

    monkeypatch.setattr(Run, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_in("parts")
    monkeypatch.undo()
    parts = run_in("parts")
    assert_same(named(whole).values(), named(parts).values(), atol=0)
    changed = {
        path.rpartition(".")[0]
        for path, value in named(whole).items()
        if not np.array_equal(value, named(whole, 0)[path])
    }
    assert changed == {"layer2.0", "fc"}


def test_modules_in_lists_are_frozen(tmp_path, digits):
    """Such as what a layer holds that is no model."""

    def model(**arguments):
        net = branching_net(**arguments)
        net.layers[-1].name = "head"
        return net

    run = train_digits(
        tmp_path / "run",
        digits,
        model=model,
        epochs=1,
        trained_modules=("head",),
    )
    *before, kernel, bias = weights(run, 0)
    *after, moved, moved_bias = weights(run)
    assert_same(before, after, atol=0)
    assert not np.array_equal(kernel, moved)
    assert not np.array_equal(bias, moved_bias)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"trained_modules": ("fc", "head")},
            r"conv1, layer1.0, layer2.0, fc. Received: head\.",
        ),
        ({"trained_modules": ()}, "must .*Received: "),
        ({"trained_modules": "fc"}, "must .*Received: "),
    ],
)
def test_modules_that_cannot_be_trained_are_a_sentence(
    tmp_path, digits, changes, message
):
    with pytest.raises(UserError, match=f"train.trained_modules.*{message}"):
        train_digits(tmp_path / "run", digits, **changes)
    assert not Run(tmp_path / "run").exists


# What is not read back as it was written.


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, num_classes):
        super().__init__()
        self.dense = keras.layers.Dense(num_classes)

    def call(self, inputs):
        return self.dense(keras.ops.reshape(inputs, (-1, 64)))


def two_inputs(num_classes, input_shape, seed):
    images = [keras.Input(input_shape) for _ in range(2)]
    x = keras.layers.Flatten()(keras.layers.Add()(images))
    return keras.Model(images, keras.layers.Dense(num_classes)(x))


def two_outputs(num_classes, input_shape, seed):
    images = keras.Input(input_shape)
    x = keras.layers.Flatten()(images)
    heads = [keras.layers.Dense(num_classes)(x) for _ in range(2)]
    return keras.Model(images, heads)


def of_another_size(num_classes, input_shape, seed):
    return dense_net(num_classes + 1, input_shape, seed)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda num_classes, **_: Subclassed(num_classes), "is subclassed"),
        (two_inputs, "2 inputs and 1 outputs"),
        (two_outputs, "1 inputs and 2 outputs"),
        (of_another_size, r"10 classes.*outputs of shape \(None, 11\)"),
        (lambda **_: "a model", "Received: str"),
    ],
)
def test_models_of_another_kind_are_a_sentence(
    tmp_path, digits, model, message
):
    with pytest.raises(UserError, match=f"train.model must make .*{message}"):
        train_digits(tmp_path / "run", digits, model=model)
    assert not (tmp_path / "run").exists()


@keras.saving.register_keras_serializable(package="tests")
class Forgetful(keras.layers.Layer):
    """Its factor is not a part of its configuration."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return self.factor * inputs

    def get_config(self):
        return super().get_config()


@keras.saving.register_keras_serializable(package="tests")
class Untold(keras.layers.Layer):
    """It cannot be made without an argument that it does not tell."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return self.factor * inputs

    def get_config(self):
        return super().get_config()


@keras.saving.register_keras_serializable(package="tests")
class Untracked(keras.layers.Layer):
    """Computes with numbers that are not among its weights."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.factors = np.random.default_rng().normal(size=10)

    def call(self, inputs):
        return inputs * keras.ops.convert_to_tensor(self.factors, "float32")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: Forgetful(2.0), "would not be read back as it is.*get_config"),
        (lambda: Untracked(), "would not be read back as it is.*add_weight"),
        (lambda: Untold(2.0), "get_config"),
        (lambda: keras.layers.Lambda(lambda x: 2 * x), "Lambda layer is not"),
    ],
)
def test_model_that_is_not_read_back_ends_before_the_first_step(
    tmp_path, digits, monkeypatch, layer, message
):
    def model(num_classes, input_shape, seed):
        net = dense_net(num_classes, input_shape, seed)
        net.add(layer())
        return net

    def step(*_):
        pytest.fail("A step was taken.")

    monkeypatch.setattr(Trainer, "take_steps", step)
    with pytest.raises(UserError, match=message):
        train_digits(tmp_path / "run", digits, model=model)
    assert not Run(tmp_path / "run").exists
