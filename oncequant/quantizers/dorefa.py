"""DoReFa weights. Zhou et al., 2016. https://arxiv.org/abs/1606.06160

    t = tanh(w)    m = max |t|    w_q = m (2 round((2^b - 1) (t / 2m + 1/2)) / (2^b - 1) - 1)        (eq. 9-10)

Nothing is learned but the weights. The 2^b levels lie symmetrically about zero, which is none of them: at odd multiples
of half a step. One bit is the sign times E|w|, with the gradient passed through (eq. 7-8).

Two differences. The paper leaves out the factor m, so that quantized weights fill [-1, 1]; with it they keep the scale
of the float ones, between which DNAS mixes; before batch norm the two are the same network. Eight bits have 255 levels
with a zero among them, m round(127 t / m) / 127, because an 8-bit integer cannot hold the odd numbers up to 255.
"""

import torch
from torch import Tensor, nn

from oncequant.quantizers.functional import fake_quantize, quantize


class DoReFa(nn.Module):
    """Fake-quantizer of weights without parameters; `slots` is for exchange with LSQ."""

    def __init__(self, slots: int | None = None):
        super().__init__()
        self.register_buffer("half_level", torch.tensor(-0.5), persistent=False)

    def forward(self, weight: Tensor, bits: int, signed: bool = True, slot: int | None = None) -> Tensor:
        """Fake-quantized weight of the same shape. Raises ValueError for bits outside 1..8."""
        if bits == 1:
            sign = torch.where(weight >= 0, 1.0, -1.0) * weight.detach().abs().mean()
            return sign + (weight - weight.detach())  # exactly the sign's two values, unlike (sign - w).detach() + w
        tanh, step_size = self._grid(weight, bits)
        return fake_quantize(tanh, step_size, bits, True, offset=None if bits == 8 else self.half_level)

    @torch.no_grad()
    def deployed(self, weight: Tensor, bits: int, slot: int | None = None) -> tuple[Tensor, Tensor, bool]:
        """(codes as floats, step size, whether the codes are odd numbers): what integer kernels are given.

        Odd codes are those from -(2^b - 1) to 2^b - 1, of half a step each.
        """
        if bits == 1:
            return torch.where(weight >= 0, 1.0, -1.0), weight.abs().mean(), True
        tanh, step_size = self._grid(weight, bits)
        if bits == 8:
            return quantize(tanh, step_size, 8, True), step_size, False
        values = fake_quantize(tanh, step_size, bits, True, offset=self.half_level)
        return (2 * values / step_size).round(), step_size / 2, True

    def initialise(self, x: Tensor, bits: int, signed: bool, slot: int | None = None) -> None:
        """Nothing to estimate."""

    def copy_slot(self, source: "DoReFa", slot: int | None) -> None:
        """Nothing to take over."""

    @staticmethod
    def _grid(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """tanh(w) and the distance of two levels."""
        if not 2 <= bits <= 8:
            raise ValueError(f"DoReFa has bit-widths from 1 to 8, not {bits}")
        tanh = weight.tanh()
        largest = tanh.abs().amax().clamp_min(torch.finfo(tanh.dtype).tiny)
        return tanh, largest / 127 if bits == 8 else 2 * largest / (2**bits - 1)
