import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oncequant.arch import Arch
from oncequant.cost import COSTS, bitops, layer_macs, macs, params, weight_bytes
from oncequant.family import with_bits
from oncequant.models import space_of
from oncequant.models.mobilenet_v3 import PRESETS

GOLDEN = Path(__file__).parent / "golden"


def published_arch(space, resolution, kernels, expands, depths):
    values = {"resolution": resolution}
    for i in range(20):
        block = f"stage{i // 4 + 1}.block{i % 4 + 1}"
        values |= {f"{block}.kernel_size": kernels[i], f"{block}.expand_ratio": expands[i]}
    values |= {f"stage{s + 1}.depth": d for s, d in enumerate(depths)}
    return space.complete(values)


OQA = json.loads((GOLDEN / "oqa_subnets.json").read_text())
OFA = json.loads((GOLDEN / "ofa_counts.json").read_text())


@pytest.mark.parametrize("row", OQA, ids=lambda r: f"{r['bits']}bit-{r['resolution']}")
def test_published_oqa_subnets_have_the_published_counts(row):
    space = space_of(with_bits(PRESETS["imagenet"], row["bits"]))
    specs = space.layers(published_arch(space, row["resolution"], row["ks"], row["expand"], row["depth"]))
    assert macs(specs) == row["flops_computed"]
    assert params(specs) == row["params_computed"]
    quantized = [s for s in specs.values() if s.weight_bits < 32 and s.present]
    assert len(quantized) == row["n_quantized_convs"]
    by_role = {r: sum(s.weights * s.out_size**2 for s in specs.values() if s.role == r) for r in ("se", "project")}
    assert by_role["se"] == row["macs_breakdown"]["se"]


@pytest.mark.parametrize("row", OFA, ids=lambda r: f"w{r['width_mult']}-{r['name']}")
def test_ofa_counts(row):
    space = space_of(replace(PRESETS["imagenet"], width=row["width_mult"]))
    for resolution, expected in row["macs"].items():
        specs = space.layers(published_arch(space, int(resolution), row["ks"], row["e"], row["d"]))
        assert macs(specs) == expected
        assert params(specs) == row["params"]


def test_batch_equals_one_by_one():
    space = space_of(replace(PRESETS["imagenet"], weight_bits=(2, 3, 4), act_bits=(2, 3, 4)))
    codes = space.sample_codes(np.random.default_rng(0), 20)
    for cost in COSTS.values():
        batch = cost(space.layers_batch(codes))
        assert [cost(space.layers(space.decode(row))) for row in codes] == batch.tolist()


def test_costs_of_expectations_are_differentiable():
    """Bits as torch tensors: an expectation over precisions has gradients, and integer values give the same cost."""
    space = space_of(with_bits(PRESETS["nano"], 4))
    arch = space.largest()
    specs = space.layers(arch)
    bits = {name: torch.tensor(4.0, requires_grad=True) for name in specs}
    expected = {name: replace(s, weight_bits=bits[name], act_bits=torch.tensor(4.0)) for name, s in specs.items()}
    quantized = {name: replace(s, weight_bits=4, act_bits=4) for name, s in specs.items()}
    for cost in (bitops, weight_bytes, macs, params):
        assert float(torch.as_tensor(cost(expected)).detach()) == float(cost(quantized))
    bitops(expected).backward()
    for name, spec in specs.items():
        assert float(bits[name].grad) == 4 * layer_macs(spec)
    present = torch.tensor(0.5, requires_grad=True)
    half = macs({"stem": replace(specs["stem"], present=present)})
    assert float(half.detach()) == 0.5 * layer_macs(specs["stem"]) and half.requires_grad


def test_arch_round_trips():
    space = space_of(with_bits(PRESETS["cifar"], 4))
    arch = space.sample(np.random.default_rng(1))
    assert Arch.from_json(arch.to_json()) == arch
    assert space.decode(space.encode(arch)) == arch
    assert space.complete(space.brief(arch)) == arch
