"""Residual networks of dense convolutions, elastic in width, depth, middle width, kernel size and resolution.

Blocks are the basic ones of https://arxiv.org/abs/1512.03385: two convolutions beside a shortcut, which is a 1x1
convolution where shapes differ. The first convolution has an elastic kernel and, by the expand ratio, an elastic number
of output channels; a group has an elastic number of blocks and of channels. Everything is ReLU, so that a deployed
network is integer arithmetic from the pixels to the logits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

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

    stem_width: int = 16
    """0: as wide as the first group, whose first block then has a plain shortcut."""
    stem_pool: bool = False
    """Max pooling (3x3, stride 2) after the first convolution."""
    width_quarters: tuple[int, ...] = (4,)
    """Channels of a group, in quarters of its width."""
    kernel_sizes: tuple[int, ...] = (1, 3)
    """Of the first convolution of a block; the second is 3x3."""
    expand_ratios: tuple[int, ...] = (2, 4, 6)
    """Channels between the two convolutions of a block, in quarters of the group's width."""
    depths: tuple[int, ...] = (1, 2, 3)
    resolutions: tuple[int, ...] = (20, 24, 28, 32)


CIFAR = ElasticResNetConfig(
    stem_width=0,
    stage_widths=(32, 64, 128),
    width_quarters=(2, 3, 4),
    kernel_sizes=(3,),
    expand_ratios=(2, 4),
    depths=(1, 2),
    max_depths=(1, 1, 2),
)
PRESETS: dict[str, ElasticResNetConfig] = {
    # 32 px images; MLPerf Tiny's ResNet-8 is among its architectures
    "resnet-cifar": CIFAR,
    # one block more where maps are of middle size: larger networks
    "resnet-cifar-deep": replace(CIFAR, max_depths=(1, 2, 2)),
    # 8 to 16 px greyscale images, for microcontrollers
    "resnet-nano": ElasticResNetConfig(
        image_channels=1, stage_widths=(16, 24, 32), depths=(1, 2), resolutions=(8, 10, 12)
    ),
    # pictures of some 64 px: as for 32 px, behind a first convolution that halves them
    "resnet-64": ElasticResNetConfig(
        stem_width=0,
        stem_stride=2,
        stage_widths=(32, 64, 128),
        width_quarters=(2, 3, 4),
        kernel_sizes=(3,),
        expand_ratios=(2, 4),
        depths=(1, 2),
        resolutions=(40, 48, 56, 64),
    ),
    # photographs of 64 to 128 px
    "resnet-photo": ElasticResNetConfig(
        stem_width=32,
        stem_stride=2,
        stage_widths=(32, 48, 64, 96),
        stage_strides=(1, 2, 2, 2),
        resolutions=(64, 80, 96, 112, 128),
    ),
    # larger photographs, a quarter as wide and high behind stem and pooling
    "resnet-224": ElasticResNetConfig(
        stem_width=32,
        stem_stride=2,
        stem_pool=True,
        stage_widths=(32, 64, 96, 128),
        stage_strides=(1, 2, 2, 2),
        kernel_sizes=(3,),
        depths=(1, 2),
        resolutions=(128, 160, 192, 224),
    ),
}


def choices(config: ElasticResNetConfig) -> dict[str, tuple[int, ...]]:
    """Choices with their allowed values; names as in docs/glossary.md."""

    def layers() -> Iterator[str]:
        for group, blocks in enumerate(elastic_blocks(config).values()):
            for b, block in enumerate(blocks):
                if b == 0 and has_projection(config, group):
                    yield f"{block}.shortcut"
                yield from (f"{block}.conv1", f"{block}.conv2")

    every = elastic_choices(config, layers())
    widths = {f"{group}.width": tuple(sorted(config.width_quarters)) for group in elastic_blocks(config)}
    return {"resolution": every["resolution"], **widths, **every}


def describe(config: ElasticResNetConfig, values: Mapping[str, Number]) -> Plan:
    """The Plan of an architecture, or of a batch of them; `values` by choice name."""
    build = PlanBuilder()

    def layer(x: Value, name: str, role: str, out: Number, **rest) -> Value:
        full = f"{x.block}.{name}" if x.block else name
        bits = values[f"{full}.weight_bits"], values[f"{full}.act_bits"]
        return build.layer(x, name, role, out, bits, **rest)

    def block(x: Value, width: Number, stride: int, projection: bool) -> Value:
        """relu(shortcut(x) + conv2(relu(conv1(x))))."""
        shortcut = layer(x, "shortcut", "shortcut", width, stride=stride) if projection else x
        middle = elementwise(make_divisible_quarters, width * values[f"{x.block}.expand_ratio"])
        kernel = values[f"{x.block}.kernel_size"]
        h = build.activation(layer(x, "conv1", "conv", middle, kernel_size=kernel, stride=stride), "relu")
        h = layer(h, "conv2", "conv", width, kernel_size=3)
        return build.activation(build.operation("add", "sum", shortcut, h), "relu")

    x = Value("images", config.image_channels, values["resolution"])
    widths = [
        elementwise(make_divisible_quarters, channels(config, base) * values[f"{group}.width"])
        for base, group in zip(config.stage_widths, elastic_blocks(config))
    ]
    stem = channels(config, config.stem_width) if config.stem_width else widths[0]
    x = layer(x, "stem", "stem", stem, kernel_size=3, stride=config.stem_stride, signed_input=True)
    x = build.activation(x, "relu")
    if config.stem_pool:
        x = build.operation("maxpool", "stem.pool", x)
    for number, (group, names) in enumerate(elastic_blocks(config).items()):
        for b, name in enumerate(names, start=1):
            inside = enter(x, name, block_present(config, group, b, values))
            stride = config.stage_strides[number] if b == 1 else 1
            x = leave(block(inside, widths[number], stride, b == 1 and has_projection(config, number)), x)
    x = build.operation("mean", "pool", x)
    layer(x, "classifier", "classifier", config.num_classes, bias=True, batch_norm=False)
    return build.plan()


def channels(config: ElasticResNetConfig, base: int) -> int:
    """A width after the multiplier."""
    return make_divisible(base * config.width)


def make_divisible_quarters(quarters: int) -> int:
    """A width that is given in quarters of channels."""
    return make_divisible(quarters / 4)


def has_projection(config: ElasticResNetConfig, group: int) -> bool:
    """Whether the shortcut of the first block of a group, counted from 0, is a 1x1 convolution: its shapes differ, or
    some architecture makes them differ."""
    if config.stage_strides[group] > 1:
        return True
    if group == 0 and not config.stem_width:
        return False
    before = (config.stem_width, *config.stage_widths)[group]
    is_elastic = len(config.width_quarters) > 1 or config.width_quarters != (4,)
    return is_elastic or channels(config, before) != channels(config, config.stage_widths[group])


FAMILY = Family(ElasticResNetConfig, PRESETS, choices, describe, elastic_gate)
