"""One CSV of the chosen and exported networks of several run folders (seeds), and the best per bit-width.

python recipes/collect_runs.py results/NAME.csv runs/digits-seed0 runs/digits-seed1 [--fronts CSV] [--budgets CSV]
"""

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from oncequant.files import read_json, write_csv
from oncequant.records import Measurement, Member, read_exports, read_records
from oncequant.run_folder import date_of
from oncequant.search.pareto import pareto_front


@dataclass(frozen=True)
class Options:
    """What to collect."""

    out: Annotated[Path, tyro.conf.Positional]
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    fronts: Path | None = None
    """Also write the networks on the fronts of validation accuracy and BitOPs of the first run."""
    budgets: Path | None = None
    """Also write the networks that are not exported, chosen under budgets after the run."""


def main(options: Options) -> None:
    """Write the table and print mean and spread of the networks with the best validation accuracy."""
    rows, others, best = [], [], defaultdict(list)
    for run in options.runs:
        info = read_json(run / "run.json")
        exports = {one.name: one.found for one in read_exports(run)}
        family = read_records(run / "family.json", Member)
        predictor = read_json(run / "predictor.json") if (run / "predictor.json").exists() else {}
        volumes = {f"hypervolume_{name}": round(v, 4) for name, v in predictor.get("hypervolume", {}).items()}
        made = {"commit": info["commit"], "device": info["device"], "date": date_of(run)}
        for member in family:
            about = {
                "seed": info["seed"],
                "network": member.name,
                "bits": member.bits,
                "top1_validation": round(member.top1_validation, 4),
                "top1_test": round(member.top1_test, 4),
            }
            if member.name not in exports and options.budgets:
                others.append(about | member.costs | made)
                continue
            exported = exports[member.name]
            rows.append(
                {
                    **about,
                    "top1_deployed": round(exported["top1_deployed"], 4),
                    **member.costs,
                    **{key: exported[key] for key in ("onnx_bytes", "package_bytes", "ideal_bytes")},
                    **{key: exported[key] for key in ("low_bit_bytes", "low_bit_ideal_bytes", "argmax_differences")},
                    "simulator_bit_equal_images": exported["simulator_bit_equal_images"],
                    "test_images": exported["images"],
                    **volumes,
                    **made,
                }
            )
        family = [member for member in family if member.name in exports]
        labels = {m.name: f"{m.bits} bits" if m.bits else m.name for m in family}
        for label in dict.fromkeys(labels.values()):
            chosen = max((m for m in family if labels[m.name] == label), key=lambda m: m.top1_validation)
            best[f"{label}: test top-1 %"].append(100 * chosen.top1_test)
        for name, value in volumes.items():
            best[name].append(value)
    write_csv(options.out, rows)
    if options.budgets:
        write_csv(options.budgets, others)
    if options.fronts:
        write_csv(options.fronts, on_fronts(options.runs[0]))
    for name, values in best.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{name} {statistics.mean(values):.4g} +- {spread:.2g} ({len(values)} seeds)")


def on_fronts(run: Path) -> list[dict]:
    """A row for each network on the front of its stage."""
    measured, rows = read_records(run / "measurements.jsonl", Measurement), []
    for stage in dict.fromkeys(m.stage for m in measured):
        own = [m for m in measured if m.stage == stage]
        for i in pareto_front(np.array([[m.costs["bitops"], 1 - m.top1] for m in own])):
            about = dict(stage=stage, searcher=own[i].searcher, top1_validation=round(own[i].top1, 4))
            costs = {name: own[i].costs[name] for name in ("bitops", "weight_bytes", "macs", "params")}
            rows.append(about | costs | dict(arch=own[i].arch.to_json()))
    return rows


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
