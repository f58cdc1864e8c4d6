"""Convolutions with backward passes of their own.

`quantized_conv2d` keeps its input and the quantized copy of it for the backward pass, and nothing of the activation
between them. To compute the copy again would save memory and cost time (docs/log.md). On the CPU the weight gradient of
depthwise convolutions comes from native/depthwise.c, much faster than PyTorch's for kernels of 5x5 and 7x7.

None of them can be differentiated twice. Autocast is ignored: types are those of the arguments.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from oncequant import native
from oncequant.quantizers.functional import Grid, gradients, quantized


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, conv: dict[str, int]) -> Tensor:
    """torch's conv2d of (N, C, H, W) with `conv` = stride, padding, dilation, groups, and gradients as said above."""
    wanted = torch.is_grad_enabled() and weight.requires_grad
    if wanted and _has_native_gradient(x, weight, conv):
        return _without_autocast(_Conv2d.apply, x, weight, bias, conv)
    return _without_autocast(F.conv2d, x, weight, bias, **conv)


def quantized_conv2d(x: Tensor, grid: Grid, weight: Tensor, bias: Tensor | None, conv: dict[str, int]) -> Tensor:
    """conv2d(fake_quantize(x), weight, bias, conv) in the type of the weight."""
    return _without_autocast(_QuantizedConv2d.apply, x, *grid, weight, bias, conv)


def _without_autocast(call: Callable[..., Tensor], x: Tensor, *args, **options) -> Tensor:
    """call(x, ...), without autocast."""
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return call(x, *args, **options)
    return call(x, *args, **options)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, conv):
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.conv = bias is not None, conv
        return F.conv2d(x, weight, bias, **conv)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        by_x, by_weight = ctx.needs_input_grad[:2]
        return *_conv2d_backward(grad, x, weight, ctx.conv, (by_x, by_weight, ctx.has_bias)), None


class _QuantizedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step_size, offset, grad_scale, bits, signed, activation, weight, bias, conv):
        ctx.quantization, ctx.grad_scale = (bits, signed, activation), grad_scale
        ctx.has_bias, ctx.conv = bias is not None, conv
        x_hat = quantized(x, step_size, offset, bits, signed, activation, weight.dtype)
        ctx.save_for_backward(x, step_size, offset, weight, x_hat)
        return F.conv2d(x_hat, weight, bias, **conv)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, step_size, offset, weight, x_hat = ctx.saved_tensors
        wanted = (True, ctx.needs_input_grad[7], ctx.has_bias)
        grad_x_hat, grad_weight, grad_bias = _conv2d_backward(grad, x_hat, weight, ctx.conv, wanted)
        bits, signed, activation = ctx.quantization
        by_quantizer = gradients(
            x, by_input(grad_x_hat), step_size, offset, bits, signed, activation, ctx.grad_scale, overwrite=True
        )
        return *by_quantizer, None, None, None, None, grad_weight, grad_bias, None


def by_input(grad: Tensor | None) -> Tensor:
    """The gradient by the input of a convolution, which was wanted."""
    assert grad is not None
    return grad


def _conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: dict[str, int], wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of conv2d by x, weight and bias, those that are wanted; grad (N, C', H', W') is by its result."""
    by_x, by_weight, by_bias = wanted
    is_native = by_weight and _has_native_gradient(x, weight, conv)
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward.default(
        grad,
        x,
        weight,
        [len(weight)] if by_bias else None,
        [conv["stride"]] * 2,
        [conv["padding"]] * 2,
        [conv.get("dilation", 1)] * 2,
        False,  # transposed
        [0, 0],
        conv["groups"],
        [by_x, by_weight and not is_native, by_bias],
    )
    return grad_x, _depthwise_weight_gradient(x, grad, weight, conv) if is_native else grad_weight, grad_bias


def _has_native_gradient(x: Tensor, weight: Tensor, conv: dict[str, int]) -> bool:
    """Whether this is a depthwise convolution that native/depthwise.c knows."""
    kernel = weight.shape[-1]
    return (
        conv["groups"] == len(weight) == x.shape[1] > 1
        and kernel in (3, 5, 7)
        and conv["padding"] == kernel // 2
        and conv.get("dilation", 1) == 1
        and len(weight) % 8 == 0
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and native.available()
    )


def _depthwise_weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, conv: dict[str, int]) -> Tensor:
    """Gradient (C, 1, K, K) by the weight of x (N, C, H, W) depthwise convolved, given grad (N, C, H', W')."""
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    native.library().depthwise_weight_gradient(
        *(x.data_ptr(), grad.data_ptr(), grad_weight.data_ptr(), *x.shape, *grad.shape[2:]),
        *(weight.shape[-1], conv["stride"]),
    )
    return grad_weight
