"""A network described once: the layers of an architecture, and the operations between them.

A family of networks is one function `describe(config, values) -> Plan`. It is written like a forward pass, on `Value`s
instead of tensors. Costs and reports read the Plan's LayerSpecs; `oncequant.network.Network` computes its nodes, and
`oncequant.export.lower` deploys them. `values` are ints by choice name (one architecture) or NumPy vectors (a batch of
them, for costs): then the numeric fields of the LayerSpecs are vectors, and `Plan.groups` tells the nodes.

A layer is named in its block, `stage1.block1.conv1`. What lies in a block is computed as one: batch norm and
activation may be left to the layer that reads them, and activation checkpointing keeps a block's inputs only. A
network without blocks computes the same, but checkpointing saves nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from oncequant.arch import LayerSpec, Number

ACTIVATIONS = ("relu", "hardswish")  # which the layer that reads them can apply with its quantizer
Window = tuple[int, int, int, int]
POOL: Window = (3, 2, 1, 1)


class Value(NamedTuple):
    """What a description passes on instead of a tensor (N, C, H, W) with H = W."""

    name: str
    """Of the node that computes it; `images` is the network's input."""
    channels: Number
    size: Number
    """H = W."""
    block: str = ""
    """Where it is computed, "" outside of all blocks."""
    present: Number = 1
    """0 or 1: is it in the network. What is made of it is there if it is."""
    nominal: Number | None = None
    """Channels before rounding to multiples of 8, where a family counts them (`LayerSpec.nominal_channels`)."""

    @property
    def is_absent(self) -> bool:
        """Not in the one architecture that is described."""
        return isinstance(self.present, int) and not self.present


class Node(NamedTuple):
    """One operation on earlier nodes, by name. A `layer` has its LayerSpec under the same name."""

    name: str
    op: str
    """layer; relu, relu6, hardswish, hardsigmoid, silu, sigmoid; mean (over height and width); maxpool, avgpool; add,
    multiply (by a map of one pixel, or of the same size); concat (of channels); subsample (every second pixel); pad
    (with zeros); pad_channels, slice, shuffle (of channels); dropout; optional (left out by a choice, see DNAS's
    mixture)."""
    inputs: tuple[str, ...]
    block: str = ""
    channels: tuple[int, int] | None = None
    """Of pad_channels: empty ones added before and after. Of slice: the first one, and the one behind the last. Of
    shuffle: groups, and the channels of each, which are dealt out in turn. Of avgpool: 0, and how many there are."""
    window: Window | None = None
    """Of maxpool and avgpool: kernel, stride, and pixels added before and after (in height and width; avgpool counts
    them as zeros); None: 3, 2, 1, 1. Of pad: zeros added left, right, above, below."""
    choice: str | None = None
    """Of a layer: the choice that decides its bit-widths together. Of optional: the choice whose value 0 leaves it
    out."""
    rate: float = 0.0
    """Of dropout."""


@dataclass(frozen=True, eq=False)
class Rows:
    """How a batch of architectures can be described one by one."""

    count: int
    plan: Callable[[int], "Plan"]
    """Of one of them, by its place in the batch."""
    known: dict[bytes, tuple[Node, ...]]
    """The nodes that were described already, by which layers are present. It may be shared between batches of a space:
    equal layers have equal nodes."""


@dataclass(frozen=True, eq=False)
class Plan(Mapping[str, LayerSpec]):
    """What `describe` returns: `layers` in network order, absent ones too (`present` 0), and the nodes that are there,
    in topological order. The last node computes the logits (N, classes, 1, 1).

    As a mapping it is its layers. Which nodes there are follows from which layers are present.
    """

    layers: Mapping[str, LayerSpec]
    nodes: tuple[Node, ...]
    rows: Rows | None = None
    """Of a batch; its `nodes` are those of no single architecture."""

    def __getitem__(self, name: str) -> LayerSpec:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def groups(self) -> Iterator[tuple[np.ndarray, tuple[Node, ...]]]:
        """The architectures of a batch by which layers they have: (their places in it, the nodes that they have).

        One architecture alone is a batch of one. Raises ValueError for vectors without `rows`.
        """
        presence = list({id(spec.present): spec.present for spec in self.values()}.values())
        vectors = [present for present in presence if not isinstance(present, int)]
        if vectors and self.rows is None:
            raise ValueError("a batch of architectures comes from SearchSpace.layers_batch")
        if self.rows is None or not vectors:
            yield np.arange(self.rows.count if self.rows else 1), self.nodes
            return
        bits = np.packbits(np.stack(vectors).astype(bool), axis=0)  # (bytes, n)
        patterns, which = np.unique(bits.T, axis=0, return_inverse=True)
        order = np.argsort(which.reshape(-1), kind="stable")
        for pattern, places in zip(patterns, np.split(order, np.cumsum(np.bincount(which.reshape(-1)))[:-1])):
            nodes = self.rows.known.get(key := pattern.tobytes())
            if nodes is None:
                nodes = self.rows.known[key] = self.rows.plan(places[0]).nodes
            yield places, nodes

    @cached_property
    def readers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value, one entry for each time."""
        readers: dict[str, tuple[Node, ...]] = {}
        for node in self.nodes:
            for name in node.inputs:
                readers[name] = (*readers.get(name, ()), node)
        return readers

    @cached_property
    def segments(self) -> tuple[tuple[str, tuple[Node, ...]], ...]:
        """The nodes in runs of one block: (block, nodes)."""
        runs: list[tuple[str, tuple[Node, ...]]] = []
        for node in self.nodes:
            if runs and runs[-1][0] == node.block:
                runs[-1] = node.block, (*runs[-1][1], node)
            else:
                runs.append((node.block, (node,)))
        return tuple(runs)

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Place of each node in `nodes`."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    @cached_property
    def last_reader(self) -> Mapping[str, Node]:
        """The last node that reads each value: after it the value can be forgotten."""
        return {name: node for node in self.nodes for name in node.inputs}


class PlanBuilder:
    """Collects a Plan. Every method appends a layer or an operation on `Value`s and returns the `Value` it makes."""

    def __init__(self) -> None:
        self._layers: dict[str, LayerSpec] = {}
        self._nodes: list[Node] = []

    def plan(self) -> Plan:
        """What was collected."""
        return Plan(self._layers, tuple(self._nodes))

    def layer(
        self,
        x: Value,
        name: str,
        role: str,
        out: Number,
        bits: tuple[Number, Number],
        *,
        kernel_size: Number = 1,
        stride: int = 1,
        nominal: Number | None = None,
        choice: str | None = None,
        **spec: Any,
    ) -> Value:
        """A convolution (or linear layer: 1x1 on a 1x1 map) with `out` channels.

        Args:
            x: its input.
            name: within the block.
            role: see LayerSpec. `classifier` starts from other random weights and needs a bias; the others matter
                to the cost `qfa_mflops` and to tables.
            bits: of its weights and of its input.
            nominal: `out` before rounding, where the family counts that.
            choice: see Node.
            spec: depthwise, bias, batch_norm, signed_input, padding and more of the LayerSpec. Normalised images are
                signed.
        """
        name = f"{x.block}.{name}" if x.block else name
        size = (x.size - 1) // stride + 1 if stride > 1 else x.size
        if spec.get("padding") is not None:
            reach = spec.get("dilation", 1) * (kernel_size - 1) + 1
            size = (x.size + 2 * spec["padding"] - reach) // stride + 1
        self._layers[name] = LayerSpec(
            role=role,
            in_channels=x.channels,
            out_channels=out,
            kernel_size=kernel_size,
            stride=stride,
            in_size=x.size,
            out_size=size,
            weight_bits=bits[0],
            act_bits=bits[1],
            present=x.present,
            nominal_channels=None if nominal is None else (x.nominal, nominal),
            **spec,
        )
        node = Node(name, "layer", (x.name,), x.block, choice=choice)
        return self._add(node, (x,), channels=out, size=size, nominal=nominal)

    def activation(self, x: Value, kind: str) -> Value:
        """One of ACTIVATIONS. Raises ValueError for another."""
        if kind not in ACTIVATIONS:
            raise ValueError(f"{x.name}: activation {kind!r}: use {' or '.join(ACTIVATIONS)}")
        return self._add(Node(f"{x.name}.act", kind, (x.name,), x.block), (x,))

    def operation(
        self,
        op: str,
        name: str,
        *inputs: Value,
        channels: tuple[int, int] | None = None,
        window: Window | None = None,
    ) -> Value:
        """Any operation of a Node but layer, pad_channels, dropout and optional. What changes no size and no channels
        has those of the first input."""
        x = inputs[0]
        size, out = x.size, x.channels
        match op:
            case "mean":
                size = 1
            case "subsample":
                size = (size - 1) // 2 + 1
            case "maxpool" | "avgpool":
                kernel, stride, before, after = window or POOL
                size = (size + before + after - kernel) // stride + 1
                channels = (0, out) if op == "avgpool" else None
            case "pad":
                size = size + sum((window or POOL)[:2])
            case "concat":
                out = sum(value.channels for value in inputs)
            case "slice":
                out = channels[1] - channels[0] if channels else out
        name = f"{x.block}.{name}" if x.block else name
        node = Node(name, op, tuple(value.name for value in inputs), x.block, channels, window)
        return self._add(node, inputs, size=size, channels=out)

    def pad_channels(self, x: Value, name: str, out: int) -> Value:
        """Empty channels on both sides, `out` in all."""
        before = (out - x.channels) // 2
        name = f"{x.block}.{name}" if x.block else name
        added = before, out - x.channels - before
        return self._add(Node(name, "pad_channels", (x.name,), x.block, channels=added), (x,), channels=out)

    def dropout(self, x: Value, name: str, rate: float) -> Value:
        """In training steps only."""
        return self._add(Node(name, "dropout", (x.name,), x.block, rate=rate), (x,))

    def optional(self, x: Value, name: str, choice: str) -> Value:
        """x, which value 0 of `choice` leaves out: in a mixture of architectures, x by the share of the others."""
        node = Node(f"{x.block}.{name}", "optional", (x.name,), x.block, choice=choice)
        return self._add(node, (x,))

    def _add(self, node: Node, inputs: tuple[Value, ...], **changes: Number) -> Value:
        """Append a node, unless something that it reads is absent. Returns the first input as the node changes it."""
        if not any(value.is_absent for value in inputs):
            self._nodes.append(node)
        return inputs[0]._replace(name=node.name, **changes)


def enter(x: Value, block: str, present: Number = 1) -> Value:
    """x as the input of a block, which `present` says is there."""
    return x._replace(block=block, present=present)


def leave(x: Value, before: Value) -> Value:
    """x, made in a block, for what comes after the block; `before`, its input, if x is absent."""
    return before if x.is_absent else x._replace(block=before.block, present=before.present)
