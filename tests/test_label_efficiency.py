import gin
import numpy as np
import pandas
import pytest
import written_models
from commands import ROOT
from test_feature_reuse import write

import keras_transfer as kt
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.analysis.label_efficiency import (
    gain_of_fine_tuning,
    images_to_reach,
    labels_saved,
)
from keras_transfer.errors import UserError

# Final accuracies by number of images.
FINALS = {
    "P-T": {20: (0.6,), 40: (0.7, 0.8), 160: (0.9,)},
    "RI-T": {20: (0.2,), 40: (0.4, 0.6), 160: (0.7,)},
    "P-T frozen": {20: (0.5,), 160: (0.65,)},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        kind: [
            write(
                root / f"{kind.replace(' ', '_')}_{number}_{i}",
                # The mean of the last two of ten epochs, after a start of 0.9.
                [0.9, *np.linspace(0, final, 8), final - 0.01, final + 0.01],
                num_train=number,
            )
            for number, own in finals.items()
            for i, final in enumerate(own)
        ]
        for kind, finals in FINALS.items()
    }


@pytest.fixture(scope="module")
def table(runs):
    return kt.label_efficiency(kt.Models(runs))


def test_table(table):
    assert len(table) == 10
    assert list(table.num_images) == [20] * 3 + [40] * 4 + [160] * 3
    rows = table.set_index(["kind", "num_images", "repeat"])
    for kind, finals in FINALS.items():
        for number, own in finals.items():
            for i, final in enumerate(own):
                row = rows.loc[kind, number, i]
                assert row["name"] == f"{kind.replace(' ', '_')}_{number}_{i}"
                assert row.final == pytest.approx(final)
                ramp = np.linspace(0, final, 8)
                speed = (ramp.sum() + 2 * final) / 10
                assert row.speed == pytest.approx(speed)
                rise = final - ramp[-2:].mean()
                assert row.rise == pytest.approx(rise)
                assert not row.converged
    assert set(table.epochs) == {10} and set(table.averaged) == {2}
    assert set(table.metric) == {"accuracy"}


def test_gin_file(runs, table, tmp_path):
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin" / "label_efficiency.gin")],
        [f"Models.models = {runs}"],
    )
    analyze(tmp_path)
    written = pandas.read_csv(tmp_path / "label_efficiency.csv")
    pandas.testing.assert_frame_equal(written, table)
    for suffix in ("png", "svg"):
        path = tmp_path / f"label_efficiency.{suffix}"
        assert path.stat().st_size > 1000


def test_figure(table):
    axes = kt.figures.label_efficiency(table).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["P-T", "RI-T", "P-T frozen", "not converged"]
    assert list(axes.get_xticks()) == [20, 40, 160]


def test_claim(table):
    saved, gain = find_analysis("label_efficiency").statistics
    assert (saved.claim, saved.direction, saved.threshold) == ("L1", ">", 1)
    assert (gain.claim, gain.direction, gain.threshold) == ("L1", ">", 0)
    assert saved.decides and not gain.decides
    # RI-Ts have 0.5 with 40 images and 0.7 with 160: halfway in log2.
    value, note = saved.compute(table)
    assert value == pytest.approx(80 / 20)
    assert note.startswith("RI-T not converged") and "RI-T_160_0" in note
    value, note = gain.compute(table)
    assert value == pytest.approx(0.9 - 0.65)
    assert note == "With 160 images."
    flat = table.assign(converged=True)
    assert saved.compute(flat).note == ""


def test_bounds(table):
    table = table.assign(converged=True)
    low = table.final.where(table.kind != "RI-T", table.final - 0.2)
    value, note = labels_saved(table.assign(final=low))
    assert value == 160 / 20 and note == "At least 8 times as many."
    high = table.final.where(table.kind != "RI-T", table.final + 0.5)
    value, note = labels_saved(table.assign(final=high))
    assert value == 1 and note == "At most 1 times as many."
    # With 20 images there was no RI-T.
    rest = table.assign(final=high)
    rest = rest[(rest.kind == "P-T") | (rest.num_images > 20)]
    assert labels_saved(rest) == (2, "At most 2 times as many.")


def test_images_to_reach():
    curve = pandas.Series([0.2, 0.5, 0.4, 0.8], index=[50, 100, 200, 800])
    assert images_to_reach(0.5, curve) == (pytest.approx(100), "")
    assert images_to_reach(0.2, curve) == (50, "")
    assert images_to_reach(0.1, curve) == (50, "At most")
    assert images_to_reach(0.9, curve) == (800, "At least")
    # From the first time on: 50 * 2 ** (2 / 3), and 200 * 4 ** (1 / 2).
    number, _ = images_to_reach(0.4, curve)
    assert number == pytest.approx(50 * 2 ** (2 / 3))
    number, _ = images_to_reach(0.6, curve)
    assert number == pytest.approx(400)


def test_what_is_missing_for_the_statistics(table):
    for kind in ("P-T", "RI-T"):
        with pytest.raises(UserError, match=f"no {kind}"):
            labels_saved(table[table.kind != kind])
    with pytest.raises(UserError, match="no P-T frozen"):
        gain_of_fine_tuning(table[table.kind != "P-T frozen"])
    apart = (table.kind == "P-T") & (table.num_images == 40)
    apart |= (table.kind == "P-T frozen") & (table.num_images == 160)
    with pytest.raises(UserError, match="of which there are both"):
        gain_of_fine_tuning(table[apart])


def test_trajectories():
    named = {
        kind: [
            written_models.fitted(seed, epochs=5, num_train=number)
            for number in (12, 24)
        ]
        for seed, kind in enumerate(("P-T", "RI-T"))
    }
    table = kt.label_efficiency(kt.Models(named))
    assert list(table.num_images) == [12, 12, 24, 24]
    history = named["P-T"][1].model.history.history["val_accuracy"]
    row = table[(table.kind == "P-T") & (table.num_images == 24)]
    assert row.final.item() == pytest.approx(history[-1])


def test_what_cannot_be_compared(runs, tmp_path):
    def run(**models):
        kt.label_efficiency(kt.Models(models))

    with pytest.raises(UserError, match="Received: no P-T, no RI-T"):
        run(P=runs["P-T"])
    with pytest.raises(UserError, match="Received: 1 of 20 images"):
        run(**{"P-T": runs["P-T"][:1]})
    silent = written_models.fitted(0, epochs=1)
    with pytest.raises(UserError, match="P-T 0, which does not say"):
        run(**{"P-T": silent})
    other = write(tmp_path / "other", [0, 1], image_size=16, num_train=40)
    with pytest.raises(UserError, match=r"image_shape = \(8, 8, 1\)"):
        run(**{"P-T": [runs["P-T"][0], other]})
