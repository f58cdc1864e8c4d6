import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from oncequant import native
from oncequant.arch import FLOAT_BITS, LayerSpec
from oncequant.elastic import ACT_QUANTIZERS, WEIGHT_QUANTIZERS, ElasticConv, Quantizers
from oncequant.quantizers import functional
from oncequant.quantizers.dorefa import DoReFa
from oncequant.quantizers.functional import fake_quantize, initial_step_size, integer_range, quantize
from oncequant.quantizers.lsq import LSQ
from oncequant.quantizers.pact import PACT

GOLDEN = json.loads((Path(__file__).parent / "golden" / "quantizers_oqa.json").read_text())


@pytest.mark.parametrize(
    "case", GOLDEN["lsq"], ids=lambda c: f"{'a' if c['activation'] else 'w'}{c['bits']}s{c['step']}"
)
def test_lsq_matches_the_official_outputs_and_all_gradients(case):
    x = torch.tensor(GOLDEN["input"], requires_grad=True)
    quantizer = LSQ()
    with torch.no_grad():
        quantizer.step_size.fill_(case["step"])
    y = quantizer(x, case["bits"], signed=not case["activation"])
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
    assert LSQ()(torch.randn(4), 4, True).isnan().all()


def test_state_survives_a_round_trip():
    first, second = LSQ(), LSQ()
    first.initialise(torch.randn(100), 4, True)
    second.load_state_dict(first.state_dict())
    x = torch.randn(50)
    assert torch.equal(first(x, 4, True), second(x, 4, True))


def run(x, grad, s, *options, offset=None, activation=None):
    """Output and all gradients of fake_quantize."""
    leaves = [x.clone().requires_grad_(), s.clone().requires_grad_()]
    leaves += [] if offset is None else [offset.clone().requires_grad_()]
    y = fake_quantize(*leaves[:2], *options, 0.1, *leaves[2:], activation=activation)
    return y.detach(), *torch.autograd.grad(y, leaves, grad)


def assert_same(got, wanted):
    """Output and input gradient to the last bit but for h-swish's slope; sums to rounding."""
    assert torch.equal(got[0], wanted[0])
    assert_close(got[1], wanted[1], atol=1e-6, rtol=1e-6)
    for sum_got, sum_wanted in zip(got[2:], wanted[2:], strict=True):
        assert_close(sum_got, sum_wanted, atol=1e-3, rtol=1e-4)


def formulas(monkeypatch):
    """Run the PyTorch formulas from here on."""
    monkeypatch.setattr(functional, "native_options", lambda *_: None)


@pytest.mark.compiler
@pytest.mark.parametrize("activation", [None, "relu", "hardswish"])
@pytest.mark.parametrize("with_offset", [False, True])
def test_native_kernels_equal_the_formulas(activation, with_offset, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    assert native.available()  # the tests need a C compiler
    for n in (1, 77, 4096, 5000, 300_001, 1_500_000):
        x, grad = 3 * torch.randn(n, generator=generator), torch.randn(n, generator=generator)
        x[: min(n, 4)] = torch.tensor([-3.0, 3.0, 0.0, 0.35])[: min(n, 4)]
        for bits, signed, step in ((4, True, 0.07), (2, False, -0.3), (1, True, 0.5), (8, False, 0.01)):
            options = torch.tensor(step), bits, signed
            offset = torch.tensor([1.3]) if with_offset else None
            compiled = run(x, grad, *options, offset=offset, activation=activation)
            with monkeypatch.context() as patch:
                formulas(patch)
                assert_same(compiled, run(x, grad, *options, offset=offset, activation=activation))


@pytest.mark.compiler
@pytest.mark.parametrize("activation", [None, "relu", "hardswish"])
@pytest.mark.parametrize("y_dtype", [torch.bfloat16, torch.float32])
def test_native_kernels_of_bfloat16_equal_the_formulas(activation, y_dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for n in (1, 77, 5000, 300_001):
        x = (3 * torch.randn(n, generator=generator)).bfloat16()
        grad = torch.randn(n, generator=generator).to(y_dtype)
        for bits, signed, step in ((4, True, 0.07), (2, False, -0.3), (1, True, 0.5), (8, False, 0.01)):
            grid = torch.tensor(step), None, bits, signed, activation
            assert functional.native_options(x, y_dtype, *grid) is not None
            native_y, native_grads = functional.quantized(x, *grid, y_dtype), functional.gradients(x, grad, *grid, 0.1)
            with monkeypatch.context() as patch:
                formulas(patch)
                y, grads = functional.quantized(x, *grid, y_dtype), functional.gradients(x, grad, *grid, 0.1)
            assert native_y.dtype == y_dtype and torch.equal(native_y, y)
            assert native_grads[0].dtype == x.dtype
            # a product of the last two factors in another order may round to the neighbouring number
            assert_close(native_grads[0], grads[0], atol=1e-6, rtol=2**-7)
            assert_close(native_grads[1], grads[1], atol=1e-3, rtol=1e-3)


@pytest.mark.compiler
def test_a_gradient_that_may_be_overwritten_is():
    x, grad, step = torch.randn(40), torch.randn(40), torch.tensor(0.2)
    wanted = functional.gradients(x, grad.clone(), step, None, 4, True, "relu", 1.0)
    got = functional.gradients(x, grad, step, None, 4, True, "relu", 1.0, overwrite=True)
    assert torch.equal(got[0], wanted[0]) and got[1] == wanted[1]
    assert got[0].data_ptr() == grad.data_ptr()


@pytest.mark.parametrize("activation", ["relu", "hardswish"])
@pytest.mark.parametrize("offset", [0.0, 1.3, -2.0])
def test_activation_and_offset_equal_plain_pytorch(activation, offset):
    """The fused gradients against autograd through separate operations (BatchQuant's formula with offset o)."""
    generator = torch.Generator().manual_seed(1)
    x, grad = 2 * torch.randn(500, generator=generator), torch.randn(500, generator=generator)
    for bits, signed in ((4, False), (3, True), (2, True)):
        leaf, s, o = x.clone().requires_grad_(), torch.tensor(0.4, requires_grad=True), torch.tensor(offset)
        o.requires_grad_()
        h = torch.relu(leaf) if activation == "relu" else torch.nn.functional.hardswish(leaf)
        u = (h / s + o).clamp(*integer_range(bits, signed))
        y = ((u.round() - u).detach() + u - o) * s
        wanted = y.detach(), *torch.autograd.grad(y, (leaf, s, o), grad)
        got = run(x, grad, s.detach(), bits, signed, offset=o.detach(), activation=activation)
        got = (*got[:2], got[2] / 0.1, got[3])  # the factor on the step's gradient
        for g, w in zip(got, wanted, strict=True):
            assert_close(g, w, atol=2e-4, rtol=1e-4)


@pytest.mark.compiler
def test_channels_last_slices_and_numbers_of_threads():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(32, 24, 16, 16, generator=generator)
    grad = torch.randn(32, 24, 16, 16, generator=generator)
    options = torch.tensor(0.1), 4, True
    y, grad_x, grad_step = run(x, grad, *options, activation="relu")
    last = torch.channels_last
    for source, upstream in ((x.to(memory_format=last), grad), (x, grad.to(memory_format=last))):
        got = run(source, upstream, *options, activation="relu")
        assert torch.equal(got[0], y) and torch.equal(got[1], grad_x)
        assert_close(got[2], grad_step, atol=1e-4, rtol=1e-4)
    part = run(x[:, 3:7], grad[:, 3:7], *options, activation="relu")
    assert torch.equal(part[0], y[:, 3:7]) and torch.equal(part[1], grad_x[:, 3:7])
    threads = torch.get_num_threads()
    torch.set_num_threads(3 if threads != 3 else 1)
    again = run(x, grad, *options, activation="relu")
    torch.set_num_threads(threads)
    assert torch.equal(again[2], grad_step)  # to the last bit


def test_other_types_run_the_formulas():
    x = torch.randn(50)
    wanted = fake_quantize(x, torch.tensor(0.1), 4, True, activation="relu")
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 2e-2)):
        y = fake_quantize(x.to(dtype), torch.tensor(0.1, dtype=dtype), 4, True, activation="relu")
        assert y.dtype == dtype
        near_tie = ((x.relu() / 0.1) % 1 - 0.5).abs() < 0.1  # another rounding of x may be another code
        assert_close(y.float()[~near_tie], wanted[~near_tie], atol=tolerance, rtol=0)
    shifted = [fake_quantize(x, torch.tensor(0.1), 4, True, 1.0, torch.tensor(2, dtype=t)) for t in (torch.float32,)]
    for dtype in (torch.float64, torch.int64):  # an offset that the kernels cannot read as it is
        assert_close(fake_quantize(x, torch.tensor(0.1), 4, True, 1.0, torch.tensor(2, dtype=dtype)), *shifted)


def test_empty_tensors_and_step_sizes_of_several_numbers():
    x, s = torch.empty(0, 3, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    y = fake_quantize(x, s, 4, True)
    assert y.shape == (0, 3)
    assert torch.autograd.grad(y, (x, s), torch.empty(0, 3))[1] == 0
    with pytest.raises(ValueError, match="one number each"):
        fake_quantize(torch.randn(4), torch.tensor([0.1, 0.2]), 4, True)


def test_gradient_scale_counts_the_batch_of_all_processes():
    quantizer, x = LSQ(), torch.randn(4, 3)
    assert quantizer.grid(x, 4, True, shards=2).grad_scale == quantizer.grid(torch.cat([x, x]), 4, True).grad_scale


def test_not_a_number_is_not_hidden():
    x = torch.tensor([float("nan"), 1.0])
    for activation in (None, "relu", "hardswish"):
        assert fake_quantize(x, torch.tensor(0.1), 4, True, activation=activation).isnan().tolist() == [True, False]


@pytest.mark.compiler
def test_what_torch_compile_makes_of_the_formulas(monkeypatch):
    """As on a GPU: equal, and new shapes and bit-widths compile nothing."""
    monkeypatch.setattr(native, "choice", lambda: "compiled")
    forward, backward = functional._kernels.__wrapped__("cuda")
    generator = torch.Generator().manual_seed(0)
    counters = torch._dynamo.utils.counters
    graphs = None
    for n in (200, 5000, 77, 300_001, 4096):
        x, grad = torch.randn(n, generator=generator), torch.randn(n, generator=generator)
        for bits, signed in ((4, True), (2, False), (1, True), (8, False)):
            scalars = torch.tensor(0.07), torch.tensor(0.0), *functional._bounds(bits, signed, x.device), "relu"
            assert torch.equal(forward(x, *scalars, x.dtype), functional._forward(x, *scalars, x.dtype))
            got, wanted = backward(x, grad, *scalars), functional._backward(x, grad, *scalars)
            assert torch.equal(got[0], wanted[0])
            assert_close(got[1:], wanted[1:], atol=1e-3, rtol=1e-4)
        if n == 5000:
            graphs = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.fixture
def fresh_choice():
    """Whatever the test made of the choice of kernels is forgotten after it."""
    caches = native.choice, native.available, native.library, functional._kernels
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_missing_or_broken_compiler(compiler, monkeypatch, tmp_path, fresh_choice):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ONCEQUANT_KERNELS", "auto")
    with pytest.warns(UserWarning, match="run eagerly.*" + compiler):
        y = fake_quantize(torch.tensor([0.26]), torch.tensor(0.1), 4, True)
    assert_close(y, torch.tensor([0.3]))
    native.choice.cache_clear(), native.available.cache_clear()
    monkeypatch.setenv("ONCEQUANT_KERNELS", "compiled")
    with pytest.raises(native.BuildError, match=compiler):
        fake_quantize(torch.tensor([0.26]), torch.tensor(0.1), 4, True)


@pytest.mark.compiler
def test_kernels_are_built_once_and_a_damaged_file_is_named(monkeypatch, tmp_path, fresh_choice):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library()
    (built,) = (tmp_path / "oncequant").iterdir()
    native.library.cache_clear()
    monkeypatch.setattr(native, "_build", None)  # not called again
    native.library()
    native.library.cache_clear()
    (tmp_path / "elsewhere" / "oncequant").mkdir(parents=True)
    (tmp_path / "elsewhere" / "oncequant" / built.name).write_bytes(b"damaged")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(native.BuildError, match=built.name):
        native.library()


def test_unknown_kernel_choice_is_refused(monkeypatch, fresh_choice):
    monkeypatch.setenv("ONCEQUANT_KERNELS", "fast")
    with pytest.raises(ValueError, match="auto, compiled or eager"):
        fake_quantize(torch.randn(3), torch.tensor(0.1), 4, True)


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
    outputs = [DoReFa()(leaves[0], bits), dorefa_reference(leaves[1], bits)]
    for y in outputs:
        y.backward(grad)
    step = 2 * w.tanh().abs().max() / (2**bits - 1)
    near_ties = (outputs[0] - outputs[1]).abs() > step / 2  # neighbours of a tie differ by rounding
    assert near_ties.float().mean() < 0.02
    if not near_ties.any():
        assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
        assert_close(leaves[0].grad, leaves[1].grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("quantizer", [DoReFa, LSQ])
@pytest.mark.parametrize("bits", range(1, 9))
def test_deployed_codes_are_the_quantized_weights(quantizer, bits):
    w = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(bits))
    quantizer = quantizer()
    quantizer.initialise(w, bits, True)
    codes, step, odd = quantizer.deployed(w, bits)
    assert_close(codes * step, quantizer(w, bits, True).detach(), atol=1e-6, rtol=1e-6)
    assert codes.abs().max() <= 128 and (codes == codes.round()).all()
    assert codes.unique().numel() <= 2**bits
    assert not odd or ((codes % 2).abs() == 1).all() and codes.abs().max() <= 2**bits - 1


def test_dorefa_has_no_other_bits():
    with pytest.raises(ValueError, match="from 1 to 8, not 9"):
        DoReFa()(torch.randn(3), 9)


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
            clamped, activation = quantizer.clamped(leaf, signed, None, None)
            step, offset, scale, *_ = quantizer.grid(clamped, bits, signed, None, activation)
            y = fake_quantize(clamped, step, bits, signed, scale, offset, activation)
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
    quantizer.initialise(x, 4, False, 1)
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


@pytest.mark.parametrize("weights", WEIGHT_QUANTIZERS)
@pytest.mark.parametrize("activations", ACT_QUANTIZERS)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_contract_of_all_quantizers(weights, activations, bits):
    """At most 2^bits levels, gradients of input and weight, and the same results after a round trip of the state."""
    spec = LayerSpec("conv", 6, 8, 3, out_size=9, weight_bits=bits, act_bits=bits)
    layers = [ElasticConv(spec, (3,), Quantizers((bits,), (bits,), True, activations, weights)) for _ in range(2)]
    x = torch.randn(5, 6, 9, 9, generator=torch.Generator().manual_seed(0)).relu().requires_grad_()
    first, slot = layers[0], 0
    first.weight_quantizer.initialise(first.weight, bits, True, slot)
    first.act_quantizer.initialise(x, bits, False, slot)
    assert first.weight_quantizer(first.weight, bits, True, slot).unique().numel() <= 2**bits
    clamped, activation = x, None
    if activations == "pact":
        clamped, activation = first.act_quantizer.clamped(x, False, slot, None)
    step, offset, _, _, signed, activation = first.act_quantizer.grid(clamped, bits, False, slot, activation)
    levels = fake_quantize(clamped, step, bits, signed, offset=offset, activation=activation).unique()
    assert 2 <= levels.numel() <= 2**bits
    y = first(x, spec, None)
    y.square().sum().backward()
    for tensor in (x, first.weight):
        assert tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0
    layers[1].load_state_dict(first.state_dict())
    assert torch.equal(layers[1](x, spec, None), first(x, spec, None))
