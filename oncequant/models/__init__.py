"""The families of networks, and what can be done with all of them alike."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch

from oncequant.arch import Arch
from oncequant.family import Family, NetworkConfig
from oncequant.models import elastic_resnet, mobilenet_v3, own, resnet
from oncequant.network import Network, elastic_layers
from oncequant.space import SearchSpace

FAMILIES: dict[str, Family] = {
    "mobilenet_v3": mobilenet_v3.FAMILY,
    "elastic_resnet": elastic_resnet.FAMILY,
    "resnet": resnet.FAMILY,
    "own": own.FAMILY,
    "own_pairs": own.PAIRS_FAMILY,
}
PRESETS: dict[str, NetworkConfig] = {
    name: preset for family in FAMILIES.values() for name, preset in family.presets.items()
}


def family_of(config: NetworkConfig) -> str:
    """The key of FAMILIES to which a configuration belongs."""
    return next(name for name, family in FAMILIES.items() if type(config) is family.Config)


def families_with(field: str) -> tuple[str, ...]:
    """Keys of FAMILIES whose configuration has a field of this name."""
    return tuple(name for name, family in FAMILIES.items() if field in {f.name for f in fields(family.Config)})


def space_of(config: NetworkConfig) -> SearchSpace:
    """The search space of a configuration."""
    return FAMILIES[family_of(config)].space(config)


def build_network(config: NetworkConfig, space: SearchSpace | None = None) -> Network:
    """A network with random weights for every architecture of `space`, by default the whole space of `config`."""
    return Network(config, space or space_of(config))


def config_to_json(config: NetworkConfig) -> dict[str, Any]:
    """The fields of a configuration and the name of its family."""
    return {"name": family_of(config), **asdict(config)}


def config_from_json(values: Mapping[str, Any]) -> NetworkConfig:
    """Inverse of `config_to_json` through JSON (lists become tuples). Raises ValueError on unknown names."""
    values = dict(values)
    name = values.pop("name", "mobilenet_v3")
    if name not in FAMILIES:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(FAMILIES)}")
    kind = FAMILIES[name].Config
    if unknown := set(values) - {field.name for field in fields(kind)}:
        raise ValueError(f"unknown option {', '.join(sorted(unknown))} of model {name}")
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def extract_subnet(supernet: Network, arch: Arch) -> Network:
    """The static network of `arch` with copies of the supernet's weights, transformed and sliced.

    Its forward is bit-identical to `supernet(images, arch)` on CPU. Batch-norm statistics are copied too, but they
    belong to the largest architecture: calibrate before evaluating.
    """
    arch = supernet.space.complete(arch)
    subnet = Network(supernet.config, supernet.space.restrict(arch))
    device = next(supernet.parameters()).device
    specs = supernet.space.layers(arch)
    layers = dict(elastic_layers(supernet))
    with torch.no_grad():
        for name, layer in elastic_layers(subnet):
            layer.copy_sliced(layers[name], specs[name])
    return subnet.on(device).train(supernet.training)
