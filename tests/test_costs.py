"""The contract of `Cost`, for every entry of `COSTS`, and that a new one needs no other place."""

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from commands import call
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import data_in, lines_of, make_run_folder

from oncequant.answers import Accuracy
from oncequant.arch import SKIP
from oncequant.cost import COSTS, Budget, Cost, expected_cost, find_cost, layer_macs, shown_costs
from oncequant.models import space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.models.resnet import PRESETS as RESNETS
from oncequant.report import write_report
from oncequant.search.budget import BudgetError, check_reachable, feasible_codes, smallest_codes, within
from oncequant.search.measurements import MeasurementFile

MIXED = space_of(replace(PRESETS["nano"], weight_bits=(2, 4, 8), act_bits=(2, 4, 8)))
SKIPPED = space_of(replace(RESNETS["resnet20"], precisions=(SKIP, 104, 408, 832), projections=True))
SPACES = {"mobilenet": MIXED, "resnet": SKIPPED}


def traffic(specs):
    """Bytes of weights and inputs that a layer reads: not bilinear, inputs count without weights."""
    return sum(
        s.present * (s.weights * s.weight_bits + s.in_channels * s.in_size * s.in_size * s.act_bits) / 8
        for s in specs.values()
    )


TRAFFIC = Cost("traffic", "Memory traffic", "bytes", traffic, monotone=True)
COSTS_AND_TOY = {**COSTS, "traffic": TRAFFIC}


# -- the contract


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", COSTS_AND_TOY)
def test_vectors_are_exactly_one_by_one(name, space):
    cost, codes = COSTS_AND_TOY[name], space.sample_codes(np.random.default_rng(0), 30)
    batch = cost(space.layers_batch(codes))
    assert batch.shape == (30,) and (batch > 0).all()
    assert batch.tolist() == [cost(space.layers(space.decode(row))) for row in codes]


@pytest.mark.parametrize("name", [name for name, cost in COSTS_AND_TOY.items() if cost.additive])
def test_additive_costs_are_sums_over_layers(name):
    cost = COSTS_AND_TOY[name]
    for space in SPACES.values():
        specs = space.layers(space.sample(np.random.default_rng(1)))
        assert cost(specs) == pytest.approx(sum(cost({key: spec}) for key, spec in specs.items()), rel=1e-12)
        assert all(cost({key: spec}) == 0 for key, spec in specs.items() if not spec.present)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
@pytest.mark.parametrize("name", [name for name, cost in COSTS_AND_TOY.items() if cost.monotone])
def test_monotone_costs_never_fall_when_a_choice_rises(name, seed):
    cost, rng = COSTS_AND_TOY[name], np.random.default_rng(seed)
    arch = MIXED.sample(rng)
    choice = rng.choice([choice for choice in MIXED.free if choice != "resolution"])
    rising = [cost(MIXED.layers(arch.replace(**{choice: value}))) for value in MIXED.choices[choice]]
    assert rising == sorted(rising)


@pytest.mark.parametrize("name", [name for name, cost in COSTS_AND_TOY.items() if cost.additive])
def test_the_expected_cost_is_the_mean_over_networks(name):
    """Also where the cost is not bilinear in bit-widths, with an absent layer among the candidates."""
    cost, specs = COSTS_AND_TOY[name], SKIPPED.layers(SKIPPED.largest())
    stem, first = specs["stem"], specs["stage1.block1.conv1"]
    pairs = [(0, 4, 4), (1, 1, 32), (1, 2, 8), (1, 8, 2)]
    candidates = {
        "first": [replace(first, present=p, weight_bits=w, act_bits=a) for p, w, a in pairs],
        "stem": [stem],
        "second": [replace(stem, weight_bits=w, act_bits=a) for _, w, a in pairs],
    }
    shares = {
        "first": torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64),
        "second": torch.tensor([0.4, 0.1, 0.5, 0.0], dtype=torch.float64),
    }
    mean = 0.0
    for i, j in product(range(4), repeat=2):
        one = {"first": candidates["first"][i], "stem": stem, "second": candidates["second"][j]}
        mean += float(shares["first"][i] * shares["second"][j]) * cost(one)
    leaf = shares["first"].requires_grad_()
    expected = expected_cost(cost, candidates, shares)
    assert float(expected.detach()) == pytest.approx(mean, rel=1e-9)
    expected.backward()
    each = [cost({"first": spec}) for spec in candidates["first"]]
    gaps = leaf.grad - leaf.grad[0]  # shares add up to 1, so only differences matter
    assert gaps.tolist() == pytest.approx([number - each[0] for number in each], rel=1e-6)


def test_costs_that_are_not_sums_have_no_expectation():
    with pytest.raises(ValueError, match="qfa_mflops is not a sum over layers"):
        expected_cost(COSTS["qfa_mflops"], {}, {})


def test_names_and_titles():
    assert all(name == cost.name == str(cost) for name, cost in COSTS.items())
    assert COSTS["weight_bytes"].title == "Packed weights (bytes)" and COSTS["macs"].title == "MACs"
    assert find_cost("macs") is COSTS["macs"] and find_cost(TRAFFIC) is TRAFFIC
    with pytest.raises(ValueError, match="unknown cost 'colour'; the costs are: macs, params"):
        find_cost("colour")
    assert [cost.name for cost in shown_costs([{"macs": 1, "bitops": 2, "old": 3}, {"macs": 1, "bitops": 2}])] == [
        "macs",
        "bitops",
    ]


# -- a cost that is not monotone


def bumpy(specs):
    """Cheapest at kernel size 5 and not at 3, as kernels of a device may be."""
    return sum(layer_macs(s) * (1.0 + 9 * (s.kernel_size == 3) * s.depthwise) for s in specs.values())


def test_budgets_that_the_smallest_choices_break_can_still_be_met():
    cost = Cost("bumpy", "Bumpy", "", bumpy, monotone=False)
    space = space_of(replace(PRESETS["nano"], kernel_sizes=(3, 5)))
    smallest = cost(space.layers(space.smallest()))
    budget = Budget(cost, 0.9 * smallest)
    found = smallest_codes(space, [budget])
    assert cost(space.layers(space.decode(found))) <= budget.limit
    assert within(space, [budget], feasible_codes(space, [budget], np.random.default_rng(0), 20)).all()
    with pytest.raises(BudgetError, match=r"the smallest bumpy that was found is \d"):
        check_reachable(space, [Budget(cost, 0.01 * smallest)])


# -- one place


def test_a_new_cost_is_everywhere_by_its_entry_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(COSTS, "traffic", TRAFFIC)
    budget = Budget.parse("traffic<=90k")
    assert str(budget) == "traffic<=90k" and budget.holds(MIXED.layers(MIXED.smallest()))

    arch = MIXED.largest()
    memory = MeasurementFile(tmp_path / "measurements.jsonl", "mixed")
    list(memory.measured(MIXED, lambda arch: Accuracy(0.5, 0.5), "random")([arch]))
    (measured,) = memory.read()
    assert measured.costs["traffic"] == traffic(MIXED.layers(arch))

    (tmp_path / "archs.jsonl").write_text(space_of(PRESETS["nano"]).smallest().to_json() + "\n")
    call(monkeypatch, "cost", tmp_path / "archs.jsonl", "--preset", "nano", "--bits", "4")
    assert json.loads(capsys.readouterr().out)["traffic"] > 0
    call(monkeypatch, "info")
    assert "traffic" in capsys.readouterr().out

    folder = make_run_folder(tmp_path / "run", measurements=3)
    data = data_in(write_report(folder))
    place = data["costs"].index("Memory traffic (bytes)")
    assert data["points"][0]["costs"][place] == lines_of(folder)[0]["costs"]["traffic"]
    assert data["costs"][data["cost"]] == "Packed weights (bytes)"  # the picture is still of this one

    lines = lines_of(folder)
    for line in lines[:1]:  # measured before there was such a cost
        del line["costs"]["traffic"]
    (folder / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = data_in(write_report(folder))
    assert again["costs"] == data["costs"] and again["points"][0]["costs"] == data["points"][0]["costs"]


def test_searches_take_a_cost_that_is_in_no_list():
    from oncequant.search import SEARCHERS

    budget = Budget(TRAFFIC, 1.3 * traffic(MIXED.layers(MIXED.smallest())))
    for search in SEARCHERS.values():
        trials = search(
            MIXED, lambda archs: [0.5 for _ in archs], budgets=[budget], cost=TRAFFIC, evaluations=4, seed=0
        )
        assert len(trials) == 4 and all(budget.holds(MIXED.layers(trial.arch)) for trial in trials)
        assert all(math.isfinite(trial.accuracy) for trial in trials)
