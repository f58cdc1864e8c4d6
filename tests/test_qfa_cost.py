"""`qfa_mflops`: QFA's own lookup-table cost, and budgets on the one cost that can fall with the resolution."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oncequant.cost import COSTS, Budget, bitops, qfa_mflops
from oncequant.family import with_bits
from oncequant.models import space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.search import SEARCHERS
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

QFA = replace(PRESETS["imagenet"], width=1.2, weight_bits=(2, 3, 4), act_bits=(2, 3, 4))  # the published supernet

# cheapest published network: 128 px, two blocks a stage, kernel 3, expand 3; (weight bits, activation bits) of expand,
# depthwise and project where they are not all 2 x 2, and what each part costs, in 8 x 8-bit MACs
PUBLISHED_BITS = {
    "stage1.block2": ((2, 2), (2, 3), (2, 2)),
    "stage2.block1": ((2, 2), (3, 4), (2, 3)),
    "stage2.block2": ((2, 2), (2, 3), (2, 2)),
    "stage3.block1": ((2, 2), (2, 3), (2, 3)),
    "stage3.block2": ((2, 2), (2, 3), (2, 2)),
    "stage4.block1": ((2, 2), (3, 4), (2, 2)),
    "stage5.block1": ((2, 2), (2, 4), (2, 2)),
}
PUBLISHED_PARTS = {
    "stem": 2_957_312,
    "block0": 155_648,
    "stage1.block1": 456_064,
    "stage1.block2": 429_664,
    "stage2.block1": 321_875.8125,
    "stage2.block2": 266_441.25,
    "stage3.block1": 208_800,
    "stage3.block2": 243_264,
    "stage4.block1": 314_195.5,
    "stage4.block2": 458_177.625,
    "stage5.block1": 315_615.25,
    "stage5.block2": 239_469,
    "final_expand": 223_488,
    "feature_mix": 110_784,
    "classifier": 1_843_200,
}


def test_cheapest_published_network_costs_what_is_published_part_by_part():
    space = space_of(QFA)
    bits = {
        f"{block}.{layer}.{what}_bits": value
        for block, layers in PUBLISHED_BITS.items()
        for layer, pair in zip(("expand", "depthwise", "project"), layers)
        for what, value in zip(("weight", "act"), pair)
    }
    specs = space.layers(space.smallest().replace(**bits))
    assert qfa_mflops(specs) == pytest.approx(8.5439984375, abs=1e-9)
    for part, expected in PUBLISHED_PARTS.items():
        others = {n: replace(s, present=0) if n.startswith(part) else s for n, s in specs.items()}
        assert 1e6 * (qfa_mflops(specs) - qfa_mflops(others)) == pytest.approx(expected, abs=1e-3), part
    assert sum(PUBLISHED_PARTS.values()) == 8_543_998.4375


@pytest.mark.parametrize(
    "bits, size, expected",
    [
        (2, "smallest", 8.3572121875),
        (2, "largest", 60.173084625),
        (4, "largest", 207.9924345),  # the most expensive published network
        (8, "largest", 799.269834),
        (32, "largest", 799.269834),  # more than 8 bits count as 8
    ],
)
def test_bounds_of_the_published_space(bits, size, expected):
    space = space_of(with_bits(QFA, bits))
    assert qfa_mflops(space.layers(getattr(space, size)())) == pytest.approx(expected, abs=1e-9)


def test_sizes_that_do_not_divide():
    """One stage at 10 px, by hand: maps of 5 and then 3 px, where the table has 10 // 4 = 2 px after the stage."""
    config = replace(PRESETS["nano"], stage_widths=(16,), stage_strides=(2,), stage_se=(False,), stage_hswish=(False,))
    config = replace(config, stem_stride=2, depths=(1,), kernel_sizes=(3,), expand_ratios=(2,), resolutions=(10,))
    space = space_of(with_bits(config, 4))
    specs = space.layers(space.smallest())
    assert specs["stage1.block1.project"].out_size == 3
    low = (9 + 2) * 16 * 5**2 + (16 + 2) * 16 * 5**2  # block 0
    low += (16 + 2) * 32 * 5**2 + (9 + 2) * 32 * 3**2 + (32 + 2) * 16 * 2**2
    low += (16 + 2) * 96 * 2**2 + (96 + 2) * 128
    high = (9 + 2) * 16 * 5**2 + 128 * 10  # first convolution, classifier
    high += (32 + 2) * 16 * (3**2 - 2**2)  # what the projection lacked above
    assert qfa_mflops(specs) == pytest.approx((high + low * 4 * 4 / 64) / 1e6, abs=1e-12)


SPACES = {
    "qfa": space_of(QFA),
    "imagenet, all bits": space_of(replace(PRESETS["imagenet"], weight_bits=(1, 2, 8, 32), act_bits=(2, 4, 8, 32))),
    "cifar": space_of(replace(PRESETS["cifar"], width=0.7, weight_bits=(2, 4), act_bits=(2, 4))),
    "nano": space_of(with_bits(PRESETS["nano"], 2)),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_batch_equals_one_by_one_exactly(space, seed):
    codes = space.sample_codes(np.random.default_rng(seed), 5)
    single = [qfa_mflops(space.layers(space.decode(row))) for row in codes]
    assert all(type(value) is float for value in single)
    assert qfa_mflops(space.layers_batch(codes)).tolist() == single


def test_expected_cost_has_gradients():
    space = space_of(with_bits(PRESETS["nano"], 2))
    specs = space.layers(space.largest())
    bits = {name: torch.tensor(2.0, dtype=torch.float64, requires_grad=True) for name in specs}
    expected = qfa_mflops({name: replace(s, weight_bits=bits[name]) for name, s in specs.items()})
    assert float(expected.detach()) == qfa_mflops({name: replace(s, weight_bits=2) for name, s in specs.items()})
    expected.backward()
    assert float(bits["classifier"].grad) == pytest.approx(128 * 10 * 8 / 64e6)
    for name, spec in specs.items():  # squeeze-and-excite is charged at the bits of the depthwise convolution
        assert (bits[name].grad is None) == (spec.role == "se")


# -- where it falls


@pytest.mark.parametrize("width", [1.0, 1.2])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("bits", [2, 4])
def test_smallest_architecture_of_every_preset_is_the_cheapest(preset, width, bits):
    """Though of the resolutions from 128 to 224, 160, 192 and 224 can cost less at 2 bits than the ones before."""
    space = space_of(with_bits(replace(PRESETS[preset], width=width), bits))
    costs = [qfa_mflops(space.layers(space.smallest().replace(resolution=r))) for r in space.choices["resolution"]]
    assert min(costs) == costs[0]
    fall = {r for r, cost, before in zip(space.choices["resolution"][1:], costs[1:], costs) if cost < before}
    assert fall == ({160, 192, 224} if (preset, bits) == ("imagenet", 2) else set())


# 48 architectures, of which the smallest is not the cheapest
FALLING = space_of(with_bits(PRESETS["imagenet"], 2))
FALLING = FALLING.restrict(
    dict(FALLING.smallest())
    | {"resolution": (156, 160), "stage1.depth": (2, 3), "stage1.block3.expand_ratio": (3, 6)}
    | {"stage5.depth": (2, 3, 4), "stage5.block1.kernel_size": (3, 5), "stage5.block4.expand_ratio": (3, 4)}
)
ALL_FALLING = np.unique(
    FALLING.canonical(np.array(list(itertools.product(*map(range, FALLING.cardinalities))))), axis=0
)
assert len(ALL_FALLING) == 48
COSTS_FALLING = cost_batch(FALLING, "qfa_mflops", ALL_FALLING)
CHEAPEST = FALLING.smallest().replace(resolution=160)


def test_unreachable_budget_names_the_cheapest_architecture_of_any_resolution():
    least = qfa_mflops(FALLING.layers(CHEAPEST))
    assert least == COSTS_FALLING.min() < qfa_mflops(FALLING.layers(FALLING.smallest()))
    check_reachable(FALLING, [Budget(COSTS["qfa_mflops"], least)])
    with pytest.raises(BudgetError, match=f"smallest qfa_mflops .* is {least:.15g}$"):
        check_reachable(FALLING, [Budget(COSTS["qfa_mflops"], np.nextafter(least, 0))])


def test_budgets_that_exclude_each_other():
    both = [
        Budget(COSTS["qfa_mflops"], COSTS_FALLING.min()),
        Budget(COSTS["bitops"], bitops(FALLING.layers(FALLING.smallest()))),
    ]
    for budget in both:
        check_reachable(FALLING, [budget])
    with pytest.raises(BudgetError, match=r"qfa_mflops<=.*, bitops<=.* not together"):
        check_reachable(FALLING, both)


@settings(max_examples=15, deadline=None)
@given(limit=st.sampled_from(sorted(COSTS_FALLING)), seed=st.integers(0, 999))
def test_every_way_to_draw_keeps_the_budget_and_growth_finds_all(limit, seed):
    budgets, rng = [Budget(COSTS["qfa_mflops"], limit)], np.random.default_rng(seed)
    for draw in (feasible_codes, limit_codes, functools.partial(covering_codes, cost="qfa_mflops")):
        codes = draw(FALLING, budgets, rng=rng, n=5)
        assert len(codes) == 5
        assert all(budgets[0].holds(FALLING.layers(FALLING.decode(row))) for row in codes)
    grown = {row.tobytes() for row in feasible_by_growth(FALLING, budgets, 10**6)}
    assert grown == {row.tobytes() for row in ALL_FALLING[within(FALLING, budgets, ALL_FALLING)]}


@pytest.mark.parametrize("name", SEARCHERS)
def test_searchers_find_every_architecture_within_the_budget(name):
    for limit in np.sort(COSTS_FALLING)[[0, 9]]:
        budgets = [Budget(COSTS["qfa_mflops"], limit)]
        found = SEARCHERS[name](
            FALLING,
            lambda archs: [0.5] * len(archs),
            budgets=budgets,
            cost="qfa_mflops",
            evaluations=len(ALL_FALLING),
            seed=0,
        )
        wanted = ALL_FALLING[within(FALLING, budgets, ALL_FALLING)]
        assert {FALLING.encode(t.arch).tobytes() for t in found} == {row.tobytes() for row in wanted}
