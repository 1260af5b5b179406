"""Properties that hold for any sizes, seeds and values, by Hypothesis."""

import io
import math
import string

import hypothesis
import numpy as np
import pandas
import pytest
import tensorflow as tf
import written_runs
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from keras_transfer.analysis.interpolation import barrier_height
from keras_transfer.analysis.output import Output
from keras_transfer.data import block_shuffle, channel_shuffle, pixel_shuffle
from keras_transfer.files import write_text
from keras_transfer.landscape.weight_space import Points, WeightSpace
from keras_transfer.runs import Run

# A deadline would measure the machine; the same examples in every run.
properties = hypothesis.settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 9)
CHANNELS = st.integers(1, 4)


def _images(*shape):
    """Returns images no two of whose values are equal."""
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


# Shuffles (paper.md and section 3.1 of the paper).


@properties
@hypothesis.given(SIDES, SIDES, CHANNELS, SEEDS)
def test_pixel_shuffle(height, width, channels, seed):
    image = _images(height, width, channels)
    shuffled = pixel_shuffle((height, width, channels), seed)(image).numpy()
    flat = image.transpose(2, 0, 1).ravel()
    permutation = np.random.RandomState(seed).permutation(flat.size)
    np.testing.assert_array_equal(
        shuffled.transpose(2, 0, 1).ravel(), flat[permutation]
    )
    restored = np.empty_like(flat)
    restored[permutation] = shuffled.transpose(2, 0, 1).ravel()
    np.testing.assert_array_equal(restored, flat)


@properties
@hypothesis.given(SIDES, SIDES, CHANNELS, SEEDS)
def test_channel_shuffle(height, width, channels, seed):
    image = _images(height, width, channels)
    shuffled = channel_shuffle((height, width, channels), seed)(image).numpy()
    permutation = np.random.RandomState(seed).permutation(channels)
    np.testing.assert_array_equal(shuffled, image[..., permutation])
    np.testing.assert_array_equal(shuffled[..., np.argsort(permutation)], image)


def _blocks(image, b):
    """Returns the blocks of a square image in row-major order."""
    n = range(0, image.shape[0], b)
    return [image[y : y + b, x : x + b] for y in n for x in n]


@properties
@hypothesis.given(st.integers(1, 5), st.integers(1, 5), CHANNELS, SEEDS)
def test_block_shuffle(per_side, block_size, channels, seed):
    size = per_side * block_size
    images = _images(2, size, size, channels)
    shuffled = block_shuffle(size, block_size, seed)(images).numpy()
    permutation = np.random.RandomState(seed).permutation(per_side**2)
    for before, after in zip(images, shuffled, strict=True):
        sources, found = _blocks(before, block_size), _blocks(after, block_size)
        for block, source in zip(found, permutation, strict=True):
            np.testing.assert_array_equal(block, sources[source])
        np.testing.assert_array_equal(np.sort(after.ravel()), before.ravel())


# Affine points.


@pytest.fixture(scope="module")
def space():
    """A `WeightSpace` of three vectors and the arrays in them."""
    model = written_runs.build(num_classes=3, input_shape=(8, 8, 1), seed=0)
    rng = np.random.default_rng(0)
    weights = [
        [rng.normal(size=w.shape).astype(np.float32) for w in model.weights]
        for _ in range(3)
    ]
    space = WeightSpace(model, weights, tf.distribute.get_strategy())
    return space, weights


COEFFICIENTS = numpy_strategies.arrays(
    np.float32, (3,), elements=st.floats(-3, 3, width=32)
)


@properties
@hypothesis.given(COEFFICIENTS, st.integers(0, 2**31 - 1))
def test_combine_equals_numpy(space, coefficients, seed):
    space, weights = space
    found = space.combine(
        tf.constant(coefficients), tf.zeros([]), tf.constant(seed)
    )
    c = coefficients.astype(np.float64)
    for array, *vectors in zip(found, *weights, strict=True):
        expected = sum(a * v for a, v in zip(c, vectors, strict=True))
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-4)


@properties
@hypothesis.given(COEFFICIENTS, st.floats(0.0, 2.0))
def test_noise_is_added_and_scales_with_sigma(space, coefficients, sigma):
    space, _ = space
    seed, coefficients = tf.constant(3), tf.constant(coefficients)

    def moved(sigma):
        arrays = space.combine(coefficients, tf.constant(sigma), seed)
        return np.concatenate([np.ravel(a) for a in arrays])

    unit, scaled = moved(1.0) - moved(0.0), moved(sigma) - moved(0.0)
    np.testing.assert_allclose(scaled, sigma * unit, atol=1e-4)
    assert abs(np.std(unit) - 1) < 0.1


@properties
@hypothesis.given(
    numpy_strategies.arrays(
        np.float64, (4, 3), elements=st.floats(-3, 3, width=32)
    ),
)
def test_expand_leaves_nothing_out(coefficients):
    expanded, sigma, seeds = Points(coefficients).expand(3)
    np.testing.assert_array_equal(expanded, coefficients)
    assert not sigma.any() and not seeds.any()


VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


@properties
@hypothesis.given(VALUES, st.floats(-10, 10), st.floats(-10, 10), st.booleans())
def test_barrier_height_ignores_what_it_should(values, slope, offset, better):
    values = np.array(values)
    alphas = np.linspace(0, 1, len(values))
    height = barrier_height(alphas, values, better)
    assert height >= 0
    tilted = values + slope * alphas + offset
    close = {"abs": 1e-9, "rel": 1e-9}
    # A straight line on top, the other direction, the sign and the scale.
    assert barrier_height(alphas, tilted, better) == pytest.approx(
        height, **close
    )
    assert barrier_height(
        1 - alphas[::-1], values[::-1], better
    ) == pytest.approx(height, **close)
    assert barrier_height(alphas, -values, not better) == height
    assert barrier_height(alphas, 4 * values, better) == 4 * height
    line = values[0] + alphas * (values[-1] - values[0])
    assert barrier_height(alphas, line, better) == pytest.approx(0, abs=1e-9)
    # Nothing beyond the ends counts.
    beyond = np.r_[-1, alphas, 2], np.r_[1e6, values, -1e6]
    assert barrier_height(*beyond, better) == height


# Tables.

# Text that no reader takes for a missing value or a number.
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t"),
    min_size=1,
    max_size=12,
).map("x".__add__)
NUMBERS = st.floats(width=64)


@st.composite
def _tables(draw):
    columns = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    rows = draw(st.integers(1, 5))
    kinds = [
        st.lists(element, min_size=rows, max_size=rows)
        for element in (NAMES, NUMBERS, st.integers(-(2**53), 2**53))
    ]
    return pandas.DataFrame({c: draw(st.one_of(kinds)) for c in columns})


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return Output(tmp_path_factory.mktemp("output"))


@properties
@hypothesis.given(_tables())
def test_tables_are_read_back(output, table):
    output.table("table", table)
    found = pandas.read_csv(output.path / "table.csv")
    pandas.testing.assert_frame_equal(
        found, table, check_dtype=False, check_exact=True
    )


@properties
@hypothesis.given(
    st.lists(
        st.tuples(NUMBERS, NUMBERS, st.sampled_from(["train", "test"])),
        min_size=1,
        max_size=6,
    ),
    st.lists(NAMES, min_size=1, max_size=3, unique=True),
)
def test_metrics_are_read_back(tmp_path, values, findings):
    run = Run(tmp_path)
    write_text(run.config_path, "")
    rows = [
        {"epoch": i, "step": 7 * i, "split": split, "loss": loss}
        | {f"auc_{name}": value for name in findings}
        for i, (loss, value, split) in enumerate(values)
    ]
    run.write_metrics(rows)
    expected = pandas.DataFrame(rows)
    found = run.metrics()
    assert list(found) == list(expected)
    for column in expected:
        if column == "split":
            assert list(found[column]) == list(expected[column])
        else:
            # Decimal numbers, to the last digits but one.
            np.testing.assert_allclose(
                found[column], expected[column], rtol=1e-14
            )
    assert pandas.read_csv(io.StringIO(run.metrics_path.read_text())).equals(
        found
    )


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(string.printable, max_size=5), inner)
    ),
    max_leaves=5,
)


@properties
@hypothesis.given(PLAIN, PLAIN)
def test_bindings_are_read_back(tmp_path, value, other):
    run = Run(tmp_path)
    text = f"train.seed = {other!r}\na.b.train.value = {value!r}\n"
    write_text(run.config_path, text)
    for name, expected in (("train.value", value), ("train.seed", other)):
        found = run.binding(name)
        assert found == expected and type(found) is type(expected)
