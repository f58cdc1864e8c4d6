"""What deployment makes of a network, as far as its weights do not matter: kernel calls, what lives when.

`oncequant.export.program` calls this with the nodes of a `Graph`, which have weights and grids. The costs of memory
(`oncequant.memory`) call it with `Blank`s made of a Plan: the same calls, before anything is trained. Where the grids
are between the layers, `oncequant.grids` finds out.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from oncequant import plan as planned
from oncequant.grids import (
    ELEMENTWISE,
    MOVES,
    AnyNode,
    Blank,
    blanks,
    grid_owners,
    needs_grid,
    readers_of,
    with_quantizers,
)

FUSED = ("conv", "avgpool", "add", "multiply", "mean", "concat")  # with the one quantizer that reads them
EVERY_SECOND: planned.Window = (1, 2, 0, 0)
PIXELS, LOGITS = "pixels", "logits"


class CannotRun(ValueError):
    """Integer kernels do not compute this graph; the message names the node and why."""


class Shape(NamedTuple):
    """That of a map, by what it was made of."""

    layer: str
    """Whose output it was; "" for the image's pixels."""
    windows: tuple[planned.Window, ...] = ()
    """Of operations behind it that make it smaller: kernel, stride, pixels added before and after."""
    added: int = 0
    """Channels."""
    is_mean: bool = False
    """One pixel."""
    kept: int | None = None
    """Channels, where some were left out."""
    parts: tuple[Any, ...] = ()
    """The Shapes of maps whose channels it has, of a concatenation; then there is no `layer`."""

    def of(self, outputs: Callable[[str], tuple[Any, Any]]) -> tuple[Any, Any]:
        """(height = width, channels), of those of layers' outputs."""
        found = [part.of(outputs) for part in self.parts] or [outputs(self.layer)]
        size, channels = found[0][0], self.kept or sum(each for _, each in found)
        for kernel, stride, before, after in self.windows:
            size = (size + before + after - kernel) // stride + 1
        return (size if not self.is_mean else 1), channels + self.added


@dataclass(frozen=True)
class Call:
    """One kernel call, from maps of codes to one."""

    op: str
    """pixels, lookup, linear, logits of codes, pool (a maxpool with another window), or an operation of a graph: conv,
    add, multiply, mean, concat, maxpool, subsample, pad, pad_channels, slice, shuffle; avgpool, which a graph has as a
    conv."""
    name: str
    """Of the node."""
    inputs: tuple[str, ...]
    """Names of maps, or `PIXELS`."""
    output: str
    """Name of a map, or `LOGITS`."""
    shape: Shape
    """Of the output."""
    read: tuple[str, ...] = ()
    """The quantizers whose grids say what the codes of the inputs mean."""
    grid: str | None = None
    """The quantizer whose grid the output's codes are on; None of logits."""


def calls_of(
    graph: Sequence[AnyNode], table: Callable[[AnyNode, Sequence[AnyNode], AnyNode], Hashable | None]
) -> list[Call]:
    """The kernel calls of a graph, in order, from pixels to logits. Raises CannotRun.

    Args:
        graph: nodes in order.
        table: of a quantizer, activations and moves behind it, and a quantizer behind those: what tells their tables
            of codes apart; None where every code stays as it is.
    """
    return _Calls(graph, table).calls()


class _Calls:
    """Goes through a graph's quantizers, in order: an operation and the quantizer that reads it are one call."""

    def __init__(self, graph: Sequence[Any], table: Callable[[Any, Sequence[Any], Any], Hashable | None]):
        self.graph, self.nodes, self.readers = graph, {node.name: node for node in graph}, readers_of(graph)
        self.table = table
        self.found: list[Call] = []
        self.shapes: dict[str, Shape] = {}  # by quantizer and map
        self.same: dict[str, str] = {}  # quantizer -> that of the map with its codes
        self.tables: dict[tuple[str, Hashable], str] = {}  # (map, table of a lookup) -> the map that it gives

    def calls(self) -> list[Call]:
        for node in self.graph:
            if node.op == "quantize" and self.readers[node.name]:
                self.quantized(node)
        last = self.graph[-1]
        source = self.nodes[last.inputs[0]]
        if source.op != "quantize" or last.op == "linear" and not last.is_integer:
            raise CannotRun(f"{last.name} has weights or inputs in float")
        codes = self.codes(source.name)
        shape = Shape(last.name) if last.op == "linear" else self.shapes[codes]
        op = "linear" if last.op == "linear" else "logits"
        self.found.append(Call(op, last.name, (codes,), LOGITS, shape, (source.name,)))
        return self.found

    def codes(self, name: str) -> str:
        """The map with the codes of a quantizer."""
        return self.same.get(name, name)

    def quantized(self, node: Any) -> None:
        """The calls whose result is this quantizer's codes."""
        moves: list[Any] = []  # between the quantizer and what it quantizes, nearest last
        source = self.nodes[node.inputs[0]]
        while source.op in (*ELEMENTWISE, *MOVES, "flatten"):
            moves.insert(0, source)
            source = self.nodes[source.inputs[0]]
        if source.op == "normalise":
            if moves:
                raise CannotRun(f"{moves[0].name}: {moves[0].op} of pixels in float")
            self.add("pixels", node.name, (PIXELS,), node.name, Shape(""), (), node.name)
        elif source.op == "quantize":
            self.moved(node, source, moves)
        elif source.op in FUSED:
            self.fused(node, source, moves)
        else:
            raise CannotRun(f"{source.name}: no kernel for {source.op}")

    def add(self, op: str, name: str, inputs: tuple[str, ...], output: str, shape: Shape, read: Any, grid: str) -> None:
        self.shapes[output] = self.shapes[grid] = shape
        self.found.append(Call(op, name, inputs, output, shape, read, grid))

    def moved(self, node: Any, source: Any, moves: Sequence[Any]) -> None:
        """Codes of codes: they are moved first, then looked up."""
        table = self.table(source, moves, node)
        name, shape = self.codes(source.name), self.shapes[source.name]
        for i, move in enumerate(moves):
            if move.op not in MOVES:
                continue
            op, window = move.op, EVERY_SECOND if move.op == "subsample" else move.window or planned.POOL
            if op == "maxpool" and window != planned.POOL:
                op = "pool"
            if move.op == "pad_channels":
                shape = shape._replace(added=shape.added + sum(move.channels))
            elif move.op == "pad":
                left, right, above, below = window
                if left + right != above + below:
                    raise CannotRun(f"{move.name}: no kernel for a map that is not square")
                shape = shape._replace(windows=(*shape.windows, (1, 1, left, right)))
            elif move.op == "slice":
                shape = shape._replace(added=0, kept=move.channels[1] - move.channels[0])
            elif move.op != "shuffle":
                shape = shape._replace(windows=(*shape.windows, window))
            call = Call(op, move.name, (name,), f"{node.name}~{i}", shape, (source.name,), source.name)
            self.found.append(call)
            name = self.found[-1].output
        self.shapes[node.name] = shape
        known = node.name if table is None else self.tables.setdefault((name, table), node.name)
        if table is None:
            self.same[node.name] = name
        elif known != node.name:  # two layers read one tensor by one grid
            self.same[node.name] = self.codes(known)
        else:
            self.add("lookup", node.name, (name,), node.name, shape, (source.name,), node.name)

    def fused(self, node: Any, source: Any, moves: Sequence[Any]) -> None:
        """An operation on codes with the quantizer behind it."""
        inputs = [self.nodes[name] for name in source.inputs]
        if source.op == "conv" and not source.is_integer:
            raise CannotRun(f"{source.name} has weights or inputs in float")
        if moves or self.readers[source.name] != [node] or any(each.op != "quantize" for each in inputs):
            raise CannotRun(f"{source.name}: {source.op} is not between quantizers, so it is computed in float")
        if source.op == "multiply" and self.shapes[inputs[0].name].is_mean:
            inputs.reverse()  # the map first, what it is multiplied by behind it
        shape = self.shapes[inputs[0].name]
        if source.op == "conv":
            shape = Shape(source.name)
        elif source.op == "avgpool":
            shape = shape._replace(windows=(*shape.windows, source.window or planned.POOL))
        elif source.op == "concat":
            shape = Shape("", parts=tuple(self.shapes[each.name] for each in inputs))
        else:
            shape = shape._replace(is_mean=shape.is_mean or source.op == "mean")
        names = tuple(self.codes(each.name) for each in inputs)
        read = tuple(each.name for each in inputs)
        self.add(source.op, source.name, names, node.name, shape, read, node.name)


# -- what lives when


class Lives(NamedTuple):
    """Which bytes are needed when."""

    home: Mapping[str, str]
    """By map the first one that had its bytes."""
    spans: Mapping[str, tuple[int, int]]
    """By such a first map the calls, from and to, during which its bytes are taken."""


def lives(calls: Sequence[Any]) -> Lives:
    """Lives of the maps of calls (or of steps).

    A map that an element-wise call writes takes the bytes of an input that nobody needs any more.
    """
    last = {name: i for i, call in enumerate(calls) for name in call.inputs}
    home: dict[str, str] = {}
    spans: dict[str, tuple[int, int]] = {}
    for i, call in enumerate(calls[:-1]):  # logits are the caller's
        reused = {"lookup": call.inputs, "add": call.inputs, "multiply": call.inputs[:1]}.get(call.op, ())
        root = next((home[name] for name in reused if last[name] == i), call.output)
        home[call.output] = root
        spans[root] = spans.get(root, (i, i))[0], last[call.output]
    return Lives(home, spans)


def blank_calls(nodes: Sequence[planned.Node]) -> tuple[list[Call], Mapping[str, Blank]]:
    """The calls of the nodes of a Plan if all its layers are quantized, and its quantizers by name. Every grid differs
    from every other, as in a trained network."""
    graph = blanks(nodes)
    owners = grid_owners(graph, needs_grid(graph))
    graph = with_quantizers(
        graph, {name: Blank(f"{name}.q", "quantize", (name,), grid=f"{owner}.q") for name, owner in owners.items()}
    )
    calls = calls_of(graph, lambda source, moves, node: None if source.grid == node.grid else node.grid)
    return calls, {node.name: node for node in graph if node.op == "quantize"}
