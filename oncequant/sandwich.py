"""The sandwich rule with in-place distillation (BigNAS, https://arxiv.org/abs/2003.11142): a supernet's training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from oncequant import distributed
from oncequant.arch import Arch
from oncequant.data import Data
from oncequant.elastic import ALONE, Pass, SharedWeights
from oncequant.loss import UNWEIGHTED, Loss
from oncequant.measure import Judge
from oncequant.models.own_weights import is_trained
from oncequant.network import Network
from oncequant.schedule import Schedule
from oncequant.space import SearchSpace
from oncequant.train import StepFunction, fit


class SupernetConfig(Protocol):
    """What the training of a supernet reads of a method's Config: TrainingOptions and SupernetOptions together."""

    @property
    def seed(self) -> int: ...
    @property
    def compute(self) -> str: ...
    @property
    def checkpoint_seconds(self) -> float: ...
    @property
    def random_subnets(self) -> int: ...
    @property
    def always_smallest(self) -> bool: ...
    @property
    def largest_share(self) -> float: ...
    @property
    def label_share(self) -> float: ...
    @property
    def float_sandwich(self) -> bool: ...
    @property
    def checkpoint_activations(self) -> bool: ...
    @property
    def independent_archs(self) -> bool: ...
    @property
    def sync_batch_norm(self) -> bool: ...
    @property
    def shares_ranges(self) -> bool: ...

    def schedule(self, stage: str, data: Data) -> Schedule:
        """Steps and learning rate of a stage."""

    def loss(self, data: Data) -> Loss:
        """What training on this data set minimises."""

    def calibration(self, data: Data) -> list[tuple[Tensor, Tensor]]:
        """Batches of training images for statistics."""


def sandwich_training(supernet: Network, cfg: SupernetConfig, data: Data, grows: bool = False) -> StepFunction:
    """Steps of the sandwich rule over the whole space of a supernet.

    If it `grows`, images are never larger than a size that grows over the stage from the least to the largest of the
    space, each for an equal part of the steps: the same time is a third more steps (docs/log.md).
    """
    space, loss = supernet.space, cfg.loss(data)

    def step(images: Tensor, labels: Tensor, rng: np.random.Generator, done: float) -> Tensor:
        archs = sandwich_archs(space, cfg.random_subnets, own_rng(cfg, rng), cfg.always_smallest)
        if grows:
            most = grown(space.choices["resolution"], done)
            archs = list(dict.fromkeys(arch.replace(resolution=min(arch["resolution"], most)) for arch in archs))
        how = pass_of_step(cfg, SharedWeights())
        return sandwich_step(supernet, images, labels, archs, loss, how, cfg.label_share, cfg.largest_share)

    return step


def grown(sizes: Sequence[int], done: float) -> int:
    """The largest size of images when a stage is so far done (0 to below 1)."""
    return sizes[int(done * len(sizes))]


def train_float(supernet: Network, cfg: SupernetConfig, data: Data, run_dir: Path, every_size: bool = False) -> None:
    """Train the float stage: the largest network alone, or by the sandwich rule if `cfg` says so.

    What quantized subnets need of it is good weights of the largest; the small ones recover within a few hundred steps
    of the first quantized stage. Its resolution grows over the stage from the least to the largest of the space, each
    for an equal part of the steps: small images are cheaper, and teach nearly as much (docs/log.md). With `every_size`
    each step has a random one instead, for a teacher that looks at images of every size. A network of the user's own
    that is trained stays as it is.
    """
    if is_trained(supernet.config):
        return
    space = supernet.space
    sizes, loss = space.choices["resolution"], cfg.loss(data)

    def step(images: Tensor, labels: Tensor, rng: np.random.Generator, done: float) -> Tensor:
        size = int(rng.choice(sizes)) if every_size else grown(sizes, done)
        largest = space.largest().replace(resolution=size)
        how = pass_of_step(cfg, SharedWeights())
        return sandwich_step(supernet, images, labels, [largest], loss, how)

    if cfg.float_sandwich:
        train_supernet(supernet, sandwich_training(supernet, cfg, data), cfg, data, run_dir, "float")
    else:
        train_supernet(supernet, step, cfg, data, run_dir, "float", [space.largest()], 1)


def pass_of_step(cfg: SupernetConfig, shared: SharedWeights) -> Pass:
    """How the subnets of a training step compute; each step has shared weights of its own."""
    return Pass(
        shared=shared,
        compute=getattr(torch, cfg.compute),
        recompute=cfg.checkpoint_activations,
        sync_norms=cfg.sync_batch_norm,
        sync_ranges=cfg.shares_ranges,
    )


def own_rng(cfg: SupernetConfig, rng: np.random.Generator) -> np.random.Generator:
    """The generator from which this process draws a step's architectures."""
    return rng.spawn(distributed.world_size())[distributed.rank()] if cfg.independent_archs else rng


def train_supernet(
    supernet: Network,
    step: StepFunction,
    cfg: SupernetConfig,
    data: Data,
    run_dir: Path,
    stage: str,
    ends: Sequence[Arch] | None = None,
    subnets: int | None = None,
) -> None:
    """Train one stage by `step`; logs validation top-1 of the subnets `ends`, by default the largest and smallest
    (`Judge.while_training`).

    A step trains so many `subnets`, by default those of the sandwich rule.
    """
    judge = Judge(data, cfg.calibration(data)).while_training()

    def top1(arch: Arch) -> float:
        return judge.validation(supernet, arch).top1

    def evaluate() -> dict[str, float]:
        measured = distributed.shared_map(top1, ends or [supernet.space.largest(), supernet.space.smallest()])
        return dict(zip(("top1_largest", "top1_smallest"), measured))

    fit(
        supernet,
        step,
        data,
        cfg.schedule(stage, data),
        stage=stage,
        run_dir=run_dir,
        seed=cfg.seed,
        evaluate=evaluate,
        subnets=min(supernet.space.size(), subnets or 1 + cfg.random_subnets + cfg.always_smallest),
        checkpoint_seconds=cfg.checkpoint_seconds,
    )


def sandwich_step(
    net: Network,
    images: Tensor,
    labels: Tensor,
    archs: list[Arch],
    loss: Loss = UNWEIGHTED,
    how: Pass = ALONE,
    label_share: float = 0.0,
    largest_share: float = 0.0,
) -> Tensor:
    """Sandwich rule with in-place distillation (BigNAS, 2003.11142): the gradients of all `archs`, in the mean, or with
    a `largest_share` above 0 the first by that and the others by what it leaves.

    The first architecture, the largest, learns from the labels; the others learn from its soft answers and by
    `label_share` from the labels. Subnets run one after the other, so that memory is that of the largest alone. Where
    `how` has shared weights, they get the gradients of all subnets before the parameters do. Returns the loss of the
    largest, 0-dim.
    """
    others = len(archs) - 1
    share = largest_share if largest_share and others else 1 / len(archs)
    logits = net(images, archs[0], how)  # (N, classes)
    largest_loss = loss(logits, labels)
    (share * largest_loss).backward()
    teacher = (1 - label_share) * logits.detach().softmax(1)
    teacher[torch.arange(len(labels)), labels] += label_share
    for arch in archs[1:]:
        ((1 - share) / others * loss.taught(net(images, arch, how), teacher, labels)).backward()
    if how.shared is not None:
        how.shared.backward()
    return largest_loss.detach()


def sandwich_archs(
    space: SearchSpace, others: int, rng: np.random.Generator, always_smallest: bool = False
) -> list[Arch]:
    """The largest architecture, the smallest if that is said, and so many others, each once."""
    smallest = [space.smallest()] if always_smallest else []
    return list(dict.fromkeys([space.largest(), *smallest, *(other_arch(space, rng) for _ in range(others))]))


def other_arch(space: SearchSpace, rng: np.random.Generator) -> Arch:
    """One of the three kinds that learn from the largest: the smallest, one that has the least of all widths, and any.

    Few uniform ones are narrow everywhere, and the smallest alone does not train the others that are: those of larger
    images, or of more channels within their blocks (docs/log.md).
    """
    kind, arch = rng.integers(3), space.sample(rng)
    if kind == 0:
        return space.smallest()
    widths = {name: min(space.choices[name]) for name in space.free if name.endswith(".width")}
    return arch.replace(**widths) if kind == 1 else arch
