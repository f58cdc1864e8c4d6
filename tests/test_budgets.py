"""Budgets: what is drawn keeps them, everything within them is found, and impossible ones are refused."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_spaces import ALL_SMALL, IMAGENET, MIXED, NANO, SMALL, budget

from oncequant.cost import COSTS, Budget, bitops
from oncequant.search.budget import (
    BudgetError,
    check_reachable,
    cost_batch,
    covering_codes,
    feasible_by_growth,
    feasible_codes,
    limit_codes,
    within,
)


@pytest.mark.parametrize("space", [NANO, MIXED, IMAGENET], ids=["nano", "nano mixed", "imagenet"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_monotone_cost_grows_with_every_choice(space, seed):
    codes = space.sample_codes(np.random.default_rng(seed), 1)
    larger = np.repeat(codes, len(space.free), axis=0) + np.eye(len(space.free), dtype=np.int64)
    larger = space.canonical(larger[(larger < space.cardinalities).all(axis=1)])
    same_resolution = larger[:, space.free.index("resolution")] == codes[:, space.free.index("resolution")]
    for cost in (name for name, one in COSTS.items() if one.monotone):  # others say that they may fall
        grows = cost_batch(space, cost, larger) >= cost_batch(space, cost, codes)
        assert (grows | ~same_resolution if cost == "qfa_mflops" else grows).all(), cost
        assert cost_batch(space, cost, codes) >= COSTS[cost](space.layers(space.smallest())), cost


def test_unreachable_budget_names_the_smallest_reachable_value():
    least = COSTS["weight_bytes"](NANO.layers(NANO.smallest()))
    check_reachable(NANO, [Budget(COSTS["weight_bytes"], least), Budget(COSTS["bitops"], 1e12)])
    with pytest.raises(BudgetError, match=f"weight_bytes<=.* smallest weight_bytes .* is {least:.15g}$"):
        check_reachable(NANO, [Budget(COSTS["bitops"], 1e12), Budget(COSTS["weight_bytes"], least - 1)])


@settings(max_examples=15, deadline=None)
@given(shares=st.tuples(st.floats(0, 1.1), st.floats(0, 1.1)), seed=st.integers(0, 999), n=st.integers(0, 20))
def test_drawn_architectures_keep_all_budgets(shares, seed, n):
    budgets = [budget(MIXED, shares[0]), budget(MIXED, shares[1], "weight_bytes")]
    for draw in (feasible_codes, limit_codes, functools.partial(covering_codes, cost="bitops")):
        codes = draw(MIXED, budgets, rng=np.random.default_rng(seed), n=max(n, 1))
        assert codes.shape == (max(n, 1), len(MIXED.free)) and within(MIXED, budgets, codes).all()
        assert (MIXED.canonical(codes) == codes).all()


def test_covering_architectures_span_the_cost_range():
    codes = covering_codes(NANO, (), "bitops", np.random.default_rng(0), 20)
    log_cost = np.log(cost_batch(NANO, "bitops", codes))
    ends = [np.log(bitops(NANO.layers(arch))) for arch in (NANO.smallest(), NANO.largest())]
    assert np.histogram(log_cost, bins=8, range=ends)[0].min() >= 1
    assert [log_cost.min(), log_cost.max()] == pytest.approx(ends)


@settings(max_examples=8, deadline=None)
@given(share=st.floats(0, 1.1))
def test_growth_finds_every_feasible_architecture(share):
    budgets = [budget(SMALL, share), budget(SMALL, 0.8, "weight_bytes")]
    grown = {row.tobytes() for row in feasible_by_growth(SMALL, budgets, 10**6)}
    assert grown == {row.tobytes() for row in ALL_SMALL[within(SMALL, budgets, ALL_SMALL)]}
