"""Costs of a network as arithmetic on its `LayerSpec`s, and budgets on them.

Most costs are a sum over layers of one expression. So the same function serves one architecture (ints, exact), 100,000
at once (NumPy vectors) and differentiable expectations (torch tensors). Conventions (those of the OFA and OQA code):
batch 1; squeeze-and-excite layers are counted; batch norm, activations, pooling and residual additions are not. A layer
in float costs 32 x 32 BitOPs per MAC.

`ram_bytes` and `flash_bytes`, which a network takes in C, are no such sums: `oncequant/memory.py`.

A new cost is one function of LayerSpecs and one entry of `COSTS`. Budgets, searches, measurements, tables, pictures and
the command line take it from there. A cost that was measured on a device is a file: `oncequant/cost_table.py`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from oncequant.arch import LayerSpec, Number
from oncequant.memory import flash_bytes, float_layers, ram_bytes

Specs = Mapping[str, LayerSpec]


@dataclass(frozen=True)
class Cost:
    """One number that a network costs, such as its BitOPs; `cost(specs)` computes it.

    The contract of `function`:

    - It reads the LayerSpecs of one network in network order. Absent layers are among them, with present = 0.
    - It never reads weights or images, and equal specs cost the same.
    - Numeric fields may be ints, or int64 NumPy vectors (n,) over n architectures; one network may have both. The
      result is a number, or a vector (n,) of exactly the numbers that the n architectures have one by one.
    - A present network costs more than 0: searches take logarithms.

    `tests/test_costs.py` checks all of this for every entry of `COSTS`.
    """

    name: str
    """As budgets and files write it; letters, digits and underscores."""
    label: str
    """For tables and pictures."""
    unit: str
    """"" where the label says it."""
    function: Callable[[Specs], Number]
    monotone: bool
    """At a given resolution it never falls when a layer gets more bits, channels, a larger kernel, or when a layer is
    added. Then the smallest choices are the cheapest, and searches find every architecture within a budget. Of other
    costs the least is looked for, and may be missed."""
    additive: bool = True
    """The cost of a network is the sum over its layers of the cost of each one alone."""
    bilinear: bool = False
    """Additive, and a + b w + c w x for a layer with w-bit weights and x-bit inputs, times `present`. Such a function
    takes torch tensors too: the cost of an expected layer is the expected cost, with gradients (`expected_layer`)."""
    partial: bool = False
    """It raises ValueError for layers that it does not know, as a table does."""
    shown: bool = True
    """In tables and pictures; all costs are in files."""
    structural: bool = False
    """It reads the operations between layers, too: its specs are a Plan, as `SearchSpace.layers` and `layers_batch`
    return it, and it raises ValueError for others. It may follow the exporter's kernels from version to version."""

    def __call__(self, specs: Specs) -> Number:
        """The cost of one network, or of each of n, (n,)."""
        return self.function(specs)

    def __str__(self) -> str:
        return self.name

    @property
    def title(self) -> str:
        """Label and unit: "Packed weights (bytes)"."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


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


def expected_cost(cost: Cost, candidates: Mapping[str, Sequence[LayerSpec]], shares: Mapping[str, Number]) -> Number:
    """The expectation of a cost over networks whose layers are drawn from `candidates`; differentiable in `shares`.

    Args:
        cost: additive; ValueError for others, whose layers have no costs of their own.
        candidates: by layer, in network order, its possible LayerSpecs.
        shares: by layer the probability of each candidate, a tensor (K,). A layer without is its first candidate.

    Exact also where layers are drawn together: costs of layers add up. Bit-widths are averaged where the cost is
    bilinear in them, which is less work; else the costs of the candidates are.
    """
    if not cost.additive:
        raise ValueError(f"{cost} is not a sum over layers, so it has no expectation by layers")
    if cost.bilinear:
        return cost({n: expected_layer(c, shares[n]) if n in shares else c[0] for n, c in candidates.items()})
    total: Number = 0
    for name, own in candidates.items():
        if name in shares:
            each = [cost({name: spec}) for spec in own]
            total = total + sum(share * number for share, number in zip(shares[name], each))
        else:
            total = total + cost({name: own[0]})
    return total


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


COSTS: dict[str, Cost] = {
    cost.name: cost
    for cost in (
        Cost("macs", "MACs", "", macs, monotone=True, bilinear=True),
        Cost("params", "Parameters", "", params, monotone=True, bilinear=True),
        Cost("bitops", "BitOPs", "", bitops, monotone=True, bilinear=True),
        Cost("weight_bytes", "Packed weights", "bytes", weight_bytes, monotone=True, bilinear=True),
        Cost("qfa_mflops", "QFA's FLOPs", "millions", qfa_mflops, monotone=True, additive=False, shown=False),
        # not monotone: codes of 3, 5 and 7 bits pad words otherwise than those of 4, 6 and 8
        Cost("ram_bytes", "RAM in C", "bytes", ram_bytes, monotone=False, additive=False, structural=True),
        Cost("flash_bytes", "Flash in C", "bytes", flash_bytes, monotone=False, additive=False, structural=True),
    )
}


def find_cost(cost: str | Cost, costs: Mapping[str, Cost] = COSTS) -> Cost:
    """The cost of that name, or `cost` itself. Raises ValueError naming the costs that there are."""
    if isinstance(cost, Cost):
        return cost
    if cost not in costs:
        raise ValueError(f"unknown cost {cost!r}; the costs are: {', '.join(costs)}")
    return costs[cost]


def shown_costs(records: Iterable[Mapping[str, float]], costs: Mapping[str, Cost] = COSTS) -> list[Cost]:
    """The costs that tables and pictures show of records of costs by name: those that every record has.

    A file from before a cost was added does not have it. Of a table's cost one record is enough: a float network has
    none where the table is of integer layers.
    """
    rows = list(records)
    return [c for c in costs.values() if c.shown and (any if c.partial else all)(c.name in row for row in rows)]


_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Budget:
    """Upper bound on a cost; `Budget.parse("bitops<=1.2G")`."""

    cost: Cost
    limit: float
    target: str = field(default="", compare=False)
    """The board that it is of, or ""."""

    @staticmethod
    def parse(text: str, costs: Mapping[str, Cost] = COSTS) -> "Budget":
        """Read `COST<=NUMBER[k|M|G|T]`. Raises ValueError naming the allowed costs and the form."""
        match = re.fullmatch(r"\s*(\w+)\s*<=\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*([kMGT]?)\s*", text)
        if not match or match[1] not in costs:
            raise ValueError(
                f"budget {text!r}: write COST<=NUMBER with an optional k, M, G or T, COST one of {', '.join(costs)}; "
                'for example "bitops<=1.2G"'
            )
        return Budget(costs[match[1]], float(Decimal(match[2]) * _SUFFIX[match[3]]))

    def holds(self, specs: Specs) -> Number:
        """True where the architecture (or each of a batch) is within the budget. Budgets of structural costs, such as a
        board's, are for networks in C: one with a layer in float is within none."""
        fits = self.cost(specs) <= self.limit
        return fits & (float_layers(specs) == 0) if self.cost.structural else fits

    def __str__(self) -> str:
        return f"{self.cost}<={readable(self.limit, digits=12)}"


def readable(value: float, digits: int = 4) -> str:
    """A number with a suffix, as budgets are written: 1.2G, 90k, 512."""
    for suffix in ("T", "G", "M", "k"):
        if abs(value) >= _SUFFIX[suffix]:
            return f"{value / _SUFFIX[suffix]:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"
