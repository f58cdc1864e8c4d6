"""One CSV of the chosen and exported networks of several run folders (seeds), and the best per bit-width.

python recipes/collect_runs.py results/NAME.csv runs/digits-seed0 runs/digits-seed1 runs/digits-seed2
"""

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from oncequant.files import read_json, write_csv


def main(out: Path, runs: list[Path]) -> None:
    """Write the table and print mean and spread of the networks with the best validation accuracy."""
    rows, best = [], defaultdict(list)
    for run in runs:
        info = read_json(run / "run.json")
        exports = {row["name"]: row for row in read_json(run / "exports.json")}
        family = read_json(run / "family.json")
        for entry in family:
            exported = exports[entry["name"]]
            rows.append(
                {
                    "seed": info["seed"],
                    "network": entry["name"],
                    "bits": entry["bits"],
                    **{key: round(entry[key], 4) for key in ("top1_validation", "top1_test")},
                    "top1_deployed": round(exported["top1_deployed"], 4),
                    **entry["costs"],
                    **{key: exported[key] for key in ("onnx_bytes", "package_bytes", "ideal_bytes")},
                    **{key: exported[key] for key in ("low_bit_bytes", "low_bit_ideal_bytes", "argmax_differences")},
                    "simulator_bit_equal_images": exported["simulator_bit_equal_images"],
                    "test_images": exported["images"],
                    "commit": info["commit"],
                    "device": info["device"],
                    "date": info["date"],
                }
            )
        for bits in {entry["bits"] for entry in family}:
            chosen = max((e for e in family if e["bits"] == bits), key=lambda e: e["top1_validation"])
            best[bits].append(chosen["top1_test"])
    write_csv(out, rows)
    for bits, values in sorted(best.items(), reverse=True):
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(
            f"{bits} bits: test top-1 {100 * statistics.mean(values):.2f} +- {100 * spread:.2f} % ({len(values)} seeds)"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
