"""Pareto fronts, hypervolumes, and what is chosen of measurements."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_spaces import NANO, budget, measurement

from oncequant.search.budget import BudgetError
from oncequant.search.pareto import best_under, hypervolume, pareto_front, spread


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4).flatmap(lambda m: st.lists(st.tuples(*[st.integers(0, 6)] * m), max_size=40)))
def test_pareto_front_equals_brute_force(points):
    def dominated(p):
        return any(all(a <= b for a, b in zip(q, p)) and q != p for q in points)

    array = np.array(points, dtype=float).reshape(len(points), len(points[0]) if points else 2)
    indices = pareto_front(array)
    assert [points[i] for i in indices] == sorted({p for p in points if not dominated(p)})
    assert all(points.index(points[i]) == i for i in indices)  # of equal points the first


@pytest.mark.parametrize("front_only", [False, True])
def test_pareto_front_of_many_points(front_only):
    x = np.random.default_rng(0).random((100_000, 2))
    if front_only:
        x[:, 1] = 1 - x[:, 0]
    indices = pareto_front(x)  # would need 10^10 comparisons by brute force
    assert len(indices) == 100_000 if front_only else 5 < len(indices) < 50


def test_hypervolume():
    assert hypervolume(np.array([[0.5, 0.5]]), (1, 1)) == pytest.approx(0.25)
    assert hypervolume(np.array([[0.5, 0.5], [0.25, 0.75], [0.6, 0.6], [2, 0]]), (1, 1)) == pytest.approx(0.3125)
    assert hypervolume(np.empty((0, 2)), (1, 1)) == 0
    assert hypervolume(np.array([[3.0, 3.0]]), (1, 1)) == 0


def test_spread_takes_the_ends_and_even_steps_of_log_cost():
    arch = NANO.smallest()
    front = [measurement(arch, 0.5 + 0.05 * i, bitops=2.0**i) for i in range(9)]
    everything = [front[4], measurement(arch, 0.4, bitops=20.0), *front[:4], *front[5:]]
    assert spread(everything, 3) == [front[0], front[4], front[8]]
    assert spread(everything, 5) == front[::2]
    assert spread(everything, 1) == [front[8]]
    assert spread(everything, 20) == front
    assert spread([], 3) == []
    crowded = [measurement(arch, 0.5 + 0.1 * i, bitops=c) for i, c in enumerate((1.0, 1.1, 1.2, 1000.0))]
    assert spread(crowded, 3) == [crowded[0], crowded[2], crowded[3]]


def test_best_under_budgets():
    small, large = NANO.smallest(), NANO.largest()
    middle = small.replace(resolution=max(NANO.choices["resolution"]))
    found = [measurement(large, 0.9), measurement(middle, 0.8), measurement(small, 0.8)]
    assert best_under(found, [], NANO) is found[0]
    assert best_under(found, [budget(NANO, 0.9)], NANO) is found[2]  # as accurate as the middle one, fewer BitOPs
    with pytest.raises(BudgetError, match="none of 1 .*bitops<="):
        best_under(found[:1], [budget(NANO, 0.5)], NANO)
