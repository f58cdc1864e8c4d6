"""Plain values that describe one network: `Arch` (which subnet) and `LayerSpec` (what each of its layers is).

Nothing here knows torch. An `Arch` is what search, files and people exchange; the `LayerSpec`s that a space derives
from it are what the supernet slices by, costs multiply, the exporter writes and the report prints.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FLOAT_BITS = 32  # a bit-width of 32 means "not quantized"
SKIP = 0  # as a pair of bit-widths: the block is left out

Number = Any  # int | numpy.ndarray | torch.Tensor: one architecture, a batch of them, or an expectation over them


def pair(weight_bits: int, act_bits: int) -> int:
    """The number that stands for a pair of bit-widths where one choice decides both: 432 are 4-bit weights with float
    inputs."""
    return 100 * weight_bits + act_bits


FLOAT_PAIR = pair(FLOAT_BITS, FLOAT_BITS)


class Arch(Mapping[str, int]):
    """Immutable, hashable mapping from the name of a choice to its value.

    Example: `Arch({"resolution": 160, "stage2.depth": 3, "stage2.block1.kernel_size": 5})`.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, int]):
        self._values = dict(values)

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arch) and self._values == other._values

    def __repr__(self) -> str:
        return f"Arch({self._values})"

    def replace(self, **changes: int) -> "Arch":
        """A copy with some choices changed; keys with dots are passed as `**{"stage1.depth": 2}`."""
        return Arch({**self._values, **changes})

    def to_json(self) -> str:
        """One line of JSON, keys in the order of the space."""
        return json.dumps(self._values)

    @staticmethod
    def from_json(text: str) -> "Arch":
        """Inverse of `to_json`. Raises ValueError if the text is not a JSON object of integers."""
        try:
            values = json.loads(text)
        except RecursionError as error:
            raise ValueError(f"an architecture is a JSON object of integers, not so many brackets: {error}") from error
        if not isinstance(values, dict) or not all(type(v) is int for v in values.values()):
            raise ValueError(f"an architecture is a JSON object of integers, got: {text[:80]}")
        return Arch(values)


@dataclass(frozen=True)
class LayerSpec:
    """One convolution or linear layer of one architecture.

    The numeric fields are ints for one architecture, NumPy vectors for a batch of architectures, or torch tensors for
    a differentiable expectation; every cost is arithmetic that works on all three.
    """

    role: str  # stem, expand, depthwise, project, se, final_expand, feature_mix, conv, shortcut, classifier
    in_channels: Number
    out_channels: Number
    kernel_size: Number = 1
    stride: int = 1
    out_size: Number = 1  # height = width of the output map
    weight_bits: Number = FLOAT_BITS
    act_bits: Number = FLOAT_BITS  # bits of the layer's input
    present: Number = 1  # 0 or 1: is the layer in the network (a probability in an expectation)
    depthwise: bool = False  # one filter per channel (groups = in_channels)
    bias: bool = False
    batch_norm: bool = True
    signed_input: bool = False  # the activation quantizer uses a signed grid
    in_size: Number = 1  # height = width of the input map
    nominal_channels: tuple[Number, Number] | None = None  # (in, out) before rounding to multiples of 8, if rounded
    padding: int | None = None  # zeros around the input map; None: kernel_size // 2
    dilation: int = 1
    grouped: int = 1  # groups of a grouped convolution that is not depthwise
    norm_eps: float = 1e-5  # what batch norm adds to the variance

    @property
    def group_channels(self) -> Number:
        """Input channels that one filter sees."""
        return 1 if self.depthwise else self.in_channels // self.grouped

    @property
    def groups(self) -> Number:
        """Groups in the sense of `torch.nn.functional.conv2d`."""
        return self.in_channels if self.depthwise else self.grouped

    @property
    def conv(self) -> dict[str, Number]:
        """Arguments of `torch.nn.functional.conv2d`, without the tensors."""
        padding = self.kernel_size // 2 if self.padding is None else self.padding
        return dict(stride=self.stride, padding=padding, dilation=self.dilation, groups=self.groups)

    @property
    def weights(self) -> Number:
        """Number of weights of the layer, without bias and batch norm."""
        # ints first where they are ints for a whole batch: fewer passes over vectors
        return self.kernel_size * self.kernel_size * self.group_channels * self.out_channels * self.present
