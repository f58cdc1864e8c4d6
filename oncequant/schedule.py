"""How a stage learns: its schedule, and the optimizers of its parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from oncequant.muon import Muon
from oncequant.network import elastic_layers

OPTIMIZERS = ("adamw", "sgd", "muon")
TYPICAL_STEP_SIZE = 0.25  # medians at 4 to 2 bits are 0.1 to 0.4; one of this size moves as AdamW moves all numbers


@dataclass(frozen=True)
class Schedule:
    """How long and with what learning rate one stage trains."""

    steps: int
    batch_size: int
    lr: float
    """Peak learning rate; cosine to 0 after `warmup` steps."""
    warmup: int = 0
    weight_decay: float = 3e-5
    """Of convolution and linear weights and kernel transforms; none on batch norm, biases and step sizes."""
    optimizer: str = "adamw"
    """adamw; sgd (Nesterov momentum 0.9); muon, for the weights of dense convolutions, with adamw for the rest."""
    muon_lr: float = 0.2
    """Peak learning rate of Muon: the part of a weight's norm that a step moves."""
    compute: str = "float32"
    """Type in which Muon's iterations compute."""
    clip_norm: float = 10.0
    """Largest global gradient norm."""
    step_size_lr: float = 1.0
    """Learning rate of the quantizers' parameters, relative to `lr`. AdamW moves a step size by a share of itself."""
    arch_lr: float | None = None
    """Constant learning rate of architecture parameters, which have an Adam of their own."""

    def lr_at(self, step: int) -> float:
        """Learning rate of one step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup))) / 2


class StepSizeAdamW(torch.optim.AdamW):
    """AdamW that moves step sizes, element by element, by shares of themselves, so that they keep their sign.

    AdamW moves every number by about `lr`, however small its gradient, so that LSQ's gradient scale has no effect, and
    a step size not much larger than `lr` would reach zero within a few steps. A layer then computes next to nothing,
    the batch norm behind it divides by sqrt(eps), and the gradient grows 316 times with each such layer (docs/log.md).
    So Adam trains the logarithm of a step size, as https://arxiv.org/abs/1903.08066 does that of thresholds.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, step_sizes: list[nn.Parameter]):
        super().__init__(groups, lr=lr, fused=True)
        self.step_sizes = step_sizes

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # as all of torch's
        """Update all parameters that have gradients. `closure` is not supported."""
        assert closure is None
        moving = [step_size for step_size in self.step_sizes if step_size.grad is not None]
        before = [step_size.clone() for step_size in moving]
        super().step()
        for step_size, old in zip(moving, before):
            step_size.copy_(old * ((step_size - old) * old.sign() / TYPICAL_STEP_SIZE).exp())


def make_optimizers(net: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """One with groups of its own for weights, for batch norm and biases, and for quantizers; and Adam for architecture
    parameters if the network has any, which may be trained in other steps than the weights."""
    convolutions = dense_weights(net) if schedule.optimizer == "muon" else []
    own = set(convolutions)
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    steps: list[nn.Parameter] = []
    archs: list[nn.Parameter] = []
    step_sizes = [parameter for name, parameter in net.named_parameters() if name.endswith(".step_size")]
    for name, parameter in net.named_parameters():
        if parameter in own:
            continue
        group = steps if "_quantizer." in name else others if parameter.dim() < 2 else weights
        (archs if name == "arch_logits" else group).append(parameter)
    groups = [
        {"params": weights, "weight_decay": schedule.weight_decay, "scale": 1.0},
        {"params": others, "weight_decay": 0.0, "scale": 1.0},
        {"params": steps, "weight_decay": 0.0, "scale": schedule.step_size_lr},
    ]
    groups = [group for group in groups if group["params"]]
    adam = [torch.optim.Adam([{"params": archs, "lr": schedule.arch_lr}])] if archs else []
    if schedule.optimizer == "sgd":
        return [torch.optim.SGD(groups, lr=schedule.lr, momentum=0.9, nesterov=True), *adam]
    rest: list[torch.optim.Optimizer] = [StepSizeAdamW(groups, schedule.lr, step_sizes), *adam]
    if not convolutions:
        return rest
    muon = {"params": convolutions, "scale": schedule.muon_lr / schedule.lr}
    return [Muon([muon], dtype=getattr(torch, schedule.compute)), *rest]


def dense_weights(net: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon trains: of convolutions that are not depthwise and have a batch norm."""
    layers = [layer for _, layer in elastic_layers(net) if layer.norm is not None]
    return [layer.weight for layer in layers if layer.weight.shape[1] > 1]
