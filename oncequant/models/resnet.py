"""Residual networks (https://arxiv.org/abs/1512.03385) with a pair of bit-widths per block or layer, for DNAS.

CIFAR's ResNet-20, 56 and 110 (16, 32, 64 channels; shortcuts A, which drop pixels and add empty channels, or B, 1x1
convolutions) and ImageNet's ResNet-18, 34 and 50. A *pair* is one number, 100 x weight bits + input bits: 432 are
4-bit weights with float inputs (32 = float), 204 the pair (2, 4); 0 leaves the block out, only its shortcut remains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from oncequant.arch import FLOAT_BITS, FLOAT_PAIR, SKIP, Number
from oncequant.family import RESOLUTIONS, Family, check_common, check_pairs
from oncequant.limits import check_ranges
from oncequant.plan import Plan, PlanBuilder, Value, enter, leave


@dataclass(frozen=True)
class ResNetConfig:
    """What is fixed for a whole supernet, and the pairs that its blocks or layers choose from."""

    num_classes: int = 10
    image_channels: int = 3
    stage_blocks: tuple[int, ...] = (3, 3, 3)
    stage_widths: tuple[int, ...] = (16, 32, 64)
    bottleneck: bool = False
    """Blocks of 1x1, 3x3 and 1x1 convolutions with four times the width, instead of two 3x3."""
    large_stem: bool = False
    """7x7 convolution of stride 2 and 3x3 max pooling, instead of a 3x3 convolution."""
    projections: bool = False
    """Shortcuts between different shapes are 1x1 convolutions (B), instead of dropped pixels and empty channels (A)."""
    resolutions: tuple[int, ...] = (32,)
    precisions: tuple[int, ...] = (FLOAT_PAIR,)
    """100 x weight bits + input bits, or 0: the block becomes its shortcut."""
    per_layer: bool = False
    """Every layer chooses a pair, else every block."""
    edge_bits: int = FLOAT_BITS
    """Weights and inputs of the first convolution and the classifier in a quantized network, 8 or 32; and of 1x1
    shortcuts around blocks that are left out."""
    weight_quantizer: str = "dorefa"
    act_quantizer: str = "pact"
    steps_per_bits: ClassVar[bool] = True
    can_skip: ClassVar[bool] = True

    def __post_init__(self):
        """Refuse impossible options, naming the field and its allowed values."""
        check_pairs(self.precisions, can_skip=not self.per_layer)
        if len(self.stage_blocks) != len(self.stage_widths) or min(self.stage_blocks, default=0) < 1:
            raise ValueError(f"stage_blocks = {list(self.stage_blocks)}: use a number from 1 for each of stage_widths")
        check_ranges(self, resolutions=RESOLUTIONS)
        if len(self.resolutions) != 1:
            raise ValueError(f"resolutions {list(self.resolutions)}: use one, these networks have no choice")
        check_common(self)

    @property
    def is_float(self) -> bool:
        """No layer is quantized (edges follow the blocks)."""
        return self.precisions == (FLOAT_PAIR,)


_IMAGENET = ResNetConfig(
    1000, 3, (2, 2, 2, 2), (64, 128, 256, 512), large_stem=True, projections=True, resolutions=(224,)
)

PRESETS: dict[str, ResNetConfig] = {
    "resnet20": ResNetConfig(),
    "resnet56": ResNetConfig(stage_blocks=(9, 9, 9)),
    "resnet110": ResNetConfig(stage_blocks=(18, 18, 18)),
    "resnet18": _IMAGENET,
    "resnet34": ResNetConfig(**{**vars(_IMAGENET), "stage_blocks": (3, 4, 6, 3)}),
    "resnet50": ResNetConfig(**{**vars(_IMAGENET), "stage_blocks": (3, 4, 6, 3), "bottleneck": True}),
}


def choice_of(config: ResNetConfig, layer: str) -> str | None:
    """The choice that decides the pair of a layer; None for the first and the last."""
    block, _, name = layer.rpartition(".")
    return (f"{layer}.precision" if config.per_layer else f"{block}.precision") if block else None


def choices(config: ResNetConfig) -> dict[str, tuple[int, ...]]:
    """One pair for each block, `stage1.block1.precision`, or layer, `stage1.block1.conv1.precision`."""
    decided = describe(config, _Constant(FLOAT_PAIR, {"resolution": config.resolutions[0]})).nodes
    names = [node.choice for node in decided if node.op == "layer" and node.choice]
    return {"resolution": config.resolutions} | {name: tuple(sorted(config.precisions)) for name in names}


class _Constant(dict):
    """Values of choices where all that are not given are the same."""

    def __init__(self, value: int, given: Mapping[str, int]):
        super().__init__(given)
        self.value = value

    def __missing__(self, name: str) -> int:
        return self.value


def describe(config: ResNetConfig, values: Mapping[str, Number]) -> Plan:
    """The Plan of an architecture, or of a batch of them; `values` by choice name."""
    build, edge = PlanBuilder(), FLOAT_BITS if config.is_float else config.edge_bits

    def layer(x: Value, name: str, role: str, out: int, **rest) -> Value:
        """A layer in a block, with the pair that its own choice or the block's has."""
        choice = choice_of(config, f"{x.block}.{name}")
        assert choice is not None  # in a block
        code = values[choice]
        weight_bits, act_bits = code // 100, code % 100
        if role == "shortcut":  # it is there where the block is left out, too
            weight_bits, act_bits = weight_bits + edge * (code == SKIP), act_bits + edge * (code == SKIP)
        return build.layer(x, name, role, out, (weight_bits, act_bits), choice=choice, **rest)

    def shortcut(x: Value, out: int, stride: int) -> Value:
        """Where shapes differ: B, a 1x1 convolution, or A, every second pixel and empty channels on both sides."""
        if config.projections and (stride > 1 or x.channels != out):
            return layer(x, "shortcut", "shortcut", out, stride=stride)
        x = build.operation("subsample", "subsample", x) if stride > 1 else x
        return build.pad_channels(x, "pad", out) if out != x.channels else x

    def residual(x: Value, width: int, out: int, stride: int) -> Value:
        """The convolutions of a block."""
        shapes = [(width, 3, stride), (width, 3, 1)]
        if config.bottleneck:
            shapes = [(width, 1, 1), (width, 3, stride), (out, 1, 1)]
        for i, (channels, kernel, step) in enumerate(shapes, start=1):
            x = build.activation(x, "relu") if i > 1 else x
            x = layer(x, f"conv{i}", "conv", channels, kernel_size=kernel, stride=step)
        return x

    kernel, stride = (7, 2) if config.large_stem else (3, 1)
    x = Value("images", config.image_channels, values["resolution"])
    width, bits = config.stage_widths[0], (edge, edge)
    x = build.layer(x, "stem", "stem", width, bits, kernel_size=kernel, stride=stride, signed_input=True)
    x = build.activation(x, "relu")
    x = build.operation("maxpool", "maxpool", x) if config.large_stem else x
    for s, (blocks, width) in enumerate(zip(config.stage_blocks, config.stage_widths), start=1):
        for b in range(1, blocks + 1):
            block, stride = f"stage{s}.block{b}", 2 if b == 1 and s > 1 else 1
            out = 4 * width if config.bottleneck else width
            inside = enter(x, block)
            short = shortcut(inside, out, stride)
            code = FLOAT_PAIR if config.per_layer else values[f"{block}.precision"]
            h = residual(enter(inside, block, (code != SKIP) * 1), width, out, stride)
            if SKIP in config.precisions:
                h = build.optional(h, "optional", f"{block}.precision")
            if h.is_absent:  # what an identity passes on is positive already
                h = build.activation(short, "relu") if short.name == f"{block}.shortcut" else short
            else:
                h = build.activation(build.operation("add", "sum", short, h), "relu")
            x = leave(h, x)
    x = build.operation("mean", "pool", x)
    build.layer(x, "classifier", "classifier", config.num_classes, (edge, edge), bias=True, batch_norm=False)
    return build.plan()


FAMILY = Family(ResNetConfig, PRESETS, choices, describe)
