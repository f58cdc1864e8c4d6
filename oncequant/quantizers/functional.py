"""Fused fake-quantization: one autograd function that keeps only its input and the step size.

    v_hat = s * clamp(round(v / s), q_min, q_max)                                        (LSQ, 1902.08153, eq. 1-2)

Divide, round half to even, then clamp: exactly what ONNX QuantizeLinear computes, so runtimes agree bit for bit.
Backward is the straight-through estimator with LSQ's step-size gradient (eq. 3), times `grad_scale` (section 2.2):

    d v_hat / d v = 1 inside [q_min s, q_max s], else 0
    d v_hat / d s = round(v / s) - v / s inside, q_min or q_max outside

The two kernels are elementwise functions of flat tensors, compiled once by torch.compile for all shapes and bit-widths
(the bounds are tensors). Without a C++ compiler they run eagerly, with equal values and several times slower;
the environment variable ONCEQUANT_KERNELS = auto (default) | compiled | eager chooses.
"""

import math
import os
import warnings
from functools import cache

import torch
from torch import Tensor


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """(q_min, q_max) of a grid. One-bit signed is the sign, {-1, 1}."""
    if bits == 1 and signed:
        return -1, 1
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def quantize(x: Tensor, step_size: Tensor, bits: int, signed: bool) -> Tensor:
    """Integer codes of x as floats, same shape; the step size enters by its absolute value."""
    return _codes(x / step_size.abs(), *_bounds(bits, signed, x.device))


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


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step_size, bits, signed, grad_scale):
        ctx.save_for_backward(x, step_size)
        ctx.bounds, ctx.grad_scale = _bounds(bits, signed, x.device), grad_scale
        dense = _dense(x)
        return _like(_kernels()[0](_flat(dense), step_size.detach().reshape(()), *ctx.bounds), dense)

    @staticmethod
    def backward(ctx, grad):
        x, step_size = ctx.saved_tensors
        dense = _dense(x)
        if grad.stride() != dense.stride():
            grad = torch.empty_like(dense).copy_(grad)
        grad_x, grad_step = _kernels()[1](_flat(dense), _flat(grad), step_size.detach().reshape(()), *ctx.bounds)
        return _like(grad_x, dense), (grad_step * ctx.grad_scale).reshape(step_size.shape), None, None, None


# -- kernels: flat x (n,), step size and bounds ()


def _codes(v: Tensor, q_min: Tensor, q_max: Tensor, binary: Tensor) -> Tensor:
    sign = torch.where(v >= 0, 1.0, -1.0)  # the one grid without a zero
    return torch.where(binary, sign, v.round().clamp(q_min, q_max))


def _forward_kernel(x: Tensor, step_size: Tensor, q_min: Tensor, q_max: Tensor, binary: Tensor) -> Tensor:
    s = step_size.abs()
    return _codes(x / s, q_min, q_max, binary) * s


def _backward_kernel(
    x: Tensor, grad: Tensor, step_size: Tensor, q_min: Tensor, q_max: Tensor, binary: Tensor
) -> tuple[Tensor, Tensor]:
    v = x / step_size.abs()
    inside = (v >= q_min) & (v <= q_max)
    error = _codes(v, q_min, q_max, binary) - torch.where(inside, v, 0.0)
    return torch.where(inside, grad, 0.0), (error * grad).sum() * step_size.sign()


@cache
def _kernels() -> tuple:
    """(forward, backward), compiled if possible; the choice is made once per process."""
    choice = os.environ.get("ONCEQUANT_KERNELS", "auto")
    if choice not in ("auto", "compiled", "eager"):
        raise ValueError(f"ONCEQUANT_KERNELS={choice!r}: use auto, compiled or eager")
    if choice == "eager":
        return _forward_kernel, _backward_kernel
    try:
        kernels = torch.compile(_forward_kernel, dynamic=True), torch.compile(_backward_kernel, dynamic=True)
        if choice == "auto":  # compile now, so that a missing compiler shows here and not inside a training step
            x, s = torch.linspace(-1, 1, 96), torch.tensor(0.1)
            kernels[0](x, s, *_bounds(4, True, x.device))
            kernels[1](x, x.clone(), s, *_bounds(4, True, x.device))
    except Exception as error:  # whatever the compiler tool chain raises, eager kernels work
        if choice == "compiled":
            raise
        warnings.warn(f"fake-quantization runs eagerly (slower): torch.compile failed: {error}", stacklevel=2)
        return _forward_kernel, _backward_kernel
    return kernels


@cache
def _bounds(bits: int, signed: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """q_min, q_max and "is the binary grid" as 0-dim tensors, so that a new bit-width compiles nothing."""
    q_min, q_max = integer_range(bits, signed)
    return (
        torch.tensor(float(q_min), device=device),
        torch.tensor(float(q_max), device=device),
        torch.tensor(bits == 1 and signed, device=device),
    )


def _dense(x: Tensor) -> Tensor:
    """x itself if its elements fill one block of memory in some order (as channels_last does), else a copy."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if channels_last or x.is_contiguous() else x.contiguous()


def _flat(x: Tensor) -> Tensor:
    """The elements of a dense tensor in memory order, shape (n,), sharing its memory.

    Not a view: torch.compile guards on the shape of a view's base and would compile for every new one.
    """
    return x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), (x.numel(),), (1,))


def _like(flat: Tensor, x: Tensor) -> Tensor:
    """Inverse of `_flat`."""
    return flat.as_strided(x.shape, x.stride())
