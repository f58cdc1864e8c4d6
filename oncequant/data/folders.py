"""Pictures in class folders, with or without folders of splits."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from oncequant.data.layout import Layout
from oncequant.data.rows import FileTable, Records
from oncequant.images import DataError, files_below, is_image


def class_folders(layout: Layout) -> tuple[dict[str, Records], tuple[str, ...]]:
    """Splits of class folders, and notes on what is left out."""
    notes = list(layout.notes)
    files: dict[str, dict[str, list[str]]] = {}  # split -> {class: paths}
    for split, folders in layout.classes.items():
        ignored: Counter[str] = Counter()
        files[split] = {name: _pictures(folder, ignored) for name, folder in folders.items()}
        if ignored:
            where = os.path.commonpath(folders.values())
            kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in ignored.most_common())
            notes.append(f"{where}: files that are no images by their names are left out: {kinds}")
    splits = {
        split: listing(split, [(path, name) for name, paths in classes.items() for path in paths], names)
        for names in [sorted({name for classes in files.values() for name in classes})]
        for split, classes in files.items()
    }
    return splits, tuple(notes)


def listing(split: str, pairs: list[tuple[str, str]], names: list[str]) -> Records:
    """Records of a split whose pictures are files, from pairs of path and class name.

    Raises DataError for a path that is not in UTF-8."""
    for path, _ in pairs:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise DataError(f"{path!r}: this name is not in UTF-8; rename it") from None
    number = {name: i for i, name in enumerate(names)}
    table = FileTable.of([path for path, _ in pairs], [number[name] for _, name in pairs])
    return Records(split, table, "image", "label", tuple(names))


def _pictures(folder: Path, ignored: Counter[str]) -> list[str]:
    """The sorted paths of the images in a folder, at any depth; the suffixes of all other files are counted."""
    found = []
    for path in files_below(folder):
        if is_image(path):
            found.append(path)
        else:
            ignored[os.path.splitext(path)[1].lower()] += 1
    return sorted(found)
