"""What every family of networks promises; a new one joins FAMILIES and SMALL."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_networks import Tiny
from torch.testing import assert_close

from oncequant.arch import FLOAT_BITS, FLOAT_PAIR, SKIP, LayerSpec
from oncequant.cost import COSTS, macs, params
from oncequant.data import load_data
from oncequant.elastic import ElasticConv, Pass, SharedWeights
from oncequant.export.graph import OPS
from oncequant.export.verify import export_network
from oncequant.family import ElasticConfig, with_bits
from oncequant.hand_made import hand_made
from oncequant.measure import calibrated_subnet, initialise_quantizers
from oncequant.methods import oqat
from oncequant.models import FAMILIES, PRESETS, build_network, extract_subnet, family_of, space_of
from oncequant.models.own import pairs_of
from oncequant.models.own_weights import untrained
from oncequant.models.trace import own_network
from oncequant.network import elastic_layers
from oncequant.plan import PlanBuilder, Value
from oncequant.settings import ModelOptions

SIZE = 12
OWN = untrained(own_network(Tiny(), torch.zeros(1, 1, SIZE, SIZE)).config)
SMALL = {  # a small configuration of each family: mixed bit-widths, and everything elastic that it has
    "mobilenet_v3": replace(
        PRESETS["nano"], stage_widths=(8, 16), stage_strides=(2, 2), stage_se=(False, True), stage_hswish=(False, True)
    ),
    "elastic_resnet": replace(PRESETS["resnet-nano"], stage_widths=(8, 16), stage_strides=(1, 2), max_depths=(2, 1)),
    "resnet": replace(
        PRESETS["resnet20"],
        image_channels=1,
        stage_blocks=(2, 1),
        stage_widths=(8, 16),
        resolutions=(SIZE,),
        precisions=(SKIP, 204, 404, FLOAT_PAIR),
        projections=True,
    ),
    "own": OWN,
    "own_pairs": replace(pairs_of(OWN), precisions=(204, 404, 808, FLOAT_PAIR)),
}
for family, config in SMALL.items():
    config = replace(config, edge_bits=8, **({"dropout": 0.0, "se_bits": 8} if hasattr(config, "dropout") else {}))
    if isinstance(config, ElasticConfig):
        config = replace(config, weight_bits=(2, 4), act_bits=(2, 4, 8), steps_per_bits=True)
    SMALL[family] = config
assert SMALL.keys() == FAMILIES.keys(), "add a small configuration of the new family to SMALL"
all_families = pytest.mark.parametrize("family", FAMILIES)


def started(config, seed=0):
    """A network whose quantizers have started and whose norms are not neutral, and images for it."""
    torch.manual_seed(seed)
    net = build_network(config).to(memory_format=torch.channels_last)
    for name, parameter in net.named_parameters():
        if ".norm." in name:
            torch.nn.init.uniform_(parameter, 0.3, 1.2)
    images = torch.randn(8, config.image_channels, SIZE, SIZE)
    initialise_quantizers(net, images)
    return net, images


def some_archs(space, count=3, seed=0):
    rng = np.random.default_rng(seed)
    return [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(count))]


def test_every_family_is_tested():
    assert all(family_of(config) == family for family, config in SMALL.items())
    assert len(PRESETS) == sum(len(family.presets) for family in FAMILIES.values())  # names of presets are unique


@pytest.mark.parametrize("preset", PRESETS)
def test_plans_are_complete_and_in_order(preset):
    space = space_of(PRESETS[preset])
    assert all(list(values) == sorted(set(values)) for values in space.choices.values())
    for arch in some_archs(space):
        plan, known = space.plan(arch), {"images"}
        for node in plan.nodes:
            assert node.op in {*OPS, "layer", "dropout", "optional"} and known.issuperset(node.inputs)
            assert node.name not in known
            known.add(node.name)
        computed = [node.name for node in plan.nodes if node.op == "layer"]
        assert computed == [name for name, spec in plan.layers.items() if spec.present]
        assert plan.nodes[-1].name == "classifier" and set(plan.last_reader) == known - {"classifier"}
        assert all(node.block in ("", node.name.removesuffix(".act").rpartition(".")[0]) for node in plan.nodes)


@all_families
def test_spaces_go_to_other_processes(family):
    space = space_of(SMALL[family])
    again = pickle.loads(pickle.dumps(space))
    assert again.choices == space.choices and again.layers(again.largest()) == space.layers(space.largest())


@all_families
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_costs_are_the_same_for_one_and_for_many(family, seed):
    space = space_of(SMALL[family])
    codes = space.sample_codes(np.random.default_rng(seed), 16)
    for cost in COSTS.values():
        together = np.broadcast_to(cost(space.layers_batch(codes)), 16).astype(float)
        assert_close(together, np.array([float(cost(space.layers(space.decode(row)))) for row in codes]))


@all_families
@pytest.mark.parametrize("training", [True, False])
def test_a_subnet_is_a_slice_of_the_supernet(family, training):
    net, images = started(SMALL[family])
    net.train(training)
    for arch in some_archs(net.space):
        subnet = extract_subnet(net, arch)
        assert_close(subnet(images, arch), net(images, arch), atol=0, rtol=0)
        with torch.no_grad():
            assert torch.equal(subnet(images, arch), net(images, arch))
        specs = {name: spec for name, spec in net.space.layers(arch).items() if spec.present}
        assert [name for name, _ in elastic_layers(subnet)] == list(specs)
        learned = sum(p.numel() for name, p in subnet.named_parameters() if "_quantizer." not in name)
        assert learned == params(specs)


@all_families
def test_specs_describe_the_shapes_that_run(family):
    from torch.utils.flop_counter import FlopCounterMode

    net, images = started(SMALL[family])
    for arch in some_archs(net.space):
        seen = {}

        def record(name, seen=seen):
            return lambda layer, inputs, out: seen.update({name: (inputs[0].shape, out.shape)})

        hooks = [layer.register_forward_hook(record(name)) for name, layer in elastic_layers(net)]
        net(images, arch)
        for hook in hooks:
            hook.remove()
        specs = {name: spec for name, spec in net.space.layers(arch).items() if spec.present}
        assert list(seen) == list(specs)
        for name, (x, y) in seen.items():
            spec = specs[name]
            assert x[1:] == (spec.in_channels, spec.in_size, spec.in_size)
            assert y[1:] == (spec.out_channels, spec.out_size, spec.out_size)
        subnet = extract_subnet(net, arch).eval()  # kernel transforms are no part of it
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            subnet(images[:1], arch)
        assert counter.get_total_flops() == 2 * macs(specs)


@all_families
def test_checkpointed_blocks_give_the_same_gradients_from_less_memory(family):
    net, images = started(SMALL[family])
    arch, found = net.space.largest(), []
    for recompute in (False, True):
        net.zero_grad()
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor
            return tensor

        how = Pass(shared=SharedWeights(), recompute=recompute)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = net.train()(images, arch, how).square().mean()
        loss.backward()
        how.shared.backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
        found.append(sum(t.numel() for t in kept.values() if t.dim() == 4 and len(t) == len(images)))
    assert found[0].keys() == found[2].keys()
    assert found[3] < 0.6 * found[1], (
        "recomputed blocks keep nearly as much: do most layers lie in blocks (enter, leave)?"
    )
    for name, grad in found[0].items():  # gradients of all that read a block's result are added in another order
        assert (grad - found[2][name]).norm() <= 1e-4 * grad.norm(), name


@all_families
def test_in_bfloat16_and_with_shared_weights(family):
    net, images = started(SMALL[family])
    net.train()
    plain, losses = None, {}
    for compute in (torch.float32, torch.bfloat16):
        net.zero_grad()
        how = Pass(shared=SharedWeights(), compute=compute)
        archs = some_archs(net.space, 1)
        losses[compute] = sum(net(images, arch, how).square().mean() for arch in archs)
        losses[compute].backward()
        how.shared.backward()
        if compute == torch.float32:
            plain = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
            net.zero_grad()
            sum(net(images, arch).square().mean() for arch in archs).backward()
            for name, parameter in net.named_parameters():
                if parameter.grad is not None and "weight_quantizer" not in name:  # whose scale counts the whole weight
                    assert (parameter.grad - plain[name]).norm() <= 0.02 * plain[name].norm() + 1e-5, name
    assert losses[torch.bfloat16].item() == pytest.approx(losses[torch.float32].item(), rel=0.1)


@all_families
@pytest.mark.parametrize("as_trained", [True, False])
def test_exports_are_verified(family, as_trained, tmp_path):
    """Of a subnet with mixed bit-widths, or one where all layers have two bits."""
    config = SMALL[family]
    if isinstance(config, ElasticConfig) and not as_trained:
        config = with_bits(config, 2)
    net, images = started(config)
    arch = net.space.sample(np.random.default_rng(1)) if as_trained else net.space.largest()
    calibration = [(torch.randn(64, config.image_channels, SIZE, SIZE), None)]
    subnet = calibrated_subnet(net, arch, calibration)
    test = [(torch.randn(40, config.image_channels, SIZE, SIZE), torch.randint(10, (40,)))]
    preprocessing = (0.5,) * config.image_channels, (0.25,) * config.image_channels, tuple("0123456789"), SIZE
    found = export_network(subnet, arch, *preprocessing, calibration, test, tmp_path)
    assert found.problems == ()
    if family == "elastic_resnet":  # integer arithmetic from pixels to logits
        onnx = found.judgements["onnx"]
        assert onnx.float_layers == 0 and onnx.simulator_bit_equal_images == 40


def test_descriptions_that_cannot_work_are_refused():
    build, x = PlanBuilder(), Value("images", 1, 8)
    with pytest.raises(ValueError, match="activation 'gelu': use relu or hardswish"):
        build.activation(x, "gelu")
    family, config = FAMILIES["elastic_resnet"], PRESETS["resnet-nano"]
    for choices, text in (
        (lambda _: {"kernel_size": (3,)}, "lack 'resolution'"),
        (lambda _: {"resolution": (12, 8)}, "ascending"),
        (lambda _: {"resolution": [8, 12]}, "a tuple"),
    ):
        with pytest.raises(ValueError, match=text):
            replace(family, choices=choices).space(config)
    with pytest.raises(ValueError, match="needs bias=True"):
        ElasticConv(LayerSpec("classifier", 8, 10, batch_norm=False), (1,), None)


def test_groups_can_be_less_deep_than_depths_allow():
    config = PRESETS["resnet-cifar-deep"]
    space = space_of(config)
    assert [space.choices[f"stage{s}.depth"] for s in (1, 2, 3)] == [(1,), (1, 2), (1, 2)]
    assert "stage1.block2.expand_ratio" not in space.choices and "stage3.block2.expand_ratio" in space.choices
    # depths that are asked for hold for all groups
    assert ModelOptions("resnet-cifar-deep", depths=(1, 2)).config(10, 3).max_depths == ()
    assert ModelOptions("resnet-cifar-deep").config(10, 3).max_depths == (1, 2, 2)
    for wrong, message in (((1, 2), "one for each of stage_widths"), ((0, 1, 1), "at least the least of depths, 1")):
        with pytest.raises(ValueError, match=f"max_depths = .*: use {message}"):
            replace(config, max_depths=wrong)


def test_the_first_convolution_can_have_weights_of_fewer_bits():
    config = replace(with_bits(PRESETS["resnet-cifar"], 2), edge_bits=8, stem_bits=3)
    layers = space_of(config).layers(space_of(config).largest())
    assert (layers["stem"].weight_bits, layers["stem"].act_bits) == (3, 8)
    assert (layers["classifier"].weight_bits, layers["classifier"].act_bits) == (8, 8)
    # with edges in float, and in a network in float, it is float
    for in_float in (replace(config, edge_bits=FLOAT_BITS), with_bits(config, FLOAT_BITS)):
        assert space_of(in_float).layers(space_of(in_float).largest())["stem"].weight_bits == FLOAT_BITS
    # no fewer than every other layer has, where these have more
    for bits, stem in (((8,), 8), ((2, 8), 4), ((2,), 4)):
        mixed = space_of(replace(config, weight_bits=bits, stem_bits=4))
        assert mixed.choices["stem.weight_bits"] == (stem,)
    assert ModelOptions("resnet-cifar", stem_bits=5).config(10, 3).stem_bits == 5
    assert hand_made(config, 2, COSTS["bitops"])[0].model.stem_bits == 3  # by hand with the same edges
    # step sizes: each layer's own grid from float to 4 bits, and the first convolution keeps it at lower bit-widths
    data = load_data("digits", size=8, max_train=64)
    small = replace(PRESETS["resnet-nano"], edge_bits=8, stem_bits=4, resolutions=(8,))
    nets = [build_network(with_bits(small, bits)) for bits in (FLOAT_BITS, 4, 2)]
    for higher, lower in zip(nets, nets[1:]):
        oqat.inherit_bits(higher, lower, data, oqat.Config())
    steps = [{name: step for name, step in net.named_parameters() if "stem.weight_quantizer" in name} for net in nets]
    assert steps[1] and all(torch.equal(steps[2][name], steps[1][name]) for name in steps[1])
