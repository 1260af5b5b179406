import itertools
import math

import numpy as np
import pandas
import pytest

from keras_transfer.analysis import declaration
from keras_transfer.analysis.declaration import Statistic, Value
from keras_transfer.errors import UserError
from keras_transfer.study.claims import decide, finding, statistics


@pytest.mark.parametrize(
    "value, low, high, direction, threshold, expected",
    [
        (2, 1, 3, ">", 0, "reproduced"),
        (2, -1, 5, ">", 0, "inconclusive"),
        (-2, -3, -1, ">", 0, "not reproduced"),
        (0.5, 0.4, 0.6, "<", 1, "reproduced"),
        (1.5, 1.4, 1.6, "<", 1, "not reproduced"),
        (1.5, 0.4, 2.6, "<", 1, "inconclusive"),
        (2, math.nan, math.nan, ">", 0, "inconclusive"),
    ],
)
def test_finding(value, low, high, direction, threshold, expected):
    assert finding(value, low, high, direction, threshold) == expected


def write_heights(study, replication, name="barriers", more=0.0):
    """Writes heights.csv: two heights, and so much more."""
    place = study / f"replication_{replication}" / "analyses" / "t" / name
    place.mkdir(parents=True)
    table = pandas.DataFrame({"pair": ["near", "far"], "height": [0.01, 0.8]})
    table.height += more
    table.to_csv(place / "heights.csv", index=False)


def height(table, pair="near"):
    return table[table.pair == pair].height.item()


def own_statistic(claim, compute=height, direction=">", **options):
    """Returns a statistic of heights.csv, held against 0.05."""
    statement = ("It is so.", "it", direction, 0.05)
    return Statistic(claim, *statement, compute, ("heights",), **options)


_NUMBERS = itertools.count()


def declare(monkeypatch, *statistics):
    """Declares an analysis for one test."""
    monkeypatch.setattr(declaration, "_DECLARED", dict(declaration._DECLARED))

    def function(models):
        pass

    # Gin takes each name but once.
    function.__name__ = f"barriers_{next(_NUMBERS)}"
    figures = [declaration.Figure("picture", None)]
    declaration.declare_analysis(figures, statistics)(function)


@pytest.mark.parametrize("name", ["barriers", "elsewhere"])
def test_a_claim_is_as_good_as_its_worst_statistic(tmp_path, monkeypatch, name):
    declare(
        monkeypatch,
        own_statistic("X1", direction="<"),
        own_statistic("X1", lambda table: height(table, "far"), "<"),
        own_statistic("X1", decides=False),
    )
    # In whichever directory the table lies.
    for number in range(8):
        write_heights(tmp_path, number, name, number / 1000)
    (tmp_path / "replication_0/analyses/t/another").mkdir()
    found, values = decide(tmp_path, ["t"], 8)
    own = found[found.claim == "X1"]
    assert list(own.value) == pytest.approx([0.0135, 0.8035, 0.0135])
    assert list(own.finding) == ["reproduced", "not reproduced", ""]
    assert set(own.verdict) == {"not reproduced"}
    assert set(own.replications) == {8}
    place = f"replication_0/analyses/t/{name}"
    assert set(own.figure) == {f"{place}/picture"}
    assert set(own.table) == {f"{place}/heights"}
    others = found[found.claim != "X1"]
    assert set(others.verdict) == {"not decided"}
    note = found[found.claim == "C12"].note.iloc[0]
    assert note.startswith("analyses/t/averaging/averaging.csv is not there")
    second = values[(values.claim == "X1") & (values.replication == 2)]
    assert second.value.iloc[0] == pytest.approx(0.012)


def test_few_replications_give_values_and_no_verdict(tmp_path, monkeypatch):
    declare(monkeypatch, own_statistic("X1"))
    for number in range(4):
        write_heights(tmp_path, number, more=number / 1000)
    found, _ = decide(tmp_path, ["t"], 4)
    own = found[found.claim == "X1"].iloc[0]
    assert own.value == pytest.approx(0.0115) and math.isnan(own.low)
    assert own.verdict == "not decided"
    assert "Of 4 replications: a value, and no verdict" in own.note


def test_replications_that_agree_leave_it_open(tmp_path, monkeypatch):
    declare(monkeypatch, own_statistic("X1"))
    for number in range(8):
        write_heights(tmp_path, number)
    found, _ = decide(tmp_path, ["t"], 8)
    own = found[found.claim == "X1"].iloc[0]
    assert math.isnan(own.low) and own.finding == "inconclusive"
    assert "All 8 replications give the same" in own.note


def test_most_replications_agree(tmp_path, monkeypatch):
    declare(monkeypatch, own_statistic("X1"))
    for number in range(9):
        write_heights(tmp_path, number, more=0.5 * (number == 4))
    found, _ = decide(tmp_path, ["t"], 9)
    own = found[found.claim == "X1"].iloc[0]
    assert math.isnan(own.low) and own.finding == "inconclusive"
    assert "Most replications give the same" in own.note


def test_every_claim_has_a_statistic_that_decides():
    claims = [s.claim for _, s in statistics() if s.decides]
    assert set(claims) == {f"C{i}" for i in range(1, 13)} | {"L1"}
    # C1, C2, ..., C10, and then those of other names.
    numbers = [int(c[1:]) if c[0] == "C" else 99 for c in claims]
    assert numbers == sorted(numbers)


def test_claims_of_others_come_after_the_papers(monkeypatch, tmp_path):
    declare(
        monkeypatch,
        own_statistic("X2", direction="<"),
        own_statistic("C1b"),
        own_statistic("C11"),
        own_statistic("X3", decides=False),
    )
    for number in range(5):
        write_heights(tmp_path, number, more=number / 1000)
    found, _ = decide(tmp_path, ["t"], 5)
    claims = list(dict.fromkeys(found.claim))
    assert claims == [f"C{i}" for i in range(1, 13)] + ["C1b", "L1", "X2", "X3"]
    assert set(found[found.claim == "X2"].verdict) == {"reproduced"}
    assert "not reproduced" in set(found[found.claim == "C11"].finding)
    # What decides nothing is shown beside.
    beside = found[found.claim == "X3"].iloc[0]
    assert (beside.finding, beside.verdict) == ("", "not decided")


def test_others_choose_what_a_replication_is_judged_by(monkeypatch, tmp_path):
    def compute(table, chosen):
        return chosen - height(table)

    def calibrate(others):
        return sum(height(table) for (table,) in others)

    own = own_statistic("X1", compute, calibrate=calibrate)
    declare(monkeypatch, own)
    for number in range(5):
        write_heights(tmp_path, number, more=number / 100)
    _, values = decide(tmp_path, ["t"], 5)
    heights = 0.01 + np.arange(5) / 100
    found = values[values.claim == "X1"].value
    np.testing.assert_allclose(found, heights.sum() - 2 * heights)


def test_what_is_not_there_refutes_and_an_error_does_not(monkeypatch, tmp_path):
    def refute(table):
        raise declaration.Refuted("There was none.")

    def fail(table):
        return table["no such column"]

    def complain(table):
        raise UserError("It is not known.")

    def remark(table):
        return Value(height(table, "far"), "It is high.")

    def outdated(table):
        return height(table), 0.0, 1.0

    own = {"X1": refute, "X2": fail, "X3": complain, "X4": remark}
    own["X5"] = outdated
    declare(monkeypatch, *(own_statistic(*pair) for pair in own.items()))
    for number in range(5):
        write_heights(tmp_path, number, more=number / 1000)
    found, _ = decide(tmp_path, ["t"], 5)
    found = found.set_index("claim")
    assert found.value["X1"] == -math.inf
    assert found.note["X1"].endswith("There was none.")
    assert found.verdict["X2"] == found.verdict["X3"] == "not decided"
    failed = "It cannot be computed. KeyError: 'no such column'"
    assert found.note["X2"] == failed
    assert found.note["X3"] == "It is not known."
    assert found.verdict["X5"] == "not decided"
    assert found.note["X5"].startswith("It cannot be computed. TypeError")
    assert found.verdict["X4"] == "reproduced"
    assert found.note["X4"] == "It is high."
