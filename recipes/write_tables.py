"""Write the tables of measurements in README.md, docs/ and results/README.md from the CSV files in results/.

    python recipes/write_tables.py            # write what differs
    python recipes/write_tables.py --check    # only say what differs, then end with 1

A table stands between a line `<!-- table NAME -->` and a line `<!-- end -->`; NAME is that of a function of
recipes/text_tables/, which makes it.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from text_tables import TABLES
from text_tables.cells import Read, TableError, reader

from oncequant.files import FileError, write_atomically

BEGIN, END = re.compile(r"<!-- table (.*?) ?-->"), "<!-- end -->"


@dataclass(frozen=True)
class Options:
    """What to do."""

    check: bool = False
    """Write nothing. Name the file and the marker of every table that differs, and end with 1 if there is one."""
    root: Path = Path(__file__).parent.parent
    """The project's folder."""


def documents(root: Path) -> list[Path]:
    """The files that have tables of measurements."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md")), root / "results" / "README.md"]


def rewritten(text: str, name: str, read: Read) -> tuple[str, list[str]]:
    """The text of a document with its tables made anew, and the names of those that changed.

    `name` is the document's, for messages. Raises TableError for markers that do not fit, an unknown table, text
    between markers that is no table, or a CSV file or column that is not there."""
    lines, changed, begun = [], [], None
    old: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{name}, line {number}"
        begins, ends = BEGIN.fullmatch(line.strip()), line.strip() == END
        if begun is None:
            lines.append(line)
            if ends:
                raise TableError(f"{place}: {END} without a table before it")
            if begins:
                begun, old = begins[1], []
                if begun not in TABLES:
                    raise TableError(f"{place}: unknown table {begun!r}; use {', '.join(sorted(TABLES))}")
        elif ends:
            try:
                new = TABLES[begun](read)
            except (ValueError, LookupError, ArithmeticError) as error:  # TableError, or a file unlike what it was
                raise TableError(f"{name}, table {begun}: {error}") from error
            if old != new.split("\n"):
                changed.append(begun)
            lines += [new, line]
            begun = None
        elif begins or line and not line.startswith("|"):
            raise TableError(f"{place}: table {begun} has no {END} before this line")
        else:
            old.append(line)
    if begun is not None:
        raise TableError(f"{name}: table {begun} has no {END}")
    return "\n".join(lines), changed


def main(options: Options) -> int:
    """Write or check all documents. Gives the exit code."""
    read, new, count = reader(options.root / "results"), {}, 0
    for path in documents(options.root):
        name = path.relative_to(options.root).as_posix()
        text, changed = rewritten(path.read_text(), name, read)
        for table in changed:
            print(f"{name}: table {table} {'differs from results/' if options.check else 'written'}")
        if changed:
            new[path] = text
            count += len(changed)
    if options.check:
        return 1 if new else 0
    for path, text in new.items():
        write_atomically(path, text.encode())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
    except (TableError, FileError) as error:
        sys.exit(f"error: {error}")
