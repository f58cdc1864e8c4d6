"""Whole jobs end to end, and what a second process brings.

    python benchmarks/jobs.py [--out results/NAME.csv]

`oncequant run` on digits with the default options in one process and in two, on all cores; test top-1 of the network
most accurate on validation at each bit-width.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rows import measured, save

from oncequant.files import read_json


@dataclass(frozen=True)
class Options:
    """What to run."""

    devices: tuple[int, ...] = (1, 2)
    seed: int = 0
    out: Path | None = None


def main(options: Options) -> None:
    """Run and print a table."""
    rows = []
    for devices in options.devices:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = ["run", "--data", "digits", "--run", run, "--devices", devices, "--seed", options.seed]
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "oncequant", *map(str, command)], check=True, capture_output=True)
            seconds = time.perf_counter() - start
            family, best = read_json(run / "family.json"), {}
            for bits in (32, 4, 3, 2):
                chosen = max((e for e in family if e["bits"] == bits), key=lambda entry: entry["top1_validation"])
                best[f"top1_test_{bits}bit"] = round(chosen["top1_test"], 4)
        rows.append(
            measured(
                job="oncequant run --data digits",
                processes=devices,
                seconds=round(seconds, 1),
                **best,
            )
        )
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
