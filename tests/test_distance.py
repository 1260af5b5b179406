import keras
import numpy as np
import pandas
import pytest
import written_runs

from keras_transfer import models
from keras_transfer.analysis import Output, distance, module_distances
from keras_transfer.analysis.distance import closeness, depth_correlation
from keras_transfer.errors import UserError


def net(num_classes=5, seed=0, widths=(4, 8)):
    return models.fixup_resnet(num_classes, (8, 8, 1), widths, seed=seed)


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


def test_table_of_pairs_and_ways(tmp_path):
    subjects = written_runs.write_subjects(tmp_path)
    table = distance(subjects, Output(tmp_path / "out"))
    written = pandas.read_csv(tmp_path / "out" / "distance.csv")
    pandas.testing.assert_frame_equal(written, table)
    assert (tmp_path / "out" / "distance.png").exists()
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
        == subjects.model(subjects.of_kind("P-T")[0]).count_params()
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


def test_correlation_with_depth_is_spearmans():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    values = {"b": rng.integers(0, 5, 9), "c": rng.normal(size=9)}
    table = table_of(
        [
            ("P-T/P-T", "a", second, f"m{i}", i, float(value))
            for second, column in values.items()
            for i, value in enumerate(column)
        ]
        + [("P-T/P-T", "a", "b", "total", np.nan, 99.0)]
        + [("RI-T/RI-T", "d", "e", f"m{i}", i, -float(i)) for i in range(9)]
    )
    found = depth_correlation(table)
    expected = np.mean(
        [stats.spearmanr(range(9), v).statistic for v in values.values()]
    )
    assert found["P-T/P-T"] == pytest.approx(expected)
    assert found["RI-T/RI-T"] == pytest.approx(-1)
