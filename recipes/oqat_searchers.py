"""What each searcher found on measured accuracies, over runs of several seeds.

    python recipes/oqat_searchers.py RUN [RUN ...] [--out results/NAME.csv]

RUNs are folders of `oncequant train` in which `oncequant search` was run with every searcher, each for as many subnets.
A searcher's front is that of validation accuracy and BitOPs among the subnets that it measured; its members are then
measured on the test images, which choose nothing. Hypervolumes are over log BitOPs and error, as a share of the box
around all that was measured of the bit-width.
"""

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tables import publish

from oncequant.answers import Accuracy
from oncequant.arch import Arch
from oncequant.data import eval_batches
from oncequant.measure import measure
from oncequant.methods import oqat
from oncequant.records import Measurement, read_records
from oncequant.runs import open_run
from oncequant.search import SEARCHERS
from oncequant.search.measurements import MeasurementFile
from oncequant.search.pareto import hypervolume, pareto_front
from oncequant.supernet_file import load_supernet


@dataclass(frozen=True)
class Options:
    """What to compare."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path | None = None


def main(options: Options) -> None:
    """One row for each bit-width and searcher."""
    shares = defaultdict(list)
    for run in options.runs:
        for stage, found in hypervolumes(run).items():
            for key, value in found.items():
                shares[stage, *key].append(value)
    rows = []
    for stage in dict.fromkeys(key[0] for key in shares):
        for searcher in SEARCHERS:
            row = dict(stage=stage, searcher=searcher, seeds=len(options.runs))
            for split in ("validation", "test"):
                values = shares[stage, searcher, split]
                row[f"hypervolume_{split}"] = round(statistics.mean(values), 3)
                row[f"std_{split}"] = round(statistics.stdev(values), 3) if len(values) > 1 else None
                better = [a > b for a, b in zip(values, shares[stage, "random", split], strict=True)]
                row[f"better_than_random_{split}"] = int(sum(better))
            rows.append(row)
    publish(rows, options.out)


def hypervolumes(run: Path) -> dict[str, dict[tuple[str, str], float]]:
    """By stage, then by (searcher, split)."""
    cfg, found = open_run(run, device="cpu")
    data = found.data
    calibration, measured = cfg.calibration(data), read_records(run / "measurements.jsonl", Measurement)
    supernets = {stage: load_supernet(run, stage) for stage in oqat.stages(cfg)[1:]}

    def top1_test(stage: str, archs: list[Arch], searcher: str) -> list[float]:
        memory = MeasurementFile(run / "measurements-test.jsonl", stage)  # so that a kill loses one measurement
        supernet = supernets[stage]

        def on_test(arch: Arch) -> Accuracy:
            return measure(supernet, arch, calibration, eval_batches(data, data.test)).accuracy

        return list(
            memory.measured(supernet.space, on_test, searcher)([supernet.space.complete(arch) for arch in archs])
        )

    found = {}
    for stage in supernets:
        fronts = {}
        for searcher in SEARCHERS:
            own = [m for m in measured if (m.stage, m.searcher) == (stage, searcher)]
            points = np.array([[np.log(m.costs["bitops"]), 1 - m.top1] for m in own])
            chosen = pareto_front(points)
            fronts[searcher, "validation"] = points[chosen]
            top1 = top1_test(stage, [own[i].arch for i in chosen], searcher)
            fronts[searcher, "test"] = np.stack([points[chosen, 0], 1 - np.array(top1)], axis=1)
        every = np.array([[np.log(m.costs["bitops"]), 1 - m.top1] for m in measured if m.stage == stage])
        size = np.prod(np.ptp(every, axis=0))
        found[stage] = {key: hypervolume(front, every.max(0)) / size for key, front in fronts.items()}
    return found


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
