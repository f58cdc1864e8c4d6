"""Where a deployed network has quantizers: those that training had, and 8-bit grids between its layers.

The passes work on nodes that have a name, an operation and inputs. `oncequant.export.lower` calls them with the nodes
of a `Graph`, which have weights and grids. The costs of memory (`oncequant.memory`) call them with `Blank`s made of a
Plan, before anything is trained. Operations are those of `oncequant.export.graph.OPS`.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from oncequant import plan as planned

ELEMENTWISE = ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid")
TABLED = ("silu", "sigmoid")  # runtimes compute them by formulas of their own, so integer kernels look them up
CLAMPS = {"relu": None, "relu6": 6.0}  # which a quantizer behind them does as well, up to a bound
MOVES = ("maxpool", "subsample", "pad", "pad_channels", "slice", "shuffle")  # results are among their inputs, or zero


class Operation(Protocol):
    """What the passes ask of a node."""

    @property
    def name(self) -> str:
        """Of its value, too."""

    @property
    def op(self) -> str:
        """One of OPS."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of earlier nodes."""

    @property
    def channels(self) -> tuple[int, int] | None:
        """Of pad_channels, slice and shuffle: see plan.Node."""

    @property
    def window(self) -> planned.Window | None:
        """Of pools and pad: see plan.Node."""

    @property
    def is_integer(self) -> bool:
        """Of a conv or linear: integer weights on a quantized input."""

    @property
    def is_unsigned(self) -> bool:
        """Of a quantizer: no code stands for a negative number."""


AnyNode = TypeVar("AnyNode", bound=Operation)


@dataclass(frozen=True)
class Blank:
    """A node without weights and grids."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    channels: tuple[int, int] | None = None
    window: planned.Window | None = None
    grid: str = ""
    """Of a quantizer: the layer that learned the grid, or NAME.q where it is calibrated behind node NAME."""
    is_integer: bool = True
    is_unsigned: bool = True
    """A grid behind a ReLU is. Whether others are changes no call."""

    def limited(self, value: float) -> "Blank":
        """A bound of the values changes no call."""
        return self


def readers_of(nodes: Sequence[AnyNode]) -> Mapping[str, list[AnyNode]]:
    """Nodes that read each node, one entry per read."""
    readers: dict[str, list[AnyNode]] = {node.name: [] for node in nodes}
    for node in nodes:
        for source in node.inputs:
            readers[source].append(node)
    return readers


def blanks(nodes: Sequence[planned.Node], is_float: Callable[[str], bool] = lambda layer: False) -> list[Blank]:
    """The nodes of a Plan as a graph has them, with the quantizers that training had: of every layer's input, unless
    `is_float(layer)`. An average pooling is a convolution, named `avgpool` until it gets its weights."""
    made = [Blank("pixels", "pixels"), Blank("normalised", "normalise", ("pixels",))]
    names = {"images": "normalised"}

    def add(name: str, op: str, *inputs: str, **rest: Any) -> str:
        made.append(Blank(name, op, inputs, **rest))
        return name

    def layer(name: str, op: str, x: str) -> str:
        return add(name, op, x if is_float(name) else add(f"{name}.in", "quantize", x, grid=name))

    for node in nodes:
        inputs = [names[name] for name in node.inputs]
        if node is nodes[-1] and node.op == "layer":
            (x,) = inputs
            if made[-1].name == x and made[-1].op == "mean" and not is_float(node.name):
                # on the classifier's grid already here: an integer kernel then, and rounding twice changes nothing
                x = add(f"{x}.q", "quantize", x, grid=node.name)
            # flattened before the classifier's quantizer: between the two, ONNX Runtime would not see its QGemm pattern
            names[node.name] = layer(node.name, "linear", add("flat", "flatten", x))
        elif node.op == "layer":
            names[node.name] = layer(node.name, "conv", *inputs)
        elif node.op in ("dropout", "optional"):
            names[node.name] = inputs[0]
        else:
            names[node.name] = add(node.name, node.op, *inputs, channels=node.channels, window=node.window)
    if nodes[-1].op != "layer":
        add("flat", "flatten", names[nodes[-1].name])
    return made


def needs_grid(graph: Sequence[AnyNode]) -> set[str]:
    """Nodes whose output integer kernels need on a grid and training left in float.

    Kernels fuse an operation with the quantizers of its inputs and one quantizer of its output.
    """
    nodes, readers = {node.name: node for node in graph}, readers_of(graph)

    def on_one_grid(name: str) -> bool:
        return [reader.op for reader in readers[name]] == ["quantize"]

    def end_of(name: str) -> str:
        """The node or the ReLU that alone reads it, which is no operation of its own: the grid after it clamps."""
        return readers[name][0].name if len(readers[name]) == 1 and readers[name][0].op in CLAMPS else name

    def behind(node: AnyNode) -> set[str]:
        """Where its result needs a grid: behind it, or behind that ReLU."""
        if not on_one_grid(end := end_of(node.name)):
            return {end}
        clamps = end == node.name or readers[end][0].is_unsigned
        return set() if clamps else {node.name}

    def off_grid(node: AnyNode) -> set[str]:
        """What it reads that is on no grid yet."""
        return {source for source in node.inputs if nodes[source].op != "quantize"}

    def in_float(node: AnyNode) -> bool:
        """Whether a layer in float reads it, the classifier perhaps."""
        ends = graph[-1].op == "linear"
        return any(r.op in ("conv", "avgpool", "linear") or r.op == "flatten" and ends for r in readers[node.name])

    integer: set[str] = set()  # nodes that come out of integer kernels or of an activation between two of them
    needed: set[str] = set()
    for node in graph[:-1]:  # the classifier's logits stay float
        sources = [source in integer for source in node.inputs]
        match node.op:
            case "quantize":
                integer.add(node.name)
            case _ if node.op in TABLED and sources[0]:
                integer.add(node.name)
                needed |= off_grid(node)
                if any(reader.op != "quantize" for reader in readers[node.name]):
                    needed.add(node.name)
            case _ if node.op in (*ELEMENTWISE, *MOVES, "flatten") and sources[0]:
                integer.add(node.name)
            case "conv" | "avgpool" if node.is_integer:
                integer.add(node.name)
                needed |= off_grid(node)  # of an average pooling: the others have their quantizer
                needed |= behind(node)
            case "add" | "multiply" | "mean" | "concat":
                floats = [nodes[i].op == "conv" and not nodes[i].is_integer for i in node.inputs]
                whole = any(sources) and not any(floats) if node.op == "add" else all(sources)
                if whole and not (node.op == "mean" and in_float(node)):
                    integer.add(node.name)
                    needed |= off_grid(node)
                    needed |= behind(node)
    return needed


def grid_owners(graph: Sequence[Operation], names: Set[str]) -> dict[str, str]:
    """By node of `names`, which get a grid each, whose grid that is: what only moves codes keeps theirs."""
    nodes, owners = {node.name: node for node in graph}, {}
    for name in (node.name for node in graph if node.name in names):  # in order, for equal files of equal networks
        source = name
        while nodes[source].op in MOVES:
            source = nodes[source].inputs[0]
        owners[name] = source if source in names else name
    return owners


def with_quantizers(graph: Sequence[Any], quantizers: Mapping[str, Any]) -> list[Any]:
    """Insert a quantizer behind each node that has one, and drop ReLUs that only grids without negative codes read. The
    grids behind a ReLU6 end at 6."""
    renamed = {name: quantizer.name for name, quantizer in quantizers.items()}
    nodes = []
    for node in graph:
        nodes.append(replace(node, inputs=tuple(renamed.get(source, source) for source in node.inputs)))
        if node.name in quantizers:
            nodes.append(quantizers[node.name])
    readers = readers_of(nodes)
    idle = {
        node.name: node.inputs[0]
        for node in nodes
        if node.op in CLAMPS and all(r.op == "quantize" and r.is_unsigned for r in readers[node.name])
    }
    bounds = {
        reader.name: bound
        for node in nodes
        if node.name in idle and (bound := CLAMPS[node.op]) is not None
        for reader in readers[node.name]
    }
    nodes = [n.limited(bounds[n.name]) if n.name in bounds else n for n in nodes]
    return [replace(n, inputs=tuple(idle.get(s, s) for s in n.inputs)) for n in nodes if n.name not in idle]
