import math

import numpy as np
import pytest
from scipy import stats

from keras_transfer.study.intervals import median_interval


@pytest.mark.parametrize(
    "n, k", [(5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (40, 14)]
)
def test_it_lies_between_the_order_statistics_of_a_sign_test(n, k):
    values = np.random.default_rng(n).normal(size=n)
    median, low, high = median_interval(values)
    assert median == np.median(values)
    # Of those that cover enough, the narrowest, and the next.
    exact = stats.quantile_test(values).confidence_interval(0.95)
    ordered = np.sort(values)
    if n > 5:
        assert tuple(exact) == (ordered[k - 1], ordered[n - k])
    assert ordered[k - 1] <= low <= ordered[k]
    assert ordered[n - k - 1] <= high <= ordered[n - k]


def test_it_is_as_hettmansperger_and_sheather_interpolate():
    # By hand, for eight: 1 - 2 / 256 and 1 - 18 / 256 lie around 0.95, and
    # lambda = (8 - 1) I / (1 + (8 - 2) I) with I = (0.9922 - 0.95) / 0.0625.
    inward = (1 - 2 / 256 - 0.95) / (16 / 256)
    share = 7 * inward / (1 + 6 * inward)
    values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
    _, low, high = median_interval(values)
    assert low == pytest.approx(share)
    assert high == pytest.approx(8 - 2 * share)


def test_it_is_none_of_few_or_equal_values():
    for values in ([1.0], [1.0, 2.0, 3.0, 4.0], [0.5] * 8):
        median, low, high = median_interval(values)
        assert median == np.median(values)
        assert math.isnan(low) and math.isnan(high)


def test_what_is_infinite_does_no_harm():
    values = [-math.inf, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, math.inf]
    assert median_interval(values) == (3.5, -math.inf, math.inf)
    values = [-math.inf] * 5 + [1.0, 2.0, 3.0]
    median, low, high = median_interval(values)
    assert (median, low) == (-math.inf, -math.inf) and high > 1


def rank_correlations(modules, slope):
    """Returns a draw: Spearman's of noisy modules with their depth."""

    def draw(rng, n):
        values = rng.normal(size=(n, modules)) + slope * np.arange(modules)
        ranks = stats.rankdata(values, axis=1)
        squares = ((ranks - np.arange(1, modules + 1)) ** 2).sum(axis=1)
        return 1 - 6 * squares / (modules * (modules**2 - 1))

    return draw


# What occurs: rank correlations, differences of shares of 797 test images,
# ratios, shares near their ends, ranks of a head.
DRAWS = {
    "rank correlation of 5": rank_correlations(5, 0.5),
    "rank correlation of 8": rank_correlations(8, 0.1),
    "high rank correlation of 8": rank_correlations(8, 0.6),
    "rank correlation of 11": rank_correlations(11, 0.3),
    "accuracies": lambda rng, n: (
        rng.binomial(797, 0.97, n) - rng.binomial(797, 0.96, n)
    ),
    "ratio": lambda rng, n: rng.lognormal(0, 1, n) / rng.lognormal(0, 1, n),
    "skewed": lambda rng, n: rng.lognormal(0, 1.5, n),
    "share": lambda rng, n: rng.beta(0.5, 0.5, n),
    "rank": lambda rng, n: rng.integers(1, 4, n),
    "normal": lambda rng, n: rng.normal(size=n),
}


@pytest.mark.parametrize("n", [5, 6, 8])
@pytest.mark.parametrize("name", DRAWS)
def test_it_covers_the_median_as_often_as_it_says(name, n):
    rng = np.random.default_rng(0)
    draw, times = DRAWS[name], 2000
    median = np.median(draw(rng, 200_001))
    found = np.array([median_interval(draw(rng, n))[1:] for _ in range(times)])
    # Where there is none, nothing is said.
    none = np.isnan(found[:, 0])
    covered = none | ((found[:, 0] <= median) & (median <= found[:, 1]))
    # 0.93, less two standard errors of what is counted.
    assert covered.mean() >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / times)
    assert none.mean() < 0.1
    assert (found[~none, 0] < found[~none, 1]).all()
