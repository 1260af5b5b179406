import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import models
from keras_transfer.errors import UserError

layers = keras.layers


def small_fixup():
    return models.fixup_resnet(10, (16, 16, 1), blocks_per_stage=(1, 2, 1))


def fixup50():
    return models.fixup_resnet50(10, (32, 32, 3))


def keras_resnet50():
    return keras.applications.ResNet50(
        weights=None, input_shape=(32, 32, 3), classes=10
    )


def keras_mobilenet():
    return keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=10
    )


def sequential():
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Rescaling(2.0, name="rescale"),
            layers.Conv2D(4, 3, name="first"),
            layers.ReLU(name="relu"),
            layers.MaxPooling2D(name="pool"),
            layers.Conv2D(6, 3, name="second"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(3, name="logits"),
        ]
    )


def shared_activation_and_operations():
    """A residual net with BN, one ReLU object throughout, and bare ops."""
    relu = layers.ReLU(name="relu")
    x = images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem_conv")(x)
    x = relu(layers.BatchNormalization(name="stem_bn")(x))
    y = layers.Conv2D(4, 3, padding="same", name="block_conv1")(x)
    y = relu(layers.BatchNormalization(name="block_bn1")(y))
    y = layers.Conv2D(4, 3, padding="same", name="block_conv2")(y)
    x = relu(x + 0.5 * y)
    x = keras.ops.mean(x, axis=(1, 2))
    return keras.Model(images, layers.Dense(3, name="logits")(x))


def shared_layer():
    """`twice` is applied at two places, with `between` amid them."""
    twice = layers.Dense(5, name="twice")
    x = inputs = keras.Input((5,))
    x = twice(layers.Dense(5, name="before")(x))
    x = twice(layers.Dense(5, name="between")(x))
    return keras.Model(inputs, layers.Dense(2, name="after")(x))


def numbered_residual():
    """Automatic names: what two blocks' layers share says nothing."""
    x = inputs = keras.Input((4,))
    for i in (0, 2):
        y = layers.Dense(4, activation="relu", name=f"dense_{i}")(x)
        x = x + layers.Dense(4, name=f"dense_{i + 1}")(y)
    return keras.Model(inputs, layers.Dense(2, name="dense_4")(x))


def dotted():
    """Dotted names, but for layers without weights of their own."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(2.0, name="rescale"),
            layers.Conv2D(4, 3, name="a.conv"),
            layers.BatchNormalization(name="a.norm"),
            layers.ReLU(name="relu"),
            layers.MaxPooling2D(name="pool.max"),
            layers.Flatten(name="flatten"),
            layers.Dense(3, name="b.dense"),
        ]
    )


def dotted_repeated():
    """A module's name that comes back further on."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, name="a.first"),
            layers.Dense(4, name="b.second"),
            layers.Dense(4, name="a.third"),
        ]
    )


def only_vectors():
    x = inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="norm_first")(x)
    return keras.Model(inputs, models.ScalarBias(name="bias")(x))


BLOCKS50 = [
    f"layer{stage}.{block}"
    for stage, count in enumerate((3, 4, 6, 3), start=1)
    for block in range(count)
]
NAMES = {
    small_fixup: [
        "conv1",
        "layer1.0",
        "layer2.0",
        "layer2.1",
        "layer3.0",
        "fc",
    ],
    fixup50: ["conv1", *BLOCKS50, "fc"],
    keras_resnet50: [
        "conv1",
        *(
            f"conv{stage}_block{block}"
            for stage, count in enumerate((3, 4, 6, 3), start=2)
            for block in range(1, count + 1)
        ),
        "predictions",
    ],
    sequential: ["first", "second", "logits"],
    shared_activation_and_operations: ["stem", "block", "logits"],
    shared_layer: ["before", "twice", "after"],
    numbered_residual: ["dense_0", "dense_2", "dense_4"],
    dotted: ["a", "pool", "b"],
    dotted_repeated: ["a.first", "b.second", "a.third"],
    only_vectors: ["norm_first"],
}


def randomize(model, seed=0):
    """Moves every weight off 0 and 1, keeping the activations' size."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        fan_in = np.prod(variable.shape[:-1])
        noise = 0.1 * np.abs(rng.normal(size=variable.shape))
        if variable.name == "kernel":
            noise = rng.normal(size=variable.shape) / np.sqrt(fan_in)
        variable.assign(0.5 * (variable.numpy() + noise))


def inputs_for(model, seed=0):
    rng = np.random.default_rng(seed)
    shape = (2, *model.input_shape[1:])
    return tf.constant(rng.normal(size=shape), tf.float32)


def applied_in_turn(chain, x, **kwargs):
    for module in chain:
        x = module.model(x, **kwargs)
    return x


@pytest.mark.parametrize(
    "build", [*NAMES, keras_mobilenet], ids=lambda build: build.__name__
)
def test_modules_in_turn_are_the_model(build):
    model = build()
    randomize(model)
    chain = models.module_chain(model)
    x = inputs_for(model)
    expected = model(x).numpy()
    assert np.isfinite(expected).all() and np.std(expected) > 0
    np.testing.assert_array_equal(applied_in_turn(chain, x), expected)
    # Each variable, the very same object, belongs to exactly one module.
    variables = [id(v) for module in chain for v in module.variables]
    assert len(variables) == len(set(variables))
    assert set(variables) == {id(v) for v in model.weights}
    trainable = [id(v) for m in chain for v in m.trainable_variables]
    assert set(trainable) == {id(v) for v in model.trainable_weights}
    assert len({module.name for module in chain}) == len(chain)


@pytest.mark.parametrize(
    ("build", "names"), NAMES.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_module_names(build, names):
    assert [m.name for m in models.module_chain(build())] == names


def test_mobilenet_residual_blocks_stay_whole():
    names = [m.name for m in models.module_chain(keras_mobilenet())]
    assert names[0] == "Conv1" and names[-1] == "predictions"
    # Those with an identity shortcut; the others are plain chains of layers.
    for block in (2, 4, 5, 7, 8, 9, 11, 12, 14, 15):
        assert f"block_{block}" in names


def test_bit_for_bit_in_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_fixup()
    finally:
        keras.config.set_dtype_policy(before)
    randomize(model)
    x = inputs_for(model)
    found = applied_in_turn(models.module_chain(model), x)
    np.testing.assert_array_equal(found, model(x))


def test_training_mode_updates_the_one_set_of_batch_statistics():
    model = shared_activation_and_operations()
    x = inputs_for(model)
    statistics = model.get_layer("stem_bn").moving_mean
    batch = model.get_layer("stem_conv")(x).numpy()
    chain = models.module_chain(model)
    applied_in_turn(chain, x, training=True)
    # Keras: moving = 0.99 * moving + 0.01 * batch mean, from 0.
    np.testing.assert_allclose(
        statistics.numpy(), 0.01 * batch.mean((0, 1, 2)), rtol=1e-5
    )


@pytest.mark.parametrize(
    "build", [small_fixup, shared_activation_and_operations, sequential]
)
def test_the_model_is_left_intact(build, tmp_path):
    model = build()
    randomize(model)
    x = inputs_for(model)
    expected = model(x).numpy()
    config = model.to_json()
    first = models.module_chain(model)
    second = models.module_chain(model)
    assert [m.name for m in first] == [m.name for m in second]
    np.testing.assert_array_equal(applied_in_turn(second, x), expected)
    np.testing.assert_array_equal(model(x), expected)
    assert model.to_json() == config

    rebuilt = keras.models.model_from_json(model.to_json())
    rebuilt.set_weights(model.get_weights())
    np.testing.assert_array_equal(rebuilt(x), expected)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(x), expected)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), expected)
    chain = models.module_chain(loaded)
    assert [m.name for m in chain] == [m.name for m in first]

    # A checkpoint written after cutting fits a model that was never cut.
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    fresh = build()
    status = tf.train.Checkpoint(model=fresh).restore(path)
    status.assert_existing_objects_matched()
    np.testing.assert_array_equal(fresh(x), expected)


def test_a_module_can_be_cut_again():
    stages = models.module_chain(
        fixup50(), {"stem": "conv1.relu", "rest": "fc.dense"}
    )
    names = [m.name for m in models.module_chain(stages[1].model)]
    assert names == ["conv1", *BLOCKS50, "fc"]


def test_boundaries_of_ones_own():
    model = small_fixup()
    randomize(model)
    chain = models.module_chain(
        model,
        {"stem": "conv1.bias", "body": "layer3.0.relu", "head": "fc.dense"},
    )
    assert [m.name for m in chain] == ["stem", "body", "head"]
    assert [v.path for v in chain[0].variables] == [
        "conv1.conv/kernel",
        "conv1.bias/bias",
    ]
    x = inputs_for(model)
    np.testing.assert_array_equal(applied_in_turn(chain, x), model(x))


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        (
            {"a": "layer1.0.conv2", "b": "fc.dense"},
            "'layer1.0.conv2'.*'conv1.relu' or 'layer1.0.add'",
        ),
        ({"a": "layer9", "b": "fc.dense"}, "no layer .* 'layer9'"),
        ({"a": "conv1.relu"}, "last layer, 'fc.dense'"),
        (
            {"a": "fc.pool", "b": "conv1.relu", "c": "fc.dense"},
            "order of computation",
        ),
    ],
)
def test_unusable_boundaries(boundaries, message):
    with pytest.raises(UserError, match=message):
        models.module_chain(small_fixup(), boundaries)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_models_that_are_no_chain():
    subclassed = Subclassed()
    subclassed(np.zeros((1, 3)))
    unbuilt = keras.Sequential([layers.Dense(2)])
    for model in (subclassed, unbuilt, layers.Dense(2), None):
        with pytest.raises(UserError, match="Only a functional Keras model"):
            models.module_chain(model)
    a, b = keras.Input((3,)), keras.Input((3,))
    two_inputs = keras.Model([a, b], layers.Dense(2)(a + b))
    with pytest.raises(UserError, match="2 inputs and 1 outputs"):
        models.module_chain(two_inputs)
    two_outputs = keras.Model(a, [layers.Dense(2)(a), layers.Dense(3)(a)])
    with pytest.raises(UserError, match="1 inputs and 2 outputs"):
        models.module_chain(two_outputs)
    with pytest.raises(UserError, match="has no weights"):
        models.module_chain(keras.Model(a, layers.ReLU()(a)))


def test_group():
    names = ["conv1", "layer1.0", "layer4.12", "fc"]
    assert [models.group(name) for name in names] == [
        "conv1",
        "layer1",
        "layer4",
        "fc",
    ]


def test_head():
    assert models.head(small_fixup()).name == "fc.dense"
    assert models.head(keras_resnet50()).name == "predictions"
    whole = sequential()
    wrapped = keras.Sequential(
        [keras.Input((12, 12, 1)), whole, layers.Softmax()]
    )
    assert models.head(wrapped) is whole.get_layer("logits")
