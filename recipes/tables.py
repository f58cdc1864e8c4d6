"""Tables over seeds for the recipes in this folder."""

import json
import statistics
from pathlib import Path

from oncequant.files import write_csv


def over_seeds(top1: dict[int, list[float]]) -> dict[str, float]:
    """Mean over the architectures of each seed, then mean and standard deviation over seeds, in percent."""
    means = [100 * statistics.mean(values) for values in top1.values()]
    return {
        "seeds": len(means),
        "architectures": len(next(iter(top1.values()))),
        "top1_percent": round(statistics.mean(means), 2),
        "std_over_seeds": round(statistics.stdev(means), 2) if len(means) > 1 else None,
    }


def publish(rows: list[dict], path: Path | None) -> None:
    """Print a table, one JSON line a row, and write it as CSV if there is a path."""
    for row in rows:
        print(json.dumps(row))
    if path:
        write_csv(path, rows)
