"""What the statistics of several analyses have in common."""

import functools
import itertools

import numpy as np

from keras_transfer.errors import UserError

# From here on there is a barrier: a share, of accuracy or AUC.
BARRIER = 0.05
# Less than this is no harm: a share, of accuracy or AUC.
HARM = 0.01
# A permutation test calls a trend no chance if its p is below.
SIGNIFICANCE = 0.05

# Of more things than these, not all orders are gone through.
_MOST_PERMUTED = 9
_NUM_PERMUTATIONS = 100_000


def rank_correlation(values):
    """Returns Spearman's correlation of values with their position.

    Args:
        values: float [n], such as a measure of each module, by depth.

    Returns:
        float in [-1, 1]; NaN for fewer than three values, or if all are equal.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    if len(values) < 3 or np.ptp(stats.rankdata(values)) == 0:
        return float("nan")
    return float(stats.spearmanr(np.arange(len(values)), values).statistic)


def trend_p_value(values):
    """Returns how probable a rank correlation this high is by chance.

    The one-sided permutation test of `rank_correlation`: in how many of all
    orders of the values it is as high. It is exact up to nine values; of more,
    100,000 orders are drawn, the same every time.

    Args:
        values: float [n].

    Returns:
        float in (0, 1]; NaN where there is no rank correlation.
    """
    from scipy import stats

    observed = rank_correlation(values)
    if np.isnan(observed):
        return observed
    ranks = stats.rankdata(values)
    products = _orders(len(ranks)) @ ranks
    found = np.arange(1, len(ranks) + 1) @ ranks
    # Sums of halves are exact.
    as_high = np.count_nonzero(products >= found)
    if len(ranks) <= _MOST_PERMUTED:
        return as_high / len(products)
    return (as_high + 1) / (len(products) + 1)


@functools.cache
def _orders(n):
    """Returns orders of 1, ..., n, float [orders, n]."""
    if n <= _MOST_PERMUTED:
        every = itertools.permutations(range(1, n + 1))
        return np.array(list(every), np.float64)
    start = np.tile(np.arange(1.0, n + 1), (_NUM_PERMUTATIONS, 1))
    return np.random.default_rng(0).permuted(start, axis=1)


def excess_of_pretrained_pairs(kinds, values, other):
    """Compares pairs of P-Ts with other pairs, as claims C3 and C4 do.

    Args:
        kinds: `pandas.Series` of kinds of pair, as `Models.pairs` names them.
        values: `pandas.Series` [n], a similarity of each pair.
        other: "P-T/RI-T" (in either order) or "RI-T/RI-T".

    Returns:
        float, the mean over P-T/P-T minus that over the others.

    Raises:
        UserError: if a kind of pair is missing.
    """
    means = values.groupby(kinds.replace("RI-T/P-T", "P-T/RI-T")).mean()
    check_pairs(means.index, ["P-T/P-T", other])
    return float(means["P-T/P-T"] - means[other])


def check_pairs(kinds, needed):
    """Raises a `UserError` if a kind of pair that is needed is missing.

    Args:
        kinds: the kinds there are.
        needed: list of str.
    """
    if missing := [kind for kind in needed if kind not in kinds]:
        raise UserError(
            "This statistic compares pairs of P-Ts with pairs of RI-Ts, so two "
            f"models of each must be named. Received: no {', '.join(missing)}."
        )
