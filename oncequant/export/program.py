"""A graph as integer kernels run it: steps on maps of codes, and where the maps lie in one block of memory.

`program` finds in a `Graph` what `simulate.run_integer` computes with integers: an operation and the quantizer that
reads it are one step (`oncequant.structure` finds the calls, here they get weights, grids and tables). `place` plans
memory by liveness: each map has an offset in an arena, and maps that are never needed together share bytes. Generated
code (`c.py`) does no more than these steps at these offsets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from oncequant.export.graph import Graph, Grid, Node, Weights, grid_of
from oncequant.export.simulate import elementwise
from oncequant.grids import ELEMENTWISE
from oncequant.memory import aligned, check_kernel, group_scratch, layer_scratch, mean_scratch
from oncequant.plan import Window
from oncequant.structure import PIXELS, Call, CannotRun, calls_of, lives

TRIES = 30  # of an order, each with what lay too high before placed first


@dataclass(frozen=True)
class Map:
    """A tensor of codes, height x width x channels, channels last."""

    size: int
    """Height = width."""
    channels: int
    grid: Grid

    @property
    def bytes(self) -> int:
        """One byte a code."""
        return self.size * self.size * self.channels


@dataclass(frozen=True, eq=False)
class Step:
    """One kernel call."""

    op: str
    """That of a `structure.Call`."""
    name: str
    """Of the node."""
    inputs: tuple[str, ...]
    """Names of maps, or `PIXELS`."""
    output: str
    """Name of a map, or `LOGITS`."""
    weights: Weights | None = None
    grids: tuple[Grid, ...] = ()
    """What the codes of the inputs mean."""
    grid: Grid | None = None
    """Of the output's codes; None of logits."""
    table: Tensor | None = None
    """Of pixels (C, 256), of lookup (256,): codes, uint8."""
    channels: tuple[int, int] | None = None
    """Of pad_channels, slice and shuffle."""
    window: Window | None = None
    """Of pool and pad."""

    @property
    def is_depthwise(self) -> bool:
        """Each channel has its own kernel, and makes one."""
        return self.weights is not None and is_depthwise(self.weights)

    @property
    def groups(self) -> int:
        """Of a convolution that is computed group by group."""
        return 1 if self.weights is None or self.is_depthwise else self.weights.groups


class Geometry(NamedTuple):
    """A layer's maps as its kernel sees them."""

    size: int
    """Height = width of the input."""
    channels: int
    """Of the input."""
    kernel: int
    pad: int
    """Pixels around the input."""
    out_size: int


def is_depthwise(weights: Weights) -> bool:
    """Each channel has its own kernel, and makes one."""
    return weights.groups > 1 and weights.weight.shape[:2] == (weights.groups, 1)


@dataclass(frozen=True)
class Program:
    """Steps in order, from pixels to logits."""

    graph: Graph
    steps: tuple[Step, ...]
    maps: Mapping[str, Map]


@dataclass(frozen=True)
class Placement:
    """Where maps and scratch lie in the arena."""

    offsets: Mapping[str, int]
    """Of maps, in bytes."""
    scratch: tuple[int, ...]
    """Of each step's own memory, in bytes."""
    bytes: int
    """Of the arena."""


def program(graph: Graph) -> Program:
    """The steps of a graph whose layers are all integer. Raises CannotRun."""
    nodes, readers = graph.by_name(), graph.consumers()
    for node in graph.nodes:
        if node.op == "quantize" and readers[node.name]:
            if not 0 <= grid_of(node).zero_point < 2 ** grid_of(node).bits <= 256:
                raise CannotRun(f"{node.name}: the zero point of its grid is no code of 8 bits or less")
    tables: dict[str, Tensor] = {}

    def table(source: Node, moves: Sequence[Node], node: Node) -> bytes | None:
        tables[node.name] = found = _table(grid_of(source), moves, grid_of(node))
        codes = 2 ** grid_of(source).bits
        return None if (found[:codes] == torch.arange(codes)).all() else found.numpy().tobytes()

    steps: list[Step] = []
    maps: dict[str, Map] = {}
    outputs = {"": (graph.resolution, graph.channels)}  # (size, channels) by layer
    for call in calls_of(graph.nodes, table):
        weights = nodes[call.name].weights
        read = tuple(grid_of(nodes[name]) for name in call.read)
        grid = None if call.grid is None else grid_of(nodes[call.grid])
        before = [maps[name] for name in call.inputs if name != PIXELS]
        if call.op == "conv":
            assert weights is not None
            outputs[call.name] = _output(call.name, weights, before[0])
        elif call.op in ("linear", "logits") and before[0].size != 1:
            raise CannotRun(f"{call.name} reads a map of more than one pixel")
        _check_shapes(call, before)
        if call.op == "pixels":
            tables[call.name] = _pixel_table(graph, grid_of(nodes[call.name]))
        if grid is not None:
            maps[call.output] = Map(*call.shape.of(outputs.__getitem__), grid)
        own = tables[call.name] if call.op in ("pixels", "lookup") else None
        node = nodes[call.name]
        more = weights, read, grid, own, node.channels, node.window
        steps.append(Step(call.op, call.name, call.inputs, call.output, *more))
    return Program(graph, tuple(steps), maps)


def _pixel_table(graph: Graph, grid: Grid) -> Tensor:
    """Codes of raw pixels: a table for each channel."""
    every = torch.arange(256.0).view(1, 1, 16, 16).expand(1, graph.channels, 16, 16).contiguous()
    return grid.quantize(graph.normalise(every)).view(graph.channels, 256).to(torch.uint8)


def _table(before: Grid, moves: Sequence[Node], grid: Grid) -> Tensor:
    """The codes of a grid, moved and activated, on another. Raises CannotRun."""
    values = before.dequantize(torch.arange(256.0).clamp(max=before.top))
    zero = torch.zeros(1)
    for move in moves:
        if move.op in ELEMENTWISE:
            values, zero = elementwise(move.op, values), elementwise(move.op, zero)
        elif move.op == "maxpool" and (values.diff() < 0).any() or move.op.startswith("pad") and zero.item() != 0:
            raise CannotRun(f"{move.name}: {move.op} behind an activation that is not monotone, or not 0 at 0")
    return grid.quantize(values).to(torch.uint8)


def _output(name: str, weights: Weights, before: Map) -> tuple[int, int]:
    """(size, channels) of what a convolution makes. Raises CannotRun."""
    shape, kernel = weights.weight.shape, weights.weight.shape[-1]
    if shape[2] != kernel or shape[1] * weights.groups != before.channels:
        raise CannotRun(f"{name}: no kernel for weights of shape {tuple(shape)}")
    check_kernel(name, kernel, weights.pad, weights.dilation)
    reach = weights.dilation * (kernel - 1) + 1
    return (before.size + 2 * weights.pad - reach) // weights.stride + 1, shape[0]


def geometry(step: Step, maps: Mapping[str, Map]) -> Geometry:
    """How the kernel of a layer sees its maps: what reads a whole map at once reads one pixel of many channels."""
    before, weights = maps[step.inputs[0]], step.weights
    assert weights is not None
    if step.op == "linear":
        return Geometry(1, before.channels, 1, 0, 1)
    kernel, is_plain = weights.weight.shape[-1], weights.groups == weights.dilation == 1 and weights.pad == 0
    if is_plain and kernel == before.size:
        return Geometry(1, before.bytes, 1, 0, 1)
    return Geometry(before.size, before.channels, kernel, weights.pad, maps[step.output].size)


def _check_shapes(call: Call, before: Sequence[Map]) -> None:
    """Raise CannotRun for sums and products of maps that do not go together."""
    if call.op in ("add", "multiply"):
        a, b = ((each.size, each.channels) for each in before)
        if a != b and (call.op == "add" or b != (1, a[1])):
            raise CannotRun(f"{call.name}: no kernel for maps of different shapes")


# -- memory


def scratch_bytes(step: Step, maps: Mapping[str, Map]) -> int:
    """What a kernel needs for itself."""
    if step.weights is None:
        return mean_scratch(maps[step.output].channels) if step.op == "mean" else 0
    before, weight = maps[step.inputs[0]], step.weights.weight
    own = layer_scratch(weight[0].numel(), before.channels, step.weights.bits, step.is_depthwise)
    if step.groups == 1:
        return own
    after = maps[step.output]
    return own + group_scratch(before.bytes // step.groups, after.bytes // step.groups)


def place(program: Program) -> Placement:
    """Offsets by liveness, each as low as the maps that live at the same time and were placed before let it.

    Less than what lives together at some step is impossible, and that is what the cost `ram_bytes` counts. Placing the
    largest first nearly always comes down to it. Where it does not, what lies too high is placed before everything
    else, again and again, at last from orders by first step and by life: that found the least for all of thousands of
    architectures of every preset (`tests/test_memory.py` has some).
    """
    steps, maps = program.steps, program.maps
    home, lived = lives(steps)
    spans, sizes = dict(lived), {name: aligned(maps[name].bytes) for name in lived}
    for i, step in enumerate(steps):
        if size := scratch_bytes(step, maps):
            spans[f"scratch {i}"], sizes[f"scratch {i}"] = (i, i), aligned(size)
    least = max(sum(sizes[name] for name, span in spans.items() if _meet(span, (i, i))) for i in range(len(steps)))
    best: dict[str, int] = {}
    height = 0
    keys: list[Callable[[str], tuple[int, ...]]] = [
        lambda name: (-sizes[name],),
        lambda name: (spans[name][0], -sizes[name]),
        lambda name: (spans[name][0] - spans[name][1], -sizes[name]),
    ]
    for key in keys:
        order = sorted(spans, key=key)
        for _ in range(TRIES):
            placed = _placed(order, spans, sizes)
            if not best or _height(placed, sizes) < height:
                best, height = placed, _height(placed, sizes)
            if height == least:
                break
            order.sort(key=lambda name: placed[name] + sizes[name] <= least)  # stable
    offsets = {step.output: best[home[step.output]] for step in steps[:-1]}
    scratch = tuple(best.get(f"scratch {i}", 0) for i in range(len(steps)))
    return Placement(offsets, scratch, height)


def _placed(order: Sequence[str], spans: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> dict[str, int]:
    """Offsets, one after the other."""
    placed: dict[str, int] = {}
    for name in order:
        at = 0
        for start, end in sorted((placed[o], placed[o] + sizes[o]) for o in placed if _meet(spans[o], spans[name])):
            if at + sizes[name] <= start:
                break
            at = max(at, end)
        placed[name] = at
    return placed


def _height(placed: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    return max(at + sizes[name] for name, at in placed.items())


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]
