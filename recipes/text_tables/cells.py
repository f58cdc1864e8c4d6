"""What all tables are made of: rows of CSV files, numbers as text, and the lines of a markdown table."""

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from oncequant.intervals import Interval, means_difference

MARGIN = 0.5  # points that count as equal, where a claim says that something is as good as something else


class TableError(ValueError):
    """A table cannot be made or written; the message names the file."""


@dataclass(frozen=True)
class Row:
    """A line of a CSV file."""

    file: str
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        if column not in self.cells:
            raise TableError(f"results/{self.file} has no column {column!r}; it has {', '.join(self.cells)}")
        return self.cells[column]

    def number(self, column: str) -> float:
        """The cell as a number. Raises TableError if it is none."""
        try:
            return float(self[column])
        except ValueError:
            raise TableError(f"results/{self.file}: {self[column]!r} in column {column!r} is no number") from None


Read = Callable[[str], list[Row]]
"""Gives the rows of a file of results/ by its name without `.csv`."""
Table = Callable[[Read], str]
"""Makes the lines of a markdown table of them."""


def reader(folder: Path) -> Read:
    """Reads the CSV files of a folder, each once. Raises TableError for a file that is not there or has no rows."""
    known: dict[str, list[Row]] = {}

    def read(name: str) -> list[Row]:
        if name not in known:
            try:
                text = (folder / f"{name}.csv").read_text()
            except OSError as error:
                raise TableError(f"cannot read results/{name}.csv: {error.strerror}") from None
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
            if not rows or any(None in row or None in row.values() for row in rows):
                raise TableError(f"results/{name}.csv: no rows, or one that has not a cell for every column")
            known[name] = [Row(f"{name}.csv", cells) for cells in rows]
        return known[name]

    return read


def where(rows: Sequence[Row], **cells: object) -> list[Row]:
    """The rows that have this text in these columns, at least one. Raises TableError if there is none."""
    found = [row for row in rows if all(row[column] == str(value) for column, value in cells.items())]
    if not found:
        raise TableError(f"results/{rows[0].file} has no row with {described(cells)}")
    return found


def one(rows: Sequence[Row], **cells: object) -> Row:
    """The only row that has this text in these columns. Raises TableError if there is none, or if there are several."""
    found = where(rows, **cells)
    if len(found) > 1:
        raise TableError(f"results/{rows[0].file} has {len(found)} rows with {described(cells)}, not one")
    return found[0]


def described(cells: dict[str, object]) -> str:
    """Columns and their text, for messages."""
    return ", ".join(f"{column} = {value}" for column, value in cells.items())


def fixed(value: float, digits: int = 2) -> str:
    """With so many digits behind the point and commas between thousands; a half is rounded up, as people do it."""
    exact = Decimal(repr(round(value, 10)))  # without the noise of binary fractions: 35.849999999999994 is 35.85
    return f"{exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP):,}"


def percent(row: Row, column: str, digits: int = 2) -> str:
    """Of a share of 0 to 1."""
    return fixed(100 * row.number(column), digits)


def part(value: float, digits: int = 3) -> str:
    """Of 1, without the zero before the point: .345."""
    return fixed(value, digits).removeprefix("0")


def kb(row: Row, column: str = "weight_bytes", digits: int = 0) -> str:
    """Bytes as kB."""
    return fixed(row.number(column) / 1000, digits)


def millions(row: Row, column: str = "bitops", digits: int = 1) -> str:
    """In millions, without the unit."""
    return fixed(row.number(column) / 1e6, digits)


def joined(texts: Iterable[str]) -> str:
    """Values of several networks in one cell."""
    return " / ".join(texts)


def mean_and_std(row: Row, mean: str = "top1_percent", std: str = "std_over_seeds") -> str:
    """`mean +- standard deviation` of two columns; the mean alone where one seed was measured."""
    return fixed(row.number(mean)) + (f" +- {fixed(row.number(std))}" if row[std] else "")


def over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """`mean +- standard deviation` of one value a seed."""
    return f"{fixed(statistics.mean(values), digits)} +- {fixed(statistics.stdev(values), digits)}"


def difference(row: Row, other: Row) -> Interval:
    """Of two means over seeds, in percent points. Seeds count as independent: that both ways share a seed's splits is
    not used, since the files have means and standard deviations alone."""

    def known(one: Row) -> tuple[float, float, int]:
        return one.number("top1_percent"), float(one["std_over_seeds"] or "nan"), int(one["seeds"])

    return means_difference(*known(row), *known(other))


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A markdown table. Raises TableError for a line of another length."""
    rows = [list(head), *map(list, lines)]
    if wrong := [row for row in rows if len(row) != len(head)]:
        raise TableError(f"a line of {len(wrong[0])} cells under a head of {len(head)}: {wrong[0]}")
    texts = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows]
    return "\n".join([texts[0], "|" + "---|" * len(head), *texts[1:]])
