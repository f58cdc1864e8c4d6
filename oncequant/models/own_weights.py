"""Weights that a network of the user's own starts from: a file of the run folder.

The float stage starts from them, or is them, where they are trained. Networks that DNAS trains alone start from them,
too.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from oncequant.family import NetworkConfig
from oncequant.files import FileError, write_atomically
from oncequant.models import build_network
from oncequant.models.own import AnyOwn, OwnConfig, OwnPairsConfig, first_and_last, from_text
from oncequant.network import Network
from oncequant.progress import console
from oncequant.tensor_files import read_tensors, write_tensors

FILE = "network.safetensors"
FORMAT = "oncequant weights 1"
AnyConfig = TypeVar("AnyConfig", bound=NetworkConfig)


def fitting(weights: Mapping[str, Tensor], config: AnyOwn) -> dict[str, Tensor]:
    """The weights without those of a last layer for other classes, with a line that says so. Raises ValueError if the
    others are not the network's, or if all are said to be trained and are not."""
    shapes = {name: tensor.shape for name, tensor in build_network(config).state_dict().items()}
    anew = [name for name, shape in shapes.items() if name in weights and weights[name].shape != shape]
    kept = {name: tensor for name, tensor in weights.items() if name not in anew}
    _, last = first_and_last(from_text(config.network)[2])
    if lost := {*shapes} ^ {*weights} or {name for name in anew if name.rpartition(".")[0] != last}:
        raise ValueError(f"weights: {sorted(lost)[0]} does not fit the network")
    if anew and is_trained(config):
        classes = len(weights[anew[0]])
        raise ValueError(
            f"trained: {last} is for {classes} classes, the images have {config.num_classes}; leave it out"
        )
    if anew:
        text = f"{len(kept)} tensors of the weights are taken; {last} starts anew, for {config.num_classes} classes"
        console.print(text, soft_wrap=True)
    return kept


def keep_weights(folder: Path, weights: Mapping[str, Tensor], config: NetworkConfig) -> None:
    """Write those that fit a network to its run folder, unless that is there. Raises ValueError as `fitting`."""
    assert isinstance(config, (OwnConfig, OwnPairsConfig))
    kept = fitting(weights, config)
    if not (folder / "run.json").exists():
        write_tensors(folder / FILE, kept, {"format": FORMAT})


def copy_weights(source: Path, folder: Path) -> None:
    """Let networks of another folder start from those of a run."""
    if (source / FILE).exists():
        write_atomically(folder / FILE, (source / FILE).read_bytes())


def start_from(net: Network, folder: Path) -> None:
    """Take the weights that a run folder has for a network; others keep theirs. Raises FileError if they are missing or
    do not fit."""
    if not getattr(net.config, "weights", ""):
        return
    tensors, metadata = read_tensors(folder / FILE)
    if metadata.get("format") != FORMAT:
        raise FileError(f"{folder / FILE} is not {FORMAT!r}")
    try:
        unknown = net.load_state_dict(tensors, strict=False).unexpected_keys
    except RuntimeError as error:
        raise FileError(f"{folder / FILE} does not fit the network: {error}") from error
    if unknown:
        raise FileError(f"{folder / FILE} does not fit the network, which has no {unknown[0]}")


def untrained(config: AnyConfig) -> AnyConfig:
    """The configuration of a network that starts from random weights."""
    return replace(config, weights="", trained=False) if hasattr(config, "trained") else config


def is_trained(config: NetworkConfig) -> bool:
    """Whether the weights that this network starts from are trained: in float they need no training."""
    return config.is_float and getattr(config, "trained", False)
