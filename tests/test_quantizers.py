"""Quantizers: what all of them promise, and LSQ against its official outputs."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from oncequant.quantizers.dorefa import DoReFa
from oncequant.quantizers.functional import fake_quantize, initial_step_size, integer_range, quantize
from oncequant.quantizers.lsq import LSQ
from oncequant.quantizers.quantizer import Ask

GOLDEN = json.loads((Path(__file__).parent / "golden" / "quantizers_oqa.json").read_text())


@pytest.mark.parametrize(
    "case", GOLDEN["lsq"], ids=lambda c: f"{'a' if c['activation'] else 'w'}{c['bits']}s{c['step']}"
)
def test_lsq_matches_the_official_outputs_and_all_gradients(case):
    x = torch.tensor(GOLDEN["input"], requires_grad=True)
    quantizer = LSQ()
    with torch.no_grad():
        quantizer.step_size.fill_(case["step"])
    y = quantizer(x, Ask(case["bits"], not case["activation"]))
    y.backward(torch.tensor(GOLDEN["upstream_gradient"]))
    assert_close(y, torch.tensor(case["output"]), atol=1e-6, rtol=1e-6)
    assert_close(x.grad, torch.tensor(case["grad_input"]), atol=1e-6, rtol=1e-6)
    assert_close(quantizer.step_size.grad, torch.tensor(case["grad_step"]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "case", GOLDEN["step_initialisation_activation_input_weight_first6_of_input"], ids=lambda c: c["bits"]
)
def test_step_initialisation_matches_the_official_code(case):
    x = torch.tensor(GOLDEN["input"])
    assert_close(initial_step_size(x, case["bits"], False).item(), case["activation_step"], atol=0, rtol=1e-5)
    assert_close(initial_step_size(x[:6], case["bits"], True).item(), case["weight_step"], atol=0, rtol=1e-5)


def reference(x, s, bits, signed, grad_scale):
    """LSQ from its paper's equations in plain differentiable PyTorch."""
    q_min, q_max = integer_range(bits, signed)
    s = s * grad_scale + (s - s * grad_scale).detach()
    v = (x / s.abs()).clamp(q_min, q_max)
    return ((v.round() - v).detach() + v) * s.abs()


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), signed=st.booleans(), step=st.floats(1e-3, 2), seed=st.integers(0, 99))
def test_fused_function_equals_composite(bits, signed, step, seed):
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed))
    grad = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed + 1))
    results = []
    for function in (fake_quantize, reference):
        leaf, s = x.clone().requires_grad_(), torch.tensor(step, requires_grad=True)
        y = function(leaf, s, bits, signed, 0.1)
        y.backward(grad)
        results.append((y.detach(), leaf.grad, s.grad))
    for fused, composite in zip(*results):
        assert_close(fused, composite, atol=1e-4, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), signed=st.booleans(), step=st.floats(1e-3, 2), seed=st.integers(0, 99))
def test_at_most_two_to_the_bits_levels(bits, signed, step, seed):
    x = torch.randn(4096, generator=torch.Generator().manual_seed(seed)) * 3
    codes = quantize(x, torch.tensor(step), bits, signed)
    q_min, q_max = integer_range(bits, signed)
    assert codes.unique().numel() <= 2**bits
    assert codes.min() >= q_min and codes.max() <= q_max and (codes == codes.round()).all()
    assert_close(fake_quantize(x, torch.tensor(step), bits, signed), codes * step)


@settings(max_examples=100, deadline=None)
@given(bits=st.integers(3, 8), signed=st.booleans(), step=st.floats(1e-3, 2), seed=st.integers(0, 99))
def test_inheriting_bits_changes_a_value_by_at_most_one_step(bits, signed, step, seed):
    """|Q_{K-1}(v; 2s) - Q_K(v; s)| <= s, and the difference is 0 or s (methods.md A.2)."""
    v = torch.randn(4096, generator=torch.Generator().manual_seed(seed)) * step * 2**bits
    s = torch.tensor(step)
    codes = 2 * quantize(v, 2 * s, bits - 1, signed) - quantize(v, s, bits, signed)  # in units of s, exact
    assert codes.abs().unique().tolist() in ([0.0, 1.0], [0.0], [1.0])
    values = fake_quantize(v, 2 * s, bits - 1, signed) - fake_quantize(v, s, bits, signed)
    assert values.abs().max() <= step * (1 + 1e-4)


def test_rounds_half_to_even_like_onnx():
    ties = torch.tensor([0.5, 1.5, 2.5, 3.5, -0.5, -1.5])
    assert quantize(ties, torch.tensor(1.0), 4, True).tolist() == [0, 2, 2, 4, 0, -2]


def test_saves_only_input_and_step():
    saved = []
    x, s = torch.randn(64, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fake_quantize(x, s, 4, True)
    assert sorted(t.numel() for t in saved) == [1, 64]
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), s.data_ptr()}


def test_forgotten_initialisation_is_visible():
    assert LSQ()(torch.randn(4), Ask(4, True)).isnan().all()


def test_state_survives_a_round_trip():
    first, second = LSQ(), LSQ()
    first.initialise(torch.randn(100), Ask(4, True))
    second.load_state_dict(first.state_dict())
    x = torch.randn(50)
    assert torch.equal(first(x, Ask(4, True)), second(x, Ask(4, True)))


def test_gradient_scale_counts_the_batch_of_all_processes():
    quantizer, x = LSQ(), torch.randn(4, 3)
    assert (
        quantizer.grid(x, Ask(4, True, shards=2)).grad_scale
        == quantizer.grid(torch.cat([x, x]), Ask(4, True)).grad_scale
    )


@pytest.mark.parametrize("quantizer", [DoReFa, LSQ])
@pytest.mark.parametrize("bits", range(1, 9))
def test_deployed_codes_are_the_quantized_weights(quantizer, bits):
    w = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(bits))
    quantizer = quantizer()
    quantizer.initialise(w, Ask(bits, True))
    codes, step, odd = quantizer.levels(w, Ask(bits, True))
    assert_close(codes * step, quantizer(w, Ask(bits, True)).detach(), atol=1e-6, rtol=1e-6)
    assert codes.abs().max() <= 128 and (codes == codes.round()).all()
    assert codes.unique().numel() <= 2**bits
    assert not odd or ((codes % 2).abs() == 1).all() and codes.abs().max() <= 2**bits - 1
