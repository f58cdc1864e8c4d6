"""What every method does in the same way: train its stages one after the other, where a run was left."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from oncequant import distributed
from oncequant.family import NetworkConfig
from oncequant.files import FileError
from oncequant.models import build_network
from oncequant.network import Network
from oncequant.run_folder import Run
from oncequant.space import SearchSpace
from oncequant.supernet_file import load_space, save_supernet


@dataclass(frozen=True)
class Stage:
    """One network to train; it becomes `<name>.safetensors` of the run folder."""

    name: str
    config: NetworkConfig
    space: SearchSpace
    start: Callable[[Network], None]
    """Takes the network with random weights and sets those that it starts from."""
    train: Callable[[Network], None]
    """Trains it in place; called again after a kill, it goes on from its own checkpoint, see `train.fit`."""


def is_trained(stage: Stage, folder: Path) -> bool:
    """Whether the network of a stage is there. Raises FileError if another one is there."""
    path = folder / f"{stage.name}.safetensors"
    if not path.exists():
        return False
    config, space = load_space(folder, stage.name)
    there, wanted = ((c.num_classes, c.image_channels) for c in (config, stage.config))
    if there != wanted or space.choices != stage.space.choices:
        raise FileError(f"{path} is a network of another architecture: delete it to train this one")
    return True


def run_stages(stages: Iterable[Stage], run: Run, seed: int) -> None:
    """Train every stage that is not trained yet, in order: a stage can start from one before it.

    All processes of a training call this together. Raises what `start` and `train` raise, and FileError if the network
    that is there has other choices, classes or channels.
    """
    for stage in stages:
        if distributed.from_main(partial(is_trained, stage, run.folder)):
            continue
        torch.manual_seed(seed)
        net = build_network(stage.config, stage.space).on(run.data.device)
        stage.start(net)
        stage.train(net)
        distributed.from_main(partial(save_supernet, run.folder, stage.name, net))
