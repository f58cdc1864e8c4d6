"""Files of a run folder: written atomically, read without executing code, errors that name the file."""

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO

HALF = ".half"  # how the names of files end that are still being written


class FileError(OSError):
    """A file cannot be written or is not what it should be; the message names it."""


MAY_BE_PATH = "may be a path"
PathText = Annotated[str, MAY_BE_PATH]
"""Of an option: a path or something else, such as a name. The command line replaces `~` and `$NAME` in it."""
VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path that a user's text means: `~`, `~name`, `$NAME` and `${NAME}` stand for what a shell puts there.

    Text that names an existing file or folder as it is may hold names that stand for nothing. Raises ValueError for
    other such names, and for empty text."""
    text = os.fspath(text)
    if not text.strip():
        raise ValueError("an empty text is no path")
    unset = [a or b for a, b in VARIABLE.findall(text) if (a or b) not in os.environ]
    found = os.path.expanduser(text if unset else os.path.expandvars(text))
    if not os.path.exists(text):
        if unset:
            raise ValueError(f"{text}: there is no environment variable {unset[0]}")
        if found.startswith("~"):
            raise ValueError(f"{text}: there is no user {found[1:].partition('/')[0]!r}")
    return Path(found)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, also when the process is killed or the disk is full. Raises FileError."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=HALF)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes private files; results are to be shared
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error


def remove_halves(folder: Path, but: str = "") -> None:
    """Remove files that a kill cut off while they were written, at any depth, not in the folder `but`. Only for folders
    in which no other process writes."""
    for path in folder.rglob(f".*{HALF}"):
        if path.relative_to(folder).parts[0] != but:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table atomically, one column for every key that occurs; a dict or list is JSON in its cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in row.items()})
    write_atomically(path, text.getvalue().encode())


def read_json(path: Path) -> Any:
    """Read JSON. Raises FileError if the file is missing or not JSON."""
    return read_file(path, lambda content: json.loads(content), "JSON")


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that has `keys`. Raises FileError if the file is missing or something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise FileError(f"{path} should hold a JSON object")
    if missing := [key for key in keys if key not in value]:
        raise FileError(f"{path} lacks {missing[0]!r}")
    return value


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line and push it to the disk; a line that a kill or a full disk cut off before it goes.

    Raises FileError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            _cut_partial_line(file)
            file.write(json.dumps(value).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FileError(f"cannot append to {path}: {error.strerror or error}") from error


def _cut_partial_line(file: BinaryIO) -> None:
    """Cut off what follows the last line end, and go to the end."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        if (found := file.read(end - start).rfind(b"\n")) >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        file.truncate(end)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines of a file; [] if there is none. A last line cut off by a kill is left out. Raises FileError."""
    if not path.exists():
        return []
    rows = []
    *lines, last = path.read_text(errors="replace").split("\n")  # a complete file ends with a newline: `last` is empty
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise FileError(f"{path}, line {number}: not JSON ({error})") from error
    if last.strip("\0") and not last.startswith("{"):  # zeros: the machine stopped before the disk had the line
        raise FileError(f"{path}, line {len(lines) + 1}: not JSON, and not the beginning of it")
    return rows


def read_file(path: Path, parse: Callable[[bytes], Any], kind: str) -> Any:
    """What `parse` makes of the content of a file of this kind. Raises FileError if it is missing or damaged."""
    try:
        return parse(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise FileError(f"{path} is not a readable {kind} file: {error}") from error
