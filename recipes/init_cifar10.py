"""What `--init` is worth: a supernet of five classes of CIFAR-10 starts another on 1,000 images of the other five.

Both kinds of start take equal steps. Accuracy is the mean test top-1 of the largest, the smallest and three random
architectures, without retraining, and the largest float network's. With `--muon-lrs` the float stage that starts from
weights is trained at several learning rates, and measured on validation images.

    python recipes/init_cifar10.py path/to/parquet OUT results/cifar10-jpeg75_init_cpu_202611.csv
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tables import over_seeds, publish

from oncequant.arch import Arch
from oncequant.data import Data, calibration_batches, load_data, open_source
from oncequant.files import read_json, write_json
from oncequant.measure import Judge
from oncequant.methods import oqat
from oncequant.run_folder import Run
from oncequant.runs import new_run
from oncequant.supernet_file import load_supernet
from oncequant.train import FINE_TUNED


@dataclass(frozen=True)
class Options:
    """From where and where to."""

    data: Annotated[str, tyro.conf.Positional]
    """Folder of CIFAR-10's parquet files."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder for pictures and runs."""
    results: Annotated[Path, tyro.conf.Positional]
    """Table to write."""
    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 1000
    """Training images of the second half; its validation split has 3,750 others."""
    before: float = 0.2
    """`duration` of the first half's float stage."""
    duration: float = 0.5
    """`duration` of the second half's stages."""
    muon_lrs: tuple[float, ...] = ()
    """Compare learning rates of the float stage, with the first seed, and write no table."""


def write_halves(source: str, out: Path) -> None:
    """Class folders first/train/..., second/train/... and second/test/..."""
    for split, records in open_source(source).splits.items():
        for row, label in enumerate(records.labels()):
            half = "first" if int(label) < 5 else "second"
            path = out / half / split / records.names[int(label)] / f"{row:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(records.rows[row]["img"]["bytes"])


def trained(cfg: oqat.Config, data: Data, folder: Path) -> Run:
    """The folder of a run, trained; CPU seconds go into a file."""
    run = new_run(cfg, data, folder, preset="resnet-cifar")
    if not (folder / "cpu_seconds.json").exists():
        began = time.process_time()
        oqat.train(cfg, run)
        write_json(folder / "cpu_seconds.json", time.process_time() - began)
    return run


def accuracies(cfg: oqat.Config, run: Run, data: Data) -> Iterator[tuple[str, list[float]]]:
    """Stage, and test top-1 of its architectures."""
    judge = Judge(data, calibration_batches(data, cfg.calibration_images, 250, cfg.seed))
    for stage in oqat.stages(cfg):
        net = load_supernet(run.folder, stage)
        rng = np.random.default_rng(0)
        archs: list[Arch] = [net.space.largest()]
        if stage != "float":
            archs += [net.space.smallest(), *(net.space.sample(rng) for _ in range(3))]
        yield stage, [judge.on(net, arch, data.test).accuracy.top1 for arch in archs]


def main(options: Options) -> None:
    """Run everything that is not there yet."""
    if not (options.out / "second").exists():
        write_halves(options.data, options.out)
    first = load_data(str(options.out / "first"), size=32)
    before = trained(oqat.Config(bit_schedule=(), duration=options.before), first, options.out / "before")
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in options.seeds[:1] if options.muon_lrs else options.seeds:
        second = load_data(str(options.out / "second"), size=32, max_train=options.images, seed=seed)
        for start in ("weights", "nothing"):
            cfg = oqat.Config(bit_schedule=(4, 2), duration=options.duration, seed=seed)
            if start == "weights":
                cfg = replace(cfg, init=str(before.folder))
            if options.muon_lrs:
                for rate in options.muon_lrs if start == "weights" else (cfg.muon_lr,):
                    scale = rate / cfg.muon_lr / (FINE_TUNED if start == "weights" else 1)
                    tried = replace(cfg, bit_schedule=(), muon_lr=scale * cfg.muon_lr, lr=scale * cfg.lr)
                    run = trained(tried, second, options.out / f"{start}-{rate:g}")
                    net, judge = load_supernet(run.folder, "float"), Judge(second, cfg.calibration(second))
                    print(start, rate, judge.validation(net, net.space.largest()).top1, flush=True)
                continue
            run = trained(cfg, second, options.out / f"{start}-{seed}")
            seconds.setdefault(start, []).append(read_json(run.folder / "cpu_seconds.json"))
            for stage, top1 in accuracies(cfg, run, second):
                found.setdefault((stage, start), {})[seed] = top1
    if not options.muon_lrs:
        rows = [
            {"stage": stage, "start": start, **over_seeds(top1), "training_cpu_seconds": round(np.mean(seconds[start]))}
            for (stage, start), top1 in found.items()
        ]
        publish(rows, options.results)


if __name__ == "__main__":
    main(tyro.cli(Options))
