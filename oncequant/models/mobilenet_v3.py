"""The once-for-all MobileNetV3 supernet: search space, layer specifications and network.

Space and network of OFA (https://arxiv.org/abs/1908.09791), also used by OQAT (2010.04354) and BatchQuant (2105.08952):
elastic kernel size (learned transforms 7 -> 5 -> 3), expand ratio, depth per stage and resolution. Deviations by
option: `edge_bits` and `se_bits` put the first convolution, the classifier and squeeze-and-excite on 8 bits, which the
official code leaves in float; `signed_activations` uses a signed grid where a layer's input can be negative, which the
official OQA code clips at zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from oncequant.arch import FLOAT_BITS, LayerSpec, Number
from oncequant.elastic import ACT_QUANTIZERS, ElasticConv, Quantizers, SharedWeights
from oncequant.images import resize
from oncequant.quantizers.functional import activate
from oncequant.space import SearchSpace


@dataclass(frozen=True)
class MobileNetV3Config:
    """What is fixed for a whole supernet, and the allowed values of what is not. Widths are before `width`."""

    num_classes: int = 1000
    image_channels: int = 3
    width: float = 1.0
    """Multiplies every width below; results are rounded to multiples of 8."""
    stem_width: int = 16
    stage_widths: tuple[int, ...] = (24, 40, 80, 112, 160)
    final_expand_width: int = 960
    feature_mix_width: int = 1280
    stem_stride: int = 2
    stage_strides: tuple[int, ...] = (2, 2, 2, 1, 2)
    stage_se: tuple[bool, ...] = (False, True, False, True, True)
    """Squeeze-and-excite in the blocks of the stage."""
    stage_hswish: tuple[bool, ...] = (False, False, True, True, True)
    """h-swish (true) or ReLU (false) in the blocks of the stage."""
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    expand_ratios: tuple[int, ...] = (3, 4, 6)
    depths: tuple[int, ...] = (2, 3, 4)
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
    weight_bits: tuple[int, ...] = (FLOAT_BITS,)
    """Bit-widths of the weights of block convolutions, final expand and feature mix; 32 = float."""
    act_bits: tuple[int, ...] = (FLOAT_BITS,)
    """Bit-widths of the inputs of the same layers."""
    edge_bits: int = FLOAT_BITS
    """Weights and inputs of the first convolution and the classifier in a quantized network: 8 or 32."""
    se_bits: int = FLOAT_BITS
    """Weights and inputs of squeeze-and-excite in a quantized network: 8 or 32."""
    signed_activations: bool = True
    """Signed activation grid after linear bottlenecks; False is the official OQA behaviour."""
    steps_per_bits: bool = False
    """Quantizer parameters of their own for each bit-width, and kernel size of depthwise convolutions, as QFA; else one
    for all, as OQAT."""
    act_quantizer: str = "lsq"
    """Of the layers' inputs: lsq, batchquant (QFA's), running (moving averages of the range), or pact."""
    dropout: float = 0.1

    def __post_init__(self):
        """Refuse impossible options, naming the field and its allowed values."""
        rules = {
            "kernel_sizes": (lambda v: v % 2 == 1 and v > 0, "odd numbers"),
            "expand_ratios": (lambda v: v >= 1, "whole numbers from 1"),
            "depths": (lambda v: 1 <= v <= 9, "whole numbers from 1 to 9"),
            "resolutions": (lambda v: v >= 4, "pixels from 4"),
            "weight_bits": (lambda v: 1 <= v <= 8 or v == FLOAT_BITS, "1 to 8, or 32 for float"),
            "act_bits": (lambda v: 1 <= v <= 8 or v == FLOAT_BITS, "1 to 8, or 32 for float"),
        }
        for name, (allowed, text) in rules.items():
            values = getattr(self, name)
            if not values or not all(map(allowed, values)):
                raise ValueError(f"{name} = {list(values)}: use {text}")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {list(values)}: name every value once")
        if self.width <= 0:
            raise ValueError(f"width = {self.width}: use a number above 0")
        if self.act_quantizer not in ACT_QUANTIZERS:
            raise ValueError(f"act_quantizer = {self.act_quantizer!r}: use {', '.join(ACT_QUANTIZERS)}")
        for name in ("edge_bits", "se_bits"):
            if getattr(self, name) not in (8, FLOAT_BITS):
                raise ValueError(f"{name} = {getattr(self, name)}: use 8, or 32 for float")

    @property
    def is_float(self) -> bool:
        """No layer is quantized (edges and squeeze-and-excite follow the blocks)."""
        return self.weight_bits == (FLOAT_BITS,) and self.act_bits == (FLOAT_BITS,)


PRESETS: dict[str, MobileNetV3Config] = {
    "imagenet": MobileNetV3Config(),
    # 32 px images: the stem keeps the resolution, the last stage too; narrower, since there are few classes
    "cifar": MobileNetV3Config(
        num_classes=10,
        stem_width=16,
        stage_widths=(16, 24, 40, 56, 80),
        final_expand_width=320,
        feature_mix_width=480,
        stem_stride=1,
        stage_strides=(2, 2, 2, 1, 1),
        resolutions=(20, 24, 28, 32),
        depths=(1, 2, 3),
    ),
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


def make_divisible(value: float) -> int:
    """Nearest multiple of 8, at least 8 and at least 0.9 x value."""
    n = max(8, int(value + 4) // 8 * 8)
    return n + 8 if n < 0.9 * value else n


def elementwise(function: Callable[[int], int], value: Number) -> Number:
    """A function of one small int, applied to an int or to every element of a NumPy vector (by a table)."""
    if isinstance(value, int):
        return function(value)
    return np.array([function(v) for v in range(int(value.max(initial=0)) + 1)]).take(value)


def quantized_layers(config: MobileNetV3Config) -> list[str]:
    """Layers whose bits are choices, in network order; stem and classifier have `edge_bits`."""
    blocks = [
        f"stage{s}.block{b}.{layer}"
        for s in range(1, len(config.stage_widths) + 1)
        for b in range(1, max(config.depths) + 1)
        for layer in BLOCK_LAYERS
    ]
    return ["block0.depthwise", "block0.project", *blocks, "final_expand", "feature_mix"]


def _gate(name: str) -> tuple[str, int] | None:
    """Choices of block b of a stage matter from depth b on."""
    stage, _, rest = name.partition(".block")
    return (f"{stage}.depth", int(rest[0])) if stage.startswith("stage") and rest else None


def mobilenet_v3_space(config: MobileNetV3Config) -> SearchSpace:
    """The search space of `config`; names of choices as in docs/glossary.md."""
    choices: dict[str, tuple[int, ...]] = {"resolution": tuple(sorted(config.resolutions))}
    stages = range(1, len(config.stage_widths) + 1)
    blocks = [f"stage{s}.block{b}" for s in stages for b in range(1, max(config.depths) + 1)]
    choices |= {f"stage{s}.depth": tuple(sorted(config.depths)) for s in stages}
    choices |= {f"{block}.kernel_size": tuple(sorted(config.kernel_sizes)) for block in blocks}
    choices |= {f"{block}.expand_ratio": tuple(sorted(config.expand_ratios)) for block in blocks}
    edge = (FLOAT_BITS if config.is_float else config.edge_bits,)
    for layer in ["stem", *quantized_layers(config), "classifier"]:
        is_edge = layer in ("stem", "classifier")
        choices[f"{layer}.weight_bits"] = edge if is_edge else tuple(sorted(config.weight_bits))
        choices[f"{layer}.act_bits"] = edge if is_edge else tuple(sorted(config.act_bits))
    return SearchSpace(choices, partial(layer_specs, config), _gate)


def layer_specs(config: MobileNetV3Config, values: Mapping[str, Number]) -> dict[str, LayerSpec]:
    """LayerSpec by layer name, in network order; `values` are ints or NumPy vectors by choice name."""
    specs: dict[str, LayerSpec] = {}
    linear_is_signed = config.signed_activations
    se_bits = FLOAT_BITS if config.is_float else config.se_bits
    nominal = round(config.image_channels * config.width)  # of the last layer; the next one reads it

    def add(name: str, role: str, c_in: Number, c_out: Number, nominal_out: Number, size: Number, **rest) -> Number:
        """Append one layer and return the size of its output."""
        nonlocal nominal
        stride = rest.get("stride", 1)
        in_size, size = size, (size - 1) // stride + 1 if stride > 1 else size
        specs[name] = LayerSpec(
            role=role,
            in_channels=c_in,
            out_channels=c_out,
            nominal_channels=(nominal, nominal_out),
            in_size=in_size,
            out_size=size,
            weight_bits=values.get(f"{name}.weight_bits", se_bits),
            act_bits=values.get(f"{name}.act_bits", se_bits),
            **rest,
        )
        nominal = nominal_out
        return size

    def channels(base: int) -> tuple[int, int]:
        """(channels of the network, nominal channels)."""
        return make_divisible(base * config.width), round(base * config.width)

    stem = channels(config.stem_width)
    size = values["resolution"]
    size = add(
        "stem", "stem", config.image_channels, *stem, size, kernel_size=3, stride=config.stem_stride, signed_input=True
    )
    size = add("block0.depthwise", "depthwise", stem[0], *stem, size, kernel_size=3, depthwise=True)
    size = add("block0.project", "project", stem[0], *stem, size)
    c_in = stem[0]
    for s, base_width in enumerate(config.stage_widths, start=1):
        c_out = channels(base_width)
        for b in range(1, max(config.depths) + 1):
            block = f"stage{s}.block{b}"
            here = {"present": 1 if b <= min(config.depths) else (values[f"stage{s}.depth"] >= b) * 1}
            ratio = values[f"{block}.expand_ratio"]
            mid = elementwise(lambda r, c=c_in: make_divisible(c * r), ratio)
            nominal_in, is_rounded = nominal, nominal != c_in
            nominal_mid = nominal * ratio if is_rounded else mid
            stride = config.stage_strides[s - 1] if b == 1 else 1
            add(f"{block}.expand", "expand", c_in, mid, nominal_mid, size, signed_input=linear_is_signed, **here)
            kernel = values[f"{block}.kernel_size"]
            size = add(
                f"{block}.depthwise",
                "depthwise",
                mid,
                mid,
                nominal_mid,
                size,
                kernel_size=kernel,
                stride=stride,
                depthwise=True,
                **here,
            )
            if config.stage_se[s - 1]:
                squeezed = elementwise(lambda r, c=c_in: make_divisible(make_divisible(c * r) // 4), ratio)
                nominal_squeezed = squeezed
                if is_rounded:
                    nominal_squeezed = elementwise(lambda r, c=nominal_in: make_divisible(c * r // 4), ratio)
                add(f"{block}.se_reduce", "se", mid, squeezed, nominal_squeezed, 1, bias=True, batch_norm=False, **here)
                add(f"{block}.se_expand", "se", squeezed, mid, nominal_mid, 1, bias=True, batch_norm=False, **here)
            add(f"{block}.project", "project", mid, *c_out, size, **here)
            c_in = c_out[0]
    final, mixed = channels(config.final_expand_width), channels(config.feature_mix_width)
    classes = config.num_classes, round(config.num_classes * config.width)
    add("final_expand", "final_expand", c_in, *final, size, signed_input=linear_is_signed)
    add("feature_mix", "feature_mix", final[0], *mixed, 1, batch_norm=False)
    add("classifier", "classifier", mixed[0], *classes, 1, bias=True, batch_norm=False)
    return specs


class Block(nn.Module):
    """Inverted residual: expand, depthwise, optional squeeze-and-excite, project; residual where shapes agree."""

    def __init__(self, layers: dict[str, ElasticConv], hswish: bool, residual: bool):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.activation = "hardswish" if hswish else "relu"
        self.has_se = "se_reduce" in layers
        self.has_expand = "expand" in layers
        self.residual = residual

    def forward(  # (N, C, H, W)
        self, x: Tensor, specs: Mapping[str, LayerSpec], name: str, shared: SharedWeights | None = None
    ) -> Tensor:
        """Run the block with the LayerSpecs `name.*` of `specs`."""

        def layer(kind: str, x: Tensor, activation: str | None = None, **norms) -> Tensor:
            return getattr(self, kind)(x, specs[f"{name}.{kind}"], activation, shared, **norms)

        # An activation is applied by the layer that reads it, within its quantizer; so is a batch norm where possible.
        h, activation, norm = x, None, None
        if self.has_expand:
            norm, activation = self.expand.norm_to_defer(x, self.depthwise, specs[f"{name}.depthwise"]), self.activation
            h = layer("expand", x, defer_norm=norm is not None)
        if self.has_se:
            h = activate(layer("depthwise", h, activation, norm_before=norm), self.activation)
            gate = layer("se_reduce", h.mean((2, 3), keepdim=True))
            h = layer("project", h * F.hardsigmoid(layer("se_expand", gate, "relu")))
        else:
            before, norm = norm, self.depthwise.norm_to_defer(h, self.project, specs[f"{name}.project"])
            h = layer("depthwise", h, activation, norm_before=before, defer_norm=norm is not None)
            h = layer("project", h, self.activation, norm_before=norm)
        return x + h if self.residual else h


class MobileNetV3(nn.Module):
    """The network of every architecture of `space`; a one-point space gives a static subnet.

    `net(images, arch)` takes normalised images (N, C, S, S), resizes them to the architecture's resolution and returns
    logits (N, num_classes).
    """

    def __init__(self, config: MobileNetV3Config, space: SearchSpace | None = None):
        super().__init__()
        self.config = config
        self.checkpoint_blocks = False  # compute a block's activations again in the backward pass, to save memory
        self.space = space or mobilenet_v3_space(config)
        largest = self.space.layers(self.space.largest())

        def layer(name: str) -> ElasticConv:
            kernels = self.space.choices.get(name.replace(".depthwise", ".kernel_size"), (largest[name].kernel_size,))
            weight_bits, act_bits = (
                self.space.choices.get(f"{name}.{what}_bits", (getattr(largest[name], f"{what}_bits"),))
                for what in ("weight", "act")
            )
            quantizers = Quantizers(weight_bits, act_bits, config.steps_per_bits, config.act_quantizer)
            is_float = min(*weight_bits, *act_bits) == FLOAT_BITS
            return ElasticConv(largest[name], kernels, None if is_float else quantizers)

        def block(name: str, hswish: bool, residual: bool) -> Block:
            own = [key for key in largest if key.startswith(f"{name}.")]
            return Block({key.rpartition(".")[2]: layer(key) for key in own}, hswish, residual)

        self.stem = layer("stem")
        self.block0 = block("block0", hswish=False, residual=True)
        c_in = largest["stem"].out_channels
        for s, hswish in enumerate(config.stage_hswish, start=1):
            stage = nn.ModuleDict()
            for b in range(1, max(self.space.choices[f"stage{s}.depth"]) + 1):
                c_out = largest[f"stage{s}.block{b}.project"].out_channels
                stride = largest[f"stage{s}.block{b}.depthwise"].stride
                stage[f"block{b}"] = block(f"stage{s}.block{b}", hswish, stride == 1 and c_in == c_out)
                c_in = c_out
            self.add_module(f"stage{s}", stage)
        self.final_expand = layer("final_expand")
        self.feature_mix = layer("feature_mix")
        self.classifier = layer("classifier")

    def forward(
        self,
        images: Tensor,
        arch: Mapping[str, int],
        shared: SharedWeights | None = None,
        compute: torch.dtype | None = None,
    ) -> Tensor:
        """Logits (N, num_classes) of the subnet `arch` on normalised images (N, C, S, S).

        `compute`, by default the type of the images, is the type of what passes between the layers.
        """
        specs = self.space.layers(arch)
        x = resize(images, arch["resolution"]).to(compute, memory_format=torch.channels_last)
        x = F.hardswish(self.stem(x, specs["stem"], None, shared))
        x = self.block0(x, specs, "block0", shared)
        for s in range(1, len(self.config.stage_widths) + 1):
            stage = getattr(self, f"stage{s}")
            for b in range(1, arch[f"stage{s}.depth"] + 1):
                x = self._run(stage[f"block{b}"], x, specs, f"stage{s}.block{b}", shared)
        x = F.hardswish(self.final_expand(x, specs["final_expand"], None, shared))
        x = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        x = F.hardswish(self.feature_mix(x, specs["feature_mix"], None, shared))
        x = F.dropout(x, self.config.dropout, self.training)
        return self.classifier(x, specs["classifier"], None, shared).flatten(1).to(images.dtype)

    def _run(self, block: Block, x: Tensor, specs: Mapping[str, LayerSpec], name: str, shared) -> Tensor:
        """One block, with its activations kept or computed again in the backward pass."""
        if not (self.checkpoint_blocks and self.training):
            return block(x, specs, name, shared)
        if shared is not None:
            for kind, layer in block.named_children():  # a weight's own graph is not to be computed twice
                shared.weight(layer, specs[f"{name}.{kind}"])
        return checkpoint(block, x, specs, name, shared, use_reentrant=False, preserve_rng_state=False)


def with_bits(config: MobileNetV3Config, bits: int) -> MobileNetV3Config:
    """The same configuration with one bit-width for all weights and activations."""
    return replace(config, weight_bits=(bits,), act_bits=(bits,))
