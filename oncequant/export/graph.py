"""The deployed network as a plain value that every exporter and simulator reads.

A `Graph` is a list of `Node`s in topological order; a node's value has the node's name. Quantization is explicit: a
`quantize` node puts a tensor on a `Grid`; a `conv` or `linear` node has `Weights`, integer codes (batch norm is folded
into their per-channel scale) or floats. What a node computes in float is in `simulate.run_float`; what integer kernels
make of the same graph in `simulate.run_integer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oncequant.arch import FLOAT_BITS, Arch
from oncequant.plan import Window

# Operations and their number of inputs; `concat` has any. `pixels` is the network's input, raw 0..255; `linear` works
# on what `flatten` leaves; the others are those of `oncequant.plan.Node`. An average pooling is a `conv` here.
OPS: dict[str, int | None] = {
    "pixels": 0,
    "normalise": 1,
    "quantize": 1,
    "conv": 1,
    "linear": 1,
    "flatten": 1,
    "relu": 1,
    "relu6": 1,
    "hardswish": 1,
    "hardsigmoid": 1,
    "silu": 1,
    "sigmoid": 1,
    "mean": 1,
    "maxpool": 1,
    "subsample": 1,
    "pad": 1,
    "pad_channels": 1,
    "slice": 1,
    "shuffle": 1,
    "multiply": 2,
    "add": 2,
    "concat": None,
}
HAVE_CHANNELS = "pad_channels", "slice", "shuffle"
HAVE_WINDOW = "maxpool", "pad"


@dataclass(frozen=True)
class Grid:
    """Uniform grid of an activation: value = (code - zero_point) * step, code in 0 .. `top`.

    A signed b-bit grid of the training graph has zero point 2^(b-1), an unsigned one 0. Codes are unsigned because
    u8 x s8 is the pair for which CPU runtimes have kernels.
    """

    step: float  # a float32 number
    zero_point: int
    bits: int
    most: int | None = None  # the largest code where an upper bound of the values, 6 of ReLU6, is below the last one

    @property
    def top(self) -> int:
        """The largest code, at most 2^bits - 1."""
        return 2**self.bits - 1 if self.most is None else self.most

    def limited(self, value: float) -> "Grid":
        """The grid on which numbers come out as if they had been clamped at `value` before."""
        code = int(Grid(self.step, self.zero_point, self.bits).quantize(torch.tensor([value])).item())
        return replace(self, most=code) if code < self.top else self

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of x as floats: divide, round half to even, add the zero point, clamp (ONNX QuantizeLinear + Clip)."""
        step = x.new_tensor(self.step)  # a tensor: CUDA would multiply by the reciprocal of a Python number
        return (x / step).round_().add_(self.zero_point).clamp_(0, self.top)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Values of codes."""
        return (codes - self.zero_point).mul_(codes.new_tensor(self.step))


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights and bias of a convolution or linear layer.

    Codes are b-bit integers q in int8; the weight is q * 2^shift * scale[c]. The shift makes the grid of the integer
    bias, input step * scale, fine enough at 2 to 4 bits. Scales can be negative (negative batch-norm weights). Codes of
    1 bit and of DoReFa are odd: the 2^b numbers -(2^b - 1), ..., -1, 1, ..., 2^b - 1.
    """

    weight: Tensor  # int8 codes or float32, (C_out, C_in / groups, K, K) or (C_out, C_in)
    bias: Tensor  # int32 codes on the grid (input step * scale) or float32, (C_out,)
    scale: Tensor | None  # float32 (C_out,); None for float weights
    bits: int = FLOAT_BITS  # of the codes
    shift: int = 0
    stride: int = 1
    groups: int = 1
    odd: bool = False
    padding: int | None = None  # zeros around the map; None: K // 2
    dilation: int = 1

    def unsigned_codes(self) -> Tensor:
        """The codes as numbers from 0 to 2^bits - 1, int16: what is packed."""
        codes = self.weight.short()
        return (codes + 2**self.bits - 1) // 2 if self.odd else codes + 2 ** (self.bits - 1)

    @property
    def pad(self) -> int:
        """Of a convolution: zeros on each side of the map."""
        return self.weight.shape[-1] // 2 if self.padding is None else self.padding

    @property
    def is_integer(self) -> bool:
        """Integer weights on a quantized input: integer kernels apply."""
        return self.bias.dtype == torch.int32

    def float_weight(self) -> Tensor:
        """Dequantized weights, float32."""
        if self.scale is None:
            return self.weight
        return self.weight.float() * 2**self.shift * self.scale.view(-1, *[1] * (self.weight.dim() - 1))


@dataclass(frozen=True)
class Node:
    """One operation; `inputs` are names of earlier nodes."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    grid: Grid | None = None  # of `quantize`
    weights: Weights | None = None  # of `conv` and `linear`
    channels: tuple[int, int] | None = None  # of HAVE_CHANNELS, see plan.Node
    window: Window | None = None  # of HAVE_WINDOW, likewise

    @property
    def is_integer(self) -> bool:
        """A `conv` or `linear` that integer kernels can compute."""
        return self.weights is not None and self.weights.is_integer

    @property
    def is_unsigned(self) -> bool:
        """A `quantize` without codes of negative numbers."""
        return self.grid is not None and self.grid.zero_point == 0

    def limited(self, value: float) -> "Node":
        """A `quantize` of numbers that are clamped at `value`."""
        return replace(self, grid=grid_of(self).limited(value))


def weights_of(node: Node) -> Weights:
    """What a `conv` or `linear` node has; a Graph made sure of it."""
    assert node.weights is not None
    return node.weights


def scale_of(weights: Weights) -> Tensor:
    """The scale of each channel of integer codes, float32 (C_out,)."""
    assert weights.scale is not None
    return weights.scale


def grid_of(node: Node) -> Grid:
    """What a `quantize` node has; a Graph made sure of it."""
    assert node.grid is not None
    return node.grid


@dataclass(frozen=True)
class Graph:
    """A network from raw pixels (N, C, R, R) to logits (N, classes), the output of its last node."""

    nodes: tuple[Node, ...]
    arch: Arch
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    image_size: int  # side S of the squares that images become before they are resized to R

    def __post_init__(self):
        known: set[str] = set()
        for i, node in enumerate(self.nodes):
            complete = (node.grid is None) == (node.op != "quantize")
            complete &= (node.weights is None) == (node.op not in ("conv", "linear"))
            complete &= (node.channels is None) == (node.op not in HAVE_CHANNELS)
            complete &= (node.window is not None) <= (node.op in HAVE_WINDOW)
            inputs = OPS.get(node.op, -1)
            complete &= len(node.inputs) > 0 if inputs is None else len(node.inputs) == inputs
            if not complete or (node.op == "pixels") != (i == 0):
                raise ValueError(f"node {node.name!r} is not a valid {node.op!r} operation")
            if node.name in known or not known.issuperset(node.inputs):
                raise ValueError(f"node {node.name!r} repeats a name or reads a node that does not precede it")
            known.add(node.name)
        last = self.nodes[-1] if self.nodes else None
        if last is None or last.op not in ("linear", "flatten"):
            raise ValueError("the last node must be a linear layer, or flatten")
        if last.op == "linear" and len(weights_of(last).weight) != len(self.classes):
            raise ValueError("the last layer must have one output for each class")
        if "resolution" not in self.arch:
            raise ValueError("the architecture has no resolution")
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need one number for each of {self.channels} image channels")

    @property
    def channels(self) -> int:
        """Image channels."""
        found = [weights_of(node) for node in self.nodes if node.op == "conv"]
        return found[0].weight.shape[1] * found[0].groups if found else len(self.mean)  # a linear classifier alone

    @property
    def resolution(self) -> int:
        """Height = width of the input in pixels."""
        return self.arch["resolution"]

    def by_name(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    def consumers(self) -> Mapping[str, list[Node]]:
        """Nodes that read each node, one entry per read."""
        readers: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for source in node.inputs:
                readers[source].append(node)
        return readers

    def normalise(self, pixels: Tensor) -> Tensor:  # (N, C, R, R)
        """Raw pixels to what the training graph sees: pixels * 1 / (255 std) - mean / std, in float32."""
        mean, std = (pixels.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return pixels * (1 / (255 * std)) - mean / std

    def pixels(self, normalised: Tensor) -> Tensor:  # (N, C, R, R)
        """Inverse of `normalise`, up to float rounding."""
        mean, std = (normalised.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (normalised * std + mean) * 255


def signed_codes(unsigned: Tensor, bits: int, odd: bool) -> Tensor:
    """Inverse of `Weights.unsigned_codes`, int8."""
    codes = 2 * unsigned.short() - (2**bits - 1) if odd else unsigned.short() - 2 ** (bits - 1)
    return codes.to(torch.int8)
