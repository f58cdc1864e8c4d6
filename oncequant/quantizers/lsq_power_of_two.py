"""LSQ of layers' inputs whose step sizes are powers of two, as FPGA tools want them: there scaling is a shift.

    s = 2^round(log2 |s'|),  with the gradient of s passed on to the learned s' (straight through)

Rounded in the logarithm, as https://arxiv.org/abs/1903.08066 does for thresholds.
"""

from typing import ClassVar

import torch
from torch import Tensor

from oncequant.quantizers.functional import Grid
from oncequant.quantizers.lsq import LSQ
from oncequant.quantizers.quantizer import Ask, Quantizer


class PowerOfTwoLSQ(Quantizer):
    """LSQ whose grid has the power of two that is nearest to the learned step size; all else is LSQ's."""

    is_power_of_two: ClassVar[bool] = True

    def __init__(self, slots: int | None = None, channels: int = 1):
        super().__init__()
        self.learned = LSQ(slots, channels)

    def grid(self, x: Tensor, ask: Ask) -> Grid:
        """LSQ's grid, with a power of two as its step size."""
        grid = self.learned.grid(x, ask)
        step = grid.step_size
        return grid._replace(step_size=step + (nearest_power_of_two(step) - step).detach())

    def initialise(self, x: Tensor, ask: Ask) -> None:
        """As LSQ."""
        self.learned.initialise(x, ask)

    def copy_slot(self, source: Quantizer, slot: int | None, channels: int) -> None:
        """As LSQ."""
        assert isinstance(source, PowerOfTwoLSQ)
        self.learned.copy_slot(source.learned, slot, channels)

    def drop_bits(self, fewer: int) -> None:
        """As LSQ: powers of two stay so."""
        self.learned.drop_bits(fewer)


@torch.no_grad()
def nearest_power_of_two(step: Tensor) -> Tensor:
    """2^round(log2 |s|), of the same shape."""
    return torch.exp2(torch.round(torch.log2(step.abs())))
