"""All that is between two convolutions in a training step, in one: batch norm, a sum, an activation, fake-quantization.

Where a branch of a residual network meets its shortcut, PyTorch writes and reads a map of numbers for every batch norm,
the sum, the activation and each grid behind it, and again in the backward pass; there it also adds up the gradients of
all layers that read the result. Here (native/join.c) maps are read and written once, for all readers together. Computed
in float32 for float32 and bfloat16 alike. On the CPU only; it cannot be differentiated twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from oncequant import native
from oncequant.quantizers.functional import Grid, integer_range, pointer


class Normalized(NamedTuple):
    """A tensor (N, C, H, W) that training batch norm is to be applied to."""

    z: Tensor
    weight: Tensor
    """(C,)"""
    bias: Tensor
    """(C,)"""
    statistics: Tensor
    """`batch_norm_statistics` of z and these."""


class Reader(NamedTuple):
    """What one of those that read the result wants: x itself, or x on its grid."""

    grid: Grid | None = None
    """Its activation has no meaning here."""
    dtype: torch.dtype | None = None
    """float32 or bfloat16; by default that of z."""


def join(
    first: Normalized, other: Normalized | Tensor | None, activation: str | None, readers: Sequence[Reader]
) -> tuple[Tensor, ...]:
    """x = activation(batch_norm(first) + other), (N, C, H, W), for every reader: x or fake_quantize(x).

    `other` is normalised, too, or added as it is, or nothing. Each reader's gradient comes back separately. Raises
    ValueError where `can_join` says no.
    """
    z = other.z if isinstance(other, Normalized) else other
    grids = [reader.grid for reader in readers if reader.grid]
    if (
        not can_join(first.z, z, *(number for grid in grids for number in grid[:2]))
        or len(readers) > native.MAX_READERS
    ):
        raise ValueError(
            f"{tuple(first.z.shape)} {first.z.dtype} on {first.z.device} for {len(readers)} readers cannot be joined"
        )
    rest = other[1:] if isinstance(other, Normalized) else (None, None, None)
    how = [_how(reader, first.z.dtype) for reader in readers]
    numbers = [number for reader in readers for number in (reader.grid[:2] if reader.grid else (None, None))]
    return _Join.apply(*first, z, *rest, activation, how, *numbers)


def can_join(z: Tensor, other: Tensor | None = None, *numbers: Tensor | None) -> bool:
    """Whether `join` takes tensors like these, and grids or batch norms with these numbers."""
    plain = all(n is None or (n.is_cpu and n.dtype == torch.float32 and n.is_contiguous()) for n in numbers)
    fitting = z.is_cpu and z.dtype in (torch.float32, torch.bfloat16) and z.dim() == 4 and z.numel() > z.shape[1]
    like = other is None or (other.shape, other.dtype, other.device) == (z.shape, z.dtype, z.device)
    return plain and fitting and like and native.available()


@torch.no_grad()
def batch_norm_statistics(z: Tensor, weight: Tensor, bias: Tensor, eps: float, extremes: bool = False) -> Tensor:
    """Of z (N, C, H, W): mean, 1 / standard deviation, scale and shift, so that batch norm is z scale + shift: (4, C).

    With `extremes` also the least and the greatest z of each channel: (6, C). Without a graph: `join` has the
    gradients. Needs what `can_join` asks for.
    """
    z, channels = z.contiguous(memory_format=torch.channels_last), z.shape[1]
    statistics = torch.empty(6 if extremes else 4, channels, dtype=torch.float32, device="cpu")
    _check_memory(
        native.library().batch_norm_statistics(
            *(z.data_ptr(), z.dtype == torch.bfloat16, z.numel() // channels, channels),
            *(weight.data_ptr(), bias.data_ptr(), eps, statistics.data_ptr(), extremes),
        )
    )
    return statistics


How = tuple[torch.dtype, native.Options, float]  # of a reader: type, grid, factor on the gradient of its step size


def _how(reader: Reader, dtype: torch.dtype) -> How:
    dtype, grid = reader.dtype or dtype, reader.grid
    q_min, q_max = integer_range(grid.bits, grid.signed) if grid else (0, 0)
    is_binary = grid is not None and grid.bits == 1 and grid.signed
    options = native.Options(q_min, q_max, is_binary, 0, False, dtype == torch.bfloat16)
    return dtype, options, grid.grad_scale if grid else 0.0


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, z, weight, bias, statistics, other, other_weight, other_bias, other_statistics, activation, how, *numbers
    ):
        z = z.contiguous(memory_format=torch.channels_last)
        other = None if other is None else other.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(z, other, statistics, other_statistics, *numbers)
        ctx.how, ctx.kind = how, (native.ACTIVATIONS[activation], z.dtype == torch.bfloat16)
        made: dict[object, Tensor] = {}  # those that read x itself share it
        ys = []
        for i, (dtype, _, _) in enumerate(how):
            key = dtype if numbers[2 * i] is None else i
            ys.append(made[key].detach() if key in made else made.setdefault(key, torch.empty_like(z, dtype=dtype)))
        readers = _readers(how, numbers, [y.data_ptr() for y in ys])
        _check_memory(
            native.library().join(
                *(z.data_ptr(), pointer(other), z.numel() // z.shape[1], z.shape[1], statistics.data_ptr()),
                *(pointer(other_statistics), *ctx.kind, readers, len(how)),
            )
        )
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        z, other, statistics, other_statistics, *numbers = ctx.saved_tensors
        given = [grad.contiguous(memory_format=torch.channels_last) for grad in grads]
        grad_z, grad_norm = torch.empty_like(z), statistics.new_empty(3, z.shape[1])
        grad_other = None if other is None else torch.empty_like(z)
        grad_numbers = [None if number is None else torch.empty_like(number) for number in numbers]
        readers = _readers(ctx.how, numbers, [grad.data_ptr() for grad in given], grad_numbers)
        _check_memory(
            native.library().join_backward(
                *(z.data_ptr(), pointer(other), grad_z.data_ptr(), pointer(grad_other)),
                *(z.numel() // z.shape[1], z.shape[1], statistics.data_ptr(), pointer(other_statistics)),
                *(*ctx.kind, readers, len(ctx.how), grad_norm.data_ptr()),
            )
        )
        by_bias, by_weight, by_other_weight = grad_norm
        by_other = (None, None) if other_statistics is None else (by_other_weight, by_bias.clone())
        return grad_z, by_weight, by_bias, None, grad_other, *by_other, None, None, None, *grad_numbers


def _readers(
    how: list[How], numbers: Sequence[Tensor | None], ys: list[int], grads: Sequence[Tensor | None] = ()
) -> object:
    """The array that join.c gets; `numbers` are step size and offset of each."""
    array = (native.Reader * max(1, len(how)))()
    for i, (_, options, grad_scale) in enumerate(how):
        array[i] = native.Reader(
            *(ys[i], pointer(numbers[2 * i]), pointer(numbers[2 * i + 1]), options, grad_scale),
            *((pointer(grads[2 * i]), pointer(grads[2 * i + 1])) if grads else (None, None)),
        )
    return array


def _check_memory(had_memory: int) -> None:
    if not had_memory:
        raise MemoryError("not enough memory for the sums of a batch norm")
