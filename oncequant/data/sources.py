"""Where images come from: digits, class folders, tables, the hub, Python datasets.

A source is opened as `Records`, rows of a split that are not decoded yet.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oncequant.data.folders import class_folders
from oncequant.data.layout import Layout, are_parts, find_layout, survey
from oncequant.data.listings import Listing, read_listing, read_table, table_files
from oncequant.data.names import ACCEPTED, ARCHIVES, AUTO, SPLITS, TABLES, Reading, listed
from oncequant.data.rows import Records
from oncequant.data.tables import hub_snapshot, image_columns, load_hub, load_parquet, parquet_splits, table_rows
from oncequant.images import DataError, is_image

__all__ = ["Reading", "Source", "open_source"]


@dataclass(frozen=True)
class Source:
    """An opened source; "train" is always among its splits."""

    name: str
    splits: dict[str, Records]
    notes: tuple[str, ...] = ()
    """How it is read, and what of it is not used, for the user."""
    given: str = ""
    """The text that was opened; empty for data sets from Python."""
    places: tuple[Path, ...] = ()
    """Folders in which images are looked for, of class folders."""

    def reads(self, folder: Path) -> bool:
        """Whether images are looked for in a folder, too."""
        return any(folder.resolve().is_relative_to(place.resolve()) for place in self.places)


def open_source(source: Any, reading: Reading = AUTO, *, needs_train: bool = True) -> Source:
    """Find the undecoded splits of a source, see `oncequant.data.load_data`; of one that is open, itself. Raises
    DataError, also without a train split where one is needed."""
    given = "" if isinstance(source, (tuple, Source)) else str(source)
    if isinstance(source, Source):
        return source
    if isinstance(source, tuple):
        opened = _python_datasets(source, reading)
    elif not isinstance(source, (str, os.PathLike)):
        raise DataError(f"a source is text or a tuple of three Python datasets, not a {type(source).__name__}")
    elif not (source := os.fspath(source)).strip():
        raise DataError(f"the source of images is empty; {ACCEPTED}")
    elif source == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = (digits.images * (255 / 16)).round().astype(np.uint8)  # (1797, 8, 8)
        rows = (list(zip(pixels, digits.target.tolist())), None, None)
        opened = replace(_python_datasets(rows, reading), name=source)
    elif (place := Path(source).expanduser()).is_dir():
        opened = _folder(place, reading, needs_train)
    elif place.exists():
        opened = _table(place, reading)
    elif looks_local(source):
        raise DataError(f"{source}: not a folder, nothing is there{_similar(place)}; {ACCEPTED}")
    else:
        opened = Source(source, *table_rows(source, load_hub(source), reading))
    name, splits = opened.name, opened.splits
    if needs_train and "train" not in splits:
        raise DataError(f"{name}: there is no train split, only {', '.join(splits)}")
    splits = {split: splits[split] for split in SPLITS if split in splits}
    for split, records in splits.items():
        if not len(records):
            raise DataError(f"{name}: the {split} split has no images")
    return replace(opened, splits=splits, given=given)


def looks_local(source: str) -> bool:
    """Whether a text can only be meant as a path, so that the hub is never asked for it."""
    known = ARCHIVES | TABLES | {".json", ".arrow", ".txt"}
    first = source.split("/")[0]
    return (
        not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source)  # how the hub names data sets
        or os.path.splitext(source)[1].lower() in known
        or is_image(source)
        or ("/" in source and Path(first).exists())
    )


def _similar(place: Path) -> str:
    """What beside a path that is not there has a similar name, for a message."""
    try:
        names = sorted(path.name for path in place.parent.iterdir()) if place.parent.is_dir() else []
    except OSError:
        return ""
    found = difflib.get_close_matches(place.name, names)
    return f" (there is {listed(found)})" if found else ""


# -- on this machine


def _folder(root: Path, reading: Reading, needs_train: bool = True) -> Source:
    """A folder: of parquet files, of the hub's cache, of pictures with a table, or of class folders."""
    name = root.resolve().name
    if snapshot := hub_snapshot(root):
        opened = _folder(snapshot, reading, needs_train)
        return replace(opened, name=name, notes=(f"{root}: read is its snapshot {snapshot.name}", *opened.notes))
    if parquet := parquet_splits(root):
        tables = load_parquet(str(root), parquet)
        files = [Path(file) for names in parquet.values() for file in names]
        if not image_columns(tables["train"]):
            if listing := read_listing(root, files, reading):
                return Source(name, listing.splits, listing.notes)
        return Source(name, *table_rows(name, tables, reading))
    tree = survey(root)
    files = table_files(tree)
    asked = reading.image_column or reading.label_column
    layout, listing, errors = None, None, []
    if not asked:
        try:
            layout = find_layout(tree, reading.layout, needs_train)
        except DataError as error:
            errors.append(error)
    if layout and "train" not in layout.classes:
        return Source(name, *class_folders(layout), places=layout.places)
    if files and reading.layout == "auto":
        try:
            listing = read_listing(root, files, reading)
        except DataError as error:
            errors.append(error)
    if layout and listing and len(layout.classes["train"]) > 1:
        return _agreed(name, layout, listing)
    if listing:
        return Source(name, listing.splits, listing.notes)
    if layout:
        if errors and (len(layout.classes["train"]) < 2 or are_parts(layout.classes["train"])):  # of the table
            raise errors[-1]
        return Source(name, *class_folders(layout), places=layout.places)
    if errors:
        raise errors[-1]
    raise DataError(f"{root}: holds no table that names pictures, for --image-column and --label-column")


def _table(file: Path, reading: Reading) -> Source:
    """A table by its own path. Raises DataError for other files."""
    suffix = file.suffix.lower()
    if suffix in ARCHIVES:
        raise DataError(f"{file}: is an archive; unpack it, and give the folder")
    if suffix not in TABLES:
        kind = "a picture" if is_image(file.name) else "a file"
        raise DataError(f"{file}: is {kind}, not a folder and not a table ({' '.join(sorted(TABLES))}); {ACCEPTED}")
    if listing := read_listing(file.absolute().parent, [file.absolute()], reading):
        return Source(file.stem, listing.splits, listing.notes)
    return Source(file.stem, *table_rows(file.name, {"train": read_table(file)[0]}, reading))


def _agreed(name: str, layout: Layout, listing: Listing) -> Source:
    """Class folders beside a table that names the same pictures. Raises DataError if they tell different classes."""
    splits, notes = class_folders(layout)
    tables = listed(file.name for file in listing.files)
    if 2 * len(listing.labels) < (total := sum(map(len, splits.values()))):
        few = f"{name}: {tables} left out, since it names only {len(listing.labels)} of {total} pictures"
        return Source(name, splits, (*notes, few), places=layout.places)
    folders = {str(folder): label for classes in layout.classes.values() for label, folder in classes.items()}
    pairs = set()
    for path, label in listing.labels.items():
        above = next((str(parent) for parent in Path(path).parents if str(parent) in folders), "")
        pairs.add((folders.get(above, ""), label))
    if len(pairs) > len({folder for folder, _ in pairs}) or len(pairs) > len({label for _, label in pairs}):
        raise DataError(
            f"{name}: {tables} tells other classes than the folders {listed(sorted(set(folders.values())))}; say "
            "--layout classes for those of the folders, or name the table's column with --label-column"
        )
    if len(listing.splits) > len(layout.classes):
        return Source(name, listing.splits, listing.notes)
    same = f"{name}: {tables} left out, since it tells the classes of the folders"
    return Source(name, splits, (*notes, same), places=layout.places)


# -- in Python


def _python_datasets(source: tuple, reading: Reading) -> Source:
    name = type(source[0]).__name__ if source else "tuple"
    if len(source) != 3:
        raise DataError(f"a tuple source is (train, validation or None, test or None), not {len(source)} things")
    given = {split: rows for split, rows in zip(SPLITS, source) if rows is not None}
    if all(hasattr(rows, "features") and hasattr(rows, "select_columns") for rows in given.values()):
        return Source(name, *table_rows(name, given, reading))  # of the library `datasets`
    for split, rows in given.items():
        if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise DataError(f"the {split} split is a {type(rows).__name__}: use a map-style data set, with a length")
        if len(rows) and not (isinstance(rows[0], Sequence) and len(rows[0]) == 2):
            raise DataError(f"row 0 of the {split} split is a {type(rows[0]).__name__}, not a pair (image, label)")
    names = _class_names(source[0])
    return Source(name, {split: Records(split, rows, 0, 1, names) for split, rows in given.items()})


def _class_names(rows: Any) -> tuple[str, ...]:
    """The `classes` of a data set, or of that which it is a part of; () if there are none."""
    while rows is not None:
        if (classes := getattr(rows, "classes", None)) is not None and len(classes):
            return tuple(map(str, classes))
        rows = getattr(rows, "dataset", None) or next(iter(getattr(rows, "datasets", ())), None)
    return ()
