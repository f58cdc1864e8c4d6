"""LSQ with a step size for each output channel."""

from dataclasses import replace

import pytest
import torch
from test_families import SIZE, SMALL, started
from torch.testing import assert_close

from oncequant.export.package import load_package
from oncequant.export.verify import export_network
from oncequant.family import with_bits
from oncequant.measure import calibrated_subnet
from oncequant.quantizers.lsq import LSQ
from oncequant.quantizers.lsq_channel import ChannelLSQ
from oncequant.quantizers.quantizer import Ask


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_each_channel_is_quantized_as_a_tensor_of_its_own(bits):
    torch.manual_seed(bits)
    w = (torch.randn(5, 4, 3, 3) * torch.tensor([0.1, 1, 3, 0.5, 2]).view(-1, 1, 1, 1)).requires_grad_()
    together, ask = ChannelLSQ(None, 8), Ask(bits, True)
    together.initialise(w, ask)
    assert together.step_size[5:].isnan().all()  # channels that a subnet does not have
    y, grad = together(w, ask), torch.randn(5, 4, 3, 3)
    (grad_w, grad_s) = torch.autograd.grad(y, (w, together.step_size), grad)
    for c in range(5):
        alone, one = LSQ(), w[c : c + 1].detach().requires_grad_()
        alone.initialise(one, ask)
        assert_close(alone.step_size, together.step_size[c])
        part = alone(one, ask)
        wanted = torch.autograd.grad(part, (one, alone.step_size), grad[c : c + 1])
        assert_close(part, y[c : c + 1], atol=1e-6, rtol=1e-5)
        assert_close(wanted[0], grad_w[c : c + 1], atol=1e-6, rtol=1e-5)
        assert_close(wanted[1], grad_s[c], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["mobilenet_v3", "elastic_resnet"])
@pytest.mark.parametrize("bits", [4, 2])
def test_exports_have_a_scale_per_channel_and_are_verified(family, bits, tmp_path):
    config = with_bits(replace(SMALL[family], weight_quantizer="lsq-channel", steps_per_bits=False), bits)
    net, images = started(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("weight_quantizer.step_size"):
                parameter.mul_(torch.linspace(0.5, 2, parameter.numel()).view_as(parameter))
    arch, calibration = net.space.smallest(), [(torch.randn(64, 1, SIZE, SIZE), None)]
    subnet = calibrated_subnet(net, arch, calibration)
    test = [(torch.randn(40, 1, SIZE, SIZE), torch.randint(10, (40,)))]
    found = export_network(subnet, arch, (0.5,), (0.25,), tuple("0123456789"), SIZE, calibration, test, tmp_path)
    assert found.problems == ()
    node = next(
        n
        for n in load_package(tmp_path).graph.nodes
        if n.name == "stage1.block1." + ("conv2", "project")["m" == family[0]]
    )
    norm = subnet.get_submodule(node.name).norm
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    steps = (node.weights.scale * 2**node.weights.shift / gain).abs()
    assert_close(steps, subnet.get_submodule(node.name).weight_quantizer.step_size.abs(), atol=1e-5, rtol=1e-4)
