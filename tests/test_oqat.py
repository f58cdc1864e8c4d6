"""OQAT's own rules: inheritance of bits, and its schedules."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import CONFIG, TINY, digits, supernet

from oncequant import sandwich
from oncequant.family import with_bits
from oncequant.methods import oqat
from oncequant.models import PRESETS, build_network, space_of
from oncequant.network import elastic_layers
from oncequant.run_folder import Run


@pytest.mark.parametrize("high, low", [(4, 3), (3, 2), (8, 2), (6, 5)])
def test_inheritance_copies_weights_and_doubles_the_steps_of_falling_layers_only(high, low):
    higher, lower = supernet(high), build_network(with_bits(TINY, low))
    oqat.inherit_bits(higher, lower, digits(), CONFIG)
    specs = lower.space.layers(lower.space.largest())
    theirs = dict(elastic_layers(higher))
    for name, layer in elastic_layers(lower):
        assert torch.equal(layer.weight, theirs[name].weight)
        factor = 1 if specs[name].weight_bits == 8 else 2 ** (high - low)
        for quantizer in ("weight_quantizer", "act_quantizer"):
            mine, his = getattr(layer, quantizer).step_size, getattr(theirs[name], quantizer).step_size
            assert torch.equal(mine, factor * his)


def test_inheritance_from_float_initialises_every_step():
    lower = build_network(with_bits(TINY, 4))
    oqat.inherit_bits(supernet(32), lower, digits(), CONFIG)
    steps = [p for n, p in lower.named_parameters() if n.endswith("step_size")]
    assert steps and all(s.isfinite() and s > 0 for s in steps)


@pytest.mark.parametrize("schedule", [(4, 4), (2, 3), (1,), (9, 4), (32,)])
def test_impossible_bit_schedules_are_refused(schedule):
    with pytest.raises(ValueError, match="bit_schedule"):
        oqat.Config(bit_schedule=schedule)


@pytest.mark.parametrize("images, size", [(100, 64), (1_077, 64), (6_000, 128), (42_500, 256), (10**6, 256)])
def test_batches_are_larger_where_there_are_many_images(images, size):
    assert oqat.Config().batch(images) == size
    assert oqat.Config(optimizer="adamw").batch(images) == 64 and oqat.Config(batch_size=48).batch(images) == 48
    with pytest.raises(ValueError, match="batch_size 1: use 2 to 65,536"):
        oqat.Config(batch_size=1)


def test_a_third_of_the_subnets_is_the_smallest_and_a_third_narrow_where_widths_can_be_chosen():
    space = space_of(PRESETS["resnet-cifar"])
    drawn = [sandwich.other_arch(space, np.random.default_rng(step)) for step in range(300)]
    assert 70 < drawn.count(space.smallest()) < 130
    widths = [name for name in space.choices if name.endswith(".width")]
    narrow = [arch for arch in drawn if all(arch[name] == min(space.choices[name]) for name in widths)]
    assert 160 < len(narrow) < 240  # of both kinds
    for name in ("resolution", "stage1.block1.expand_ratio"):
        assert {arch[name] for arch in narrow} == set(space.choices[name])
    without = space_of(PRESETS["resnet-nano"])
    assert len({sandwich.other_arch(without, np.random.default_rng(step)) for step in range(300)}) > 150


def test_every_step_trains_the_largest_and_the_smallest_where_that_is_said():
    space = space_of(PRESETS["resnet-cifar"])
    archs = [sandwich.sandwich_archs(space, 2, np.random.default_rng(step), always_smallest=True) for step in range(9)]
    assert all(drawn[:2] == [space.largest(), space.smallest()] and len(drawn) in (3, 4) for drawn in archs)
    assert all(len(set(drawn)) == len(drawn) for drawn in archs)
    assert sandwich.sandwich_archs(space, 0, np.random.default_rng(0)) == [space.largest()]


def test_images_grow_in_float_and_in_the_first_quantized_stage_and_end_at_the_largest(tmp_path, monkeypatch):
    seen: dict[int, list[list[int]]] = {}
    forward = sandwich.sandwich_step

    def noted(net, images, labels, archs, *rest):
        seen.setdefault(net.config.weight_bits[0], []).append([arch["resolution"] for arch in archs])
        return forward(net, images, labels, archs, *rest)

    def train(name, only=None, **options):
        seen.clear()
        cfg = replace(CONFIG, min_steps=6, batch_size=64, bit_schedule=(4, 2), random_subnets=0, **options)
        oqat.train(cfg, Run(tmp_path / name, model, digits(10)), only)

    monkeypatch.setattr(sandwich, "sandwich_step", noted)
    model = replace(TINY, resolutions=(6, 8, 10))
    train("all", always_smallest=True)
    assert seen[32] == [[6], [6], [8], [8], [10], [10]]
    assert seen[4] == [[6, 6]] * 3 + [[8, 6]] * 3 + [[10, 6]] * 2 and seen[2] == [[10, 6]] * 4
    arch = space_of(model).largest().replace(resolution=8)
    only = {name: value for name, value in arch.items() if not name.endswith("_bits")}
    train("one", only)
    assert seen[32] == [[6]] * 3 + [[8]] * 3 and seen[4] == [[6]] * 4 + [[8]] * 4 and seen[2] == [[8]] * 4
    train("before", only, float_sandwich=True)  # as networks alone were trained then
    assert seen[32] == [[8]] * 6


def test_direct_start_and_long_schedules_train(tmp_path):
    config = replace(CONFIG, bit_schedule=(8, 5, 2), min_steps=1, batch_size=64)
    oqat.train(config, Run(tmp_path / "long", TINY, digits()))
    oqat.train(replace(config, bit_schedule=(2,)), Run(tmp_path / "direct", TINY, digits()))
    for folder, stages in (("long", ["8bit", "5bit", "2bit"]), ("direct", ["2bit"])):
        assert all((tmp_path / folder / f"{stage}.safetensors").exists() for stage in stages)


def test_one_architecture_can_be_trained_alone(tmp_path):
    arch = build_network(TINY).space.sample(np.random.default_rng(0))
    only = build_network(TINY).space.brief(arch)
    oqat.train(CONFIG, Run(tmp_path, TINY, digits()), only)
    net = oqat.load_supernet(tmp_path, "2bit")
    assert net.space.size() == 1 and dict(only).items() <= dict(net.space.largest()).items()


@pytest.mark.parametrize("preset", ["nano", "resnet-nano"])
def test_no_stage_starts_with_gradients_that_explode(preset, tmp_path, monkeypatch):
    """Each begins where the one before ended, at other bits: norms stay what they are within a stage."""
    clip, norms, steps, data = torch.nn.utils.clip_grad_norm_, [], 12, digits(train=200)

    def noted(*args):
        norms.append(float(clip(*args)))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    cfg = oqat.Config(float_epochs=1, epochs=1, min_steps=steps, batch_size=32, calibration_images=8, random_subnets=0)
    model = replace(PRESETS[preset], depths=(1,), resolutions=(8,))
    oqat.train(cfg, Run(tmp_path, model, replace(data, validation=data.validation.subset(torch.arange(8)))))
    by_stage = np.array(norms).reshape(4, steps)
    assert by_stage[1:, :3].max() < 4 * np.median(by_stage[0]) < 20  # seen: 1.0 to 2.3 of it


@pytest.mark.parametrize("schedule", [(4,), (4, 2), (4, 3, 2), (8, 6, 4, 3, 2)])
def test_bit_widths_share_the_quantized_steps_and_the_first_has_most(schedule):
    cfg = replace(CONFIG, bit_schedule=schedule, epochs=7, min_steps=0)
    found = [cfg.schedule(f"{bits}bit", digits()) for bits in schedule]
    alone = replace(cfg, bit_schedule=(4,)).schedule("4bit", digits())
    assert abs(sum(one.steps for one in found) - len(schedule) * alone.steps) <= len(schedule)
    assert all(one.warmup == one.steps // 20 for one in found)
    assert [one.muon_lr / alone.muon_lr for one in found] == pytest.approx([1.0] + [0.25] * (len(schedule) - 1))
    if len(schedule) > 1:
        first, *between, last = (one.steps for one in found)
        assert first > last > max(between, default=0)
