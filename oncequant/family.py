"""What a family of networks is: a configuration, presets, choices, and one function that describes an architecture.

A new family is a module in `oncequant/models/` with these four, and a line in `FAMILIES` of `oncequant/models`.
Everything else (network, costs, search, export, report, commands) is made from them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from oncequant.arch import FLOAT_BITS, SKIP, Number
from oncequant.limits import Range, check_ranges
from oncequant.plan import Plan
from oncequant.quantizers import INPUT_QUANTIZERS, WEIGHT_QUANTIZERS
from oncequant.space import SearchSpace


class NetworkConfig(Protocol):
    """What every configuration, a frozen dataclass, has: what is fixed for a whole supernet, and allowed values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def num_classes(self) -> int:
        """Outputs."""

    @property
    def image_channels(self) -> int:
        """1 for greyscale, 3 for colour."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Input sizes in pixels to choose from."""

    @property
    def edge_bits(self) -> int:
        """Of the first convolution and the classifier of a quantized network: 8, or 32 for float."""

    @property
    def weight_quantizer(self) -> str:
        """One of WEIGHT_QUANTIZERS."""

    @property
    def act_quantizer(self) -> str:
        """Of the layers' inputs: one of INPUT_QUANTIZERS."""

    @property
    def steps_per_bits(self) -> bool:
        """Quantizer parameters of their own for each bit-width and kernel size, else one for all."""

    @property
    def is_float(self) -> bool:
        """No layer is quantized."""


def ungated(name: str) -> None:
    """The gate of choices that matter always; a function with a name, since spaces are sent to other processes."""


@dataclass(frozen=True)
class Family:
    """A family of networks."""

    Config: type
    """A frozen dataclass, see NetworkConfig. OQAT and QFA train families whose configuration is an ElasticConfig, DNAS
    those that have `precisions`."""
    presets: Mapping[str, Any]
    """Configurations by name."""
    choices: Callable[[Any], dict[str, tuple[int, ...]]]
    """The choices of a configuration with their allowed values, ascending; `resolution` is always among them."""
    describe: Callable[[Any, Mapping[str, Number]], Plan]
    """The Plan of a configuration and values of its choices, see oncequant.plan."""
    gate: Callable[[str], tuple[str, int] | None] = ungated
    """Which choices matter when, see SearchSpace; by default always."""

    def space(self, config: NetworkConfig) -> SearchSpace:
        """The search space of a configuration. Raises ValueError for choices that are not as said above."""
        choices = self.choices(config)
        if "resolution" not in choices:
            raise ValueError(f"the choices of {type(config).__name__} lack 'resolution'")
        for name, values in choices.items():
            if not isinstance(values, tuple) or not values or list(values) != sorted(set(values)):
                raise ValueError(f"choice {name!r} has {values!r}: use a tuple of ascending values, each once")
        return SearchSpace(choices, partial(self.describe, config), self.gate)


RESOLUTIONS: Range = (4, 2048)  # pixels
WIDTHS: Range = (0.01, 16)


@dataclass(frozen=True)
class ElasticConfig:
    """Configuration of a family that OQAT and QFA train: groups of blocks with elastic depth, kernel size, expand ratio
    and bit-widths. Widths are before `width`."""

    num_classes: int = 10
    image_channels: int = 3
    width: float = 1.0
    """Multiplies every width; results are rounded to multiples of 8."""
    stem_width: int = 16
    stage_widths: tuple[int, ...] = (16, 32, 64)
    stem_stride: int = 1
    stage_strides: tuple[int, ...] = (1, 2, 2)
    kernel_sizes: tuple[int, ...] = (3,)
    expand_ratios: tuple[int, ...] = (1,)
    depths: tuple[int, ...] = (1,)
    """Blocks per group."""
    max_depths: tuple[int, ...] = ()
    """Most blocks of each group, where `depths` has more; empty: no such limit. Blocks of small maps cost less."""
    resolutions: tuple[int, ...] = (32,)
    weight_bits: tuple[int, ...] = (FLOAT_BITS,)
    """Bit-widths of the weights of all layers but the edges; 32 = float."""
    act_bits: tuple[int, ...] = (FLOAT_BITS,)
    """Bit-widths of the inputs of the same layers."""
    edge_bits: int = FLOAT_BITS
    """Weights and inputs of the first convolution and the classifier in a quantized network: 8 or 32."""
    stem_bits: int = 8
    """Weights of the first convolution where edges are quantized, 2 to 8; as many as other layers have at least, where
    these have more. Its inputs are pixels, of 8 bits."""
    steps_per_bits: bool = False
    """Quantizer parameters of their own for each bit-width and kernel size, as QFA; else one for all, as OQAT."""
    weight_quantizer: str = "lsq"
    """Of weights: lsq, one learned step size per layer; lsq-channel, one per output channel; dorefa."""
    act_quantizer: str = "lsq"
    """Of the layers' inputs: lsq, batchquant (QFA's), running (moving averages of the range), or pact."""

    power_of_two_steps: bool = False
    """Step sizes of the layers' inputs, and of the grids between layers in files, are powers of two, for FPGAs."""

    def __post_init__(self) -> None:
        """Refuse impossible options, naming the field and its allowed values."""
        if self.power_of_two_steps and self.act_quantizer != "lsq":
            raise ValueError(
                f"power_of_two_steps: only with learned step sizes, not {self.act_quantizer} (QFA: --activations lsq)"
            )
        rules: dict[str, tuple[Callable[[int], bool], str]] = {
            "weight_bits": (lambda v: 1 <= v <= 8 or v == FLOAT_BITS, "1 to 8, or 32 for float"),
            "act_bits": (lambda v: 1 <= v <= 8 or v == FLOAT_BITS, "1 to 8, or 32 for float"),
        }
        check_numbers(self)
        for name, (allowed, text) in rules.items():
            values = getattr(self, name)
            if not values or not all(map(allowed, values)):
                raise ValueError(f"{name} {list(values)}: use {text}")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)}: name every value once")
        if len(self.stage_widths) != len(self.stage_strides):
            raise ValueError(f"stage_strides = {list(self.stage_strides)}: use one for each of stage_widths")
        if self.max_depths and len(self.max_depths) != len(self.stage_widths):
            raise ValueError(f"max_depths = {list(self.max_depths)}: use one for each of stage_widths, or none")
        if self.max_depths and min(self.max_depths) < min(self.depths):
            raise ValueError(
                f"max_depths = {list(self.max_depths)}: use at least the least of depths, {min(self.depths)}"
            )
        check_common(self)

    @property
    def is_float(self) -> bool:
        """No layer is quantized; the edges follow the blocks."""
        return self.weight_bits == (FLOAT_BITS,) and self.act_bits == (FLOAT_BITS,)


def input_quantizer(config: NetworkConfig) -> str:
    """The quantizer of the layers' inputs: one of INPUT_QUANTIZERS."""
    return "lsq-power-of-two" if getattr(config, "power_of_two_steps", False) else config.act_quantizer


AnyElastic = TypeVar("AnyElastic", bound=ElasticConfig)


def check_numbers(options: Any) -> None:
    """Raise ValueError, naming the field, for numbers that no elastic family allows. `options` has these fields of
    ElasticConfig; None is left open."""
    ranges: dict[str, Range] = dict(kernel_sizes=(1, 31), expand_ratios=(1, 32), depths=(1, 9), resolutions=RESOLUTIONS)
    check_ranges(options, width=WIDTHS, stem_bits=(2, 8), **ranges)
    for name in ranges:
        values = getattr(options, name)
        if values is not None and (not values or len(set(values)) < len(values)):
            raise ValueError(f"{name} {list(values)}: name at least one value, and every value once")
    if any(size % 2 == 0 for size in options.kernel_sizes or ()):
        raise ValueError(f"kernel_sizes {list(options.kernel_sizes)}: use odd numbers from 1 to 31")


def check_common(config: NetworkConfig) -> None:
    """Raise ValueError, naming the field, for values that no family allows."""
    if config.edge_bits not in (8, FLOAT_BITS):
        raise ValueError(f"edge_bits {config.edge_bits}: use 8, or 32 for float")
    kinds: Sequence[tuple[str, Iterable[str]]]
    kinds = (("weight_quantizer", WEIGHT_QUANTIZERS), ("act_quantizer", INPUT_QUANTIZERS))
    for name, allowed in kinds:
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} {getattr(config, name)!r}: use {', '.join(allowed)}")


def check_pairs(precisions: Sequence[int], can_skip: bool = True) -> None:
    """Raise ValueError for pairs of bit-widths that no network has; 0, which leaves a block out, needs `can_skip`."""
    widths = {*range(1, 9), FLOAT_BITS}
    for value in precisions:
        if value != SKIP and not {value // 100, value % 100} <= widths:
            raise ValueError(
                f"precisions: {value} is not 100 x weight bits + input bits, each 1 to 8 or 32 for float, nor 0"
            )
    if not precisions or len(set(precisions)) < len(precisions):
        raise ValueError(f"precisions = {list(precisions)}: use at least one, each once")
    if SKIP in precisions and not can_skip:
        raise ValueError("precisions: 0 leaves out a block and cannot be chosen per layer, as networks of your own do")


def with_bits(config: AnyElastic, bits: int) -> AnyElastic:
    """The same configuration with one bit-width for all weights and inputs."""
    return replace(config, weight_bits=(bits,), act_bits=(bits,))


# -- parts of descriptions that families share


def elastic_choices(config: ElasticConfig, layers: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The choices of a family of elastic groups of blocks.

    `layers` are those whose bits are choices, in network order. The edges, stem and classifier, have `edge_bits`; for
    the stem's weights see `stem_bits`.
    """
    choices: dict[str, tuple[int, ...]] = {"resolution": tuple(sorted(config.resolutions))}
    blocks = [block for blocks in elastic_blocks(config).values() for block in blocks]
    for stage, names in elastic_blocks(config).items():
        choices[f"{stage}.depth"] = tuple(sorted(depth for depth in config.depths if depth <= len(names)))
    choices |= {f"{block}.kernel_size": tuple(sorted(config.kernel_sizes)) for block in blocks}
    choices |= {f"{block}.expand_ratio": tuple(sorted(config.expand_ratios)) for block in blocks}
    edge = FLOAT_BITS if config.is_float else config.edge_bits
    stem = edge if edge == FLOAT_BITS else min(edge, max(config.stem_bits, min(config.weight_bits)))
    edges = {"stem": (stem, edge), "classifier": (edge, edge)}
    for layer in ["stem", *layers, "classifier"]:
        weights, inputs = edges.get(layer, (None, None))
        choices[f"{layer}.weight_bits"] = (weights,) if weights else tuple(sorted(config.weight_bits))
        choices[f"{layer}.act_bits"] = (inputs,) if inputs else tuple(sorted(config.act_bits))
    return choices


def elastic_blocks(config: ElasticConfig) -> dict[str, list[str]]:
    """By group, the names of its blocks: stage1: stage1.block1, ..."""
    most = config.max_depths or (max(config.depths),) * len(config.stage_widths)
    counts = {f"stage{s}": min(max(config.depths), depth) for s, depth in enumerate(most, start=1)}
    return {stage: [f"{stage}.block{b}" for b in range(1, count + 1)] for stage, count in counts.items()}


def elastic_gate(name: str) -> tuple[str, int] | None:
    """Choices of block b of a group matter from depth b on."""
    stage, _, rest = name.partition(".block")
    return (f"{stage}.depth", int(rest[0])) if stage.startswith("stage") and rest else None


def block_present(config: ElasticConfig, stage: str, number: int, values: Mapping[str, Number]) -> Number:
    """0 or 1: does the depth of a group reach its block `number`, counted from 1."""
    return 1 if number <= min(config.depths) else (values[f"{stage}.depth"] >= number) * 1


def make_divisible(value: float) -> int:
    """Nearest multiple of 8, at least 8 and at least 0.9 x value."""
    n = max(8, int(value + 4) // 8 * 8)
    return n + 8 if n < 0.9 * value else n


def elementwise(function: Callable[[int], int], value: Number) -> Number:
    """A function of one small int, applied to an int or to every element of a NumPy vector (by a table)."""
    if isinstance(value, int):
        return function(value)
    return np.array([function(v) for v in range(int(value.max(initial=0)) + 1)]).take(value)
