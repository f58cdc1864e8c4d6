"""Whole jobs end to end, and what a second process brings.

    python benchmarks/jobs.py [--out results/NAME.csv]
    python benchmarks/jobs.py --data path/to/images --options "--preset cifar --width 0.5 --epochs 2 --float-epochs 4"

`oncequant run` in one process and in two, with so many threads each; seconds of the whole and of its training, and test
top-1 of the network most accurate on validation at each bit-width.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import tyro
from rows import measured, save

from oncequant.records import Member, read_metrics, read_records


@dataclass(frozen=True)
class Options:
    """What to run."""

    data: str = "digits"
    options: str = ""
    """More options of `oncequant run`."""
    settings: tuple[str, ...] = ("1x1", "1x2", "2x1")
    """Processes x threads of each."""
    seeds: tuple[int, ...] = (0,)
    out: Path | None = None


def main(options: Options) -> None:
    """Run and print a table."""
    rows = []
    for seed, setting in product(options.seeds, options.settings):
        processes, threads = map(int, setting.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = ["run", "--data", options.data, "--run", run, "--devices", processes, "--seed", seed]
            command += shlex.split(options.options)
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "oncequant", *map(str, command)],
                check=True,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
            seconds = time.perf_counter() - start
            lines = read_metrics(run)
            stages = {line.stage: line.time_s for line in lines}  # the last line of each
            family, best = read_records(run / "family.json", Member), {}
            for bits in sorted({member.bits for member in family}, reverse=True):
                chosen = max((m for m in family if m.bits == bits), key=lambda member: member.top1_validation)
                best[f"top1_test_{bits}bit"] = round(chosen.top1_test, 4)
        rows.append(
            measured(
                data=Path(options.data).name,
                options=options.options,
                seed=seed,
                processes=processes,
                threads=threads,
                seconds=round(seconds, 1),
                training_seconds=round(sum(stages.values()), 1),
                **best,
            )
        )
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
