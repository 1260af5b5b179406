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


def mean_over_seeds(values, confidence=0.95):
    """Returns the mean of one value per seed and Student's interval for it.

    Args:
        values: float [n].
        confidence: float in (0, 1).

    Returns:
        mean, low, high: floats; low and high are NaN for a single value.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    mean, low, high = float(np.mean(values)), float("nan"), float("nan")
    if len(values) > 1:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * error
        low, high = float(mean - half), float(mean + half)
    return mean, low, high


def jackknife(statistic, groups, confidence=0.95):
    """Returns a statistic of several models and its interval over seeds.

    Each model in turn is left out (the delete-one jackknife; of models of
    several kinds, drawn independently, the variances add up: Arvesen 1969), and
    the interval is Student's with one degree of freedom less than the smallest
    kind has models.

    Args:
        statistic: function from a set of models to float; NaN for too few.
        groups: list of lists of models, one list a kind.
        confidence: float in (0, 1).

    Returns:
        value, low, high: floats; low and high are NaN where there are too few
        models to leave one out.
    """
    from scipy import stats

    everyone = {model for group in groups for model in group}
    value, variance = float(statistic(everyone)), 0.0
    freedom = min(len(group) for group in groups) - 1
    if freedom < 1:
        return value, float("nan"), float("nan")
    for group in groups:
        left = [statistic(everyone - {model}) for model in group]
        variance += (len(group) - 1) * np.var(left)
    half = stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance)
    return value, float(value - half), float(value + half)


def mean_over_pairs(first, second, values, confidence=0.95):
    """Returns the mean over pairs and its confidence interval over seeds.

    Pairs that share a model are not independent: three models make three pairs,
    but only three seeds were drawn. So what is left out in turn is a model with
    all its pairs (see `jackknife`).

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
    first, second = np.asarray(first), np.asarray(second)
    values = np.asarray(values, np.float64)

    def mean(models):
        kept = np.isin(first, list(models)) & np.isin(second, list(models))
        return np.mean(values[kept]) if kept.any() else np.nan

    groups = [sorted(set(first)), sorted(set(second))]
    if set(first) & set(second):
        groups = [sorted({*first, *second})]
    return jackknife(mean, groups, confidence)


def statistic_of_pairs(table, statistic, confidence=0.95):
    """Returns a statistic of pairs of models and its interval over models.

    Left out in turn is a P-T or RI-T with all its pairs (see `jackknife`).

    Args:
        table: `pandas.DataFrame` of pairs, with the columns pair (such as
            "P-T/RI-T"), first and second. Pairs of other kinds of model are
            left aside.
        statistic: function from such a table to float, which raises a
            `UserError` if a kind of pair is missing.
        confidence: float in (0, 1).

    Returns:
        value, low, high: floats; low and high are NaN where there are too few
        models to leave one out.

    Raises:
        UserError: if a kind of pair is missing.
    """
    table = table[
        table.pair.isin(["P-T/P-T", "P-T/RI-T", "RI-T/P-T", "RI-T/RI-T"])
    ]
    kinds = {"P-T": set(), "RI-T": set()}
    for pair, *names in zip(
        table.pair, table["first"], table["second"], strict=True
    ):
        for kind, name in zip(pair.split("/"), names, strict=True):
            kinds[kind].add(name)

    def of(models):
        kept = table["first"].isin(models) & table["second"].isin(models)
        try:
            return statistic(table[kept])
        except UserError:
            # Too few models are left to make a pair of each kind.
            return float("nan")

    statistic(table)  # Complains if a kind is missing.
    return jackknife(of, [sorted(own) for own in kinds.values()], confidence)
