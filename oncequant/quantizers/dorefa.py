"""DoReFa weights. Zhou et al., 2016. https://arxiv.org/abs/1606.06160

    t = tanh(w)    m = max |t|    w_q = m (2 round((2^b - 1) (t / 2m + 1/2)) / (2^b - 1) - 1)        (eq. 9-10)

Nothing is learned but the weights. The 2^b levels lie symmetrically about zero, which is none of them: at odd multiples
of half a step. One bit is the sign times E|w|, with the gradient passed through (eq. 7-8).

Two differences. The paper leaves out the factor m, so that quantized weights fill [-1, 1]; with it they keep the scale
of the float ones, between which DNAS mixes; before batch norm the two are the same network. Eight bits have 255 levels
with a zero among them, m round(127 t / m) / 127, because an 8-bit integer cannot hold the odd numbers up to 255.
"""

import torch
from torch import Tensor

from oncequant.quantizers.functional import Grid, fake_quantize, quantize
from oncequant.quantizers.quantizer import Ask, Quantizer


class DoReFa(Quantizer):
    """Fake-quantizer of weights without parameters."""

    half_level: Tensor

    def __init__(self, slots: int | None = None, channels: int = 1):
        super().__init__()
        self.register_buffer("half_level", torch.tensor(-0.5), persistent=False)

    def prepare(self, x: Tensor, ask: Ask) -> tuple[Tensor, Ask]:
        """tanh(w)."""
        return x.tanh(), ask

    def grid(self, x: Tensor, ask: Ask) -> Grid:
        """The grid of tanh(w). Raises ValueError for bits outside 2..8."""
        if not 2 <= ask.bits <= 8:
            raise ValueError(f"DoReFa has bit-widths from 1 to 8, not {ask.bits}")
        largest = x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)
        step_size = largest / 127 if ask.bits == 8 else 2 * largest / (2**ask.bits - 1)
        return Grid(step_size, None if ask.bits == 8 else self.half_level, 1.0, ask.bits, True, None)

    def forward(self, x: Tensor, ask: Ask) -> Tensor:
        """Fake-quantized weight of the same shape. Raises ValueError for bits outside 1..8."""
        if ask.bits == 1:
            sign = torch.where(x >= 0, 1.0, -1.0) * x.detach().abs().mean()
            return sign + (x - x.detach())  # exactly the sign's two values, unlike (sign - w).detach() + w
        return super().forward(x, ask)

    @torch.no_grad()
    def levels(self, weight: Tensor, ask: Ask) -> tuple[Tensor, Tensor, bool]:
        """As every quantizer's; the codes are odd multiples of half a step, but for 8 bits."""
        if ask.bits == 1:
            return torch.where(weight >= 0, 1.0, -1.0), weight.abs().mean(), True
        tanh, ask = self.prepare(weight, ask)
        step_size = self.grid(tanh, ask).step_size
        if ask.bits == 8:
            return quantize(tanh, step_size, 8, True), step_size, False
        values = fake_quantize(tanh, step_size, ask.bits, True, offset=self.half_level)
        return (2 * values / step_size).round(), step_size / 2, True
