from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_qfa import QUICK, TINY, digits, trained_in
from torch.testing import assert_close

from oncequant import loss
from oncequant.data import eval_batches
from oncequant.export.verify import export_network
from oncequant.loss import Loss
from oncequant.measure import calibrated_subnet, measure
from oncequant.methods import qfa
from oncequant.models import build_network, space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.quantizers.batchquant import BatchQuant
from oncequant.run_folder import Run
from oncequant.supernet_file import load_supernet
from oncequant.tensor_files import read_tensors


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("run"))


# -- the space


def test_the_imagenet_space_has_more_than_ten_to_the_76_subnets():
    """As the abstract says; w1.0 and w1.2 have the same choices."""
    _, space = qfa.mixed_precision(qfa.Config(), PRESETS["imagenet"])
    assert space.size() > 10**76
    bits = [name for name in space.free if name.endswith("_bits")]
    assert len(bits) == 130 - 2  # the official genes have an inert pair for block 0's missing expand convolution


@pytest.mark.parametrize("preset", PRESETS)
def test_restricted_spaces(preset):
    def space(**options):
        return qfa.mixed_precision(qfa.Config(**options), PRESETS[preset])[1]

    assert all(name.endswith("_bits") for name in space(space="precision").free)
    assert not any(name.endswith("_bits") for name in space(space="architecture").free)
    full, precision, architecture = (space(space=s).size() for s in ("full", "precision", "architecture"))
    assert architecture == space_of(PRESETS[preset]).size()
    assert full > precision * 10 and full > architecture * 10
    floor = space(depthwise_floor=3)
    depthwise = [name for name in floor.choices if name.endswith(".depthwise.weight_bits")]
    assert depthwise and all(floor.choices[name] == (3, 4) for name in depthwise)
    with_float = qfa.mixed_precision(qfa.Config(space="architecture"), PRESETS[preset], with_float=True)[1]
    assert with_float.choices["final_expand.act_bits"] == (4, 32)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), with_float=st.booleans(), floor=st.integers(2, 4), subnets=st.integers(0, 4))
def test_the_subnets_of_a_step(seed, with_float, floor, subnets):
    cfg = qfa.Config(mixed_subnets=subnets, depthwise_floor=floor)
    _, space = qfa.mixed_precision(cfg, TINY, with_float)
    archs = qfa.step_archs(space, cfg, np.random.default_rng(seed))
    assert len(archs) == subnets + 2
    for arch in archs:
        assert space.complete(arch) == arch
        for name, spec in space.layers(arch).items():
            assert (spec.weight_bits == 32) == (spec.act_bits == 32), name
    for arch, resolution, depth in ((archs[0], 10, 2), (archs[-1], 8, 1)):
        assert arch["resolution"] == resolution and {arch[f"stage{s}.depth"] for s in (1, 2)} == {depth}
        assert len({arch[name] for name in space.free if name.endswith("kernel_size")}) == 1
        widths = {arch[n] for n in space.free if n.endswith("_bits") and "depthwise.weight" not in n}
        assert len(widths) == 1


@pytest.mark.parametrize("kind", ["full", "precision", "architecture"])
@pytest.mark.parametrize("bits", [(1,), (2, 32), (1, 2, 3, 4, 5, 6, 7, 8, 32)])
def test_any_list_of_bit_widths(bits, kind):
    cfg = qfa.Config(bits=bits, space=kind)
    for with_float in (True, False):
        _, space = qfa.mixed_precision(cfg, TINY, with_float)
        wanted = {*bits, 32} if with_float else set(bits)
        wanted = {b for b in wanted if b >= max(bits)} if kind == "architecture" else wanted
        for name in space.choices:
            if name.endswith("depthwise.weight_bits"):
                assert set(space.choices[name]) == wanted
        for arch in qfa.step_archs(space, cfg, np.random.default_rng(0)):
            for spec in space.layers(arch).values():
                assert (spec.weight_bits == 32) == (spec.act_bits == 32)


def test_float_layers_are_repaired_as_in_the_official_code():
    cfg = qfa.Config(mixed_subnets=200)
    _, space = qfa.mixed_precision(cfg, TINY, with_float=True)
    archs = qfa.step_archs(space, cfg, np.random.default_rng(0))[1:-1]
    layers = ["final_expand", "feature_mix", "block0.project"]
    pairs = Counter((arch[f"{n}.weight_bits"], arch[f"{n}.act_bits"]) for arch in archs for n in layers)
    # both float at once: 1/16; exactly one: 6/16, of which 0.2 become float on both sides
    assert pairs[32, 32] / pairs.total() == pytest.approx(1 / 16 + 0.2 * 6 / 16, abs=0.05)


@pytest.mark.parametrize(
    "options, text",
    [
        (dict(bits=()), "bits"),
        (dict(bits=(2, 9)), "bits"),
        (dict(bits=(32,)), "bits"),
        (dict(bits=(2, 2)), "bits"),
        (dict(depthwise_floor=5), "depthwise_floor"),
        (dict(bits=(2, 32), depthwise_floor=3), "depthwise_floor"),
        (dict(learned_offsets=1.5), "learned_offsets"),
        (dict(batch_size=1), "batch_size"),
        (dict(range_batch=1), "range_batch"),
        (dict(mixed_subnets=-1), "mixed_subnets"),
        (dict(activations="running", checkpoint_activations=True), "checkpoint_activations"),
    ],
)
def test_impossible_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        qfa.Config(**options)


# -- training


def test_a_step_adds_the_gradients_of_its_subnets():
    """Written again plainly: every subnet alone, label loss and soft loss, mean over them."""
    torch.manual_seed(0)
    cfg = qfa.Config(mixed_subnets=2)
    config, space = qfa.mixed_precision(cfg, replace(TINY, dropout=0.0))
    net, plain = (build_network(config, space).train() for _ in range(2))
    images, labels = torch.randn(16, 1, 10, 10), torch.arange(16) % 10
    qfa.initialise_quantizers(net, images)
    plain.load_state_dict(net.state_dict())
    teacher_net = build_network(TINY)
    teacher = qfa.Teacher(teacher_net, (8, 10), [(images, labels)])
    step = qfa.training_step(net, teacher, cfg, Loss(0.1), is_last=True)
    found = step(images, labels, np.random.default_rng(3), 0.0)
    archs, losses = qfa.step_archs(space, cfg, np.random.default_rng(3)), []
    for arch in archs:
        logits = plain(images, arch).log_softmax(1)
        hard = torch.full((16, 10), 0.1 / 10).scatter(1, labels[:, None], 0.9 + 0.1 / 10)
        soft = teacher(images, arch["resolution"])
        losses.append(-(hard * logits).sum(1).mean())
        ((losses[-1] - (soft * logits).sum(1).mean()) / 4).backward()
    assert_close(found, losses[0].detach(), atol=1e-4, rtol=1e-4)
    for (name, mine), theirs in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is None or name.endswith("weight_quantizer.step_size"):
            continue  # whose gradient scale counts the whole weight (docs/oqat.md, number 7)
        assert (mine.grad - theirs.grad).norm() <= 0.02 * theirs.grad.norm() + 1e-5, name


def starts_of_stages(cfg, folder, monkeypatch):
    """State of the supernet when each stage begins, by name; each trains."""
    found, original = {}, qfa.train_supernet

    def record(supernet, step, cfg, data, run_dir, stage, *rest):
        found[stage] = {name: value.clone() for name, value in supernet.state_dict().items()}
        original(supernet, step, cfg, data, run_dir, stage, *rest)

    monkeypatch.setattr(qfa, "train_supernet", record)
    qfa.train(cfg, Run(folder, TINY, digits()))
    return found


def test_step_sizes_are_initialised_once(tmp_path, monkeypatch):
    found = starts_of_stages(qfa.Config(**QUICK, quantized_lr=0.05), tmp_path, monkeypatch)
    before = read_tensors(tmp_path / "mixed-float.safetensors")[0]
    steps = [name for name in before if name.endswith("step_size")]
    assert steps and any((found["mixed-float"][name] != before[name]).any() for name in steps)
    for name, value in found["mixed"].items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name


def test_the_stage_with_float_is_half_as_long():
    cfg, data = qfa.Config(**{**QUICK, "min_steps": 40}), digits()
    assert {stage: cfg.schedule(stage, data).steps for stage in qfa.stages(cfg)} == {
        "float": 40,
        "mixed-float": 20,
        "mixed": 40,
    }


def soft_targets(monkeypatch):
    """The soft answers that each subnet of one step learns from."""
    torch.manual_seed(0)
    cfg = qfa.Config(mixed_subnets=2)
    config, space = qfa.mixed_precision(cfg, TINY)
    net, images = build_network(config, space), torch.randn(16, 1, 10, 10)
    qfa.initialise_quantizers(net, images)
    teacher = qfa.Teacher(build_network(TINY), (8, 10), [(images, None)])
    asked, original = [], loss.F.cross_entropy

    def record(logits, target, **options):
        if target.dim() == 2:
            asked.append(target)
        return original(logits, target, **options)

    monkeypatch.setattr(loss.F, "cross_entropy", record)
    step = qfa.training_step(net.train(), teacher, cfg, Loss(0.1), True)
    step(images, torch.arange(16) % 10, np.random.default_rng(0), 0.0)
    archs = qfa.step_archs(space, cfg, np.random.default_rng(0))
    return asked, [teacher(images, arch["resolution"]) for arch in archs]


def test_the_float_network_teaches_at_each_resolution(monkeypatch):
    asked, teacher = soft_targets(monkeypatch)
    assert len(asked) == 4 and all(map(torch.equal, asked, teacher))
    assert not torch.equal(asked[0], asked[-1])


def test_offsets_end_at_zero_where_they_are_not_learned_to_the_end(tmp_path):
    cfg = qfa.Config(**{**QUICK, "min_steps": 6}, learned_offsets=0.5, quantized_lr=0.05)
    qfa.train(cfg, Run(tmp_path, TINY, digits()))
    state = {stage: read_tensors(tmp_path / f"{stage}.safetensors")[0] for stage in ("mixed-float", "mixed")}
    offsets = {
        stage: torch.cat([t.flatten() for name, t in tensors.items() if name.endswith("act_quantizer.offset")])
        for stage, tensors in state.items()
    }
    assert offsets["mixed-float"].abs().max() > 0 and offsets["mixed"].abs().max() == 0


def test_all_stages_are_trained_and_a_second_call_does_nothing(trained):
    cfg, data, folder = trained
    files = {stage: (folder / f"{stage}.safetensors") for stage in qfa.stages(cfg)}
    before = {stage: file.stat().st_mtime_ns for stage, file in files.items()}
    assert not list(folder.glob("*.resume.pt"))
    qfa.train(cfg, Run(folder, TINY, data))
    assert before == {stage: file.stat().st_mtime_ns for stage, file in files.items()}
    mixed = load_supernet(folder, "mixed")
    ranges = [m for m in mixed.modules() if isinstance(m, BatchQuant)]
    assert ranges and all(m.range.isnan().all() for m in ranges)  # statistics belong to subnets
    assert any(m.scale.abs().max() > 0 for m in ranges)


@pytest.mark.parametrize("activations", ["lsq", "running"])
def test_other_activation_quantizers_train(activations, tmp_path):
    cfg, data = qfa.Config(**QUICK, activations=activations), digits()
    qfa.train(cfg, Run(tmp_path, TINY, data))
    mixed = load_supernet(tmp_path, "mixed")
    found = measure(mixed, mixed.space.largest(), cfg.calibration(data), eval_batches(data, data.validation))
    assert 0 <= found.accuracy.top1 <= 1


# -- export


@pytest.mark.parametrize("seed", range(2))
def test_mixed_precision_subnets_are_exported_and_verified(trained, seed, tmp_path):
    cfg, data, folder = trained
    net = load_supernet(folder, "mixed")
    arch = net.space.sample(np.random.default_rng(seed))
    calibration = cfg.calibration(data)
    subnet = calibrated_subnet(net, arch, calibration)
    test = eval_batches(data, data.test, 100)
    found = export_network(subnet, arch, data.mean, data.std, data.classes, data.size, calibration, test, tmp_path)
    onnx = found.judgements["onnx"]
    assert not found.problems and onnx.argmax_differences == onnx.near_tie_differences
    assert onnx.simulator_bit_equal_images == found.common.images
    specs = net.space.layers(arch)
    ideal = sum(s.weights * s.weight_bits / 8 for s in specs.values())
    assert found.common.ideal_bytes == ideal


def test_a_subnet_with_zero_points_between_levels_is_not_exported(trained, tmp_path):
    cfg, data, folder = trained
    net = load_supernet(folder, "mixed")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, BatchQuant):
                module.offset.fill_(0.3)
    arch, calibration = net.space.largest(), cfg.calibration(data)
    subnet = calibrated_subnet(net, arch, calibration, fold=False)
    with pytest.raises(ValueError, match="fold"):
        export_network(
            subnet,
            arch,
            data.mean,
            data.std,
            data.classes,
            data.size,
            calibration,
            eval_batches(data, data.test),
            tmp_path,
        )
