"""What every method does in the same way: train its stages one after the other, where a run was left."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from oncequant import distributed
from oncequant.family import NetworkConfig
from oncequant.models import build_network
from oncequant.network import Network
from oncequant.run_folder import Run
from oncequant.space import SearchSpace
from oncequant.supernet_file import save_supernet


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


def run_stages(stages: Iterable[Stage], run: Run, seed: int) -> None:
    """Train every stage that is not trained yet, in order: a stage can start from one before it.

    All processes of a training call this together. Raises what `start` and `train` raise.
    """
    for stage in stages:
        if distributed.from_main((run.folder / f"{stage.name}.safetensors").exists):
            continue
        torch.manual_seed(seed)
        net = build_network(stage.config, stage.space).on(run.data.device)
        stage.start(net)
        stage.train(net)
        distributed.from_main(partial(save_supernet, run.folder, stage.name, net))
