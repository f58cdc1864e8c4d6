"""Every network in C of some run folders, by every backend that this machine can run, on every test picture.

python recipes/c_backends.py results/NAME.csv runs/A runs/B ...

Export them first (`oncequant export RUN --formats onnx package c`): that compares the default backend with the integer
simulator. Here the others must give its logits to the last bit, and the self-test must hold on emulated cores.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import tyro

from oncequant.data import Data, eval_batches
from oncequant.data.images import resize
from oncequant.export import compiled
from oncequant.export.c import FILES
from oncequant.export.cortex_m import CORES, emulate, missing_tools
from oncequant.files import read_json, write_csv
from oncequant.records import Export, Member, read_records
from oncequant.run_folder import date_of
from oncequant.runs import open_run

BACKENDS = {
    "without_amx": ("-DNETWORK_NO_AMX",),
    "avx2": ("-DNETWORK_NO_VNNI",),
    "portable": ("-DNETWORK_PORTABLE",),
    "whole_numbers": ("-DNETWORK_PORTABLE", "-DNETWORK_INTEGER"),
}


@dataclass(frozen=True)
class Options:
    """What to run."""

    out: Annotated[Path, tyro.conf.Positional]
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]


def logits_of(folder: Path, data: Data, flags: tuple[str, ...] = ()) -> torch.Tensor:
    """Of all test pictures."""
    with patch.object(compiled, "FLAGS", (*compiled.FLAGS, *flags)):
        network = compiled.load_compiled(folder)
    found = []
    for images, _ in eval_batches(data, data.test):
        pixels = data.raw(resize(images, network.resolution)).round().clamp(0, 255)
        found.append(network(pixels.to(torch.uint8)))
    return torch.cat(found)


def rows_of(run: Path) -> Iterator[dict[str, Any]]:
    """A row for each network in C."""
    data = open_run(run)[1].data
    info = read_json(run / "run.json")
    bits = {member.name: member.bits for member in read_records(run / "family.json", Member)}
    for export in read_records(run / "exports.json", Export):
        folder = run / export.folder
        if not (folder / FILES[0]).exists():
            continue
        expected = logits_of(folder, data)
        row = {"method": info["method"], "family": info["model"]["name"], "network": export.name}
        row |= {"bits": bits.get(export.name) or "mixed", "images": len(expected)}
        row["default_equal"] = row["images"] - export.found["c_different_images"]
        for backend, flags in BACKENDS.items():
            row[f"{backend}_equal"] = int((logits_of(folder, data, flags) == expected).all(1).sum())
        for core in CORES if not missing_tools() else ():
            on_core = emulate(folder, core)
            row |= {f"{core}_equal": on_core.equal, f"{core}_instructions": on_core.instructions}
        row |= {key: export.found[key] for key in ("top1_c", "c_arena_bytes", "cortex_m4_flash_bytes")}
        print(row, flush=True)
        yield row | {key: info[key] for key in ("commit", "device")} | {"date": date_of(run)}


def main(options: Options) -> None:
    """Write the table; fail if a logit differs."""
    rows = [row for run in options.runs for row in rows_of(run)]
    write_csv(options.out, rows)
    wrong = [row["network"] for row in rows if any(value is False for value in row.values())]
    wrong += [r["network"] for r in rows for k, v in r.items() if k.endswith("_equal") and v not in (True, r["images"])]
    if wrong:
        raise SystemExit(f"logits differ: {', '.join(wrong)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
