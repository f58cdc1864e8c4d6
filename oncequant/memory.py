"""Bytes of RAM and of flash that a network takes in C, from its Plan alone: the costs `ram_bytes` and `flash_bytes`.

The kernel calls are those of `oncequant.structure`, what each takes is arithmetic on LayerSpecs that `program`, `place`
and `packing` of `oncequant.export` share. A batch of architectures is grouped by which layers they have: those of a
group have the same calls. Its numbers are one product of two matrices, how often each call needs what and the bytes of
that in every architecture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from oncequant.arch import FLOAT_BITS, LayerSpec, Number
from oncequant.plan import POOL, Node, Plan
from oncequant.structure import CannotRun, Shape, blank_calls, lives

Specs = Mapping[str, LayerSpec]

ALIGNMENT = 16  # bytes, of maps
COLUMNS = 4  # output pixels that a convolution computes together, at most: bytes of scratch
LANES = 8  # output channels whose words lie side by side
WIDTHS = (8, 4, 2, 1)  # of the parts that bit-widths are split into: 3 bits are 2 + 1, 6 are 4 + 2
LAYER_STRUCT = 4 * 18  # bytes of what holds the tables and numbers of a layer together

# Bytes of code on a Cortex-M4, an upper bound by parts: `benchmarks/flash.py` fits them to random networks of all
# families, here 150, compiled by gcc 12.2 with the flags of `oncequant/export/cortex_m.py`. It was 0 to 332 bytes above
# all of them, before some hundred were added to the base. Fit again when kernels or flags change; tests tell.
CODE = 2600 + 250  # also of 8 bits, which edges have
CODE_OF_BITS = {1: 1790, 2: 1170, 3: 2960, 4: 840, 5: 3180, 6: 1900, 7: 4760}  # if a layer has such weights
KIND_CODE = {"depthwise": 1200, "average": 1900, "grouped": 500, "dilated": 300}  # if any layer is
DEPTHWISE_CODE_OF_BITS = {1: 800, 2: 360, 3: 1040, 4: 270, 5: 830, 6: 540, 7: 1220}  # if any layer is depthwise
UNEVEN_CODE = 1350  # if any depthwise layer has channels that are no multiple of four
UNEVEN_CODE_OF_BITS = {1: 1140, 2: 610, 3: 1340, 4: 330, 5: 1310, 6: 720, 7: 1340}
OPERATION_CODE = {  # those of other operations are in the base
    "maxpool": 180, "pool": 240, "subsample": 180, "concat": 120, "slice": 100, "shuffle": 120, "pad": 120,
}  # fmt: skip
CALL_CODE = {"conv": 14, "linear": 14, "lookup": 30}
OTHER_CALL_CODE = 40
CLASS_BYTES = 16  # a pointer, and a name of 11 letters


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


def group_scratch(inputs: Number, outputs: Number) -> Number:
    """Bytes that a grouped convolution needs beside those of one group: the maps of this group."""
    return aligned(inputs) + aligned(outputs)


def mean_scratch(channels: Number) -> Number:
    """Bytes of a mean's sums."""
    return 4 * channels


# -- bytes of a part of a network: of the LayerSpecs, the bytes of a value, and what part it is


class Term(NamedTuple):
    """Something that takes bytes."""

    function: Callable[..., Number]
    """One of those below; Terms are compared a hundred thousand times, so no method of a class."""
    part: Any = None

    def of(self, specs: Specs, value: Number) -> Number:
        """Bytes of one architecture, or of each of a batch; `value` are those of a value of a map."""
        return self.function(specs, value, self.part)


def map_bytes(specs: Specs, value: Number, shape: Shape) -> Number:
    """A map of codes, aligned."""
    size, channels = _shape(shape, specs)
    return aligned(size * size * channels * value)


def scratch_of_layer(specs: Specs, value: Number, layer: str) -> Number:
    """Aligned."""
    spec = specs[layer]
    inputs = spec.kernel_size * spec.kernel_size * spec.group_channels
    bits = spec.weight_bits + (spec.weight_bits == 0)  # of a layer that is absent from some of a batch
    own = layer_scratch(inputs, spec.in_channels, bits, spec.depthwise)
    if spec.grouped > 1:
        before, after = spec.in_size**2 * spec.in_channels, spec.out_size**2 * spec.out_channels
        own = own + group_scratch(before * value // spec.grouped, after * value // spec.grouped)
    return aligned(own)


def scratch_of_average(specs: Specs, value: Number, part: tuple[Shape, int]) -> Number:
    """Aligned: of an average pooling of a map with a kernel, a depthwise convolution of ones."""
    channels, kernel = _shape(part[0], specs)[1], part[1]
    one, many = (layer_scratch(kernel * kernel, channels, 8, depthwise) for depthwise in (False, True))
    return aligned(one + (many - one) * (channels > 1))


def average_constants(specs: Specs, value: Number, part: tuple[Shape, int]) -> Number:
    """Those of an average pooling, as of a layer."""
    channels, kernel = _shape(part[0], specs)[1], part[1]
    return 4 * packed_words(1, kernel * kernel * channels, 8) + 8 * channels + LAYER_STRUCT


def scratch_of_mean(specs: Specs, value: Number, shape: Shape) -> Number:
    """Aligned."""
    return aligned(mean_scratch(_shape(shape, specs)[1]))


def layer_constants(specs: Specs, value: Number, layer: str) -> Number:
    """Packed weights, biases, ratios, and what holds them together; weights in float have four bytes each."""
    spec = specs[layer]
    inputs, outputs = spec.kernel_size * spec.kernel_size * spec.group_channels, spec.out_channels
    rows, columns = (1, inputs * outputs) if spec.depthwise else (outputs // spec.grouped, inputs)
    words = spec.grouped * packed_words(rows, columns, spec.weight_bits)
    words = words + inputs * outputs * (spec.weight_bits == FLOAT_BITS)
    return 4 * words + 8 * outputs + LAYER_STRUCT


def table_bytes(specs: Specs, value: Number, layer: str | None) -> Number:
    """The table of a lookup: a byte for each code on the grid of a layer's input, or on a calibrated one of 8 bits."""
    return 256 if layer is None else 2 ** np.minimum(specs[layer].act_bits, 8)


def pixel_tables(specs: Specs, value: Number, part: None) -> Number:
    """Those that make codes of pixels: a byte for each value of each channel of the image."""
    return 256 * next(iter(specs.values())).in_channels


def code_of_bits(specs: Specs, value: Number, depthwise: bool) -> Number:
    """Code for the bit-widths of weights, `depthwise` if any layer is, and for channels that are no multiple of 4."""
    found: Number = 0
    uneven: Number = 0
    for spec in specs.values():
        found = found | spec.present << spec.weight_bits
        if spec.depthwise:
            uneven = uneven | spec.present * (spec.out_channels % 4 > 0)
    total: Number = uneven * UNEVEN_CODE
    for bits, code in CODE_OF_BITS.items():
        own = code + depthwise * DEPTHWISE_CODE_OF_BITS[bits] + uneven * UNEVEN_CODE_OF_BITS[bits]
        total = total + (found >> bits & 1) * own
    return total


def class_names(specs: Specs, value: Number, part: None) -> Number:
    """As if they had 11 letters."""
    return CLASS_BYTES * list(specs.values())[-1].out_channels


def one_byte(specs: Specs, value: Number, part: None) -> Number:
    """What is the same in all architectures with the same calls is counted in such."""
    return 1


def _shape(shape: Shape, specs: Specs) -> tuple[Number, Number]:
    """(size, channels)."""
    first = next(iter(specs.values()))

    def outputs(layer: str) -> tuple[Number, Number]:
        return (specs[layer].out_size, specs[layer].out_channels) if layer else (first.in_size, first.in_channels)

    return shape.of(outputs)


def float_layers(specs: Specs) -> Number:
    """How many layers with weights or inputs in float an architecture has, or each of a batch."""
    floats = [s.present * ((s.weight_bits == FLOAT_BITS) | (s.act_bits == FLOAT_BITS)) for s in specs.values()]
    return np.sum(np.stack(np.broadcast_arrays(*floats)), axis=0)


def _value_bytes(specs: Specs) -> Number:
    """Of a code; four of a network with a layer in float, which computes in float."""
    return 1 + 3 * (float_layers(specs) > 0)


# -- the costs


@dataclass(frozen=True, eq=False)
class Needs:
    """What the calls of networks with the same layers need: how many of each term. Float64: its products are fast, and
    exact."""

    terms: tuple[Term, ...]
    live: np.ndarray
    """During each call, (calls, terms)."""
    constants: np.ndarray
    """In flash, (1, terms)."""
    code: np.ndarray
    """In flash, too, (1, terms)."""


@lru_cache(maxsize=2_000)  # up to 200 kB each
def needs(nodes: tuple[Node, ...], kinds: frozenset[str]) -> Needs:
    """What the calls of the nodes of a Plan need, which have layers of these `kinds` of KIND_CODE."""
    calls, quantizers = blank_calls(nodes)
    constant, code = len(calls), len(calls) + 1
    count: dict[Term, np.ndarray] = {}  # during each call, among constants, and among code

    def add(term: Term, first: int, last: int, times: int = 1) -> None:
        count.setdefault(term, np.zeros(len(calls) + 2))[first : last + 1] += times

    shapes, windows = {call.output: call.shape for call in calls}, {node.name: node.window for node in nodes}
    for name, (first, last) in lives(calls).spans.items():
        add(Term(map_bytes, shapes[name]), first, last)
    for i, call in enumerate(calls):
        if call.op in ("conv", "linear"):
            add(Term(scratch_of_layer, call.name), i, i)
            add(Term(layer_constants, call.name), constant, constant)
        elif call.op == "avgpool":
            of = shapes[call.inputs[0]], (windows[call.name] or POOL)[0]
            add(Term(scratch_of_average, of), i, i)
            add(Term(average_constants, of), constant, constant)
        elif call.op == "mean":
            add(Term(scratch_of_mean, call.shape), i, i)
        elif call.op == "pixels":
            add(Term(pixel_tables), constant, constant)
        elif call.op in ("lookup", "concat"):
            for name in call.read:
                grid = quantizers[name].grid
                add(Term(table_bytes, None if grid.endswith(".q") else grid), constant, constant)
    ops = [call.op for call in calls]
    fixed = CODE + sum(KIND_CODE[kind] for kind in kinds) + sum(CALL_CODE.get(op, OTHER_CALL_CODE) for op in ops)
    fixed += sum(OPERATION_CODE.get(op, 0) for op in set(ops))
    fixed += sum(OTHER_CALL_CODE * (len(call.inputs) - 1) for call in calls if call.op == "concat")
    for term, times in ((Term(code_of_bits, "depthwise" in kinds), 1), (Term(class_names), 1), (Term(one_byte), fixed)):
        add(term, code, code, times)
    table = np.stack(list(count.values()), axis=1)
    return Needs(tuple(count), table[:constant], table[constant:code], table[code:])


def _kinds(nodes: Sequence[Node], specs: Specs) -> frozenset[str]:
    """Of KIND_CODE."""
    layers = [specs[node.name] for node in nodes if node.op == "layer"]
    is_deep = any(spec.depthwise for spec in layers)
    found = {
        "depthwise": is_deep,
        "average": not is_deep and any(node.op == "avgpool" for node in nodes),  # a depthwise one of 8 bits
        "grouped": any(spec.grouped > 1 for spec in layers),
        "dilated": any(spec.dilation > 1 for spec in layers),
    }
    return frozenset(kind for kind, is_there in found.items() if is_there)


def check_kernel(name: str, kernel: int, padding: int, dilation: int) -> None:
    """Raise CannotRun for a convolution for which there is no kernel."""
    if padding > dilation * (kernel - 1):
        raise CannotRun(f"{name}: no kernel for convolutions of {kernel} x {kernel} with padding {padding}")


def _evaluate(specs: Specs, what: Callable[[Needs], np.ndarray]) -> Number:
    """The largest sum of bytes in a row of `what`, of one architecture or each of a batch."""
    if not isinstance(specs, Plan):
        raise ValueError("costs of memory read the operations between layers: give them what space.layers returns")
    for name, spec in specs.items():
        kernel = int(np.max(spec.kernel_size))
        check_kernel(name, kernel, kernel // 2 if spec.padding is None else spec.padding, spec.dilation)
    groups = [(places, needs(nodes, _kinds(nodes, specs))) for places, nodes in specs.groups()]
    terms = list(dict.fromkeys(term for _, each in groups for term in each.terms))
    place = {term: i for i, term in enumerate(terms)}
    count = specs.rows.count if specs.rows else 1
    table, value = np.empty((len(terms), count)), _value_bytes(specs)
    for i, term in enumerate(terms):
        table[i] = term.of(specs, value)
    found = np.empty(count, np.int64)
    for places, each in groups:
        columns = np.array([place[term] for term in each.terms])
        found[places] = (what(each) @ table[np.ix_(columns, places)]).max(axis=0)
    return found if specs.rows else int(found[0])


def ram_bytes(specs: Specs) -> Number:
    """Working memory of the network in C: the arena that `place` of `oncequant/export/program.py` plans.

    Not in it: the stack, about 500 bytes on a Cortex-M4, the picture and the logits. A network with a layer in float
    cannot run in C; it is counted as if it did, with four bytes for each value. Where two layers happen to learn the
    same grid, the arena may be smaller. Raises CannotRun (a ValueError) naming the operation for which there is no
    kernel in C; so do the costs below.
    """
    return _evaluate(specs, lambda needs: needs.live)


def constant_bytes(specs: Specs) -> Number:
    """Constants of the network in C: packed weights, biases, ratios, tables of codes.

    Weights in float have four bytes each. Where two layers happen to learn the same grid, a table is in it once too
    often.
    """
    return _evaluate(specs, lambda needs: needs.constants)


def flash_bytes(specs: Specs) -> Number:
    """Constants of the network in C, and an upper bound of its code on a Cortex-M4, some hundred bytes above.

    Names of classes are counted with 11 letters each. Without DSP instructions, on a Cortex-M0+ or M3, the code is
    other code, see docs/export.md.
    """
    return _evaluate(specs, lambda needs: needs.constants + needs.code)
