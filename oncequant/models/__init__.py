"""The networks, and what can be done with all of them alike."""

from dataclasses import asdict, fields
from typing import Any

import torch

from oncequant.arch import Arch
from oncequant.elastic import elastic_layers
from oncequant.models.mobilenet_v3 import MobileNetV3, MobileNetV3Config, mobilenet_v3_space
from oncequant.models.resnet import ResNet, ResNetConfig, resnet_space

Network = MobileNetV3 | ResNet
ModelConfig = MobileNetV3Config | ResNetConfig

MODELS = {  # name: configuration, its search space, the network of (configuration, space)
    "mobilenet_v3": (MobileNetV3Config, mobilenet_v3_space, MobileNetV3),
    "resnet": (ResNetConfig, resnet_space, ResNet),
}


def model_name(config: ModelConfig) -> str:
    """The key of MODELS to which a configuration belongs."""
    return next(name for name, (kind, _, _) in MODELS.items() if isinstance(config, kind))


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The fields of a configuration and the name of its model."""
    return {"name": model_name(config), **asdict(config)}


def config_from_json(values: dict[str, Any]) -> ModelConfig:
    """Inverse of `config_to_json` through JSON (lists become tuples). Raises ValueError on unknown names."""
    values = dict(values)
    name = values.pop("name", "mobilenet_v3")
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    kind = MODELS[name][0]
    if unknown := set(values) - {field.name for field in fields(kind)}:
        raise ValueError(f"unknown option {', '.join(sorted(unknown))} of model {name}")
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def extract_subnet(supernet: Network, arch: Arch) -> Network:
    """The static network of `arch` with copies of the supernet's weights, transformed and sliced.

    Its forward is bit-identical to `supernet(images, arch)` on CPU. Batch-norm statistics are copied too, but they
    belong to the largest architecture: calibrate before evaluating.
    """
    arch = supernet.space.complete(arch)
    subnet = type(supernet)(supernet.config, supernet.space.restrict(arch))
    device = next(supernet.parameters()).device
    specs = supernet.space.layers(arch)
    layers = dict(elastic_layers(supernet))
    with torch.no_grad():
        for name, layer in elastic_layers(subnet):
            layer.copy_sliced(layers[name], specs[name])
    return subnet.to(device, memory_format=torch.channels_last).train(supernet.training)
