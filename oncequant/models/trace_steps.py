"""What is written down of a network while it is traced: its steps so far, and what the user's tensors are of them.

`trace_layers` and `trace_shapes` have one function for each operator of torch, on `Map`s instead of tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from oncequant.models.own import Step


class TraceError(ValueError):
    """A network cannot be written down; the message names the module, the operation, and what to use instead."""


@dataclass(frozen=True)
class Map:
    """The result of a step, (N, channels, size, size)."""

    name: str
    channels: int
    size: int
    flat: bool = False
    """The user's code has it as (N, channels x size x size)."""
    signed: bool = True
    """Numbers below zero matter in it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In the user's code, without the images."""
        each = self.size * self.size
        return (self.channels * each,) if self.flat else (self.channels, self.size, self.size)


@dataclass(frozen=True)
class Dealt:
    """A map whose channels are groups of so many each; `turned` if the two dimensions have changed places."""

    x: Map
    groups: int
    each: int
    turned: bool = False


@dataclass(frozen=True)
class Given:
    """A parameter or buffer of the module."""

    name: str
    tensor: Tensor


INSTEAD = {  # by operator
    "gelu": "ReLU, SiLU or Hardswish",
    "leaky_relu": "ReLU or Hardswish",
    "prelu": "ReLU or Hardswish",
    "elu": "ReLU, SiLU or Hardswish",
    "mish": "SiLU or Hardswish",
    "softplus": "ReLU",
    "tanh": "Hardsigmoid, or ReLU6 between layers",
    "hardtanh": "ReLU6",
    "clamp": "ReLU or ReLU6",
    "softmax": "nothing: training and answers need the logits",
    "log_softmax": "nothing: training and answers need the logits",
    "layer_norm": "BatchNorm2d",
    "group_norm": "BatchNorm2d",
    "instance_norm": "BatchNorm2d",
    "feature_dropout": "Dropout",
    "conv_transpose2d": "convolutions: this is for networks that classify",
    "upsample_nearest2d": "maps of one size: this is for networks that classify",
    "upsample_bilinear2d": "maps of one size: this is for networks that classify",
    "adaptive_max_pool2d": "MaxPool2d, or AdaptiveAvgPool2d(1)",
    "max": "MaxPool2d, or AdaptiveAvgPool2d(1)",
    "amax": "MaxPool2d, or AdaptiveAvgPool2d(1)",
    "scaled_dot_product_attention": "convolutions and squeeze-and-excite",
    "matmul": "Linear or Conv2d modules",
    "conv1d": "Conv2d",
    "conv3d": "Conv2d",
    "sub": "BatchNorm2d; images come normalised",
    "div": "BatchNorm2d; images come normalised",
}


@dataclass(frozen=True)
class Call:
    """An operator of torch in the traced module."""

    op: str
    """Its name in torch's schemas, without the underscore of those that work in place."""
    where: str
    """Name of the module that calls it, "" of the network itself."""
    a: dict[str, Any]
    """Its arguments by their names in the schema, Maps and Givens instead of tensors."""
    shape: tuple[int, ...]
    """Of its result, with the images."""
    alone: bool
    """Nothing else reads its first argument."""

    @property
    def first(self) -> Any:
        """Its first argument."""
        return next(iter(self.a.values()))

    @property
    def x(self) -> Map:
        """Its first argument, where that is a map."""
        assert isinstance(self.first, Map)
        return self.first

    def refused(self, why: str) -> TraceError:
        """The error that says so."""
        instead = f"; use {INSTEAD[self.op]}" if self.op in INSTEAD else ""
        return TraceError(f"{self.where or 'the network itself'}: {self.op} {why}{instead}")


@dataclass
class Steps:
    """Collects the steps and the weights of a network."""

    rename: Callable[[str], str]
    """The name of a step for that of a module."""
    steps: dict[str, Step] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    """By the names of `oncequant.network.Network`."""

    def add(self, name: str, op: str, inputs: Sequence[Map], **options: Any) -> str:
        """Append a step; returns its name, which is a new one."""
        wanted, number = self.rename(name), 1
        while wanted in self.steps:
            number += 1
            wanted = self.rename(f"{name}_{number}")
        self.steps[wanted] = Step(wanted, op, tuple(x.name for x in inputs), **options)
        return wanted

    def between(self, c: Call, op: str, *inputs: Map, **options: Any) -> str:
        """Append an operation without weights, named by its module; returns its name."""
        return self.add(f"{c.where}.{op}" if c.where else op, op, inputs, **options)
