"""Weights of a standard residual network, as its common implementations name them, into ours.

ImageNet's networks have `conv1`, `bn1`, `layer1.0.conv1`, `layer1.0.bn1`, `layer2.0.downsample.0`, `fc`; CIFAR's often
`shortcut.0` and `linear` instead. Both are read, and a leading `module.`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from oncequant.arch import FLOAT_PAIR, LayerSpec
from oncequant.files import FileError
from oncequant.models import space_of
from oncequant.models.resnet import ResNetConfig
from oncequant.network import Network, elastic_layers
from oncequant.tensor_files import read_tensors

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def read_standard(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.pth` or `.safetensors` file, read without executing code. Raises FileError."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    if not path.exists():
        raise FileError(f"{path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for damaged or hostile files
        raise FileError(f"{path} is not a readable checkpoint: {type(error).__name__}") from error
    inside = [key for key in ("state_dict", "net", "model") if isinstance(content, dict) and key in content]
    content = content[inside[0]] if inside else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise FileError(f"{path} does not hold tensors by name, nor such a state dict under state_dict, net or model")
    return content


@torch.no_grad()
def import_standard(net: Network, state: dict[str, Tensor]) -> None:
    """Copy the weights and statistics of `state` into `net`, whatever its pairs.

    Raises ValueError naming the key if one is unknown or missing, or if its shape is not the network's.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    layers = dict(elastic_layers(net))
    for name, spec in standard_layers(net).items():
        shape: tuple[int, ...] = (spec.out_channels, spec.group_channels, spec.kernel_size, spec.kernel_size)
        tensors = {"weight": shape if spec.role != "classifier" else shape[:2]}
        tensors |= {"bias": shape[:1]} if spec.bias else {}
        found = {part: _take(state, _keys(name, part), wanted) for part, wanted in tensors.items()}
        if spec.batch_norm:
            found |= {f"norm.{part}": _take(state, _keys(name, part, norm=True), shape[:1]) for part in STATISTICS}
        if name in layers:  # a network without some blocks leaves theirs
            target = layers[name].state_dict(keep_vars=True)
            for part, tensor in found.items():
                target[part].copy_(tensor.view_as(target[part]))
    if state:
        other = " (1x1 shortcuts need the option projections)" if any("shortcut" in key for key in state) else ""
        first = f"the first is {next(iter(state))!r}{other}"
        raise ValueError(f"{len(state)} tensors belong to no layer of this network, {first}")


def standard_layers(net: Network) -> Mapping[str, LayerSpec]:
    """All layers of the network in float, also those that some architectures leave out."""
    if not isinstance(net.config, ResNetConfig):
        raise ValueError("init is for standard residual networks; a network of your own starts from --weights")
    space = space_of(replace(net.config, precisions=(FLOAT_PAIR,), per_layer=False))
    return space.layers(space.largest())


def standard_keys(tensor: str) -> list[str]:
    """The names that a tensor of ours, such as stage1.block1.conv1.norm.weight, can have in standard networks."""
    layer, _, part = tensor.rpartition(".")
    norm, layer = layer.endswith(".norm"), layer.removesuffix(".norm")
    is_residual = layer in ("stem", "classifier") or layer.rpartition(".")[2] in ("conv1", "conv2", "shortcut")
    return _keys(layer, part, norm) if is_residual else []


def _keys(name: str, part: str, norm: bool = False) -> list[str]:
    """The names that a tensor of a layer can have."""
    if name == "classifier":
        return [f"fc.{part}", f"linear.{part}"]
    if name == "stem":
        return [f"bn1.{part}" if norm else f"conv1.{part}"]
    stage, block, layer = name.split(".")
    place = f"layer{stage.removeprefix('stage')}.{int(block.removeprefix('block')) - 1}"
    if layer == "shortcut":
        return [f"{place}.{kind}.{int(norm)}.{part}" for kind in ("downsample", "shortcut")]
    return [f"{place}.{layer.replace('conv', 'bn') if norm else layer}.{part}"]


def _take(state: dict[str, Tensor], keys: list[str], shape: tuple[int, ...]) -> Tensor:
    """Remove and return the tensor under one of `keys`."""
    found = [key for key in keys if key in state]
    if not found:
        kind = "shortcuts (option projections)" if "shortcut" in keys[-1] else "depth"
        raise ValueError(f"there is no {' or '.join(map(repr, keys))}: a network of other {kind}?")
    tensor = state.pop(found[0])
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{found[0]} has shape {tuple(tensor.shape)}, this network's is {shape}")
    return tensor
