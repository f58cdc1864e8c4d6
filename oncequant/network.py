"""The network of every family: it computes what a Plan says.

A batch norm, a sum and an activation are left pending, and then applied at once, with the grids of the layers that read
the result: that saves time and memory (`oncequant.join`). Only within a block if it is computed again in the backward
pass (activation checkpointing).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from oncequant.arch import FLOAT_BITS, Arch, LayerSpec, Number
from oncequant.data.images import resize
from oncequant.elastic import ALONE, ElasticBatchNorm, ElasticConv, Pass, Quantized, Quantizers
from oncequant.family import NetworkConfig, input_quantizer
from oncequant.join import Normalized, Reader, can_join, join
from oncequant.native import MAX_READERS
from oncequant.operations import moved
from oncequant.plan import ACTIVATIONS, Node, Plan
from oncequant.quantizers.functional import activate
from oncequant.space import SearchSpace


@dataclass
class Pending:
    """A tensor (N, C, H, W), and what is still to be applied to it: batch norm, a sum, an activation."""

    x: Tensor | Quantized | None
    """None if all that read it have their own."""
    norm: ElasticBatchNorm | None = None
    other: "Pending | None" = None
    """Added behind the batch norm."""
    activation: str | None = None
    own: Mapping[str, Tensor | Quantized] = field(default_factory=dict)
    """The value for some of those that read it, by name."""

    def read_by(self, name: str) -> "Pending":
        """What a node of this name reads."""
        return Pending(self.own[name]) if name in self.own else self

    @property
    def tensor(self) -> Tensor:
        """What nothing is applied to yet."""
        assert isinstance(self.x, Tensor), "every reader has its own"
        return self.x

    @property
    def can_join(self) -> bool:
        """Whether everything can be applied at once, for all readers together."""
        return self.norm is not None and can_join(self.tensor, None if self.other is None else self.other.tensor)

    def joined(self, first: Normalized, readers: Sequence[Reader], how: Pass) -> tuple[Tensor, ...]:
        """The value for each of some readers; `first` is x with its batch norm."""
        other = self.other
        if other is None or other.norm is None or other.other or other.activation:
            return join(first, None if other is None else other.value(how), self.activation, readers)
        return join(first, other.norm.of_batch(other.tensor), self.activation, readers)

    def value(self, how: Pass) -> Tensor:
        """The tensor with everything applied."""
        if self.norm is not None and self.can_join:
            return self.joined(self.norm.of_batch(self.tensor), [Reader()], how)[0]
        y = self.tensor if self.norm is None else self.norm(self.tensor, how)
        return activate(y if self.other is None else y + self.other.value(how), self.activation)


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {  # beside plan.ACTIVATIONS
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


class Network(nn.Module):
    """The network of every architecture of `space`, whatever its family; a one-point space gives a static subnet.

    `net(images, arch)` takes normalised images (N, C, S, S), resizes them to the architecture's resolution and returns
    logits (N, num_classes).
    """

    def __init__(self, config: NetworkConfig, space: SearchSpace):
        super().__init__()
        self.config, self.space = config, space
        for name, (largest, kernel_sizes, quantizers) in self._layers_to_build().items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.ModuleDict())
                place = place.get_submodule(part)
            place.add_module(last, ElasticConv(largest, kernel_sizes, quantizers))

    def forward(self, images: Tensor, arch: Mapping[str, int], how: Pass = ALONE) -> Tensor:
        """Logits (N, num_classes) of the subnet `arch` on normalised images (N, C, S, S).

        With a mixture, the layers that its choices decide compute the sum of all their candidates by share, and what
        may be left out is added by the share of the architectures that have it; `arch` must have everything.

        Raises ValueError for a mixture with another number of shares than its choice has values.
        """
        plan = self.space.plan(arch)
        for choice, mask in (how.mixture or {}).items():
            if len(mask) != len(self.space.choices[choice]):
                raise ValueError(
                    f"mixture of {choice}: {len(mask)} shares for {len(self.space.choices[choice])} values"
                )
        x = resize(images, arch["resolution"]).to(how.compute, memory_format=torch.channels_last)
        values = {"images": Pending(x)}
        for block, nodes in plan.segments:
            if block and how.recompute and self.training:
                values |= self._recomputed(nodes, values, plan, how)
            else:
                values |= self._segment(nodes, values, plan, how)
            values = {name: value for name, value in values.items() if self._is_needed(name, nodes[-1], plan)}
        return values[plan.nodes[-1].name].value(how).flatten(1).to(images.dtype)

    def _segment(
        self, nodes: tuple[Node, ...], given: Mapping[str, Pending], plan: Plan, how: Pass
    ) -> dict[str, Pending]:
        """What the nodes of one block compute of what is given and that is read behind them."""
        values = dict(given)
        for node in nodes:
            values[node.name] = self._run(node, [values[name].read_by(node.name) for name in node.inputs], plan, how)
            for name in node.inputs:
                if plan.last_reader[name] is node:
                    values.pop(name, None)
        return {node.name: values[node.name] for node in nodes if node.name in values}

    def _recomputed(
        self, nodes: tuple[Node, ...], given: Mapping[str, Pending], plan: Plan, how: Pass
    ) -> dict[str, Pending]:
        """`_segment`, whose activations are computed again in the backward pass."""
        if how.shared is not None:
            for node in nodes:  # a weight's own graph is not to be computed twice
                if node.op == "layer":
                    how.shared.weight(self.layer(node.name), plan.layers[node.name])
        inside = {node.name for node in nodes}
        read = {name: given[name].value(how) for node in nodes for name in node.inputs if name not in inside}

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            values = {name: Pending(x) for name, x in zip(read, tensors)}
            return tuple(made.value(how) for made in self._segment(nodes, values, plan, how).values())

        kept = [name for name in inside if self._is_needed(name, nodes[-1], plan)]
        kept = [node.name for node in nodes if node.name in kept]
        made = checkpoint(run, *read.values(), use_reentrant=False, preserve_rng_state=False)
        return {name: Pending(x) for name, x in zip(kept, made, strict=True)}

    @staticmethod
    def _is_needed(name: str, after: Node, plan: Plan) -> bool:
        """Whether a value is read behind a node, or is the result."""
        return name == plan.nodes[-1].name or plan.position[plan.last_reader[name].name] > plan.position[after.name]

    def _run(self, node: Node, inputs: list[Pending], plan: Plan, how: Pass) -> Pending:
        first, mixture = inputs[0], how.mixture or {}
        if node.op == "layer":
            layer, mask = self.layer(node.name), None if node.choice is None else mixture.get(node.choice)
            if mask is not None:
                pairs = [(share, spec) for share, spec in zip(mask, self.candidates[node.name]) if spec.present]
                shares = torch.stack([share for share, _ in pairs])
                shares = shares / shares.sum().clamp_min(1e-12)  # given that the layer is there
                return Pending(layer.mixed(first.tensor, [s for _, s in pairs], shares, first.activation, how))
            assert first.x is not None and first.norm is None
            norm = self._norm_to_defer(layer, first.x, node, plan, how)
            spec = plan.layers[node.name]
            return Pending(layer(first.x, spec, first.activation, how, norm is not None), norm)
        if node.op in ACTIVATIONS:
            pending = replace(first, activation=node.op)
            is_kept = first.norm is None and self._reader_in_block(node, plan)
            return pending if is_kept else self._for_readers(pending, node, plan, how)
        if node.op == "add" and any(value.norm for value in inputs) and len(inputs) == 2:
            first, second = sorted(inputs, key=lambda value: value.norm is None)
            pending = Pending(first.x, first.norm, second)
            readers = plan.readers.get(node.name, ())
            is_activated = len(readers) == 1 and readers[0].op in ACTIVATIONS and readers[0].block == node.block
            return pending if is_activated else self._for_readers(pending, node, plan, how)
        if node.op == "optional":
            mask = mixture.get(node.choice or "")
            may_miss = mask is not None and self.space.choices[node.choice or ""][0] == 0
            return Pending(first.value(how) * (1 - mask[0])) if mask is not None and may_miss else first
        if node.op == "dropout":
            return Pending(F.dropout(first.value(how), node.rate, self.training))
        if node.op in ELEMENTWISE:
            return Pending(ELEMENTWISE[node.op](first.value(how)))
        return Pending(moved(node.op, [value.value(how) for value in inputs], node.channels, node.window))

    def _for_readers(self, pending: Pending, node: Node, plan: Plan, how: Pass) -> Pending:
        """Everything applied, where possible at once for all that read it, with the grids of layers among them.

        A block that is computed again in the backward pass has values alone around it.
        """
        readers = {reader.name: reader for reader in plan.readers.get(node.name, ())}
        if pending.norm is None or not pending.can_join or not 0 < len(readers) <= MAX_READERS:
            return Pending(pending.value(how))
        near = [name for name, reader in readers.items() if reader.block == node.block or not how.recompute]
        layers = {name: self.layer(name) for name in near if readers[name].op == "layer"}
        alone = pending.other is None
        extremes = alone and any(q.needs_extremes for layer in layers.values() if (q := layer.act_quantizer))
        first = pending.norm.of_batch(pending.tensor, extremes)
        wanted = {
            name: layers[name].reads(first, plan.layers[name], pending.activation, how, alone)
            if name in layers
            else Reader()
            for name in near
        }
        rest = [Reader()] * (len(near) < len(readers))
        values = pending.joined(first, [*wanted.values(), *rest], how)
        own = {
            name: Quantized(y, first.z.dtype) if reader.grid else y for (name, reader), y in zip(wanted.items(), values)
        }
        return Pending(values[-1] if rest else None, own=own)

    def _reader_in_block(self, node: Node, plan: Plan) -> Node | None:
        """The layer that alone reads a value in its block, and can apply what is pending."""
        readers = plan.readers.get(node.name, ())
        fitting = len(readers) == 1 and readers[0].op == "layer" and readers[0].block == node.block
        return readers[0] if fitting else None

    def _norm_to_defer(
        self, layer: ElasticConv, x: Tensor | Quantized, node: Node, plan: Plan, how: Pass
    ) -> ElasticBatchNorm | None:
        """The batch norm of a layer, if what alone reads its result, an activation or a sum, can apply it, too."""
        readers = plan.readers.get(node.name, ())
        if how.mixture or len(readers) != 1 or readers[0].block != node.block:
            return None
        if readers[0].op not in (*ACTIVATIONS, "add"):
            return None
        return layer.norm_to_defer(x.x if isinstance(x, Quantized) else x, how)

    def on(self, device: torch.device | str) -> Self:
        """This network on a device, its weights laid out as convolutions want them (channels_last)."""
        return self.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # it has it

    def layer(self, name: str) -> ElasticConv:
        """A layer by its name in the LayerSpecs."""
        found = self.get_submodule(name)
        assert isinstance(found, ElasticConv)
        return found

    @cached_property
    def candidates(self) -> dict[str, list[LayerSpec]]:
        """By layer: its LayerSpec for each value of the choice that decides its bit-widths; one where there is none."""
        most = max(len(values) for values in self.space.choices.values())
        plans = [
            self.space.plan(
                Arch({name: values[min(k, len(values) - 1)] for name, values in self.space.choices.items()})
            )
            for k in range(most)
        ]
        largest = self.space.plan(self.space.largest())
        counts = {n.name: len(self.space.choices[n.choice]) for n in largest.nodes if n.op == "layer" and n.choice}
        return {name: [plan.layers[name] for plan in plans[: counts.get(name, 1)]] for name in largest.layers}

    def _layers_to_build(self) -> dict[str, tuple[LayerSpec, tuple[int, ...], Quantizers | None]]:
        """By layer that some architecture has: its largest LayerSpec, kernel sizes and quantizers."""
        gates = {gate[0] for name in self.space.choices if (gate := self.space.gate(name)) is not None}
        most = max(len(values) for values in self.space.choices.values())
        every = {  # architectures that show every value of every choice, where all blocks are there
            name: max(values)
            if len(values) == 1 or name in gates or name == "resolution"
            else np.array([values[min(k, len(values) - 1)] for k in range(most)])
            for name, values in self.space.choices.items()
        }
        largest, build = self.space.layers(self.space.largest()), {}
        for name, spec in self.space.describe(every).layers.items():
            if not np.any(spec.present):
                continue
            kernels, weight_bits, act_bits = (
                different(value, spec.present) for value in (spec.kernel_size, spec.weight_bits, spec.act_bits)
            )
            config = self.config
            kinds = config.steps_per_bits, input_quantizer(config), config.weight_quantizer
            is_float = min(*weight_bits, *act_bits) == FLOAT_BITS
            quantizers = None if is_float else Quantizers(weight_bits, act_bits, *kinds)
            build[name] = largest[name], kernels, quantizers
        return build


def different(value: Number, present: Number) -> tuple[int, ...]:
    """The different ints among a LayerSpec's numbers, an int or a vector, where the layer is present; ascending."""
    values, here = np.broadcast_arrays(value, present)
    return tuple(int(v) for v in np.unique(values[here != 0]))


def elastic_layers(net: nn.Module) -> list[tuple[str, ElasticConv]]:
    """(layer name as in the LayerSpecs, layer) in network order."""
    return [(name, module) for name, module in net.named_modules() if isinstance(module, ElasticConv)]
