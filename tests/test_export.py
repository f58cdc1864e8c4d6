import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from small_export import SMALLER, digits, lowered, nano4, preprocessing, preset, subnet_of
from torch.nn import functional as F
from torch.testing import assert_close

from oncequant.export.graph import Grid, Weights
from oncequant.export.lower import grid_over, lower, network_input
from oncequant.export.onnx_runtime import kernel_counts, near_ties, run_onnx
from oncequant.export.onnx_writer import onnx_model, write_onnx
from oncequant.export.package import load_package, write_package
from oncequant.export.packing import pack, unpack
from oncequant.export.simulate import _accumulate, _Codes, run_float, run_integer
from oncequant.models import build_network, space_of
from oncequant.network import elastic_layers
from oncequant.onnx_session import session
from oncequant.quantizers.functional import activate

pytestmark = pytest.mark.usefixtures("one_thread")


# -- packing


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), n=st.integers(0, 70), seed=st.integers(0, 99))
def test_packing_round_trips_at_exactly_its_bits(bits, n, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, n).astype(np.uint8)
    planes = pack(codes, bits)
    assert planes.shape == (bits, -(-n // 8)) and planes.dtype == np.uint8
    assert np.array_equal(unpack(planes, n), codes)


@pytest.mark.parametrize("codes, bits", [([4], 2), ([-1], 4), ([0], 9), ([0], 0)])
def test_packing_refuses_codes_that_do_not_fit(codes, bits):
    with pytest.raises(ValueError, match="codes must be"):
        pack(np.array(codes), bits)


def test_unpacking_refuses_planes_of_another_size():
    with pytest.raises(ValueError, match="planes of 9 codes"):
        unpack(np.zeros((4, 1), np.uint8), 9)


# -- agreement: trained layers, simulators, ONNX Runtime, package

CASES = [(bits, edge, edge, signed) for bits in (2, 3, 4, 8) for edge in (8, 32) for signed in (True, False)]
CASES += [(4, 8, 32, True), (4, 32, 8, True), ((2, 3, 4, 8), 8, 8, True), ((2, 4, 32), 8, 8, True)]


@pytest.mark.parametrize("bits, edge, se, signed", CASES)
def test_nano_networks_agree_everywhere(bits, edge, se, signed, tmp_path):
    check_agreement(preset("nano", bits, edge, se, signed), tmp_path, seed=CASES.index((bits, edge, se, signed)))


@pytest.mark.parametrize("bits, edge, se, signed", [(2, 8, 8, True), (4, 8, 8, False), (4, 32, 32, True)])
def test_cifar_networks_agree_everywhere(bits, edge, se, signed, tmp_path):
    check_agreement(preset("cifar", bits, edge, se, signed), tmp_path, seed=bits, resolution=20)


def check_agreement(config, tmp_path, seed, resolution=None):
    subnet, arch = subnet_of(config, seed, resolution)
    graph = lowered(subnet, arch)
    write_onnx(graph, tmp_path / "model.onnx")
    write_package(graph, tmp_path)
    package = load_package(tmp_path)
    pixels = network_input(graph, digits(config.image_channels)[0][100:200])
    with torch.no_grad():
        simulated = package(pixels)
    assert torch.equal(simulated, run_float(graph, pixels))  # the package is the graph

    unfused = run_onnx(session(tmp_path / "model.onnx", optimise=False), pixels)
    differing = (unfused.argmax(1) != simulated.argmax(1)).nonzero().flatten()
    assert len(differing) == near_ties(graph, tmp_path / "model.onnx", pixels, differing)
    assert len(differing) <= 1

    layers = [node.weights for node in graph.nodes if node.weights]
    whole = all(weights.is_integer for weights in layers)
    fused, integer = run_onnx(session(tmp_path / "model.onnx"), pixels), run_integer(graph, pixels)
    assert torch.equal(fused.argmax(1), integer.argmax(1))
    assert torch.equal(fused, integer) or not whole
    integer_layers, float_layers = kernel_counts(tmp_path / "model.onnx")
    assert integer_layers == sum(weights.is_integer for weights in layers)
    assert integer_layers + float_layers == len(layers)


@pytest.mark.parametrize("bits, signed", [(2, True), (4, False), (8, True)])
def test_every_lowered_layer_is_the_trained_layer(bits, signed):
    """On the layer's own input; the integer bias may be off by half of its unit."""
    subnet, arch = subnet_of(preset("nano", bits, signed=signed), seed=bits)
    graph = lowered(subnet, arch)
    nodes = graph.by_name()
    seen = {}
    for name, layer in elastic_layers(subnet):
        layer.register_forward_hook(lambda layer, inputs, y, name=name: seen.update({name: (inputs, y)}))
    with torch.no_grad():
        subnet(digits(1)[0][:20], arch)
    assert any((node.weights.scale < 0).any() for node in graph.nodes if node.weights)
    for name, (inputs, y) in seen.items():
        x, _, activation, *_ = inputs
        x = activate(x, activation)
        weights, grid = nodes[name].weights, nodes[nodes[name].inputs[0]].grid
        assert (grid.bits, grid.zero_point) == (8, 0) if name == "classifier" else grid.bits
        unit = weights.scale * grid.step
        kernel = weights.float_weight().reshape(y.shape[1], -1, *[layer_size(weights)] * 2)
        x = grid.dequantize(grid.quantize(x))
        got = F.conv2d(x, kernel, weights.bias * unit, weights.stride, layer_size(weights) // 2, groups=weights.groups)
        error = ((got - y).abs().amax((0, 2, 3)) - unit.abs() / 2).max()
        assert error < 1e-4 * y.abs().max(), name


def layer_size(weights):
    return weights.weight.shape[-1] if weights.weight.dim() == 4 else 1


@pytest.mark.parametrize("name", ["nano", "cifar"])
def test_float_networks_export(name, tmp_path):
    subnet, arch = subnet_of(SMALLER[name], resolution=12 if name == "nano" else 20)
    graph = lowered(subnet, arch)
    assert not any(node.grid for node in graph.nodes)
    write_onnx(graph, tmp_path / "float.onnx")
    pixels = network_input(graph, digits(subnet.config.image_channels)[0][:50])
    with torch.no_grad():
        expected = subnet(graph.normalise(pixels), arch)
    got = run_float(graph, pixels), run_integer(graph, pixels), run_onnx(session(tmp_path / "float.onnx"), pixels)
    for logits in got:
        assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_the_onnx_reference_evaluator_agrees():
    subnet, arch, graph = nano4()
    model = onnx_model(graph)
    onnx.checker.check_model(model, full_check=True)
    pixels = network_input(graph, digits(1)[0][:4])
    got = torch.from_numpy(ReferenceEvaluator(model).run(None, {"pixels": pixels.numpy()})[0])
    assert_close(got, run_float(graph, pixels), atol=1e-4, rtol=1e-4)


def test_batch_size_is_free_and_does_not_matter(tmp_path):
    _, _, graph = nano4()
    write_onnx(graph, tmp_path / "model.onnx")
    runtime = session(tmp_path / "model.onnx")
    pixels = network_input(graph, digits(1)[0][:7])
    assert torch.equal(run_onnx(runtime, pixels), torch.cat([run_onnx(runtime, image) for image in pixels.split(1)]))


def test_the_mode_for_cpus_without_vnni_loads_and_gives_the_same(tmp_path):
    _, _, graph = nano4()
    write_onnx(graph, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    pixels = network_input(graph, digits(1)[0][:20])
    precise = run_onnx(onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options), pixels)
    assert torch.equal(precise, run_onnx(session(tmp_path / "model.onnx"), pixels))


def test_channels_with_zero_batch_norm_weight_export(tmp_path):
    subnet, arch = subnet_of(preset("nano", 2))
    with torch.no_grad():
        for _, layer in elastic_layers(subnet):
            if layer.norm is not None:
                layer.norm.weight[::5] = 0
                layer.norm.weight[1::5] = 1e-12
                layer.norm.bias[:2] = 0
    graph = lowered(subnet, arch)
    write_onnx(graph, tmp_path / "model.onnx")
    pixels = network_input(graph, digits(1)[0][:50])
    logits = run_onnx(session(tmp_path / "model.onnx"), pixels)
    assert logits.isfinite().all() and torch.equal(logits, run_integer(graph, pixels))


# -- grids


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-50, 0), high=st.floats(0, 80))
def test_grids_hold_zero_exactly_and_err_by_half_a_step(low, high):
    grid = grid_over(low, high)
    values = torch.linspace(low, high, 1000)
    assert 0 <= grid.zero_point <= 255
    assert grid.dequantize(grid.quantize(torch.zeros(1))).item() == 0
    # at the ends half a step more, since the zero point is rounded
    assert (grid.dequantize(grid.quantize(values)) - values).abs().max() <= grid.step * 1.001


def test_grids_round_half_to_even_before_the_zero_point():
    grid = Grid(step=0.5, zero_point=3, bits=4)
    codes = grid.quantize(torch.tensor([0.25, 0.75, -0.25, -9.0, 9.0]))
    assert codes.tolist() == [3, 5, 3, 0, 15]


@pytest.mark.parametrize("inputs", [100, 2000])
def test_sums_of_the_simulator_are_exact(inputs):
    """Also beyond 2^24, which float32 does not count to."""
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randint(0, 2, (5, inputs), generator=generator, dtype=torch.int8) * 254 - 127
    weight[0] = 127
    bias = torch.arange(5, dtype=torch.int32)
    codes = torch.randint(0, 256, (3, inputs), generator=generator).float()
    codes[0] = 255
    x = _Codes(codes, Grid(0.1, 0, 8))
    expected = codes.long() @ weight.long().T + bias
    assert expected.max() > 2**24 or inputs == 100
    total = _accumulate(Weights(weight, bias, torch.ones(5), 8), x)
    assert torch.equal(total, expected.float())
    images = x.codes.view(3, inputs, 1, 1).expand(-1, -1, 2, 2).contiguous()
    convolution = Weights(weight.view(5, inputs, 1, 1), bias, torch.ones(5), 8)
    assert torch.equal(_accumulate(convolution, _Codes(images, x.grid))[:, :, 0, 1], total)


# -- errors of lowering


def test_lowering_names_a_forgotten_initialisation():
    config = preset("nano", 4)
    subnet = build_network(config, space_of(config).restrict(space_of(config).smallest())).eval()
    with pytest.raises(ValueError, match="stem: the step size of its .* is nan"):
        lowered(subnet, subnet.space.smallest())


def test_lowering_refuses_binary_networks_and_missing_images():
    subnet, arch = subnet_of(preset("nano", 1))
    with pytest.raises(ValueError, match="bit-width 1 cannot be exported"):
        lowered(subnet, arch)
    subnet, arch, _ = nano4()
    with pytest.raises(ValueError, match="no calibration images"):
        lower(subnet, arch, *preprocessing(1), [])
