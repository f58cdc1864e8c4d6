"""Learned step size quantization (LSQ). Esser et al., 2019. https://arxiv.org/abs/1902.08153

One learned step size `s` per tensor. In OQAT (2010.04354) the step of a layer is shared by all subnets that pass
through it; in QFA (2105.08952) a layer has one for each bit-width and kernel size, its slots.
"""

import math

import torch
from torch import Tensor, nn

from oncequant.quantizers.functional import Grid, fake_quantize, initial_step_size, integer_range, quantize


class LSQ(nn.Module):
    """Fake-quantizer with learned step sizes: one of shape (), or with `slots` as many, (slots,).

    They start as NaN: they must be initialised from data (`initialise`) or loaded, and forgetting either shows at once
    instead of training on an arbitrary grid.
    """

    def __init__(self, slots: int | None = None):
        super().__init__()
        self.step_size = nn.Parameter(torch.full(() if slots is None else (slots,), float("nan")))

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
        """The grid for activation(x) with LSQ's gradient scale 1 / sqrt(numel(x) shards q_max).

        `shards`: the number of processes whose inputs together are one batch. `norm` is not needed.
        """
        scale = 1 / math.sqrt(max(1, x.numel()) * shards * integer_range(bits, signed)[1])
        return Grid(self._step(slot), None, scale, bits, signed, activation)

    def forward(
        self, x: Tensor, bits: int, signed: bool, slot: int | None = None, activation: str | None = None
    ) -> Tensor:
        """Fake-quantized activation(x) of the same shape."""
        step_size, offset, grad_scale, *_ = self.grid(x, bits, signed, slot)
        return fake_quantize(x, step_size, bits, signed, grad_scale, offset, activation)

    @torch.no_grad()
    def deployed(self, weight: Tensor, bits: int, slot: int | None = None) -> tuple[Tensor, Tensor, bool]:
        """(codes as floats, step size, whether the codes are odd numbers): what integer kernels are given."""
        step_size = self._step(slot).detach().abs()
        return quantize(weight, step_size, bits, True), step_size, bits == 1

    @torch.no_grad()
    def initialise(self, x: Tensor, bits: int, signed: bool, slot: int | None = None) -> None:
        """Set a step size from the values it will quantize."""
        self._step(slot).copy_(initial_step_size(x, bits, signed).clamp_min(1e-8))

    @torch.no_grad()
    def copy_slot(self, source: "LSQ", slot: int | None) -> None:
        """Take over one slot of another quantizer."""
        self.step_size.copy_(source._step(slot))

    def _step(self, slot: int | None) -> Tensor:
        return self.step_size if slot is None else self.step_size[slot]
