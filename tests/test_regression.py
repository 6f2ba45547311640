"""What is said of pairs of cells: worse, the same or open, and how surely."""

import math

import pytest

from studies.engine.regression import judge, mean_bounds, median_bounds, metric_finding, speed_finding

# MLflow, SQLAlchemy and Ray warn about each other; what is ours still stops a test.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


def test_equal_to_the_last_bit_is_the_same_and_nothing_to_pair_is_open():
    assert judge([0.0, 0.0], 0.1, 0.01) == "same" and judge([], 0.1, 0.01) == "open"
    assert judge([0.5], 0.1, 0.01) == judge([0.5, 0.5], 0.1, 0.01) == "open"
    assert judge([0.5] * 3, 0.1, 0.01) == "regressed"
    assert judge([0.0, 0.0, 1e-9], 0.1, 0.01) == "fine" and judge([0.0, float("nan"), 0.0], 0.1, 0.01) == "open"


@pytest.mark.parametrize("loss, kind", [(1.0, "regressed"), (0.3, "open"), (0.0, "fine"), (-1.0, "improved")])
def test_the_margin_divides_what_matters_from_what_does_not(loss, kind):
    """Twelve pairs with a spread of .15: the bounds are about .2 to either side."""
    wobble = [0.1 * (-1) ** seed * (1 + seed / 12) for seed in range(12)]
    assert judge([loss + each for each in wobble], 0.3, 0.001) == kind


def test_bounds_of_a_mean_are_those_of_a_t_test():
    from scipy import stats

    values = [0.3, 0.1, 0.7, 0.2, 0.4]
    low, high = mean_bounds(values, 0.025)
    assert (low, high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)))
    narrow, wide = (metric_finding("a", "m", values, [0.0] * 5, 1, 0.1, 0.01, looks) for looks in (1, 3))
    assert narrow.low == pytest.approx(low) and (wide.low or math.inf) < (low or math.inf), "each look has a part"


def test_worse_is_more_of_what_is_minimised_and_less_of_what_is_maximised():
    before, now = [1.0, 1.1, 0.9, 1.05, 0.95], [2.0, 2.1, 1.9, 2.05, 1.95]
    assert metric_finding("a", "m", before, now, -1, 0.1, 0.01).kind == "regressed"
    assert metric_finding("a", "m", before, now, +1, 0.1, 0.01).kind == "improved"
    found = metric_finding("a", "m", before, now, -1, 0.1, 0.01)
    assert (found.loss, found.share, found.pairs) == (pytest.approx(1.0), pytest.approx(1.0), 5)


def test_speed_is_the_median_of_ratios_and_one_outlier_does_not_matter():
    before = [100.0 + i for i in range(12)]
    slow = [0.7 * b for b in before]
    assert speed_finding("a", before, slow, 0.1, 0.005).kind == "regressed"
    assert speed_finding("a", before, slow, 0.4, 0.005).kind == "fine"
    assert speed_finding("a", before, [1.0, *before[1:]], 0.1, 0.005).kind == "fine"
    assert speed_finding("a", before[:4], slow[:4], 0.1, 0.005).kind == "open", "four coins fall alike too often"
    assert speed_finding("a", [], [], 0.1, 0.005).loss is None


def test_bounds_of_a_median_err_as_often_as_they_say():
    from scipy import stats

    for n in (1, 5, 6, 7, 12, 25):
        for level in (0.25, 0.025, 0.001):
            low, high = median_bounds(list(range(n)), level)
            if low is None:
                assert stats.binom.cdf(0, n, 0.5) > level
                continue
            assert high == n - 1 - low
            assert stats.binom.cdf(low, n, 0.5) <= level < stats.binom.cdf(low + 1, n, 0.5)
