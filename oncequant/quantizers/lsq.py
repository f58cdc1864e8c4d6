"""Learned step size quantization (LSQ). Esser et al., 2019. https://arxiv.org/abs/1902.08153

One learned step size `s` per tensor. In OQAT (2010.04354) the step of a layer is shared by all subnets that pass
through it; in QFA (2105.08952) a layer has one for each bit-width and kernel size, its slots.
"""

import math

import torch
from torch import Tensor

from oncequant.quantizers.functional import Grid, initial_step_size, integer_range
from oncequant.quantizers.quantizer import Ask, Quantizer, new_parameter, of_slot


class LSQ(Quantizer):
    """Fake-quantizer with learned step sizes: one of shape (), or with `slots` as many, (slots,).

    They start as NaN: they must be initialised from data (`initialise`) or loaded, and forgetting either shows at once
    instead of training on an arbitrary grid.
    """

    def __init__(self, slots: int | None = None, channels: int = 1):
        super().__init__()
        self.step_size = new_parameter(slots, math.nan)

    def grid(self, x: Tensor, ask: Ask) -> Grid:
        """The grid for activation(x) with LSQ's gradient scale 1 / sqrt(numel(x) shards q_max)."""
        scale = 1 / math.sqrt(max(1, x.numel()) * ask.shards * integer_range(ask.bits, ask.signed)[1])
        return Grid(of_slot(self.step_size, ask.slot), None, scale, ask.bits, ask.signed, ask.activation)

    @torch.no_grad()
    def initialise(self, x: Tensor, ask: Ask) -> None:
        """Set a step size from the values it will quantize."""
        of_slot(self.step_size, ask.slot).copy_(initial_step_size(x, ask.bits, ask.signed).clamp_min(1e-8))

    @torch.no_grad()
    def copy_slot(self, source: Quantizer, slot: int | None, channels: int) -> None:
        """Take over one slot of another quantizer."""
        assert isinstance(source, LSQ)
        self.step_size.copy_(of_slot(source.step_size, slot))

    @torch.no_grad()
    def drop_bits(self, fewer: int) -> None:
        """s_{K-1} = 2 s_K (OQAT, section 3.3), for as many bits as are dropped."""
        self.step_size.mul_(2**fewer)
