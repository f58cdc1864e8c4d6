import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from oncequant import conv, native
from oncequant.quantizers.functional import Grid, activate, integer_range


@pytest.mark.compiler
@settings(deadline=None, max_examples=60)
@given(
    images=st.integers(1, 4),
    channels=st.sampled_from([8, 16, 24, 40, 72]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.integers(1, 2),
    channels_last=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_depthwise_gradients_are_those_of_float64(
    images, channels, height, width, kernel, stride, channels_last, bias, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, height, width, generator=generator)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    weight = torch.randn(channels, 1, kernel, kernel, generator=generator)
    offset = torch.randn(channels, generator=generator) if bias else None
    options = dict(stride=stride, padding=kernel // 2, groups=channels)
    assert conv._has_native_gradient(x, weight, options)
    inputs = [t.requires_grad_() for t in (x, weight, offset) if t is not None]
    y = conv.conv2d(x, weight, offset, options)
    grad = torch.randn(y.shape, generator=generator)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    wanted = torch.autograd.grad(F.conv2d(*exact, **options), exact, grad.double())
    for got, want in zip(torch.autograd.grad(y, inputs, grad), wanted, strict=True):
        assert_close(got.double(), want, atol=1e-4, rtol=1e-4)


@pytest.mark.compiler
def test_the_depthwise_gradient_does_not_depend_on_the_number_of_threads():
    x, grad = torch.randn(2, 8, 40, 9, 9).to(torch.float32)
    weight, options = torch.randn(40, 1, 5, 5), dict(stride=1, padding=2, groups=40)
    threads, found = torch.get_num_threads(), []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(conv._depthwise_weight_gradient(x, grad, weight, options))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    "channels, groups, kernel, padding", [(12, 12, 3, 1), (16, 16, 9, 4), (16, 16, 3, 0), (16, 2, 3, 1), (16, 1, 3, 1)]
)
def test_other_convolutions_are_left_to_pytorch(channels, groups, kernel, padding):
    weight = torch.randn(channels, channels // groups, kernel, kernel)
    options = dict(stride=1, padding=padding, groups=groups)
    x = torch.randn(2, channels, 11, 11)
    assert not conv._has_native_gradient(x, weight, options)
    step, grad = torch.tensor(0.2), torch.randn(F.conv2d(x, weight, **options).shape)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    assert type(conv.conv2d(x, weight, None, options).grad_fn).__name__ == "ConvolutionBackward0"
    y = conv.quantized_conv2d(x, Grid(step, None, 1.0, 4, True, None), weight, None, options)
    quantized = (torch.round(x / step).clamp(-8, 7) * step).detach()
    assert_close(y, F.conv2d(quantized, weight, **options))
    got = torch.autograd.grad(y, weight, grad)
    assert_close(got, torch.autograd.grad(F.conv2d(quantized, weight, **options), weight, grad))


def normalized_conv2d(z, norm, grid, weight, bias, options):
    statistics = conv.batch_norm_statistics(z, *norm, 1e-5)
    return conv.normalized_conv2d(z, *norm, statistics, grid, weight, bias, options)


def depthwise(size=7):
    x, weight = torch.randn(2, 16, size, size).requires_grad_(), torch.randn(16, 1, 3, 3).requires_grad_()
    return x, weight, dict(stride=1, padding=1, groups=16)


def test_without_the_kernels_or_gradients_pytorch_does_all(monkeypatch):
    x, weight, options = depthwise()
    with monkeypatch.context() as patch:
        patch.setattr(native, "available", lambda: False)
        y = conv.conv2d(x, weight, None, options)
        assert type(y.grad_fn).__name__ == "ConvolutionBackward0"
    monkeypatch.setattr(native, "available", None)  # not even asked
    with torch.no_grad():
        conv.conv2d(x, weight, None, options)
    conv.conv2d(x, weight.detach(), None, options)


@pytest.mark.compiler
def test_gradients_do_not_depend_on_autocast_and_defaults():
    x, weight, options = depthwise()
    norm = [torch.rand(16).requires_grad_(), torch.randn(16).requires_grad_()]
    step = torch.tensor(0.2, requires_grad=True)

    def gradients():
        y = conv.conv2d(x, weight, None, options)
        z = normalized_conv2d(y, norm, Grid(step, None, 1.0, 4, False, "relu"), weight, None, options)
        v = conv.quantized_conv2d(z, Grid(step, None, 1.0, 4, True, None), weight, None, options)
        return torch.autograd.grad(v.square().sum(), [x, weight, *norm, step])

    wanted = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        found = [gradients()]
    torch.set_default_dtype(torch.float64)
    try:
        found.append(gradients())
    finally:
        torch.set_default_dtype(torch.float32)
    for other in found:
        assert all(torch.equal(a, b) for a, b in zip(wanted, other, strict=True))


@pytest.mark.compiler
def test_a_second_derivative_is_refused():
    x, weight, options = depthwise()
    (grad,) = torch.autograd.grad(conv.conv2d(x, weight, None, options).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.compiler
@settings(deadline=None, max_examples=60)
@given(
    images=st.integers(3, 5),
    channels=st.sampled_from([1, 3, 8, 24]),
    size=st.integers(1, 4),
    activation=st.sampled_from([None, "relu", "hardswish"]),
    bits=st.sampled_from([2, 3, 4]),
    signed=st.booleans(),
    with_offset=st.booleans(),
    mean=st.sampled_from([0.0, -2.0]),
    negative_step=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batch_norm_in_the_quantizer_equals_batch_norm_before_it(
    images, channels, size, activation, bits, signed, with_offset, mean, negative_step, seed
):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    z = mean + randn(images, channels, size, size) * torch.linspace(0.2, 3, channels)[:, None, None]
    z = z.to(memory_format=torch.channels_last).requires_grad_()
    norm = [(1 + 0.3 * randn(channels)).requires_grad_(), (0.3 * randn(channels)).requires_grad_()]
    step = torch.tensor((-1 if negative_step else 1) * 2.5 / 2**bits, requires_grad=True)
    offset = torch.tensor(0.4, requires_grad=True) if with_offset else None
    h = F.batch_norm(z.double(), None, None, *(p.double() for p in norm), True, 1.0, 1e-5)
    u = activate(h, activation) / step.double().abs() + (0 if offset is None else offset.double())
    q_min, q_max = integer_range(bits, signed)
    to_boundary = torch.stack([(u % 1 - 0.5).abs(), (u - q_min).abs(), (u - q_max).abs(), h.abs()]).amin(0)
    flat = h <= {None: -torch.inf, "relu": 0, "hardswish": -3}[activation]
    assume(to_boundary[~flat].numel() == 0 or to_boundary[~flat].min() > 1e-4)  # there, rounding decides
    weight, bias = randn(6, channels, 1, 1).requires_grad_(), randn(6).requires_grad_()
    rest = Grid(step, offset, 0.7, bits, signed, activation), weight, bias, dict(stride=1, padding=0, groups=1)
    inputs = [t for t in (z, *norm, step, offset, weight, bias) if t is not None]
    grad, found = randn(images, 6, size, size), []
    for way in ("together", "apart"):
        if way == "together":
            y = normalized_conv2d(z, norm, *rest)
        else:
            y = conv.quantized_conv2d(F.batch_norm(z, None, None, *norm, True, 1.0, 1e-5), *rest)
        found.append([y, *torch.autograd.grad(y, inputs, grad)])
    scale = grad.norm() + z.detach().norm()
    for together, apart in zip(*found, strict=True):
        assert (together - apart).norm() <= 1e-3 * apart.norm() + 1e-4 * scale


@pytest.mark.compiler
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_in_the_quantizer_in_bfloat16(weight_dtype):
    torch.manual_seed(0)
    z = torch.randn(4, 16, 9, 9).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    norm = [torch.rand(16).requires_grad_(), torch.randn(16).requires_grad_()]
    step = torch.tensor(0.2, requires_grad=True)
    weight = torch.randn(16, 1, 3, 3).to(weight_dtype).requires_grad_()
    rest = Grid(step, None, 1.0, 4, False, "relu"), weight, None, dict(stride=1, padding=1, groups=16)
    y = normalized_conv2d(z, norm, *rest)
    assert y.dtype == weight_dtype
    grad = torch.randn(y.shape).to(weight_dtype)
    got = torch.autograd.grad(y, [z, *norm, step, weight], grad)
    assert [g.dtype for g in got] == [torch.bfloat16, *[torch.float32] * 3, weight_dtype]
    wide = z.detach().float().requires_grad_()
    x = F.batch_norm(wide, None, None, *norm, True, 1.0, 1e-5)
    wide_weight = weight.detach().float().requires_grad_()
    wanted = conv.quantized_conv2d(x, rest[0], wide_weight, *rest[2:])
    wanted_grads = torch.autograd.grad(wanted, [wide, *norm, step, wide_weight], grad.float())
    for half, single in zip((y, *got), (wanted, *wanted_grads), strict=True):
        assert (half.float() - single).norm() <= 0.02 * single.norm()


def normalized(z, threads):
    torch.manual_seed(0)
    norm = [torch.rand(24).requires_grad_(), torch.randn(24).requires_grad_()]
    step, weight = torch.tensor(0.2, requires_grad=True), torch.randn(24, 1, 3, 3).requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    options = dict(stride=1, padding=1, groups=24)
    y = normalized_conv2d(z, norm, Grid(step, None, 1.0, 4, False, "relu"), weight, None, options)
    grads = torch.autograd.grad((y * torch.linspace(-1, 1, 24)[:, None, None]).sum(), [z, *norm, step, weight])
    torch.set_num_threads(before)
    return y, *grads


@pytest.mark.compiler
def test_batch_norm_in_the_quantizer_of_a_large_tensor_on_any_number_of_threads():
    z = torch.randn(5, 24, 41, 37).to(memory_format=torch.channels_last).requires_grad_()
    found = [normalized(z, threads) for threads in (1, 2, 3)]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][2:], other[2:], strict=True))
        # PyTorch's own convolution sums in another order
        assert all((a - b).norm() <= 1e-5 * a.norm() for a, b in zip(found[0][:2], other[:2], strict=True))


@pytest.mark.compiler
def test_not_a_number_passes_through_batch_norm_in_the_quantizer():
    for place in (0, 3):  # in the rows about which variances are taken, or not
        z = torch.randn(5, 24, 10, 10).to(memory_format=torch.channels_last)
        z[place, 3, 5, 5] = torch.nan
        y, *_ = normalized(z.requires_grad_(), 1)
        assert y[:, 3].isnan().any() and not y[:, 4].isnan().any()


def test_what_batch_norm_in_the_quantizer_does_not_take_is_refused():
    norm, step, weight = (torch.ones(16), torch.zeros(16)), torch.tensor(0.2), torch.randn(8, 16, 1, 1)
    rest = weight, None, dict(stride=1, padding=0, groups=1)
    for z, s in (
        (torch.randn(1, 16, 1, 1), step),
        (torch.randn(0, 16, 3, 3), step),
        (torch.randn(2, 16, 3, 3), step.half()),
    ):
        with pytest.raises(ValueError, match="batch norm cannot be part"):
            conv.normalized_conv2d(z, *norm, torch.ones(4, 16), Grid(s, None, 1.0, 4, False, "relu"), *rest)


@pytest.mark.compiler
def test_statistics_of_many_rows_and_any_number_of_threads():
    """Equal to float64 although the mean is 1,000 standard deviations, and the same to the last bit on all threads."""
    z = (1000 + torch.randn(7, 24, 61, 53)).to(memory_format=torch.channels_last)
    norm = torch.ones(24), torch.zeros(24), 1e-5
    threads, found = torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(conv.batch_norm_statistics(z, *norm))
    torch.set_num_threads(threads)
    assert torch.equal(*found)
    exact = z.double()
    assert_close(found[0][0].double(), exact.mean((0, 2, 3)), atol=1e-4, rtol=0)
    assert_close(found[0][1].double(), exact.var((0, 2, 3), correction=0).rsqrt(), atol=1e-4, rtol=0)
