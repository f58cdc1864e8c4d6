"""Faults, in numbers: kills, full disks, damaged inputs and huge pictures, each with what must come of it.

    OMP_NUM_THREADS=1 python recipes/faults/campaign.py results/faults_cpu_202611.csv --out runs/faults
    python recipes/faults/campaign.py FILE.csv --parts kill --kills 6

The table gets a row for each trial as soon as it ends, and a campaign that was interrupted goes on behind the last one.
Result: results/README.md#faults
"""

import csv
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import bombs
import damage_trials
import full_disk
import kills
import torch
import tyro
from trials import import_all

from oncequant.files import write_csv

GOOD = ("equal", "refused", "noted", "undetectable", "read")


@dataclass(frozen=True)
class Options:
    """How much of it."""

    table: Annotated[Path, tyro.conf.Positional]
    """CSV file."""
    out: Path = Path("runs/faults")
    """Folder for the runs; those without faults stay there."""
    parts: tuple[Literal["damage", "kill", "disk", "memory"], ...] = ("damage", "kill", "disk", "memory")
    kills: int = 50
    disks: int = 20
    damages: int = 300
    bombs: int = 4
    mount: bool = True
    """Full disks are small tmpfs where this user may mount them; else they are simulated."""
    seed: int = 0


def main(options: Options) -> None:
    """Run what is missing, print counts; fail if a trial ended in another way than it must."""
    torch.set_num_threads(1)  # threads do not outlive the forks of the trials
    import_all()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = list(csv.DictReader(options.table.open())) if options.table.exists() else []
    parts = {
        "damage": (damage_trials.trials, options.damages),
        "kill": (kills.trials, options.kills),
        "disk": (partial(full_disk.trials, mount=options.mount), options.disks),
        "memory": (bombs.trials, options.bombs),
    }
    for part in options.parts:
        done = {int(row["trial"]) for row in rows if row["part"] == part}
        trials, count = parts[part]
        for row in trials(out, count, options.seed, done):
            rows.append(row)
            write_csv(options.table, rows)
            print(*row.values(), sep=" | ", flush=True)
    found = Counter((row["part"], row["outcome"].partition(":")[0]) for row in rows)
    for (part, outcome), count in sorted(found.items()):
        print(f"{part}: {outcome} {count}")
    if any(outcome not in GOOD for _, outcome in found):
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
