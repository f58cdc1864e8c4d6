import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from oncequant import conv, native
from oncequant.quantizers.functional import Grid


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
    step, dense = torch.tensor(0.2, requires_grad=True), torch.randn(8, 16, 1, 1).requires_grad_()

    def gradients():
        y = conv.conv2d(x, weight, None, options)
        v = conv.quantized_conv2d(y, Grid(step, None, 1.0, 4, True, None), weight, None, options)
        w = conv.conv2d(v, dense, None, dict(stride=1, padding=0, groups=1))  # by PyTorch
        return torch.autograd.grad(w.square().sum(), [x, weight, dense, step])

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
