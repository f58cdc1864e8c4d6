"""Accuracy against CPU seconds: OQAT and QFA with residual networks, OQAT with MobileNetV3, and ResNet-8 made by hand.

    python recipes/curve.py DATA OUT --results results/NAME.csv [--picture docs/NAME.png]

A point of ours is `oncequant train --hours` for three quarters of its seconds, and a search that measures fewer
networks where they are few, on one thread; both count, files are not written. Of what was measured, the most accurate
network on validation images is taken within 45 kB of packed weights, within 150 kB, and of all, and measured on the
test images. Networks by hand are the widest at 4 bits within the same bytes, and within those of the largest network of
`resnet-cifar`; each is trained alone for the whole time, and only this is counted. Two processes may run side by side.
A point that was killed starts anew, those that are there are kept. Not run yet.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import torch
import tyro
from tables import publish

import oncequant as oq
from oncequant.cost import COSTS
from oncequant.family import with_bits
from oncequant.files import read_json, write_json
from oncequant.hand_made import HandMade, hand_made, train_for
from oncequant.measure import Judge
from oncequant.models import space_of
from oncequant.models.elastic_resnet import PRESETS
from oncequant.records import Measurement, read_records
from oncequant.run_folder import Run, date_of
from oncequant.runs import open_run
from oncequant.supernet_file import load_supernet

BITS = 4  # of networks made by hand
TRAINED = 0.75  # of a point's seconds; the search has the rest
LIMITS = {"45 kB": 45e3, "150 kB": 150e3, "any size": float("inf")}  # of packed weights
WAYS: Mapping[str, Sequence[str]] = {  # what stands behind `oncequant train`
    "OQAT": ("oqat",),
    "QFA": ("qfa",),
    "OQAT, MobileNetV3": ("oqat", "--preset", "cifar", "--optimizer", "adamw"),
    "by hand": (),
}


@dataclass(frozen=True)
class Options:
    """What to run."""

    data: Annotated[str, tyro.conf.Positional]
    """Folder of CIFAR-10's parquet files."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder for runs."""
    results: Path | None = None
    picture: Path | None = None
    seconds: tuple[int, ...] = (300, 1000, 3600)
    ways: tuple[str, ...] = tuple(WAYS)
    seed: int = 0


def cpu_seconds() -> float:
    """Of this process and of all that it has waited for."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def point(way: str, seconds: int, options: Options) -> list[dict[str, Any]]:
    """The rows of a point, a network for each limit; kept in a file."""
    folder = options.out / f"{way.replace(', ', '-').replace(' ', '-').lower()}-{seconds}-{options.seed}"
    path = folder / "rows.json"
    if not path.exists():
        shutil.rmtree(folder, ignore_errors=True)
        found = list((by_hand if way == "by hand" else by_command)(way, seconds, folder, options))
        write_json(path, found)
    return read_json(path)


def by_command(way: str, seconds: int, folder: Path, options: Options) -> Iterator[dict[str, Any]]:
    """Those of `oncequant train` and `search`."""
    began, clock = cpu_seconds(), time.monotonic()
    method, *more = WAYS[way]
    where = ["--data", options.data, "--run", str(folder), "--seed", str(options.seed)]
    train = ["train", method, *where, "--hours", f"{TRAINED * seconds / 3600:.4f}", *more]
    evaluations = max(40, seconds // 10) if method == "qfa" else max(8, seconds // 60)  # of all bits, of each
    for command in (train, ["search", str(folder), "--evaluations", str(evaluations)]):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "oncequant", *command], check=True, env=environment)
    took = {"cpu_seconds": round(cpu_seconds() - began), "clock_seconds": round(time.monotonic() - clock)}
    cfg, run = open_run(folder)
    judge = Judge(run.data, cfg.calibration(run.data))
    measured = [m for m in read_records(folder / "measurements.jsonl", Measurement) if m.stage != "float"]
    for limit, most in LIMITS.items():
        within = [m for m in measured if m.costs["weight_bytes"] <= most]
        if not within:
            continue
        best = max(within, key=lambda m: m.top1)
        net = load_supernet(folder, best.stage)
        test = judge.test(net, net.space.complete(best.arch)).accuracy.top1
        sizes = {name: best.costs[name] for name in ("weight_bytes", "bitops")}
        yield about(way, seconds, limit, folder) | took | accuracies(best.stage, best.top1, test) | sizes


def by_hand(way: str, seconds: int, folder: Path, options: Options) -> Iterator[dict[str, Any]]:
    """Networks that are each trained alone for the whole time."""
    asked = oq.oqat.Config(seed=options.seed, bit_schedule=(BITS,))
    data = oq.load_data(options.data, size=32, seed=options.seed)
    model = oq.new_run(asked, data, folder / "model", preset="resnet-cifar").model
    there = open_run(folder / "model", data)[0]
    cfg = replace(asked, precision=there.precision)  # the faster, as ours
    judge = Judge(data, cfg.calibration(data))
    for limit, most in LIMITS.items():
        one = widest(model, most)
        place = folder / limit.replace(" ", "-")
        place.mkdir(parents=True)
        began, clock = cpu_seconds(), time.monotonic()
        train_for(cfg, Run(place, one.model, data), seconds)
        took = {"cpu_seconds": round(cpu_seconds() - began), "clock_seconds": round(time.monotonic() - clock)}
        net = load_supernet(place, f"{BITS}bit")
        top1 = [judge.validation(net, one.arch).top1, judge.test(net, one.arch).accuracy.top1]
        sizes = {name: one.cost(COSTS[name]) for name in ("weight_bytes", "bitops")}
        yield about(way, seconds, limit, place) | took | accuracies(f"{BITS}bit", *top1) | sizes


def widest(model: Any, most: float) -> HandMade:
    """The widest network by hand within so many bytes, at most those of the largest subnet."""
    space = space_of(with_bits(replace(PRESETS["resnet-cifar"], edge_bits=8), BITS))
    most = min(most, float(COSTS["weight_bytes"](space.layers(space.largest()))))
    return [one for one in hand_made(model, BITS, COSTS["weight_bytes"]) if one.cost(COSTS["weight_bytes"]) <= most][-1]


def about(way: str, seconds: int, limit: str, folder: Path) -> dict[str, Any]:
    """Which row it is, and of what code and machine."""
    info = read_json(folder / "run.json")
    made = {"seed": info["seed"], "commit": info["commit"], "device": info["device"], "date": date_of(folder)}
    return {"way": way, "seconds": seconds, "limit": limit, **made}


def accuracies(stage: str, validation: float, test: float) -> dict[str, Any]:
    """Of a network of a stage."""
    return {"stage": stage, "top1_validation": round(validation, 4), "top1_test": round(test, 4)}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Test accuracy against CPU seconds, a panel for each limit."""
    figure, panels = plt.subplots(1, len(LIMITS), figsize=(12, 4), sharey=True)
    for panel, limit in zip(panels, LIMITS):
        for way in WAYS:
            own = sorted(
                (r["cpu_seconds"], 100 * r["top1_test"]) for r in rows if (r["way"], r["limit"]) == (way, limit)
            )
            if own:
                panel.plot(*zip(*own), marker="o", label=way)
        panel.set(
            xscale="log", xlabel="CPU seconds", title=f"weights: {limit}" if limit == "any size" else f"within {limit}"
        )
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test top-1 (%)")
    panels[-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(options: Options) -> None:
    """All points that are not there yet, the shortest first; then one table and the picture."""
    torch.set_num_threads(1)
    rows = [row for seconds in sorted(options.seconds) for way in options.ways for row in point(way, seconds, options)]
    publish(rows, options.results)
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
