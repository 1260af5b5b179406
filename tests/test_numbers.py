import math

import pytest

from keras_transfer.study.report.numbers import amount, extent, number


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.0126, "points", "1.3 points"),
        (-0.00004, "points", "0.0 points"),
        (0.05, "points", "5 points"),
        (0.01, "points", "1 point"),
        (0.4, "%", "40%"),
        (2.0107, "times", "2.01 times"),
        (0.03686, "nats", "0.0369 nats"),
        (0.5, "", "0.5"),
        (12345.6, "", "12346"),
        (math.nan, "points", "–"),
        (math.inf, "times", "∞ times"),
        (-math.inf, "points", "-∞ points"),
    ],
)
def test_amounts(value, unit, said):
    assert amount(value, unit) == said


def test_extents():
    assert extent(-0.0104, 0.00962, "points") == "-1.0 to 1.0 points"
    assert extent(0.2, 0.4, "%") == "20 to 40%"
    assert extent(1.0, math.inf, "") == "1 to ∞"
    assert extent(math.nan, 1.0, "") == ""


def test_words_and_nothing():
    assert number("P-T") == "P-T" and number(None) == "–"
