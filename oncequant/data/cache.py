"""Decoded squares and what is known of their pictures, kept for later commands.

An entry belongs to a source and a size. It is a table `KEY.npz` and, where there was room, the pixels that it names,
`KEY.*.npy`. The pixels are written first and the table is put in place last, in one step: two processes may both write,
and the last one wins. A picture's row holds good as long as its stamp does, as in git's index; the table has checksums
of its own and of every square, so what a disk has damaged is decoded again. Nothing here raises: without a cache all
goes on, only slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL

from oncequant.data.pictures import ROW, packed, unpacked
from oncequant.files import FileError, write_atomically

DAYS = 30  # an entry that was not used for so long is removed when another one is written
ROOM = 0.5  # share of the free disk that pixels may take
RACE_NS = 2 * 10**9  # a file changed so shortly before it was read may have changed after, with the same time
ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def cache_folder() -> Path:
    """ONCEQUANT_CACHE, else `oncequant` in the user's cache folder."""
    if own := os.environ.get("ONCEQUANT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~", ".cache")).expanduser() / "oncequant"


@dataclass(frozen=True, eq=False)
class Squares:
    """Pixels in a file, to be read where they are needed."""

    path: Path
    shape: tuple[int, int, int, int]  # (n, C, S, S)
    sums: np.ndarray  # uint32 (n,), crc32 of each

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (k, C, S, S), and which of them are what was written, bool (k,)."""
        wrong = np.zeros(len(indices), bool)
        try:
            stored = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if stored.shape != self.shape or stored.dtype != np.uint8:
                raise ValueError("other pixels than the table says")
            first, is_run = indices[:1].sum(), (np.diff(indices) == 1).all()
            pixels = np.array(stored[first : first + len(indices)] if is_run else stored[indices])
        except ERRORS:  # removed, or cut off
            return np.zeros((len(indices), *self.shape[1:]), np.uint8), wrong
        return pixels, np.fromiter(map(zlib.crc32, pixels), np.uint32, len(pixels)) == self.sums[indices]


@dataclass(frozen=True, eq=False)
class Entry:
    """What the cache has of a source."""

    names: list[str]
    rows: np.ndarray  # ROW (n,)
    time_ns: int  # when it was begun to be made
    squares: Squares | None

    def find(self, names: list[str]) -> np.ndarray:
        """Position of each picture, -1 for those that are not here: int64 (k,)."""
        if names == self.names:
            return np.arange(len(names))
        place = {name: i for i, name in enumerate(self.names)}
        return np.fromiter((place.get(name, -1) for name in names), np.int64, len(names))

    def is_good(self, stamps: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Whether pictures with these stamps (k, 2) are still those of the rows at `positions` (k,), -1 for none."""
        rows = self.rows[positions]
        is_file = stamps[:, 0] >= 0
        settled = ~is_file | (stamps[:, 1] < self.time_ns - RACE_NS)
        known = (stamps != -1).any(1) & (positions >= 0) & rows["whole"]
        return known & settled & (rows["stamp"] == stamps).all(1)

    def updated(self, positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The rows with others at `positions`, for an entry that is made now."""
        found = self.rows.copy()
        found["stamp"][found["stamp"][:, 1] >= self.time_ns - RACE_NS] = -1  # these were not looked at since
        found[positions] = rows
        return found


def table_path(source: str, size: int) -> Path:
    """Where the entry of a source is; another Pillow may decode otherwise."""
    text = f"2 {size} {PIL.__version__} {source}"
    return cache_folder() / f"{hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()}.npz"


def read_entry(path: Path) -> Entry | None:
    """The entry with this table, unless there is none or it is damaged; it stays for another DAYS."""
    try:
        names, rows, rest = unpacked(path)
        squares = None
        if len(rest["shape"]):
            n, channels, height, width = map(int, rest["shape"])
            shape = n, channels, height, width
            pixels = path.parent / rest["pixels"].tobytes().decode()
            squares = Squares(pixels, shape, rest["sums"])
            whole = np.load(pixels, mmap_mode="r", allow_pickle=False).shape == shape and len(rest["sums"]) == shape[0]
            squares = squares if whole else None
    except FileNotFoundError as error:
        if error.filename == os.fspath(path):
            return None
        squares = None
    except ERRORS:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return Entry(names, rows, int(rest["time_ns"]), squares) if len(names) == len(rows) else None


def no_room(path: Path, pixels: int) -> str:
    """Why so many bytes cannot be put beside `path`, or ""."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        return error.strerror or str(error)
    if pixels <= ROOM * free:
        return ""
    return f"they take {pixels / 1e9:.1f} GB, more than {ROOM:.0%} of the {free / 1e9:.1f} GB that are free"


class PixelWriter:
    """Writes squares beside a table, block by block as they come. A fault is told in `problem` and leaves no file."""

    def __init__(self, table: Path, shape: tuple[int, int, int, int]):
        self.shape, self.problem = shape, ""
        self.sums: list[int] = []
        self._file: BinaryIO | None = None
        self.path = table
        try:
            handle, name = tempfile.mkstemp(dir=table.parent, prefix=f"{table.stem}.", suffix=".npy")
            self._file, self.path = os.fdopen(handle, "wb"), Path(name)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)
        except OSError as error:
            self._stop(error)

    def add(self, block: np.ndarray) -> None:
        """The next squares, uint8 (k, C, S, S)."""
        if self._file is None:
            return
        try:
            # a memory map would end the process when the disk is full
            self._file.write(np.ascontiguousarray(block).data)
            self.sums.extend(map(zlib.crc32, block))
        except OSError as error:
            self._stop(error)

    def squares(self) -> Squares | None:
        """What is in the file now, which is complete; None if it is not."""
        if self._file is None:
            return None
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            self._stop(error)
            return None
        return Squares(self.path, self.shape, np.array(self.sums, np.uint32))

    def discard(self) -> None:
        """Take the file away, unless `squares` has been asked for it."""
        if self._file is not None and not self._file.closed:
            self._stop(OSError("stopped"))

    def _stop(self, error: OSError) -> None:
        self.problem = error.strerror or str(error)
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is still in its buffer finds no room either
                self._file.close()
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._file = None


def write_entry(path: Path, names: list[str], rows: np.ndarray, time_ns: int, squares: Squares | None) -> str:
    """Put an entry in place, and remove what it replaces and what is old. Returns what went wrong, or ""."""
    before = read_entry(path)
    columns = {name: rows[name] for name in ROW.names or () if name not in ("split", "label")}
    more = {"time_ns": np.array(time_ns), "shape": np.array(squares.shape if squares else (), np.int64)}
    if squares:
        more |= {"sums": squares.sums, "pixels": np.frombuffer(squares.path.name.encode(), np.uint8)}
    try:
        write_atomically(path, packed(names, columns, **more))
    except FileError as error:
        if squares and not (before and before.squares and before.squares.path == squares.path):
            with contextlib.suppress(OSError):
                squares.path.unlink()
        return str(error)
    with contextlib.suppress(OSError):
        if before and before.squares and not (squares and before.squares.path == squares.path):
            before.squares.path.unlink(missing_ok=True)
        _remove_old(path.parent)
    return ""


def _remove_old(folder: Path) -> None:
    """Entries that were not used for DAYS, and files that a killed process has left, a day after."""
    ages = {}
    for file in folder.iterdir():
        if re.fullmatch(r"\.?[0-9a-f]{32}\..*", file.name):  # ours, whatever folder the user gave
            with contextlib.suppress(OSError):
                ages[file] = (time.time() - file.stat().st_mtime) / 86400
    tables = {file for file in ages if file.suffix == ".npz" and not file.name.startswith(".")}
    named = set()
    for table in tables:
        if ages[table] > DAYS:
            table.unlink(missing_ok=True)
        else:
            with contextlib.suppress(*ERRORS), np.load(table, allow_pickle=False) as file:
                named.add(folder / file["pixels"].tobytes().decode())
    for file, age in ages.items():
        if file not in tables and file not in named and age > 1:
            file.unlink(missing_ok=True)
