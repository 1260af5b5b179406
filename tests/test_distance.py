import keras
import numpy as np
import pandas
import pytest
import written_models

import keras_transfer as kt
from keras_transfer import models
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.analysis.distance import (
    closeness,
    distance_by_depth,
)
from keras_transfer.analysis.distance import (
    module_distances as distances_of_modules,
)
from keras_transfer.errors import UserError


def net(num_classes=5, seed=0, widths=(4, 8)):
    return models.fixup_resnet(num_classes, (8, 8, 1), widths, seed=seed)


def module_distances(first, second):
    return distances_of_modules(
        models.module_chain(first), models.module_chain(second)
    )


def test_module_distances_are_norms_of_differences():
    first, second = net(seed=0), net(seed=1)
    second.get_layer("layer1.0.bias1a").bias.assign([0.5])
    found = module_distances(first, second)
    assert list(found) == ["conv1", "layer1.0", "layer2.0", "fc", "total"]
    differences = [
        np.ravel(np.float64(a) - np.float64(b))
        for a, b in zip(first.weights, second.weights, strict=True)
    ]
    for module in ("conv1", "layer1.0", "layer2.0", "fc"):
        own = [
            d
            for d, v in zip(differences, first.weights, strict=True)
            if v.path.split("/")[0].rpartition(".")[0] == module
        ]
        expected = np.linalg.norm(np.concatenate(own))
        assert found[module] == pytest.approx(expected, rel=1e-6)
        assert expected > 0
    total = np.linalg.norm(np.concatenate(differences))
    assert found["total"] == pytest.approx(total, rel=1e-6)
    assert set(module_distances(first, first).values()) == {0}


def test_a_head_of_another_size_is_left_out():
    found = module_distances(net(5), net(7))
    assert np.isnan(found["fc"])
    rest = [found[name] for name in ("conv1", "layer1.0", "layer2.0")]
    assert found["total"] == pytest.approx(np.linalg.norm(rest))


def test_batch_statistics_are_no_parameters():
    def build():
        return keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(
                    2, kernel_initializer="ones", name="a.dense"
                ),
                keras.layers.BatchNormalization(name="a.norm"),
            ]
        )

    first, second = build(), build()
    second.get_layer("a.norm").moving_mean.assign([3.0, 4.0])
    assert module_distances(first, second) == {"a": 0, "total": 0}
    second.get_layer("a.norm").gamma.assign([4.0, 5.0])
    assert module_distances(first, second)["a"] == 5


def test_other_architectures_are_refused():
    with pytest.raises(UserError, match="modules conv1, layer1.0"):
        module_distances(net(), net(widths=(4, 8, 8)))
    with pytest.raises(UserError, match="other shapes in modules layer2.0"):
        module_distances(net(), net(widths=(4, 6)))


def test_frozen_layers_that_differ_have_a_distance():
    first, second = written_models.net(0), written_models.net(0)
    frozen = second.layers[2]
    frozen.kernel.assign(frozen.kernel + 0.5)
    first.layers[2].trainable = frozen.trainable = False
    found = list(module_distances(first, second).values())
    expected = 0.5 * np.sqrt(np.size(frozen.kernel))
    assert found == pytest.approx([0, expected, 0, expected], rel=1e-6)


def test_models_of_one_factory_and_no_data():
    """Their layers are dense and dense_2: names are labels."""
    nets = written_models.nets()
    table = kt.distance(kt.Models(nets))
    assert table.relative.isna().all()
    assert set(table.pair) == {"P-T/P-T", "P-T/RI-T", "RI-T/RI-T"}
    first, second = nets["P-T"]
    names = [*models.module_chain(first)]
    assert first.layers[-1].name != second.layers[-1].name
    assert list(table.module[:4]) == [*(m.name for m in names), "total"]
    assert table.module.nunique() == 4
    weights = zip(first.get_weights(), second.get_weights(), strict=True)
    expected = np.linalg.norm([np.linalg.norm(a - b) for a, b in weights])
    assert table.l2[3] == pytest.approx(expected, rel=1e-6)
    assert len(kt.figures.distance(table).axes) == 2
    assert set(table.batch_norm) == {"none"}


def test_statistics_need_no_data_for_distances():
    def make(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(2),
                keras.layers.BatchNormalization(),
            ]
        )

    table = kt.distance(kt.Models({"P-T": [make(0), make(1)]}))
    assert table.l2.iloc[-1] > 0
    assert set(table.batch_norm) == {"reestimate"}


def test_trajectories_know_where_they_come_from():
    recorded = written_models.fitted(0, epochs=2)
    other = written_models.net(1)
    table = kt.distance(kt.Models({"RI-T": [recorded, other]}))
    assert list(dict.fromkeys(table.pair)) == ["RI to RI-T", "RI-T/RI-T"]
    weights = [recorded.load_model(epoch).get_weights() for epoch in (0, 2)]
    expected = np.linalg.norm(
        [np.linalg.norm(a - b) for a, b in zip(*weights, strict=True)]
    )
    assert expected > 0
    assert table.l2[3] == pytest.approx(expected, rel=1e-6)


def test_one_model_without_a_start_is_refused():
    with pytest.raises(UserError, match="two or more.*Received: 1"):
        kt.distance(kt.Models({"P-T": written_models.net()}))


def test_table_of_pairs_and_ways(tmp_path):
    found = written_models.write_models(tmp_path)
    table = kt.distance(found)
    assert len(kt.figures.distance(table).axes) == 3
    pairs = table.drop_duplicates(["first", "second"])
    assert [*zip(pairs["first"], pairs.second, pairs.pair, strict=True)] == [
        ("pt0@0", "pt0", "P to P-T"),
        ("pt1@0", "pt1", "P to P-T"),
        ("rit0@0", "rit0", "RI to RI-T"),
        ("rit1@0", "rit1", "RI to RI-T"),
        ("pt0", "pt1", "P-T/P-T"),
        ("pt0", "rit0", "P-T/RI-T"),
        ("pt0", "rit1", "P-T/RI-T"),
        ("pt1", "rit0", "P-T/RI-T"),
        ("pt1", "rit1", "P-T/RI-T"),
        ("rit0", "rit1", "RI-T/RI-T"),
    ]
    l2 = table.set_index(["first", "second", "module"]).l2
    # Moved by normal noise of 0.2 from one start: sqrt(2) apart.
    total = table[(table.pair == "P-T/P-T") & (table.module == "total")]
    assert total.relative.item() == pytest.approx(np.sqrt(2), rel=0.1)
    ways = l2["pt0@0", "pt0", "total"], l2["pt1@0", "pt1", "total"]
    assert total.relative.item() == pytest.approx(
        total.l2.item() / np.mean(ways)
    )
    assert (
        total.parameters.item()
        == found.model(found.of_kind("P-T")[0]).count_params()
    )
    assert ways[0] == pytest.approx(
        0.2 * np.sqrt(total.parameters.item()), rel=0.1
    )
    assert table[table.pair.str.contains(" to ")].relative.isna().all()
    assert list(table.depth[:4]) == [0, 1, 2, 3] and np.isnan(table.depth[4])
    assert list(table.module[:5]) == [
        "conv1",
        "layer1.0",
        "layer2.0",
        "fc",
        "total",
    ]


def table_of(rows):
    columns = ["pair", "first", "second", "module", "depth", "l2"]
    return pandas.DataFrame(rows, columns=columns)


def test_statistics_of_closeness():
    table = table_of(
        [
            ("P-T/P-T", "a", "b", "total", np.nan, 1.0),
            ("P-T/P-T", "a", "c", "total", np.nan, 3.0),
            ("RI-T/RI-T", "d", "e", "total", np.nan, 8.0),
            ("RI-T/RI-T", "d", "e", "conv1", 0, 100.0),
        ]
    )
    assert closeness(table) == pytest.approx(2 / 8)
    with pytest.raises(UserError, match="RI-T/RI-T"):
        closeness(table[table.pair == "P-T/P-T"])


def trends(by_pair, parameters):
    """A table of pairs whose distances are given by depth."""
    rows = [
        (pair, "a", f"b{i}", f"m{depth}", depth, float(value))
        for pair, columns in by_pair.items()
        for i, column in enumerate(columns)
        for depth, value in enumerate(column)
    ]
    rows += [(pair, "a", "b0", "total", np.nan, 99.0) for pair in by_pair]
    table = table_of(rows)
    sizes = dict(enumerate(parameters)) | {np.nan: sum(parameters)}
    return table.assign(parameters=table.depth.map(sizes))


def test_distance_by_depth_is_of_one_kind_of_pair():
    sizes = np.array([4, 9, 16, 25, 36])
    values = np.random.default_rng(0).uniform(1, 2, size=(3, 5))
    values[:, 2] = np.nan  # Such as heads of other sizes.
    table = trends({"P-T/P-T": values[:2], "RI-T/RI-T": values[2:]}, sizes)
    table = table.sample(frac=1, random_state=0)
    known = [0, 1, 3, 4]
    expected = values[:2].mean(0)
    np.testing.assert_allclose(
        distance_by_depth(table, "P-T/P-T"), expected[known]
    )
    np.testing.assert_allclose(
        distance_by_depth(table, "P-T/P-T", by_size=True),
        (expected / np.sqrt(sizes))[known],
    )
    np.testing.assert_allclose(
        distance_by_depth(table, "RI-T/RI-T"), values[2, known]
    )
    with pytest.raises(UserError, match="no P-T/RI-T"):
        distance_by_depth(table, "P-T/RI-T")
    with pytest.raises(UserError, match="4 modules or more. Received: 3"):
        distance_by_depth(table[table.module != "m0"], "P-T/P-T")


def test_claim():
    stats = pytest.importorskip("scipy.stats")
    sizes = np.array([1, 4, 9, 16, 25, 36, 49])
    # Grows with the size only, but for chance; and against depth.
    grows = np.sqrt(sizes) * [1.0, 0.9, 1.1, 1.05, 0.95, 1.2, 1.15]
    table = trends({"P-T/P-T": [grows], "RI-T/RI-T": [-np.arange(7.0)]}, sizes)
    table.loc[table.module == "total", "l2"] = [30.0, 60.0]
    declared = find_analysis("distance").statistics
    assert {s.claim for s in declared} == {"C5"}

    def p_value(values):
        def product(order):
            return np.arange(7) @ order

        found = stats.permutation_test(
            (stats.rankdata(values),),
            product,
            permutation_type="pairings",
            alternative="greater",
            n_resamples=np.inf,
        )
        return found.pvalue

    by_size = grows / np.sqrt(sizes)
    expected = [
        ("<", 1.0, True, 0.5),
        ("<", 0.05, True, 1 / 5040),
        ("<", 0.05, True, p_value(by_size)),
        (">", 0.0, False, 1.0),
        (">", 0.0, False, stats.spearmanr(range(7), by_size).statistic),
        ("<", 0.05, False, 1.0),
        ("<", 0.05, False, 1.0),
    ]
    for statistic, row in zip(declared, expected, strict=True):
        assert (
            statistic.direction,
            statistic.threshold,
            statistic.decides,
        ) == row[:3]
        assert statistic.compute(table) == pytest.approx(row[3])
    assert 0.05 < declared[2].compute(table) < 0.95
    assert all("RI-T/RI-T" in s.name for s in (declared[0], *declared[5:]))
