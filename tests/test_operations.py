"""Every operation of a Plan: in training, in the two simulators, in ONNX Runtime, as a package and for FPGA tools."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from oncequant.cost import COSTS
from oncequant.export.graph import Grid
from oncequant.export.lower import lower
from oncequant.export.onnx_runtime import run_onnx, session
from oncequant.export.onnx_writer import onnx_model, write_onnx
from oncequant.export.package import load_package, write_package
from oncequant.export.simulate import run_float, run_integer, table_of
from oncequant.export.verify import export_network
from oncequant.family import ElasticConfig, ungated
from oncequant.measure import calibrated_subnet, initialise_quantizers
from oncequant.network import Network
from oncequant.operations import moved
from oncequant.plan import Plan, PlanBuilder, Value
from oncequant.search.measurements import all_costs
from oncequant.space import SearchSpace
from oncequant.structure import CannotRun, blank_calls

SIZE, CLASSES = 12, 5


def network(body, bits=(4, 3), edges=8, is_float=False, ending=None):
    """A network of a first layer of 8 channels, `body(build, x, layer)`, and pooling with a classifier."""
    bits, edges = ((32, 32), 32) if is_float else (bits, edges)

    def layer(build, x, name, out, **options):
        options = {"signed_input": False, **options}
        return build.layer(x, name, "conv", out, bits, **options)

    def describe(values) -> Plan:
        build = PlanBuilder()
        x = Value("images", 3, values["resolution"])
        x = build.layer(x, "stem", "stem", 8, (edges, edges), kernel_size=3, signed_input=True)
        x = body(build, x, lambda x, name, out, **options: layer(build, x, name, out, **options))
        if ending:
            ending(build, x)
        else:
            x = build.operation("mean", "pool", x)
            options = dict(signed_input=True, bias=True, batch_norm=False)
            build.layer(x, "classifier", "classifier", CLASSES, (edges, edges), **options)
        return build.plan()

    config = ElasticConfig(num_classes=CLASSES, resolutions=(SIZE,), weight_bits=(bits[0],), act_bits=(bits[1],))
    torch.manual_seed(3)
    net = Network(config, SearchSpace({"resolution": (SIZE,)}, describe, ungated))
    for name, parameter in net.named_parameters():
        if ".norm." in name:
            torch.nn.init.uniform_(parameter, -0.4, 1.2)
    if not is_float:
        initialise_quantizers(net, torch.randn(64, 3, SIZE, SIZE))
    return net


def exported(net, as_float=False):
    """The calibrated subnet, its architecture, and its graph."""
    generator = torch.Generator().manual_seed(5)
    calibration = [(torch.randn(64, 3, SIZE, SIZE, generator=generator), None)]
    arch = net.space.largest()
    subnet = calibrated_subnet(net, arch, calibration)
    about = (0.5,) * 3, (0.25,) * 3, tuple("abcde"), SIZE
    return subnet, arch, lower(subnet, arch, *about, calibration, as_float=as_float), about, calibration


def one(op, **options):
    """The operation alone, on what the first layer makes, with a layer behind it."""
    return lambda build, x, layer: layer(build.operation(op, op, x, **options), "conv1", 16, signed_input=True)


def relu_then(op, **options):
    return lambda build, x, layer: layer(build.operation(op, op, build.activation(x, "relu"), **options), "conv1", 16)


def squeeze_and_excite(activation, gate):
    def body(build, x, layer):
        x = build.operation(activation, "act", x)
        y = build.operation("mean", "squeeze", x)
        y = build.operation(activation, "se_act", layer(y, "reduce", 8, bias=True, batch_norm=False))
        y = build.operation(gate, "gate", layer(y, "excite", 8, bias=True, batch_norm=False))
        return layer(build.operation("multiply", "scaled", x, y), "project", 16)

    return body


def branches(build, x, layer):
    """Two branches of other grids, put together twice, as a dense network does."""
    x = build.activation(x, "relu")
    first = build.operation("relu6", "a6", layer(x, "a", 4, kernel_size=3))
    second = layer(x, "b", 6)
    both = build.operation("concat", "both", first, second)
    third = build.activation(layer(both, "c", 4, kernel_size=3, signed_input=True), "relu")
    return layer(build.operation("concat", "all", both, third, x), "d", 16, signed_input=True)


def shuffled(build, x, layer):
    x = build.activation(layer(x, "widen", 16, signed_input=True), "relu")
    left = build.operation("slice", "left", x, channels=(0, 6))
    right = build.operation("slice", "right", x, channels=(6, 16))
    right = build.operation("relu6", "r6", layer(right, "deep", 10, kernel_size=3, depthwise=True))
    x = build.operation("concat", "both", left, right)
    return layer(build.operation("shuffle", "shuffle", x, channels=(2, 8)), "grouped", 16, kernel_size=3, grouped=4)


def padded_and_pooled(build, x, layer):
    x = build.operation("relu6", "a6", x)
    x = build.operation("maxpool", "maxpool", x, window=(3, 2, 0, 1))
    x = build.operation("pad", "pad", x, window=(0, 1, 1, 0))
    x = build.operation("avgpool", "avgpool", layer(x, "wide", 12, kernel_size=2, padding=0), window=(2, 2, 0, 0))
    return layer(build.operation("silu", "silu", x), "dilated", 16, kernel_size=3, padding=2, dilation=2)


def summed(build, x, layer):
    x = build.operation("relu6", "first6", x)
    y = layer(build.operation("silu", "s1", layer(x, "a", 8, kernel_size=3)), "b", 8)
    x = build.operation("relu6", "sum6", build.operation("add", "sum", x, y))
    return layer(build.operation("multiply", "product", x, build.operation("sigmoid", "gate", x)), "c", 16)


def unit(build, x, layer):
    """Of a shuffled network: twice, so that slices are of what was shuffled."""
    x = build.activation(layer(x, "widen", 16, signed_input=True), "relu")
    for i in "12":
        left = build.operation("slice", f"left{i}", x, channels=(0, 8))
        right = build.operation("slice", f"right{i}", x, channels=(8, 16))
        right = build.activation(layer(right, f"deep{i}", 8, kernel_size=3, depthwise=True), "relu")
        x = build.operation("concat", f"both{i}", left, right)
        x = build.operation("shuffle", f"shuffle{i}", x, channels=(2, 8))
    return x


BODIES = {
    "relu6": one("relu6"),
    "silu": one("silu"),
    "sigmoid": one("sigmoid"),
    "hardswish": one("hardswish"),
    "hardsigmoid": one("hardsigmoid"),
    "maxpool": one("maxpool", window=(2, 2, 0, 0)),
    "maxpool of relu": relu_then("maxpool", window=(3, 1, 1, 1)),
    "avgpool": one("avgpool", window=(3, 2, 1, 1)),
    "avgpool of relu": relu_then("avgpool", window=(2, 2, 0, 0)),
    "pad": one("pad", window=(1, 2, 2, 1)),
    "slice": one("slice", channels=(2, 7)),
    "shuffle": one("shuffle", channels=(4, 2)),
    "squeeze and excite": squeeze_and_excite("silu", "sigmoid"),
    "hard squeeze and excite": squeeze_and_excite("relu6", "hardsigmoid"),
    "branches": branches,
    "shuffled": shuffled,
    "padded and pooled": padded_and_pooled,
    "summed": summed,
}


@pytest.mark.parametrize("name", BODIES)
def test_every_file_computes_what_was_trained(name, tmp_path):
    subnet, arch, _, about, calibration = exported(network(BODIES[name]))
    test = [(torch.randn(40, 3, SIZE, SIZE), torch.randint(CLASSES, (40,)))]
    found = export_network(subnet, arch, *about, calibration, test, tmp_path)
    assert found.problems == ()
    onnx = found.judgements["onnx"]
    assert onnx.float_layers == 0 and onnx.simulator_bit_equal_images == 40


@pytest.mark.parametrize("name", BODIES)
def test_in_float_all_compute_the_same(name, tmp_path):
    subnet, arch, graph, *_ = exported(network(BODIES[name], is_float=True), as_float=True)
    write_onnx(graph, tmp_path / "model.onnx")
    pixels = torch.rand(20, 3, SIZE, SIZE) * 255
    with torch.no_grad():
        expected = subnet(graph.normalise(pixels), arch)
    of_file = run_onnx(session(tmp_path / "model.onnx"), pixels)
    for logits in (run_float(graph, pixels), run_integer(graph, pixels), of_file):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("edges", [8, 32])
def test_networks_may_end_without_a_linear_layer(edges, tmp_path):
    """And with their first layer in float."""

    def ending(build, x):
        x = build.activation(build.layer(x, "last", "conv", CLASSES, (8, 8), bias=True, batch_norm=False), "relu")
        build.operation("mean", "pool", x)

    subnet, arch, graph, about, calibration = exported(network(summed, edges=edges, ending=ending))
    assert graph.nodes[-1].op == "flatten"
    test = [(torch.randn(40, 3, SIZE, SIZE), torch.randint(CLASSES, (40,)))]
    found = export_network(subnet, arch, *about, calibration, test, tmp_path)
    assert found.problems == ()
    assert found.judgements["onnx"].simulator_bit_equal_images == 40 or edges == 32
    if edges == 8:
        found = export_network(subnet, arch, *about, calibration, test, tmp_path, ["c"])
        assert found.problems == () and found.judgements["c"].different_images == 0
        assert found.judgements["c"].arena_bytes <= COSTS["ram_bytes"](subnet.space.layers(arch))


@pytest.mark.parametrize("name", ["padded and pooled", "shuffled"])
def test_packages_keep_what_operations_have(name, tmp_path):
    graph = exported(network(BODIES[name]))[2]
    write_package(graph, tmp_path)
    again = load_package(tmp_path).graph
    for node, other in zip(graph.nodes, again.nodes, strict=True):
        assert (node.name, node.op, node.inputs, node.grid) == (other.name, other.op, other.inputs, other.grid)
        assert (node.channels, node.window) == (other.channels, other.window)
        if node.weights:
            kept = ("pad", "dilation", "groups", "stride", "bits")
            assert all(getattr(node.weights, key) == getattr(other.weights, key) for key in kept)


def test_a_grid_behind_relu6_ends_at_6():
    grid = Grid(0.5, 0, 4)
    x = torch.linspace(-1, 9, 101)
    assert torch.equal(grid.limited(6.0).quantize(x), grid.quantize(F.relu6(x)))
    assert grid.limited(6.0).top == 12 and Grid(0.1, 0, 4).limited(6.0).top == 15
    graph = exported(network(relu_then("relu6"), bits=(4, 8)))[2]
    assert not any(node.op in ("relu", "relu6") for node in graph.nodes)


def test_tables_are_looked_up_by_integers():
    """Runtimes compute a sigmoid by formulas of their own; none of that is left in the file."""
    model = onnx_model(exported(network(squeeze_and_excite("silu", "sigmoid")))[2])
    ops = {node.op_type for node in model.graph.node}
    assert "Sigmoid" not in ops and "Gather" in ops
    grid = Grid(0.05, 100, 8)
    x = grid.dequantize(torch.arange(256.0))
    torch.testing.assert_close(table_of("silu", grid), F.silu(x))


@pytest.mark.parametrize("window", [(3, 2, 0, 1), (2, 2, 0, 0), (3, 1, 1, 1), (5, 3, 2, 2), (2, 1, 1, 1), (3, 2, 1, 2)])
@pytest.mark.parametrize("op", ["maxpool", "avgpool"])
def test_pools_are_those_of_a_loop(op, window):
    kernel, stride, before, after = window
    x = torch.randn(2, 3, 11, 11)
    padded = F.pad(x, (before, after) * 2, value=-np.inf if op == "maxpool" else 0)
    expected = padded.unfold(2, kernel, stride).unfold(3, kernel, stride)
    expected = expected.amax((4, 5)) if op == "maxpool" else expected.mean((4, 5))
    torch.testing.assert_close(moved(op, [x], None, window), expected)


def test_channels_are_sliced_and_dealt_out():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert moved("shuffle", [x], (2, 3), None).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert moved("slice", [x], (1, 3), None).flatten().tolist() == [1, 2]
    with pytest.raises(ValueError, match="'gelu' is no operation"):
        moved("gelu", [x], None, None)


def test_kernels_in_c_name_what_they_lack():
    space = network(one("pad", window=(1, 2, 0, 1))).space
    with pytest.raises(CannotRun, match="pad: no kernel for a map that is not square"):
        blank_calls(space.plan(space.largest()).nodes)


def without_padding(build, x, layer):
    """As in many a first network: kernels of 5 without padding, then one as large as its map."""
    x = build.activation(layer(x, "a", 6, kernel_size=5, padding=0, signed_input=True), "relu")
    x = build.activation(
        layer(build.operation("maxpool", "pool2", x, window=(2, 2, 0, 0)), "b", 20, kernel_size=4, padding=0), "relu"
    )
    return layer(x, "c", 12)


def dilated(build, x, layer):
    x = build.activation(
        layer(x, "a", 8, kernel_size=3, depthwise=True, padding=2, dilation=2, signed_input=True), "relu"
    )
    x = build.activation(layer(x, "b", 24, kernel_size=3, padding=3, dilation=3, stride=2), "relu")
    x = layer(x, "c", 24, kernel_size=9, depthwise=True)
    return layer(x, "d", 16, kernel_size=9, signed_input=True)


def grouped(build, x, layer):
    """Groups of few and of many channels; as many as channels, each with two outputs."""
    x = build.activation(layer(x, "a", 24, kernel_size=3, grouped=2, stride=2, signed_input=True), "relu")
    x = build.activation(layer(x, "b", 48, kernel_size=3, grouped=24), "relu")
    return layer(x, "c", 32, grouped=2)


MORE = {
    "overlapping": relu_then("maxpool", window=(3, 2, 0, 1)),
    "shuffled as a unit": unit,
    "without padding": without_padding,
    "dilated": dilated,
    "grouped": grouped,
}


@pytest.mark.compiler
@pytest.mark.parametrize("name, bits", [*((name, 4) for name in BODIES | MORE), ("grouped", 7)])
def test_c_is_the_simulator_bit_for_bit_and_as_large_as_said(name, bits, tmp_path):
    net = network((BODIES | MORE)[name], (bits, 3))
    subnet, arch, graph, about, calibration = exported(net)
    test = [(torch.randn(20, 3, SIZE, SIZE), torch.randint(CLASSES, (20,)))]
    found = export_network(subnet, arch, *about, calibration, test, tmp_path, ["c"])
    assert found.problems == ()
    plan, in_c = net.space.layers(arch), found.judgements["c"]
    assert in_c.different_images == 0 and in_c.arena_bytes <= COSTS["ram_bytes"](plan)
    if in_c.cortex_m4_flash_bytes is not None:
        assert in_c.cortex_m4_flash_bytes <= COSTS["flash_bytes"](plan)


def test_costs_in_c_are_refused_by_name():
    """The others are known; of a network without kernels in C they are all that there is."""
    space = network(lambda build, x, layer: layer(x, "wide", 8, kernel_size=3, padding=3, signed_input=True)).space
    arch = space.largest()
    with pytest.raises(CannotRun, match="wide: no kernel for convolutions of 3 x 3 with padding 3"):
        COSTS["ram_bytes"](space.layers(arch))
    assert all_costs(space, arch).keys() == COSTS.keys() - {"ram_bytes", "flash_bytes"}
