import keras
import numpy as np
import pytest

from keras_transfer import models
from keras_transfer.errors import UserError

layers = keras.layers


class Tower(layers.Layer):
    """Blocks in a list, in a dict of lists, and in a tuple."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [layers.Dense(4, activation="relu") for _ in range(2)]
        self.more = {"norms": [layers.BatchNormalization()]}
        self.last = (layers.Dense(4), layers.Dropout(0.5))

    def build(self, shape):
        for layer in (*self.blocks, *self.more["norms"], self.last[0]):
            layer.build(shape)

    def call(self, x):
        for layer in (*self.blocks, *self.more["norms"], *self.last):
            x = layer(x)
        return x


def tower():
    return keras.Sequential([keras.Input((4,)), Tower(), layers.Dense(2)])


def every_kind():
    """Normalization, statistics, random states, a model as a layer."""
    inner = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
        ]
    )
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Normalization(),
            layers.RandomFlip(),
            inner,
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )


def vit():
    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
        dropout_rate=0.1,
    )
    return hub.models.ViTImageClassifier(backbone, num_classes=3)


def randomized(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        value = rng.uniform(0.5, 1.5, variable.shape)
        if "float" not in variable.dtype:
            value = rng.integers(1, 100, variable.shape)
        variable.assign(value)
    return model


BUILDERS = pytest.mark.parametrize("build", [tower, every_kind, vit])


@BUILDERS
def test_everything_is_read_and_given(build):
    source, model = randomized(build(), 1), randomized(build(), 2)
    named = models.named_weights(source)
    assert len(named) == len(source.variables)
    for value, variable in zip(named.values(), source.variables, strict=True):
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(value, variable.numpy())
    # Names that Keras numbered differ from one build to the next.
    assert named.keys() != models.named_weights(model).keys()
    models.assign_weights(model, named)
    for ours, theirs in zip(model.variables, source.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    x = np.random.default_rng(3).normal(size=(2, *model.input_shape[1:]))
    np.testing.assert_array_equal(model(x), source(x))


def named_dense(names):
    return keras.Sequential(
        [keras.Input((4,)), *(layers.Dense(4, name=name) for name in names)],
        name="chain",
    )


def test_by_path_where_the_paths_are_the_same():
    source = randomized(named_dense(["a", "b"]), 1)
    model = named_dense(["b", "a"])
    models.assign_weights(model, models.named_weights(source))
    for name in ("a", "b"):
        np.testing.assert_array_equal(
            model.get_layer(name).kernel, source.get_layer(name).kernel
        )


class Alike(layers.Layer):
    """Three layers of one name."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [layers.Dense(4, name="same") for _ in range(3)]

    def build(self, shape):
        for block in self.blocks:
            block.build(shape)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_a_path_that_occurs_again_gets_a_number():
    model = keras.Sequential([keras.Input((4,)), Alike(name="it")], name="all")
    named = models.named_weights(randomized(model, 1))
    paths = ["all/it/same/kernel", "all/it/same/bias"]
    assert list(named) == [
        path + again for again in ("", "#2", "#3") for path in paths
    ]
    np.testing.assert_array_equal(
        named["all/it/same/kernel#3"], model.layers[0].blocks[2].kernel
    )
    before = model.get_weights()
    models.assign_weights(randomized(model, 2), named)
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            [4, 5],
            r"The file .*second/kernel' of shape \(4, 6\) here.*"
            r"Received: .*second/kernel' of shape \(4, 5\)",
        ),
        ([4, 6, 6], "nothing more here. Received: .*third/kernel'"),
        ([4], "second/kernel' .*Received: nothing more"),
    ],
)
def test_another_architecture_changes_nothing(sizes, message):
    def build(sizes):
        names = ["first", "second", "third"]
        return keras.Sequential(
            [keras.Input((4,))]
            + [
                layers.Dense(size, name=name)
                for size, name in zip(sizes, names, strict=False)
            ]
        )

    model = build([4, 6])
    before = model.get_weights()
    named = models.named_weights(randomized(build(sizes), 1))
    with pytest.raises(UserError, match=message):
        models.assign_weights(model, named, what="The file")
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_parameters_are_all_but_statistics_and_counters():
    model = every_kind()
    model.layers[2].trainable = False
    names = [
        weight.name
        for weight, is_one in zip(
            model.weights, models.parameters(model), strict=True
        )
        if is_one
    ]
    # Frozen ones, too; not mean, variance, count, moving_mean and _variance.
    assert names == ["kernel", "bias", "gamma", "beta", "kernel", "bias"]


def test_parameters_of_layers_held_in_lists():
    model = tower()
    flags = models.parameters(model)
    assert len(flags) == len(model.weights) == 4 + 4 + 2 + 2
    assert [
        weight.name
        for weight, is_one in zip(model.weights, flags, strict=True)
        if not is_one
    ] == ["moving_mean", "moving_variance"]
