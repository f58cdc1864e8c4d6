"""Residual networks of dense convolutions, elastic in depth, middle width, kernel size and resolution.

Blocks are the basic ones of https://arxiv.org/abs/1512.03385: two convolutions beside a shortcut, which is a 1x1
convolution where shapes differ. The first convolution has an elastic kernel and, by the expand ratio, an elastic number
of output channels; a stage has an elastic number of blocks. Everything is ReLU, so that a deployed network is integer
arithmetic from the pixels to the logits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from oncequant.arch import Number
from oncequant.family import (
    ElasticConfig,
    Family,
    block_present,
    elastic_blocks,
    elastic_choices,
    elastic_gate,
    elementwise,
    make_divisible,
)
from oncequant.plan import Plan, PlanBuilder, Value, enter, leave


@dataclass(frozen=True)
class ElasticResNetConfig(ElasticConfig):
    """What is fixed for a whole supernet, and the allowed values of what is not. Widths are before `width`."""

    kernel_sizes: tuple[int, ...] = (1, 3)
    """Of the first convolution of a block; the second is 3x3."""
    expand_ratios: tuple[int, ...] = (2, 4, 6)
    """Channels between the two convolutions of a block, in quarters of the stage's width."""
    depths: tuple[int, ...] = (1, 2, 3)
    resolutions: tuple[int, ...] = (20, 24, 28, 32)


PRESETS: dict[str, ElasticResNetConfig] = {
    # 32 px images; ResNet-8 and ResNet-20 are among its architectures
    "resnet-cifar": ElasticResNetConfig(),
    # 8 to 16 px greyscale images, for microcontrollers
    "resnet-nano": ElasticResNetConfig(
        image_channels=1, stage_widths=(16, 24, 32), depths=(1, 2), resolutions=(8, 10, 12)
    ),
    # photographs of 64 to 128 px
    "resnet-photo": ElasticResNetConfig(
        stem_width=32,
        stem_stride=2,
        stage_widths=(32, 48, 64, 96),
        stage_strides=(1, 2, 2, 2),
        resolutions=(64, 80, 96, 112, 128),
    ),
}


def choices(config: ElasticResNetConfig) -> dict[str, tuple[int, ...]]:
    """Choices with their allowed values; names as in docs/glossary.md."""

    def layers() -> Iterator[str]:
        c_in = channels(config, config.stem_width)
        for (width, stride), blocks in zip(stages(config), elastic_blocks(config).values()):
            for b, block in enumerate(blocks):
                if has_projection(c_in, width, stride if b == 0 else 1):
                    yield f"{block}.shortcut"
                yield from (f"{block}.conv1", f"{block}.conv2")
                c_in = width

    return elastic_choices(config, layers())


def describe(config: ElasticResNetConfig, values: Mapping[str, Number]) -> Plan:
    """The Plan of an architecture, or of a batch of them; `values` by choice name."""
    build = PlanBuilder()

    def layer(x: Value, name: str, role: str, out: Number, **rest) -> Value:
        full = f"{x.block}.{name}" if x.block else name
        bits = values[f"{full}.weight_bits"], values[f"{full}.act_bits"]
        return build.layer(x, name, role, out, bits, **rest)

    def block(x: Value, width: int, stride: int) -> Value:
        """relu(shortcut(x) + conv2(relu(conv1(x))))."""
        shortcut = x
        if has_projection(x.channels, width, stride):
            shortcut = layer(x, "shortcut", "shortcut", width, stride=stride)
        middle = elementwise(lambda ratio: make_divisible(width * ratio / 4), values[f"{x.block}.expand_ratio"])
        kernel = values[f"{x.block}.kernel_size"]
        h = build.activation(layer(x, "conv1", "conv", middle, kernel_size=kernel, stride=stride), "relu")
        h = layer(h, "conv2", "conv", width, kernel_size=3)
        return build.activation(build.operation("add", "sum", shortcut, h), "relu")

    x = Value("images", config.image_channels, values["resolution"])
    stem = channels(config, config.stem_width)
    x = layer(x, "stem", "stem", stem, kernel_size=3, stride=config.stem_stride, signed_input=True)
    x = build.activation(x, "relu")
    for (width, stride), (stage, names) in zip(stages(config), elastic_blocks(config).items()):
        for b, name in enumerate(names, start=1):
            inside = enter(x, name, block_present(config, stage, b, values))
            x = leave(block(inside, width, stride if b == 1 else 1), x)
    x = build.operation("mean", "pool", x)
    layer(x, "classifier", "classifier", config.num_classes, bias=True, batch_norm=False)
    return build.plan()


def channels(config: ElasticResNetConfig, base: int) -> int:
    """A width after the multiplier."""
    return make_divisible(base * config.width)


def stages(config: ElasticResNetConfig) -> list[tuple[int, int]]:
    """(channels, stride of the first block) of each stage."""
    return [(channels(config, base), stride) for base, stride in zip(config.stage_widths, config.stage_strides)]


def has_projection(c_in: int, c_out: int, stride: int) -> bool:
    """Whether the shortcut of a block is a 1x1 convolution."""
    return stride > 1 or c_in != c_out


FAMILY = Family(ElasticResNetConfig, PRESETS, choices, describe, elastic_gate)
