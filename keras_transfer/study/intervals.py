"""From a number of each replication to an interval."""

import math

import numpy as np

# Of fewer replications the widest interval covers less than nine in ten times.
FEWEST = 5


def median_interval(values, confidence=0.95):
    """Returns the median of independent numbers and an interval for it.

    The ends of the interval are order statistics, so that it holds whatever the
    distribution, never leaves the range of a statistic and bears infinite
    values. Between the two pairs of order statistics whose confidence lies
    around the one asked for, it is interpolated; of five numbers the widest
    one, from the least to the greatest, has 93.75%.

    Source: Hettmansperger and Sheather 1986, "Confidence intervals based on
    interpolated order statistics".

    Args:
        values: float [n].
        confidence: float in (0, 1).

    Returns:
        median, low, high: floats; low and high are NaN of fewer than `FEWEST`
        values, and where they would be the same.
    """
    from scipy import stats

    ordered = np.sort(np.asarray(values, np.float64))
    n, median = len(ordered), float(np.median(ordered))
    if n < FEWEST:
        return median, math.nan, math.nan
    # From the k-th least to the k-th greatest: k = 1, 2, ...
    ranks = np.arange(1, (n + 1) // 2 + 1)
    covers = 1 - 2 * stats.binom.cdf(ranks - 1, n, 0.5)
    k = int(np.count_nonzero(covers >= confidence)) or 1
    share = 0.0
    if k < len(ranks) and covers[k - 1] > confidence:
        between = covers[k - 1] - covers[k]
        inward = (covers[k - 1] - confidence) / between
        share = (n - k) * inward / (k + (n - 2 * k) * inward)
    low = _between(ordered[k - 1], ordered[min(k, n - 1)], share)
    high = _between(ordered[n - k], ordered[max(n - k - 1, 0)], share)
    if low == high:
        return median, math.nan, math.nan
    return median, low, high


def _between(outer, inner, share):
    # Infinite values would make NaN of it.
    if share in (0.0, 1.0) or outer == inner:
        return float(inner if share == 1.0 else outer)
    return float((1 - share) * outer + share * inner)
