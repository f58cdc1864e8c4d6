"""The formats of exported files, and tables over all of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from oncequant.export import c, onnx, package, qonnx
from oncequant.export.format import Format, Row, text

FORMATS: dict[str, Format] = {each.name: each for each in (onnx.FORMAT, package.FORMAT, c.FORMAT, qonnx.FORMAT)}
DEFAULT_FORMATS = tuple(name for name, one in FORMATS.items() if one.default)


def time_keys() -> frozenset[str]:
    """The keys of times of all formats."""
    return frozenset(key for each in FORMATS.values() for key in each.times)


def needed_packages(names: Iterable[str]) -> list[str]:
    """Python packages that formats need beyond the core, each once."""
    return list(dict.fromkeys(each for name in names for each in FORMATS[name].packages))


def check_tools(names: Iterable[str]) -> None:
    """Raise ValueError if there is no such format, or if this machine lacks what it needs, before work is done."""
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"format {name!r}: use {', '.join(FORMATS)}")
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


def exports_table(
    rows: Sequence[Row], brief: bool = False, part: Literal["all", "times", "rest"] = "all"
) -> ExportsTable:
    """A table of rows of `exports.json`. The columns of formats that no row has are left out.

    With `brief` only the columns that fit on a terminal; `part` leaves out those of times, or all others.
    """
    used = [each for each in FORMATS.values() if any(key in row for row in rows for key in each.keys.values())]
    columns: dict[str, Callable[[Row], str]] = {}
    if part != "times":
        columns |= {
            "Trained top-1": lambda row: text(row.get("top1_plain"), "{:.2%}".format),
            "Ideal kB": lambda row: text(row.get("ideal_bytes"), lambda n: f"{n / 1000:.1f}"),
        }
    for each in used:
        own = {**(each.columns if part != "times" else {}), **(each.time_columns if part != "rest" else {})}
        columns |= {title: make for title, make in own.items() if not brief or title in each.brief}
    notes = " ".join(["Ideal: weights at their own bits, nothing else.", *(each.notes for each in used)])
    return ExportsTable(list(columns), [[cell(row) for cell in columns.values()] for row in rows], notes)
