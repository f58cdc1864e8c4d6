"""Moving averages of an activation's range, the usual quantizer of networks of one architecture; QFA's comparison."""

import math

import torch
from torch import Tensor

from oncequant.quantizers.batchquant import RangeGrid, image_of
from oncequant.quantizers.functional import Grid
from oncequant.quantizers.quantizer import Ask, NotCalibrated, Quantizer


class RunningRange(Quantizer):
    """Activation quantizer with moving averages of the extremes of whole tensors and nothing learned.

    One pair of averages for each slot.
    """

    MOMENTUM = 0.01
    needs_result = True
    counts_batches = True
    range: Tensor

    def __init__(self, slots: int | None = None, channels: int = 1):
        super().__init__()
        self.register_buffer("range", torch.full((slots or 1, 2), math.nan))

    def grid(self, x: Tensor, ask: Ask) -> Grid:
        """The grid for activation(x); training batches move the averages. Raises NotCalibrated."""
        stored = self.range[ask.slot or 0]
        if ask.of_batch:
            with torch.no_grad():
                low, high = x.aminmax()
                if ask.statistics is not None:
                    raise ValueError("the running range needs the batch norm's result")
                low, high = image_of(low, high, ask.activation)
                now = torch.stack([low.clamp_max(0), high.clamp_min(0)]).float()
                stored.copy_(torch.where(stored.isnan(), now, stored + self.MOMENTUM * (now - stored)))
        elif bool(stored.isnan().any()):
            raise NotCalibrated("a running activation range was never updated: train the network first")
        zero = torch.zeros((), device=x.device)
        step_size, offset = RangeGrid.apply(zero, zero, None, stored.clone(), ask.bits, ask.signed)
        return Grid(step_size, offset, 1.0, ask.bits, ask.signed, ask.activation)

    @torch.no_grad()
    def initialise(self, x: Tensor, ask: Ask) -> None:
        """Set a range from the values it will quantize."""
        self.range[ask.slot or 0] = torch.stack([x.amin().clamp_max(0), x.amax().clamp_min(0)])

    @torch.no_grad()
    def copy_slot(self, source: Quantizer, slot: int | None, channels: int) -> None:
        """Take over one slot of another quantizer."""
        assert isinstance(source, RunningRange)
        self.range.copy_(source.range[slot or 0][None])
