"""Learned step size quantization (LSQ). Esser et al., 2019. https://arxiv.org/abs/1902.08153

One learned step size `s` per tensor. In OQAT (2010.04354) the step of a layer is shared by all subnets that pass
through it.
"""

import math

import torch
from torch import Tensor, nn

from oncequant.quantizers.functional import Grid, fake_quantize, initial_step_size, integer_range


class LSQ(nn.Module):
    """Fake-quantizer with one learned step size.

    The step starts as NaN: it must be initialised from data (`initialise`) or loaded, and forgetting either shows at
    once instead of training on an arbitrary grid.
    """

    def __init__(self):
        super().__init__()
        self.step_size = nn.Parameter(torch.tensor(float("nan")))

    def grid(self, x: Tensor, bits: int, signed: bool, shards: int = 1) -> Grid:
        """Step size and gradient scale 1 / sqrt(numel(x) shards q_max) to quantize x with.

        `shards`: the number of processes whose inputs together are one batch.
        """
        return Grid(self.step_size, None, 1 / math.sqrt(max(1, x.numel()) * shards * integer_range(bits, signed)[1]))

    def forward(self, x: Tensor, bits: int, signed: bool, activation: str | None = None) -> Tensor:
        """Fake-quantized activation(x) of the same shape."""
        step_size, offset, grad_scale = self.grid(x, bits, signed)
        return fake_quantize(x, step_size, bits, signed, grad_scale, offset, activation)

    @torch.no_grad()
    def initialise(self, x: Tensor, bits: int, signed: bool) -> None:
        """Set the step size from the values it will quantize."""
        self.step_size.copy_(initial_step_size(x, bits, signed).clamp_min(1e-8))
