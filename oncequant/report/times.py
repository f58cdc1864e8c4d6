"""What no two runs have alike, on a page of its own: dates, the time of training, the latency of exported files."""

import html
from collections.abc import Sequence
from pathlib import Path

from oncequant.export.formats import exports_table, time_keys
from oncequant.files import write_atomically, write_csv
from oncequant.records import Time, read_records
from oncequant.report.contents import Contents

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>oncequant report: times</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }}
td, th {{ padding: .2em 1em .2em 0; text-align: left; vertical-align: top }}</style></head>
<body><h1>Dates and times</h1><p>Measured on {device}. All else is in index.html beside this page.</p>
{tables}
</body></html>
"""


def write_times(run: Contents, folder: Path) -> None:
    """Write times.html, and times.csv with the times of exported files if there are any. Raises FileError."""
    found, keys = [one.found for one in run.exports], time_keys()
    latencies = exports_table(found, part="times")
    seconds = {row.stage: row.time_s for row in run.metrics if row.time_s is not None}
    dates = {time.command: time.date for time in read_records(run.folder / "times.jsonl", Time)}
    commands = [[dates.get(i) or (run.date if i == 1 else ""), text] for i, text in enumerate(run.info["commands"], 1)]
    tables = [
        _table("Commands", ["Date", "Command"], commands),
        _table("Training", ["Stage", "Seconds"], [[stage, f"{value:.1f}"] for stage, value in seconds.items()]),
        _table(
            "Exported files",
            ["Network", *latencies.columns],
            [[one.name, *texts] for one, texts in zip(run.exports, latencies.texts)],
        ),
    ]
    text = PAGE.format(device=html.escape(str(run.info.get("device", "an unknown machine"))), tables="\n".join(tables))
    write_atomically(folder / "times.html", text.encode())
    if run.exports:
        rows = [{key: value for key, value in row.items() if key in keys} for row in found]
        write_csv(folder / "times.csv", [{"name": one.name, **row} for one, row in zip(run.exports, rows)])


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cell: str, texts: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{cell}>{html.escape(text)}</{cell}>' for text in texts)}</tr>"

    body = "\n".join([line("th", columns), *(line("td", row) for row in rows)])
    return f"<h2>{title}</h2>\n<table>\n{body}\n</table>" if rows else ""
