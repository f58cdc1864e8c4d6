"""Costs of a network as arithmetic on its `LayerSpec`s, and budgets on them.

Every cost is a sum over layers of one expression, so the same function serves one architecture (ints, exact),
100,000 at once (NumPy vectors) and differentiable expectations (torch tensors). Conventions (those of the OFA and
OQA code): batch 1; squeeze-and-excite layers are counted; batch norm, activations, pooling and residual additions
are not. A layer in float costs 32 x 32 BitOPs per MAC.

A new hardware cost model is one function `specs -> number` and one line in `COSTS`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from oncequant.arch import LayerSpec, Number

Specs = Mapping[str, LayerSpec]


def layer_macs(spec: LayerSpec) -> Number:
    """Multiply-accumulates of one layer."""
    return spec.weights * (spec.out_size * spec.out_size)


def expected_layer(candidates: Sequence[LayerSpec], shares: Number) -> LayerSpec:
    """The expectation of a layer whose bit-widths and presence are random: `shares` (K,) of the candidates.

    Bit-widths are means given that the layer is there, those of inputs weighted by those of weights, so that every cost
    made of MACs or weights times bit-widths is the expectation of that cost. Differentiable in `shares` (torch).
    """
    pairs = [(share, spec) for share, spec in zip(shares, candidates) if spec.present]
    if not pairs:
        return candidates[0]
    present = sum(share for share, _ in pairs)
    given = present + 1e-30  # a one-hot share of "absent" leaves nothing to divide by
    weight_bits = sum(share * spec.weight_bits for share, spec in pairs) / given
    products = sum(share * (spec.weight_bits * spec.act_bits) for share, spec in pairs) / given
    return replace(pairs[0][1], present=present, weight_bits=weight_bits, act_bits=products / (weight_bits + 1e-30))


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


def qfa_mflops(specs: Specs) -> Number:
    """Millions of 8 x 8-bit multiply-accumulates (BitOPs / 64) as QFA counts and publishes them, there called FLOPs.

    The closed form of the lookup table of QFA's official code (https://github.com/apple/ml-batchquant, arXiv
    2105.08952), which is for width 1.2 of MobileNetV3, at any width; only to stand beside their numbers. It differs
    from BitOPs in this:

    - bits above 8 count as 8;
    - channels are not rounded to multiples of 8, and the width scales those of the image and the classes too;
    - batch norm counts 2 per output element, also after feature mix, where there is none;
    - squeeze-and-excite counts with its bias, at the bits of the depthwise convolution before it;
    - maps are resolution // (product of strides before), where the network rounds up at each stride. What a strided
      depthwise convolution makes beyond that, the projection reads at 8 x 8 bits. So a larger resolution can cost less.
    """
    resolution = size = next(iter(specs.values())).in_size
    strides, area, excess, bits, total = 1, size * size, 0, 0, 0
    for s in specs.values():
        c_in, c_out = s.nominal_channels or (s.in_channels, s.out_channels)
        extra = {"se": 1, "classifier": 0}.get(s.role, 2)  # bias or batch norm
        ops = (s.kernel_size * s.kernel_size * (1 if s.depthwise else c_in) + extra) * c_out * s.present
        if s.role != "se":
            bits = _up_to_8(s.weight_bits) * _up_to_8(s.act_bits)
        if s.role in ("se", "feature_mix", "classifier"):  # on a 1 x 1 map
            weighted = bits
        elif s.stride == 1:
            weighted = area * bits
            if s.role == "project":
                weighted, excess = weighted + 64 * excess, 0
        else:
            out_size, strides = (size - 1) // s.stride + 1, strides * s.stride
            weighted = out_size * out_size * bits
            size = resolution // strides
            area = size * size
            excess = out_size * out_size - area if s.depthwise else 0
        total = total + ops * weighted
    return total / 64e6  # integers up to here, so a batch gives exactly what one by one gives


def _up_to_8(bits: Number) -> Number:
    return min(bits, 8) if isinstance(bits, (int, float)) else bits.clip(max=8)


COSTS: dict[str, Callable[[Specs], Number]] = {
    "macs": macs,
    "params": params,
    "bitops": bitops,
    "weight_bytes": weight_bytes,
    "qfa_mflops": qfa_mflops,
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
        return Budget(match[1], float(Decimal(match[2]) * _SUFFIX[match[3]]))

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
