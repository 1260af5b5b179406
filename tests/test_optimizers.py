import keras
import numpy as np
import pytest
import tensorflow as tf
import torch_fixup

from keras_transfer import models
from keras_transfer.training import SGD


@keras.saving.register_keras_serializable(package="tests")
class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(
            name="scale", shape=(1,), initializer="ones"
        )

    def call(self, x):
        return x * self.scale


def small_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="tanh"),
            Scale(),
            keras.layers.Dense(3),
        ]
    )
    return model


def batches(steps):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        x = rng.normal(size=(8, 6)).astype("float32")
        yield x, np.eye(3, dtype="float32")[rng.integers(3, size=8)]


def loss_of(model, x, y):
    return tf.reduce_mean(
        keras.losses.categorical_crossentropy(y, model(x), from_logits=True)
    )


def take_steps(model, optimizer, steps):
    for x, y in batches(steps):
        with tf.GradientTape() as tape:
            loss = loss_of(model, x, y)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)


def falling_rate(step):
    return 0.5 * 0.7 ** tf.cast(step, tf.float32)


class FallingRate(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return falling_rate(step)


@pytest.mark.parametrize("clipnorm", [None, 0.05])
def test_steps_agree_with_torch_while_the_rate_falls(clipnorm):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    model = small_model()
    parameters = [
        torch.tensor(v.numpy(), requires_grad=True)
        for v in model.trainable_variables
    ]
    w1, b1, scale, w2, b2 = parameters
    optimizer = torch.optim.SGD(
        [
            {"params": [w1, w2], "factor": 1.0},
            {"params": [b1, scale, b2], "factor": 0.1},
        ],
        lr=1.0,
        momentum=0.9,
        weight_decay=0.01,
    )
    for step, (x, y) in enumerate(batches(5)):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * 0.7**step * group["factor"]
        hidden = torch.tanh(torch.tensor(x) @ w1 + b1) * scale
        loss = torch.nn.functional.cross_entropy(
            hidden @ w2 + b2, torch.tensor(y)
        )
        optimizer.zero_grad()
        loss.backward()
        if clipnorm:
            torch.nn.utils.clip_grad_norm_(parameters, clipnorm)
        optimizer.step()
    take_steps(
        model,
        SGD(
            FallingRate(),
            weight_decay=0.01,
            scalar_multiplier=0.1,
            global_clipnorm=clipnorm,
        ),
        steps=5,
    )
    for ours, theirs in zip(model.trainable_variables, parameters, strict=True):
        np.testing.assert_allclose(
            ours.numpy(), theirs.detach().numpy(), rtol=1e-5, atol=1e-6
        )


def test_one_parameter_by_hand():
    variable = keras.Variable([2.0], name="kernel")
    optimizer = SGD(0.1, momentum=0.5, weight_decay=0.25)
    optimizer.build([variable])
    # g = 1 + 0.25 * 2 = 1.5; v = 1.5; w = 2 - 0.15 = 1.85
    optimizer.apply([tf.constant([1.0])])
    np.testing.assert_allclose(variable.numpy(), [1.85], rtol=1e-6)
    # g = 1 + 0.25 * 1.85 = 1.4625; v = 0.75 + 1.4625; w = 1.85 - 0.22125
    optimizer.apply([tf.constant([1.0])])
    np.testing.assert_allclose(variable.numpy(), [1.62875], rtol=1e-6)


def test_only_biases_and_scales_have_the_lower_rate():
    model = small_model()
    before = [v.numpy() for v in model.trainable_variables]
    optimizer = SGD(1.0, weight_decay=0.0, scalar_multiplier=0.25)
    optimizer.build(model.trainable_variables)
    optimizer.apply([tf.ones(v.shape) for v in model.trainable_variables])
    for variable, old in zip(model.trainable_variables, before, strict=True):
        step = 1.0 if variable.name == "kernel" else 0.25
        np.testing.assert_allclose(old - variable.numpy(), step, rtol=1e-5)


def test_by_default_all_have_one_rate():
    model = small_model()
    before = [v.numpy() for v in model.trainable_variables]
    optimizer = SGD(1.0, weight_decay=0.0)
    optimizer.build(model.trainable_variables)
    optimizer.apply([tf.ones(v.shape) for v in model.trainable_variables])
    for variable, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_allclose(old - variable.numpy(), 1.0, rtol=1e-5)


def test_no_momentum_by_hand():
    variable = keras.Variable([2.0], name="kernel")
    optimizer = SGD(0.1, momentum=0.0, weight_decay=0.25)
    optimizer.build([variable])
    # w = 2 - 0.1 (1 + 0.5) = 1.85; then 1.85 - 0.1 (1 + 0.4625)
    for expected in (1.85, 1.70375):
        optimizer.apply([tf.constant([1.0])])
        np.testing.assert_allclose(variable.numpy(), [expected], rtol=1e-6)


def test_config_makes_the_same_optimizer():
    optimizer = SGD(0.3, momentum=0.8, weight_decay=0.02, global_clipnorm=2.0)
    again = SGD.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()


def test_five_steps_of_a_fixup_network_agree_with_torch():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(0)
    model = models.fixup_resnet18(5, (33, 33, 3))
    network = torch_fixup.torch_network(
        "imagenet", 3, (64, 128, 256, 512), (2, 2, 2, 2), 2, num_classes=5
    )
    torch_fixup.copy_weights(model, network)
    start = {n: p.detach().clone() for n, p in network.named_parameters()}
    scalars, others = [], []
    for name, parameter in network.named_parameters():
        is_scalar = "bias" in name or "scale" in name
        (scalars if is_scalar else others).append(parameter)
    theirs = torch.optim.SGD(
        [{"params": others}, {"params": scalars, "lr": 0.002}],
        lr=0.02,
        momentum=0.9,
        weight_decay=1e-4,
    )
    ours = SGD(0.02, scalar_multiplier=0.1)
    for _ in range(5):
        x = rng.normal(size=(8, 33, 33, 3)).astype("float32")
        y = np.eye(5, dtype="float32")[rng.integers(5, size=8)]
        logits = network(torch.tensor(x).permute(0, 3, 1, 2))
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.tensor(y)).backward()
        theirs.step()
        with tf.GradientTape() as tape:
            loss = loss_of(model, x, y)
        variables = model.trainable_variables
        ours.apply(tape.gradient(loss, variables), variables)
    parameters = dict(network.named_parameters())
    worst = 0.0
    for variable in model.trainable_variables:
        name = torch_fixup.torch_name(variable.path)
        expected = parameters[name].detach()
        assert not torch.equal(expected, start[name])
        difference = torch_fixup.to_torch(variable.numpy()) - expected.numpy()
        worst = max(worst, np.abs(difference).max())
    print(f"largest difference of a parameter after 5 steps: {worst:.1e}")
    assert worst < 1e-5
