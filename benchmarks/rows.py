"""Rows of a benchmark: printed as they come, with the machine they were measured on, then as a table; saved as CSV."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from oncequant.files import write_csv
from oncequant.run_folder import device_name


def measured(**values: Any) -> dict[str, Any]:
    """A row of these values and of load, device and version; printed."""
    machine = dict(load1=round(os.getloadavg()[0], 2), device=device_name(torch.device("cpu")), torch=torch.__version__)
    row = values | machine
    print(json.dumps(row), flush=True)
    return row


def save(rows: list[dict[str, Any]], path: Path | None) -> None:
    """Write the rows, if there is a path, and print them as a table without what all have in common."""
    if path:
        write_csv(path, rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    differing = [name for name in names if len({str(row.get(name, "")) for row in rows}) > 1]
    table = Table(*differing)
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in differing))
    Console().print(table)
