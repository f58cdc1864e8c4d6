"""The tables of several analyses as one CSV each, results/NAME_effects_DATE.csv and so on.

    python recipes/collect_analysis.py results/NAME RUN [RUN ...]

RUNs have been analysed, each by a command of its own (`oncequant analyse RUN`). Tables are named with `_cpu_202611`.
"""

import csv
import sys
from pathlib import Path

from oncequant.files import write_csv

TABLES = ("accuracy", "effects", "correlations", "bits", "budgets")


def main(name: str, *runs: str) -> None:
    """Write the tables that there are."""
    for table in TABLES:
        rows: list[dict[str, str]] = []
        for run in runs:
            if (path := Path(run) / "analysis" / f"{table}.csv").exists():
                rows += csv.DictReader(path.read_text().splitlines())
        columns = list(dict.fromkeys(column for row in rows for column in row))
        write_csv(Path(f"{name}_{table}_cpu_202611.csv"), [{c: row.get(c, "") for c in columns} for row in rows])


if __name__ == "__main__":
    main(*sys.argv[1:])
