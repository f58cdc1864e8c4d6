"""DNAS: expected costs, the parts of its loss, sampling, and the rules of the choice."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_dnas import MODEL, supernet

from oncequant import from_scratch
from oncequant.arch import FLOAT_PAIR as FLOAT
from oncequant.arch import SKIP, Arch
from oncequant.cost import COSTS, Budget
from oncequant.files import FileError
from oncequant.measure import initialise_quantizers
from oncequant.methods import dnas
from oncequant.models import build_network, space_of
from oncequant.network import elastic_layers
from oncequant.records import Sample
from oncequant.search.budget import BudgetError, cheapest
from oncequant.search.finished import most_accurate_and_efficient


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), projections=st.booleans(), per_layer=st.booleans())
@pytest.mark.parametrize("cost", ["weight_bytes", "bitops"])
def test_expected_cost_of_a_one_hot_mask_is_the_static_cost(cost, seed, projections, per_layer):
    precisions = dnas.PRECISIONS[cost]
    net = supernet(precisions=precisions[1:] if per_layer else precisions, projections=projections, per_layer=per_layer)
    space = net.net.space
    arch = space.sample(np.random.default_rng(seed))
    masks = {n: torch.tensor([float(v == arch[n]) for v in space.choices[n]]).double() for n in space.free}
    assert float(net.cost(masks, cost)) == pytest.approx(COSTS[cost](space.layers(arch)), rel=1e-6)


@pytest.mark.parametrize("cost", ["weight_bytes", "bitops", "macs", "params"])
def test_expected_cost_is_the_mean_over_architectures(cost):
    net = supernet(precisions=(SKIP, 104, 408, FLOAT), projections=True)
    space, rng = net.net.space, np.random.default_rng(0)
    tables = {name: rng.dirichlet(np.ones(4)) for name in space.free}
    mean = 0.0
    for codes in np.ndindex(*[4] * len(space.free)):
        share = math.prod(tables[name][code] for name, code in zip(space.free, codes))
        mean += share * COSTS[cost](space.layers(space.decode(np.array(codes))))
    expected = net.cost({name: torch.tensor(table) for name, table in tables.items()}, cost)
    assert float(expected) == pytest.approx(mean, rel=1e-9)


def test_gumbel_softmax_draws_from_the_distribution_and_sharpens():
    net = supernet(precisions=(SKIP, 132, FLOAT))
    with torch.no_grad():
        net.arch_logits[0] = torch.tensor([0.1, 0.6, 0.3]).log()
    name = net.net.space.free[0]
    drawn = torch.stack([net.masks(0.05, np.random.default_rng(i))[name] for i in range(3000)]).detach()
    frequencies = drawn.argmax(1).bincount() / 3000  # the argmax of Gumbel-softmax follows softmax(theta), at any T
    assert torch.allclose(frequencies, torch.tensor([0.1, 0.6, 0.3]), atol=0.03)
    flat = torch.stack([net.masks(20.0, np.random.default_rng(i))[name] for i in range(200)])
    assert drawn.amax(1).mean() > 0.95 and flat.amax(1).mean() < 0.45
    repeated = [net.masks(1.0, np.random.default_rng(5))[name] for _ in range(2)]
    assert torch.equal(*repeated)


def test_cost_factor_is_one_at_the_start():
    factor = dnas.cost_factor(torch.tensor(5e5), 0.9)
    assert float(factor(torch.tensor(5e5))) == pytest.approx(1)
    assert float(factor(torch.tensor(5e4))) == pytest.approx((math.log(5e4) / math.log(5e5)) ** 0.9)


def test_most_accurate_and_most_efficient():
    rows = [
        Sample("samples/0/network", Arch({}), top1, dict(weight_bytes=cost))
        for top1, cost in ((0.90, 100), (0.92, 90), (0.918, 40), (0.80, 10))
    ]
    found = most_accurate_and_efficient(rows, "weight_bytes", 0.93, 0.005)
    assert found["MA"] is rows[1] and found["ME"] is rows[2]
    found = most_accurate_and_efficient(rows, "weight_bytes", 0.79, 0.005)
    assert found["ME"] is rows[3]  # it holds what the float network reaches
    found = most_accurate_and_efficient(rows, "weight_bytes", 0.9235, 0.005)
    assert found["ME"] is rows[1]  # the third is near to the second, but too far from float


def test_budgets_are_held_against_the_cheapest_network():
    cfg = dnas.Config(precisions=(132, 404))  # 4 x 4 bits are fewer bit operations than 1 x 32
    space = space_of(cfg.supernet_model(MODEL))
    archs = [space.decode(np.array(codes)) for codes in np.ndindex(2, 2, 2)]
    for cost in ("bitops", "weight_bytes"):
        least = min(COSTS[cost](space.layers(arch)) for arch in archs)
        assert COSTS[cost](space.layers(cheapest(space, COSTS[cost]))) == least
        dnas.check(cfg, dnas.SearchOptions(budgets=(Budget(COSTS[cost], least),)), MODEL)
        with pytest.raises(BudgetError, match=f"the least {cost}"):
            dnas.check(cfg, dnas.SearchOptions(budgets=(Budget(COSTS[cost], 0.99 * least),)), MODEL)


def test_samples_are_different_and_follow_the_distribution(tmp_path):
    cfg = dnas.Config(samples=5)
    space = space_of(cfg.supernet_model(MODEL))
    sure = np.full((3, 7), 0.02)
    sure[:, 4] = 0.88
    rows = [
        dict(step=step, steps=10, probabilities=dict(zip(space.free, (table / table.sum(1, keepdims=True)).tolist())))
        for step, table in ((0, np.ones((3, 7))), (6, sure), (10, sure))
    ]
    path = tmp_path / "distribution.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    archs = dnas.sampled_archs(cfg, space, path)
    assert len(set(archs)) == 5 and all(archs[-1][name] == 432 for name in space.free)
    assert np.mean([arch[name] == 432 for arch in archs for name in space.free]) > 0.5
    path.write_text(json.dumps(dict(step=1, steps=1, probabilities={"other": [1.0]})) + "\n")
    with pytest.raises(FileError, match="does not belong to this search"):
        dnas.sampled_archs(cfg, space, path)


def test_impossible_options_are_refused():
    for options, text in (
        (dict(samples=0), "samples 0"),
        (dict(arch_share=0.6), "arch_share"),
        (dict(temperature=(5.0, 0.0)), "temperature"),
        (dict(gamma=-1.0), "gamma"),
        (dict(gamma=0.0, cross_entropy=False), "gamma"),
        (dict(precisions=(432, 9)), "precisions: 9"),
        (dict(per_layer=True, precisions=(0, 432)), "per layer"),
        (dict(jobs=0), "jobs"),
    ):
        with pytest.raises(ValueError, match=text):
            dnas.Config(**options)


def test_pact_clip_levels_are_penalised():
    net = build_network(replace(MODEL, precisions=(404, FLOAT)))
    initialise_quantizers(net, torch.randn(8, 1, 8, 8))
    clips = [layer.act_quantizer.clip for _, layer in elastic_layers(net)]
    assert len(clips) == 6 + 2  # three blocks of two, and the edges
    assert from_scratch.quantizer_penalty(net, 0.5).item() == pytest.approx(
        0.5 * sum(clip.square().sum().item() for clip in clips)
    )
