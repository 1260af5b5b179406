import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import models
from keras_transfer.errors import UserError

layers = keras.layers


class Head(layers.Layer):
    """A layer of one's own that ends in a Dense layer's softmax."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)
        self.dense = layers.Dense(3, activation="softmax")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs, training=None):
        return self.dense(self.drop(inputs, training=training))


class OwnDense(layers.Dense):
    pass


def flat(end):
    """A network on 5 numbers, of what `end` makes of its features."""
    inputs = keras.Input((5,))
    features = layers.Dense(4, activation="tanh", name="features")(inputs)
    return keras.Model(inputs, end(features))


def nested(*end):
    def build(x):
        return keras.Sequential([keras.Input((4,)), *end])(x)

    return build


def convolved(x):
    x = layers.Reshape((1, 1, 4))(x)
    x = layers.Conv2D(3, 1, activation="softmax")(x)
    return layers.Flatten()(x)


def sequential(x):
    return layers.Dense(3, activation="softmax")(x)


ENDS = {
    "dense": sequential,
    "subclass": OwnDense(3, activation="softmax"),
    "sigmoid": layers.Dense(3, activation="sigmoid"),
    "tensorflow": layers.Dense(3, activation=tf.nn.softmax),
    "softmax as activation": layers.Dense(3, activation=layers.Softmax()),
    "einsum": layers.EinsumDense("ab,bc->ac", 3, activation="softmax"),
    "convolution": convolved,
    "softmax layer": lambda x: layers.Softmax()(layers.Dense(3)(x)),
    "activation layer": lambda x: layers.Activation("softmax")(
        layers.Dense(3)(x)
    ),
    "float32 at the end": lambda x: layers.Activation(
        "linear", dtype="float32"
    )(layers.Dense(3, activation="softmax")(x)),
    "operation": lambda x: keras.ops.softmax(layers.Dense(3)(x)),
    "sigmoid operation": lambda x: keras.ops.sigmoid(layers.Dense(3)(x)),
    "activation function": lambda x: keras.activations.softmax(
        layers.Dense(3)(x)
    ),
    "nested": nested(layers.Dense(6), layers.Dense(3, activation="softmax")),
    "nested softmax": lambda x: nested(layers.Softmax())(layers.Dense(4)(x)),
    "nested twice": lambda x: keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4),
            keras.Sequential([layers.Dense(3), layers.Softmax()]),
        ]
    )(x),
    "layer of one's own": Head(),
}
LINEAR = {
    "dense": layers.Dense(3),
    "relu": layers.Dense(3, activation="relu"),
    "log softmax": layers.Dense(3, activation="log_softmax"),
    "over another axis": lambda x: layers.Flatten()(
        layers.Softmax(axis=1)(layers.Reshape((2, 2))(x))
    ),
    # Its activation is inside of the recurrence.
    "recurrent": lambda x: layers.LSTM(3, activation="sigmoid")(
        layers.Reshape((2, 2))(x)
    ),
    # A softmax before the end is not the model's output.
    "attention": lambda x: layers.Dense(3)(layers.Dense(4, "softmax")(x)),
}


def randomized(model, scale=1.0):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(scale=scale, size=weight.shape))
    return model


def probabilities(end, logits):
    logits = np.float64(logits)
    if "sigmoid" in end:
        return 1 / (1 + np.exp(-logits))
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("end", ENDS)
def test_logits_of_every_ending(end):
    model = randomized(flat(ENDS[end]))
    x = np.random.default_rng(1).normal(size=(6, 5)).astype("float32")
    before, config = model(x).numpy(), model.to_json()
    logits = models.logits_model(model)
    found = logits(x).numpy()
    # Logits are known up to a constant a row, which softmax takes away.
    np.testing.assert_allclose(probabilities(end, found), before, atol=1e-6)
    assert found.min() < 0
    assert np.abs(found.sum(-1) - 1).max() > 0.1
    # The very same variables, and the model is as it was.
    assert {id(v) for v in logits.variables} == {id(v) for v in model.variables}
    np.testing.assert_array_equal(model(x), before)
    assert model.to_json() == config
    # Nothing is left to take away.
    assert models.logits_model(logits) is logits


@pytest.mark.parametrize("end", LINEAR)
def test_what_gives_logits_already_is_returned(end):
    model = flat(LINEAR[end])
    assert models.logits_model(model) is model


def test_sequential_and_keras_applications():
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4), layers.Dense(3, "softmax")]
    )
    logits = models.logits_model(randomized(model))
    x = np.ones((2, 5), "float32")
    np.testing.assert_allclose(
        logits(x),
        model.layers[0](x) @ model.layers[1].kernel + model.layers[1].bias,
        rtol=1e-6,
    )
    mobilenet = keras.applications.MobileNetV3Small(
        weights=None, input_shape=(32, 32, 3), classes=3, alpha=0.25
    )
    twin = keras.applications.MobileNetV3Small(
        weights=None,
        input_shape=(32, 32, 3),
        classes=3,
        alpha=0.25,
        classifier_activation=None,
    )
    models.assign_weights(twin, models.named_weights(mobilenet))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    np.testing.assert_allclose(
        models.logits_model(mobilenet)(images), twin(images), atol=1e-6
    )


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_loss_is_that_of_the_linear_twin(scale):
    """At scale 100 the softmax underflows to 0, and log(0) is infinite."""
    model = randomized(flat(sequential), scale)
    twin = randomized(flat(layers.Dense(3)), scale)
    x = np.random.default_rng(1).normal(size=(64, 5)).astype("float32")
    labels = np.arange(64) % 3
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if scale > 1:
        assert np.any(model(x).numpy() == 0)
    np.testing.assert_allclose(
        loss(labels, models.logits_model(model)(x)),
        loss(labels, twin(x)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("end", ["dense", "activation layer", "nested"])
def test_mixed_precision_gives_float32(end):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = flat(
        {
            "dense": sequential,
            "activation layer": lambda x: layers.Activation(
                "softmax", dtype="float32"
            )(layers.Dense(3)(x)),
            "nested": nested(layers.Dense(3, activation="softmax")),
        }[end]
    )
    logits = models.logits_model(randomized(model))
    x = np.random.default_rng(1).normal(size=(6, 5)).astype("float32")
    found = logits(x)
    assert found.dtype == "float32"
    np.testing.assert_allclose(
        probabilities(end, found), np.float32(model(x)), atol=0.01
    )


def test_the_layer_has_its_activation_again_when_a_call_fails():
    model = flat(sequential)
    logits = models.logits_model(model)
    with pytest.raises(Exception, match="incompatible|expected|shape"):
        logits.layers[-1](np.zeros((2, 7), "float32"))
    assert model.layers[-1].activation is keras.activations.softmax


def test_gradients_regularizers_and_saving(tmp_path):
    model = randomized(
        flat(
            layers.Dense(3, activation="softmax", kernel_regularizer="l2"),
        )
    )
    logits = models.logits_model(model)
    np.testing.assert_allclose(logits.losses, model.losses)
    assert len(logits.losses) == 1
    x = np.ones((1, 5), "float32")
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(logits(x, training=True))
    kernel = model.layers[-1].kernel
    features = model.layers[1](x).numpy()
    np.testing.assert_allclose(
        tape.gradient(total, kernel.value), np.tile(features.T, 3), rtol=1e-6
    )
    logits.save(tmp_path / "logits.keras")
    loaded = keras.models.load_model(tmp_path / "logits.keras")
    np.testing.assert_array_equal(loaded(x), logits(x))


def test_in_two_replicas():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = randomized(flat(sequential))
        logits = models.logits_model(model)
    x = np.random.default_rng(1).normal(size=(2, 5)).astype("float32")

    @tf.function
    def step():
        return strategy.run(lambda: logits(x))

    for found in strategy.experimental_local_results(step()):
        np.testing.assert_allclose(
            probabilities("", found), model(x), atol=1e-6
        )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2, activation="softmax")

    def call(self, inputs):
        return self.dense(inputs)


def test_models_without_a_graph_from_one_input_to_one_output():
    subclassed = Subclassed()
    subclassed(np.zeros((1, 3)))
    with pytest.raises(UserError, match=r"Only a functional.*model\.call\(x\)"):
        models.logits_model(subclassed)
    # What the sentence says to do.
    x = keras.Input((3,))
    assert models.logits_model(keras.Model(x, subclassed.call(x))).built
    a, b = keras.Input((3,)), keras.Input((3,))
    with pytest.raises(UserError, match="2 inputs and 1 outputs"):
        models.logits_model(keras.Model([a, b], layers.Dense(2)(a + b)))


def test_a_functional_model_that_computes_something_else():
    class Doubled(keras.Model):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs, training=training)

    x = keras.Input((3,))
    model = Doubled(x, layers.Dense(2, activation="softmax")(x))
    with pytest.raises(UserError, match="Only a functional"):
        models.logits_model(model)
