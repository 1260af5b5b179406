"""Means over pairs of models, with the uncertainty that seeds bring."""

import numpy as np


def mean_over_pairs(first, second, values, confidence=0.95):
    """Returns the mean over pairs and its confidence interval over seeds.

    Pairs that share a model are not independent: three models make three pairs,
    but only three seeds were drawn. So what is left out in turn is a model with
    all its pairs (the delete-one jackknife of a U-statistic, Arvesen 1969; for
    pairs of two kinds the variances of both kinds add up), and the interval is
    Student's with one degree of freedom less than there are models, of the kind
    that has fewer.

    Args:
        first: names of the first models [n].
        second: names of the second models [n]: either of the same kind as the
            first, or all of another one.
        values: float [n], a value of each pair.
        confidence: float in (0, 1).

    Returns:
        mean, low, high: floats; low and high are NaN where there are too few
        models to leave one out.
    """
    from scipy import stats

    first, second = np.asarray(first), np.asarray(second)
    values = np.asarray(values, np.float64)
    groups = [set(first), set(second)]
    if groups[0] & groups[1]:
        groups = [groups[0] | groups[1]]
    mean, variance = float(np.mean(values)), 0.0
    for group in groups:
        rest = [values[(first != m) & (second != m)] for m in group]
        if any(len(r) == 0 for r in rest):
            return mean, float("nan"), float("nan")
        means = np.array([np.mean(r) for r in rest])
        variance += (len(group) - 1) * np.var(means)
    freedom = min(len(group) for group in groups) - 1
    half = stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance)
    return mean, float(mean - half), float(mean + half)
