"""One CSV of several comparisons, and for people what `hypervolumes` and `differences` found.

python recipes/collect_compare.py results/NAME.csv RUN/compare-4.json ...
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from oncequant.files import read_json, write_csv
from oncequant.run_folder import date_of


@dataclass(frozen=True)
class Options:
    """What to collect."""

    out: Annotated[Path, tyro.conf.Positional]
    found: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files that `oncequant compare` wrote, each beside the run.json of its run."""


def main(options: Options) -> None:
    """Write the table and print a line for each file and way."""
    rows = []
    for path in options.found:
        found, info = read_json(path), read_json(path.parent / "run.json")
        about = {"data": info["data"]["name"], "seed": info["seed"], "bits": found["bits"]}
        origin = {key: info[key] for key in ("commit", "device")} | {"date": date_of(path.parent)}
        about["front"] = found["front"]
        for row in found["deployments"]:
            arch = " ".join(f"{name}={value}" for name, value in row.pop("arch").items())
            rows.append(about | row | {"arch": arch} | origin)
        for total in found["totals"]:
            way = total["way"]
            if total["deployments"] < sum(row["way"] == way for row in found["deployments"]):
                continue
            volumes, against = found["hypervolumes"].get(way, {}), found["against_supernet"].get(way, {})
            shown = [
                f"{100 * total['top1_test']:.2f} %",
                f"{total['seconds']:.0f} s",
                *(f"{v:.3f}" for v in volumes.values()),
            ]
            print(*about.values(), way, *shown, *(f"{key} {value:.4g}" for key, value in against.items()))
    write_csv(options.out, rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
