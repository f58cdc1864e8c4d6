"""DNAS's mixture of candidates: convolve once with the mixed weights, against every candidate's own convolution.

    python benchmarks/mixture.py [--out results/NAME.csv]

A training step of the weights (forward, loss, backward) of the stochastic supernet of ResNet-20, and of one layer
of it. The static float network's step is the floor; both steps are timed in bfloat16 too. Both mixtures are compared
before they are timed.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rows import measured, save
from torch import Tensor
from torch.nn import functional as F

from oncequant.arch import FLOAT_PAIR as FLOAT
from oncequant.elastic import ElasticConv, Pass
from oncequant.measure import initialise_quantizers
from oncequant.methods.dnas import PRECISIONS
from oncequant.models import build_network
from oncequant.models.resnet import PRESETS


@dataclass(frozen=True)
class Options:
    """What to measure."""

    batch: int = 64
    passes: int = 9
    """Median of so many, taken in turns."""
    out: Path | None = None


def branch_by_branch(layer: ElasticConv, x: Tensor, specs, mask: Tensor, activation: str | None) -> Tensor:
    """The definition: sum_k mask[k] conv_k(x)."""
    total = None
    for share, spec in zip(mask, specs):
        y = share * layer._convolved(x, spec, layer.quantized_weight(spec), activation)
        total = y if total is None else total + y
    return layer.norm(total)


def in_turns(tasks: dict[str, Callable[[], object]], passes: int) -> dict[str, float]:
    """Median milliseconds of each task."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(passes + 1):  # the first is not counted
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def main(options: Options) -> None:
    """Measure and print a table."""
    rows, once = [], ElasticConv.mixed
    for cost, precisions in PRECISIONS.items():
        torch.manual_seed(0)
        config = replace(PRESETS["resnet20"], precisions=precisions)
        net = build_network(config).to(memory_format=torch.channels_last).train()
        images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
        initialise_quantizers(net, images)
        floats = build_network(replace(config, precisions=(FLOAT,))).to(memory_format=torch.channels_last).train()
        masks = {name: torch.randn(len(precisions)).softmax(0) for name in net.space.free}
        layer, specs = net.stage2["block2"].conv1, net.candidates["stage2.block2.conv1"]
        specs = [spec for spec in specs if spec.present]
        x = torch.randn(options.batch, 32, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
        mask, arch = torch.randn(len(specs)).softmax(0), net.space.largest()
        equal = (
            (once(layer, x, specs, mask, "relu") - branch_by_branch(layer, x, specs, mask, "relu")).abs().max().item()
        )

        def one_layer(mixed: Callable, layer=layer, x=x, specs=specs, mask=mask) -> None:
            mixed(layer, x, specs, mask, "relu").sum().backward()

        def step(mixed: Callable, compute=None, net=net, arch=arch, masks=masks, images=images, labels=labels) -> None:
            ElasticConv.mixed = mixed
            net.zero_grad()
            F.cross_entropy(net(images, arch, Pass(compute=compute, mixture=masks)), labels).backward()

        def floor(compute=None, net=floats, images=images, labels=labels) -> None:
            net.zero_grad()
            F.cross_entropy(net(images, net.space.largest(), Pass(compute=compute)), labels).backward()

        tasks = {
            "layer, once": lambda f=one_layer: f(once),
            "layer, branches": lambda f=one_layer: f(branch_by_branch),
            "step, once": lambda f=step: f(once),
            "step, branches": lambda f=step: f(branch_by_branch),
            "step, float": floor,
            "step, once, bfloat16": lambda f=step: f(once, torch.bfloat16),
            "step, float, bfloat16": lambda f=floor: f(torch.bfloat16),
        }
        found = in_turns(tasks, options.passes)
        for what in ("layer", "step"):
            fast, slow = found[f"{what}, once"], found[f"{what}, branches"]
            row = dict(cost=cost, candidates=len(precisions), what=what, once_ms=round(fast, 1))
            row |= dict(branches_ms=round(slow, 1), ratio=round(slow / fast, 2))
            if what == "step":
                row |= dict(float_ms=round(found["step, float"], 1))
                row |= dict(once_bfloat16_ms=round(found["step, once, bfloat16"], 1))
                row |= dict(float_bfloat16_ms=round(found["step, float, bfloat16"], 1))
            rows.append(measured(**row, largest_difference=equal))
    ElasticConv.mixed = once
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
