"""Residual networks: counts of the standard ones, against plain PyTorch, precisions, and their mixture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from oncequant.arch import FLOAT_PAIR as FLOAT
from oncequant.arch import SKIP
from oncequant.arch import pair as precision
from oncequant.cost import COSTS, bitops, macs, params, weight_bytes
from oncequant.elastic import ALONE, Pass
from oncequant.files import FileError
from oncequant.measure import calibrate, initialise_quantizers
from oncequant.models import build_network, config_from_json, config_to_json, extract_subnet, space_of
from oncequant.models.import_resnet import import_standard, read_standard
from oncequant.models.resnet import PRESETS, ResNetConfig
from oncequant.tensor_files import write_tensors

SMALL = ResNetConfig(stage_blocks=(2, 1, 1), stage_widths=(8, 16, 16), resolutions=(12,))
PAIRS = (SKIP, 104, 204, 303, 808, FLOAT)


@pytest.mark.parametrize(
    ("preset", "projections", "parameters", "multiplications"),
    [  # parameters as published with the common implementations; MACs of convolutions and the classifier
        ("resnet20", False, 269_722, 40_551_040),
        ("resnet20", True, 272_474, 40_813_184),
        ("resnet56", False, 853_018, 125_485_696),
        ("resnet110", False, 1_727_962, 252_887_680),
        ("resnet18", True, 11_689_512, 1_814_073_344),
        ("resnet34", True, 21_797_672, 3_663_761_408),
        ("resnet50", True, 25_557_032, 4_089_184_256),
    ],
)
def test_counts_of_the_standard_networks(preset, projections, parameters, multiplications):
    space = space_of(replace(PRESETS[preset], projections=projections))
    specs = space.layers(space.largest())
    assert params(specs) == parameters and macs(specs) == multiplications
    assert bitops(specs) == multiplications * 32 * 32


@pytest.mark.parametrize("edge_bits", [8, FLOAT])
def test_a_mixture_in_bfloat16_is_close_to_one_in_float32(edge_bits):
    net, images = make(replace(SMALL, precisions=(SKIP, 104, 808, FLOAT), edge_bits=min(edge_bits, 32)))
    masks = {name: torch.tensor([0.1, 0.0, 0.2, 0.7]) for name in net.space.free}
    seen, found = set(), []
    hook = net.stage2["block1"].conv2.register_forward_hook(lambda layer, inputs, y: seen.add(y.dtype))
    for compute in (torch.float32, torch.bfloat16):
        net.zero_grad()
        mixed, plain = (net(images, net.space.largest(), Pass(compute=compute, mixture=m)) for m in (masks, None))
        assert mixed.dtype == plain.dtype == torch.float32
        F.cross_entropy(mixed, torch.arange(len(images)) % 10).backward()
        assert all(p.grad.dtype == torch.float32 for p in net.parameters() if p.grad is not None)
        found.append((mixed.detach(), plain.detach(), net.stem.weight.grad.clone()))
    hook.remove()
    assert seen == {torch.float32, torch.bfloat16}
    for single, half, limit in zip(*found, (0.15, 0.05, 0.4), strict=True):
        assert 0 < (half - single).norm() < limit * single.norm()


def test_the_papers_spaces():
    weights = (SKIP, 132, 232, 332, 432, 832, FLOAT)
    for preset, blocks in (("resnet20", 9), ("resnet56", 27), ("resnet110", 54)):
        assert space_of(replace(PRESETS[preset], precisions=weights)).size() == 7**blocks
    per_layer = replace(PRESETS["resnet20"], precisions=weights[1:], per_layer=True)
    assert space_of(per_layer).size() == 6**18


def make(config, seed=0):
    """A network with initialised quantizers, random norms, and images for it."""
    torch.manual_seed(seed)
    net, images = build_network(config).to(memory_format=torch.channels_last), torch.randn(16, 3, 12, 12)
    for name, parameter in net.named_parameters():
        if ".norm." in name:
            torch.nn.init.uniform_(parameter, 0.3, 1.2)
    initialise_quantizers(net, images)
    return net, images


@pytest.mark.parametrize("projections", [False, True])
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("large_stem", [False, True])
def test_float_network_equals_plain_pytorch(projections, bottleneck, large_stem):
    config = replace(
        SMALL, projections=projections, bottleneck=bottleneck, large_stem=large_stem, resolutions=(12,), num_classes=5
    )
    net, images = make(config)
    arch = net.space.largest()
    calibrate(net, arch, [(images, None)])

    def conv(name, x, stride):
        layer = net.get_submodule(name)
        x = F.conv2d(x, layer.weight, None, stride, layer.weight.shape[-1] // 2)
        norm = layer.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    x = F.relu(conv("stem", images, 2 if large_stem else 1))
    x = F.max_pool2d(x, 3, 2, 1) if large_stem else x
    for s, blocks in enumerate(config.stage_blocks, start=1):
        for b in range(1, blocks + 1):
            name, stride = f"stage{s}.block{b}", 2 if s > 1 and b == 1 else 1
            shortcut, strides = x, (1, stride, 1) if bottleneck else (stride, 1)
            h = x
            for i, one in enumerate(strides, start=1):
                h = conv(f"{name}.conv{i}", F.relu(h) if i > 1 else h, one)
            if projections and h.shape != x.shape:
                shortcut = conv(f"{name}.shortcut", x, stride)
            elif h.shape != x.shape:  # dropped pixels, empty channels
                added = h.shape[1] - x.shape[1]
                shortcut = torch.zeros_like(h)
                shortcut[:, added // 2 : added // 2 + x.shape[1]] = x[:, :, ::stride, ::stride]
            x = F.relu(h + shortcut)
    plain = F.linear(x.mean((2, 3)), net.classifier.weight.flatten(1), net.classifier.bias)
    assert_close(net(images, arch), plain, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), per_layer=st.booleans(), lsq=st.booleans(), projections=st.booleans())
def test_a_static_network_is_the_same_class_on_one_point(seed, per_layer, lsq, projections):
    quantizers = dict(weight_quantizer="lsq", act_quantizer="lsq") if lsq else {}
    allowed = PAIRS[1:] if per_layer else PAIRS
    config = replace(SMALL, precisions=allowed, per_layer=per_layer, projections=projections, edge_bits=8, **quantizers)
    net, images = make(config, seed % 5)
    arch = net.space.sample(np.random.default_rng(seed))
    alone = extract_subnet(net, arch)
    for one in (net, alone):
        one.train()
    assert_close(alone(images, arch), net(images, arch), atol=0, rtol=0)
    assert {name for name, spec in alone.space.layers(arch).items() if spec.present} == {
        name for name, module in alone.named_modules() if hasattr(module, "kernel_transforms")
    }


def test_a_block_of_no_bits_is_its_shortcut():
    net, images = make(replace(SMALL, precisions=(SKIP, FLOAT)))
    arch = net.space.smallest()
    specs = net.space.layers(arch)
    assert sum(spec.present for spec in specs.values()) == 2 and macs(specs) == 3 * 8 * 9 * 144 + 16 * 10
    x = F.relu(net.stem(images, specs["stem"], None))
    x = torch.cat([torch.zeros(16, 4, 12, 12), x, torch.zeros(16, 4, 12, 12)], dim=1)[:, :, ::2, ::2][:, :, ::2, ::2]
    plain = F.linear(x.mean((2, 3)), net.classifier.weight.flatten(1), net.classifier.bias)
    assert_close(net(images, arch), plain, atol=1e-5, rtol=1e-5)


def branches(layer, x, specs, mask, activation):
    """The mixture by definition: every candidate's own convolution, summed by share."""
    parts = [
        m * layer._convolved(x, spec, layer.quantized_weight(spec), activation, ALONE) for m, spec in zip(mask, specs)
    ]
    return layer.norm(sum(parts))


@pytest.mark.parametrize("precisions", [(132, 232, 332, 432, 832, FLOAT), (104, 204, 303, 404, 808, FLOAT)])
@pytest.mark.parametrize("quantizer", ["lsq", "pact"])
def test_mixed_weights_equal_branch_by_branch(precisions, quantizer):
    weights = "lsq" if quantizer == "lsq" else "dorefa"
    net, images = make(replace(SMALL, precisions=precisions, weight_quantizer=weights, act_quantizer=quantizer))
    layer, specs = net.stage1["block1"].conv1, net.candidates["stage1.block1.conv1"]
    results = []
    for compute in (layer.mixed, lambda *a: branches(layer, *a)):
        mask = torch.linspace(-1, 1, len(specs)).softmax(0).requires_grad_()
        x = torch.randn(8, 8, 12, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        layer.zero_grad()
        y = compute(x, specs, mask, "relu")
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
        results.append([y, mask.grad, x.grad, layer.weight.grad.clone()])
    for fast, slow in zip(*results):
        assert_close(fast, slow, atol=1e-5 * float(slow.detach().abs().max()), rtol=1e-5)


@pytest.mark.parametrize("precisions", [PAIRS, (SKIP, 132, 432, FLOAT)])
def test_one_hot_mixture_is_the_architecture(precisions):
    net, images = make(replace(SMALL, precisions=precisions, projections=True, edge_bits=8))
    net.train()
    for seed in range(4):
        arch = net.space.sample(np.random.default_rng(seed))
        mixture = {
            name: torch.tensor([float(value == arch[name]) for value in net.space.choices[name]])
            for name in net.space.free
        }
        mixed = net(images, net.space.largest(), Pass(mixture=mixture))
        assert_close(mixed, net(images, arch), atol=2e-5, rtol=1e-5)


def test_impossible_options_are_refused():
    for change, text in (
        (dict(precisions=(9,)), "precisions: 9"),
        (dict(precisions=(3200,)), "precisions: 3200"),
        (dict(precisions=()), "precisions"),
        (dict(precisions=(SKIP, 432), per_layer=True), "per layer"),
        (dict(resolutions=(16, 32)), "resolutions"),
        (dict(edge_bits=4), "edge_bits"),
        (dict(stage_blocks=(3, 3)), "stage_blocks"),
        (dict(weight_quantizer="pact"), "dorefa"),
        (dict(act_quantizer="dorefa"), "lsq, batchquant, lsq-power-of-two, running, pact"),
    ):
        with pytest.raises(ValueError, match=text):
            replace(PRESETS["resnet20"], **change)
    net, images = make(replace(SMALL, precisions=PAIRS))
    with pytest.raises(ValueError, match=r"2 shares for 6 values"):
        net(images, net.space.largest(), Pass(mixture={"stage1.block1.precision": torch.ones(2)}))


def test_configuration_through_json():
    import json

    for config in (replace(SMALL, precisions=PAIRS), PRESETS["resnet50"]):
        assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config
    with pytest.raises(ValueError, match="there are mobilenet_v3, elastic_resnet, resnet"):
        config_from_json({"name": "vgg"})
    with pytest.raises(ValueError, match="unknown option depth"):
        config_from_json({"name": "resnet", "depth": 3})


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), projections=st.booleans(), per_layer=st.booleans())
def test_costs_are_the_same_for_one_and_for_many(seed, projections, per_layer):
    allowed = PAIRS[1:] if per_layer else PAIRS
    space = space_of(replace(SMALL, precisions=allowed, projections=projections, per_layer=per_layer, edge_bits=8))
    codes = space.sample_codes(np.random.default_rng(seed), 20)
    for cost in COSTS.values():
        together = np.broadcast_to(cost(space.layers_batch(codes)), 20)
        alone = [cost(space.layers(space.decode(row))) for row in codes]
        assert_close(torch.tensor(together.astype(float)), torch.tensor(alone, dtype=torch.float64))


def standard_state(config, shortcut="downsample", classifier="fc"):
    """A state dict with the names of the common implementations."""
    generator = torch.Generator().manual_seed(3)
    state = {}

    def conv(name, norm, *shape):
        state[f"{name}.weight"] = torch.randn(*shape, generator=generator)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{part}"] = torch.rand(shape[0], generator=generator)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    kernel, c_in = 7 if config.large_stem else 3, config.stage_widths[0]
    conv("conv1", "bn1", c_in, 3, kernel, kernel)
    for s, (blocks, width) in enumerate(zip(config.stage_blocks, config.stage_widths), start=1):
        c_out = 4 * width if config.bottleneck else width
        for b in range(blocks):
            place, kernels = f"layer{s}.{b}", (1, 3, 1) if config.bottleneck else (3, 3)
            widths = (c_in, width, width, c_out) if config.bottleneck else (c_in, width, width)
            for i, k in enumerate(kernels):
                conv(f"{place}.conv{i + 1}", f"{place}.bn{i + 1}", widths[i + 1], widths[i], k, k)
            if config.projections and (c_in != c_out or (s > 1 and b == 0)):
                conv(f"{place}.{shortcut}.0", f"{place}.{shortcut}.1", c_out, c_in, 1, 1)
            c_in = c_out
    state[f"{classifier}.weight"] = torch.randn(config.num_classes, c_in, generator=generator)
    state[f"{classifier}.bias"] = torch.randn(config.num_classes, generator=generator)
    return state


@pytest.mark.parametrize("preset", ["resnet20", "resnet18", "resnet50"])
def test_standard_weights_are_imported(preset):
    widths = (8, 12, 16, 20)[: len(PRESETS[preset].stage_widths)]
    config = replace(PRESETS[preset], stage_widths=widths, num_classes=7, precisions=(SKIP, 404, FLOAT))
    names = dict(shortcut="shortcut", classifier="linear") if preset == "resnet20" else {}
    state = standard_state(config, **names)
    net = build_network(config)
    import_standard(net, {f"module.{name}": tensor for name, tensor in state.items()})
    assert_close(net.stem.weight, state["conv1.weight"])
    assert_close(net.get_submodule("stage2.block1.conv2").norm.running_var, state["layer2.0.bn2.running_var"])
    parameters = sum(t.numel() for n, t in state.items() if "running" not in n and "tracked" not in n)
    assert parameters == params(net.space.layers(net.space.largest()))
    some = build_network(config, net.space.restrict({"stage1.block1.precision": SKIP}))
    import_standard(some, state)
    assert_close(some.classifier.weight.flatten(1), state[f"{names.get('classifier', 'fc')}.weight"])
    for change, text in (
        (lambda s: s.pop("layer2.0.conv2.weight"), "no 'layer2.0.conv2.weight'"),
        (lambda s: s.update({"layer9.0.conv1.weight": torch.ones(1)}), "'layer9.0.conv1.weight'"),
        (lambda s: s.update({"conv1.weight": torch.ones(4, 3, 3, 3)}), r"conv1.weight has shape \(4, 3, 3, 3\)"),
    ):
        damaged = dict(state)
        change(damaged)
        with pytest.raises(ValueError, match=text):
            import_standard(net, damaged)


def test_standard_files_are_read_without_executing_code(tmp_path):
    state = standard_state(SMALL)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    write_tensors(tmp_path / "a.safetensors", state, {})
    for name in ("a.pth", "a.safetensors"):
        assert read_standard(tmp_path / name).keys() == state.keys()
    (tmp_path / "b.pth").write_bytes(b"\x80\x04cposix\nsystem\n(S'true'\ntR.")
    torch.save([1, 2], tmp_path / "c.pth")
    for name, text in (("b.pth", "not a readable"), ("c.pth", "state dict"), ("d.pth", "does not exist")):
        with pytest.raises(FileError, match=text):
            read_standard(tmp_path / name)


def test_packed_bytes_by_hand():
    config = replace(PRESETS["resnet20"], precisions=(SKIP, 132, 432, FLOAT))
    space = space_of(config)
    one = space.decode(np.full(9, 1))
    weights = 9 * 3 * 16 * 4 + 640 * 4  # stem and classifier in float
    blocks = 268_336 - 9 * 3 * 16 - 640
    channels = 16 + 6 * 16 + 6 * 32 + 6 * 64 + 10
    assert weight_bytes(space.layers(one)) == weights + blocks / 8 + 8 * channels
    assert precision(4, 8) == 408
