"""BatchQuant, and the running-range quantizer it is compared with. Bai et al., 2021. https://arxiv.org/abs/2105.08952

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
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from oncequant import native
from oncequant.distributed import world_size
from oncequant.quantizers.functional import Grid, activate, integer_range

TURNING_POINT, LEAST = -1.5, -0.375  # of h-swish


class NotCalibrated(RuntimeError):
    """A network is evaluated before the ranges of its activations were estimated."""


class BatchQuant(nn.Module):
    """Activation quantizer with the range of the batch in training and a calibrated one in evaluation.

    With `slots` there are as many learned scales and offsets, one for each bit-width and kernel size. In training mode
    nothing is stored, except that `observed`, if it is a list, gets (images, range) of every call. The stored range,
    NaN until it is calibrated, is that of one static subnet.
    """

    def __init__(self, slots: int | None = None):
        super().__init__()
        shape = () if slots is None else (slots,)
        self.scale = nn.Parameter(torch.zeros(shape))
        self.offset = nn.Parameter(torch.zeros(shape))
        self.register_buffer("range", torch.full((2,), math.nan))  # x_min, x_max
        self.synchronised = False  # the batch is that of all processes
        self.observed: list[tuple[int, Tensor]] | None = None

    def grid(
        self,
        x: Tensor,
        bits: int,
        signed: bool,
        slot: int | None = None,
        activation: str | None = None,
        norm: Tensor | None = None,
        shards: int = 1,
    ) -> Grid:
        """The grid for activation(x), x (N, C, ...); with `norm`, `conv.batch_norm_statistics`, x is before batch norm,
        and not read if the statistics have its extremes.

        Raises NotCalibrated in evaluation without a stored range.
        """
        if self.training:
            found = batch_range(x, activation, norm, self.synchronised and world_size() > 1)
            if self.observed is not None:
                self.observed.append((len(x), found))
        else:
            found = self.range
            if bool(found.isnan().any()):
                raise NotCalibrated(
                    "an activation range was never estimated: calibrate the subnet before its evaluation"
                )
        signed = signed and bits > 1  # the same values either way, but one-bit signed grids have no zero
        step_size, offset = _RangeGrid.apply(self.scale, self.offset, slot, found, bits, signed)
        return Grid(step_size, offset, 1.0, bits, signed, activation)

    @torch.no_grad()
    def initialise(self, x: Tensor, bits: int, signed: bool, slot: int | None = None) -> None:
        """Nothing to estimate: scale and offset start at 0, gamma at 1."""

    @torch.no_grad()
    def copy_slot(self, source: "BatchQuant", slot: int | None) -> None:
        """Take over one slot of another quantizer, and its range."""
        for mine, theirs in ((self.scale, source.scale), (self.offset, source.offset)):
            mine.copy_(theirs if slot is None else theirs[slot])
        self.range.copy_(source.range)

    @torch.no_grad()
    def fold_offset(self, bits: int, signed: bool) -> float:
        """Round Z + delta to a whole number of the grid, as integer kernels need, and return by how much it moves.

        For a static subnet with a calibrated range, before its batch norm is calibrated. Where nothing is negative
        (ReLU) the lowest code becomes zero, so that the grid does ReLU's work.
        """
        signed, none = signed and bits > 1, torch.zeros_like(self.offset)
        _, zero = _RangeGrid.apply(self.scale, none, _only(self.offset), self.range, bits, signed)
        whole = (zero + self.offset).round().clamp(*integer_range(bits, signed)) - zero
        whole = torch.where(self.range[0] < 0, whole, 0.0)
        moved = (whole - self.offset).abs().max().item()
        self.offset.copy_(whole)
        return moved


class RunningRange(nn.Module):
    """Activation quantizer with moving averages of the extremes of whole tensors and nothing learned.

    The usual choice for networks of one architecture; QFA's comparison. One pair of averages for each slot.
    """

    MOMENTUM = 0.01

    def __init__(self, slots: int | None = None):
        super().__init__()
        self.register_buffer("range", torch.full((slots or 1, 2), math.nan))

    def grid(
        self,
        x: Tensor,
        bits: int,
        signed: bool,
        slot: int | None = None,
        activation: str | None = None,
        norm: Tensor | None = None,
        shards: int = 1,
    ) -> Grid:
        """The grid for activation(x); training batches move the averages. Raises NotCalibrated."""
        stored = self.range[slot or 0]
        if self.training:
            with torch.no_grad():
                low, high = x.aminmax()
                if norm is not None:
                    raise ValueError("the running range needs the batch norm's result")
                low, high = _image(low, high, activation)
                now = torch.stack([low.clamp_max(0), high.clamp_min(0)]).float()
                stored.copy_(torch.where(stored.isnan(), now, stored + self.MOMENTUM * (now - stored)))
        elif bool(stored.isnan().any()):
            raise NotCalibrated("a running activation range was never updated: train the network first")
        zero = torch.zeros((), device=x.device)
        step_size, offset = _RangeGrid.apply(zero, zero, None, stored.clone(), bits, signed)
        return Grid(step_size, offset, 1.0, bits, signed, activation)

    @torch.no_grad()
    def initialise(self, x: Tensor, bits: int, signed: bool, slot: int | None = None) -> None:
        """Set a range from the values it will quantize."""
        self.range[slot or 0] = torch.stack([x.amin().clamp_max(0), x.amax().clamp_min(0)])

    @torch.no_grad()
    def copy_slot(self, source: "RunningRange", slot: int | None) -> None:
        """Take over one slot of another quantizer."""
        self.range.copy_(source.range[slot or 0][None])


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
    low, high = _image(low, high, activation)
    return torch.stack([low.mean().clamp_max(0), high.mean().clamp_min(0)])


def _image(low: Tensor, high: Tensor, activation: str | None) -> tuple[Tensor, Tensor]:
    """Extremes of the activation over [low, high]."""
    at_low, at_high = activate(low, activation), activate(high, activation)
    least = torch.minimum(at_low, at_high)
    if activation == "hardswish":
        least = torch.where((low < TURNING_POINT) & (high > TURNING_POINT), LEAST, least)
    return least, torch.maximum(at_low, at_high)


class _RangeGrid(torch.autograd.Function):
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
