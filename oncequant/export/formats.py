"""The formats of exported files, and tables over all of them."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from oncequant.export import c, onnx, package, qonnx
from oncequant.export.format import Format, Row, text

FORMATS: dict[str, Format] = {each.name: each for each in (onnx.FORMAT, package.FORMAT, c.FORMAT, qonnx.FORMAT)}
DEFAULT_FORMATS = tuple(name for name, one in FORMATS.items() if one.default)


def time_keys() -> frozenset[str]:
    """The keys of times of all formats."""
    return frozenset(key for each in FORMATS.values() for key in each.times)


def latency_keys() -> dict[str, str]:
    """The keys of milliseconds of one image, with titles for axes, of the formats that are timed."""
    timed = {each.keys["latency_ms"]: each.name for each in FORMATS.values() if "latency_ms" in each.keys}
    return {key: f"Latency, {name} (ms)" for key, name in timed.items()}


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
    rows: Sequence[Row],
    brief: bool = False,
    part: Literal["all", "times", "rest"] = "all",
    formats: Collection[str] | None = None,
) -> ExportsTable:
    """A table of rows of `exports.json`. The columns of formats that no row has are left out.

    With `brief` only the columns that fit on a terminal; `part` leaves out those of times, or all others. Of the names
    in `formats`, default all; columns that all formats share come with the default ones.
    """
    asked = [each for name, each in FORMATS.items() if formats is None or name in formats]
    used = [each for each in asked if any(key in row for row in rows for key in each.keys.values())]
    shared = part != "times" and any(each.default for each in asked)
    columns: dict[str, Callable[[Row], str]] = {}
    if shared:
        columns |= {
            "Trained top-1": lambda row: text(row.get("top1_plain"), "{:.2%}".format),
            "Ideal kB": lambda row: text(row.get("ideal_bytes"), lambda n: f"{n / 1000:.1f}"),
        }
    for each in used:
        own = {**(each.columns if part != "times" else {}), **(each.time_columns if part != "rest" else {})}
        columns |= {title: make for title, make in own.items() if not brief or title in each.brief}
    notes = ["Ideal: weights at their own bits, nothing else."] if shared or part == "times" else []
    notes += [each.notes for each in used if each.notes]
    return ExportsTable(list(columns), [[cell(row) for cell in columns.values()] for row in rows], " ".join(notes))


def tables_by_format(rows: Sequence[Row]) -> dict[str, ExportsTable]:
    """The columns of `exports_table` but for times, in tables that are narrow enough for a page: one of the default
    formats, called "", and one of each other format that a row has."""
    groups = {"": [name for name, each in FORMATS.items() if each.default]}
    groups |= {name: [name] for name, each in FORMATS.items() if not each.default}
    tables = {title: exports_table(rows, part="rest", formats=names) for title, names in groups.items()}
    return {title: table for title, table in tables.items() if table.columns}
