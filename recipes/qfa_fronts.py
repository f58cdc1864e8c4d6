"""The fronts of a QFA run on the test images: of everything, of mixed precision alone, of every uniform bit-width.

    python recipes/qfa_fronts.py RUN [--out results/NAME.csv] [--picture docs/NAME.png]

RUN is a folder of `oncequant run qfa`. Fronts are those of validation accuracy and BitOPs among all that the
run has measured; test accuracy is measured once for each member and chooses nothing. Hypervolumes are over log BitOPs
and test error, up to the dearest and the least accurate network of all fronts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tables import publish

from oncequant.arch import Arch
from oncequant.data import eval_batches
from oncequant.measure import measure
from oncequant.progress import track
from oncequant.records import Measurement, read_records
from oncequant.runs import open_run
from oncequant.search.pareto import hypervolume, pareto_front
from oncequant.supernet_file import load_supernet


@dataclass(frozen=True)
class Options:
    """What to measure."""

    run: Annotated[Path, tyro.conf.Positional]
    data: str | None = None
    """Where the run's images are now, if they have moved."""
    out: Path | None = None
    picture: Path | None = None


def main(options: Options) -> None:
    """Measure, print, write and draw."""
    cfg, found = open_run(options.run, device="cpu")
    data, supernet = found.data, load_supernet(options.run, "mixed")
    measured = [m for m in read_records(options.run / "measurements.jsonl", Measurement) if m.stage == "mixed"]
    groups = {"all": measured, "mixed": [m for m in measured if len(widths(m.arch)) > 1]}
    groups |= {f"{b} bits": [m for m in measured if m.searcher == f"uniform {b} bits"] for b in sorted(cfg.bits)}
    chosen = []
    for kind, own in groups.items():
        points = np.array([[m.costs["bitops"], 1 - m.top1] for m in own]).reshape(-1, 2)
        chosen += [(kind, own[i]) for i in pareto_front(points)]
    calibration, test, rows = cfg.calibration(data), {}, []
    with track("test", len(chosen)) as bar:
        for kind, m in chosen:
            if m.arch not in test:
                arch = supernet.space.complete(m.arch)
                test[m.arch] = measure(supernet, arch, calibration, eval_batches(data, data.test)).accuracy.top1
            costs = {name: m.costs[name] for name in ("bitops", "weight_bytes", "macs")}
            row = dict(front=kind, top1_test=round(test[m.arch], 4), top1_validation=round(m.top1, 4))
            rows.append(row | costs | dict(arch=m.arch.to_json()))
            bar(len(rows), {"top1": test[m.arch]})
    publish(rows, options.out)
    values = np.array([[np.log(row["bitops"]), 1 - row["top1_test"]] for row in rows])
    for name, kinds in (
        ("everything", {"all"}),
        ("mixed precision", {"mixed"}),
        ("uniform", groups.keys() - {"all", "mixed"}),
    ):
        own = values[[row["front"] in kinds for row in rows]]
        share = hypervolume(own, values.max(0)) / np.prod(np.ptp(values, axis=0))
        print(f"hypervolume of {name}: {share:.4f}")
    if options.picture:
        draw(rows, options.picture)


def widths(arch: Arch) -> set[int]:
    """The bit-widths in a network."""
    return {value for name, value in arch.items() if name.endswith("_bits")}


def draw(rows: list[dict], path: Path) -> None:
    """Test top-1 against BitOPs."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    styles = {"mixed": ("#663399", "v", 2.0), "2 bits": ("#bb5566", "^", 1.0), "3 bits": ("#c08400", "s", 1.0)}
    for kind in dict.fromkeys(row["front"] for row in rows if row["front"] != "all"):
        own = sorted((row["bitops"], 100 * row["top1_test"]) for row in rows if row["front"] == kind)
        colour, marker, width = styles.get(kind, ("#004488", "o", 1.0))
        axes.plot(*zip(*own), color=colour, marker=marker, markersize=4, linewidth=width, label=kind)
    axes.set(xscale="log", xlabel="BitOPs", ylabel="test top-1 (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
