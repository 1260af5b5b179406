import keras
import numpy as np
import pytest
import tensorflow as tf
import written_models

import keras_transfer as kt
from keras_transfer import models
from keras_transfer.analysis import spectrum as spectrum_module
from keras_transfer.analysis.spectrum import (
    Spectrum,
    conv_norm,
    conv_spectrum,
    matrix_spectrum,
    model_spectra,
)
from keras_transfer.errors import UserError

layers = keras.layers


def explicit_matrix(kernel, size, strides=(1, 1), dilation=(1, 1), groups=1):
    """The circular convolution's matrix, a sum over places of the kernel."""
    kh, kw, per_group, outputs = kernel.shape
    height, width = size
    inputs = per_group * groups
    rows, columns = height // strides[0], width // strides[1]
    matrix = np.zeros((rows, columns, outputs, height, width, inputs))
    for r, c, a, b in np.ndindex(rows, columns, kh, kw):
        y = (r * strides[0] + a * dilation[0]) % height
        x = (c * strides[1] + b * dilation[1]) % width
        for o in range(outputs):
            first = o // (outputs // groups) * per_group
            matrix[r, c, o, y, x, first : first + per_group] += kernel[
                a, b, :, o
            ]
    return matrix.reshape(rows * columns * outputs, -1)


def all_values(found):
    assert np.all(np.diff(found.values) <= 0)
    return np.repeat(found.values, found.counts)


CASES = [
    # kernel shape, feature map, then strides, dilation and groups
    ((3, 3, 2, 3), (6, 6), {}),
    ((3, 3, 3, 2), (5, 5), {}),
    ((3, 3, 2, 3), (4, 7), {}),
    ((1, 3, 2, 3), (5, 4), {}),
    ((2, 4, 2, 3), (5, 6), {}),
    ((3, 3, 2, 3), (6, 6), {"strides": (2, 2)}),
    ((3, 3, 1, 9), (4, 8), {"strides": (2, 2)}),
    ((3, 3, 2, 3), (6, 10), {"strides": (2, 1)}),
    ((3, 3, 2, 3), (9, 6), {"strides": (3, 2)}),
    ((7, 7, 2, 3), (8, 8), {"strides": (2, 2)}),
    ((1, 1, 2, 3), (4, 5), {}),
    ((1, 1, 3, 2), (4, 6), {"strides": (2, 2)}),
    ((1, 1, 2, 5), (4, 6), {"strides": (2, 2)}),
    ((1, 1, 2, 12), (4, 6), {"strides": (2, 1)}),
    ((3, 3, 2, 3), (2, 2), {}),
    ((3, 3, 2, 3), (1, 1), {}),
    ((3, 3, 2, 3), (7, 6), {"dilation": (2, 3)}),
    ((3, 3, 2, 6), (4, 4), {"groups": 3}),
    ((3, 3, 1, 4), (5, 4), {"groups": 4}),
    ((3, 3, 2, 4), (6, 6), {"groups": 2, "strides": (2, 2)}),
    ((1, 1, 2, 4), (3, 3), {"groups": 2}),
]


@pytest.mark.parametrize(("shape", "size", "arguments"), CASES)
def test_conv_spectrum_is_that_of_the_explicit_matrix(shape, size, arguments):
    kernel = np.random.default_rng(0).normal(size=shape)
    matrix = explicit_matrix(kernel, size, **arguments)
    expected = np.linalg.svd(matrix, compute_uv=False)
    found = all_values(conv_spectrum(kernel, size, **arguments))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strides", [1, 2])
def test_explicit_matrix_is_what_keras_convolves_with(strides):
    # The reference above, checked against the layer whose operator it is.
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
    image = rng.normal(size=(1, 6, 6, 2)).astype(np.float32)
    wrapped = np.pad(image, ((0, 0), (0, 2), (0, 2), (0, 0)), mode="wrap")
    convolved = tf.nn.conv2d(wrapped, kernel, strides, "VALID")
    matrix = explicit_matrix(kernel, (6, 6), (strides, strides))
    np.testing.assert_allclose(
        matrix @ image.ravel(), np.ravel(convolved), atol=1e-5
    )


def padded_matrix(convolve, size, inputs):
    """The matrix of a linear function of images, a column for each pixel."""
    units = np.eye(np.prod(size) * inputs, dtype=np.float32)
    images = convolve(units.reshape(-1, *size, inputs))
    return np.float64(images).reshape(len(units), -1).T


# kernel shape, feature map, then padding, strides, dilation and groups
PADDED = [
    ((3, 3, 2, 3), (6, 6), {"padding": ((1, 1), (1, 1))}),
    ((3, 3, 3, 2), (5, 4), {}),
    ((7, 7, 2, 3), (9, 8), {"padding": ((3, 3), (3, 3)), "strides": (2, 2)}),
    ((3, 3, 2, 6), (7, 8), {"padding": ((0, 1), (2, 0)), "strides": (2, 3)}),
    ((3, 2, 2, 3), (9, 7), {"padding": ((2, 2), (1, 0)), "dilation": (2, 3)}),
    ((3, 3, 2, 6), (6, 6), {"padding": ((1, 1), (1, 1)), "groups": 3}),
    ((3, 3, 1, 8), (6, 5), {"padding": ((1, 1), (1, 1)), "groups": 4}),
    ((1, 1, 4, 6), (4, 5), {"strides": (2, 2), "groups": 2}),
    # So few inputs, or outputs, that the matrix is written out.
    ((3, 3, 2, 9), (1, 1), {"padding": ((1, 1), (1, 1))}),
    ((5, 5, 6, 2), (5, 5), {}),
    ((3, 3, 4, 4), (12, 12), {"padding": ((1, 1), (1, 1))}),
]


@pytest.mark.parametrize(("shape", "size", "arguments"), PADDED)
def test_conv_norm_is_that_of_what_tensorflow_computes(shape, size, arguments):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=shape).astype(np.float32)
    padding = arguments.get("padding", ((0, 0), (0, 0)))
    groups = arguments.get("groups", 1)

    def convolve(images):
        images = np.pad(images, ((0, 0), *padding, (0, 0)))
        # Group by group, as TensorFlow itself does not on every device.
        parts = zip(
            np.split(images, groups, -1),
            np.split(kernel, groups, -1),
            strict=True,
        )
        return np.concatenate(
            [
                tf.nn.conv2d(
                    *part,
                    arguments.get("strides", 1),
                    "VALID",
                    dilations=arguments.get("dilation", 1),
                )
                for part in parts
            ],
            -1,
        )

    matrix = padded_matrix(convolve, size, shape[2] * groups)
    expected = np.linalg.norm(matrix, 2)
    found = conv_norm(kernel, size, **arguments)
    assert found == pytest.approx(expected, rel=1e-5)


def test_conv_norm_of_scaled_and_of_zero_kernels():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 3))
    padding = ((1, 1), (1, 1))
    once = conv_norm(kernel, (8, 8), padding)
    for factor in (1e-200, 1e200):
        found = conv_norm(factor * kernel, (8, 8), padding)
        assert found == pytest.approx(factor * once)
    assert conv_norm(0 * kernel, (8, 8), padding) == 0


def test_zeros_pass_on_less_than_a_wrapped_image():
    """Sums of three neighbours, whose norm is known in closed form."""
    kernel = np.ones((3, 1, 1, 1))
    found = conv_norm(kernel, (9, 1), ((1, 1), (0, 0)))
    # The tridiagonal matrix of ones.
    assert found == pytest.approx(1 + 2 * np.cos(np.pi / 10), rel=1e-6)
    assert conv_spectrum(kernel, (9, 1)).values[0] == pytest.approx(3)


def test_conv_spectrum_of_known_operators():
    # The identity, and a one-dimensional difference: |1 - exp(-2 pi i u / n)|.
    identity = np.eye(3)[None, None]
    np.testing.assert_allclose(all_values(conv_spectrum(identity, (4, 5))), 1)
    difference = np.array([[1.0], [-1.0]])[..., None, None]
    found = all_values(conv_spectrum(difference, (8, 1)))
    expected = 2 * np.abs(np.sin(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(found, np.sort(expected)[::-1], atol=1e-12)


def test_what_conv_spectrum_refuses():
    kernel = np.zeros((3, 3, 2, 3))
    with pytest.raises(UserError, match=r"feature_map=\(5, 4\)"):
        conv_spectrum(kernel, (5, 4), strides=(2, 2))
    with pytest.raises(UserError, match="3 outputs, groups=2"):
        conv_spectrum(kernel, (4, 4), groups=2)


def test_values_by_place():
    found = Spectrum(np.array([5.0, 3.0, 1.0]), np.array([1, 3, 6]))
    values = np.repeat(found.values, found.counts)
    # Ten values: the i-th lies at fraction i / 9.
    np.testing.assert_array_equal(found.at(np.arange(10) / 9), values)
    np.testing.assert_array_equal(found.at([0, 1]), [5, 1])


def test_summary():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    values = np.sort(rng.exponential(size=12))[::-1]
    found = Spectrum(values, np.ones(12, int)).summary()
    assert found["number"] == 12 and found["largest"] == values[0]
    norm = np.linalg.norm(values)
    assert found["stable_rank"] == pytest.approx((norm / values[0]) ** 2)
    assert found["effective_rank"] == pytest.approx(
        np.exp(stats.entropy(values))
    )
    # Between the last number of values that holds less and the first that
    # holds as much as 90%.
    held = np.cumsum(values**2) / norm**2
    first = np.flatnonzero(held >= 0.9)[0] + 1
    assert first - 1 < found["fraction_90"] * 12 <= first
    # Multiplicities are repetitions.
    repeated = Spectrum(values, np.full(12, 7)).summary()
    once = Spectrum(np.repeat(values, 7), np.ones(84, int)).summary()
    assert repeated == pytest.approx(once)


def test_summary_of_known_spectra():
    flat = Spectrum(np.array([2.0]), np.array([10])).summary()
    assert flat == pytest.approx(
        {
            "number": 10,
            "largest": 2,
            "stable_rank": 10,
            "effective_rank": 10,
            "fraction_90": 0.9,
        }
    )
    one = Spectrum(np.array([3.0, 0.0]), np.array([1, 4])).summary()
    assert one["stable_rank"] == one["effective_rank"] == 1
    assert one["fraction_90"] == pytest.approx(0.9 / 5)
    zero = Spectrum(np.array([0.0]), np.array([4])).summary()
    assert zero["number"] == 4 and zero["largest"] == 0
    assert np.isnan(zero["stable_rank"]) and np.isnan(zero["effective_rank"])


def test_spectra_of_a_fixup_network():
    model = models.fixup_resnet(5, (8, 6, 1), widths=(2, 3), seed=1)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    (found,) = model_spectra([model])
    assert list(found) == [
        ("conv1", "conv1.conv"),
        ("layer1.0", "layer1.0.conv1"),
        ("layer1.0", "layer1.0.conv2"),
        ("layer2.0", "layer2.0.conv1"),
        ("layer2.0", "layer2.0.conv2"),
        ("layer2.0", "layer2.0.shortcut"),
        ("fc", "fc.dense"),
    ]
    sizes = {
        "layer1.0.conv1": ((8, 6), (1, 1)),
        "layer2.0.conv1": ((8, 6), (2, 2)),
        "layer2.0.conv2": ((4, 3), (1, 1)),
        "layer2.0.shortcut": ((8, 6), (2, 2)),
    }
    for (_, name), values in found.items():
        kernel = np.float64(model.get_layer(name).kernel)
        matrix = kernel
        if name in sizes:
            matrix = explicit_matrix(kernel, *sizes[name])
        elif name != "fc.dense":
            continue
        expected = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(all_values(values), expected, atol=1e-9)


def test_norms_are_of_the_networks_own_padding():
    """Of each layer between what the network feeds it and what it gives."""
    model = models.fixup_resnet(5, (9, 8, 2), widths=(2, 3), seed=1)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    (found,) = model_spectra([model])
    for (_, name), spectrum in found.items():
        layer = model.get_layer(name)
        if name == "fc.dense":
            matrix = np.float64(layer.kernel)
        else:
            steps, image = [layer], layer.input
            before = image._keras_history.operation
            if isinstance(before, layers.ZeroPadding2D):
                steps, image = [before, layer], before.input

            def convolve(x, steps=steps):
                for step in steps:
                    x = step(x)
                return x

            matrix = padded_matrix(convolve, image.shape[1:3], image.shape[3])
        expected = np.linalg.norm(matrix, 2)
        assert spectrum.norm == pytest.approx(expected, rel=1e-5)
    strided = found["layer2.0", "layer2.0.conv1"]
    assert abs(strided.norm / strided.values[0] - 1) > 1e-3


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("strides", [1, 2, 3])
def test_norms_of_layers_that_pad_themselves(strides, data_format):
    last = data_format == "channels_last"
    model = keras.Sequential(
        [
            keras.Input((8, 7, 2) if last else (2, 8, 7)),
            layers.Conv2D(
                3, (3, 4), strides, "same", data_format, use_bias=False
            ),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    (found,) = model_spectra([model])
    kernel = model.layers[0].kernel

    def convolve(x):
        return tf.nn.conv2d(x, kernel, strides, "SAME")

    expected = np.linalg.norm(padded_matrix(convolve, (8, 7), 2), 2)
    assert [*found.values()][0].norm == pytest.approx(expected, rel=1e-5)


def test_padding_and_depth_of_other_networks(caplog):
    inner = keras.Sequential(
        [keras.Input((3, 3, 4)), layers.DepthwiseConv2D(3, name="deep")]
    )
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            layers.Conv2D(4, 3, 2, "same", groups=2, name="grouped"),
            inner,
            layers.Flatten(),
            layers.Reshape((2, 2)),
            layers.Conv1D(2, 1, name="sequence"),
            layers.Flatten(),
            layers.Dense(3, name="dense"),
        ]
    )
    (found,) = model_spectra([model])
    found = {name: values for (_, name), values in found.items()}
    assert list(found) == ["grouped", "deep", "dense"]
    assert "sequence (Conv1D)" in caplog.text
    # "same" with stride 2 halves 5 to 3, so that the map is taken as 6.
    kernel = np.float64(model.get_layer("grouped").kernel)
    matrix = explicit_matrix(kernel, (6, 6), (2, 2), groups=2)
    np.testing.assert_allclose(
        all_values(found["grouped"]),
        np.linalg.svd(matrix, compute_uv=False),
        atol=1e-9,
    )
    kernel = np.float64(inner.get_layer("deep").kernel)
    # One output pixel: every channel's sum of its kernel.
    expected = np.sort(np.abs(kernel.sum((0, 1)).ravel()))[::-1]
    np.testing.assert_allclose(all_values(found["deep"]), expected, atol=1e-9)
    # That pixel has seen nine of each channel.
    expected = np.linalg.norm(kernel.reshape(9, 4), axis=0).max()
    assert found["deep"].norm == pytest.approx(expected)
    units = np.eye(50, dtype=np.float32).reshape(50, 5, 5, 2)
    first = np.float64(model.layers[0](units) - model.layers[0].bias)
    expected = np.linalg.norm(first.reshape(50, -1), 2)
    assert found["grouped"].norm == pytest.approx(expected, rel=1e-5)


def any_size():
    return keras.Sequential(
        [
            keras.Input((None, None, 1)),
            layers.Conv2D(2, 3, name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


def test_a_model_of_any_image_size():
    model = any_size()
    with pytest.raises(UserError, match="layer 'conv'"):
        model_spectra([model])
    with pytest.raises(UserError, match="data=None"):
        kt.spectrum(kt.Models({"P-T": model}))
    table = kt.spectrum(
        kt.Models({"P-T": model}, data=written_models.examples()), num_values=1
    )
    # Of the images' 6 px, 4 are left.
    expected = conv_spectrum(np.float64(model.layers[0].kernel), (4, 4))
    assert table.singular_value[0] == expected.values[0]
    norm = conv_norm(np.float64(model.layers[0].kernel), (6, 6))
    assert table.further["spectrum_layers"].operator_norm[0] == norm


def test_no_layer_to_look_at():
    model = keras.Sequential(
        [keras.Input((3, 1)), layers.Conv1D(2, 3), layers.Flatten()]
    )
    with pytest.raises(UserError, match="without any"):
        model_spectra([model])


@keras.saving.register_keras_serializable(package="test_spectrum")
class Block(layers.Layer):
    """Holds its layers in a list, and calls the second one twice."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.steps = [
            layers.Conv2D(filters, 3, strides=2, padding="same", name="reduce"),
            layers.Conv2D(filters, 1, name="mix"),
            layers.EinsumDense("abcd,de->abce", (None, None, filters)),
        ]

    def build(self, shape):
        # Because of it, no graph tells what happens inside.
        self.gain = self.add_weight(shape=(), initializer="ones")
        self.steps[0].build(shape)
        inner = (*self.steps[0].compute_output_shape(shape),)
        self.steps[1].build(inner)
        self.steps[2].build(inner)

    def call(self, x):
        x = self.steps[1](self.steps[0](x))
        return self.gain * self.steps[2](self.steps[1](x))

    def get_config(self):
        return super().get_config() | {"filters": self.filters}


def test_layers_held_in_lists(caplog):
    def make():
        x = inputs = keras.Input((8, 12, 1))
        for filters in (2, 3):
            x = Block(filters)(x)
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, layers.Dense(3)(x))

    nets = [make(), make()]
    found = model_spectra(nets)
    blocks = [layer for layer in nets[0].layers if isinstance(layer, Block)]
    names = [name for _, name in found[0]]
    # Names that both blocks have begin with the block's own.
    assert names == [
        *(f"{b.name}/{n}" for b in blocks for n in ("reduce", "mix")),
        nets[0].layers[-1].name,
    ]
    # Names are labels: those of the first model's layers for both.
    assert list(found[1]) == list(found[0])
    assert "(EinsumDense)" in caplog.text
    values = list(found[1].values())
    own = [layer for layer in nets[1].layers if isinstance(layer, Block)]
    for block, spectrum, size in zip(
        own, values[:4:2], [(8, 12), (4, 6)], strict=True
    ):
        kernel = np.float64(block.steps[0].kernel)
        matrix = explicit_matrix(kernel, size, (2, 2))
        np.testing.assert_allclose(
            all_values(spectrum),
            np.linalg.svd(matrix, compute_uv=False),
            atol=1e-9,
        )
    # And the layers are as they were.
    assert "call" not in vars(own[0].steps[0])
    assert nets[1].predict(np.zeros((2, 8, 12, 1)), verbose=0).shape == (2, 3)


def test_table_of_four_kinds(tmp_path, monkeypatch):
    calls = []
    real = matrix_spectrum

    def counted(matrix):
        calls.append(matrix.shape)
        return real(matrix)

    monkeypatch.setattr(spectrum_module, "matrix_spectrum", counted)
    found = written_models.write_models(tmp_path)
    table = kt.spectrum(found, num_values=5)
    # Both P-Ts start alike, so of eight heads seven differ.
    assert calls == [(8, 10)] * 7
    kinds = table.groupby("model", sort=False).kind.first()
    assert dict(kinds) == {
        "pt0@0": "P",
        "pt1@0": "P",
        "rit0@0": "RI",
        "rit1@0": "RI",
        "pt0": "P-T",
        "pt1": "P-T",
        "rit0": "RI-T",
        "rit1": "RI-T",
    }
    assert set(table.fraction) == {0, 0.25, 0.5, 0.75, 1}
    head = table[(table.model == "pt1") & (table.layer == "fc.dense")]
    kernel = found.weights(found.of_kind("P-T")[1])[-2]
    expected = np.linalg.svd(kernel.astype(np.float64), compute_uv=False)
    # Eight values: places 0, 1.75, 3.5, 5.25 and 7, rounded to even.
    np.testing.assert_allclose(
        head.singular_value, expected[[0, 2, 4, 5, 7]], rtol=1e-6
    )
    summaries = table.further["spectrum_layers"]
    dense = summaries[summaries.layer == "fc.dense"]
    np.testing.assert_array_equal(dense.operator_norm, dense.largest)
    assert (summaries.operator_norm[summaries.largest == 0] == 0).all()
    zero = summaries[(summaries.kind == "RI") & (summaries.largest == 0)]
    assert set(zero.layer) == {"layer1.0.conv2", "layer2.0.conv2"}
    for name in ("spectrum", "spectrum_layers"):
        assert getattr(kt.figures, name)(table).axes


def test_models_of_one_factory_without_data():
    """Also one that ends in softmax, whose head is then called otherwise."""
    nets = written_models.nets()
    nets["RI-T"] = written_models.nets(activation="softmax")["RI-T"]
    table = kt.spectrum(kt.Models(nets), num_values=3)
    names = [layer.name for layer in nets["P-T"][0].layers if layer.weights]
    assert list(table.groupby("layer", sort=False).size()) == [4 * 3] * 3
    assert list(dict.fromkeys(table.layer)) == names
    for kind, own in nets.items():
        kernel = np.float64(own[1].layers[-1].kernel)
        rows = table[(table.model == f"{kind} 1") & (table.layer == names[-1])]
        values = np.linalg.svd(kernel, compute_uv=False)
        np.testing.assert_allclose(rows.singular_value, values, rtol=1e-6)


def test_trajectories_know_where_they_come_from():
    recorded = written_models.fitted()
    table = kt.spectrum(kt.Models({"RI-T": recorded}), num_values=1)
    assert dict(table.groupby("model").kind.first()) == {
        "RI-T 0@0": "RI",
        "RI-T 0": "RI-T",
    }
    for name, epoch in (("RI-T 0@0", 0), ("RI-T 0", 2)):
        kernel = np.float64(recorded.load_model(epoch).layers[-1].kernel)
        (value,) = table[table.model == name].singular_value.tail(1)
        assert value == pytest.approx(np.linalg.norm(kernel, 2))
