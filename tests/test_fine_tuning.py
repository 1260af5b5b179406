"""What people do when they fine-tune, each by an argument of `train`."""

import contextlib
import functools
import inspect
import json

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import data, models
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.runs import Run, metrics
from keras_transfer.training import (
    SGD,
    constant,
    optimizers,
    setup,
    strategy,
    train,
)

STRATEGIES = {
    "one": functools.partial(strategy, name="one_device"),
    "two": functools.partial(
        strategy, name="mirrored", devices=["CPU:0", "CPU:1"]
    ),
}
KERAS = {
    name: kind
    for name, kind in vars(keras.optimizers).items()
    if inspect.isclass(kind)
    and issubclass(kind, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
}
small_net = functools.partial(models.fixup_resnet, widths=(4, 8))


def dense_net(num_classes, input_shape, seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(6, activation="tanh", name="body"),
            keras.layers.Dense(num_classes, name="head"),
        ]
    )


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", num_train=64)


@pytest.fixture(scope="module")
def held_out():
    return data.load("digits", validation_split=0.1, num_train=64)


def run_on(work_dir, dataset, **changes):
    """Trains for two epochs of one step each, unless told otherwise."""
    arguments = {
        "model": dense_net,
        "dataset": lambda: dataset,
        "epochs": 2,
        "batch_size": 64,
        "schedule": functools.partial(constant, base_rate=0.1),
        "optimizer": functools.partial(SGD, weight_decay=0.0),
    }
    return train(work_dir, **(arguments | changes))


@contextlib.contextmanager
def interrupted(monkeypatch, at):
    """Has a training in the block end before an epoch's checkpoint."""
    save = Run.save

    def interrupt(self, epoch, *state):
        if epoch == at:
            raise KeyboardInterrupt
        save(self, epoch, *state)

    monkeypatch.setattr(Run, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        yield
    monkeypatch.undo()


def weights(run, epoch="last"):
    return list(run.load_weights(epoch).values())


def assert_close(first, second, **tolerance):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 0} | tolerance))


def logits_of(run, epoch, split):
    images, _, _ = next(iter(split))
    return run.load_model(epoch).predict(images, verbose=0)


# Optimizers by name.


@pytest.mark.parametrize("name", KERAS)
def test_optimizers_of_keras_have_names_in_gin(name):
    name = "KerasSGD" if name == "SGD" else name
    gin.parse_config(
        f"train.optimizer = @{name}\n"
        f"{name}.use_ema = True\n"
        f"{name}.global_clipnorm = 2.0\n"
    )
    schema.check_configuration()
    made = gin.query_parameter("train.optimizer").scoped_configurable_fn(0.5)
    assert isinstance(made, KERAS[name.removeprefix("Keras")])
    assert made.use_ema and made.global_clipnorm == 2.0
    assert float(made.learning_rate) == 0.5


def test_sgd_is_that_of_the_recipes_and_mistakes_are_sentences(
    tmp_path, digits
):
    assert gin.get_configurable("SGD") is SGD
    for name in ("weight_decay", "beta_1", "global_clipnorm"):
        gin.clear_config()
        gin.parse_config(f"AdamW.{name} = 'much'")
        with pytest.raises(ValueError, match=f"AdamW.{name} must be a finite"):
            schema.check_configuration()
    once = functools.partial(
        keras.optimizers.AdamW, gradient_accumulation_steps=1
    )
    unknown = functools.partial(keras.optimizers.AdamW, momentum=0.9)
    for optimizer, message in (
        (unknown, "train.optimizer cannot be made. Keras said.*momentum"),
        (once, "train.optimizer cannot be made. Keras said.*integer >= 2"),
        (lambda rate: rate, "must make one Keras optimizer .*: _Constant"),
    ):
        with pytest.raises(UserError, match=message):
            run_on(tmp_path / "run", digits, optimizer=optimizer)
    assert not Run(tmp_path / "run").exists


@pytest.mark.skipif(
    not optimizers.MULTI_OPTIMIZER, reason="Keras has none of this version"
)
def test_one_optimizer_is_for_all_weights(tmp_path, digits):
    several = keras.optimizers.OptimizerMap(keras.optimizers.Adam())
    with pytest.raises(UserError, match="make one Keras optimizer .*: Multi"):
        run_on(
            tmp_path / "run",
            digits,
            optimizer=lambda rate: keras.optimizers.MultiOptimizer(several),
        )


def test_adamw_by_its_name_from_gin_on_two_replicas(tmp_path, digits):
    def run_in(name):
        gin.clear_config()
        gin.parse_config(
            "train.optimizer = @AdamW\n"
            "AdamW.weight_decay = 0.05\n"
            "AdamW.global_clipnorm = 0.5\n"
        )
        return train(
            tmp_path / name,
            model=dense_net,
            dataset=lambda: digits,
            epochs=2,
            batch_size=16,
            schedule=functools.partial(constant, base_rate=0.01),
            strategy=STRATEGIES[name],
        )

    one, two = run_in("one"), run_in("two")
    assert_close(weights(one), weights(two), atol=1e-5)
    assert "AdamW.weight_decay = 0.05" in one.config_path.read_text()
    # AdamW's first step is the rate, whatever the gradient, beside the decay.
    start, end = weights(one, 0), weights(one)
    moved = max(np.abs(a - b).max() for a, b in zip(start, end, strict=True))
    assert 0.01 < moved < 8 * 0.011


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name in ("Muon", "Nadam") else pytest.mark.long
        )
        for name in KERAS
    ],
)
def test_every_optimizer_moves_on_two_replicas_as_on_one(
    tmp_path, digits, name
):
    one, two = (
        run_on(
            tmp_path / devices,
            digits,
            optimizer=functools.partial(
                KERAS[name], weight_decay=0.1, global_clipnorm=0.5
            ),
            schedule=functools.partial(constant, base_rate=0.01),
            layer_decay=0.5,
            strategy=made,
        )
        for devices, made in STRATEGIES.items()
    )
    assert_close(weights(one), weights(two), atol=1e-5)


# Layer-wise rates.


@pytest.mark.parametrize("name", KERAS)
def test_each_variable_moves_as_at_a_rate_of_its_own(name):
    """As with an optimizer of its own, decoupled weight decay included."""
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=s).astype("float32") for s in ((3, 4), (4, 2))]
    gradients = rng.normal(size=(4, 12 + 8)).astype("float32")
    factors = [0.25, 1.0]

    def make(rate):
        return KERAS[name](learning_rate=rate, weight_decay=0.2)

    def steps(optimizer, variables, columns):
        optimizer.build(variables)
        for row in gradients:
            optimizer.apply(
                [
                    tf.reshape(row[part], v.shape)
                    for part, v in zip(columns, variables, strict=True)
                ]
            )
        return [v.numpy() for v in variables]

    columns = [slice(12), slice(12, 20)]
    variables = [keras.Variable(x, name="kernel") for x in starts]
    together = make(0.1)
    optimizers.scale_rates(together, factors)
    found = steps(together, variables, columns)
    for i, factor in enumerate(factors):
        alone = steps(
            make(0.1 * factor),
            [keras.Variable(starts[i], name="kernel")],
            [columns[i]],
        )
        np.testing.assert_allclose(found[i], alone[0], rtol=1e-5, atol=1e-6)


def test_rates_decay_from_the_head_down():
    model = models.fixup_resnet(3, (8, 8, 1), widths=(4, 8))
    factors = setup.decayed_rates(model, 0.5)
    expected = {"conv1": 0.125, "layer1.0": 0.25, "layer2.0": 0.5, "fc": 1.0}
    for variable, factor in zip(
        model.trainable_variables, factors, strict=True
    ):
        (own,) = [
            rate
            for module, rate in expected.items()
            if variable.path.startswith(module)
        ]
        assert factor == own, variable.path


def test_rates_decay_in_a_network_of_keras():
    model = keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=3)
    factors = setup.decayed_rates(model, 0.9)
    assert len(factors) == len(model.trainable_variables)
    assert factors == sorted(factors) and factors[-1] == 1.0
    assert len(set(factors)) == len(models.module_chain(model))


@pytest.mark.parametrize("devices", STRATEGIES)
def test_layer_decay_of_nothing_trains_the_head_alone(
    tmp_path, digits, devices
):
    run = run_on(
        tmp_path / "run",
        digits,
        layer_decay=0.0,
        optimizer=functools.partial(keras.optimizers.AdamW, weight_decay=0.5),
        strategy=STRATEGIES[devices],
    )
    *body, kernel, bias = weights(run)
    *start, first_kernel, first_bias = weights(run, 0)
    assert_close(body, start, atol=0)
    assert np.abs(kernel - first_kernel).min() > 0
    # The head moves as at the whole rate: by that in AdamW's first step, and
    # by its decay, which makes kernels 0.95 times as large.
    once = weights(run, 1)[-2]
    step = np.abs(once - 0.95 * first_kernel)
    np.testing.assert_allclose(step, 0.1, rtol=1e-2)


def test_layer_decay_on_two_replicas_is_that_on_one(tmp_path, digits):
    one, two = (
        run_on(
            tmp_path / name,
            digits,
            layer_decay=0.5,
            optimizer=functools.partial(
                keras.optimizers.AdamW, weight_decay=0.5
            ),
            schedule=functools.partial(constant, base_rate=0.01),
            strategy=made,
        )
        for name, made in STRATEGIES.items()
    )
    assert_close(weights(one), weights(two), atol=1e-5)
    # The body's two steps are half as large as the head's.
    steps = [
        np.abs(end - start * (1 - 0.01 * rate * 0.5) ** 2).max()
        for start, end, rate in zip(
            weights(one, 0), weights(one), (0.5, 0.5, 1, 1), strict=True
        )
    ]
    np.testing.assert_allclose(steps, [0.01, 0.01, 0.02, 0.02], rtol=0.05)


# Frozen stages.


def test_stages_are_trained_by_their_names(tmp_path, digits):
    run = run_on(
        tmp_path / "run",
        digits,
        model=functools.partial(small_net, blocks_per_stage=2),
        trained_modules=("layer2", "fc"),
    )
    before, after = run.load_weights(0), run.load_weights()
    moved = {
        path.partition("/")[0].rpartition(".")[0]
        for path in before
        if not np.array_equal(before[path], after[path])
    }
    assert moved == {"layer2.0", "layer2.1", "fc"}


# Averages of weights.


@pytest.mark.parametrize("devices", STRATEGIES)
def test_averages_are_evaluated_and_saved(tmp_path, digits, devices):
    def run_in(name, **arguments):
        return run_on(
            tmp_path / name,
            digits,
            epochs=4,
            optimizer=functools.partial(SGD, weight_decay=0.0, **arguments),
            strategy=STRATEGIES[devices],
        )

    plain = run_in("plain")
    run = run_in("averaged", use_ema=True, ema_momentum=0.75)
    expected = weights(plain, 0)
    for epoch in range(5):
        new = weights(plain, epoch)
        if epoch == 1:  # Keras begins with what the first step gives.
            expected = new
        expected = [
            0.75 * a + 0.25 * b for a, b in zip(expected, new, strict=True)
        ]
        assert_close(weights(run, epoch), expected, atol=1e-6)
    logits = logits_of(run, 4, digits.eval_batches("test", 797))
    accuracy = np.mean(logits.argmax(1) == digits.test.labels)
    last = run.metrics().query("epoch == 4 and split == 'test'")
    assert last.accuracy.item() == pytest.approx(accuracy, abs=1e-8)


def test_training_with_averages_is_resumed(tmp_path, digits, monkeypatch):
    def run_in(directory):
        return run_on(
            tmp_path / directory,
            digits,
            model=small_net,
            epochs=4,
            batch_size=16,
            optimizer=functools.partial(
                keras.optimizers.Adam, use_ema=True, ema_momentum=0.9
            ),
            schedule=functools.partial(constant, base_rate=0.01),
            dtype_policy="mixed_float16",
        )

    whole = run_in("whole")
    with interrupted(monkeypatch, 3):
        run_in("parts")
    parts = run_in("parts")
    assert_close(weights(whole), weights(parts), atol=0)
    assert whole.metrics_path.read_text() == parts.metrics_path.read_text()


# Accumulated gradients.


@pytest.mark.parametrize("devices", STRATEGIES)
@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(SGD, weight_decay=0.01, global_clipnorm=0.1),
        functools.partial(keras.optimizers.AdamW, weight_decay=0.01),
    ],
)
def test_accumulated_gradients_make_one_large_batch(
    tmp_path, digits, optimizer, devices
):
    """An epoch of four steps of 16 images is one of a step of 64."""
    large = run_on(tmp_path / "large", digits, optimizer=optimizer)
    small = run_on(
        tmp_path / "small",
        digits,
        batch_size=16,
        optimizer=functools.partial(optimizer, gradient_accumulation_steps=4),
        strategy=STRATEGIES[devices],
    )
    for epoch in (1, 2):
        assert_close(weights(large, epoch), weights(small, epoch), atol=1e-5)
    assert np.abs(weights(large)[0] - weights(large, 0)[0]).max() > 1e-3


def test_accumulation_with_averages_and_a_loss_scale_on_two_replicas(
    tmp_path, digits
):
    one, two = (
        run_on(
            tmp_path / name,
            digits,
            epochs=3,
            batch_size=16,
            optimizer=functools.partial(
                keras.optimizers.AdamW,
                weight_decay=0.1,
                use_ema=True,
                ema_momentum=0.5,
                gradient_accumulation_steps=3,
            ),
            schedule=functools.partial(constant, base_rate=0.01),
            layer_decay=0.5,
            dtype_policy="mixed_float16",
            strategy=made,
        )
        for name, made in STRATEGIES.items()
    )
    assert np.abs(weights(one)[0] - weights(one, 0)[0]).max() > 1e-3
    assert_close(weights(one), weights(two), atol=2e-3)


def test_overwriting_weights_with_averages_is_for_one_device(tmp_path, digits):
    optimizer = functools.partial(
        keras.optimizers.AdamW, use_ema=True, ema_overwrite_frequency=2
    )
    with pytest.raises(UserError, match="one device only.*frequency=2 on sev"):
        run_on(
            tmp_path / "run",
            digits,
            optimizer=optimizer,
            strategy=STRATEGIES["two"],
        )


def test_a_fixed_loss_scale_changes_nothing(tmp_path, digits):
    plain, scaled = (
        run_on(
            tmp_path / str(scale),
            digits,
            optimizer=functools.partial(
                keras.optimizers.SGD, loss_scale_factor=scale
            ),
        )
        for scale in (None, 128.0)
    )
    assert_close(weights(plain), weights(scaled), atol=1e-6)


# The loss.


def test_training_minimizes_the_smoothed_and_weighted_loss(tmp_path, digits):
    run = run_on(
        tmp_path / "run",
        digits,
        epochs=1,
        label_smoothing=0.2,
        class_weights={"3": 4.0, "7": 0.0},
    )
    images, _, _ = next(iter(digits.eval_batches("train", 64)))
    kernels = [tf.Variable(x) for x in weights(run, 0)]
    labels = digits.train.labels
    scale = np.where(labels == 3, 4.0, np.where(labels == 7, 0.0, 1.0))
    smooth = 0.8 * np.eye(10)[labels] + 0.02
    with tf.GradientTape() as tape:
        w, b, head, bias = kernels
        hidden = tf.tanh(tf.reshape(images, [64, -1]) @ w + b)
        logs = tf.nn.log_softmax(hidden @ head + bias)
        loss = tf.reduce_mean(-scale * tf.reduce_sum(smooth * logs, axis=1))
    gradients = tape.gradient(loss, kernels)
    expected = [x - 0.1 * g for x, g in zip(kernels, gradients, strict=True)]
    assert_close(weights(run), expected, atol=1e-6)
    rows = run.metrics().set_index(["split", "epoch"]).loss
    assert rows["train", 1] == pytest.approx(float(loss), rel=1e-5)
    # Evaluations are plain, to be compared with those of other runs.
    logits = logits_of(run, 1, digits.eval_batches("test", 797))
    plain = tf.nn.sparse_softmax_cross_entropy_with_logits(
        digits.test.labels, logits
    )
    assert rows["test", 1] == pytest.approx(np.mean(plain), rel=1e-5)


def test_balanced_weights_are_of_the_training_images(tmp_path):
    dataset = data.load("digits", num_train=64)
    uneven = np.flatnonzero(dataset.train.labels > 6)[:5]
    rows = np.sort(
        np.concatenate([uneven, np.flatnonzero(dataset.train.labels < 3)])
    )
    dataset = dataset.__class__(
        dataset.info, dataset.train.select(rows), dataset.test
    )
    labels = dataset.train.labels
    balanced, weighted = (
        run_on(
            tmp_path / str(i),
            dataset,
            batch_size=len(rows),
            class_weights=given,
        )
        for i, given in enumerate(
            (
                "balanced",
                {
                    str(label): len(labels)
                    / len(set(labels))
                    / int(np.sum(labels == label))
                    for label in set(labels)
                },
            )
        )
    )
    assert_close(weights(balanced), weights(weighted), atol=1e-6)


# Validation and early stopping.


def test_the_best_epoch_is_chosen_on_validation_images(tmp_path, held_out):
    run = run_on(tmp_path / "run", held_out, epochs=6, batch_size=16)
    table = run.metrics()
    assert list(table)[:4] == ["epoch", "step", "split", "chooses"]
    assert set(table[table.chooses == 1].split) == {"validation"}
    chosen = table[table.split == "validation"].set_index("epoch").accuracy
    assert list(chosen.index) == list(range(7))
    best = json.loads((run.checkpoints_path / "best.json").read_text())
    assert best["value"] == chosen.max() and best["epoch"] == chosen.idxmax()
    batches = held_out.eval_batches("validation", 100)
    logits = logits_of(run, best["epoch"], batches)
    accuracy = np.mean(logits.argmax(1) == held_out.validation.labels)
    assert best["value"] == pytest.approx(accuracy, abs=1e-8)
    assert run.choosing_split == "validation"
    # Tested all the same; and the data are known again.
    assert list(table[table.split == "test"].epoch) == list(range(7))
    assert run.changes_of_data(held_out) == []


def test_without_validation_images_test_images_choose(tmp_path, digits):
    run = run_on(tmp_path / "run", digits)
    assert run.choosing_split == "test"
    table = run.metrics()
    assert set(table[table.chooses == 1].split) == {"test"}
    assert set(table[table.chooses == 0].split) == {"train"}


def test_training_stops_early_and_stays_so(tmp_path, held_out, capsys):
    def run_again():
        return run_on(
            tmp_path / "run",
            held_out,
            epochs=9,
            patience=2,
            schedule=functools.partial(constant, base_rate=0.0),
        )

    run = run_again()
    # Nothing is learned, so no epoch is better than the initialization.
    assert run.epochs() == [0, 1, 2]
    assert "2 epochs without a better validation acc" in capsys.readouterr().out
    written = run.metrics_path.read_text()
    run_again()
    assert "is finished: training has stopped early" in capsys.readouterr().out
    assert run.metrics_path.read_text() == written


def test_early_stopping_is_resumed(tmp_path, held_out, monkeypatch):
    def run_in(directory):
        return run_on(
            tmp_path / directory,
            held_out,
            epochs=30,
            batch_size=16,
            patience=2,
            schedule=functools.partial(constant, base_rate=0.5),
        )

    whole = run_in("whole")
    assert 3 < max(whole.epochs()) < 30
    with interrupted(monkeypatch, max(whole.epochs())):
        run_in("parts")
    parts = run_in("parts")
    assert whole.metrics_path.read_text() == parts.metrics_path.read_text()
    assert parts.epochs() == whole.epochs()


@pytest.mark.parametrize(
    ("values", "patience", "stopped"),
    [
        ([0.1, 0.2, 0.3], 1, False),
        ([0.1, 0.3, 0.2], 1, True),
        ([0.1, 0.3, 0.3], 1, True),
        ([0.1, 0.3, 0.2], 2, False),
        ([0.1, 0.3, 0.2, 0.25], 2, True),
        ([0.1, 0.3, float("nan"), float("nan")], 2, True),
        ([0.3, 0.1, 0.1], None, False),
        ([], 1, False),
    ],
)
def test_when_training_has_stopped(values, patience, stopped):
    assert metrics.has_stopped(dict(enumerate(values)), patience) is stopped


def test_early_stopping_never_looks_at_test_images(tmp_path, digits):
    with pytest.raises(UserError, match="never at test .*patience=3.*split = "):
        run_on(tmp_path / "run", digits, patience=3)
    assert not Run(tmp_path / "run").exists


# Images that are no squares.


def test_a_run_on_rectangular_images(tmp_path):
    dataset = data.load("digits", image_size=(8, 12), num_train=64)
    run = run_on(
        tmp_path / "run",
        dataset,
        model=small_net,
        augmentation=[data.random_crop(1), data.random_flip()],
    )
    assert run.load_model().input_shape == (None, 8, 12, 1)
    again = run.load_data()
    assert again.info == run.info() == dataset.info
    raw = data.load("digits").test.raw_images(np.arange(797))
    images = data.preprocess(raw, run.info())
    logits = run.load_model().predict(images, verbose=0)
    accuracy = np.mean(logits.argmax(1) == dataset.test.labels)
    row = run.metrics().query("epoch == 2 and split == 'test'")
    assert row.accuracy.item() == pytest.approx(accuracy, abs=1e-8)
