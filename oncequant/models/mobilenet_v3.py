"""MobileNetV3 as once-for-all networks have it.

Space and network of OFA (https://arxiv.org/abs/1908.09791), also used by OQAT (2010.04354) and BatchQuant (2105.08952):
elastic kernel size (learned transforms 7 -> 5 -> 3), expand ratio, depth per group and resolution. Options deviate:
`edge_bits` and `se_bits` put the first convolution, the classifier and squeeze-and-excite on 8 bits, which the
official code leaves in float; `signed_activations` uses a signed grid where a layer's input can be negative, which the
official OQA code clips at zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from oncequant.arch import FLOAT_BITS, Number
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
class MobileNetV3Config(ElasticConfig):
    """What is fixed for a whole supernet, and the allowed values of what is not. Widths are before `width`."""

    num_classes: int = 1000
    stage_widths: tuple[int, ...] = (24, 40, 80, 112, 160)
    final_expand_width: int = 960
    feature_mix_width: int = 1280
    stem_stride: int = 2
    stage_strides: tuple[int, ...] = (2, 2, 2, 1, 2)
    stage_se: tuple[bool, ...] = (False, True, False, True, True)
    """Squeeze-and-excite in the blocks of the group."""
    stage_hswish: tuple[bool, ...] = (False, False, True, True, True)
    """h-swish (true) or ReLU (false) in the blocks of the group."""
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    expand_ratios: tuple[int, ...] = (3, 4, 6)
    depths: tuple[int, ...] = (2, 3, 4)
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
    se_bits: int = FLOAT_BITS
    """Weights and inputs of squeeze-and-excite in a quantized network: 8 or 32."""
    signed_activations: bool = True
    """Signed activation grid after linear bottlenecks; False is the official OQA behaviour."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse impossible options, naming the field and its allowed values."""
        ElasticConfig.__post_init__(self)
        if self.se_bits not in (8, FLOAT_BITS):
            raise ValueError(f"se_bits {self.se_bits}: use 8, or 32 for float")


_NARROW = MobileNetV3Config(  # for few classes
    num_classes=10,
    stem_width=16,
    stage_widths=(16, 24, 40, 56, 80),
    final_expand_width=320,
    feature_mix_width=480,
    depths=(1, 2, 3),
)

PRESETS: dict[str, MobileNetV3Config] = {
    "imagenet": MobileNetV3Config(),
    # 32 px images: the stem keeps the resolution, the last group too
    "cifar": replace(_NARROW, stem_stride=1, stage_strides=(2, 2, 2, 1, 1), resolutions=(20, 24, 28, 32)),
    # pictures of some 64 px: as for 32 px, behind a first convolution that halves them
    "mobile-64": replace(_NARROW, stage_strides=(2, 2, 2, 1, 1), resolutions=(40, 48, 56, 64)),
    # photographs of 64 to 128 px
    "mobile-128": replace(_NARROW, resolutions=(64, 80, 96, 112, 128)),
    # 8 to 16 px greyscale images, for microcontrollers
    "nano": MobileNetV3Config(
        num_classes=10,
        image_channels=1,
        stem_width=16,
        stage_widths=(16, 24, 32),
        final_expand_width=96,
        feature_mix_width=128,
        stem_stride=1,
        stage_strides=(2, 2, 1),
        stage_se=(False, True, False),
        stage_hswish=(False, False, True),
        expand_ratios=(2, 3, 4),
        kernel_sizes=(3, 5),
        depths=(1, 2),
        resolutions=(8, 10, 12),
    ),
}

BLOCK_LAYERS = ("expand", "depthwise", "project")


def choices(config: MobileNetV3Config) -> dict[str, tuple[int, ...]]:
    """Choices with their allowed values; names as in docs/glossary.md."""
    blocks = [block for blocks in elastic_blocks(config).values() for block in blocks]
    in_blocks = [f"{block}.{layer}" for block in blocks for layer in BLOCK_LAYERS]
    return elastic_choices(config, ["block0.depthwise", "block0.project", *in_blocks, "final_expand", "feature_mix"])


def describe(config: MobileNetV3Config, values: Mapping[str, Number]) -> Plan:
    """The Plan of an architecture, or of a batch of them; `values` by choice name."""
    build, signed = PlanBuilder(), config.signed_activations
    se_bits = FLOAT_BITS if config.is_float else config.se_bits

    def layer(x: Value, name: str, role: str, out: Number, nominal: Number, **rest) -> Value:
        full = f"{x.block}.{name}" if x.block else name
        bits = values.get(f"{full}.weight_bits", se_bits), values.get(f"{full}.act_bits", se_bits)
        return build.layer(x, name, role, out, bits, nominal=nominal, **rest)

    def channels(base: int) -> tuple[int, int]:
        """(channels of the network, nominal channels)."""
        return make_divisible(base * config.width), round(base * config.width)

    def inverted_residual(x: Value, s: int, b: int) -> Value:
        """Block b of group s: expand, depthwise, squeeze-and-excite, project; residual where shapes agree."""
        ratio = values[f"{x.block}.expand_ratio"]
        mid = elementwise(lambda r: make_divisible(x.channels * r), ratio)
        unrounded: Number = x.nominal
        is_rounded = unrounded != x.channels
        nominal = unrounded * ratio if is_rounded else mid
        stride = config.stage_strides[s - 1] if b == 1 else 1
        activation = "hardswish" if config.stage_hswish[s - 1] else "relu"
        h = layer(x, "expand", "expand", mid, nominal, signed_input=signed)
        h = build.activation(h, activation)
        kernel = values[f"{x.block}.kernel_size"]
        h = layer(h, "depthwise", "depthwise", mid, nominal, kernel_size=kernel, stride=stride, depthwise=True)
        h = build.activation(h, activation)
        if config.stage_se[s - 1]:
            squeezed = elementwise(lambda r: make_divisible(make_divisible(x.channels * r) // 4), ratio)
            nominal_squeezed = squeezed
            if is_rounded:
                nominal_squeezed = elementwise(lambda r: make_divisible(unrounded * r // 4), ratio)
            gate = build.operation("mean", "se_mean", h)
            gate = layer(gate, "se_reduce", "se", squeezed, nominal_squeezed, bias=True, batch_norm=False)
            gate = build.activation(gate, "relu")
            gate = layer(gate, "se_expand", "se", mid, nominal, bias=True, batch_norm=False)
            h = build.operation("multiply", "se", h, build.operation("hardsigmoid", "se_gate", gate))
        h = layer(h, "project", "project", *channels(config.stage_widths[s - 1]))
        if stride > 1 or x.channels != h.channels:
            return h
        return build.operation("add", "sum", x, h)._replace(nominal=h.nominal)

    image = Value(
        "images", config.image_channels, values["resolution"], nominal=round(config.image_channels * config.width)
    )
    stem = channels(config.stem_width)
    x = layer(image, "stem", "stem", *stem, kernel_size=3, stride=config.stem_stride, signed_input=True)
    x = build.activation(x, "hardswish")
    inside = enter(x, "block0")
    h = layer(inside, "depthwise", "depthwise", *stem, kernel_size=3, depthwise=True)
    h = layer(build.activation(h, "relu"), "project", "project", *stem)
    x = leave(build.operation("add", "sum", inside, h), x)
    for s, (stage, blocks) in enumerate(elastic_blocks(config).items(), start=1):
        for b, block in enumerate(blocks, start=1):
            present = block_present(config, stage, b, values)
            x = leave(inverted_residual(enter(x, block, present), s, b), x)
    x = layer(x, "final_expand", "final_expand", *channels(config.final_expand_width), signed_input=signed)
    x = build.operation("mean", "pool", build.activation(x, "hardswish"))
    x = layer(x, "feature_mix", "feature_mix", *channels(config.feature_mix_width), batch_norm=False)
    x = build.dropout(build.activation(x, "hardswish"), "dropped", config.dropout)
    classes = config.num_classes, round(config.num_classes * config.width)
    layer(x, "classifier", "classifier", *classes, bias=True, batch_norm=False)
    return build.plan()


FAMILY = Family(MobileNetV3Config, PRESETS, choices, describe, elastic_gate)
