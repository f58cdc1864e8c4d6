"""Costs of a network as arithmetic on its `LayerSpec`s, and budgets on them.

Every cost is a sum over layers of one expression, so the same function serves one architecture (ints, exact),
100,000 at once (NumPy vectors) and differentiable expectations (torch tensors). Conventions (those of the OFA and
OQA code): batch 1; squeeze-and-excite layers are counted; batch norm, activations, pooling and residual additions
are not. A layer in float costs 32 x 32 BitOPs per MAC.

A new hardware cost model is one function `specs -> number` and one line in `COSTS`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from oncequant.arch import LayerSpec, Number

Specs = Mapping[str, LayerSpec]


def layer_macs(spec: LayerSpec) -> Number:
    """Multiply-accumulates of one layer."""
    return spec.weights * (spec.out_size * spec.out_size)


def macs(specs: Specs) -> Number:
    """Multiply-accumulates, counted once each."""
    return sum(layer_macs(s) for s in specs.values())


def bitops(specs: Specs) -> Number:
    """Sum of MACs x weight_bits x act_bits."""
    return sum(layer_macs(s) * (s.weight_bits * s.act_bits) for s in specs.values())


def params(specs: Specs) -> Number:
    """Trainable parameters without step sizes: weights, biases, batch-norm weight and bias."""
    return sum(s.weights + s.present * s.out_channels * (2 * s.batch_norm + s.bias) for s in specs.values())


def weight_bytes(specs: Specs) -> Number:
    """Bytes of the packed weights and of what dequantizes them.

    Weights at their own bits, and per output channel one float32 scale and one 32-bit bias (batch norm folds into
    the two). Not counted: the file format's own framing and the one scale per activation.
    """
    return sum(s.weights * s.weight_bits / 8 + s.present * s.out_channels * 8 for s in specs.values())


COSTS: dict[str, Callable[[Specs], Number]] = {
    "macs": macs,
    "params": params,
    "bitops": bitops,
    "weight_bytes": weight_bytes,
}

_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Budget:
    """Upper bound on a named cost; `Budget.parse("bitops<=1.2G")`."""

    cost: str
    limit: float

    @staticmethod
    def parse(text: str) -> "Budget":
        """Read `COST<=NUMBER[k|M|G|T]`. Raises ValueError naming the allowed costs and the form."""
        match = re.fullmatch(r"\s*(\w+)\s*<=\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*([kMGT]?)\s*", text)
        if not match or match[1] not in COSTS:
            raise ValueError(
                f"budget {text!r}: write COST<=NUMBER with an optional k, M, G or T, COST one of {', '.join(COSTS)}; "
                'for example "bitops<=1.2G"'
            )
        return Budget(match[1], float(match[2]) * _SUFFIX[match[3]])

    def holds(self, specs: Specs) -> Number:
        """True where the architecture (or each of a batch) is within the budget."""
        return COSTS[self.cost](specs) <= self.limit

    def __str__(self) -> str:
        return f"{self.cost}<={readable(self.limit, digits=12)}"


def readable(value: float, digits: int = 4) -> str:
    """A number with a suffix, as budgets are written: 1.2G, 90k, 512."""
    for suffix in ("T", "G", "M", "k"):
        if abs(value) >= _SUFFIX[suffix]:
            return f"{value / _SUFFIX[suffix]:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"
