"""Residual networks (https://arxiv.org/abs/1512.03385) with a precision for each block or layer, as DNAS searches them.

CIFAR's ResNet-20, 56 and 110 (16, 32, 64 channels; shortcuts A, which drop pixels and add empty channels, or B, 1x1
convolutions) and ImageNet's ResNet-18, 34 and 50. A *precision* is one number, 100 x weight bits + input bits: 432 are
4-bit weights with float inputs (32 = float), 204 the pair (2, 4); 0 leaves the block out, only its shortcut remains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oncequant.arch import FLOAT_BITS, LayerSpec, Number
from oncequant.elastic import WEIGHT_QUANTIZERS, ElasticConv, Quantizers, SharedWeights
from oncequant.images import resize
from oncequant.space import SearchSpace

FLOAT = 100 * FLOAT_BITS + FLOAT_BITS
SKIP = 0


def precision(weight_bits: int, act_bits: int) -> int:
    """The number that stands for a pair of bit-widths."""
    return 100 * weight_bits + act_bits


@dataclass(frozen=True)
class ResNetConfig:
    """What is fixed for a whole supernet, and the precisions that its blocks or layers choose from."""

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
    precisions: tuple[int, ...] = (FLOAT,)
    """100 x weight bits + input bits, or 0: the block becomes its shortcut."""
    per_layer: bool = False
    """Every layer chooses a precision, else every block."""
    edge_bits: int = FLOAT_BITS
    """Weights and inputs of the first convolution and the classifier in a quantized network, 8 or 32; and of 1x1
    shortcuts around blocks that are left out."""
    weight_quantizer: str = "dorefa"
    act_quantizer: str = "pact"

    def __post_init__(self):
        """Refuse impossible options, naming the field and its allowed values."""
        widths = {*range(1, 9), FLOAT_BITS}
        for value in self.precisions:
            if value != SKIP and not {value // 100, value % 100} <= widths:
                raise ValueError(
                    f"precisions: {value} is not 100 x weight bits + input bits, each 1 to 8 or 32 for float, nor 0"
                )
        if not self.precisions or len(set(self.precisions)) < len(self.precisions):
            raise ValueError(f"precisions = {list(self.precisions)}: use at least one, each once")
        if self.per_layer and SKIP in self.precisions:
            raise ValueError("precisions: 0 leaves out a block and cannot be chosen per layer")
        if len(self.stage_blocks) != len(self.stage_widths) or min(self.stage_blocks, default=0) < 1:
            raise ValueError(f"stage_blocks = {list(self.stage_blocks)}: use a number from 1 for each of stage_widths")
        if len(self.resolutions) != 1 or self.resolutions[0] < 4:
            raise ValueError(f"resolutions = {list(self.resolutions)}: use one, of at least 4 pixels")
        if self.edge_bits not in (8, FLOAT_BITS):
            raise ValueError(f"edge_bits = {self.edge_bits}: use 8, or 32 for float")
        if self.weight_quantizer not in WEIGHT_QUANTIZERS:
            raise ValueError(f"weight_quantizer = {self.weight_quantizer!r}: use {', '.join(WEIGHT_QUANTIZERS)}")
        if self.act_quantizer not in ("pact", "lsq"):
            raise ValueError(f"act_quantizer = {self.act_quantizer!r}: use pact or lsq")

    @property
    def is_float(self) -> bool:
        """No layer is quantized (edges follow the blocks)."""
        return self.precisions == (FLOAT,)


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
    """The choice that decides the precision of a layer; None for the first and the last."""
    block, _, name = layer.rpartition(".")
    return (f"{layer}.precision" if config.per_layer else f"{block}.precision") if block else None


def resnet_space(config: ResNetConfig) -> SearchSpace:
    """The search space of `config`: one precision for each block, `stage1.block1.precision`, or layer."""
    sizes = {"resolution": config.resolutions[0]}
    layers = layer_specs(config, _Constant(FLOAT, sizes))
    choices = {"resolution": config.resolutions}
    choices |= {c: tuple(sorted(config.precisions)) for layer in layers if (c := choice_of(config, layer))}
    return SearchSpace(choices, partial(layer_specs, config), _no_gate)


def _no_gate(name: str) -> None:
    """Every choice matters always."""


class _Constant(dict):
    """Values of choices where all that are not given are the same."""

    def __init__(self, value: int, given: Mapping[str, int]):
        super().__init__(given)
        self.value = value

    def __missing__(self, name: str) -> int:
        return self.value


def layer_specs(config: ResNetConfig, values: Mapping[str, Number]) -> dict[str, LayerSpec]:
    """LayerSpec by layer name, in network order; `values` are ints or NumPy vectors by choice name."""
    specs: dict[str, LayerSpec] = {}
    edge = FLOAT_BITS if config.is_float else config.edge_bits

    def add(name: str, role: str, c_in: int, c_out: int, size: int, kernel: int = 1, stride: int = 1, **rest) -> int:
        """Append one layer and return the size of its output."""
        choice = choice_of(config, name)
        code = precision(edge, edge) if choice is None else values[choice]
        weight_bits, act_bits, present = code // 100, code % 100, 1
        if choice and role == "shortcut":
            weight_bits, act_bits = weight_bits + edge * (code == SKIP), act_bits + edge * (code == SKIP)
        elif choice:
            present = (code != SKIP) * 1
        out = (size - 1) // stride + 1
        specs[name] = LayerSpec(
            role=role,
            in_channels=c_in,
            out_channels=c_out,
            kernel_size=kernel,
            stride=stride,
            in_size=size,
            out_size=out,
            weight_bits=weight_bits,
            act_bits=act_bits,
            present=present,
            **rest,
        )
        return out

    size, c_in = values["resolution"], config.stage_widths[0]
    kernel, stride = (7, 2) if config.large_stem else (3, 1)
    size = add("stem", "stem", config.image_channels, c_in, size, kernel, stride, signed_input=True)
    size = (size - 1) // 2 + 1 if config.large_stem else size
    for s, (blocks, width) in enumerate(zip(config.stage_blocks, config.stage_widths), start=1):
        for b in range(1, blocks + 1):
            block, stride = f"stage{s}.block{b}", 2 if b == 1 and s > 1 else 1
            c_out = 4 * width if config.bottleneck else width
            if config.projections and (stride > 1 or c_in != c_out):
                add(f"{block}.shortcut", "shortcut", c_in, c_out, size, stride=stride)
            if config.bottleneck:
                add(f"{block}.conv1", "conv", c_in, width, size)
                size = add(f"{block}.conv2", "conv", width, width, size, 3, stride)
                add(f"{block}.conv3", "conv", width, c_out, size)
            else:
                size = add(f"{block}.conv1", "conv", c_in, width, size, 3, stride)
                add(f"{block}.conv2", "conv", width, width, size, 3)
            c_in = c_out
    add("classifier", "classifier", c_in, config.num_classes, 1, bias=True, batch_norm=False)
    return specs


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + convolutions(x)); the convolutions are left out where no architecture has them.

    `specs` are those of all its layers by their short names, in order.
    """

    def __init__(self, layers: dict[str, ElasticConv], specs: dict[str, LayerSpec]):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.residual = [name for name in specs if name != "shortcut"]
        self.added_channels = specs[self.residual[-1]].out_channels - specs[self.residual[0]].in_channels
        self.stride = max(specs[name].stride for name in self.residual)

    def drop_and_pad(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        """Shortcut A: every second pixel, and empty channels on both sides; x itself in blocks that keep its shape."""
        if self.stride == 1 and not self.added_channels:
            return x
        before = self.added_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added_channels - before))


class ResNet(nn.Module):
    """The network of every architecture of `space`; a one-point space gives a static network.

    `net(images, arch)` takes normalised images (N, C, S, S), resizes them to the architecture's resolution and returns
    logits (N, num_classes). `net(images, arch, mixture=...)` mixes precisions, as DNAS trains.
    """

    def __init__(self, config: ResNetConfig, space: SearchSpace | None = None):
        super().__init__()
        self.config = config
        self.space = space or resnet_space(config)
        largest = self.space.layers(self.space.largest())

        def layer(name: str) -> ElasticConv:
            specs = self.candidates[name]
            bits = [tuple({getattr(s, f"{what}_bits") for s in specs if s.present}) for what in ("weight", "act")]
            quantizers = Quantizers(*bits, True, config.act_quantizer, config.weight_quantizer)
            is_float = min(bits[0] + bits[1]) == FLOAT_BITS
            return ElasticConv(largest[name], (largest[name].kernel_size,), None if is_float else quantizers)

        self.stem = layer("stem")
        for s, blocks in enumerate(config.stage_blocks, start=1):
            stage = nn.ModuleDict()
            for b in range(1, blocks + 1):
                own = {key: key.rpartition(".")[2] for key in largest if key.startswith(f"stage{s}.block{b}.")}
                built = [key for key in own if any(spec.present for spec in self.candidates[key])]
                layers = {own[key]: layer(key) for key in built}
                stage[f"block{b}"] = ResidualBlock(layers, {short: largest[key] for key, short in own.items()})
            self.add_module(f"stage{s}", stage)
        self.classifier = layer("classifier")

    @cached_property
    def candidates(self) -> dict[str, list[LayerSpec]]:
        """By layer: its LayerSpec for each value of the choice that decides its precision; one for the edges."""
        most = max(len(values) for values in self.space.choices.values())
        each = [
            self.space.layers({name: values[min(k, len(values) - 1)] for name, values in self.space.choices.items()})
            for k in range(most)
        ]
        counts = {name: len(self.space.choices.get(choice_of(self.config, name), (0,))) for name in each[0]}
        return {name: [specs[name] for specs in each[:count]] for name, count in counts.items()}

    def forward(
        self,
        images: Tensor,
        arch: Mapping[str, int],
        shared: SharedWeights | None = None,
        compute: torch.dtype | None = None,
        mixture: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits (N, num_classes) of the subnet `arch` on normalised images (N, C, S, S).

        `compute`, by default the type of the images, is the type of what passes between the layers. `mixture` maps
        choices to the share of each of their values, (K,): layers that it decides compute the sum of all their
        candidates by share, and blocks that may be left out are added by the share of those that do not.
        """
        specs, mixture = self.space.layers(arch), mixture or {}
        for choice, mask in mixture.items():
            if len(mask) != len(self.space.choices[choice]):
                raise ValueError(
                    f"mixture of {choice}: {len(mask)} shares for {len(self.space.choices[choice])} values"
                )

        def run(name: str, x: Tensor, activation: str | None = None) -> Tensor:
            layer, mask = self.get_submodule(name), mixture.get(choice_of(self.config, name))
            if mask is None:
                return layer(x, specs[name], activation, shared)
            pairs = [(m, spec) for m, spec in zip(mask, self.candidates[name]) if spec.present]
            shares = torch.stack([m for m, _ in pairs])
            shares = shares / shares.sum().clamp_min(1e-12)  # given that the layer is there
            return layer.mixed(x, [spec for _, spec in pairs], shares, activation)

        x = resize(images, arch["resolution"]).to(compute, memory_format=torch.channels_last)
        x = F.relu(run("stem", x))
        x = F.max_pool2d(x, 3, 2, 1) if self.config.large_stem else x
        for s, blocks in enumerate(self.config.stage_blocks, start=1):
            for b in range(1, blocks + 1):
                name = f"stage{s}.block{b}"
                x = self._block(x, name, run, specs, mixture.get(f"{name}.precision"))
        x = x.mean((2, 3), keepdim=True)
        return run("classifier", x).flatten(1).to(images.dtype)

    def _block(self, x: Tensor, name: str, run, specs: Mapping[str, LayerSpec], mask: Tensor | None) -> Tensor:
        block = self.get_submodule(name)
        if hasattr(block, "shortcut"):
            shortcut = run(f"{name}.shortcut", x)
        else:
            shortcut = block.drop_and_pad(x)
        if mask is None and not specs[f"{name}.{block.residual[0]}"].present:
            return F.relu(shortcut)
        for i, layer in enumerate(block.residual):
            x = run(f"{name}.{layer}", x, "relu" if i else None)
        if mask is not None and self.space.choices[f"{name}.precision"][0] == SKIP:
            x = x * (1 - mask[0])
        return F.relu(shortcut + x)
