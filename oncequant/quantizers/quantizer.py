"""What every quantizer is: the contract between layers, methods, calibration, export and the quantizers.

A quantizer belongs to the weights or the inputs of one layer. It answers one question, which uniform grid a tensor gets
under the circumstances (`Ask`); how values are put on a grid is in `functional`. Whatever else the rest of the package
wants to know has a default body here, so that nothing asks for the class of a quantizer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from oncequant.quantizers.functional import Grid, fake_quantize, quantize


class Ask(NamedTuple):
    """What a quantizer is asked for: under which circumstances a tensor is quantized."""

    bits: int
    """1 to 8."""
    signed: bool
    """Whether the grid has negative values."""
    slot: int | None = None
    """Which of the quantizer's parameters; None if it has one set for all bit-widths and kernel sizes."""
    activation: str | None = None
    """relu, hardswish or None: applied to the tensor before it is quantized."""
    statistics: Tensor | None = None
    """`join.batch_norm_statistics`: the tensor is given as it is before this batch norm, which comes first."""
    of_batch: bool = False
    """The tensor is a training batch; a range may be taken from it. Else stored ranges hold."""
    shards: int = 1
    """Processes whose tensors together are one batch."""
    synchronised: bool = False
    """A range is taken from the batch of all of them."""
    observe: Callable[["Quantizer", int, Tensor], None] | None = None
    """Gets (quantizer, images, range) where a range is taken from the batch."""


class Quantizer(nn.Module, ABC):
    """Fake-quantizer of the weights or of the inputs of one layer.

    Made as `kind(slots, channels)`. With `slots` it has as many sets of parameters, one for each bit-width and kernel
    size; with None one for all. `channels` are the layer's output channels. Parameters that need values to start from
    are NaN until `initialise` or a checkpoint sets them.
    """

    needs_result: ClassVar[bool] = False
    """`grid` reads the result of a batch norm before it, so that the batch norm cannot be left to the convolution."""
    needs_extremes: ClassVar[bool] = False
    """`Ask.statistics` must have the extremes of each channel (`batch_norm_statistics(extremes=True)`)."""
    is_settled: ClassVar[bool] = False
    """What is stored for evaluation is estimated from images when a subnet is calibrated: `settle`."""
    is_power_of_two: ClassVar[bool] = False
    """The step sizes of its grids are powers of two."""
    counts_batches: ClassVar[bool] = False
    """Every training batch moves what is stored: it must not be computed twice, nor in several processes."""

    @abstractmethod
    def __init__(self, slots: int | None = None, channels: int = 1):
        super().__init__()

    @abstractmethod
    def grid(self, x: Tensor, ask: Ask) -> Grid:
        """The grid for activation(x), for what `prepare` returned; x (N, C, ...) of inputs, (C_out, C_in, K, K) of
        weights. Its step size and offset have gradients to what is learned. Raises NotCalibrated."""

    def prepare(self, x: Tensor, ask: Ask) -> tuple[Tensor, Ask]:
        """Tensor and circumstances as `grid` and `fake_quantize` are to see them."""
        return x, ask

    def forward(self, x: Tensor, ask: Ask) -> Tensor:
        """Fake-quantized activation(x) of the same shape."""
        x, ask = self.prepare(x, ask)
        step_size, offset, grad_scale, bits, signed, activation = self.grid(x, ask)
        return fake_quantize(x, step_size, bits, signed, grad_scale, offset, activation)

    @torch.no_grad()
    def initialise(self, x: Tensor, ask: Ask) -> None:
        """Set the parameters of a slot from the values that it will quantize. Default: nothing to set."""

    @torch.no_grad()
    def copy_slot(self, source: "Quantizer", slot: int | None, channels: int) -> None:
        """Take over one slot of another quantizer of the same kind, for its first `channels` output channels. Default:
        nothing to take over."""

    @torch.no_grad()
    def drop_bits(self, fewer: int) -> None:
        """Bit inheritance (OQAT): adapt to so many bits fewer. Default: nothing to do, as where a range is kept."""

    @torch.no_grad()
    def settle(self, found: Sequence[tuple[int, Tensor]], ask: Ask, fold: bool) -> None:
        """Keep, for evaluation, what was observed: (images, range) of some batches; with `fold` on a grid whose zero
        point is whole, as integer kernels need. Only of quantizers that say `is_settled`."""

    def penalty(self) -> Tensor | None:
        """Term of the loss that keeps what is learned small, 0-dim, before its weight; None if there is none."""
        return None

    def free_offsets(self) -> tuple[nn.Parameter, ...]:
        """Learned parts of zero points, which need not be whole numbers."""
        return ()

    @torch.no_grad()
    def levels(self, weight: Tensor, ask: Ask) -> tuple[Tensor, Tensor, bool]:
        """What integer kernels are given for weights (C_out, C_in, K, K): codes as floats of the same shape; step size,
        () or (C_out,); whether the codes are odd numbers, -(2^b - 1) to 2^b - 1, else -2^(b-1) to 2^(b-1) - 1."""
        step_size = self.grid(*self.prepare(weight, ask)).step_size.detach().abs()
        return quantize(weight, step_size, ask.bits, True), step_size, ask.bits == 1


class NotCalibrated(RuntimeError):
    """A network is evaluated before the ranges of its activations were estimated."""


def new_parameter(slots: int | None, value: float, *shape: int) -> nn.Parameter:
    """A parameter of `shape`, or with slots (slots, *shape), full of `value`."""
    return nn.Parameter(torch.full(shape if slots is None else (slots, *shape), value))


def of_slot(parameter: Tensor, slot: int | None) -> Tensor:
    """The part of a parameter that belongs to a slot."""
    return parameter if slot is None else parameter[slot]
