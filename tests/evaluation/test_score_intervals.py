"""Intervals in closed form, against scipy's, their own equations, and simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from medxfer.evaluation.score_intervals import (
    auroc_interval,
    f1_interval,
    is_near_an_edge,
    mean_interval,
    proportion_interval,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 4), (4, 4), (19, 20), (7, 30), (150, 151)])
def test_proportions_have_wilsons_interval(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert proportion_interval(successes / trials, trials) == pytest.approx((expected.low, expected.high))


def variance(theta: float, positives: int, negatives: int) -> float:
    """Hanley and McNeil's, with Newcombe's mean number of patients."""
    spread = (positives + negatives) / 2 - 1
    inner = 1 + spread * ((1 - theta) / (2 - theta) + theta / (1 + theta))
    return theta * (1 - theta) * inner / (positives * negatives)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(("positives", "negatives"), [(2, 40), (30, 30), (5, 500)])
def test_both_ends_of_an_auroc_are_its_quantile_away(value, positives, negatives):
    low, high = auroc_interval(value, positives, negatives)
    for end, edge in ((low, 0.0), (high, 1.0)):
        if end != edge:
            deviation = norm.ppf(0.975) * np.sqrt(variance(end, positives, negatives))
            assert abs(value - end) == pytest.approx(deviation, rel=1e-6)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.02
    assert auroc_interval(1 - value, negatives, positives) == pytest.approx((1 - high, 1 - low), abs=1e-6)


def test_f1_follows_the_share_of_hits_among_what_was_said_or_true():
    assert f1_interval(0.8, 25) == pytest.approx([2 * j / (1 + j) for j in proportion_interval(2 / 3, 25)])
    assert f1_interval(1.0, 10)[1] == pytest.approx(1.0)


def test_a_mean_of_one_has_the_interval_of_the_one_and_of_many_a_narrower_one():
    assert mean_interval([0.9], [(0.7, 0.95)]) == pytest.approx((0.7, 0.95))
    assert mean_interval([0.9] * 4, [(0.7, 0.95)] * 4) == pytest.approx((0.8, 0.925))


def test_an_edge_is_near_where_few_patients_stand_before_it():
    assert is_near_an_edge(0.95, 60)
    assert is_near_an_edge(0.05, 60)
    assert not is_near_an_edge(0.9, 60)
