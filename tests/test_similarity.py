import itertools

import gin
import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
import written_models
import written_runs
from commands import ROOT

import keras_transfer as kt
from keras_transfer import models
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.analysis.similarity import (
    feature_similarity,
    least_shared,
    linear_cka,
    rbf_cka,
    shared_features,
)
from keras_transfer.errors import UserError


def plain_cka(x, y, kernel=lambda x: x @ x.T):
    """The definition, in float64: tr(KHLH) with H = I - 11'/n."""
    x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, y))
    h = np.eye(len(x)) - 1 / len(x)
    k, ll = h @ kernel(x) @ h, h @ kernel(y) @ h
    return np.sum(k * ll) / np.sqrt(np.sum(k * k) * np.sum(ll * ll))


def plain_hsic1(k, ll):
    """Song et al. 2012, the unbiased estimator as they write it."""
    n, one = len(k), np.ones(len(k))
    k, ll = k - np.diag(np.diag(k)), ll - np.diag(np.diag(ll))
    middle = (one @ k @ one) * (one @ ll @ one) / ((n - 1) * (n - 2))
    last = 2 / (n - 2) * (one @ k @ ll @ one)
    return (np.trace(k @ ll) + middle - last) / (n * (n - 3))


def related(n, p, q, mean=0.0, seed=0):
    """Two sets of features that have something in common."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 3))
    x = common @ rng.normal(size=(3, p)) + rng.normal(size=(n, p)) + mean
    y = common @ rng.normal(size=(3, q)) + rng.normal(size=(n, q)) - mean
    return x.astype(np.float32), y.astype(np.float32)


def small_net(seed=0):
    net = models.fixup_resnet(5, (8, 8, 1), widths=(4, 8), seed=seed)
    rng = np.random.default_rng(seed)
    for variable in net.trainable_variables:
        variable.assign_add(rng.normal(0, 0.3, variable.shape))
    return net


def images_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 8, 8, 1)).astype(np.float32)


def batches_of(images, batch_size):
    return tf.data.Dataset.from_tensor_slices(images).batch(batch_size)


# More examples than features, fewer, and one of each.
SIZES = [(300, 40, 20), (50, 400, 900), (100, 30, 700), (100, 700, 30)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_linear_cka_is_the_definition(sizes, mean):
    x, y = related(*sizes, mean=mean)
    expected = plain_cka(x, y)
    assert 0.05 < expected < 0.995
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-5)
    assert linear_cka(y, x) == pytest.approx(expected, abs=1e-5)


def test_linear_cka_of_feature_maps_is_that_of_flattened_ones():
    x, y = related(40, 4 * 4 * 8, 2 * 2 * 3)
    found = linear_cka(x.reshape(40, 4, 4, 8), y.reshape(40, 2, 2, 3))
    assert found == pytest.approx(plain_cka(x, y), abs=1e-5)


def test_linear_cka_of_one_feature_is_the_squared_correlation():
    x, y = related(500, 1, 1)
    expected = np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sizes", SIZES)
def test_linear_cka_does_not_see_rotation_scale_and_shift(sizes):
    x, y = related(*sizes)
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(x.shape[1],) * 2))
    expected = linear_cka(x, y)
    for changed in (x @ rotation, 1e-6 * x, 1e9 * x, x + 3):
        assert linear_cka(changed, y) == pytest.approx(expected, abs=1e-5)
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, 5 * x @ rotation) == pytest.approx(1, abs=1e-5)


def test_cka_of_unrelated_and_of_constant_features():
    # Columns of one orthonormal basis, orthogonal to the constant.
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(np.c_[np.ones(50), rng.normal(size=(50, 20))])
    found = linear_cka(basis[:, 1:11], basis[:, 11:])
    assert found == pytest.approx(0, abs=1e-6)
    assert np.isnan(linear_cka(np.ones((50, 3)), basis))


@pytest.mark.parametrize("bandwidth", [0.4, 1.0])
def test_rbf_cka_is_the_definition(bandwidth):
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    distance = pytest.importorskip("scipy.spatial.distance")

    def kernel(x):
        sigma = bandwidth * np.median(distance.pdist(x))
        return pairwise.rbf_kernel(x, gamma=1 / (2 * sigma**2))

    x, y = related(101, 40, 300, mean=10.0)
    expected = plain_cka(x, y, kernel)
    assert 0.05 < expected < 0.995
    assert rbf_cka(x, y, bandwidth) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("compare", [linear_cka, rbf_cka])
def test_other_numbers_of_examples_are_refused(compare):
    with pytest.raises(UserError, match=r"\(3, 2\) and \(4, 2\)"):
        compare(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(UserError, match="of shape"):
        compare(1.0, 2.0)


@pytest.mark.parametrize("compare", [linear_cka, rbf_cka])
def test_exact_similarity_of_models_is_cka_of_their_features(compare):
    nets, images = [small_net(0), small_net(1)], images_of(50)
    found = feature_similarity(
        nets, batches_of(images, 16), kernel=compare.__name__[:-4]
    )
    assert found.method == "exact" and found.num_examples == 50
    features, names = [], []
    for i, net in enumerate(nets):
        x = images
        for module in models.module_chain(net):
            x = module.model(x).numpy()
            features.append(x)
            names.append((i, module.name))
    assert found.modules == names
    for i, j in itertools.product(range(len(names)), repeat=2):
        expected = compare(features[i], features[j])
        assert found.cka[i, j] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_minibatch_similarity_is_the_ratio_of_mean_hsic1(kernel):
    nets, images = [small_net(0), small_net(1)], images_of(44)
    found = feature_similarity(
        nets, batches_of(images, 20), kernel, memory_budget=0
    )
    # 20, 20 and 4 examples.
    assert found.method == "minibatch" and found.num_examples == 44
    distance = pytest.importorskip("scipy.spatial.distance")

    def gram(x):
        x = np.asarray(x, np.float64).reshape(len(x), -1)
        if kernel == "linear":
            return x @ x.T
        lengths = distance.pdist(x)
        squared = distance.squareform(lengths) ** 2
        return np.exp(-squared / (2 * np.median(lengths) ** 2))

    hsic = np.zeros((10, 10))
    for batch in (images[:20], images[20:40], images[40:]):
        grams = []
        for net in nets:
            x = batch
            for module in models.module_chain(net):
                x = module.model(x).numpy()
                grams.append(gram(x))
        for i, j in itertools.product(range(len(grams)), repeat=2):
            hsic[i, j] += len(batch) / 44 * plain_hsic1(grams[i], grams[j])
    n = len(found.modules)
    hsic = hsic[:n, :n]
    expected = hsic / np.sqrt(np.outer(np.diag(hsic), np.diag(hsic)))
    np.testing.assert_allclose(found.cka, expected, atol=2e-5)


def test_minibatch_agrees_with_exact_within_sampling_error():
    # Images of few degrees of freedom: the exact one's own bias, which falls as
    # degrees of freedom over examples, is small beside the sampling error.
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(3, 64)) / 2
    images = (rng.normal(size=(2000, 3)) @ patterns).astype(np.float32)
    images = images.reshape(-1, 8, 8, 1)
    nets = [small_net(0), small_net(1)]
    exact = feature_similarity(nets, batches_of(images, 50))
    estimate = feature_similarity(nets, batches_of(images, 50), memory_budget=0)
    assert exact.method == "exact" and estimate.method == "minibatch"
    parts = [
        feature_similarity(nets, batches_of(part, 50), memory_budget=0).cka
        for part in np.split(images, 8)
    ]
    error = np.std(parts, axis=0, ddof=1) / np.sqrt(8)
    assert 0.001 < error.max() < 0.02
    difference = np.abs(estimate.cka - exact.cka)
    assert np.all(difference <= 4 * error + 1e-6)
    off_diagonal = exact.cka[~np.eye(len(exact.cka), dtype=bool)]
    assert off_diagonal.min() < 0.6


@keras.saving.register_keras_serializable(package="test")
class Counter(keras.layers.Layer):
    calls = 0

    def call(self, inputs):
        def count(x):
            Counter.calls += 1
            return x

        return tf.ensure_shape(
            tf.numpy_function(count, [inputs], tf.float32), inputs.shape
        )

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


@pytest.mark.parametrize("budget", [0, 1])
def test_all_modules_come_from_one_forward_pass(budget):
    net = keras.Sequential(
        [
            keras.Input((6,)),
            Counter(),
            *[keras.layers.Dense(5, name=f"{n}.dense") for n in "abc"],
        ]
    )
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    Counter.calls = 0
    feature_similarity([net], batches_of(x, 10), memory_budget=budget)
    assert Counter.calls == 4


def test_what_feature_similarity_refuses():
    net, images = small_net(), images_of(6)
    with pytest.raises(UserError, match="kernel='cosine'"):
        feature_similarity([net], batches_of(images, 6), kernel="cosine")
    with pytest.raises(UserError, match="infinite"):
        feature_similarity([net], batches_of(images, 6).repeat())
    with pytest.raises(UserError, match="none"):
        feature_similarity([net], batches_of(images, 6).take(0))
    with pytest.raises(UserError, match="at least 4"):
        feature_similarity([net], batches_of(images, 3), memory_budget=0)


@pytest.mark.parametrize("budget", [0, 1])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_model_whose_features_are_not_finite_is_named(kernel, budget):
    nets = written_models.nets()
    broken = nets["RI-T"][1].layers[-1]
    broken.bias.assign([np.inf, 0, 0])
    found = kt.Models(nets, data=written_models.examples())
    with pytest.raises(UserError, match=f"{broken.name} of model 'RI-T 1'"):
        kt.similarity(found, kernel=kernel, memory_budget=float(budget))
    # Constant ones are finite.
    broken.kernel.assign(0 * broken.kernel)
    broken.bias.assign([1.0, 0, 0])
    table = kt.similarity(found, kernel=kernel, memory_budget=float(budget))
    assert table.cka.isna().sum() == 3 * 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    written_models.write_models(path)
    return path


def test_table_of_pairs(directory):
    found = kt.Models(written_models.named(directory))
    table = kt.similarity(found, num_examples=100)
    assert kt.figures.similarity(table).axes
    assert len(kt.figures.similarity_matrix(table).axes) == 4
    pairs = table.groupby(["first", "second"], sort=False).pair.agg(
        ["first", "size"]
    )
    assert dict(pairs["first"]) == {
        ("pt0", "pt1"): "P-T/P-T",
        ("pt0", "rit0"): "P-T/RI-T",
        ("pt0", "rit1"): "P-T/RI-T",
        ("pt1", "rit0"): "P-T/RI-T",
        ("pt1", "rit1"): "P-T/RI-T",
        ("rit0", "rit1"): "RI-T/RI-T",
    }
    assert set(pairs["size"]) == {4 * 4}
    assert set(table.method) == {"exact"} and set(table.examples) == {100}
    # Independent of the order in which images come.
    test = found.examples.split("test")
    drawn = np.random.RandomState(0).permutation(len(test))[:100]
    images = (test.images(np.sort(drawn)) / 255 - 0.5) / 0.5
    logits = [
        found.model(found.of_kind(kind)[1]).predict(images, verbose=0)
        for kind in ("P-T", "RI-T")
    ]
    (row,) = table[
        (table["first"] == "pt1")
        & (table["second"] == "rit1")
        & (table.first_module == "fc")
        & (table.second_module == "fc")
    ].itertuples()
    assert row.cka == pytest.approx(plain_cka(*logits), abs=1e-5)


ROWS = [
    ("P-T/P-T", "conv", 0.99),
    ("P-T/RI-T", "conv", 0.995),
    ("RI-T/RI-T", "conv", 0.9),
    ("P-T/P-T", "a", 0.9),
    ("P-T/P-T", "a", 0.7),
    ("P-T/RI-T", "a", 0.2),
    ("RI-T/P-T", "a", 0.6),
    ("RI-T/RI-T", "a", 0.5),
    ("P-T/P-T", "b", 0.1),
    ("P-T/RI-T", "b", 0.2),
    ("RI-T/RI-T", "b", 0.0),
]


def table_of(rows):
    table = pandas.DataFrame(rows, columns=["pair", "first_module", "cka"])
    return table.assign(second_module=table.first_module)


def test_statistic_of_shared_features():
    def scaled(cka):
        return np.log((1 + cka) / (1 - cka)) / 2

    table = table_of(ROWS)
    expected = {
        "P-T/RI-T": {
            "conv": scaled(0.99) - scaled(0.995),
            "a": (scaled(0.9) + scaled(0.7) - scaled(0.2) - scaled(0.6)) / 2,
            "b": scaled(0.1) - scaled(0.2),
        },
        "RI-T/RI-T": {
            "conv": scaled(0.99) - scaled(0.9),
            "a": (scaled(0.9) + scaled(0.7)) / 2 - scaled(0.5),
            "b": scaled(0.1),
        },
    }
    for other, by_module in expected.items():
        found = shared_features(table, other)
        assert dict(found) == pytest.approx(by_module)
        assert list(found.index) == ["conv", "a", "b"]
        # Not of the first module.
        found = least_shared(table, other)
        assert found.value == pytest.approx(by_module["b"])
        assert found.note == ""
    with pytest.raises(UserError, match="RI-T/RI-T"):
        least_shared(table[table.pair != "RI-T/RI-T"], "RI-T/RI-T")
    with pytest.raises(UserError, match="above the first module"):
        least_shared(table[table.first_module == "conv"], "RI-T/RI-T")


def test_features_equal_up_to_rounding_share_no_more_than_equal_ones():
    rows = [("P-T/P-T", m, 1.0) for m in "abc"]
    rows += [("RI-T/RI-T", m, 1 + 2e-7) for m in "ab"]
    rows += [("RI-T/RI-T", "c", 0.999)]
    found = shared_features(table_of(rows), "RI-T/RI-T")
    assert found["a"] == found["b"] == 0
    assert 1 < found["c"] < 10


def test_constant_features_are_left_out_and_named():
    rows = [row for row in ROWS if row[1] != "b"]
    rows += [(pair, "b", np.nan) for pair, module, _ in ROWS if module == "b"]
    value, note = least_shared(table_of(rows), "RI-T/RI-T")
    assert value == shared_features(table_of(rows), "RI-T/RI-T")["a"]
    assert note.startswith("Without b,")


def test_models_that_cannot_be_compared(directory, tmp_path):
    alone = kt.Models({"P-T": [f"{directory}/pt0"]})
    with pytest.raises(UserError, match="at least two"):
        kt.similarity(alone)
    both = kt.Models(written_models.named(directory))
    with pytest.raises(UserError, match="'validation'"):
        kt.similarity(both, split="validation")
    written_runs.write_run(
        tmp_path / "large",
        written_runs.digits(),
        seed=0,
        input_shape=(16, 16, 1),
    )
    other = kt.Models({"P-T": [f"{directory}/pt0", f"{tmp_path}/large"]})
    with pytest.raises(UserError, match=r"large' takes images .*16, 16, 1"):
        kt.similarity(other)


def test_models_of_one_factory_in_memory():
    """The last module's features are logits, also where a softmax follows."""
    nets = written_models.nets(activation="softmax")
    data = written_models.arrays()
    table = kt.similarity(
        kt.Models(nets, data=kt.Examples(test=data["test"])), num_examples=100
    )
    names = [m.name for m in models.module_chain(nets["P-T"][0])]
    assert set(table.first_module) == set(table.second_module) == {*names}
    assert len(table) == 6 * len(names) ** 2
    assert set(table.examples) == {40}
    logits = []
    for net in (nets["P-T"][1], nets["RI-T"][0]):
        features = keras.Sequential(net.layers[:-1])
        features.build((None, 6, 6, 1))
        x = features(data["test"][0]).numpy()
        logits.append(x @ net.layers[-1].kernel + net.layers[-1].bias)
    row = table[
        (table["first"] == "P-T 1")
        & (table["second"] == "RI-T 0")
        & (table.first_module == names[-1])
        & (table.second_module == names[-1])
    ]
    assert row.cka.item() == pytest.approx(plain_cka(*logits), abs=1e-5)
    assert kt.figures.similarity(table).axes[0].lines


def test_models_of_different_architecture():
    """A P of other classes, and chains of other lengths under own names."""
    data = written_models.examples()
    deep = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Flatten(),
            *[keras.layers.Dense(4, name=f"layer{i}.dense") for i in range(5)],
        ]
    )
    nets = {
        "P": written_models.net(0, num_classes=7),
        "P-T": written_models.net(1),
        "other": deep,
    }
    table = kt.similarity(kt.Models(nets, data=data))
    names = [m.name for m in models.module_chain(nets["P"])]
    same = table[table.pair == "P/P-T"]
    assert list(dict.fromkeys(same.second_module)) == names
    others = table[table.pair == "P-T/other"]
    assert set(others.second_module) == {f"layer{i}" for i in range(5)}
    assert len(others) == 3 * 5
    # Where no module is the same in both, there is no figure of them.
    assert kt.figures.similarity(others) is None


def test_p_may_have_other_classes_than_the_data():
    """Also where batch normalization is given statistics of these data."""

    def make(num_classes):
        return keras.Sequential(
            [
                keras.Input((6, 6, 1)),
                keras.layers.Conv2D(4, 3),
                keras.layers.BatchNormalization(),
                keras.layers.Flatten(),
                keras.layers.Dense(num_classes),
            ]
        )

    data = written_models.examples()
    table = kt.similarity(kt.Models({"P": make(7), "P-T": make(3)}, data=data))
    assert set(table.batch_norm) == {"reestimate"}
    assert table.cka.between(0, 1).all()


def test_claim_is_of_the_module_where_they_share_least(directory):
    table = kt.similarity(kt.Models(written_models.named(directory)))
    declared = find_analysis("similarity").statistics
    assert {(s.claim, s.direction, s.threshold) for s in declared} == {
        ("C4", ">", 0)
    }
    assert [s.decides for s in declared] == [True, True, False, False]
    for i, other in enumerate(["P-T/RI-T", "RI-T/RI-T"]):
        by_module = shared_features(table, other)
        assert list(by_module.index) == ["conv1", "layer1.0", "layer2.0", "fc"]
        assert other in declared[i].name and other in declared[i + 2].name
        found = declared[i].compute(table).value
        assert found == by_module[["layer1.0", "layer2.0", "fc"]].min()
        assert declared[i + 2].compute(table) == by_module["conv1"]


def test_similarity_of_trajectories():
    recorded = [written_models.fitted(seed) for seed in range(2)]
    data = written_models.examples()
    table = kt.similarity(kt.Models({"P-T": recorded}, data=data))
    expected = kt.similarity(
        kt.Models({"P-T": [t.load_model() for t in recorded]}, data=data)
    )
    pandas.testing.assert_series_equal(table.cka, expected.cka, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["similarity", "mistakes", "distance", "spectrum"]
)
def test_gin_file(name, directory, tmp_path):
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / f"{name}.gin")],
        [f"Models.models = {written_models.named(directory)}"],
    )
    analyze(tmp_path)
    assert len(pandas.read_csv(tmp_path / f"{name}.csv")) > 10
    assert (tmp_path / f"{name}.png").exists()
