import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from oncequant import native
from oncequant.arch import LayerSpec
from oncequant.elastic import ElasticConv, Pass, Quantizers
from oncequant.join import batch_norm_statistics
from oncequant.measure import _merged, ask, calibrate, calibrated_subnet, initialise_quantizers
from oncequant.models import build_network, extract_subnet, space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.network import elastic_layers
from oncequant.quantizers import INPUT_QUANTIZERS
from oncequant.quantizers.batchquant import BatchQuant, batch_range
from oncequant.quantizers.functional import activate, fake_quantize, integer_range
from oncequant.quantizers.quantizer import Ask, NotCalibrated
from oncequant.quantizers.running import RunningRange

GOLDEN = json.loads((Path(__file__).parent / "golden" / "quantizers_qfa.json").read_text())
MIXED = replace(
    PRESETS["nano"],
    stage_widths=(16, 24),
    stage_strides=(2, 2),
    stage_se=(False, True),
    stage_hswish=(False, True),
    weight_bits=(2, 3, 4),
    act_bits=(2, 3, 4),
    edge_bits=8,
    se_bits=8,
    steps_per_bits=True,
    act_quantizer="batchquant",
    dropout=0.0,
)


@pytest.fixture(params=["compiled", "eager"])
def kernels(request, monkeypatch):
    if request.param == "eager":
        monkeypatch.setattr(native, "available", lambda: False)


@pytest.mark.parametrize("case", GOLDEN["batchquant"], ids=lambda c: f"{'s' if c['signed'] else 'u'}{c['bits']}")
def test_matches_the_official_outputs_and_all_gradients(case, kernels):
    x = torch.tensor(GOLDEN["input"]).view(GOLDEN["batchquant_input_shape"]).requires_grad_()
    quantizer = BatchQuant()
    with torch.no_grad():
        quantizer.scale.fill_(case["scale_parameter"])
        quantizer.offset.fill_(case["offset_parameter"])
    grid = quantizer.grid(x, Ask(case["bits"], case["signed"], of_batch=True))
    y = fake_quantize(x, grid.step_size, grid.bits, grid.signed, grid.grad_scale, grid.offset)
    y.backward(torch.tensor(GOLDEN["upstream_gradient"]).view(x.shape))
    assert_close(y.flatten(), torch.tensor(case["output"]), atol=2e-6, rtol=1e-5)
    assert_close(x.grad.flatten(), torch.tensor(case["grad_input"]), atol=1e-6, rtol=1e-6)
    assert_close(quantizer.scale.grad.item(), case["grad_scale"], atol=2e-6, rtol=1e-5)
    assert_close(quantizer.offset.grad.item(), case["grad_offset"], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("case", GOLDEN["weight_lsq"], ids=lambda c: c["bits"])
def test_weights_are_quantized_as_in_the_official_code(case):
    spec = LayerSpec("x", 1, 24, batch_norm=False, weight_bits=case["bits"])
    layer = ElasticConv(spec, (1,), Quantizers((2, 3, 4, 8), (2, 3, 4, 8), per_bits=True))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(GOLDEN["input"]).view(24, 1, 1, 1))
    slot = layer.weight_slots[case["bits"], 1]
    layer.weight_quantizer.initialise(layer.weight, Ask(case["bits"], True, slot))
    y = layer.quantized_weight(spec)
    y.backward(torch.tensor(GOLDEN["upstream_gradient"]).view(y.shape))
    step_size = layer.weight_quantizer.step_size
    assert_close(step_size[slot].item(), case["initial_scale"], atol=0, rtol=1e-5)
    assert_close(y.flatten(), torch.tensor(case["output"]), atol=2e-6, rtol=1e-5)
    assert_close(layer.weight.grad.flatten(), torch.tensor(case["grad_input"]), atol=1e-6, rtol=1e-6)
    assert_close(step_size.grad[slot].item(), case["grad_scale"], atol=2e-6, rtol=1e-5)
    assert (step_size.grad != 0).sum() <= 1  # of the other bit-widths nothing


def official_range(h):
    """peers.md section 3, on the activated values themselves."""
    values = h.transpose(0, 1).flatten(1)
    return min(0.0, values.amin(1).mean().item()), max(0.0, values.amax(1).mean().item())


@pytest.mark.compiler
@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 5), st.sampled_from([1, 3, 8, 40]), st.integers(1, 6), st.integers(1, 6)),
    activation=st.sampled_from([None, "relu", "hardswish"]),
    mean=st.floats(-4, 4),
    normalised=st.booleans(),
    channels_last=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_range_is_the_mean_over_channels_of_their_extremes(
    shape, activation, mean, normalised, channels_last, half, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = mean + torch.randn(shape, generator=generator) * 2
    x = x.bfloat16() if half else x
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    norm, values = None, x.float()
    if normalised and x.numel() > x.shape[1]:
        weight = torch.randn(shape[1], generator=generator)
        bias = torch.randn(shape[1], generator=generator)
        norm = batch_norm_statistics(x, weight, bias, 1e-5)
        values = values * norm[2][:, None, None] + norm[3][:, None, None]
    low, high = official_range(activate(values, activation))
    found = batch_range(x, activation, norm, False)
    if norm is not None:
        with_extremes = batch_norm_statistics(x, weight, bias, 1e-5, extremes=True)
        assert torch.equal(with_extremes[:4], norm) and torch.equal(
            batch_range(x, activation, with_extremes, False), found
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "available", lambda: False)
        assert_close(batch_range(x, activation, norm, False), found, atol=1e-5, rtol=1e-5)
    assert_close(found[1].item(), high, atol=1e-4, rtol=1e-4)
    if activation != "hardswish":
        assert_close(found[0].item(), low, atol=1e-4, rtol=1e-4)
    else:  # at least as wide, and no wider than h-swish is deep
        assert max(-0.375, low - 0.375) - 1e-5 <= found[0].item() <= low + 1e-5


def test_the_range_of_h_swish_tends_to_the_official_one():
    x = torch.randn(8, 16, 32, 32)
    assert_close(
        batch_range(x, "hardswish", None, False)[0].item(), official_range(F.hardswish(x))[0], atol=1e-5, rtol=0
    )


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 8), signed=st.booleans(), p=st.floats(-2, 2), delta=st.floats(-3, 3), seed=st.integers(0, 99)
)
def test_values_lie_on_the_grid_and_a_folded_grid_holds_zero(bits, signed, p, delta, seed):
    x = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(seed))
    quantizer = BatchQuant(1)
    with torch.no_grad():
        quantizer.scale.fill_(p)
        quantizer.offset.fill_(delta)
    quantizer.range.copy_(batch_range(x, None, None, False))
    before = quantizer.grid(x, Ask(bits, signed, 0))
    y = fake_quantize(x, before.step_size, before.bits, before.signed, 1.0, before.offset)
    assert y.unique().numel() <= 2**bits
    moved = quantizer.fold_offset(bits, signed)
    after = quantizer.grid(x, Ask(bits, signed, 0))
    assert after.offset == after.offset.round() and torch.equal(after.step_size, before.step_size)
    q_min, q_max = integer_range(bits, signed and bits > 1)
    assert q_min <= after.offset <= q_max
    assert_close((after.offset - before.offset).abs().item(), moved, atol=1e-5, rtol=0)
    assert quantizer.fold_offset(bits, signed) == 0
    zero = fake_quantize(torch.zeros(1), after.step_size, after.bits, after.signed, 1.0, after.offset)
    assert zero == 0


def test_behind_relu_a_folded_grid_begins_at_zero():
    quantizer = BatchQuant(1)
    with torch.no_grad():
        quantizer.offset.fill_(1.3)
    quantizer.range.copy_(torch.tensor([0.0, 2.0]))
    quantizer.fold_offset(4, False)
    assert quantizer.grid(torch.zeros(1, 1), Ask(4, False, 0)).offset == 0


def test_a_constant_tensor_has_a_grid(kernels):
    grid = BatchQuant().grid(torch.zeros(2, 3, 4, 4), Ask(4, False, of_batch=True))
    assert grid.step_size == 1 and grid.offset == 0


@pytest.mark.parametrize("kind", [BatchQuant, RunningRange])
def test_evaluation_before_calibration_is_an_error(kind):
    with pytest.raises(NotCalibrated):
        kind().grid(torch.randn(2, 3, 4, 4), Ask(4, False))


def test_running_ranges_move_towards_those_of_the_batches():
    quantizer = RunningRange(2)
    for scale in (1.0, 3.0):
        x = torch.tensor([-1.0, 0.5, 2.0]).view(1, 1, 3, 1) * scale
        quantizer.grid(x, Ask(4, False, 1, of_batch=True))
    assert_close(quantizer.range[1], torch.tensor([-1.02, 2.04]))
    assert quantizer.range[0].isnan().all()
    grid = quantizer.grid(x, Ask(4, False, 1))
    assert_close(grid.step_size.item(), 3.06 / 15)
    assert grid.offset == 5  # 1.02 / 0.204


# -- in a network


def mixed_net(**changes):
    torch.manual_seed(0)
    config = replace(MIXED, **changes)
    net = build_network(config, space_of(config)).to(memory_format=torch.channels_last)
    for name, parameter in net.named_parameters():  # not at their start values, so that mix-ups show
        if name.endswith((".scale", ".offset")):
            torch.nn.init.normal_(parameter, std=0.3)
    initialise_quantizers(net, torch.randn(8, 1, 12, 12))
    return net


def random_arch(net, seed):
    import numpy as np

    return net.space.sample(np.random.default_rng(seed))


@pytest.mark.parametrize("kind", sorted(INPUT_QUANTIZERS))
def test_a_subnet_is_a_slice_of_the_supernet(kind):
    net, images = mixed_net(act_quantizer=kind), torch.randn(8, 1, 12, 12)
    for seed in range(3):
        arch = random_arch(net, seed)
        with torch.no_grad():
            net.train()(images, arch)  # running ranges need a batch
        subnet = extract_subnet(net, arch)
        if INPUT_QUANTIZERS[kind].counts_batches:  # as they are, or the two would see different batches
            net.eval(), subnet.eval()
            for module in [*net.modules(), *subnet.modules()]:
                if hasattr(module, "running_mean"):
                    torch.nn.init.constant_(module.running_mean, 0.1)
        assert torch.equal(net(images, arch), subnet(images, arch))


def test_every_step_size_is_initialised_and_belongs_to_its_bits_and_kernel():
    net = mixed_net(act_quantizer="lsq")
    assert not any(p.isnan().any() for p in net.parameters())
    depthwise = net.stage1["block1"].depthwise
    assert set(depthwise.weight_slots) == {(b, k) for b in (2, 3, 4) for k in (3, 5)}
    steps = depthwise.weight_quantizer.step_size
    assert steps[depthwise.weight_slots[2, 3]] > steps[depthwise.weight_slots[4, 3]]


def test_only_the_parameters_of_the_bits_and_kernels_that_ran_get_gradients():
    net, images = mixed_net(), torch.randn(8, 1, 12, 12)
    arch = random_arch(net, 1).replace(**{"stage1.depth": 1, "stage1.block1.kernel_size": 3})
    net.train()(images, arch).square().sum().backward()
    layer, specs = net.stage1["block1"].depthwise, net.space.layers(arch)
    spec = specs["stage1.block1.depthwise"]
    for parameter, slots, bits in (
        (layer.weight_quantizer.step_size, layer.weight_slots, spec.weight_bits),
        (layer.act_quantizer.scale, layer.act_slots, spec.act_bits),
        (layer.act_quantizer.offset, layer.act_slots, spec.act_bits),
    ):
        others = torch.ones(len(parameter), dtype=torch.bool)
        others[slots[bits, 3]] = False
        assert (parameter.grad[others] == 0).all()
    assert layer.weight_quantizer.step_size.grad.abs().sum() > 0


def plain_range_grid(quantizer, h, bits, signed, slot):
    """BatchQuant in plain differentiable PyTorch, from peers.md section 3."""
    low, high = official_range(h)
    q_min, q_max = integer_range(bits, signed)
    s = max((high - low) / (q_max - q_min), torch.finfo(torch.float32).eps)
    z = min(max(q_min - round(low / s), q_min), q_max)
    gamma = F.softplus(quantizer.scale[slot], beta=math.log(2))
    v = (h * gamma / s + z + quantizer.offset[slot]).clamp(q_min, q_max)
    q = (v.round() - v).detach() + v
    return (q - z - quantizer.offset[slot]) * s / gamma


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_layer_equals_plain_pytorch(kernel, kernels):
    torch.manual_seed(1)
    spec = LayerSpec("x", 8, 8, kernel, weight_bits=4, act_bits=3, depthwise=kernel > 1, signed_input=True)
    layer = ElasticConv(spec, (kernel,), Quantizers((2, 4), (2, 3), True, "batchquant"))
    layer.weight_quantizer.initialise(layer.weight, Ask(4, True, layer.weight_slots[4, kernel]))
    slot = layer.act_slots[3, kernel]
    with torch.no_grad():
        layer.act_quantizer.scale[slot], layer.act_quantizer.offset[slot] = 0.4, 0.3
    x, grad = torch.randn(5, 8, 6, 6, requires_grad=True), torch.randn(5, 8, 6, 6)
    wanted = [x, layer.weight, layer.act_quantizer.scale, layer.act_quantizer.offset]
    h = plain_range_grid(layer.act_quantizer, x, 3, True, slot)
    y = F.conv2d(h, layer.quantized_weight(spec), None, 1, kernel // 2, groups=spec.groups)
    y = F.batch_norm(y, None, None, layer.norm.weight, layer.norm.bias, True)
    plain = torch.autograd.grad((y * grad).sum(), wanted)
    ours = layer(x, spec, None)
    assert_close(ours, y, atol=1e-4, rtol=1e-4)
    for got, want in zip(torch.autograd.grad((ours * grad).sum(), wanted), plain, strict=True):
        assert_close(got, want, atol=1e-3, rtol=1e-3)


def test_statistics_belong_to_the_subnet_and_folding_is_calibrated():
    net, images = mixed_net(), torch.randn(64, 1, 12, 12)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    batches, arch = [(images[:32], None), (images[32:], None)], random_arch(net, 2)
    learned, folded = extract_subnet(net, arch), extract_subnet(net, arch)
    with pytest.raises(NotCalibrated):
        ask(folded, arch, [(images, torch.zeros(64, dtype=torch.long))])
    with torch.no_grad():
        x = [F.hardswish(folded.stem.norm(stem_of(folded, part, arch), Pass(batch_norms=True))) for part, _ in batches]
    seen = [batch_range(part, None, None, False) for part in x]
    calibrate(learned, arch, batches, fold=False)
    calibrate(folded, arch, batches)
    assert_close(folded.block0.depthwise.act_quantizer.range, sum(seen) / 2, atol=1e-4, rtol=1e-4)
    offsets = []
    for net_of in (learned, folded):
        layers = [(layer, net.space.layers(arch)[name]) for name, layer in elastic_layers(net_of)]
        grids = [layer.act_quantizer.grid(images, layer.ask(spec)) for layer, spec in layers if spec.present]
        offsets.append(torch.stack([grid.offset.detach() for grid in grids]))
    assert not torch.equal(offsets[0], offsets[0].round()) and torch.equal(offsets[1], offsets[1].round())
    names = [name for name, layer in elastic_layers(folded) if layer.norm]
    means = [dict(elastic_layers(n))[names[-1]].norm.running_mean for n in (learned, folded)]
    assert not torch.equal(*means) and not torch.equal(learned(images, arch), folded(images, arch))
    # batch norm was estimated with the ranges of evaluation, over both batches at once
    with torch.no_grad():
        of_batch = folded(images, arch, Pass(batch_norms=True))
        assert_close(of_batch, folded(images, arch), atol=1e-3, rtol=1e-3)
    for name, tensor in net.state_dict().items():  # the supernet has noticed nothing
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


def test_ranges_are_means_over_the_first_eight_batches():
    net = mixed_net()
    batches, arch = [(torch.randn(16, 1, 12, 12) * (1 + i), None) for i in range(10)], random_arch(net, 2)
    subnet = extract_subnet(net, arch)
    with torch.no_grad():
        x = [
            F.hardswish(subnet.stem.norm(stem_of(subnet, part, arch), Pass(batch_norms=True)))
            for part, _ in batches[:8]
        ]
    seen = [batch_range(part, None, None, False) for part in x]
    calibrate(subnet, arch, batches)
    assert_close(subnet.block0.depthwise.act_quantizer.range, sum(seen) / 8, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "sizes, merged",
    [
        ((250, 250), (250, 250)),
        ((64,) * 9, (256, 320)),
        ((64,), (64,)),
        ((64,) * 6, (256, 128)),
        ((64,) * 7, (256, 192)),
    ],
)
def test_batch_norm_is_estimated_from_large_batches(sizes, merged):
    batches = [(torch.full((size, 1), float(i)), None) for i, size in enumerate(sizes)]
    found = list(_merged(batches, 250))
    assert tuple(len(images) for images, _ in found) == merged
    assert torch.equal(torch.cat([images for images, _ in found]), torch.cat([images for images, _ in batches]))


def stem_of(subnet, images, arch):
    from oncequant.data.images import resize

    spec = subnet.space.layers(arch)["stem"]
    norm, subnet.stem.norm = subnet.stem.norm, None
    y = subnet.stem.train()(resize(images, arch["resolution"]), spec, None)
    subnet.stem.norm = norm
    return y


def test_calibration_and_measurement_are_deterministic():
    net, images = mixed_net(dropout=0.5), torch.randn(32, 1, 12, 12)
    arch, batches = random_arch(net, 3), [(images, None)]
    first, second = (calibrated_subnet(net, arch, batches)(images, arch) for _ in range(2))
    assert torch.equal(first, second)
