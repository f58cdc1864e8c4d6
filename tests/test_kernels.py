"""The kernels in C and what torch.compile makes equal the formulas, and a missing compiler is no obstacle."""

import pytest
import torch
from torch.testing import assert_close

from oncequant import native
from oncequant.quantizers import functional
from oncequant.quantizers.functional import fake_quantize, integer_range


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
