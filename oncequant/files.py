"""Files of a run folder: written atomically, read without executing code, errors that name the file."""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

CHECKSUM = "sha256"  # in the metadata of a safetensors file
HALF = ".half"  # how the names of files end that are still being written


class FileError(OSError):
    """A file cannot be written or is not what it should be; the message names it."""


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


def package_version() -> str:
    """Version of the oncequant that writes a file."""
    try:
        return metadata.version("oncequant")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def read_json(path: Path) -> Any:
    """Read JSON. Raises FileError if the file is missing or not JSON."""
    return _read(path, lambda content: json.loads(content), "JSON")


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that has `keys`. Raises FileError if the file is missing or something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise FileError(f"{path} should hold a JSON object")
    if missing := [key for key in keys if key not in value]:
        raise FileError(f"{path} lacks {missing[0]!r}")
    return value


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically; metadata is text by name. Equal tensors and metadata are equal bytes."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**metadata, CHECKSUM: _checksum(dense, metadata)}
    write_atomically(path, _with_sorted_header(save_safetensors(dense, metadata)))


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file with its metadata by name: the library has them in a random order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[start:]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises FileError if it is missing, truncated or foreign."""

    def parse(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors = load_safetensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
        if metadata.pop(CHECKSUM, None) not in (None, _checksum(tensors, metadata)):  # older files have none
            raise ValueError("it was changed or damaged, its content does not match its checksum")
        return tensors, metadata

    return _read(path, parse, "safetensors")


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of what a safetensors file holds: the format has no checksum of its own, and any bits are a number."""
    found = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


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


def _read(path: Path, parse: Callable[[bytes], Any], kind: str) -> Any:
    try:
        return parse(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except (OSError, ValueError, SafetensorError, KeyError, RecursionError) as error:
        raise FileError(f"{path} is not a readable {kind} file: {error}") from error
