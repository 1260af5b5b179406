"""Two studies side by side."""

import math

import commands
import pandas
import pytest

from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest, csv_text
from keras_transfer.study.report.comparison import (
    compare,
    comparison_text,
    write_comparison,
)

NAN = math.nan


def claim(name, statistic, value, low, high, verdict, target="t", **others):
    return {
        "claim": name,
        "target": target,
        "statement": f"Statement of {name}.",
        "statistic": statistic,
        "unit": "points",
        "value": value,
        "low": low,
        "high": high,
        "direction": ">",
        "threshold": 0.0,
        "decides": True,
        "finding": verdict,
        "verdict": verdict,
    } | others


FIRST = [
    claim("C1", "gain", 0.02, 0.01, 0.03, "reproduced"),
    claim("C1", "beside", 1.0, NAN, NAN, "reproduced", decides=False),
    claim("C2", "speed", 0.05, 0.01, 0.06, "reproduced"),
    claim("C3", "kappa", 0.1, 0.0, 0.2, "inconclusive", unit=NAN),
]
SECOND = [
    claim("C2", "speed", 0.04, 0.02, 0.09, "reproduced"),
    claim("C1", "gain", -0.02, -0.05, 0.005, "inconclusive"),
    claim("C9", "paths", 0.9, 0.8, 1.0, "reproduced", unit=""),
]


def write(path, rows):
    manifest = Manifest(path, "study")
    manifest.claim()
    manifest.write_text("claims.csv", csv_text(pandas.DataFrame(rows)))
    return path


@pytest.fixture
def studies(tmp_path):
    return write(tmp_path / "a", FIRST), write(tmp_path / "b", SECOND)


def test_statistics_are_matched(studies):
    found = compare(*studies)
    order = ["gain", "beside", "speed", "kappa", "paths"]
    assert list(found.statistic) == order
    by_name = found.set_index("statistic")
    assert by_name.difference["gain"] == pytest.approx(-0.04)
    assert by_name.intervals["gain"] == "apart"
    assert by_name.difference["speed"] == pytest.approx(-0.01)
    assert by_name.intervals["speed"] == "overlap"
    assert by_name.verdict_1["gain"] == "reproduced"
    assert by_name.verdict_2["gain"] == "inconclusive"
    # What only one of them has.
    assert by_name.verdict_2["kappa"] == "" and by_name.verdict_1["paths"] == ""
    assert math.isnan(by_name.difference["kappa"])
    assert by_name.intervals["beside"] == ""


def test_targets_of_other_names(tmp_path):
    one = write(tmp_path / "a", [FIRST[0]])
    other = write(tmp_path / "b", [SECOND[1] | {"target": "u"}])
    (row,) = compare(one, other).itertuples()
    assert row.target == "t / u" and row.intervals == "apart"
    # Of several targets each is held against its own.
    several = [FIRST[0], FIRST[0] | {"target": "u", "value": 0.5}]
    found = compare(write(tmp_path / "c", several), other)
    assert list(found.target) == ["t", "u"]
    assert math.isnan(found.difference[0])
    assert found.difference[1] == pytest.approx(-0.52)


def test_what_is_printed(studies):
    lines = comparison_text(compare(*studies), ["old", "new"]).splitlines()
    assert lines[0].split() == ["old", "new", "second", "minus", "first"]
    assert "C1 t: Statement of C1." in lines[1]
    assert "✓ reproduced" in lines[1] and "≈ inconclusive" in lines[1]
    assert "2 points (1 to 3 points)" in lines[2]
    assert lines[2].endswith("-4 points, apart")
    # What decides nothing is in the file alone.
    assert not any("beside" in line for line in lines)
    assert "not examined" in lines[-2]


def test_the_page(studies, tmp_path):
    path = tmp_path / "page.html"
    write_comparison(path, compare(*studies), ["old", "<new>"])
    text = path.read_text(encoding="utf-8")
    assert "beside (beside)" in text and "-4 points, apart" in text
    assert "&lt;new&gt;" in text and "<new>" not in text
    assert "Of 4 claims, 3 have another verdict" in text


def test_what_cannot_be_compared(studies, tmp_path):
    first, _ = studies
    with pytest.raises(UserError, match="no statistic in common"):
        compare(first, write(tmp_path / "c", SECOND[2:]))
    with pytest.raises(UserError, match=r"claims.csv.*Received: .*nowhere"):
        compare(first, tmp_path / "nowhere")
    Manifest(tmp_path / "run", "run").claim()
    with pytest.raises(UserError, match="cannot be that of"):
        compare(first, tmp_path / "run")


def test_the_command(studies, tmp_path):
    status, output, errors = commands.run("compare", *studies, cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert "C1 t: Statement of C1." in output
    assert "<title>a and b</title>" in (tmp_path / "compare.html").read_text()
    status, _, errors = commands.run("compare", "a", cwd=tmp_path)
    assert status == 1 and "two studies. Received: 1." in errors
