import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import models
from keras_transfer.errors import UserError

layers = keras.layers


def randomize(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.uniform(0.1, 1.0, variable.shape))
    return model


def values(model):
    return {v.path: v.numpy().copy() for v in model.weights}


def batch_norm_network(num_classes, width=6):
    """Automatically named layers: the names differ from build to build."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(width, 3),
            layers.Flatten(),
            layers.Dense(num_classes),
        ]
    )


def test_everything_but_the_head_is_copied():
    source = randomize(models.fixup_resnet(10, (16, 16, 1)), seed=1)
    model = models.fixup_resnet(3, (16, 16, 1), seed=5)
    before, expected = values(model), values(source)
    models.initialize_from(model, source)
    after = values(model)
    head = {"fc.dense/kernel", "fc.dense/bias"}
    for path in after:
        np.testing.assert_array_equal(
            after[path], (before if path in head else expected)[path]
        )
    for path, value in values(source).items():
        np.testing.assert_array_equal(value, expected[path])
    # The features, hence all that the head sees, are the source's.
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 1))
    features = [
        keras.Model(m.input, m.get_layer("fc.bias").output)(images)
        for m in (model, source)
    ]
    np.testing.assert_array_equal(*features)


def test_automatic_names_and_batch_statistics():
    source = randomize(batch_norm_network(10), seed=1)
    model = batch_norm_network(4)
    assert {w.path for w in model.weights} != {w.path for w in source.weights}
    fresh = [w.numpy().copy() for w in model.layers[-1].weights]
    models.initialize_from(model, source)
    for layer, found in zip(model.layers[:-1], source.layers[:-1], strict=True):
        assert len(layer.weights) == len(found.weights)
        for a, b in zip(layer.weights, found.weights, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
    np.testing.assert_array_equal(
        model.layers[1].moving_variance, source.layers[1].moving_variance
    )
    for a, b in zip(model.layers[-1].weights, fresh, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)


def test_named_layers_are_matched_by_name():
    """Two parallel branches of one shape, built in either order."""

    def build(branches):
        x = keras.Input((4,))
        outputs = [layers.Dense(4, name=name)(x) for name in branches]
        return keras.Model(x, layers.Dense(2, name="head")(sum(outputs)))

    source = randomize(build(["left", "right"]), seed=1)
    model = build(["right", "left"])
    models.initialize_from(model, source)
    for name in ("left", "right"):
        np.testing.assert_array_equal(
            model.get_layer(name).kernel, source.get_layer(name).kernel
        )


def test_a_model_used_as_a_layer_is_copied_inside():
    def build():
        backbone = batch_norm_network(5)
        return keras.Sequential([backbone, layers.Dense(3)])

    source = randomize(build(), seed=1)
    source.build((None, 8, 8, 1))
    model = build()
    model.build((None, 8, 8, 1))
    models.initialize_from(model, source)
    for a, b in zip(model.weights[:-2], source.weights[:-2], strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert not np.any(model.weights[-2].numpy() == source.weights[-2].numpy())


def convnext(num_classes, channels=3):
    """Small, of the layers that Keras' own factory makes and names."""
    x = images = keras.Input((16, 16, channels))
    x = keras.Sequential(
        [layers.Conv2D(4, 4, strides=4), layers.LayerNormalization()]
    )(x)
    for _ in range(2):
        y = layers.Conv2D(4, 7, padding="same", groups=4)(x)
        y = layers.Dense(8, activation="gelu")(layers.LayerNormalization()(y))
        y = LayerScale()(layers.Dense(4)(y))
        x = x + y
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(num_classes, "softmax")(x))


class LayerScale(layers.Layer):
    """Its weight has no name: Keras numbers it."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x):
        return x * self.gamma


class Tower(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [layers.Dense(4), layers.BatchNormalization()]

    def build(self, shape):
        for block in self.blocks:
            block.build(shape)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def blocks_in_a_list(num_classes):
    return keras.Sequential(
        [keras.Input((4,)), Tower(), layers.Dense(num_classes)]
    )


def base_as_layer(num_classes):
    base = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), include_top=False, alpha=0.35
    )
    base.trainable = False
    x = images = keras.Input((32, 32, 3))
    x = layers.Normalization()(x)
    x = layers.GlobalAveragePooling2D()(base(x, training=False))
    x = layers.Dropout(0.2)(x)
    return keras.Model(images, layers.Dense(num_classes)(x))


def hub_vit(num_classes):
    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )
    return hub.models.ViTImageClassifier(backbone, num_classes=num_classes)


@pytest.mark.parametrize(
    "build",
    [batch_norm_network, convnext, blocks_in_a_list, base_as_layer, hub_vit],
)
def test_two_models_of_one_factory(build):
    """Names differ: Keras goes on counting from the first to the second."""
    source, model = randomize(build(5), seed=1), build(3)
    paths = [[w.path for w in m.weights] for m in (model, source)]
    # KerasHub names all of its layers.
    assert (paths[0] == paths[1]) == (build is hub_vit)
    head = [w.numpy().copy() for w in model.weights[-2:]]
    models.initialize_from(model, source)
    for ours, theirs in zip(
        model.weights[:-2], source.weights[:-2], strict=True
    ):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    for ours, before in zip(model.weights[-2:], head, strict=True):
        np.testing.assert_array_equal(ours.numpy(), before)


def test_convnext_of_its_own_factory():
    def build(classes):
        return keras.applications.ConvNeXtTiny(
            weights=None, input_shape=(32, 32, 3), classes=classes
        )

    source, model = build(5), build(3)
    models.initialize_from(model, source)
    for ours, theirs in zip(
        model.weights[:-2], source.weights[:-2], strict=True
    ):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_images_of_other_channels_are_a_sentence():
    model = convnext(3)
    before = model.get_weights()
    with pytest.raises(
        UserError, match=r"\(4, 4, 3, 4\).*Received: .*\(4, 4, 2, 4\)"
    ):
        models.initialize_from(model, randomize(convnext(3, 2), seed=1))
    for ours, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(("ours", "theirs"), [(1, 3), (3, 1), (4, 1)])
def test_gray_and_colour(ours, theirs):
    """On gray images, given as either, outputs are the source's."""

    def features(channels):
        net = models.fixup_resnet(5, (16, 16, channels))
        return net, keras.Model(net.input, net.get_layer("fc.bias").output)

    source, expected = features(theirs)
    model, found = features(ours)
    report = models.initialize_from(model, randomize(source, seed=1))
    gray = np.random.default_rng(0).normal(size=(2, 16, 16, 1))
    np.testing.assert_allclose(
        found(np.repeat(gray, ours, -1)),
        expected(np.repeat(gray, theirs, -1)),
        rtol=1e-5,
    )
    assert list(report.reshaped) == ["conv1.conv/kernel"]


def test_source_of_reversed_colours():
    """On RGB images outputs are those of the source on BGR images."""
    source, model = (models.fixup_resnet(5, (16, 16, 3)) for _ in range(2))
    report = models.initialize_from(
        model, randomize(source, seed=1), head=(), channels="bgr"
    )
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    np.testing.assert_allclose(
        model(images), source(images[..., ::-1]), rtol=1e-5
    )
    assert list(report.reshaped) == ["conv1.conv/kernel"]


def test_gray_images_have_no_colours_to_reverse():
    source, model = (models.fixup_resnet(5, (16, 16, 1)) for _ in range(2))
    before = model.get_weights()
    with pytest.raises(UserError, match="sees colours here and in the source"):
        models.initialize_from(model, randomize(source, seed=1), channels="bgr")
    for ours, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_what_was_copied_is_told():
    source = models.fixup_resnet(10, (16, 16, 1))
    model = models.fixup_resnet(3, (16, 16, 1))
    report = models.initialize_from(model, source)
    assert report.fresh == ("fc.dense/kernel", "fc.dense/bias")
    assert set(report.copied) == {w.path for w in model.weights[:-2]}
    assert report.unused == report.fresh
    assert not report.reshaped
    count = len(model.weights)
    assert str(report) == (
        f"{count - 2} of {count} weights are those of model 'fixup_resnet'; "
        "fresh: 'fc.dense/kernel', 'fc.dense/bias'; "
        "unused: 'fc.dense/kernel', 'fc.dense/bias'."
    )


def plain(*ending):
    """Ten named convolutions, and how it ends."""
    x = images = keras.Input((8, 8, 3))
    for i in range(10):
        x = layers.Conv2D(4, 3, padding="same", name=f"conv_{i}_a")(x)
    for layer in ending:
        x = layer(x)
    return randomize(keras.Model(images, x), seed=len(ending))


def dense_head(classes):
    return layers.GlobalAveragePooling2D(), layers.Dense(classes, name="out")


def test_a_backbone_takes_all():
    """Also one that ends in a convolution, which is no head."""
    source, model = plain(*dense_head(3)), plain()
    report = models.initialize_from(model, source)
    assert not report.fresh
    for ours, theirs in zip(model.weights, source.weights, strict=False):
        np.testing.assert_array_equal(ours, theirs)


def test_from_a_backbone():
    source, model = plain(), plain(*dense_head(3))
    report = models.initialize_from(model, source)
    assert report.fresh == ("out/kernel", "out/bias")
    np.testing.assert_array_equal(model.weights[-3], source.weights[-1])


def test_a_head_of_two_layers_is_named():
    def two(classes):
        pool, out = dense_head(classes)
        return plain(pool, layers.Dense(4, name="hidden"), out)

    source, model = randomize(two(5), seed=7), two(3)
    assert len(models.initialize_from(model, source).fresh) == 2
    report = models.initialize_from(model, source, head=("hidden", "out"))
    assert len(report.fresh) == 4
    with pytest.raises(UserError, match=r"no layer to be its head.*'outt'"):
        models.initialize_from(model, source, head="outt")


def test_a_convolution_of_one_pixel_is_a_head():
    def build(classes):
        return plain(
            layers.Conv2D(classes, 1, name="out"),
            layers.GlobalAveragePooling2D(),
        )

    report = models.initialize_from(build(3), build(5))
    assert report.fresh == ("out/kernel", "out/bias")


def test_into_a_model_of_a_strategy():
    source = randomize(models.fixup_resnet(10, (16, 16, 1)), seed=1)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = models.fixup_resnet(3, (16, 16, 1))
    models.initialize_from(model, source)
    np.testing.assert_array_equal(
        model.get_layer("layer2.0.conv2").kernel.numpy(),
        source.get_layer("layer2.0.conv2").kernel.numpy(),
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            lambda: models.fixup_resnet(10, (16, 16, 3), (8, 16, 32)),
            r"Expected layer 'conv1.conv' .*\(3, 3, 1, 16\).*"
            r"Received: .*\(3, 3, 3, 8\)",
        ),
        (
            lambda: models.fixup_resnet(10, (16, 16, 1), (16, 32, 64), 2),
            "'layer2.0.conv1' .*Received: layer 'layer1.1.conv1'",
        ),
        (
            lambda: models.fixup_resnet(10, (16, 16, 1), (16, 32)),
            "Expected layer 'layer3.0.conv1' .*Received: no further layer",
        ),
        (
            lambda: batch_norm_network(10),
            "Expected layer 'conv1.conv'.*Received: ",
        ),
    ],
)
def test_another_architecture_changes_nothing(source, message):
    model = models.fixup_resnet(10, (16, 16, 1))
    before = values(model)
    with pytest.raises(UserError, match=message):
        models.initialize_from(model, randomize(source(), seed=1))
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_source_must_be_a_functional_model():
    model = models.fixup_resnet(10, (16, 16, 1))
    with pytest.raises(UserError, match="functional Keras model"):
        models.initialize_from(model, None)
