from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from oncequant import elastic
from oncequant.arch import LayerSpec
from oncequant.cost import macs, params
from oncequant.data.images import resize
from oncequant.elastic import ElasticConv, Pass, Quantizers, SharedWeights
from oncequant.family import elementwise, make_divisible, with_bits
from oncequant.measure import initialise_quantizers
from oncequant.models import build_network, extract_subnet, space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.network import Pending, elastic_layers
from oncequant.quantizers.functional import fake_quantize
from oncequant.quantizers.quantizer import Ask

SMALL = {
    "nano": PRESETS["nano"],
    "cifar": replace(PRESETS["cifar"], width=0.5, resolutions=(12, 16)),
    "imagenet": replace(PRESETS["imagenet"], width=0.35, resolutions=(32, 36), num_classes=7),
}


def supernet(preset, bits, **options):
    """A supernet with random norms, transforms and statistics, so that nothing is at a neutral value."""
    config = with_bits(replace(SMALL[preset], edge_bits=8, se_bits=8, **options), bits)
    torch.manual_seed(0)
    net = build_network(config).to(memory_format=torch.channels_last)
    images = torch.randn(8, config.image_channels, max(config.resolutions), max(config.resolutions))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "kernel_transforms" in name or ".norm." in name:
                p.add_(0.1 * torch.randn_like(p))
    if bits < 32:
        initialise_quantizers(net, images)
    return net, images


@pytest.mark.parametrize("preset", SMALL)
@pytest.mark.parametrize("bits", [32, 4, 2])
@pytest.mark.parametrize("training", [True, False])
def test_extracted_subnet_is_bit_identical(preset, bits, training):
    net, images = supernet(preset, bits, dropout=0.0)
    net.train(training)
    rng = np.random.default_rng(0)
    for arch in [net.space.largest(), net.space.smallest(), *(net.space.sample(rng) for _ in range(3))]:
        subnet = extract_subnet(net, arch)
        if training:  # with gradients, batch norms are computed elsewhere
            assert torch.equal(net(images, arch), subnet(images, arch))
        with torch.no_grad():
            assert torch.equal(net(images, arch), subnet(images, arch))
        sliced = sum(p.numel() for n, p in subnet.named_parameters() if "step_size" not in n)
        assert sliced == params(net.space.layers(arch))


@pytest.mark.parametrize("preset", SMALL)
def test_specs_describe_the_shapes_that_run(preset):
    net, images = supernet(preset, 4)
    rng = np.random.default_rng(1)
    for arch in [net.space.largest(), *(net.space.sample(rng) for _ in range(3))]:
        seen = {}

        def record(name, seen=seen):
            return lambda module, inputs, output: seen.__setitem__(name, (inputs[0].shape, output.shape))

        hooks = [layer.register_forward_hook(record(name)) for name, layer in elastic_layers(net)]
        net(images, arch)
        for hook in hooks:
            hook.remove()
        specs = {name: s for name, s in net.space.layers(arch).items() if s.present}
        assert list(seen) == list(specs)
        for name, (x, y) in seen.items():
            assert x[1] == specs[name].in_channels
            assert y[1:] == (specs[name].out_channels, specs[name].out_size, specs[name].out_size)


def test_macs_agree_with_torch_counter():
    from torch.utils.flop_counter import FlopCounterMode

    net, images = supernet("imagenet", 32)
    arch = net.space.sample(np.random.default_rng(2))
    subnet = extract_subnet(net, arch).eval()  # kernel transforms are no part of a subnet
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subnet(images[:1], arch)
    assert counter.get_total_flops() == 2 * macs(net.space.layers(arch))


@settings(max_examples=25, deadline=None)
@given(
    c_in=st.integers(1, 12),
    c_out=st.integers(1, 12),
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.sampled_from([1, 2]),
    depthwise=st.booleans(),
    bits=st.sampled_from([2, 3, 4, 8, 32]),
    signed=st.booleans(),
)
def test_elastic_layer_is_a_plain_layer_with_sliced_weights(c_in, c_out, kernel, stride, depthwise, bits, signed):
    """Forward and gradients against composite fake-quantization and a plain convolution."""
    c_out = c_in if depthwise else c_out
    largest = LayerSpec("x", 12, 12, kernel_size=7, stride=stride, depthwise=depthwise, batch_norm=False)
    layer = ElasticConv(largest, (3, 5, 7), Quantizers((bits,), (bits,)) if bits < 32 else None)
    spec = replace(
        largest, in_channels=c_in, out_channels=c_out, kernel_size=kernel, weight_bits=bits, act_bits=bits,
        signed_input=signed,
    )  # fmt: skip
    x = torch.randn(2, c_in, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    if bits < 32:
        layer.weight_quantizer.initialise(layer.weight, Ask(bits, True))
        layer.act_quantizer.initialise(x, Ask(bits, signed))

    def plain(v, quantizer, signed):
        if bits == 32:
            return v
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        scale = 1 / (v.numel() * high) ** 0.5
        s = quantizer.step_size * scale + (quantizer.step_size * (1 - scale)).detach()
        q = (v / s).clamp(low, high)
        return (q + (q.round() - q).detach()) * s

    weight = layer.sliced_weight(spec)
    expected = F.conv2d(
        plain(x, layer.act_quantizer, signed),
        plain(weight, layer.weight_quantizer, True),
        stride=stride,
        padding=kernel // 2,
        groups=c_in if depthwise else 1,
    )
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, *layer.parameters()], grad, allow_unused=True)
    y = layer(x, spec, None)
    assert_close(y, expected, atol=1e-4, rtol=1e-4)
    got = torch.autograd.grad(y, [x, *layer.parameters()], grad, allow_unused=True)
    for a, b in zip(got, wanted):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("activation", [None, "relu", "hardswish"])
def test_of_activations_only_input_and_quantized_copy_are_kept_for_backward(activation):
    layer = ElasticConv(LayerSpec("x", 8, 8, batch_norm=False), (1,), Quantizers((4,), (4,)))
    spec = LayerSpec("x", 8, 8, weight_bits=4, act_bits=4, batch_norm=False)
    x = torch.rand(2, 8, 16, 16).requires_grad_()
    layer.act_quantizer.initialise(x, Ask(4, False))
    layer.weight_quantizer.initialise(layer.weight, Ask(4, True))
    kept = {}

    def pack(tensor):
        if tensor.numel() == x.numel():
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x, spec, activation)
    quantized = fake_quantize(x, layer.act_quantizer.step_size, 4, False, activation=activation)
    assert len(kept) == 2 and torch.equal(kept.pop(x.data_ptr()), x)
    assert torch.equal(kept.popitem()[1], quantized)


@pytest.mark.parametrize("bits", [32, 4])
def test_checkpointed_blocks_give_the_same_gradients_from_less_memory(bits):
    net, images = supernet("cifar", bits, dropout=0.0)
    arch = net.space.largest()
    gradients, kept = [], []
    for checkpointed in (False, True):
        net.zero_grad()
        seen = []

        def pack(tensor, seen=seen):
            seen.append(tensor)
            return tensor

        shared = SharedWeights()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = net(images, arch, Pass(shared=shared, recompute=checkpointed)).square().mean()
        kept.append(sum({t.data_ptr(): t.numel() for t in seen if t.dim() == 4 and len(t) == len(images)}.values()))
        loss.backward()
        shared.backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, grad in gradients[0].items():  # gradients of all that read a block's result are added in another order
        assert (grad - gradients[1][name]).norm() <= 1e-4 * grad.norm(), name
    assert kept[1] < 0.4 * kept[0]


@pytest.mark.parametrize("name", ["block0", "stage1.block1", "stage2.block1"])  # no expansion; neither; with SE
def test_blocks_with_batch_norm_in_the_quantizer_equal_those_without(name, monkeypatch):
    net, images = supernet("imagenet", 4, dropout=0.0)
    block, plan = net.train().get_submodule(name), net.space.plan(net.space.largest())
    nodes = dict(plan.segments)[name]
    assert {"multiply" in (node.op for node in nodes), hasattr(block, "expand")} == {
        "block0": {False},
        "stage1.block1": {False, True},
        "stage2.block1": {True},
    }[name]
    first = next(plan.layers[node.name] for node in nodes if node.op == "layer")
    x = torch.randn(4, first.in_channels, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    found, kept = [], []

    def pack(tensor):
        kept[-1][tensor.data_ptr()] = tensor.numel() if tensor.dim() == 4 and len(tensor) == 4 else 0
        return tensor

    for apart in (False, True):
        if apart:
            monkeypatch.setattr(elastic, "can_join", lambda *_: False)
        kept.append({})
        block.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            how = Pass(recompute=True)  # values alone around the block
            made = net._segment(nodes, {nodes[0].inputs[0]: Pending(x)}, plan, how)
            (y,) = (value.value(how) for value in made.values())
        (grad_x,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        y.square().sum().backward()
        grads = {key: p.grad for key, p in block.named_parameters() if p.grad is not None}
        found.append({"y": y, "x": grad_x, **grads})
    assert found[0].keys() == found[1].keys() and any("norm.weight" in key for key in found[0])
    for key in found[0]:  # where a value is on a rounding boundary, one of thousands is another
        assert (found[0][key] - found[1][key]).norm() <= 0.02 * found[1][key].norm(), key
    assert sum(kept[0].values()) < 0.85 * sum(kept[1].values())


@pytest.mark.parametrize("preset", SMALL)
@pytest.mark.parametrize("bits", [32, 4])
def test_a_step_in_bfloat16_is_close_to_one_in_float32(preset, bits):
    """Of a quantized network only the loss: a relative change of its images by 1e-5 turns all gradients, too."""
    net, images = supernet(preset, bits, dropout=0.0)
    net.train()
    labels = torch.arange(len(images)) % net.config.num_classes
    seen, gradients, losses = set(), [], []
    hook = net.stage2.block1.depthwise.register_forward_hook(lambda layer, inputs, y: seen.add(y.dtype))
    for compute in (torch.float32, torch.bfloat16):
        net.zero_grad()
        shared = SharedWeights()
        logits = net(images, net.space.largest(), Pass(shared=shared, compute=compute))
        assert logits.dtype == torch.float32
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        shared.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
        assert all(grad.dtype == torch.float32 for grad in gradients[-1].values())
    hook.remove()
    assert seen == {torch.float32, torch.bfloat16}
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert gradients[0].keys() == gradients[1].keys()
    if bits == 32:
        a, b = (torch.cat([grad.flatten() for grad in g.values()]) for g in gradients)
        assert F.cosine_similarity(a, b, 0) > 0.8


@pytest.mark.parametrize(
    "kernel, depthwise, activation", [(1, False, None), (1, False, "hardswish"), (3, True, "relu"), (5, True, None)]
)
@pytest.mark.parametrize("bits", [32, 4, 2])
def test_a_layer_in_bfloat16_is_close_to_one_in_float32(kernel, depthwise, activation, bits):
    spec = LayerSpec("expand", 16, 16, kernel, weight_bits=bits, act_bits=bits, depthwise=depthwise, signed_input=True)
    torch.manual_seed(0)
    layer = ElasticConv(spec, (kernel,), Quantizers((bits,), (bits,)) if bits < 32 else None)
    x = torch.randn(8, 16, 12, 12).bfloat16().float()
    if bits < 32:
        layer.act_quantizer.initialise(x, Ask(bits, True))
        layer.weight_quantizer.initialise(layer.weight, Ask(bits, True))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        layer.zero_grad()
        leaf = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
        y = layer(leaf, spec, activation)
        assert y.dtype == dtype
        (y.float() * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        assert leaf.grad.dtype == dtype and layer.weight.grad.dtype == torch.float32
        found.append((y, leaf.grad, *(p.grad for p in layer.parameters())))
    for single, half in zip(*found, strict=True):
        of_step_size = single.dim() == 0  # a sum in which most cancels
        # CPUs without bfloat16 products round each of them: 0.031 for the depthwise weights on an AMD EPYC (Zen 3)
        assert (half.float() - single).norm() <= (0.3 if of_step_size else 0.04) * single.norm()


def test_supernet_statistics_do_not_change_in_training():
    net, images = supernet("nano", 4)
    before = {n: b.clone() for n, b in net.named_buffers()}
    net.train()(images, net.space.sample(np.random.default_rng(0))).sum().backward()
    assert all(torch.equal(before[n], b) for n, b in net.named_buffers())


def test_activation_signs():
    for signed in (True, False):
        space = space_of(with_bits(replace(SMALL["nano"], signed_activations=signed), 4))
        specs = space.layers(space.largest())
        assert {s.role for s in specs.values() if s.signed_input} == (
            {"stem", "expand", "final_expand"} if signed else {"stem"}
        )


def test_elementwise_tables_equal_one_by_one():
    values = np.array([3, 6, 4, 3])
    assert elementwise(lambda v: make_divisible(24 * v), values).tolist() == [72, 144, 96, 72]
    assert elementwise(lambda v: v + 1, 7) == 8


def test_resize_is_the_identity_at_equal_size():
    x = torch.randn(1, 1, 8, 8)
    assert resize(x, 8) is x and resize(x, 6).shape == (1, 1, 6, 6)
