"""Bits for the layers of a user's own network: a front of mixed bit-widths against the same network at 8, 4, 3 and 2.

    python recipes/own_front.py DATA --out runs/own-front --results results/NAME.csv [--networks resnet mobilenet]

The networks below are plain PyTorch. Each is trained in float by a plain loop (SGD, one cycle). Then QFA trains one set
of weights for every bit-width of every layer, and a search gives a front over BitOPs. Beside it the same float network
is fine-tuned at 8, 4, 3 and 2 bits alone (OQAT with that bit-width), each for as many steps as QFA's two stages.
Hypervolumes are over log BitOPs and test error, up to the worst of all networks of one seed; networks of the front are
those of validation accuracy, the test split is measured once for each. Every part resumes after a kill.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file
from tables import publish
from torch import Tensor, nn
from torch.nn import functional as F

import oncequant as oq
from oncequant.data import Data, eval_batches, load_data, steps_per_epoch, train_batches
from oncequant.intervals import seeds_interval
from oncequant.measure import Judge
from oncequant.records import Measurement, read_records
from oncequant.search.measurements import all_costs
from oncequant.search.pareto import hypervolume, pareto_front
from oncequant.supernet_file import load_supernet

BITS = (8, 4, 3, 2)


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its batch norm."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(*block(inputs, outputs, 3, stride), nn.ReLU(), *block(outputs, outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*block(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) to (N, outputs, S / stride, S / stride)."""
        return F.relu(self.body(x) + self.shortcut(x))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int):
        super().__init__()
        wide = inputs * expand
        self.body = nn.Sequential(
            *block(inputs, wide, 1),
            nn.ReLU6(),
            *block(wide, wide, 3, stride, wide),
            nn.ReLU6(),
            *block(wide, outputs, 1),
        )
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) to (N, outputs, S / stride, S / stride)."""
        return x + self.body(x) if self.adds else self.body(x)


def resnet(channels: int, classes: int) -> nn.Module:
    """Three groups of two blocks, 16 to 64 channels."""
    blocks = [
        Residual(a, b, s) for a, b, s in ((16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
    ]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)]
    return nn.Sequential(*block(channels, 16), nn.ReLU(), *blocks, *end)


def mobilenet(channels: int, classes: int) -> nn.Module:
    """Six inverted residuals, 16 to 48 channels."""
    rows = ((16, 16, 1, 2), (16, 24, 2, 4), (24, 24, 1, 4), (24, 32, 2, 4), (32, 32, 1, 4), (32, 48, 1, 4))
    end = [*block(48, 128, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes)]
    return nn.Sequential(*block(channels, 16), nn.ReLU6(), *[Inverted(*row) for row in rows], *end)


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"resnet": resnet, "mobilenet": mobilenet}


@dataclass(frozen=True)
class Options:
    """What to run."""

    data: Annotated[str, tyro.conf.Positional]
    """digits, or a folder of images."""
    out: Path
    results: Path | None = None
    networks: tuple[Literal["resnet", "mobilenet"], ...] = ("resnet", "mobilenet")
    seeds: tuple[int, ...] = (0, 1, 2)
    size: int = 32
    max_train: int | None = None
    float_epochs: int = 12
    epochs: int = 4
    """Of QFA's stage with every bit-width; the one with float among them has half as many."""
    min_steps: int = 0
    batch_size: int = 128
    evaluations: int = 120


def train_in_float(module: nn.Module, data: Data, options: Options, seed: int) -> None:
    """A plain training loop, as a user may have it."""
    steps = max(options.min_steps, options.float_epochs * steps_per_epoch(data, options.batch_size))
    fast = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(fast, 0.1, steps)
    module.train()
    done = 0
    for epoch in range(steps):
        for images, labels in train_batches(data, options.batch_size, seed=1000 * seed + epoch):
            F.cross_entropy(module(images), labels, label_smoothing=0.1).backward()
            fast.step()
            cycle.step()
            fast.zero_grad()
            done += 1
            if done == steps:
                module.eval()
                return


def right(module: nn.Module, data: Data) -> float:
    """Test top-1 of a plain module."""
    with torch.inference_mode():
        found = [(module(images).argmax(1) == labels) for images, labels in eval_batches(data, data.test)]
    return float(torch.cat(found).double().mean())


def of_seed(name: str, seed: int, options: Options) -> list[dict]:
    """Rows of one network and seed: float, mixed front, each bit-width alone; with test top-1 (0 to 1) and costs."""
    data = load_data(options.data, size=options.size, seed=seed, max_train=options.max_train)
    place = options.out / f"{name}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    module = NETWORKS[name](data.channels, len(data.classes))
    weights = place / "float.safetensors"
    if not weights.exists():
        train_in_float(module, data, options, seed)
        save_file(module.state_dict(), weights)
    module.load_state_dict(load_file(weights))
    module.eval()
    about = {"network": name, "seed": seed}
    rows = [about | {"way": "float", "top1_test": right(module, data), "bitops": "", "weight_bytes": ""}]
    mine = oq.own_network(module, torch.zeros(1, data.channels, options.size, options.size), trained=True)
    common = dict(seed=seed, batch_size=options.batch_size, min_steps=options.min_steps, epochs=options.epochs)
    cfg = oq.qfa.Config(bits=tuple(sorted(BITS)), **common)
    mixed = oq.new_run(cfg, data, place / "mixed", model=mine)
    oq.train_run(cfg, mixed)
    oq.search_run(cfg, mixed, evaluations=options.evaluations)
    judge, net = Judge(data, cfg.calibration(data)), load_supernet(mixed.folder, "mixed")
    measured = [m for m in read_records(mixed.folder / "measurements.jsonl", Measurement) if m.stage == "mixed"]
    points = np.array([[m.costs["bitops"], 1 - m.top1] for m in measured])
    for i in pareto_front(points):
        top1 = judge.test(net, net.space.complete(measured[i].arch)).accuracy.top1
        costs = {cost: measured[i].costs[cost] for cost in ("bitops", "weight_bytes")}
        rows.append(about | {"way": "mixed", "top1_test": top1} | costs)
    steps = sum(cfg.schedule(stage, data).steps for stage in oq.qfa.stages(cfg) if stage != "float")
    for bits in BITS:
        alone = oq.oqat.Config(bit_schedule=(bits,), **common)
        alone = replace(alone, duration=steps / alone.schedule(f"{bits}bit", data).steps)
        run = oq.new_run(alone, data, place / f"{bits}bit", model=mine)
        oq.train_run(alone, run)
        net = load_supernet(run.folder, f"{bits}bit")
        arch = net.space.largest()
        costs = all_costs(net.space, arch)
        row = {"way": f"{bits} bits alone", "top1_test": judge.test(net, arch).accuracy.top1}
        rows.append(about | row | {cost: costs[cost] for cost in ("bitops", "weight_bytes")})
    return rows


def volumes(rows: list[dict]) -> tuple[float, float]:
    """Hypervolumes of the mixed front and of the single bit-widths, as shares of the box around both."""
    quantized = [row for row in rows if row["way"] != "float"]
    values = np.array([[np.log(row["bitops"]), 1 - row["top1_test"]] for row in quantized])
    box = np.prod(np.ptp(values, axis=0))
    mixed = np.array([row["way"] == "mixed" for row in quantized])
    first, second = (hypervolume(values[which], values.max(0)) / box for which in (mixed, ~mixed))
    return first, second


def main(options: Options) -> None:
    """Everything that is not there yet; one table of all, and the hypervolumes."""
    rows: list[dict] = []
    for name in options.networks:
        apart = []
        for seed in options.seeds:
            found = of_seed(name, seed, options)
            rows += found
            both = volumes(found)
            apart.append(both[0] - both[1])
            print(f"{name}, seed {seed}: hypervolume mixed {both[0]:.3f}, single bit-widths {both[1]:.3f}", flush=True)
        print(f"{name}: difference {seeds_interval(apart).text(3)} over {len(apart)} seeds")
    publish([row | {"top1_test": round(row["top1_test"], 4)} for row in rows], options.results)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
