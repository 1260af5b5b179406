import numpy as np
from scipy import stats

from keras_transfer.analysis.statistics import mean_over_pairs


def test_interval_over_pairs_is_students():
    """For pair values (x_i + x_j) / 2 it must be that of the mean of x."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=6)
    names = np.array(list("abcdef"))
    i, j = np.triu_indices(6, 1)
    found = mean_over_pairs(names[i], names[j], (x[i] + x[j]) / 2, 0.9)
    expected = stats.t.interval(0.9, 5, np.mean(x), stats.sem(x))
    np.testing.assert_allclose(found, [np.mean(x), *expected])
    # Two kinds: Var(mean x - mean y) = Var(x) / n + Var(y) / m.
    y = rng.normal(size=4)
    i, j = (a.ravel() for a in np.indices((6, 4)))
    mean, low, high = mean_over_pairs(
        names[i], np.array(list("stuv"))[j], x[i] - y[j]
    )
    error = np.hypot(stats.sem(x), stats.sem(y))
    half = stats.t.ppf(0.975, 3) * error
    np.testing.assert_allclose(mean, np.mean(x) - np.mean(y))
    np.testing.assert_allclose([low, high], [mean - half, mean + half])
    mean, low, high = mean_over_pairs(["a"], ["b"], [0.5])
    assert mean == 0.5 and np.isnan([low, high]).all()
