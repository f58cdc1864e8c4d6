"""Fused fake-quantization: one autograd function that keeps only its input and the step size.

    v_hat = s * clamp(round(v / s), q_min, q_max)                                        (LSQ, 1902.08153, eq. 1-2)

Divide, round half to even, then clamp: exactly what ONNX QuantizeLinear computes, so runtimes agree bit for bit.
Backward is the straight-through estimator with LSQ's step-size gradient (eq. 3), times `grad_scale` (eq. 2.2):

    d v_hat / d v = 1 inside [q_min s, q_max s], else 0
    d v_hat / d s = round(v / s) - v / s inside, q_min or q_max outside
"""

import math

import torch
from torch import Tensor


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """(q_min, q_max) of a grid. One-bit signed is the sign, {-1, 1}."""
    if bits == 1 and signed:
        return -1, 1
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def quantize(x: Tensor, step_size: Tensor, bits: int, signed: bool) -> Tensor:
    """Integer codes of x as floats, same shape; the step size enters by its absolute value."""
    q_min, q_max = integer_range(bits, signed)
    if bits == 1 and signed:
        return torch.where(x >= 0, 1.0, -1.0)
    return (x / step_size.abs()).round_().clamp_(q_min, q_max)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step_size, bits, signed, grad_scale):
        ctx.save_for_backward(x, step_size)
        ctx.bits, ctx.signed, ctx.grad_scale = bits, signed, grad_scale
        return quantize(x, step_size, bits, signed).mul_(step_size.abs())

    @staticmethod
    def backward(ctx, grad):
        x, step_size = ctx.saved_tensors
        q_min, q_max = integer_range(ctx.bits, ctx.signed)
        scaled = x / step_size.abs()
        inside = (scaled >= q_min) & (scaled <= q_max)
        grad_x = grad * inside
        level = torch.where(x >= 0, 1.0, -1.0) if q_min == -1 and q_max == 1 else scaled.round().clamp_(q_min, q_max)
        grad_step = (level.sub_(scaled.mul_(inside)).mul_(grad)).sum() * (ctx.grad_scale * step_size.sign())
        return grad_x, grad_step.reshape(step_size.shape), None, None, None


def fake_quantize(x: Tensor, step_size: Tensor, bits: int, signed: bool, grad_scale: float = 1.0) -> Tensor:
    """Fake-quantized x, same shape and dtype.

    Args:
        x: float tensor of any shape.
        step_size: one positive or negative number, shape () or (1,); used by its absolute value.
        bits: 1 to 8.
        signed: signed or unsigned grid.
        grad_scale: factor on the gradient of the step size.
    """
    return _FakeQuantize.apply(x, step_size, bits, signed, grad_scale)


def initial_step_size(x: Tensor, bits: int, signed: bool) -> Tensor:
    """LSQ's start value 2 mean|x| / sqrt(q_max), shape ()."""
    return 2 * x.detach().abs().mean() / math.sqrt(integer_range(bits, signed)[1])
