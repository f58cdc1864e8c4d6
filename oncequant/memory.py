"""Bytes of RAM and of flash that a network takes in C, from its Plan alone: the costs `ram_bytes` and `flash_bytes`.

The kernel calls are those of `oncequant.structure`, what each takes is arithmetic on LayerSpecs that `program`, `place`
and `packing` of `oncequant.export` share. A batch of architectures is grouped by which layers they have: those of a
group have the same calls. Its numbers are one product of two matrices, how often each call needs what and the bytes of
that in every architecture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from oncequant.arch import FLOAT_BITS, LayerSpec, Number
from oncequant.plan import Node, Plan
from oncequant.structure import Shape, blank_calls, lives

Specs = Mapping[str, LayerSpec]

ALIGNMENT = 16  # bytes, of maps
COLUMNS = 4  # output pixels that a convolution computes together, at most: bytes of scratch
LANES = 8  # output channels whose words lie side by side
WIDTHS = (8, 4, 2, 1)  # of the parts that bit-widths are split into: 3 bits are 2 + 1, 6 are 4 + 2
LAYER_STRUCT = 4 * 17  # bytes of what holds the tables and numbers of a layer together


# -- bytes of one thing; of ints, or of NumPy vectors


def aligned(size: Number) -> Number:
    """Rounded up to `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def padded_inputs(inputs: Number, bits: Number) -> Number:
    """Inputs that kernels read for each output channel: whole words of the narrowest part."""
    together = 4 * 8 // (bits & -bits)
    return -(-inputs // together) * together


def packed_words(channels: Number, inputs: Number, bits: Number) -> Number:
    """Words of `packing.pack_words`."""
    steps = -(-inputs // 4)
    groups = sum(((bits & width) > 0) * -(-steps // (8 // width)) for width in WIDTHS)
    return channels * groups + 3 * LANES * ((bits == 5) | (bits == 7))


def layer_scratch(inputs: Number, channels: Number, bits: Number, depthwise: bool) -> Number:
    """Bytes that a layer with so many inputs per output needs beside its maps.

    Those that one output pixel reads, and columns: four pixels of bytes, or two of 16 bits on a Cortex-M. Depthwise
    with so many channels: pairs of kernel positions, their weights in 16 bits, and a row of zero points.
    """
    if depthwise:
        return 4 * LANES * -(-channels // LANES) * -(-inputs // 2) + channels
    return aligned(inputs) + COLUMNS * padded_inputs(inputs, bits)


def mean_scratch(channels: Number) -> Number:
    """Bytes of a mean's sums."""
    return 4 * channels


# -- bytes of a network


@dataclass(frozen=True)
class MapBytes:
    """Of a map of codes."""

    shape: Shape

    def of(self, specs: Specs, value: Number) -> Number:
        """Aligned."""
        size, channels = _shape(self.shape, specs)
        return aligned(size * size * channels * value)


@dataclass(frozen=True)
class ScratchBytes:
    """Of a layer."""

    layer: str

    def of(self, specs: Specs, value: Number) -> Number:
        """Aligned."""
        spec = specs[self.layer]
        inputs = spec.kernel_size * spec.kernel_size * spec.group_channels
        bits = spec.weight_bits + (spec.weight_bits == 0)  # of a layer that is absent from some of a batch
        return aligned(layer_scratch(inputs, spec.in_channels, bits, spec.depthwise))


@dataclass(frozen=True)
class SumBytes:
    """Of a mean."""

    shape: Shape

    def of(self, specs: Specs, value: Number) -> Number:
        """Aligned."""
        return aligned(mean_scratch(_shape(self.shape, specs)[1]))


@dataclass(frozen=True)
class LayerBytes:
    """Constants of a layer: packed weights, biases, ratios, and what holds them together."""

    layer: str

    def of(self, specs: Specs, value: Number) -> Number:
        """Weights in float have four bytes each."""
        spec = specs[self.layer]
        inputs, outputs = spec.kernel_size * spec.kernel_size * spec.group_channels, spec.out_channels
        rows, columns = (1, inputs * outputs) if spec.depthwise else (outputs, inputs)
        words = packed_words(rows, columns, spec.weight_bits) + inputs * outputs * (spec.weight_bits == FLOAT_BITS)
        return 4 * words + 8 * outputs + LAYER_STRUCT


@dataclass(frozen=True)
class TableBytes:
    """Of the codes that a lookup makes of those of a quantizer."""

    layer: str | None
    """Which learned the quantizer's grid; None for a calibrated one, of 8 bits."""

    def of(self, specs: Specs, value: Number) -> Number:
        """One for each code."""
        bits = 8 if self.layer is None else specs[self.layer].act_bits
        return 2 ** np.minimum(bits, 8)


@dataclass(frozen=True)
class PixelBytes:
    """Of the tables that make codes of pixels."""

    def of(self, specs: Specs, value: Number) -> Number:
        """One for each value of each channel of the image."""
        return 256 * next(iter(specs.values())).in_channels


Term = MapBytes | ScratchBytes | SumBytes | LayerBytes | TableBytes | PixelBytes


def _shape(shape: Shape, specs: Specs) -> tuple[Number, Number]:
    """(size, channels)."""
    if shape.layer:
        return shape.of(specs[shape.layer].out_size, specs[shape.layer].out_channels)
    first = next(iter(specs.values()))
    return shape.of(first.in_size, first.in_channels)


def _value_bytes(specs: Specs) -> Number:
    """Of a code; four of a network with a layer in float, which computes in float."""
    floats = [s.present * ((s.weight_bits == FLOAT_BITS) | (s.act_bits == FLOAT_BITS)) for s in specs.values()]
    return 1 + 3 * np.max(np.stack(np.broadcast_arrays(*floats)), axis=0)


# -- the costs


@dataclass(frozen=True, eq=False)
class Needs:
    """What the calls of networks with the same layers need."""

    terms: tuple[Term, ...]
    live: np.ndarray
    """How many of each term live during each call, float64 (calls, terms): products of float64 are fast, and exact."""
    constants: np.ndarray
    """How many of each are constants, (1, terms)."""


@lru_cache(maxsize=20_000)
def needs(nodes: tuple[Node, ...]) -> Needs:
    """What the calls of the nodes of a Plan need."""
    calls, quantizers = blank_calls(nodes)
    count: dict[Term, np.ndarray] = {}  # live during each call, and constants last

    def add(term: Term, first: int, last: int) -> None:
        count.setdefault(term, np.zeros(len(calls) + 1))[first : last + 1] += 1

    shapes = {call.output: call.shape for call in calls}
    for name, (first, last) in lives(calls).spans.items():
        add(MapBytes(shapes[name]), first, last)
    for i, call in enumerate(calls):
        if call.op in ("conv", "linear"):
            add(ScratchBytes(call.name), i, i)
            add(LayerBytes(call.name), len(calls), len(calls))
        elif call.op == "mean":
            add(SumBytes(call.shape), i, i)
        elif call.op == "pixels":
            add(PixelBytes(), len(calls), len(calls))
        elif call.op == "lookup":
            grid = quantizers[call.read[0]].grid
            add(TableBytes(None if grid.endswith(".q") else grid), len(calls), len(calls))
    table = np.stack(list(count.values()), axis=1)
    return Needs(tuple(count), table[:-1], table[-1:])


def _evaluate(specs: Specs, what: Callable[[Needs], np.ndarray]) -> Number:
    """The largest sum of bytes in a row of `what`, of one architecture or each of a batch."""
    if not isinstance(specs, Plan):
        raise ValueError(
            "costs of memory read the operations between layers: give them a Plan, as space.layers returns"
        )
    groups = [(places, needs(nodes)) for places, nodes in specs.groups()]
    terms = list(dict.fromkeys(term for _, each in groups for term in each.terms))
    place = {term: i for i, term in enumerate(terms)}
    count = specs.rows.count if specs.rows else 1
    table, value = np.empty((len(terms), count)), _value_bytes(specs)
    for i, term in enumerate(terms):
        table[i] = term.of(specs, value)
    found = np.empty(count, np.int64)
    for places, each in groups:
        columns = np.array([place[term] for term in each.terms])
        of_group = table[np.ix_(columns, places)]
        found[places] = (what(each) @ of_group).max(axis=0)
    return found if specs.rows else int(found[0])


def ram_bytes(specs: Specs) -> Number:
    """The arena of the network in C."""
    return _evaluate(specs, lambda needs: needs.live)


def constant_bytes(specs: Specs) -> Number:
    """Constants of the network in C."""
    return _evaluate(specs, lambda needs: needs.constants)


def flash_bytes(specs: Specs) -> Number:
    """Placeholder."""
    return constant_bytes(specs)
