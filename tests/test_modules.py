import gin
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
    shape = (2, *(size or 32 for size in model.input_shape[1:]))
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


# --- Families of networks ----------------------------------------------------


def application(name, size=32, **options):
    def build():
        factory = getattr(keras.applications, name)
        return factory(
            weights=None, input_shape=(size, size, 3), classes=4, **options
        )

    return build


def base_as_layer():
    """Keras' idiom for transfer, with augmentation and preprocessing inside."""
    base = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), include_top=False, alpha=0.35
    )
    base.trainable = False
    x = images = keras.Input((32, 32, 3))
    x = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])(x)
    x = layers.Rescaling(1 / 127.5, -1)(x)
    x = base(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(images, layers.Dense(4, name="predictions")(x))


class Position(layers.Layer):
    """Adds what it learns for each position, after a token of its own."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")
        self.position = self.add_weight(
            shape=(1, shape[1] + 1, shape[-1]), name="position"
        )

    def call(self, x):
        token = keras.ops.broadcast_to(
            self.token, (keras.ops.shape(x)[0], 1, x.shape[-1])
        )
        return keras.ops.concatenate([token, x], axis=1) + self.position

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 1, shape[2])


def functional_vit():
    """Written by hand, names left to Keras."""
    x = images = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 4, strides=4)(x)
    x = Position()(layers.Reshape((16, 8))(x))
    for _ in range(3):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(y, y)])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(16, activation="gelu")(y)
        y = layers.Dropout(0.1)(layers.Dense(8)(y))
        x = x + y
    x = layers.LayerNormalization()(x)[:, 0]
    return keras.Model(images, layers.Dense(4, name="head")(x))


def hub_vit():
    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=3,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )
    return hub.models.ViTImageClassifier(backbone, num_classes=4)


def hub_resnet():
    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[8],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 2],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block",
        image_shape=(32, 32, 3),
    )
    return hub.models.ResNetImageClassifier(backbone, num_classes=4)


RESNET_BLOCKS = [
    f"conv{stage}_block{block}"
    for stage, count in enumerate((3, 4, 6, 3), start=2)
    for block in range(1, count + 1)
]
MOBILENET_BLOCKS = [
    "Conv1",
    "expanded_conv_depthwise",
    "expanded_conv_project",
    *(f"block_{block}" for block in range(1, 17)),
    "Conv_1",
]
FAMILIES = {
    # A block's name stands for what its layers before the fork are, too.
    "ResNet50V2": (
        application("ResNet50V2"),
        ["conv1_conv", *RESNET_BLOCKS, "predictions"],
    ),
    "MobileNetV2": (
        application("MobileNetV2", alpha=0.35),
        [*MOBILENET_BLOCKS, "predictions"],
    ),
    "MobileNetV2 as a layer": (
        base_as_layer,
        [*MOBILENET_BLOCKS, "predictions"],
    ),
    "EfficientNetB0": (
        application("EfficientNetB0"),
        [
            "stem",
            *(
                f"block{stage}{block}"
                for stage, blocks in enumerate(
                    ("a", "ab", "ab", "abc", "abc", "abcd", "a"), start=1
                )
                for block in blocks
            ),
            "top",
            "predictions",
        ],
    ),
    # Between its four stages lie three layers that halve the images.
    "ConvNeXtTiny": (
        application("ConvNeXtTiny"),
        1 + 18 + 3 + 1,
    ),
    "DenseNet121": (
        application("DenseNet121"),
        ["conv1", "conv2", "conv3", "conv4", "conv5", "predictions"],
    ),
    # Five convolutions, mixed0 to mixed10, the head.
    "InceptionV3": (application("InceptionV3", 75), 5 + 11 + 1),
    "VGG16": (application("VGG16"), 16),
    "ViT by hand": (functional_vit, 1 + 3 + 1),
    "KerasHub ViT": (
        hub_vit,
        [
            "vit_patching_and_embedding",
            "transformer_block_1",
            "transformer_block_2",
            "transformer_block_3",
            "predictions",
        ],
    ),
    "KerasHub ResNet": (hub_resnet, 1 + 3 + 1),
}


def check_chain(model, chain):
    """Modules in turn are the model, each variable is in exactly one."""
    x = inputs_for(model)
    expected = model(x, training=False).numpy()
    assert np.isfinite(expected).all() and np.std(expected) > 0
    found = applied_in_turn(chain, x, training=False)
    np.testing.assert_array_equal(found, expected)
    variables = [id(v) for module in chain for v in module.variables]
    assert len(variables) == len(set(variables))
    assert set(variables) == {id(v) for v in model.weights}
    trainable = [id(v) for m in chain for v in m.trainable_variables]
    assert set(trainable) == {id(v) for v in model.trainable_weights}
    assert len({module.name for module in chain}) == len(chain)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=pytest.mark.long)
        if family in ("DenseNet121", "InceptionV3", "ConvNeXtTiny", "VGG16")
        else family
        for family in FAMILIES
    ],
)
def test_families(family):
    build, expected = FAMILIES[family]
    model = models.logits_model(build())
    randomize(model)
    chain = models.module_chain(model)
    names = [module.name for module in chain]
    assert names == expected or len(names) == expected
    check_chain(model, chain)


def test_resnet152_keeps_its_blocks():
    blocks = 3 + 8 + 36 + 3
    model = models.fixup_resnet(4, (8, 8, 1), (2, 2, 2, 2), (3, 8, 36, 3))
    assert len(models.module_chain(model)) == blocks + 2


@pytest.mark.parametrize(("blocks", "count"), [(54, 56), (55, 3)])
def test_more_blocks_than_can_be_told_apart_become_stages(blocks, count):
    x = inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(2, 3, strides=2, padding="same", name="stem")(x)
    for block in range(blocks):
        if block == 20:
            x = layers.MaxPooling2D()(x)
        y = layers.Conv2D(2, 1, name=f"block{block}_conv")(x)
        x = x + layers.BatchNormalization(name=f"block{block}_bn")(y)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    chain = models.module_chain(model)
    assert len(chain) == count
    assert chain[-1].name == "head"


# --- Layers that are looked into ---------------------------------------------


class Block(layers.Layer):
    """A residual block whose layers are in a list."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.layers = [
            layers.Dense(2 * width, "relu"),
            layers.BatchNormalization(),
            layers.Dense(width),
            layers.Dropout(0.5),
        ]

    def build(self, shape):
        x = keras.KerasTensor(shape)
        for layer in self.layers:
            layer.build(x.shape)
            x = keras.KerasTensor(layer.compute_output_shape(x.shape))

    def call(self, x, training=None):
        y = x
        for layer in self.layers[:-1]:
            y = layer(y)
        return x + self.layers[-1](y, training=training)


class Tower(layers.Layer):
    """Blocks in lists, dicts and tuples, as people write them."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        blocks = [Block(4, name=f"block_{i}") for i in range(3)]
        if kind is dict:
            self.blocks = {str(i): block for i, block in enumerate(blocks)}
        elif kind is list:
            self.blocks = [blocks[:1], blocks[1:]]
        else:
            self.blocks = kind(blocks)

    def __iter__(self):
        values = self.blocks
        values = list(values.values()) if hasattr(values, "values") else values
        for value in values:
            yield from value if isinstance(value, list) else [value]

    def build(self, shape):
        for block in self:
            block.build(shape)

    def call(self, x):
        for block in self:
            x = block(x)
        return keras.ops.relu(x)


def with_layer(*middle):
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, name="stem"),
            *middle,
            layers.Dense(3, name="head"),
        ]
    )


@pytest.mark.parametrize("kind", [list, dict, tuple])
def test_blocks_in_lists(kind):
    model = with_layer(Tower(kind))
    randomize(model)
    chain = models.module_chain(model)
    names = ["stem", "block_0", "block_1", "block_2", "head"]
    assert [module.name for module in chain] == names
    check_chain(model, chain)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_blocks_in_lists_in_training_and_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = with_layer(Tower(list))
    randomize(model)
    chain = models.module_chain(model)
    check_chain(model, chain)
    x = inputs_for(model)
    statistics = [w for w in model.weights if w.name == "moving_mean"]
    before = [w.numpy() for w in statistics]

    def seed():
        weights = {id(weight) for weight in model.weights}
        for variable in model.variables:
            if id(variable) not in weights:
                variable.assign([1, 2])

    seed()
    expected = model(x, training=True)
    after = [w.numpy() for w in statistics]
    for weight, value in zip(statistics, before, strict=True):
        weight.assign(value)
    seed()
    found = applied_in_turn(chain, x, training=True)
    # Dropout drew the same, batch statistics moved alike.
    np.testing.assert_array_equal(found, expected)
    assert len(statistics) == 3
    for weight, value in zip(statistics, after, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


class Pair(layers.Layer):
    """Two Dense layers in a list; what `call` does with them differs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pair = [layers.Dense(4, name=f"pair_{i}") for i in (0, 1)]

    def build(self, shape):
        for layer in self.pair:
            layer.build(shape)

    def call(self, x):
        return self.pair[1](self.pair[0](x))


class WithWeight(Pair):
    def build(self, shape):
        super().build(shape)
        self.gain = self.add_weight(shape=(4,), name="gain")

    def call(self, x):
        return super().call(x) * self.gain


class InTrainingOnly(Pair):
    def call(self, x, training=None):
        x = super().call(x)
        return 2 * x if training else x


class WithNoise(Pair):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x):
        noise = keras.random.uniform((4,), seed=self.seed)
        return super().call(x) + 0 * noise


class Tied(Pair):
    def call(self, x):
        x = super().call(x)
        return keras.ops.matmul(x, keras.ops.transpose(self.pair[0].kernel))


class OfTensorFlow(Pair):
    def call(self, x):
        return tf.nn.relu(super().call(x))


class OfBatchSize(Pair):
    def call(self, x):
        x = keras.ops.reshape(x, (keras.ops.shape(x)[0], 2, 2))
        return super().call(keras.ops.reshape(x, (-1, 4)))


class PlusLoss(Pair):
    def call(self, x):
        self.add_loss(keras.ops.sum(x))
        return super().call(x)


@pytest.mark.parametrize(
    "kind",
    [
        WithWeight,
        InTrainingOnly,
        WithNoise,
        Tied,
        OfTensorFlow,
        PlusLoss,
    ],
)
def test_layers_that_calls_do_not_describe_stay_whole(kind):
    model = with_layer(kind(name="whole"))
    chain = models.module_chain(model)
    assert [module.name for module in chain] == ["stem", "whole", "head"]
    # Also with weights that it had not when the chain was cut.
    randomize(model)
    x = inputs_for(model)
    for training in (False, True):
        np.testing.assert_array_equal(
            applied_in_turn(chain, x, training=training),
            model(x, training=training),
        )
    check_chain(model, chain)


def test_a_layer_that_asks_for_the_batch_size():
    model = with_layer(OfBatchSize())
    randomize(model)
    check_chain(model, models.module_chain(model))


# --- Models as layers --------------------------------------------------------


def dense_block(name=None):
    x = inputs = keras.Input((4,))
    y = layers.Dense(4, "relu", name="first")(x)
    return keras.Model(inputs, x + layers.Dense(4, name="second")(y), name=name)


def test_a_model_called_twice_is_one_module():
    block = dense_block()
    x = inputs = keras.Input((4,))
    x = block(layers.Dense(4, name="before")(x))
    x = block(layers.Dense(4, name="between")(x))
    model = keras.Model(inputs, layers.Dense(2, name="after")(x))
    randomize(model)
    chain = models.module_chain(model)
    assert len(chain) == 3
    assert [m.name for m in chain][::2] == ["before", "after"]
    check_chain(model, chain)


def test_layers_of_one_name_in_several_models():
    x = inputs = keras.Input((4,))
    x = dense_block("one")(x)
    # In one module: side by side.
    x = layers.Add()([dense_block("left")(x), dense_block("right")(x)])
    x = keras.models.clone_model(dense_block("other"))(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    randomize(model)
    chain = models.module_chain(model)
    names = [module.name for module in chain]
    assert len(names) == 4
    assert [names[0], names[2], names[3]] == ["one", "other", "head"]
    check_chain(model, chain)


def test_a_model_that_is_called_with_images_of_another_size_and_precision():
    x = inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, name="conv_first")(x + 0.1)
    inner = keras.Model(inputs, layers.Conv2D(4, 3, name="conv_second")(x))
    x = images = keras.Input((12, 12, 3))
    x = keras.ops.cast(x, "bfloat16")
    x = layers.Flatten()(inner(x))
    model = keras.Model(images, layers.Dense(2, name="head")(x))
    randomize(model)
    chain = models.module_chain(model)
    assert chain[0].model.output_shape == (None, 10, 10, 4)
    check_chain(model, chain)


def test_a_model_that_always_trains_stays_whole():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), layers.Dropout(0.5, seed=1)]
    )
    x = inputs = keras.Input((4,))
    x = inner(layers.Dense(4, name="stem")(x), training=True)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    chain = models.module_chain(model)
    assert [m.name for m in chain] == ["stem", inner.name, "head"]
    dropped = applied_in_turn(chain, np.ones((500, 4), "float32")).numpy()
    assert np.std(dropped[:, 0]) > 0


def test_of_a_model_of_two_replicas():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = with_layer(Tower(list))
    randomize(model)
    chain = models.module_chain(model)
    assert len(chain) == 5
    x = inputs_for(model)

    @tf.function
    def step():
        return strategy.run(lambda: applied_in_turn(chain, x, training=False))

    for found in strategy.experimental_local_results(step()):
        np.testing.assert_allclose(found, model(x), rtol=1e-5)


def test_a_model_as_a_layer_is_left_intact(tmp_path):
    model = base_as_layer()
    config = model.to_json()
    models.module_chain(model)
    models.module_chain(models.logits_model(model))
    assert model.to_json() == config
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = inputs_for(model)
    np.testing.assert_array_equal(
        loaded(x, training=False), model(x, training=False)
    )
    names = [m.name for m in models.module_chain(model)]
    assert [m.name for m in models.module_chain(loaded)] == names


# --- Boundaries, groups, the head --------------------------------------------


def test_boundaries_inside_models_and_at_their_ends():
    model = base_as_layer()
    base = next(
        x for x in model.layers if isinstance(x, keras.Model) and x.weights
    )
    chain = models.module_chain(
        model, {"a": "block_3_project_BN", "b": base.name, "c": "predictions"}
    )
    assert [m.name for m in chain] == ["a", "b", "c"]
    assert chain[1].model.output_shape == base.output_shape
    check_chain(model, chain)


def test_boundaries_from_gin():
    with gin.unlock_config():
        gin.parse_config(
            "module_chain.boundaries = "
            "{'stem': 'conv1.relu', 'rest': 'fc.dense'}"
        )
    chain = models.module_chain(small_fixup())
    assert [m.name for m in chain] == ["stem", "rest"]


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


def test_head_of_nested_models_and_of_logits():
    assert models.head(base_as_layer()).name == "predictions"
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "softmax", name="logits")]
    )
    model = with_layer(keras.Sequential([keras.Input((4,)), inner]))
    model.pop()
    head = inner.get_layer("logits")
    assert models.head(model) is head
    assert models.head(models.logits_model(model)) is head
