"""A run folder as pictures, CSV files and one page that needs neither network nor library.

Everything is made from the files of the run, so the report of a half-finished run shows what there is. Files hold
fractions, people read percent. Equal runs have equal reports: dates and times are in files of their own, times.html and
times.csv.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oncequant.data import Data
from oncequant.export.formats import time_keys
from oncequant.files import remove_halves, write_csv
from oncequant.records import to_json
from oncequant.report.contents import ReportError, read_contents
from oncequant.report.mistakes import class_rows, confusion_rows, with_pictures
from oncequant.report.page import write_page
from oncequant.report.pictures import draw_pictures
from oncequant.report.sections import page_data
from oncequant.report.several import combined_data, run_names
from oncequant.report.times import write_times

__all__ = ["ReportError", "write_comparison", "write_report"]


def write_report(run_dir: Path, pictures: bool = True, images: Data | None = None, moved: str | None = None) -> Path:
    """Write two pages, pictures and CSV files to `run_dir/report`; returns index.html.

    With `pictures` the page has small ones of the surest mistakes. They are of `images`, or else the images of the run
    are read again, from where they have `moved` to if that is given; if they cannot be, the page says why. Raises
    ReportError; DataError or FileError if they are not where they have moved to.
    """
    contents = read_contents(Path(run_dir))
    data = page_data(contents)
    if pictures and data["answers"]:
        data["answers"] = with_pictures(data["answers"], contents, images, moved)
    folder = contents.folder / "report"
    folder.mkdir(exist_ok=True)
    remove_halves(folder)
    for name in ("metrics", "measurements", "family", "exports"):
        if records := getattr(contents, name):
            write_csv(folder / f"{name}.csv", [_flat(to_json(one)) for one in records])
    for name, rows in (("classes", class_rows(contents)), ("confusion", confusion_rows(contents))):
        if contents.answers:
            write_csv(folder / f"{name}.csv", list(rows))
    write_times(contents, folder)
    drawn = draw_pictures(data, contents.layer_names, folder)
    return write_page(data, drawn, folder / "index.html")


def write_comparison(run_dirs: Sequence[Path], folder: Path) -> Path:
    """Write one page about several runs, a picture of their fronts, and CSV files; returns index.html. Raises
    ReportError."""
    runs = [read_contents(Path(run_dir)) for run_dir in run_dirs]
    if taken := next((run.folder for run in runs if folder.resolve() == run.folder.resolve()), None):
        raise ReportError(f"{folder}: the page about several runs needs a folder of its own, not that of {taken}")
    data = combined_data(runs)
    remove_halves(folder)
    for name, table in zip(("runs", "volumes"), data["runs"]["tables"]):
        write_csv(folder / f"{name}.csv", [dict(zip(table["columns"], row)) for row in table["rows"]])
    chosen = [(name, member) for name, run in zip(run_names(runs), runs) for member in run.family]
    write_csv(folder / "family.csv", [{"run": name} | _flat(to_json(member)) for name, member in chosen])
    names = list(dict.fromkeys(name for run in runs for name in run.layer_names))
    return write_page(data, draw_pictures(data, names, folder), folder / "index.html")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A record in which each cost has a name of its own, so that it gets a column; without times."""
    hidden = {"costs", "time_s", *time_keys()}
    return {key: value for key, value in (row | row.get("costs", {})).items() if key not in hidden}
