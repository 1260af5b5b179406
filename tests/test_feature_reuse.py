import gin
import keras
import numpy as np
import pandas
import pytest
import written_models
from commands import ROOT
from scipy import stats

import keras_transfer as kt
from keras_transfer import data
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.analysis.feature_reuse import (
    drop_trend,
    excess_drop,
    relative_drops,
    statistics_gain,
)
from keras_transfer.errors import UserError


def write(path, accuracies, **arguments):
    """Writes a run with these test accuracies from epoch 0 on."""
    arguments = {"image_size": 8, "num_train": 16} | arguments
    dataset = data.load("digits", **arguments)
    run = kt.Run(path)
    model = keras.Sequential(
        [
            keras.Input(dataset.info.image_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    run.begin("", model, dataset)
    run.save(len(accuracies) - 1, model)
    rows = [
        {"epoch": epoch, "step": epoch, "split": split, "loss": 1.0}
        | {"accuracy": accuracy if split == "test" else 1.0}
        for epoch, accuracy in enumerate(accuracies)
        for split in ("train", "test")
    ]
    run.write_metrics(rows)
    return str(path)


def blocks(size, seed=1234):
    return {"shuffle": "blocks", "block_size": size, "shuffle_seed": seed}


# Final accuracies by block size and seed; speeds are half as large (epoch 1
# counts as 0). The first seed's drops are 1/2, 1/3 and 1/4; the second's 1/4,
# 1/2 and 1/3.
P_T = {(8, 1): 0.8, (2, 1): 0.6, (1, 1): 0.4}
P_T |= {(8, 2): 0.8, (2, 2): 0.4, (1, 2): 0.6}
RI_T = {(8, 1): 0.4, (2, 1): 0.4, (1, 1): 0.3}
RI_T |= {(8, 2): 0.6, (2, 2): 0.2, (1, 2): 0.4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        kind: [
            # Epoch 0 is high, so that it shows if it is not left out.
            write(
                root / f"{kind}_{size}_{seed}",
                [0.9, 0.0, final],
                **blocks(size, seed),
            )
            for (size, seed), final in finals.items()
        ]
        for kind, finals in (("P-T", P_T), ("RI-T", RI_T))
    }


@pytest.fixture(scope="module")
def table(runs):
    return kt.feature_reuse(kt.Models(runs))


def test_table(table):
    assert len(table) == 12
    assert list(table.block_size) == [1] * 4 + [2] * 4 + [8] * 4
    # A block of the image's own size is the image.
    assert list(table.shuffle) == ["blocks"] * 8 + ["none"] * 4
    for kind, finals in (("P-T", P_T), ("RI-T", RI_T)):
        rows = table[table.kind == kind].set_index(
            ["block_size", "shuffle_seed"]
        )
        for key, final in finals.items():
            assert rows.final[key] == final
            assert rows.speed[key] == pytest.approx(final / 2)
            assert rows.repeat[key] == key[1] - 1
            assert rows.epochs[key] == 2
    assert set(table.metric) == {"accuracy"}


def test_gin_file(runs, table, tmp_path):
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "feature_reuse.gin")], [f"Models.models = {runs}"]
    )
    analyze(tmp_path)
    written = pandas.read_csv(tmp_path / "feature_reuse.csv")
    pandas.testing.assert_frame_equal(written, pandas.DataFrame(table))
    assert len(pandas.read_csv(tmp_path / "feature_reuse_drop.csv")) == 12
    for suffix in ("png", "svg"):
        path = tmp_path / f"feature_reuse.{suffix}"
        assert path.stat().st_size > 1000


def test_relative_drops_by_hand(table):
    drops = table.further["feature_reuse_drop"]
    found = drops[drops.measure == "final"].set_index(["block_size", "repeat"])
    expected = {(8, 0): 1 / 2, (2, 0): 1 / 3, (1, 0): 1 / 4}
    expected |= {(8, 1): 1 / 4, (2, 1): 1 / 2, (1, 1): 1 / 3}
    assert len(found) == 6
    for key, value in expected.items():
        assert found.relative_drop[key] == pytest.approx(value)
    row = found.loc[2, 1]
    assert (row["first"], row["second"]) == ("P-T_2_2", "RI-T_2_2")
    # Speeds are all halved, so their relative drops are the same.
    speeds = drops[drops.measure == "speed"]
    np.testing.assert_allclose(
        np.sort(speeds.relative_drop), np.sort(found.relative_drop)
    )


def test_statistics(table):
    drops = table.further["feature_reuse_drop"]
    # Means over the two pairs at 1, 2 and 8 px.
    means = [(1 / 4 + 1 / 3) / 2, (1 / 3 + 1 / 2) / 2, (1 / 2 + 1 / 4) / 2]
    assert excess_drop(drops) == pytest.approx(means[2] - means[0])
    expected = stats.spearmanr([1, 2, 8], means).statistic
    assert drop_trend(drops) == pytest.approx(expected)
    # (0.4 + 0.6) / 2 - (0.3 + 0.4) / 2; speeds are half as large.
    assert statistics_gain(table, "final") == pytest.approx(0.15)
    assert statistics_gain(table, "speed") == pytest.approx(0.075)
    found = find_analysis("feature_reuse").statistics
    tables = {"feature_reuse": table, **table.further}
    computed = [s.compute(*(tables[name] for name in s.tables)) for s in found]
    assert [s.claim for s in found] == ["C1", "C1", "C2", "C2"]
    assert [s.decides for s in found] == [True, False, True, True]
    assert {s.direction for s in found} == {">"}
    assert [s.threshold for s in found] == [0, 0, 0, 0]
    excess, trend, speed, final = computed
    assert excess.value == pytest.approx(means[2] - means[0])
    assert trend == pytest.approx(expected)
    assert (speed.value, final.value) == pytest.approx((0.075, 0.15))
    # All rise from 0 to where they end, in two epochs.
    assert excess.note.startswith("RI-T not converged")
    assert all(f"RI-T_{size}_1" in excess.note for size in (1, 2, 8))
    assert "RI-T_1_2" in speed.note and "RI-T_8" not in speed.note


def test_more_models_of_whole_images(runs):
    """As in a replication of a study: two pairs there, one at other sizes."""
    named = {kind: [*paths[:4]] for kind, paths in runs.items()}
    table = kt.feature_reuse(kt.Models(named))
    assert list(table.repeat[table.shuffle == "none"]) == [0, 1, 0, 1]
    drops = table.further["feature_reuse_drop"]
    expected = (1 / 2 + 1 / 4) / 2 - 1 / 4
    assert excess_drop(drops) == pytest.approx(expected)
    assert drop_trend(drops) == pytest.approx(1.0)
    assert statistics_gain(table, "final") == pytest.approx(0.1)


def test_pixels_come_before_blocks_of_one(runs, tmp_path):
    """And shuffled channels, which keep the features, are on no axis."""
    named = {
        kind: [
            *paths[:3],
            write(tmp_path / f"{kind}_p", [0, pixels], shuffle="pixels"),
            write(tmp_path / f"{kind}_c", [0, channels], shuffle="channels"),
        ]
        for (kind, paths), pixels, channels in zip(
            runs.items(), (0.3, 0.27), (0.5, 0.01), strict=True
        )
    }
    table = kt.feature_reuse(kt.Models(named))
    assert table.groupby("shuffle").block_size.first().to_dict() == {
        "blocks": 1,
        "channels": 8,
        "none": 8,
        "pixels": 1,
    }
    assert statistics_gain(table, "final") == pytest.approx(0.03)
    drops = relative_drops(table)
    # 0.1, 1/4, 1/3, 1/2 from pixels to the whole image; the smallest blocks
    # are blocks.
    assert drop_trend(drops) == pytest.approx(1)
    assert excess_drop(drops) == pytest.approx(1 / 2 - 1 / 4)
    without = drops[(drops.shuffle != "blocks")]
    assert excess_drop(without) == pytest.approx(1 / 2 - 0.1)


def test_what_statistics_need(table):
    drops = table.further["feature_reuse_drop"]
    with pytest.raises(UserError, match="Received: blocks"):
        excess_drop(drops[drops.shuffle == "blocks"])
    with pytest.raises(UserError, match="Received: none"):
        excess_drop(drops[drops.shuffle == "none"])
    with pytest.raises(UserError, match="Received: 2 sizes"):
        drop_trend(drops[drops.block_size != 2])
    with pytest.raises(UserError, match="Received: blocks of 2 px and more"):
        statistics_gain(table[table.block_size > 1], "final")


def test_trajectories():
    """Which say themselves how their images were shuffled."""
    named = {
        kind: [
            written_models.fitted(seed, epochs=3, **blocks(size, seed=1))
            for size, seed in ((6, first), (2, first + 1))
        ]
        for kind, first in (("P-T", 0), ("RI-T", 2))
    }
    table = kt.feature_reuse(kt.Models(named))
    assert list(table.block_size) == [2, 2, 6, 6]
    assert list(table.shuffle) == ["blocks", "blocks", "none", "none"]
    assert set(table.epochs) == {3} and set(table.metric) == {"accuracy"}
    for kind, own in named.items():
        for trajectory, size in zip(own, (6, 2), strict=True):
            history = trajectory.model.history.history["val_accuracy"]
            row = table[(table.kind == kind) & (table.block_size == size)]
            assert row.final.item() == pytest.approx(history[-1])
            assert row.speed.item() == pytest.approx(np.mean(history))
    assert len(table.further["feature_reuse_drop"]) == 4
    assert len(kt.figures.feature_reuse(table).axes) == 3


def test_what_trajectories_must_say():
    silent = written_models.fitted(0, epochs=1, shuffle="blocks")
    other = written_models.fitted(1, epochs=1, **blocks(2))
    with pytest.raises(UserError, match="P-T 0 with block_size = None"):
        kt.feature_reuse(kt.Models({"P-T": silent, "RI-T": other}))
    single = {"P-T": written_models.net(), "RI-T": other}
    with pytest.raises(UserError, match="without its history"):
        kt.feature_reuse(kt.Models(single))


def test_what_cannot_be_compared(runs, tmp_path):
    def run(first, second):
        kt.feature_reuse(kt.Models({"P-T": first, "RI-T": second}))

    with pytest.raises(UserError, match="Received: no RI-T"):
        kt.feature_reuse(kt.Models({"P-T": runs["P-T"]}))
    with pytest.raises(UserError, match="2 P-T and 1 RI-T at 8 px"):
        run(
            [runs["P-T"][0], runs["P-T"][3]],
            [runs["RI-T"][0]],
        )
    with pytest.raises(UserError, match="block sizes. Received: 8 px"):
        run([runs["P-T"][0]], [runs["RI-T"][0]])
    with pytest.raises(UserError, match=r"seeds \[1\] and RI-T of \[2\]"):
        run([runs["P-T"][1]], [runs["RI-T"][4]])
    other = write(tmp_path / "other", [0, 1], image_size=16, **blocks(2, 1))
    with pytest.raises(UserError, match=r"image_shape = \(8, 8, 1\)"):
        run([runs["P-T"][1]], [other])
    # Images of another size than a trajectory's.
    recorded = written_models.fitted(0, epochs=1, **blocks(2, 1))
    with pytest.raises(UserError, match=r"image_shape = \(8, 8, 1\)"):
        run([runs["P-T"][1]], [recorded])
