"""The formats of exported files, and tables over all of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from oncequant.export import c, onnx, package, qonnx
from oncequant.export.format import Format, Row, text

FORMATS: dict[str, Format] = {each.name: each for each in (onnx.FORMAT, package.FORMAT, c.FORMAT, qonnx.FORMAT)}
DEFAULT_FORMATS = tuple(name for name, one in FORMATS.items() if one.default)


def needed_packages(names: Iterable[str]) -> list[str]:
    """Python packages that formats need beyond the core, each once."""
    return list(dict.fromkeys(each for name in names for each in FORMATS[name].packages))


def check_tools(names: Iterable[str]) -> None:
    """Raise ValueError if this machine lacks what a format needs, before work is done."""
    for name in names:
        if lacking := FORMATS[name].lacks():
            raise ValueError(f"format {name}: {lacking}")


class ExportsTable(NamedTuple):
    """What tables say of exports."""

    columns: list[str]
    """Titles."""
    texts: list[list[str]]
    """Of each row, a text for each column."""
    notes: str
    """What the columns mean."""


def exports_table(rows: Sequence[Row], brief: bool = False) -> ExportsTable:
    """A table of rows of `exports.json`. The columns of formats that no row has are left out.

    With `brief` only the columns that fit on a terminal.
    """
    used = [each for each in FORMATS.values() if any(key in row for row in rows for key in each.keys.values())]
    columns: dict[str, Callable[[Row], str]] = {
        "Trained top-1": lambda row: text(row.get("top1_plain"), "{:.2%}".format),
        "Ideal kB": lambda row: text(row.get("ideal_bytes"), lambda n: f"{n / 1000:.1f}"),
    }
    for each in used:
        columns |= {title: each.columns[title] for title in (each.brief if brief else each.columns)}
    notes = " ".join(["Ideal: weights at their own bits, nothing else.", *(each.notes for each in used)])
    return ExportsTable(list(columns), [[cell(row) for cell in columns.values()] for row in rows], notes)
