"""Where images come from: digits, class folders, parquet, the hub, Python datasets.

A source is opened as `Records`, rows of a split that are not decoded yet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oncequant.data.folders import class_folders
from oncequant.data.images import DataError
from oncequant.data.names import ACCEPTED
from oncequant.data.rows import Records
from oncequant.data.tables import load_tables, parquet_splits


@dataclass(frozen=True)
class Source:
    """An opened source; "train" is always among its splits."""

    name: str
    splits: dict[str, Records]
    notes: tuple[str, ...] = ()
    """What of it is not used, for the user."""


def open_source(source: Any, *, needs_train: bool = True) -> Source:
    """Find the undecoded splits of a source, see `oncequant.data.load_data`. Raises DataError, also without a train
    split where one is needed."""
    if isinstance(source, tuple):
        opened = Source(type(source[0]).__name__, _python_datasets(source))
    elif not isinstance(source, (str, os.PathLike)):
        raise DataError(f"a source is text or a tuple of three Python datasets, not a {type(source).__name__}")
    elif (source := os.fspath(source)) == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = (digits.images * (255 / 16)).round().astype(np.uint8)  # (1797, 8, 8)
        opened = Source(source, _python_datasets((list(zip(pixels, digits.target.tolist())), None, None)))
    elif (folder := Path(source).expanduser()).is_dir():
        name, parquet = folder.resolve().name, parquet_splits(folder)
        if parquet:
            opened = Source(name, load_tables(str(folder), "parquet", data_files=parquet))
        else:
            opened = Source(name, *class_folders(folder))
    elif not folder.exists() and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        opened = Source(source, load_tables(f"{source!r} is no folder here, and as a hub dataset it", source))
    else:
        raise DataError(f"{source}: not a folder and not the name of a dataset; {ACCEPTED}")
    name, splits = opened.name, opened.splits
    if needs_train and "train" not in splits:
        raise DataError(f"{name}: there is no train split, only {', '.join(splits)}")
    splits = {split: splits[split] for split in ("train", "validation", "test") if split in splits}
    for split, records in splits.items():
        if not len(records):
            raise DataError(f"{name}: the {split} split has no images")
    return replace(opened, splits=splits)


def _python_datasets(source: tuple) -> dict[str, Records]:
    if len(source) != 3:
        raise DataError(f"a tuple source is (train, validation or None, test or None), not {len(source)} things")
    given = {split: rows for split, rows in zip(("train", "validation", "test"), source) if rows is not None}
    for split, rows in given.items():
        if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise DataError(f"the {split} split is a {type(rows).__name__}: use a map-style data set, with a length")
        if len(rows) and not (isinstance(rows[0], Sequence) and len(rows[0]) == 2):
            raise DataError(f"row 0 of the {split} split is a {type(rows[0]).__name__}, not a pair (image, label)")
    names = tuple(map(str, getattr(source[0], "classes", ())))
    return {split: Records(split, rows, 0, 1, names) for split, rows in given.items()}
