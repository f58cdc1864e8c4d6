"""Fused fake-quantization: one autograd function that keeps only its input and the step size.

    h = activation(x)    v_hat = s * clamp(round(h / s), q_min, q_max)                    (LSQ, 1902.08153, eq. 1-2)

Divide, round half to even, then clamp: exactly what ONNX QuantizeLinear computes, so runtimes agree bit for bit. The
activation before the quantizer is part of the function: its result is neither written nor kept for the backward pass.
Backward is the straight-through estimator with LSQ's step-size gradient (eq. 3), times `grad_scale` (section 2.2):

    d v_hat / d h = 1 inside [q_min s, q_max s], else 0
    d v_hat / d s = round(h / s) - h / s inside, q_min or q_max outside

With an `offset` o (BatchQuant's zero point plus learned offset, 2105.08952) the code is clamp(round(h / s + o)) and
v_hat = s (code - o); its gradient is -s outside the grid and 0 inside. Computed relative to the whole number nearest to
o, which moves q_min and q_max instead, so that a whole offset is the zero point of QuantizeLinear, ties included.

Three implementations of the same formulas, computed in float32 for float32 and bfloat16 alike: on the CPU quantize.c,
equal bit for bit in the forward pass; on a GPU what torch.compile makes of `_forward` and `_backward` below, once for
all shapes and bit-widths; otherwise, as without a compiler, those two eagerly. ONCEQUANT_KERNELS chooses
(oncequant.native).
"""

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from oncequant import native


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
    """What a quantizer quantizes one tensor with: the arguments of `fake_quantize`."""

    step_size: Tensor
    offset: Tensor | None
    grad_scale: float
    bits: int
    signed: bool
    activation: str | None


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
    @once_differentiable
    def backward(ctx, grad):
        x, step_size, offset = ctx.saved_tensors
        return *gradients(x, grad, step_size, offset, *ctx.options), None, None, None, None


def quantized(
    x: Tensor,
    step_size: Tensor,
    offset: Tensor | None,
    bits: int,
    signed: bool,
    activation: str | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The values of `fake_quantize`, without a graph, in `dtype` (by default that of x)."""
    x = _dense(x)
    dtype = dtype or x.dtype
    if options := native_options(x, dtype, step_size, offset, bits, signed, activation):
        y = torch.empty_like(x, dtype=dtype)
        native.library().fake_quantize(
            x.data_ptr(), y.data_ptr(), x.numel(), step_size.data_ptr(), pointer(offset), options
        )
        return y
    forward, bounds = _kernels(x.device.type)[0], _bounds(bits, signed, x.device)
    return _like(forward(_flat(x), *_scalars(step_size, offset), *bounds, activation, dtype), x)


def gradients(
    x: Tensor,
    grad: Tensor,
    step_size: Tensor,
    offset: Tensor | None,
    bits: int,
    signed: bool,
    activation: str | None,
    grad_scale: float,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `fake_quantize` by x, step size and offset, given that by its values.

    With `overwrite` the memory of `grad` may become that of the first.
    """
    x = _dense(x)
    if grad.stride() != x.stride():
        grad, overwrite = torch.empty_like(x, dtype=grad.dtype).copy_(grad), True
    if options := native_options(x, grad.dtype, step_size, offset, bits, signed, activation):
        grad_x = grad if overwrite and grad.dtype == x.dtype else torch.empty_like(x)
        grad_step = torch.empty_like(step_size)
        grad_offset = None if offset is None else torch.empty_like(offset)
        native.library().fake_quantize_backward(
            *(x.data_ptr(), grad.data_ptr(), grad_x.data_ptr(), x.numel()),
            *(step_size.data_ptr(), pointer(offset), options),
            *(grad_scale, grad_step.data_ptr(), pointer(grad_offset)),
        )
        return grad_x, grad_step, grad_offset
    backward, bounds = _kernels(x.device.type)[1], _bounds(bits, signed, x.device)
    grad_x, grad_step, grad_offset = backward(_flat(x), _flat(grad), *_scalars(step_size, offset), *bounds, activation)
    grad_step = (grad_step * grad_scale).to(step_size.dtype).reshape(step_size.shape)
    grad_offset = None if offset is None else grad_offset.to(offset.dtype).reshape(offset.shape)
    return _like(grad_x, x), grad_step, grad_offset


# -- the formulas: flat x (n,), step size, offset and bounds ()


def _wide(x: Tensor) -> Tensor:
    """Half-precision numbers as float32, in which everything is computed."""
    return x.float() if x.dtype.itemsize < 4 else x


def _codes(u: Tensor, q_min: Tensor, q_max: Tensor, binary: Tensor) -> Tensor:
    sign = torch.where(u >= 0, 1.0, -1.0)  # the one grid without a zero
    return torch.where(binary, sign, u.round().clamp(q_min, q_max))


def _forward(x, step_size, offset, q_min, q_max, binary, activation: str | None, dtype: torch.dtype) -> Tensor:
    s, zero = step_size.abs(), offset.round()
    offset, q_min, q_max = offset - zero, q_min - zero, q_max - zero
    return ((_codes(activate(_wide(x), activation) / s + offset, q_min, q_max, binary) - offset) * s).to(dtype)


def _backward(x, grad, step_size, offset, q_min, q_max, binary, activation) -> tuple[Tensor, Tensor, Tensor]:
    dtype, x, grad, zero = x.dtype, _wide(x), _wide(grad), offset.round()
    offset, q_min, q_max = offset - zero, q_min - zero, q_max - zero
    u = activate(x, activation) / step_size.abs() + offset
    inside = (u >= q_min) & (u <= q_max)
    error = _codes(u, q_min, q_max, binary) - torch.where(inside, u, offset)
    grad_x = torch.where(inside, grad, 0.0)
    if activation == "relu":
        grad_x = torch.where(x > 0, grad_x, 0.0)
    elif activation == "hardswish":
        grad_x = grad_x * torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0))
    grad_offset = -step_size.abs() * torch.where(inside, 0.0, grad).sum()
    return grad_x.to(dtype), (error * grad).sum() * step_size.sign(), grad_offset


# -- which implementation runs


def native_options(
    x: Tensor, y_dtype: torch.dtype, step_size: Tensor, offset: Tensor | None, bits: int, signed: bool, activation
) -> native.Options | None:
    """How to call the kernels of oncequant.native, or None where they do not apply."""
    if step_size.numel() != 1 or (offset is not None and offset.numel() != 1):
        raise ValueError(
            "step size and offset are one number each, not of shape "
            f"{[tuple(s.shape) for s in (step_size, offset) if s is not None]}"
        )
    plain = x.is_cpu and step_size.is_cpu and step_size.dtype == torch.float32
    if offset is not None:
        plain = plain and offset.is_cpu and offset.dtype == torch.float32
    if not (plain and native.available()):
        return None
    return _kernel_options(x.dtype, y_dtype, bits, signed, activation)


@cache
def _kernel_options(
    x_dtype: torch.dtype, y_dtype: torch.dtype, bits: int, signed: bool, activation: str | None
) -> native.Options | None:
    half = torch.bfloat16
    if (x_dtype, y_dtype) not in ((torch.float32, torch.float32), (half, half), (half, torch.float32)):
        return None
    q_min, q_max = integer_range(bits, signed)
    is_half = x_dtype == half, y_dtype == half
    return native.Options(q_min, q_max, bits == 1 and signed, native.ACTIVATIONS[activation], *is_half)


def pointer(number: Tensor | None) -> int | None:
    """Where a tensor's numbers are."""
    return None if number is None else number.data_ptr()


@cache
def _kernels(device_type: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(forward, backward): compiled for a GPU if possible, otherwise the formulas themselves."""
    if device_type != "cuda" or native.choice() == "eager":
        return _forward, _backward
    from torch._inductor import list_options  # slow to import, and not needed on a CPU

    exact = "eager_numerics.division_rounding"  # Triton's division is off by an ulp or two otherwise
    options: dict[str, Any] | None = {exact: True} if exact in list_options() else None
    forward = torch.compile(_forward, dynamic=True, options=options)
    backward = torch.compile(_backward, dynamic=True, options=options)
    if native.choice() == "auto":  # compile now, so that a missing compiler shows here and not inside a training step
        try:
            x = torch.linspace(-1, 1, 96, device=device_type)
            step_size, offset = torch.tensor([0.1, 0.0], device=device_type).unbind()
            q_min, q_max, binary = _bounds(4, True, x.device)
            forward(x, step_size, offset, q_min, q_max, binary, None, x.dtype)
            backward(x, x.clone(), step_size, offset, q_min, q_max, binary, None)
        except Exception as error:  # whatever the compiler tool chain raises, the formulas run
            warnings.warn(f"fake-quantization runs eagerly (slower): torch.compile failed: {error}", stacklevel=2)
            return _forward, _backward
    return forward, backward


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
