"""Two processes that draw the same random architectures of a step, or each its own (`--independent-archs`).

    python recipes/oqat_processes.py --out runs/processes --seed 0 [--steps 300]
    python recipes/oqat_processes.py --out runs/processes --summarise results/NAME.csv

OQAT on the digits by `oncequant train --devices 2`, all else equal. Test top-1 of the largest, the smallest and random
architectures, the same for both, at every stage; nothing is chosen by it.
"""

import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tables import over_seeds, publish

from oncequant.data import eval_batches
from oncequant.files import read_json, write_json
from oncequant.measure import measure
from oncequant.methods import oqat
from oncequant.runs import open_run
from oncequant.supernet_file import load_supernet

WAYS = {"shared": [], "independent": ["--independent-archs"]}
THEN = ["--preset", "nano", "--optimizer", "adamw", "--float-sandwich"]  # defaults when this was published


@dataclass(frozen=True)
class Options:
    """One seed of the experiment."""

    out: Path
    seed: int = 0
    steps: int = 300
    """Of every stage."""
    random_archs: int = 10
    summarise: Path | None = None
    """Only write this CSV from the seeds found in `out`."""


def main(options: Options) -> None:
    """Run one seed, or summarise."""
    if options.summarise:
        return summarise(options.out, options.summarise)
    rows = []
    for way, flags in WAYS.items():
        run = options.out / f"seed{options.seed}-{way}"
        sizes = ["--min-steps", str(options.steps), "--epochs", "1", "--float-epochs", "1"]
        command = ["train", "--run", str(run), "--seed", str(options.seed), "--devices", "2", *THEN, *sizes, *flags]
        subprocess.run([sys.executable, "-m", "oncequant", *command], check=True)
        cfg, found = open_run(run, device="cpu")
        data = found.data
        test, calibration = list(eval_batches(data, data.test)), cfg.calibration(data)
        for stage in oqat.stages(cfg):
            supernet, rng = load_supernet(run, stage), np.random.default_rng(options.seed)
            space = supernet.space
            archs = [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(options.random_archs))]
            top1 = [measure(supernet, arch, calibration, test).accuracy.top1 for arch in archs]
            rows.append(dict(way=way, stage=stage, seed=options.seed, top1=top1))
    write_json(options.out / f"seed{options.seed}.json", rows)
    summarise(options.out, None)


def summarise(out: Path, csv_path: Path | None) -> None:
    """Mean over architectures for each seed, then mean and standard deviation over seeds."""
    groups: dict[tuple, dict[int, list[float]]] = defaultdict(dict)
    for path in sorted(out.glob("seed*.json")):
        for row in read_json(path):
            groups[row["stage"], row["way"]][row["seed"]] = row["top1"]
    publish([dict(stage=stage, way=way) | over_seeds(seeds) for (stage, way), seeds in groups.items()], csv_path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
