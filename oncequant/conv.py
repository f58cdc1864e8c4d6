"""Convolutions with backward passes of their own.

`quantized_conv2d` keeps its input for the backward pass instead of both the input and its quantized copy, which it
computes again: a quantized step needs about the memory of the float step. On the CPU the weight gradient of depthwise
convolutions comes from native/depthwise.c, in 1/60 to 3/4 of the time that PyTorch takes for it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from oncequant import native
from oncequant.quantizers.functional import gradients, quantized


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, conv: dict[str, int]) -> Tensor:
    """torch's conv2d of (N, C, H, W) with `conv` = stride, padding, groups, and gradients as said above."""
    if _has_native_gradient(x, weight, conv):
        return _Conv2d.apply(x, weight, bias, conv)
    return F.conv2d(x, weight, bias, **conv)


def quantized_conv2d(
    x: Tensor,
    step_size: Tensor,
    offset: Tensor | None,
    grad_scale: float,
    bits: int,
    signed: bool,
    activation: str | None,
    weight: Tensor,
    bias: Tensor | None,
    conv: dict[str, int],
) -> Tensor:
    """conv2d(fake_quantize(x, ...), weight, bias, conv) in the type of the weight."""
    return _QuantizedConv2d.apply(x, step_size, offset, grad_scale, bits, signed, activation, weight, bias, conv)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, conv):
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.conv = bias is not None, conv
        return F.conv2d(x, weight, bias, **conv)

    @staticmethod
    def backward(ctx, grad):
        return *_conv2d_backward(grad, *ctx.saved_tensors, ctx.conv, (*ctx.needs_input_grad[:2], ctx.has_bias)), None


class _QuantizedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step_size, offset, grad_scale, bits, signed, activation, weight, bias, conv):
        ctx.save_for_backward(x, step_size, offset, weight)
        ctx.quantization, ctx.grad_scale = (bits, signed, activation), grad_scale
        ctx.has_bias, ctx.conv = bias is not None, conv
        return F.conv2d(quantized(x, step_size, offset, *ctx.quantization, weight.dtype), weight, bias, **conv)

    @staticmethod
    def backward(ctx, grad):
        x, step_size, offset, weight = ctx.saved_tensors
        x_hat = quantized(x, step_size, offset, *ctx.quantization, weight.dtype)
        wanted = (True, ctx.needs_input_grad[7], ctx.has_bias)
        grad_x_hat, grad_weight, grad_bias = _conv2d_backward(grad, x_hat, weight, ctx.conv, wanted)
        del x_hat
        by_quantizer = gradients(x, grad_x_hat, step_size, offset, *ctx.quantization, ctx.grad_scale, overwrite=True)
        return *by_quantizer, None, None, None, None, grad_weight, grad_bias, None


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
        [1, 1],  # dilation
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
        and len(weight) % 8 == 0
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and native.available()
    )


def _depthwise_weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, conv: dict[str, Any]) -> Tensor:
    """Gradient (C, 1, K, K) by the weight of x (N, C, H, W) depthwise convolved, given grad (N, C, H', W')."""
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    grad_weight = torch.empty(weight.shape)
    native.library().depthwise_weight_gradient(
        *(x.data_ptr(), grad.data_ptr(), grad_weight.data_ptr(), *x.shape, *grad.shape[2:]),
        *(weight.shape[-1], conv["stride"]),
    )
    return grad_weight
