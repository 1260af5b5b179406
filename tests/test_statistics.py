import math

import numpy as np
import pandas
import pytest
from scipy import stats

from keras_transfer.analysis.statistics import (
    excess_of_pretrained_pairs,
    rank_correlation,
    trend_p_value,
)
from keras_transfer.errors import UserError


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("digits", [0, 9])
def test_a_trend_is_held_against_every_order(seed, digits):
    # Rounded to whole numbers there are ties.
    values = np.random.default_rng(seed).normal(0, 2, 6).round(digits)
    position = np.arange(6)
    expected = stats.spearmanr(position, values).statistic
    assert rank_correlation(values) == pytest.approx(expected)
    exact = stats.permutation_test(
        (values,),
        lambda x: stats.spearmanr(position, x).statistic,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert trend_p_value(values) == pytest.approx(exact.pvalue)


def test_the_trend_of_few_modules():
    # The one order of all that is as high.
    assert trend_p_value([1, 2, 3, 4, 5, 6, 7, 8]) == 1 / math.factorial(8)
    assert trend_p_value([3, 2, 1]) == 1
    assert math.isnan(trend_p_value([1, 2]))
    assert math.isnan(trend_p_value([2, 2, 2, 2]))


def test_the_trend_of_many_modules_is_near_the_exact_one():
    values = np.random.default_rng(5).normal(0, 8, 14) + np.arange(14)
    assert 1e-5 < trend_p_value(values) == trend_p_value(values)
    expected = stats.spearmanr(np.arange(14), values, alternative="greater")
    assert trend_p_value(values) == pytest.approx(expected.pvalue, rel=0.3)


def test_pairs_are_compared_kind_by_kind():
    kinds = pandas.Series(["P-T/P-T", "RI-T/P-T", "P-T/RI-T", "RI-T/RI-T"])
    values = pandas.Series([5.0, 1.0, 2.0, 3.0])
    assert excess_of_pretrained_pairs(kinds, values, "P-T/RI-T") == 3.5
    assert excess_of_pretrained_pairs(kinds, values, "RI-T/RI-T") == 2.0
    with pytest.raises(UserError, match="no RI-T/RI-T"):
        excess_of_pretrained_pairs(kinds[:3], values[:3], "RI-T/RI-T")
