import collections
import math

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch_fixup

from keras_transfer import models
from keras_transfer.errors import UserError

# depth: (blocks of each stage, convolutions of a block)
DEPTHS = {
    18: ((2, 2, 2, 2), 2),
    34: ((3, 4, 6, 3), 2),
    50: ((3, 4, 6, 3), 3),
    101: ((3, 4, 23, 3), 3),
    152: ((3, 8, 36, 3), 3),
}


def imagenet_factory(depth):
    return getattr(models, f"fixup_resnet{depth}")


@pytest.fixture
def dtype_policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


# --- Against the PyTorch network the models must be able to hold ------------


def randomize(model, seed):
    """Gives every variable a value of its own, nothing left at 0 or 1."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        shape = tuple(variable.shape)
        if variable.name == "kernel":
            value = rng.normal(size=shape) / math.sqrt(np.prod(shape[:-1]))
        elif variable.name == "scale":
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.3, shape)
        variable.assign(value)


def relative_difference(model, network, image_shape):
    """Largest difference of logits over the largest logit, same weights."""
    torch = pytest.importorskip("torch", reason="the reference is in PyTorch")
    randomize(model, seed=1)
    torch_fixup.copy_weights(model, network)
    images = np.random.default_rng(2).normal(size=(2, *image_shape))
    images = images.astype("float32")
    with torch.no_grad():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    found = model(images).numpy()
    assert np.std(expected) > 0
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("depth", "image_shape"),
    [
        (18, (224, 224, 3)),
        (50, (224, 224, 3)),
        # Odd sizes are where one-sided padding would shift the image.
        (34, (65, 48, 1)),
        (101, (33, 47, 3)),
        (152, (32, 32, 3)),
    ],
)
def test_logits_equal_those_of_the_pytorch_network(depth, image_shape):
    blocks, num_convs = DEPTHS[depth]
    network = torch_fixup.torch_network(
        "imagenet",
        image_shape[-1],
        (64, 128, 256, 512),
        blocks,
        num_convs,
        num_classes=7,
    )
    model = imagenet_factory(depth)(7, image_shape)
    difference = relative_difference(model, network, image_shape)
    print(f"ResNet-{depth} {image_shape}: relative difference {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.parametrize("image_shape", [(16, 16, 1), (27, 35, 3)])
def test_small_logits_equal_those_of_the_pytorch_network(image_shape):
    network = torch_fixup.torch_network(
        "small", image_shape[-1], (8, 12, 20), (1, 2, 1), 2, num_classes=10
    )
    model = models.fixup_resnet(10, image_shape, (8, 12, 20), (1, 2, 1))
    assert relative_difference(model, network, image_shape) < 1e-4


# --- Architecture -----------------------------------------------------------


def test_resnet50_has_the_published_number_of_parameters():
    model = models.fixup_resnet50(345)
    assert model.count_params() == 24_161_931
    assert len(model.non_trainable_variables) == 0


def test_small_network_shapes():
    model = models.fixup_resnet(10, (17, 20, 1), blocks_per_stage=2)
    assert model.output_shape == (None, 10)
    sizes = [
        model.get_layer(f"layer{stage}.1.relu").output.shape[1:]
        for stage in (1, 2, 3)
    ]
    assert sizes == [(17, 20, 16), (9, 10, 32), (5, 5, 64)]
    assert len({v.path for v in model.variables}) == len(model.variables)


def test_layer_names_give_the_module():
    model = models.fixup_resnet50(10, (32, 32, 3))
    modules = collections.Counter(
        layer.name.rpartition(".")[0] for layer in model.layers[1:]
    )
    blocks = [
        f"layer{s}.{b}"
        for s, count in enumerate(DEPTHS[50][0], start=1)
        for b in range(count)
    ]
    assert list(modules) == ["conv1", *blocks, "fc"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 0},
        {"num_classes": 2.5},
        {"input_shape": (28, 28)},
        {"input_shape": (28, None, 1)},
        {"input_shape": (0, 28, 1)},
        {"input_shape": 28},
        {"input_shape": (28, 3, 1)},
        {"widths": ()},
        {"widths": 16},
        {"widths": (16, -1, 64)},
        {"blocks_per_stage": 0},
        {"blocks_per_stage": (1, 2)},
    ],
)
def test_unusable_arguments_are_named(arguments):
    arguments = {"num_classes": 10, "input_shape": (28, 28, 1)} | arguments
    with pytest.raises(UserError, match="Received: "):
        models.fixup_resnet(**arguments)


def test_image_too_small_for_the_stages():
    with pytest.raises(UserError, match="at least 32 pixels"):
        models.fixup_resnet18(10, (31, 64, 3))
    with pytest.raises(UserError, match="at least 4 pixels"):
        models.fixup_resnet(10, (3, 28, 1))


# --- Initialization ---------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 50])
def test_initialization_statistics(depth):
    blocks, num_convs = DEPTHS[depth]
    gain = {2: sum(blocks) ** -0.5, 3: sum(blocks) ** -0.25}[num_convs]
    model = imagenet_factory(depth)(345, (32, 32, 3))
    seen = collections.Counter()
    for variable in model.variables:
        layer, kind = variable.path.split("/")
        value = variable.numpy()
        if layer in ("conv1.conv", "fc.dense"):
            fan_in = 7 * 7 * 3 if layer == "conv1.conv" else value.shape[0]
            if kind == "bias":
                fan_in = model.get_layer("fc.dense").kernel.shape[0]
            bound = 1 / math.sqrt(fan_in)
            assert np.abs(value).max() <= bound
            assert value.min() < -0.98 * bound < 0.98 * bound < value.max()
            # A uniform variable's mean square has relative error sqrt(4/5n).
            error = 5 * math.sqrt(0.8 / value.size)
            assert np.mean(value**2) == pytest.approx(bound**2 / 3, rel=error)
            seen["uniform"] += 1
        elif kind == "kernel" and layer.endswith(f".conv{num_convs}"):
            assert not value.any()
            seen["zero convolutions"] += 1
        elif kind == "kernel":
            height, width, _, filters = value.shape
            expected = math.sqrt(2 / (height * width * filters))
            if not layer.endswith("shortcut"):
                expected *= gain
            error = 5 / math.sqrt(2 * value.size)
            assert np.std(value) == pytest.approx(expected, rel=error)
            # Torch's normal is not truncated.
            assert np.abs(value).max() > 3 * expected
            seen["normal"] += 1
        else:
            assert value == pytest.approx(1.0 if kind == "scale" else 0.0)
            seen["scalars"] += 1
    shortcuts = 3 if depth == 18 else 4
    assert seen == {
        "uniform": 3,
        "zero convolutions": sum(blocks),
        "normal": sum(blocks) * (num_convs - 1) + shortcuts,
        "scalars": sum(blocks) * (2 * num_convs + 1) + 2,
    }


def test_initial_weights_depend_on_the_seed_alone():
    first = models.fixup_resnet(10, (16, 16, 1), seed=3)
    keras.utils.set_random_seed(99)
    models.fixup_resnet(5, (20, 20, 3), seed=3)
    again = models.fixup_resnet(10, (16, 16, 1), seed=3)
    other = models.fixup_resnet(10, (16, 16, 1), seed=4)
    drawn = 0
    for a, b, c in zip(
        first.variables, again.variables, other.variables, strict=True
    ):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        if np.unique(a.numpy()).size > 1:
            drawn += 1
            assert not np.any(a.numpy() == c.numpy())
    # Stem, a first convolution a block, two shortcuts, the head's two.
    assert drawn == 1 + 3 + 2 + 2


def test_layers_of_one_shape_start_apart():
    model = models.fixup_resnet(10, (16, 16, 1), (8, 8), 3)
    kernels = [
        model.get_layer(name).kernel.numpy().ravel()
        for name in ("layer1.1.conv1", "layer1.2.conv1", "layer2.1.conv1")
    ]
    assert np.abs(np.corrcoef(kernels) - np.eye(3)).max() < 0.2


# --- As a Keras model -------------------------------------------------------


def test_gin_binds_the_factories():
    with gin.unlock_config():
        gin.parse_config(
            "fixup_resnet.num_classes = 4\n"
            "fixup_resnet.input_shape = (16, 16, 1)\n"
            "fixup_resnet18.num_classes = 6\n"
        )
    try:
        assert models.fixup_resnet().output_shape == (None, 4)
        small = models.fixup_resnet18(input_shape=(32, 32, 3))
        assert small.output_shape == (None, 6)
    finally:
        gin.clear_config()


def test_saved_and_loaded_it_is_the_same_network(tmp_path):
    model = models.fixup_resnet(10, (16, 16, 1))
    randomize(model, seed=1)
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 1))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))
    rebuilt = keras.models.model_from_json(model.to_json())
    rebuilt.set_weights(model.get_weights())
    np.testing.assert_array_equal(rebuilt(images), model(images))


def test_mixed_precision_keeps_weights_and_logits_in_float32(dtype_policy):
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3))
    exact = models.fixup_resnet(10, (16, 16, 3))
    randomize(exact, seed=1)
    dtype_policy("mixed_bfloat16")
    model = models.fixup_resnet(10, (16, 16, 3))
    model.set_weights(exact.get_weights())
    logits = model(images)
    assert logits.dtype == tf.float32
    assert {v.dtype for v in model.variables} == {"float32"}
    assert model.get_layer("layer2.0.conv1").output.dtype == "bfloat16"
    # bfloat16 keeps 8 bits: 2^-8 a rounding, some ten in a row.
    expected = exact(images).numpy()
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("layer_class", ["ScalarBias", "ScalarScale"])
def test_scalar_gradient_in_mixed_precision(dtype_policy, layer_class):
    dtype_policy("mixed_bfloat16")
    layer = getattr(models, layer_class)()
    # A sum kept in bfloat16 would stop growing at 256.
    inputs = tf.ones((16, 64, 64, 16))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.cast(layer(inputs), tf.float32))
    (variable,) = layer.trainable_variables
    gradient = tape.gradient(total, variable.value)
    assert gradient.dtype == tf.float32
    assert gradient.numpy() == pytest.approx(inputs.shape.num_elements())
