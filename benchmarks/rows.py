"""Rows of a benchmark's table: printed as they come, with the machine they were measured on; saved as CSV."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from oncequant.files import write_csv
from oncequant.run_folder import device_name


def measured(**values: Any) -> dict[str, Any]:
    """A row of these values and of load, device and version; printed."""
    machine = dict(load1=round(os.getloadavg()[0], 2), device=device_name(torch.device("cpu")), torch=torch.__version__)
    row = values | machine
    print(json.dumps(row), flush=True)
    return row


def save(rows: list[dict[str, Any]], path: Path | None) -> None:
    """Write the rows, if there is a path."""
    if path:
        write_csv(path, rows)
