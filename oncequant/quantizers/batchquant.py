"""BatchQuant. Bai et al., 2021. https://arxiv.org/abs/2105.08952

The range of an activation x (N, C, H, W) is estimated from the batch, without gradient: the mean over channels of each
channel's extremes, which one outlier moves little and which belongs to the subnet and resolution that is run.

    x_min = min(0, mean_c min_nhw x)    S = (x_max - x_min) / (q_max - q_min)    Z = clamp(q_min - round(x_min / S))
    gamma = log2(1 + 2^p)               q = clamp(round(x gamma / S + Z + delta), q_min, q_max)
    x_hat = (q - Z - delta) S / gamma

Symbols.  p: scale   delta: offset (both learned, one for each bit-width and kernel size: slot)
          S / gamma and Z + delta: step size and offset of a `Grid`

The range of h-swish(x) in a channel is taken from the range of x in it: where that contains -1.5, the least value is
-0.375 even if no x is exactly -1.5. Otherwise this is the official formula.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from oncequant import native
from oncequant.distributed import world_size
from oncequant.quantizers.functional import Grid, activate, integer_range
from oncequant.quantizers.quantizer import Ask, NotCalibrated, Quantizer, new_parameter, of_slot

TURNING_POINT, LEAST = -1.5, -0.375  # of h-swish


class BatchQuant(Quantizer):
    """Activation quantizer with the range of the batch in training and a calibrated one in evaluation.

    With `slots` there are as many learned scales and offsets, one for each bit-width and kernel size. Training stores
    nothing. The stored range, NaN until a static subnet is calibrated, is that subnet's.
    """

    needs_extremes = True
    is_settled = True
    range: Tensor

    def __init__(self, slots: int | None = None, channels: int = 1):
        super().__init__()
        self.scale = new_parameter(slots, 0.0)
        self.offset = new_parameter(slots, 0.0)
        self.register_buffer("range", torch.full((2,), math.nan))  # x_min, x_max

    def grid(self, x: Tensor, ask: Ask) -> Grid:
        """The grid for activation(x), x (N, C, ...); with statistics x is before batch norm, and not read.

        Raises NotCalibrated in evaluation without a stored range.
        """
        found = self.range
        if ask.of_batch:
            found = batch_range(x, ask.activation, ask.statistics, ask.synchronised and world_size() > 1)
            if ask.observe is not None:
                ask.observe(self, len(x), found)
        elif bool(found.isnan().any()):
            raise NotCalibrated("an activation range was never estimated: calibrate the subnet before its evaluation")
        signed = ask.signed and ask.bits > 1  # the same values either way, but one-bit signed grids have no zero
        step_size, offset = RangeGrid.apply(self.scale, self.offset, ask.slot, found, ask.bits, signed)
        return Grid(step_size, offset, 1.0, ask.bits, signed, ask.activation)

    @torch.no_grad()
    def copy_slot(self, source: Quantizer, slot: int | None, channels: int) -> None:
        """Take over one slot of another quantizer, and its range."""
        assert isinstance(source, BatchQuant)
        self.scale.copy_(of_slot(source.scale, slot))
        self.offset.copy_(of_slot(source.offset, slot))
        self.range.copy_(source.range)

    def free_offsets(self) -> tuple[nn.Parameter, ...]:
        """delta."""
        return (self.offset,)

    @torch.no_grad()
    def settle(self, found: Sequence[tuple[int, Tensor]], ask: Ask, fold: bool) -> None:
        """The mean range, weighted by images."""
        total = sum(count for count, _ in found)
        weighted = [count * one for count, one in found]
        self.range.copy_(sum(weighted[1:], weighted[0]) / total)
        if fold:
            self.fold_offset(ask.bits, ask.signed)

    @torch.no_grad()
    def fold_offset(self, bits: int, signed: bool) -> float:
        """Round Z + delta to a whole number of the grid, as integer kernels need, and return by how much it moves.

        For a static subnet with a calibrated range, before its batch norm is calibrated. Where nothing is negative
        (ReLU) the lowest code becomes zero, so that the grid does ReLU's work.
        """
        signed, none = signed and bits > 1, torch.zeros_like(self.offset)
        _, zero = RangeGrid.apply(self.scale, none, _only(self.offset), self.range, bits, signed)
        whole = (zero + self.offset).round().clamp(*integer_range(bits, signed)) - zero
        whole = torch.where(self.range[0] < 0, whole, 0.0)
        moved = (whole - self.offset).abs().max().item()
        self.offset.copy_(whole)
        return moved


@torch.no_grad()
def batch_range(x: Tensor, activation: str | None, norm: Tensor | None, of_all_processes: bool) -> Tensor:
    """x_min <= 0 <= x_max of activation(x), x (N, C, ...), as said at the top; shape (2,), float32."""
    channels = x.shape[1]
    if norm is not None and len(norm) == 6:
        low, high = norm[4], norm[5]
    elif x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) and x.numel() and native.available():
        x = x if x.dim() != 4 else x.contiguous(memory_format=torch.channels_last)
        low, high = torch.empty(2, channels, dtype=torch.float32).unbind()
        had_memory = native.library().channel_extremes(
            *(x.data_ptr(), x.dtype == torch.bfloat16, x.numel() // channels, channels),
            *(low.data_ptr(), high.data_ptr()),
        )
        if not had_memory:
            raise MemoryError("not enough memory for the extremes of an activation")
    else:
        positions = [d for d in range(x.dim()) if d != 1]
        low, high = x.amin(positions).float(), x.amax(positions).float()
    if of_all_processes:
        if norm is not None:  # each process may have batch norm's statistics of its own part
            ends = low * norm[2] + norm[3], high * norm[2] + norm[3]
            low, high, norm = torch.minimum(*ends), torch.maximum(*ends), None
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
    if low.is_cpu and native.available():
        found = torch.empty(2, dtype=torch.float32)
        scale, shift = (None, None) if norm is None else (norm[2].data_ptr(), norm[3].data_ptr())
        native.library().mean_range(
            *(low.data_ptr(), high.data_ptr(), channels, scale, shift, native.ACTIVATIONS[activation]),
            found.data_ptr(),
        )
        return found
    if norm is not None:
        ends = low * norm[2] + norm[3], high * norm[2] + norm[3]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
    low, high = image_of(low, high, activation)
    return torch.stack([low.mean().clamp_max(0), high.mean().clamp_min(0)])


def image_of(low: Tensor, high: Tensor, activation: str | None) -> tuple[Tensor, Tensor]:
    """Extremes of the activation over [low, high]."""
    at_low, at_high = activate(low, activation), activate(high, activation)
    least = torch.minimum(at_low, at_high)
    if activation == "hardswish":
        least = torch.where((low < TURNING_POINT) & (high > TURNING_POINT), LEAST, least)
    return least, torch.maximum(at_low, at_high)


class RangeGrid(torch.autograd.Function):
    """(S / gamma, Z + delta) of one slot, 0-dim, with gradients by the learned scale p and offset delta."""

    @staticmethod
    def forward(ctx, scale, offset, slot, found, bits, signed):
        ctx.slot, ctx.shape = slot, scale.shape
        if all(t.is_cpu and t.dtype == torch.float32 for t in (found, scale, offset)) and native.available():
            step_size, zero, by_scale = (torch.empty((), dtype=torch.float32) for _ in range(3))
            native.library().range_grid(
                *(found.data_ptr(), scale.data_ptr(), offset.data_ptr(), slot or 0, _bounds(bits, signed)),
                *(step_size.data_ptr(), zero.data_ptr(), by_scale.data_ptr()),
            )
        else:
            p, delta = (scale, offset) if slot is None else (scale[slot], offset[slot])
            q_min, q_max = integer_range(bits, signed)
            width = found[1] - found[0]
            step_size = torch.where(width > 0, (width / (q_max - q_min)).clamp_min(torch.finfo(torch.float32).eps), 1.0)
            zero = torch.where(width > 0, (q_min - (found[0] / step_size).round()).clamp(q_min, q_max), 0.0)
            power = torch.exp2(p)
            gamma = torch.log2(1 + power)
            step_size, zero = step_size / gamma, zero + delta
            by_scale = -step_size / gamma * power / (1 + power)
        ctx.save_for_backward(by_scale)
        return step_size, zero

    @staticmethod
    @once_differentiable
    def backward(ctx, by_step, by_zero):
        (by_scale,) = ctx.saved_tensors
        by_scale = by_scale * by_step
        if ctx.slot is None:
            return by_scale.reshape(ctx.shape), by_zero.reshape(ctx.shape), None, None, None, None
        grad_scale, grad_offset = by_scale.new_zeros(ctx.shape), by_zero.new_zeros(ctx.shape)
        grad_scale[ctx.slot], grad_offset[ctx.slot] = by_scale, by_zero
        return grad_scale, grad_offset, None, None, None, None


def _only(parameter: Tensor) -> int | None:
    """The one slot of a static subnet's quantizer."""
    return None if parameter.dim() == 0 else 0


@cache
def _bounds(bits: int, signed: bool) -> native.Options:
    q_min, q_max = integer_range(bits, signed)
    return native.Options(q_min, q_max, False, 0, False, False)
