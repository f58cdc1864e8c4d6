"""DoReFa for weights and PACT for activations equal the formulas of their papers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from oncequant.arch import FLOAT_BITS, LayerSpec
from oncequant.elastic import ElasticConv, Quantizers
from oncequant.quantizers import functional
from oncequant.quantizers.dorefa import DoReFa
from oncequant.quantizers.functional import integer_range
from oncequant.quantizers.pact import PACT
from oncequant.quantizers.quantizer import Ask


def dorefa_reference(w, bits):
    """DoReFa from its paper's equations in plain differentiable PyTorch, times the largest |tanh|."""
    if bits == 1:
        return (torch.where(w >= 0, 1.0, -1.0) * w.detach().abs().mean() - w).detach() + w
    tanh, levels = w.tanh(), 2**bits - 1
    largest = tanh.abs().max()
    if bits == 8:  # 255 levels, one of them zero
        unit = tanh / largest * 127
        return ((unit.round() - unit).detach() + unit) * largest / 127
    unit = tanh / (2 * largest) + 0.5
    rounded = ((unit * levels).round() / levels - unit).detach() + unit
    return largest * (2 * rounded - 1)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), scale=st.floats(0.01, 3), seed=st.integers(0, 99))
def test_dorefa_equals_its_formulas(bits, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    w, grad = scale * torch.randn(6, 4, 3, 3, generator=generator), torch.randn(6, 4, 3, 3, generator=generator)
    leaves = [w.clone().requires_grad_() for _ in range(2)]
    outputs = [DoReFa()(leaves[0], Ask(bits, True)), dorefa_reference(leaves[1], bits)]
    for y in outputs:
        y.backward(grad)
    step = 2 * w.tanh().abs().max() / (2**bits - 1)
    near_ties = (outputs[0] - outputs[1]).abs() > step / 2  # neighbours of a tie differ by rounding
    assert near_ties.float().mean() < 0.02
    if not near_ties.any():
        assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
        assert_close(leaves[0].grad, leaves[1].grad, atol=1e-4, rtol=1e-4)


def test_dorefa_has_no_other_bits():
    with pytest.raises(ValueError, match="from 1 to 8, not 9"):
        DoReFa()(torch.randn(3), Ask(9, True))


def pact_reference(x, clip, bits, signed):
    """PACT from its paper's equations in plain differentiable PyTorch."""
    y = torch.where(x >= clip, clip, x)
    y = torch.where(y <= (-clip if signed else 0), -clip if signed else torch.zeros(()), y)
    step = (clip / integer_range(bits, signed)[1]).detach()
    return ((y / step).round() * step - y).detach() + y


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), signed=st.booleans(), clip=st.floats(0.1, 3), seed=st.integers(0, 99))
def test_pact_equals_its_formulas(bits, signed, clip, seed):
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(40, 7, generator=generator), torch.randn(40, 7, generator=generator)
    quantizer, results = PACT(), []
    for mine in (True, False):
        leaf, level = x.clone().requires_grad_(), torch.tensor(clip).requires_grad_()
        if mine:
            quantizer.clip = torch.nn.Parameter(level.detach().clone())
            y = quantizer(leaf, Ask(bits, signed))
        else:
            y = pact_reference(leaf, level, bits, signed)
        y.backward(grad)
        results.append((y.detach(), leaf.grad, quantizer.clip.grad if mine else level.grad))
    assert (results[0][0] - results[1][0]).abs().gt(clip / 2**bits).float().mean() < 0.02  # ties
    assert_close(results[0][1], results[1][1])
    assert_close(results[0][2], results[1][2], atol=1e-4, rtol=1e-4)


def test_pact_starts_from_data_and_says_when_it_did_not():
    x = torch.randn(100)
    quantizer = PACT(2)
    assert quantizer.clip.isnan().all()
    quantizer.initialise(x, Ask(4, False, 1))
    assert quantizer.clip[0].isnan() and quantizer.clip[1] == 8 * x.abs().mean()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("activation", ["relu", None, "hardswish"])
def test_pact_inside_a_layer_equals_its_formulas(signed, activation):
    spec = LayerSpec("conv", 6, 8, 3, out_size=9, act_bits=3, signed_input=signed)
    generator = torch.Generator().manual_seed(1)
    layer = ElasticConv(spec, (3,), Quantizers((FLOAT_BITS,), (3,), True, "pact"))
    x, grad = torch.randn(5, 6, 9, 9, generator=generator), torch.randn(5, 8, 9, 9, generator=generator)
    with torch.no_grad():
        layer.act_quantizer.clip.fill_(0.8)
    one, two, clip = x.clone().requires_grad_(), x.clone().requires_grad_(), torch.tensor(0.8, requires_grad=True)
    y = layer(one, spec, activation)
    quantized = pact_reference(functional.activate(two, activation), clip, 3, signed)
    plain = layer.norm(F.conv2d(quantized, layer.weight, padding=1))
    y.backward(grad)
    plain.backward(grad)
    assert_close(y, plain, atol=1e-4, rtol=1e-4)
    assert_close(one.grad, two.grad, atol=1e-4, rtol=1e-4)
    assert_close(layer.act_quantizer.clip.grad[0], clip.grad, atol=1e-3, rtol=1e-3)
