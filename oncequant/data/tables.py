"""Tables whose rows are pictures and labels: parquet files and data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from oncequant.data.images import DataError
from oncequant.data.names import ACCEPTED, SPLIT_NAMES
from oncequant.data.rows import Records


def parquet_splits(root: Path) -> dict[str, list[str]]:
    """Parquet files by split, as the hub names them: train-*.parquet, NAME/train-*.parquet or train/*.parquet.

    {} where there are none, or only some that name no split beside folders, which may be classes."""
    files = sorted(root.glob("*.parquet")) or sorted(root.glob("*/*.parquet"))
    splits: dict[str, list[str]] = {}
    folders: set[str] = set()
    for file in files:
        own, above = (SPLIT_NAMES.get(re.split(r"[-_.]", name)[0].lower()) for name in (file.name, file.parent.name))
        if file.parent == root or folders_in(file.parent):  # a table beside class folders is not the split
            above = None
        if split := own or above:
            splits.setdefault(split, []).append(str(file))
            folders |= {file.parent.name} if not above else set()
    if not splits and (not files or folders_in(root)):
        return {}
    if "train" not in splits:
        names = ", ".join(str(file.relative_to(root)) for file in files)
        raise DataError(f"{root}: there is no train-*.parquet, only {names}")
    if len(folders) > 1:
        raise DataError(f"{root}: {', '.join(sorted(folders))} hold a data set each: give one of these folders")
    return splits


def load_tables(what: str, *args: Any, **kwargs: Any) -> dict[str, Records]:
    """Splits of what `datasets.load_dataset` loads. Raises DataError that begins with `what`."""
    datasets = datasets_library()
    try:
        tables = datasets.load_dataset(*args, **kwargs)
    except Exception as error:  # network, authorisation, unknown name, broken parquet, ...: the library says which
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise DataError(f"{what} cannot be loaded: {error}{cause}; {ACCEPTED}") from error
    return {SPLIT_NAMES.get(split, split): table_rows(split, table) for split, table in tables.items()}


def table_rows(split: str, table: Any) -> Records:
    """Find the image and the label column; a column called "label" is taken among several."""
    datasets = datasets_library()
    features = table.features
    listing = f"the columns of the {split} split are " + ", ".join(f"{name!r}: {f}" for name, f in features.items())
    images = [n for n, f in features.items() if isinstance(f, datasets.Image) or (isinstance(f, dict) and "bytes" in f)]
    if len(images) != 1:
        raise DataError(f"{len(images)} columns, not 1, hold images (Image, or struct of bytes and path); {listing}")
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    types = {name: getattr(feature, "dtype", "") for name, feature in features.items()}
    labels = labels or [name for name in types if re.fullmatch(r"u?int\d+|(large_)?string", str(types[name]))]
    if len(labels) != 1 and "label" not in labels:
        raise DataError(
            f"{len(labels)} columns, not 1, may hold labels (ClassLabel, else integer or string), "
            f"and none of them is called 'label'; {listing}"
        )
    image, label = images[0], "label" if "label" in labels else labels[0]
    if isinstance(features[image], datasets.Image):
        table = table.cast_column(image, datasets.Image(decode=False))
    names = tuple(getattr(features[label], "names", None) or ())
    return Records(split, table.select_columns([image, label]), image, label, names)


def folders_in(root: Path) -> list[Path]:
    """Folders directly inside one, sorted, no hidden ones."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def datasets_library() -> Any:
    """The module `datasets`. Raises DataError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        message = 'folders, parquet files and hub names need one more package: pip install "oncequant[data]"'
        raise DataError(message) from error
    return datasets
