"""PACT activations. Choi et al., 2018. https://arxiv.org/abs/1805.06085

    y = clamp(x, 0, a)    y_q = a / (2^b - 1) round(y (2^b - 1) / a)                                    (eq. 1-2)

The clip level a is learned: its gradient is that of the clamp, 1 where x >= a and 0 below, with the rounding passed
through. The paper adds an L2 penalty on it to the loss. Inputs that can be negative are clamped to [-a, a].
"""

import torch
from torch import Tensor, nn

from oncequant.quantizers.functional import Grid, activate, integer_range

START = 8.0  # first clip level over mean |x|: LSQ's start value at 4 bits


class PACT(nn.Module):
    """Activation quantizer with learned clip levels: one of shape (), or with `slots` as many, (slots,)."""

    def __init__(self, slots: int | None = None):
        super().__init__()
        self.clip = nn.Parameter(torch.full(() if slots is None else (slots,), float("nan")))

    def clamped(self, x: Tensor, signed: bool, slot: int | None, activation: str | None) -> tuple[Tensor, str | None]:
        """A tensor and an activation for `grid`, which clamps numbers from 0 on by itself; others are clamped here."""
        if not signed and activation != "hardswish":
            return x, "relu"
        clip = self._clip(slot).abs()
        y = torch.minimum(activate(x, activation), clip)
        return torch.maximum(y, -clip if signed else torch.zeros_like(clip)), None

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
        """The grid below the clip level, for what `clamped` returns.

        The gradient by the offset of a grid is -s times the sum of gradients outside of it. With ReLU before an
        unsigned grid, these are the ones above, so an offset that is always zero carries them to the clip level.
        """
        clip = self._clip(slot).abs()
        # a hair wider, or rounding would put what was clamped outside of the grid, where no gradient passes
        step_size = clip.detach() / integer_range(bits, signed)[1] * (1 + 2**-21)
        offset = (clip.detach() - clip) / step_size if activation == "relu" else None
        return Grid(step_size, offset, 1.0, bits, signed, activation)

    @torch.no_grad()
    def initialise(self, x: Tensor, bits: int, signed: bool, slot: int | None = None) -> None:
        """Set a clip level from the values it will clamp."""
        self._clip(slot).copy_((START * x.abs().mean()).clamp_min(1e-6))

    @torch.no_grad()
    def copy_slot(self, source: "PACT", slot: int | None) -> None:
        """Take over one slot of another quantizer."""
        self.clip.copy_(source._clip(slot))

    def _clip(self, slot: int | None) -> Tensor:
        return self.clip if slot is None else self.clip[slot]
