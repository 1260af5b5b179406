"""The sentences at the top of a report, and where in the network they are."""

import dataclasses
import math

import numpy as np
import pandas
import pytest

from keras_transfer.study.report import Report
from keras_transfer.study.report.answers import answers, change
from keras_transfer.study.report.modules import by_module
from keras_transfer.study.report.tables import Tables

NAN = math.nan
MODULES = ("conv1", "layer1.0", "fc")
# Of each replication, how much better P-Ts are at the end, and on average.
FINAL = [0.01, 0.03, 0.02, 0.05, 0.04]
SPEED = [-0.01, 0.02, 0.01, 0.0, 0.03]


def row(claim, name, value, low, high, finding, unit="points", **others):
    return {
        "claim": claim,
        "target": "t",
        "statement": f"Statement of {claim}.",
        "statistic": name,
        "unit": unit,
        "value": value,
        "low": low,
        "high": high,
        "direction": ">",
        "threshold": 0.0,
        "decides": True,
        "finding": finding,
        "verdict": finding,
        "replications": 5,
        "note": "",
    } | others


def claims(finding="reproduced"):
    part = "final accuracy from the first checkpoint"
    saved = "how many times as many images RI-Ts need"
    return pandas.DataFrame(
        [
            row("C6", "barrier of P-T/P-T", 0.004, 0.0, 0.02, finding),
            row("C6", "barrier of P-T/RI-T", 0.4, 0.3, 0.5, "reproduced"),
            row("C6", "barrier of RI-T/RI-T", 0.5, 0.4, 0.6, "reproduced"),
            row("C7", "margin, P-T/P-T", 0.1, 0.0, 0.2, finding, "nats"),
            row("C11", part, -0.02, -0.03, -0.01, finding),
            row("C12", "the average minus", -0.015, -0.02, -0.01, finding),
            row("L1", saved, 2.0, 1.5, 2.5, "reproduced", "times"),
        ]
    )


def runs():
    return pandas.DataFrame(
        {
            "name": f"replication_{r}/t/{kind}_{i}",
            "kind": kind,
            "target": "t",
            "replication": r,
            "final": 0.9 + (FINAL[r] if kind == "P-T" else 0) + 0.01 * i,
            "speed": 0.7 + (SPEED[r] if kind == "P-T" else 0),
        }
        for r in range(5)
        for kind in ("P-T", "RI-T")
        for i in range(2)
    )


@pytest.fixture
def study(tmp_path):
    """Five replications whose tables differ by known numbers."""
    for r in range(5):
        place = tmp_path / f"replication_{r}" / "analyses" / "t"
        write(place, "criticality", criticality=criticality(r))
        write(place, "distance", distance=distance(r))
        write(place, "similarity", similarity=similarity(r))
        write(place, "rewinding", rewinding=rewinding(r))
        write(place, "pretraining", **pretraining(first=2 if r else 4))
    table = claims()
    values = pandas.DataFrame(
        {"claim": "C6", "target": "t", "replication": range(5), "note": ""}
    )
    curves = runs()[["target"]].assign(run=runs()["name"], metric="accuracy")
    empty = pandas.DataFrame()
    return Report(
        "T", "Q", table, values, runs(), curves, empty, [], {}, "", tmp_path
    )


def write(place, analysis, **tables):
    (place / analysis).mkdir(parents=True)
    for name, table in tables.items():
        table.to_csv(place / analysis / f"{name}.csv", index=False)


def criticality(r):
    found = pandas.DataFrame(
        {
            "kind": "P-T",
            "name": "P-T_0",
            "path": path,
            "end_point": "final",
            "level": level,
            "module": module,
            "depth": float(k),
            "at_most": (5.0 + r) * k if path == "direct" else 1e6,
        }
        for path in ("direct", "optimization")
        for level in ("block", "group")
        for k, module in enumerate(MODULES)
    )
    total = found.iloc[:1].assign(module="total", depth=NAN)
    return pandas.concat([found, total])


def distance(r):
    return pandas.DataFrame(
        {
            "pair": pair,
            "module": module,
            "depth": float(k),
            "l2": 6.0 * (k + 1) + r - 2,
            "parameters": 9,
        }
        for pair in ("P to P-T", "P-T/P-T")
        for k, module in enumerate(MODULES)
    )


def similarity(r):
    return pandas.DataFrame(
        {
            "pair": "P-T/P-T",
            "first_module": first,
            "second_module": second,
            "cka": 0.9 - 0.1 * k + (r - 2) / 100 if first == second else 0.0,
        }
        for k, first in enumerate(MODULES)
        for second in MODULES
    )


def rewinding(r):
    # P-T_0 ends at 0.9 and what P gave; conv1 loses nothing of it.
    end = 0.9 + FINAL[r]
    return pandas.DataFrame(
        {
            "kind": "P-T",
            "name": "P-T_0",
            "end_point": "final",
            "split": split,
            "level": "block",
            "module": module,
            "depth": float(k),
            "epoch": epoch,
            "accuracy": end - 0.2 * k if (split, epoch) == ("test", 0) else 0.0,
        }
        for split in ("train", "test")
        for epoch in (0, 5)
        for k, module in enumerate(MODULES)
    )


def pretraining(first):
    epochs = [0, 2, 4, 8]
    sweep = pandas.DataFrame(
        {"kind": "P-T", "name": "x", "epoch": epochs, "final": 0.5}
    )
    heights = pandas.DataFrame(
        {
            "epoch": epochs,
            "measure": "accuracy",
            "in_basin": [epoch >= first for epoch in epochs],
        }
    )
    return {"pretraining": sweep, "pretraining_barriers": heights}


def told(study):
    tables = Tables(study.directory, study.replications)
    modules = by_module(tables, "t", study.runs)
    return dict(answers(study, tables, modules, "t"))


def test_modules_have_the_medians_of_all_replications(study):
    tables = Tables(study.directory, study.replications)
    found = by_module(tables, "t", study.runs)
    assert list(found.module) == list(MODULES)
    assert set(found.kind) == {"P-T"}
    np.testing.assert_allclose(found.criticality, [0, 7, 14])
    # Over the root of nine parameters.
    np.testing.assert_allclose(found.distance, [2, 4, 6])
    np.testing.assert_allclose(found.cka, [0.9, 0.8, 0.7])
    np.testing.assert_allclose(found.cost, [0, 0.2, 0.4], atol=1e-12)
    # Without the runs it is not known what was lost.
    assert by_module(tables, "t", pandas.DataFrame()).cost.isna().all()
    assert not len(by_module(tables, "other", study.runs))


def test_what_p_gave(study):
    said = told(study)["What did P give?"]
    # Of five numbers the interval goes from the least to the greatest.
    final = "P gave 3 points (95% interval 1 to 5 points)"
    assert f"Accuracy after the last epoch: {final}." in said
    chance = "nothing that can be told from chance, 1 point (95% interval -1"
    assert chance in said
    labels = "RI-Ts need 2 times as many (95% interval 1.5 to 2.5 times)"
    assert labels in said


def test_what_p_cost(study):
    worse = study.runs.copy()
    worse.loc[worse.kind == "P-T", "final"] -= 0.06
    said = told(dataclasses.replace(study, runs=worse))["What did P give?"]
    assert "P cost 3 points (95% interval 1 to 5 points)" in said


def test_where_it_is(study):
    said = told(study)["Where is it?"]
    assert said.startswith("conv1 carries it")
    assert "Do not touch fc (40 points) and layer1.0 (20 points)" in said
    assert said.endswith("Most critical: fc and layer1.0.")


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (
            "reproduced",
            [
                "There is no barrier between two P-Ts: 0.4 points (95% "
                "interval 0 to 2 points), and they share one basin",
                "You may average them: their average is 1.5 points worse",
                "Start from epoch 4",
            ],
        ),
        (
            "not reproduced",
            [
                "There is a barrier between two P-Ts",
                "they do not share a basin",
                "Do not average them",
                "Start from the last: earlier ones do harm",
            ],
        ),
        (
            "inconclusive",
            [
                "Whether two P-Ts are parted by a barrier is open",
                "whether they share a basin is open",
                "Whether averaging them does harm is open",
                "start from the last if you can",
            ],
        ),
    ],
)
def test_advice_follows_the_findings(study, finding, words):
    said = told(dataclasses.replace(study, claims=claims(finding)))
    text = " ".join(said.values())
    for part in words:
        assert part in text
    assert "epochs 2 to 4 of 8" in text
    assert "Do not average RI-Ts, whose barrier is 50 points" in text
    counts = {"reproduced": 5, finding: 4} | {"reproduced": 1}
    if finding == "reproduced":
        counts = {"reproduced": 5}
    assert f"{counts[finding]} {finding}" in said["How sure is it?"]


def test_nothing_measured_is_said(study, tmp_path):
    empty = pandas.DataFrame()
    bare = dataclasses.replace(
        study,
        claims=empty,
        values=empty,
        runs=empty,
        curves=empty,
        directory=tmp_path / "nowhere",
    )
    said = told(bare)
    assert len(said) == 5
    assert all(
        "ot measured" in text or "No claim" in text for text in said.values()
    )


def test_what_would_change_a_verdict():
    def of(**others):
        one = row("C1", "gain", 0.02, 0.01, 0.03, "reproduced") | others
        return change(pandas.DataFrame([one]))

    assert "“gain”, ends 1 point from 0 points." in of()
    wrong = {"finding": "not reproduced", "verdict": "not reproduced"}
    below = of(value=-0.02, low=-0.03, high=-0.015, **wrong)
    assert "ends 1.5 points short of 0 points" in below
    is_open = {"finding": "inconclusive", "verdict": "inconclusive"}
    # The lower end lies twice as far from the median as the threshold: four
    # times as many replications.
    assert "Some 20 replications" in of(low=-0.02, high=0.06, **is_open)
    assert "would not decide it" in of(value=0.0001, low=-0.05, **is_open)
    assert "Replications that differ" in of(low=NAN, high=NAN, **is_open)
    undecided = {"finding": "not decided", "verdict": "not decided"}
    assert "needs 5 replications" in of(**undecided)
