"""Intervals: outside judges, coverage, and the one rule for claims."""

import math

import numpy as np
import pytest
from scipy import stats

from oncequant.intervals import (
    CONFIRMED,
    REFUTED,
    UNDECIDED,
    Interval,
    accuracies_interval,
    bootstrap_interval,
    difference_on_images,
    means_difference,
    seeds_interval,
    share_interval,
    verdict,
)


def test_seeds_are_judged_by_student() -> None:
    values = [1.0, 2.0, 4.0]
    found = seeds_interval(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((7 / 3, low, high))


def test_one_seed_is_undecided_whatever_it_says() -> None:
    found = seeds_interval([3.0])
    assert math.isinf(found.low) and math.isinf(found.high) and verdict(found) == UNDECIDED


def test_difference_of_means_is_judged_by_welch() -> None:
    values, others = [96.1, 95.2, 94.8, 95.9], [94.0, 96.4, 93.1]
    known = [(np.mean(v), np.std(v, ddof=1), len(v)) for v in (values, others)]
    for level in (0.95, 0.8):
        found = means_difference(*known[0], *known[1], level=level)
        other = stats.ttest_ind(values, others, equal_var=False).confidence_interval(level)
        assert (found.low, found.high) == pytest.approx((other.low, other.high))
    # an interval ends at 0 at the level that the test's p-value says
    p = stats.ttest_ind_from_stats(*known[0], *known[1], equal_var=False).pvalue
    found = means_difference(*known[0], *known[1], level=1 - p)
    assert found.value == pytest.approx(np.mean(values) - np.mean(others)) and found.low == pytest.approx(0, abs=1e-9)
    turned = means_difference(*known[1], *known[0], level=1 - p)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low), abs=1e-9)


def test_difference_of_means_at_its_borders() -> None:
    one = means_difference(3.0, float("nan"), 1, 1.0, 0.5, 3)
    assert one.value == 2 and math.isinf(one.low) and math.isinf(one.high)
    assert means_difference(3.0, 0.0, 3, 1.0, 0.0, 3) == Interval(2.0, 2.0, 2.0)
    for wrong in [(3.0, 1.0, 0), (3.0, -1.0, 3), (float("nan"), 1.0, 3), (3.0, float("nan"), 3)]:
        with pytest.raises(ValueError, match="use finite numbers"):
            means_difference(*wrong, 1.0, 0.5, 3)


def test_share_agrees_with_scipy() -> None:
    low, high = share_interval(0.9, 50)
    other = stats.binomtest(45, 50).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((other.low, other.high))


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).normal(2, 1, 60)
    found = bootstrap_interval(lambda drawn: float(values[drawn].mean()), len(values))
    other = stats.bootstrap((values,), np.mean, method="percentile", random_state=0).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.03)


def test_bootstrap_is_the_same_each_time() -> None:
    values = np.arange(10.0)
    first, second = (bootstrap_interval(lambda drawn: float(values[drawn].mean()), 10) for _ in range(2))
    assert first == second


def test_draws_without_a_number_are_left_out_until_too_few_are_left() -> None:
    def some(drawn: np.ndarray) -> float:
        return float("nan") if drawn[0] == 0 else float(drawn.mean())

    assert not math.isnan(bootstrap_interval(some, 8).low)
    with pytest.raises(ValueError, match="of 2000 draws gave a number"):
        bootstrap_interval(lambda drawn: float("nan"), 8)


def test_difference_on_images_is_the_bootstrap_over_images() -> None:
    rng = np.random.default_rng(2)
    right, other = rng.random(400) < 0.8, rng.random(400) < 0.7
    found = difference_on_images(right, other)
    slow = bootstrap_interval(lambda drawn: float(right[drawn].mean() - other[drawn].mean()), 400)
    assert found.value == pytest.approx(slow.value)
    assert (found.low, found.high) == pytest.approx((slow.low, slow.high), abs=0.006)


def test_difference_is_paired() -> None:
    """Two networks that differ on four images of 2,000, all won by one, differ for sure; unpaired they would not."""
    right = np.arange(2000) < 1600
    other = right.copy()
    other[:8] = False
    assert verdict(difference_on_images(right, other)) == CONFIRMED
    assert share_interval(other.mean(), 2000)[1] > share_interval(right.mean(), 2000)[0]


def test_intervals_of_nothing_cover_as_often_as_they_say() -> None:
    """Two equally good networks: the interval of their difference holds 0 in about 95 of 100 experiments."""
    rng = np.random.default_rng(3)
    covers = 0
    for _ in range(300):
        found = difference_on_images(rng.random(300) < 0.8, rng.random(300) < 0.8, draws=400)
        covers += found.low <= 0 <= found.high
    assert 0.9 < covers / 300 < 0.99


def test_verdicts() -> None:
    assert verdict(Interval(1.0, 0.5, 1.5)) == CONFIRMED
    assert verdict(Interval(1.0, 0.5, 1.5), margin=1.0) == UNDECIDED
    assert verdict(Interval(1.0, 0.5, 1.5), margin=2.0) == REFUTED
    assert Interval(0.5, 0.25, 0.75).scaled(100).text(1) == "50.0 (25.0 to 75.0)"


def test_bad_input_says_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="use at least one, all of them finite"):
        seeds_interval([])
    with pytest.raises(ValueError, match="use at least one, all of them finite"):
        seeds_interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="use the same images for both"):
        difference_on_images(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(ValueError, match="use at least 2"):
        difference_on_images(np.ones(1, bool), np.ones(1, bool))
    with pytest.raises(ValueError, match="use at least 2"):
        bootstrap_interval(lambda drawn: 0.0, 1)


def test_accuracies_agree_with_the_bootstrap_over_images() -> None:
    rng = np.random.default_rng(3)
    right = rng.random((3, 400)) < np.array([[0.9], [0.8], [0.7]])

    def spread(accuracies: np.ndarray) -> float:
        return float(accuracies[0] - accuracies[1:].mean())

    found = accuracies_interval(spread, right)
    other = bootstrap_interval(lambda drawn: spread(right[:, drawn].mean(axis=1)), 400)
    assert found.value == pytest.approx(other.value)
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.006)
    assert found == accuracies_interval(spread, right)
    pair = accuracies_interval(lambda accuracies: accuracies[0] - accuracies[1], right)
    direct = difference_on_images(right[0], right[1])
    assert (pair.value, pair.low, pair.high) == pytest.approx((direct.value, direct.low, direct.high), abs=0.006)
    with pytest.raises(ValueError, match="at least 2"):
        accuracies_interval(spread, right[:, :1])
