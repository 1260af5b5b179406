import functools
import sys

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
import written_runs

from keras_transfer import models
from keras_transfer.analysis import (
    Output,
    conv_spectrum,
    model_spectra,
    spectrum,
)
from keras_transfer.analysis.spectrum import Spectrum, matrix_spectrum
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
    found = model_spectra(model)
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
    found = {name: values for (_, name), values in model_spectra(model).items()}
    assert list(found) == ["grouped", "deep", "dense"]
    assert "sequence: a Conv1D" in caplog.text.replace("layer ", "")
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


def test_a_model_of_any_image_size_is_refused():
    model = keras.Sequential(
        [
            keras.Input((None, None, 1)),
            layers.Conv2D(2, 3, name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1),
        ]
    )
    with pytest.raises(UserError, match="layer 'conv'"):
        model_spectra(model)


def test_table_of_four_kinds(tmp_path, monkeypatch):
    calls = []
    real = matrix_spectrum

    @functools.wraps(real)
    def counted(matrix):
        calls.append(matrix.shape)
        return real(matrix)

    # By its name, as the package's `spectrum` is the function.
    module = sys.modules["keras_transfer.analysis.spectrum"]
    monkeypatch.setattr(module, "matrix_spectrum", counted)
    subjects = written_runs.write_subjects(tmp_path)
    table = spectrum(subjects, Output(tmp_path / "out"), num_values=5)
    # Both P-Ts start alike, so of eight heads seven differ.
    assert calls == [(8, 10)] * 7
    kinds = table.groupby("model", sort=False).kind.first()
    assert dict(kinds) == {
        "pt0@0": "P",
        "rit0@0": "RI",
        "pt1@0": "P",
        "rit1@0": "RI",
        "pt0": "P-T",
        "pt1": "P-T",
        "rit0": "RI-T",
        "rit1": "RI-T",
    }
    assert set(table.fraction) == {0, 0.25, 0.5, 0.75, 1}
    head = table[(table.model == "pt1") & (table.layer == "fc.dense")]
    kernel = subjects.weights(subjects.of_kind("P-T")[1])[-2]
    expected = np.linalg.svd(kernel.astype(np.float64), compute_uv=False)
    # Eight values: places 0, 1.75, 3.5, 5.25 and 7, rounded to even.
    np.testing.assert_allclose(
        head.singular_value, expected[[0, 2, 4, 5, 7]], rtol=1e-6
    )
    summaries = pandas.read_csv(tmp_path / "out" / "spectrum_layers.csv")
    zero = summaries[(summaries.kind == "RI") & (summaries.largest == 0)]
    assert set(zero.layer) == {"layer1.0.conv2", "layer2.0.conv2"}
    for name in ("spectrum.png", "spectrum_layers.svg", "spectrum.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
