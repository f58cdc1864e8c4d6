"""LSQ of weights with a step size for each output channel (per-channel LSQ, as in 1902.08153's successors).

    w_hat = s_c Q(w / s_c),  Q of step size 1; the step sizes get LSQ's gradient by the chain rule

Integer kernels have a scale per output channel anyway, into which batch norm folds: a step per channel costs nothing
when deployed.
"""

import math

import torch
from torch import Tensor

from oncequant.quantizers.functional import Grid, fake_quantize, integer_range, quantize
from oncequant.quantizers.quantizer import Ask, Quantizer, new_parameter, of_slot


class ChannelLSQ(Quantizer):
    """Fake-quantizer of weights with learned step sizes, (C_out,) or with `slots` (slots, C_out)."""

    def __init__(self, slots: int | None = None, channels: int = 1):
        super().__init__()
        self.step_size = new_parameter(slots, math.nan, channels)

    def grid(self, x: Tensor, ask: Ask) -> Grid:
        """The grid of weights (C_out, C_in, K, K) divided by their steps: its step size is 1."""
        return Grid(torch.ones((), device=x.device), None, 1.0, ask.bits, ask.signed, None)

    def forward(self, x: Tensor, ask: Ask) -> Tensor:
        """Fake-quantized weights of the same shape; their channels are the first of the step sizes'."""
        steps = self._steps(x, ask)
        # LSQ's gradient scale, with the number of values that share a step
        scale = 1 / math.sqrt(max(1, x[0].numel()) * ask.shards * integer_range(ask.bits, ask.signed)[1])
        steps = (steps * scale + (steps * (1 - scale)).detach()).abs()
        return fake_quantize(x / steps, *self.grid(x, ask)[:1], ask.bits, ask.signed) * steps

    @torch.no_grad()
    def initialise(self, x: Tensor, ask: Ask) -> None:
        """LSQ's start value of each channel."""
        means = x.detach().abs().flatten(1).mean(1)
        start = 2 * means / math.sqrt(integer_range(ask.bits, ask.signed)[1])
        of_slot(self.step_size, ask.slot)[: len(x)] = start.clamp_min(1e-8)

    @torch.no_grad()
    def copy_slot(self, source: Quantizer, slot: int | None, channels: int) -> None:
        """Take over the first channels of one slot."""
        assert isinstance(source, ChannelLSQ)
        self.step_size.copy_(of_slot(source.step_size, slot)[:channels])

    @torch.no_grad()
    def drop_bits(self, fewer: int) -> None:
        """s_{K-1} = 2 s_K (OQAT, section 3.3), for as many bits as are dropped."""
        self.step_size.mul_(2**fewer)

    @torch.no_grad()
    def levels(self, weight: Tensor, ask: Ask) -> tuple[Tensor, Tensor, bool]:
        """As every quantizer's, with a step size for each channel."""
        steps = self._steps(weight, ask).abs()
        codes = quantize(weight / steps, torch.ones(()), ask.bits, True)
        return codes, steps.flatten(), ask.bits == 1

    def _steps(self, x: Tensor, ask: Ask) -> Tensor:
        """(C_out, 1, 1, 1) for weights x."""
        steps = of_slot(self.step_size, ask.slot)[: len(x)]
        return steps.view(-1, *[1] * (x.dim() - 1))
