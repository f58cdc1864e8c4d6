"""Exports of residual networks: all precisions, shortcuts, pooling, in ONNX Runtime and the integer simulator."""

import pytest
import torch

from oncequant.arch import FLOAT_BITS, SKIP
from oncequant.arch import FLOAT_PAIR as FLOAT
from oncequant.export.package import load_package
from oncequant.export.verify import export_network
from oncequant.measure import calibrated_subnet, initialise_quantizers
from oncequant.models import build_network
from oncequant.models.resnet import ResNetConfig

# one for each of the four blocks: weights of 0 to 8 bits and float with float inputs, and pairs
PRECISIONS = [(132, 232, 332, 432), (832, SKIP, FLOAT, 432), (104, 204, 303, 404), (808, SKIP, 102, 3208)]


@pytest.mark.parametrize("precisions", PRECISIONS, ids=str)
@pytest.mark.parametrize("shape", ["plain", "projections", "bottleneck", "large stem", "odd widths"])
@pytest.mark.parametrize("quantizers", ["dorefa-pact", "lsq-lsq"])
def test_residual_networks_of_all_precisions(precisions, shape, quantizers, tmp_path):
    weights, activations = quantizers.split("-")
    config = ResNetConfig(
        stage_blocks=(2, 1, 1),
        stage_widths=(6, 10, 14) if shape == "odd widths" else (8, 12, 16),  # codes that do not fill their last byte
        resolutions=(16,),
        precisions=tuple(sorted(set(precisions))),
        edge_bits=8 if shape in ("plain", "bottleneck", "odd widths") else FLOAT_BITS,
        weight_quantizer=weights,
        act_quantizer=activations,
        projections=shape != "plain",
        bottleneck=shape == "bottleneck",
        large_stem=shape == "large stem",
    )
    torch.manual_seed(0)
    net, images = build_network(config), torch.randn(40, 3, 16, 16)
    for name, parameter in net.named_parameters():
        if ".norm." in name:
            torch.nn.init.uniform_(parameter, -0.5 if "bias" in name else 0.5, 1.2)
    initialise_quantizers(net, images)
    blocks = [name for name in net.space.choices if name.endswith(".precision")]
    arch = net.space.smallest().replace(**dict(zip(blocks, precisions, strict=True)))
    calibration = [(images, None)]
    subnet = calibrated_subnet(net, arch, calibration)
    before = {name: tensor.clone() for name, tensor in subnet.state_dict().items()}
    test = [(torch.randn(60, 3, 16, 16), torch.randint(10, (60,)))]
    preprocessing = (0.5,) * 3, (0.25,) * 3, tuple("0123456789"), 16
    formats = ("onnx", "package", "qonnx") if shape == "plain" else ("onnx", "package")
    found = export_network(subnet, arch, *preprocessing, calibration, test, tmp_path, formats)
    onnx = found.judgements["onnx"]
    assert found.problems == () and onnx.simulator_argmax_differences == 0
    assert onnx.argmax_differences == onnx.near_tie_differences
    assert all(torch.equal(tensor, before[name]) for name, tensor in subnet.state_dict().items())
    nodes = {node.name: node for node in load_package(tmp_path).graph.nodes}
    for name, spec in net.space.layers(arch).items():
        if spec.present:
            assert nodes[name].weights.bits == spec.weight_bits
        assert (name in nodes) == bool(spec.present)
