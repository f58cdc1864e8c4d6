"""One CSV of the networks that were chosen for a board and exported in C: accuracy, costs, and what they really take.

python recipes/collect_board.py results/NAME.csv runs/NAME --target cortex-m4
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from oncequant.files import read_json, write_csv
from oncequant.records import Member, read_exports, read_records
from oncequant.run_folder import date_of

FOUND = ("top1_c", "c_different_images", "images", "c_constant_bytes", "c_arena_bytes", "c_latency_ms")
FOUND += ("cortex_m4_flash_bytes", "cortex_m4_stack_bytes", "cortex_m4_instructions")


@dataclass(frozen=True)
class Options:
    """What to collect."""

    out: Annotated[Path, tyro.conf.Positional]
    run: Annotated[Path, tyro.conf.Positional]
    target: str = "cortex-m4"


def main(options: Options) -> None:
    """Write the table."""
    info = read_json(options.run / "run.json")
    exports = {one.name: one.found for one in read_exports(options.run)}
    rows = []
    for member in read_records(options.run / "family.json", Member):
        if member.name.endswith(f"-{options.target}"):
            row = {"network": member.name, "bits": member.bits, "seed": info["seed"]}
            row |= {"top1_validation": member.top1_validation, "top1_test": member.top1_test, **member.costs}
            row |= {key: exports[member.name][key] for key in FOUND}
            rows.append(row | {key: info[key] for key in ("commit", "device")} | {"date": date_of(options.run)})
    write_csv(options.out, rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
