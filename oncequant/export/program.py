"""A graph as integer kernels run it: steps on maps of codes, and where the maps lie in one block of memory.

`program` finds in a `Graph` what `simulate.run_integer` computes with integers: an operation and the quantizer that
reads it are one step. `place` plans memory by liveness: each map has an offset in an arena, and maps that are never
needed together share bytes. Generated code (`c.py`) does no more than these steps at these offsets.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oncequant.export.graph import Graph, Grid, Node, Weights, grid_of, weights_of
from oncequant.export.packing import LANES, padded_inputs
from oncequant.export.simulate import elementwise

FUSED = ("conv", "add", "multiply", "mean")  # with the one quantizer that reads them
ELEMENTWISE = ("relu", "hardswish", "hardsigmoid")
MOVES = ("maxpool", "subsample", "pad_channels")
PIXELS, LOGITS = "pixels", "logits"
ALIGNMENT = 16  # bytes, of maps
MOST_KERNEL = 7
COLUMNS = 4  # output pixels that a convolution computes together, at most: bytes of scratch


class CannotRun(ValueError):
    """Integer kernels do not compute this graph; the message names the node and why."""


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
    """pixels, lookup, linear, or an operation of a graph: conv, add, multiply, mean, maxpool, subsample,
    pad_channels."""
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
    """Of pad_channels."""

    @property
    def is_depthwise(self) -> bool:
        """Each channel has its own kernel."""
        return self.op == "conv" and self.weights is not None and self.weights.groups > 1


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
    return _Builder(graph).build()


class _Builder:
    """Goes through a graph's quantizers, in order."""

    def __init__(self, graph: Graph):
        self.graph, self.nodes, self.readers = graph, graph.by_name(), graph.consumers()
        self.steps: list[Step] = []
        self.maps: dict[str, Map] = {}
        self.same: dict[str, str] = {}  # quantizer -> that of the map with its codes
        self.tables: dict[tuple[str, bytes], str] = {}  # (map, table of a lookup) -> the map that it gives

    def build(self) -> Program:
        for node in self.graph.nodes:
            if node.op == "quantize":
                self.quantized(node)
        last = self.graph.nodes[-1]
        source = self.nodes[last.inputs[0]]
        if source.op != "quantize" or not weights_of(last).is_integer:
            raise CannotRun(f"{last.name} has weights or inputs in float")
        if self.maps[source.name].size != 1:
            raise CannotRun(f"{last.name} reads a map of more than one pixel")
        self.steps.append(
            Step("linear", last.name, (self.codes(source.name),), LOGITS, weights_of(last), (grid_of(source),))
        )
        return Program(self.graph, tuple(self.steps), self.maps)

    def codes(self, name: str) -> str:
        """The map with the codes of a quantizer."""
        return self.same.get(name, name)

    def quantized(self, node: Node) -> None:
        """The steps whose result is this quantizer's codes."""
        if not self.readers[node.name]:
            return
        if not 0 <= grid_of(node).zero_point < 2 ** grid_of(node).bits <= 256:
            raise CannotRun(f"{node.name}: the zero point of its grid is no code of 8 bits or less")
        moves: list[Node] = []  # between the quantizer and what it quantizes, nearest last
        source = self.nodes[node.inputs[0]]
        while source.op in (*ELEMENTWISE, *MOVES, "flatten"):
            moves.insert(0, source)
            source = self.nodes[source.inputs[0]]
        if source.op == "normalise":
            self.pixels(node, moves)
        elif source.op == "quantize":
            self.moved(node, source, moves)
        elif source.op in FUSED:
            self.fused(node, source, moves)
        else:
            raise CannotRun(f"{source.name}: no kernel for {source.op}")

    def pixels(self, node: Node, moves: list[Node]) -> None:
        """Codes of raw pixels: a table for each channel."""
        if moves:
            raise CannotRun(f"{moves[0].name}: {moves[0].op} of pixels in float")
        grid, channels = grid_of(node), self.graph.channels
        every = torch.arange(256.0).view(1, 1, 16, 16).expand(1, channels, 16, 16).contiguous()
        table = grid.quantize(self.graph.normalise(every)).view(channels, 256).to(torch.uint8)
        self.maps[node.name] = Map(self.graph.resolution, channels, grid)
        self.steps.append(Step("pixels", node.name, (PIXELS,), node.name, grid=grid, table=table))

    def moved(self, node: Node, source: Node, moves: list[Node]) -> None:
        """Codes of codes: they are moved first, then looked up."""
        name, grid = self.codes(source.name), grid_of(node)
        before = self.maps[source.name]
        values = before.grid.dequantize(torch.arange(256.0).clamp(max=2**before.grid.bits - 1))
        zero = torch.zeros(1)
        for i, move in enumerate(moves):
            size, channels = before.size, before.channels
            if move.op in ELEMENTWISE:
                values, zero = elementwise(move.op, values), elementwise(move.op, zero)
                continue
            if move.op == "flatten":
                continue
            if move.op == "maxpool" and (values.diff() < 0).any() or move.op == "pad_channels" and zero.item() != 0:
                raise CannotRun(f"{move.name}: {move.op} behind an activation that is not monotone, or not 0 at 0")
            if move.op == "pad_channels":
                assert move.channels is not None
                channels += sum(move.channels)
            else:
                size = (size + 1) // 2
            output = f"{node.name}~{i}"
            before = self.maps[output] = Map(size, channels, before.grid)
            step = Step(move.op, move.name, (name,), output, None, (before.grid,), before.grid, None, move.channels)
            self.steps.append(step)
            name = output
        self.maps[node.name] = Map(before.size, before.channels, grid)
        table = grid.quantize(values).to(torch.uint8)
        known = self.tables.setdefault((name, table.numpy().tobytes()), node.name)
        if (table[: 2**before.grid.bits] == torch.arange(2**before.grid.bits)).all():
            self.same[node.name] = name
        elif known != node.name:  # two layers read one tensor by one grid
            self.same[node.name] = self.codes(known)
        else:
            self.steps.append(Step("lookup", node.name, (name,), node.name, None, (before.grid,), grid, table))

    def fused(self, node: Node, source: Node, moves: list[Node]) -> None:
        """An operation on codes with the quantizer behind it."""
        weights, inputs = source.weights, [self.nodes[name] for name in source.inputs]
        if weights is not None and not weights.is_integer:
            raise CannotRun(f"{source.name} has weights or inputs in float")
        if moves or self.readers[source.name] != [node] or any(each.op != "quantize" for each in inputs):
            raise CannotRun(f"{source.name}: {source.op} is not between quantizers, so it is computed in float")
        before = self.maps[inputs[0].name]
        size, channels = before.size, before.channels
        if source.op == "conv":
            assert weights is not None
            kernel = weights.weight.shape[-1]
            size = (size + 2 * (kernel // 2) - kernel) // weights.stride + 1
            channels = len(weights.weight)
            shape = weights.weight.shape
            if shape[2] != kernel or shape[1] * weights.groups != before.channels:
                raise CannotRun(f"{source.name}: no kernel for weights of shape {tuple(shape)}")
            if kernel > MOST_KERNEL:
                raise CannotRun(f"{source.name}: no kernel for convolutions of {kernel} x {kernel}")
            if weights.groups > 1 and not weights.groups == channels == before.channels:
                raise CannotRun(f"{source.name}: no kernel for convolutions of {weights.groups} groups")
        elif source.op == "mean":
            size = 1
        elif source.op == "multiply" and self.maps[inputs[1].name].size != 1:
            inputs.reverse()
            size, channels = self.maps[inputs[0].name].size, self.maps[inputs[0].name].channels
            if self.maps[inputs[1].name].size != 1:
                raise CannotRun(f"{source.name}: no kernel for products of two maps")
        if source.op in ("add", "multiply"):
            shapes = [(self.maps[each.name].size, self.maps[each.name].channels) for each in inputs]
            if shapes[0][1] != shapes[1][1] or source.op == "add" and shapes[0] != shapes[1]:
                raise CannotRun(f"{source.name}: no kernel for maps of different shapes")
        self.maps[node.name] = Map(size, channels, grid_of(node))
        names = tuple(self.codes(each.name) for each in inputs)
        grids = tuple(grid_of(each) for each in inputs)
        self.steps.append(Step(source.op, source.name, names, node.name, weights, grids, grid_of(node)))


# -- memory


def scratch_bytes(step: Step, maps: Mapping[str, Map]) -> int:
    """What a kernel needs for itself: columns of a convolution, sums of a channel, unpacked depthwise weights."""
    if step.weights is None:
        return 4 * maps[step.output].channels if step.op == "mean" else 0
    channels, weight = maps[step.inputs[0]].channels, step.weights.weight
    inputs = weight[0].numel()
    if step.is_depthwise:
        pairs = -(-inputs // 2)  # of kernel positions; their weights in 16 bits, and a row of zero points
        return 4 * LANES * -(-channels // LANES) * pairs + channels
    # the codes that one output pixel reads, and columns: four pixels of bytes, or two of 16 bits on a Cortex-M
    return aligned(inputs) + COLUMNS * padded_inputs(inputs, step.weights.bits)


def place(program: Program) -> Placement:
    """Offsets by liveness: largest map first, each as low as those that live at the same time let it.

    A map that an element-wise step writes takes the bytes of an input that nobody needs any more.
    """
    maps, steps = program.maps, program.steps
    born: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, step in enumerate(steps):
        born.setdefault(step.output, i)
        last |= dict.fromkeys(step.inputs, i)
    home: dict[str, str] = {}  # map -> the first one that had its bytes
    for i, step in enumerate(steps):
        home[step.output] = step.output
        for name in step.inputs if step.op in ("lookup", "add", "multiply") else ():
            if last[name] == i and maps[name].bytes == maps[step.output].bytes:
                home[step.output] = home[name]
                break
    sizes: dict[str, int] = {}
    lives: dict[str, tuple[int, int]] = {}
    for step in steps[:-1]:  # logits are the caller's
        name, root = step.output, home[step.output]
        first, until = lives.get(root, (born[name], 0))
        lives[root] = min(first, born[name]), max(until, last[name])
        sizes[root] = maps[name].bytes
    own = [scratch_bytes(step, maps) for step in steps]
    for i, size in enumerate(own):
        if size:
            lives[f"scratch {i}"], sizes[f"scratch {i}"] = (i, i), size
    placed: dict[str, int] = {}
    for name in sorted(lives, key=lambda name: -sizes[name]):
        at = 0
        for start, end in sorted((placed[o], placed[o] + sizes[o]) for o in placed if _meet(lives[o], lives[name])):
            if at + sizes[name] <= start:
                break
            at = max(at, aligned(end))
        placed[name] = at
    offsets = {step.output: placed[home[step.output]] for step in steps[:-1]}
    scratch = tuple(placed.get(f"scratch {i}", 0) for i in range(len(steps)))
    return Placement(offsets, scratch, aligned(max(placed[name] + sizes[name] for name in placed)))


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def aligned(size: int) -> int:
    """Rounded up to `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT
