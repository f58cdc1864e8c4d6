"""Rows of a split that are not decoded yet, and their decoding."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from oncequant.data.images import DataError, check_sums, open_image, square

CHUNK = 64  # rows fetched and decoded together


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
                    labels[i] = operator.index(label)  # NumPy and torch integers, but not 2.7
                except TypeError as error:
                    raise DataError(f"row {i} of the {self.split} split: label {label!r} is no class") from error
        return labels

    def map(self, rows: Tensor, action: Callable[[int, Image.Image], Any]) -> Iterator[Any]:
        """`action(position, image)` of every row, in order and in threads; a `DataError` names the row that fails."""

        def act(position: int, row: int, raw: Any) -> Any:
            try:
                with open_image(raw) as image:
                    return action(position, image)
            except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, ...
                path = raw.get("path") if isinstance(raw, dict) else raw if isinstance(raw, str) else ""
                where = path if isinstance(raw, str) else f"row {row} of the {self.split} split {path or ''}".rstrip()
                cause = error if isinstance(error, DataError) else f"cannot be read as an image: {error}"
                raise DataError(f"{where}: {cause}") from error

        with ThreadPoolExecutor(1 if get_worker_info() else os.cpu_count()) as pool:
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK].tolist()
                # Fetched in this thread: a user's dataset need not be thread-safe. A table is faster by the chunk.
                table = isinstance(self.image, str)
                raw = self.rows[chunk][self.image] if table else [self.rows[i][self.image] for i in chunk]
                yield from pool.map(act, range(start, start + len(chunk)), chunk, raw)


def decode(records: Records, rows: Tensor, channels: int, size: int, uniform: Tensor | None = None) -> Tensor:
    """Images of some rows, centred or (with `uniform` (n, 4)) randomly cropped: uint8 (n, C, S, S) on the CPU."""
    out = np.empty((len(rows), channels, size, size), np.uint8)

    def render(position: int, image: Image.Image) -> None:
        check_sums(image)
        out[position] = square(image, channels, size, None if uniform is None else uniform[position].numpy())

    for _ in records.map(rows, render):
        pass
    return torch.from_numpy(out)
