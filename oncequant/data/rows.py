"""Rows of a split that are not decoded yet, and their decoding."""

from __future__ import annotations

import hashlib
import operator
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from oncequant.cpu import cores
from oncequant.images import DataError, alone_if_large, open_image, square, why_unreadable

CHUNK = 64  # rows fetched and decoded together


@dataclass(frozen=True, eq=False)
class FileTable:
    """Paths and labels of pictures, to be asked like a table of the `datasets` library, whose import takes a second.

    Arrays and not lists: loader workers share the memory of a million paths."""

    paths: np.ndarray  # uint8, all of them, each with a NUL behind it
    ends: np.ndarray  # int64 (n,), of each in `paths`
    numbers: np.ndarray  # int64 (n,), labels
    columns: tuple[str, ...] = ("image", "label")

    @staticmethod
    def of(paths: Sequence[str], labels: Sequence[int]) -> FileTable:
        """The table of so many paths and labels."""
        encoded = np.frombuffer(os.fsencode("\0".join([*paths, ""])), np.uint8)
        return FileTable(encoded, np.flatnonzero(encoded == 0), np.asarray(labels, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, rows: int | str | slice | Sequence[int]) -> Any:
        if isinstance(rows, str):
            return self[:][rows]
        if isinstance(rows, int):
            return {name: column[0] for name, column in self[[rows]].items()}
        found = {"image": self._paths, "label": lambda rows: self.numbers[rows].tolist()}
        return {name: found[name](rows) for name in self.columns}

    def _paths(self, rows: slice | Sequence[int]) -> list[str]:
        chosen = np.arange(len(self))[rows]
        if len(chosen) > CHUNK:
            every = os.fsdecode(self.paths.tobytes()).split("\0")
            return [every[row] for row in chosen.tolist()]
        starts = np.where(chosen > 0, self.ends[chosen - 1] + 1, 0)
        return [os.fsdecode(self.paths[a:b].tobytes()) for a, b in zip(starts, self.ends[chosen])]

    def select_columns(self, names: str | list[str]) -> FileTable:
        """The table with some columns."""
        return replace(self, columns=(names,) if isinstance(names, str) else tuple(names))


@dataclass(frozen=True)
class Records:
    """Undecoded rows of one split; `rows[i][image]` is a path, {"bytes", "path"}, a PIL image or an array."""

    split: str
    rows: Any  # a table of the `datasets` library, or a map-style Python dataset of (image, label)
    image: str | int
    label: str | int
    names: tuple[str, ...]  # class names behind integer labels; empty where the source has none

    def __len__(self) -> int:
        return len(self.rows)

    def labels(self) -> list[int | str]:
        """All labels; reads every row of a Python dataset once."""
        if isinstance(self.label, str):
            labels = self.rows.select_columns(self.label)[:][self.label]
        else:
            labels = [self.rows[i][self.label] for i in range(len(self))]
        for i, label in enumerate(labels):
            if not isinstance(label, (str, int)):
                try:
                    value = label.item() if hasattr(label, "item") else label  # of NumPy and torch, of one element
                    labels[i] = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
                except (TypeError, ValueError, RuntimeError) as error:
                    raise DataError(f"row {i} of the {self.split} split: label {label!r} is no class") from error
        return labels

    def files(self, rows: Tensor) -> list[str] | None:
        """Paths of the pictures; None if they do not lie in files of their own."""
        if not isinstance(self.image, str):
            return None
        if not isinstance(self.rows, FileTable):
            column = self.rows.data.column(self.image)
            if str(column.type).startswith("struct"):  # of bytes and path, as the hub stores pictures
                import pyarrow.compute

                if pyarrow.compute.struct_field(column, "bytes").null_count < len(column):
                    return None
        found = self.rows.select_columns(self.image)[rows.tolist()][self.image]
        return [one["path"] if isinstance(one, dict) else one for one in found]

    def stamps(self, rows: Tensor) -> tuple[list[str], np.ndarray]:
        """Names of pictures, and stamps (n, 2) that differ if a picture may have changed; -1 where nothing tells."""
        stamps = np.full((len(rows), 2), -1, np.int64)
        if (files := self.files(rows)) is not None:
            for i, path in enumerate(files):
                try:
                    status = os.stat(path)
                except OSError:
                    continue
                stamps[i] = status.st_size, status.st_mtime_ns
            return files, stamps
        if mark := getattr(self.rows, "_fingerprint", ""):  # of `datasets`: of all the table is made of
            digest = hashlib.blake2b(f"{mark} {self.image}".encode(), digest_size=8).digest()
            stamps[:, 1] = int.from_bytes(digest, "little", signed=True)
        return [f"row {row} of the {self.split} split" for row in rows.tolist()], stamps

    def raw(self, rows: Tensor) -> Iterator[tuple[int, int, Any]]:
        """(position, row, undecoded picture), some at a time."""
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK].tolist()
            # Fetched in this thread: a user's dataset need not be thread-safe. A table is faster by the chunk.
            table = isinstance(self.image, str)
            found = self.rows[chunk][self.image] if table else [self.rows[i][self.image] for i in chunk]
            yield from zip(range(start, start + len(chunk)), chunk, found)

    def in_threads(self, rows: Tensor, action: Callable[[int, int, Any], Any]) -> Iterator[Any]:
        """`action(position, row, undecoded picture)` of every row, in order, some at a time."""
        with warnings.catch_warnings(), ThreadPoolExecutor(1 if get_worker_info() else cores()) as pool:
            # of the whole process, so also of the threads: large pictures are named in the notes of a data set
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            waiting: deque[Future] = deque()
            for one in self.raw(rows):
                waiting.append(pool.submit(action, *one))
                if len(waiting) > 2 * CHUNK:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def map(self, rows: Tensor, action: Callable[[int, Image.Image], Any]) -> Iterator[Any]:
        """`action(position, image)` of every row, in order and in threads; a `DataError` names the row that fails."""

        def act(position: int, row: int, raw: Any) -> Any:
            try:
                with open_image(raw) as image, alone_if_large(image):
                    return action(position, image)
            except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, ...
                raise DataError(self.failure(row, raw, error)) from error

        yield from self.in_threads(rows, act)

    def failure(self, row: int, raw: Any, error: Exception) -> str:
        """One line on a picture that cannot be decoded."""
        path = raw.get("path") if isinstance(raw, dict) else raw if isinstance(raw, str) else ""
        where = path if isinstance(raw, str) else f"row {row} of the {self.split} split {path or ''}".rstrip()
        return f"{where}: {why_unreadable(error)}"


def decode(records: Records, rows: Tensor, channels: int, size: int, uniform: Tensor | None = None) -> Tensor:
    """Images of some rows, centred or (with `uniform` (n, 4)) randomly cropped: uint8 (n, C, S, S) on the CPU."""
    out = np.empty((len(rows), channels, size, size), np.uint8)

    def render(position: int, image: Image.Image) -> None:
        out[position] = square(image, channels, size, None if uniform is None else uniform[position].numpy())

    for _ in records.map(rows, render):
        pass
    return torch.from_numpy(out)
