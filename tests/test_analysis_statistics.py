"""The statistics of the analysis on made-up networks whose truth is known."""

import numpy as np
import pytest

from oncequant.analysis.statistics import (
    front_of,
    front_shift,
    grouped_slopes,
    intervals_of,
    log_odds,
    partial_effects,
    points_per_log_odds,
    rank_agreement,
    standardised,
)
from oncequant.intervals import CONFIRMED, REFUTED, UNDECIDED, crossed_interval, verdict

NETWORKS = 80


def answers(rng, chances, images=1000):
    """Right answers to images by networks with these chances, (networks, images)."""
    return rng.random((len(chances), images)) < np.asarray(chances)[:, None]


def test_a_planted_effect_is_found_at_equal_compute_and_none_where_there_is_none() -> None:
    """Depth costs accuracy only where compute is held; a factor without effect stays undecided."""
    rng = np.random.default_rng(0)
    depth, nothing, width = rng.normal(size=(3, NETWORKS))
    compute = depth + 0.5 * width + rng.normal(0, 0.3, NETWORKS)
    response = compute - 0.5 * depth + rng.normal(0, 0.2, NETWORKS)
    factors = standardised(np.stack([depth, nothing], axis=1))

    def at(covariate):
        return intervals_of(lambda i: partial_effects(factors[i], covariate[i], response[i]), NETWORKS)

    of_depth, of_nothing = at(compute)
    assert verdict(of_depth) == REFUTED and of_depth.low < -0.5 * depth.std() < of_depth.high
    assert verdict(of_nothing) == UNDECIDED
    assert verdict(at(np.zeros(NETWORKS))[0]) == CONFIRMED  # without compute, deeper is better: 1 - 0.5


def test_effects_agree_with_the_whole_regression() -> None:
    rng = np.random.default_rng(1)
    x, c, y = rng.normal(size=(3, 30))
    c, y = c + x, y + 2 * x - c
    whole = np.linalg.lstsq(np.stack([np.ones(30), x, c], axis=1), y, rcond=None)[0]
    assert partial_effects(x[:, None], c, y)[0] == pytest.approx(whole[1])


def test_intervals_of_no_effect_leave_out_zero_as_seldom_as_they_say() -> None:
    rng, found = np.random.default_rng(2), 0
    for _ in range(60):
        x, c, y = rng.normal(size=(3, 40))
        (interval,) = intervals_of(lambda i, x=x, c=c, y=y: partial_effects(x[i, None], c[i], y[i]), 40)
        found += verdict(interval) != UNDECIDED
    assert found <= 9  # 3 expected of 60; more than 9 once in 1,000 even at 6 %


def test_a_factor_that_is_the_covariate_has_no_effect_of_its_own() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 50))
    (interval,) = intervals_of(lambda i: partial_effects(x[i, None], 2 * x[i] + 1, y[i]), 50)
    assert np.isnan(interval.value) and verdict(interval) == UNDECIDED


def test_log_odds_keep_equal_what_a_ceiling_makes_unequal() -> None:
    """Half of the odds are 15 points less at 75 % and 1 point at 99 %; log odds see one effect."""
    odds = np.array([3.0, 99.0])
    chances = np.stack([odds / (1 + odds), odds / 2 / (1 + odds / 2)], axis=1)
    right = answers(np.random.default_rng(4), chances.ravel(), 200_000)
    lost = np.diff(log_odds(right).reshape(2, 2), axis=1)[:, 0]
    assert lost == pytest.approx(np.log([0.5, 0.5]), abs=0.06)
    assert np.isfinite(log_odds(np.ones((1, 10), bool))).all()
    assert points_per_log_odds(np.arange(100)[None] < 75) == pytest.approx(100 * 0.75 * 0.25)


def test_slopes_in_groups_are_those_within_them() -> None:
    """Groups that have more bits and are worse for another reason must not turn the sign."""
    rng = np.random.default_rng(5)
    groups = np.arange(NETWORKS) % 4
    bits = rng.uniform(2, 4, (NETWORKS, 2)) + groups[:, None]
    points = bits @ [1.5, 0.0] - 6 * groups + rng.normal(0, 0.3, NETWORKS)
    first, second = intervals_of(lambda i: grouped_slopes(bits[i], points[i], groups[i]), NETWORKS)
    assert first.low < 1.5 < first.high and verdict(first) == CONFIRMED
    assert second.low < 0 < second.high
    assert np.isnan(grouped_slopes(bits[:, [0, 0]], points, groups)).all()  # cannot be told apart


def agreement_of(first, second):
    return intervals_of(rank_agreement(first, second), len(first))


def test_equal_rankings_reach_the_noise_ceiling_of_binomial_answers() -> None:
    """Ceiling: the share of the variance of measured accuracies that is not that of images drawn at random."""
    rng = np.random.default_rng(6)
    chances, images = rng.normal(0.7, 0.02, 200), 500
    first, second = answers(rng, chances, images), answers(rng, chances - 0.05, images)
    corrected, ceiling, seen = agreement_of(first, second)
    noise = [np.mean(c * (1 - c)) / images for c in (chances, chances - 0.05)]
    expected = np.prod([0.02**2 / (0.02**2 + n) for n in noise]) ** 0.5
    assert ceiling.value == pytest.approx(expected, abs=0.06) and expected < 0.6
    assert corrected.low < 1 < corrected.high and seen.value == pytest.approx(expected, abs=0.15)


def test_other_rankings_are_told_from_noise() -> None:
    rng = np.random.default_rng(7)
    truth = rng.normal(size=(2, NETWORKS))
    other = 0.5 * truth[0] + 0.75**0.5 * truth[1]
    first, second = (answers(rng, 0.7 + 0.05 * t, 2000) for t in (truth[0], other))
    corrected, ceiling, _ = agreement_of(first, second)
    assert ceiling.value > 0.9 and corrected.high < 0.8 and corrected.low < 0.5 < corrected.high


def test_hard_images_that_are_hard_for_all_make_no_rankings_agree() -> None:
    """At each bit-width the same images are answered: a plain correlation would be too high."""
    rng = np.random.default_rng(8)
    chances, images = np.full(NETWORKS, 0.5), 400
    noise = rng.random((NETWORKS, images))  # each network makes the same mistakes at both bit-widths
    first, second = noise < chances[:, None], noise < chances[:, None] - 0.02
    assert np.corrcoef(first.mean(1), second.mean(1))[0, 1] > 0.9
    corrected, *_ = agreement_of(first, second)
    assert not corrected.low > 0.5  # nothing is reliable, or the interval says so


def test_a_shifted_front_is_found_and_an_equal_one_is_not() -> None:
    """At low bits depth costs more, so that of networks of one cost the shallow ones are on the front."""
    rng = np.random.default_rng(9)
    depth, log_cost = rng.integers(1, 5, 200).astype(float), rng.uniform(0, 5, 200)
    high = 0.5 + 0.08 * log_cost + 0.01 * depth
    low = 0.5 + 0.08 * log_cost - 0.05 * depth
    shift = front_shift(depth[:, None], log_cost, low, high)
    (interval,) = intervals_of(shift, 200)
    assert verdict(interval) == REFUTED and interval.value < -1
    (same,) = intervals_of(front_shift(depth[:, None], log_cost, high, high), 200)
    assert same.value == pytest.approx(0) and verdict(same) == UNDECIDED
    assert list(front_of(np.array([3.0, 1.0, 2.0]), np.array([0.9, 0.5, 0.4]))) == [1, 0]


def test_a_mean_over_networks_and_images_is_as_unsure_as_both_make_it() -> None:
    """Of many networks on few images: other networks are all alike, but other images are not."""
    rng = np.random.default_rng(10)
    covers = 0
    for _ in range(100):
        image_effects, network_effects = rng.normal(0, 0.3, 50), rng.normal(0, 0.1, 30)
        found = crossed_interval(network_effects[:, None] + image_effects[None], draws=300)
        covers += found.low <= 0 <= found.high
    assert 85 <= covers <= 100  # at least as often as it says
    with pytest.raises(ValueError, match="at least 2 rows and 2 columns"):
        crossed_interval(np.ones((1, 5)))
