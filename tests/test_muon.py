"""Muon's updates, and which weights it trains."""

from dataclasses import replace

import pytest
import torch
from small_training import CONFIG, TINY, digits

from oncequant.family import with_bits
from oncequant.methods import oqat
from oncequant.models import PRESETS, build_network
from oncequant.muon import Muon, orthogonal
from oncequant.run_folder import Run
from oncequant.schedule import Schedule, make_optimizers


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_singular_values_become_about_equal(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    found = torch.linalg.svdvals(orthogonal(matrix, 8))
    assert found.min() > 0.5 and found.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonal(matrix, 8).flatten(), (u @ v).flatten(), 0) > 0.95


def test_a_step_moves_a_weight_by_lr_times_its_norm_which_stays():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(3 * torch.randn(16, 8, 3, 3))
    optimizer, before = Muon([weight], lr=0.1, momentum=0.0, iterations=12), weight.detach().clone()
    norm = before.norm()
    for _ in range(5):
        weight.grad = torch.randn_like(weight)
        start = weight.detach().clone()
        optimizer.step()
        moved = weight.detach() - start * norm / start.norm()  # a step begins with the norm of the start
        assert moved.norm() == pytest.approx(float(0.1 * norm), rel=0.25)
        assert (moved * weight.grad).sum() < 0
    assert weight.detach().norm() == pytest.approx(float(norm), rel=0.05)


def test_a_weight_of_zeros_stays_finite():
    weight = torch.nn.Parameter(torch.zeros(4, 4, 3, 3))
    weight.grad = torch.randn_like(weight)
    Muon([weight]).step()
    assert weight.isfinite().all()


def test_the_scale_of_a_gradient_does_not_matter():
    torch.manual_seed(0)
    start, gradients = torch.randn(8, 4, 3, 3), torch.randn(3, 8, 4, 3, 3)
    ends = []
    for scale in (1.0, 1e3):
        weight = torch.nn.Parameter(start.clone())
        optimizer = Muon([weight])
        for gradient in gradients:
            weight.grad = scale * gradient
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("preset", ["resnet-nano", "nano"])
def test_it_trains_dense_convolutions_and_adamw_the_rest(preset):
    net = build_network(with_bits(replace(PRESETS[preset], edge_bits=8), 4))
    optimizers = make_optimizers(net, Schedule(1, 2, 3e-3, optimizer="muon", muon_lr=0.15))
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["Muon", "StepSizeAdamW"]
    names = {parameter: name for name, parameter in net.named_parameters()}
    muon, rest = ({names[p] for g in o.param_groups for p in g["params"]} for o in optimizers)
    assert not muon & rest and muon | rest == set(names.values())
    assert {"classifier.weight"} <= rest and all(name.endswith(".weight") for name in muon)
    assert not any("norm" in name or "quantizer" in name or "depthwise" in name for name in muon)
    assert optimizers[0].param_groups[0]["scale"] * 3e-3 == pytest.approx(0.15)


def test_without_dense_convolutions_there_is_adamw_alone():
    net = torch.nn.Linear(3, 2)
    assert [type(o).__name__ for o in make_optimizers(net, Schedule(1, 2, 1e-3, optimizer="muon"))] == ["StepSizeAdamW"]


def test_the_float_stage_trains_subnets_or_the_largest_alone(tmp_path):
    from oncequant.files import read_lines

    for sandwich in (True, False):
        config = replace(CONFIG, bit_schedule=(4,), float_sandwich=sandwich, optimizer="muon")
        folder = tmp_path / str(sandwich)
        oqat.train(config, Run(folder, TINY, digits()))
        rows = {row["stage"]: row for row in read_lines(folder / "metrics.jsonl")}
        assert ("top1_smallest" in rows["float"]) == sandwich and "top1_smallest" in rows["4bit"]
        assert rows["float"]["images"] * (1 if sandwich else 2) == rows["4bit"]["images"]
