"""Fused fake-quantization: one autograd function that keeps only its input and the step size.

    h = activation(x)    v_hat = s * clamp(round(h / s), q_min, q_max)                    (LSQ, 1902.08153, eq. 1-2)

Divide, round half to even, then clamp: exactly what ONNX QuantizeLinear computes, so runtimes agree bit for bit. The
activation before the quantizer is part of the function: its result is neither written nor kept for the backward pass.
Backward is the straight-through estimator with LSQ's step-size gradient (eq. 3), times `grad_scale` (section 2.2):

    d v_hat / d h = 1 inside [q_min s, q_max s], else 0
    d v_hat / d s = round(h / s) - h / s inside, q_min or q_max outside

With an `offset` o (BatchQuant's zero point plus learned offset, 2105.08952) the code is clamp(round(h / s + o)) and
v_hat = s (code - o); its gradient is -s outside the grid and 0 inside.

Three implementations of the same formulas: float32 on the CPU runs kernels.c, equal bit for bit in the forward pass; a
GPU runs what torch.compile makes of `_forward` and `_backward` below, once for all shapes and bit-widths; everything
else runs those two eagerly, as does a machine without a compiler. The environment variable
ONCEQUANT_KERNELS = auto (default) | compiled | eager chooses; with `compiled` a missing compiler is an error.
"""

import math
import os
import warnings
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from oncequant.quantizers import native


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """(q_min, q_max) of a grid. One-bit signed is the sign, {-1, 1}."""
    if bits == 1 and signed:
        return -1, 1
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def activate(x: Tensor, activation: str | None) -> Tensor:
    """relu, hardswish or (None) nothing."""
    return x if activation is None else F.relu(x) if activation == "relu" else F.hardswish(x)


def quantize(x: Tensor, step_size: Tensor, bits: int, signed: bool) -> Tensor:
    """Integer codes of x as floats, same shape; the step size enters by its absolute value."""
    return _codes(x / step_size.abs(), *_bounds(bits, signed, x.device))


def fake_quantize(
    x: Tensor,
    step_size: Tensor,
    bits: int,
    signed: bool,
    grad_scale: float = 1.0,
    offset: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Fake-quantized activation(x), same shape and dtype.

    Args:
        x: float tensor of any shape.
        step_size: one positive or negative number, shape () or (1,); used by its absolute value.
        bits: 1 to 8.
        signed: signed or unsigned grid.
        grad_scale: factor on the gradient of the step size.
        offset: one number added to h / s before rounding, shape () or (1,); 0 if None.
        activation: relu, hardswish or None, applied first.
    """
    return _FakeQuantize.apply(x, step_size, offset, bits, signed, grad_scale, activation)


class Grid(NamedTuple):
    """What a quantizer quantizes one input with."""

    step_size: Tensor
    offset: Tensor | None
    grad_scale: float


def initial_step_size(x: Tensor, bits: int, signed: bool) -> Tensor:
    """LSQ's start value 2 mean|x| / sqrt(q_max), shape ()."""
    return 2 * x.detach().abs().mean() / math.sqrt(integer_range(bits, signed)[1])


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step_size, offset, bits, signed, grad_scale, activation):
        ctx.save_for_backward(x, step_size, offset)
        ctx.options = bits, signed, activation, grad_scale
        return quantized(x, step_size, offset, bits, signed, activation)

    @staticmethod
    def backward(ctx, grad):
        x, step_size, offset = ctx.saved_tensors
        return *gradients(x, grad, step_size, offset, *ctx.options), None, None, None, None


def quantized(
    x: Tensor, step_size: Tensor, offset: Tensor | None, bits: int, signed: bool, activation: str | None
) -> Tensor:
    """The values of `fake_quantize`, without a graph."""
    x = _dense(x)
    if _is_native(x, step_size, offset):
        y = torch.empty_like(x)
        kernel = native.library().fake_quantize
        kernel(x.data_ptr(), y.data_ptr(), x.numel(), *_native_grid(step_size, offset, bits, signed, activation))
        return y
    forward, bounds = _kernels(x.device.type)[0], _bounds(bits, signed, x.device)
    return _like(forward(_flat(x), *_scalars(step_size, offset), *bounds, activation), x)


def gradients(
    x: Tensor,
    grad: Tensor,
    step_size: Tensor,
    offset: Tensor | None,
    bits: int,
    signed: bool,
    activation: str | None,
    grad_scale: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `fake_quantize` by x, step size and offset, given that by its values."""
    x = _dense(x)
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    if _is_native(x, step_size, offset):
        grad_x, grad_step = torch.empty_like(x), torch.empty_like(step_size)
        grad_offset = None if offset is None else torch.empty_like(offset)
        kernel = native.library().fake_quantize_backward
        kernel(
            *(x.data_ptr(), grad.data_ptr(), grad_x.data_ptr(), x.numel()),
            *_native_grid(step_size, offset, bits, signed, activation),
            *(grad_scale, grad_step.data_ptr(), None if offset is None else grad_offset.data_ptr()),
        )
        return grad_x, grad_step, grad_offset
    backward, bounds = _kernels(x.device.type)[1], _bounds(bits, signed, x.device)
    grad_x, grad_step, grad_offset = backward(_flat(x), _flat(grad), *_scalars(step_size, offset), *bounds, activation)
    grad_step = (grad_step * grad_scale).to(step_size.dtype).reshape(step_size.shape)
    grad_offset = None if offset is None else grad_offset.to(offset.dtype).reshape(offset.shape)
    return _like(grad_x, x), grad_step, grad_offset


# -- the formulas: flat x (n,), step size, offset and bounds ()


def _codes(u: Tensor, q_min: Tensor, q_max: Tensor, binary: Tensor) -> Tensor:
    sign = torch.where(u >= 0, 1.0, -1.0)  # the one grid without a zero
    return torch.where(binary, sign, u.round().clamp(q_min, q_max))


def _forward(x, step_size, offset, q_min, q_max, binary, activation: str | None) -> Tensor:
    s = step_size.abs()
    return ((_codes(activate(x, activation) / s + offset, q_min, q_max, binary) - offset) * s).to(x.dtype)


def _backward(x, grad, step_size, offset, q_min, q_max, binary, activation) -> tuple[Tensor, Tensor, Tensor]:
    u = activate(x, activation) / step_size.abs() + offset
    inside = (u >= q_min) & (u <= q_max)
    error = _codes(u, q_min, q_max, binary) - torch.where(inside, u, offset)
    grad_x = torch.where(inside, grad, 0.0)
    if activation == "relu":
        grad_x = torch.where(x > 0, grad_x, 0.0)
    elif activation == "hardswish":
        grad_x = grad_x * torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0))
    grad_offset = -step_size.abs() * torch.where(inside, 0.0, grad).sum()
    return grad_x.to(x.dtype), (error * grad).sum() * step_size.sign(), grad_offset


# -- which implementation runs


@cache
def _choice() -> str:
    """The value of ONCEQUANT_KERNELS, read once per process."""
    choice = os.environ.get("ONCEQUANT_KERNELS", "auto")
    if choice not in ("auto", "compiled", "eager"):
        raise ValueError(f"ONCEQUANT_KERNELS={choice!r}: use auto, compiled or eager")
    return choice


@cache
def _native_available() -> bool:
    if _choice() == "eager":
        return False
    try:
        native.library()
    except native.BuildError as error:
        if _choice() == "compiled":
            raise
        warnings.warn(f"fake-quantization runs eagerly (slower): {error}", stacklevel=2)
        return False
    return True


def _is_native(x: Tensor, step_size: Tensor, offset: Tensor | None) -> bool:
    scalars = (step_size,) if offset is None else (step_size, offset)
    if any(s.numel() != 1 for s in scalars):
        raise ValueError(f"step size and offset are one number each, not of shape {[tuple(s.shape) for s in scalars]}")
    fitting = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x, *scalars))
    return fitting and _native_available()


@cache
def _kernels(device_type: str) -> tuple:
    """(forward, backward): compiled for a GPU if possible, otherwise the formulas themselves."""
    if device_type != "cuda" or _choice() == "eager":
        return _forward, _backward
    from torch._inductor import list_options  # slow to import, and not needed on a CPU

    exact = "eager_numerics.division_rounding"  # Triton's division is off by an ulp or two otherwise
    options = {exact: True} if exact in list_options() else None
    kernels = tuple(torch.compile(f, dynamic=True, options=options) for f in (_forward, _backward))
    if _choice() == "auto":  # compile now, so that a missing compiler shows here and not inside a training step
        try:
            x, s = torch.linspace(-1, 1, 96, device=device_type), torch.tensor([0.1, 0.0], device=device_type)
            grid = *s.unbind(), *_bounds(4, True, x.device), None
            kernels[0](x, *grid)
            kernels[1](x, x.clone(), *grid)
        except Exception as error:  # whatever the compiler tool chain raises, the formulas run
            warnings.warn(f"fake-quantization runs eagerly (slower): torch.compile failed: {error}", stacklevel=2)
            return _forward, _backward
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


def _scalars(step_size: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Step size and offset as 0-dim tensors."""
    step_size = step_size.detach().reshape(())
    return step_size, torch.zeros_like(step_size) if offset is None else offset.detach().reshape(())


def _native_grid(step_size: Tensor, offset: Tensor | None, bits: int, signed: bool, activation: str | None) -> tuple:
    """The struct Grid of kernels.c as the arguments that make it."""
    q_min, q_max = integer_range(bits, signed)
    offset_pointer = None if offset is None else offset.data_ptr()
    return step_size.data_ptr(), offset_pointer, q_min, q_max, bits == 1 and signed, native.ACTIVATIONS[activation]


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
