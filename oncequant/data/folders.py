"""Pictures in class folders, with or without folders of splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from oncequant.data.images import DataError
from oncequant.data.names import ACCEPTED, EXTENSIONS, SPLIT_NAMES, is_image
from oncequant.data.rows import FileTable, Records
from oncequant.data.tables import folders_in, parquet_splits


def class_folders(root: Path) -> tuple[dict[str, Records], tuple[str, ...]]:
    """Splits of class folders, and notes on what is left out."""
    roots, notes = split_folders(root)
    files: dict[str, dict[str, list[str]]] = {}  # split -> {class: paths}
    for split, folder in roots.items():
        files[split], ignored = _class_files(folder)
        if ignored:
            kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in ignored.most_common())
            notes.append(f"{folder}: files that are no images by their names are left out: {kinds}")
    names = sorted({name for classes in files.values() for name in classes})
    number, splits = {name: i for i, name in enumerate(names)}, {}
    for split, classes in files.items():
        pairs = [(path, number[name]) for name, paths in classes.items() for path in paths]
        table = FileTable.of(*zip(*pairs))
        splits[split] = Records(split, table, "image", "label", tuple(names))
    return splits, tuple(notes)


def split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of class folders of each split, and notes on what is left out."""
    inside = folders_in(root)
    notes: list[str] = []
    # A folder named "train" full of images is a class (of vehicles, say); one that holds folders is a split.
    splits_of = {f: SPLIT_NAMES.get(f.name.lower()) for f in inside}
    if not inside or not (
        all(splits_of.values()) or any(split == "train" and folders_in(f) for f, split in splits_of.items())
    ):
        return {"train": root}, notes
    named = {folder: split for folder, split in splits_of.items() if split}
    roots = {split: folder for folder, split in named.items()}
    if len(named) > len(roots):
        raise DataError(f"{root}: two of {', '.join(f.name for f in named)} name the same split")
    if left := [f.name for f in inside if f not in named]:
        notes.append(f"{root}: {', '.join(left)} left out, since {', '.join(f.name for f in named)} are its splits")
    for split, folder in list(roots.items()):
        if split != "train" and not folders_in(folder) and any(is_image(path.name) for path in folder.iterdir()):
            notes.append(f"{folder} left out: its images are in no class folders, so they have no labels")
            del roots[split]
    return roots, notes


def is_read(root: Path, folder: Path) -> bool:
    """Whether the images of the source `root` are looked for in a folder, too."""
    roots = () if not root.is_dir() or parquet_splits(root) else split_folders(root)[0].values()
    return any(folder.is_relative_to(place) for place in roots)


def _class_files(root: Path) -> tuple[dict[str, list[str]], Counter[str]]:
    """Class name to the sorted paths of its images, at any depth; the suffixes of all other files."""
    if not (folders := folders_in(root)):
        raise DataError(f"{root}: holds no class folders and no *.parquet files; {ACCEPTED}")
    classes: dict[str, list[str]] = {}
    ignored: Counter[str] = Counter()
    for folder in folders:
        found = []
        for path in _files(folder):
            if is_image(path):
                found.append(path)
            else:
                ignored[os.path.splitext(path)[1].lower()] += 1
        if not found:
            raise DataError(f"{folder}: this class folder holds no images ({' '.join(sorted(EXTENSIONS))})")
        for path in found:
            try:
                path.encode()
            except UnicodeEncodeError:
                raise DataError(f"{path!r}: this name is not in UTF-8; rename it") from None
        classes[folder.name] = sorted(found)
    return classes, ignored


def _files(folder: Path) -> Iterator[str]:
    """Files of a folder at any depth, no hidden ones. Links are followed, but not upwards, and into a folder once."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error

    seen = set(map(os.path.realpath, folder.absolute().parents))
    for parent, below, files in os.walk(folder, followlinks=True, onerror=refuse):
        place = os.path.realpath(parent)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (os.path.join(parent, file) for file in files if not file.startswith("."))
