"""PACT activations. Choi et al., 2018. https://arxiv.org/abs/1805.06085

    y = clamp(x, 0, a)    y_q = a / (2^b - 1) round(y (2^b - 1) / a)                                    (eq. 1-2)

The clip level a is learned: its gradient is that of the clamp, 1 where x >= a and 0 below, with the rounding passed
through. The paper adds an L2 penalty on it to the loss. Inputs that can be negative are clamped to [-a, a].
"""

import math

import torch
from torch import Tensor

from oncequant.quantizers.functional import Grid, activate, integer_range
from oncequant.quantizers.quantizer import Ask, Quantizer, new_parameter, of_slot

START = 8.0  # first clip level over mean |x|: LSQ's start value at 4 bits


class PACT(Quantizer):
    """Activation quantizer with learned clip levels: one of shape (), or with `slots` as many, (slots,)."""

    needs_result = True

    def __init__(self, slots: int | None = None, channels: int = 1):
        super().__init__()
        self.clip = new_parameter(slots, math.nan)

    def prepare(self, x: Tensor, ask: Ask) -> tuple[Tensor, Ask]:
        """The grid clamps numbers from 0 on by itself; others are clamped here."""
        if not ask.signed and ask.activation != "hardswish":
            return x, ask._replace(activation="relu")
        clip, dtype = of_slot(self.clip, ask.slot).abs(), x.dtype
        y = torch.minimum(activate(x, ask.activation), clip)
        y = torch.maximum(y, -clip if ask.signed else torch.zeros_like(clip))
        return y.to(dtype), ask._replace(activation=None)  # the clip level is float32

    def grid(self, x: Tensor, ask: Ask) -> Grid:
        """The grid below the clip level, for what `prepare` returns.

        The gradient by the offset of a grid is -s times the sum of gradients outside of it. With ReLU before an
        unsigned grid, these are the ones above, so an offset that is always zero carries them to the clip level.
        """
        clip = of_slot(self.clip, ask.slot).abs()
        # a hair wider, or rounding would put what was clamped outside of the grid, where no gradient passes
        step_size = clip.detach() / integer_range(ask.bits, ask.signed)[1] * (1 + 2**-21)
        offset = (clip.detach() - clip) / step_size if ask.activation == "relu" else None
        return Grid(step_size, offset, 1.0, ask.bits, ask.signed, ask.activation)

    @torch.no_grad()
    def initialise(self, x: Tensor, ask: Ask) -> None:
        """Set a clip level from the values it will clamp."""
        of_slot(self.clip, ask.slot).copy_((START * x.abs().mean()).clamp_min(1e-6))

    @torch.no_grad()
    def copy_slot(self, source: Quantizer, slot: int | None, channels: int) -> None:
        """Take over one slot of another quantizer."""
        assert isinstance(source, PACT)
        self.clip.copy_(of_slot(source.clip, slot))

    def penalty(self) -> Tensor | None:
        """The sum of squared clip levels."""
        return self.clip.square().sum() if self.clip.numel() else None
