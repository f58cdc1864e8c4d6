"""Tables whose rows are pictures and labels: parquet files and data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oncequant.data.columns import choose_image, choose_label, missing_labels
from oncequant.data.layout import survey
from oncequant.data.names import ACCEPTED, SPLITS, Reading, is_neutral, listed, split_of, splits_of
from oncequant.data.rows import Records
from oncequant.images import DataError

HUB_SECONDS = 5  # until the hub has answered once; without a network, what is in its cache is taken


def parquet_splits(root: Path) -> dict[str, list[str]]:
    """Parquet files by split, as the hub names them: train-*.parquet, train/*.parquet, or these in one folder more.

    A file alone whose name tells no split, and shards of one, are the training split. {} where there are none, or only
    such beside folders of pictures. Raises DataError where several data sets lie side by side, or none for training."""
    files = next((found for depth in ("", "*/", "*/*/") if (found := _visible(root, f"{depth}*.parquet"))), [])
    own = splits_of(file.stem for file in files)
    splits: dict[str, list[str]] = {}
    sets: set[str] = set()
    unnamed = []
    for file in files:
        split, above = own.get(file.stem), file.parent
        while not split and above != root and not survey(above).inside:  # a table among pictures is not the split
            split, above = split_of(above.name.removeprefix("partial-")), above.parent
        if split:
            splits.setdefault(split, []).append(str(file))
            folder = above if split != own.get(file.stem) else file.parent
            sets.add(str(folder.relative_to(root)))
        else:
            unnamed.append(file)
    if not splits and (not files or survey(root).filled):
        return {}
    if "train" not in splits and is_one_table(unnamed):
        splits["train"] = list(map(str, unnamed))
        sets |= {str(file.parent.relative_to(root)) for file in unnamed if not is_neutral(file.parent.name)}
    if "train" not in splits:
        names = listed(file.relative_to(root) for file in files)
        raise DataError(f"{root}: there is no train-*.parquet, only {names}")
    if len(sets - {"."}) > 1:
        raise DataError(f"{root}: {', '.join(sorted(sets))} hold a data set each: give one of these folders")
    return splits


def hub_snapshot(root: Path) -> Path | None:
    """The files of a data set in the hub's cache, from its folder there; None for other folders. Raises DataError for a
    folder of several, and if there is no snapshot or more than one that may be meant."""
    cached = sorted(path.name for path in root.glob("datasets--*") if (path / "snapshots").is_dir())
    if cached:
        raise DataError(f"{root}: is the hub's cache; give one of the data sets in it: {listed(cached)}")
    if not (root / "snapshots").is_dir() or not ((root / "refs").is_dir() or root.name.startswith("datasets--")):
        return None
    snapshots = [folder.path for folder in survey(root / "snapshots").below]
    main = root / "refs" / "main"
    if main.is_file() and (found := root / "snapshots" / main.read_text().strip()).is_dir():
        return found
    if len(snapshots) != 1:
        raise DataError(f"{root}: give one of its snapshots: {listed(snapshots) or 'there are none'}")
    return snapshots[0]


def load_parquet(what: str, files: dict[str, list[str]]) -> dict[str, Any]:
    """Tables of the splits of parquet files. Raises DataError that begins with `what`."""
    datasets = datasets_library()
    tables = {}
    for split in sorted(files, key=SPLITS.index):  # one by one, since they may have different columns
        try:
            tables[split] = datasets.load_dataset("parquet", data_files={split: files[split]}, split=split)
        except Exception as error:  # broken parquet, a full disk, ...: the library says which
            raise _failed(what, error) from error
    return tables


def load_hub(name: str) -> dict[str, Any]:
    """Tables of the splits of a data set on the hub, or in its cache where the hub does not answer within seconds."""
    datasets = datasets_library()
    what = f"{name!r} is no folder here, and as a hub dataset it"
    offline = not _hub_answers(name)
    try:
        with _offline(datasets, offline):
            tables = datasets.load_dataset(name)
    except Exception as error:  # network, authorisation, unknown name, ...: the library says which
        raise _failed(what, error) from error
    names = splits_of(tables)
    return {names.get(split, split): table for split, table in tables.items()}


def table_rows(name: str, tables: dict[str, Any], reading: Reading) -> tuple[dict[str, Records], tuple[str, ...]]:
    """The rows of each split of tables that hold pictures, and notes: which columns, and which splits are left out
    since they have no labels. Raises DataError."""
    datasets, notes = datasets_library(), list[str]()
    if "train" not in tables:
        raise DataError(f"{name}: there is no train split, only {listed(tables)}")
    train = tables["train"]
    able = image_columns(train)
    image = choose_image(train, able, f"{name}, train split", reading, notes)
    label = choose_label(train, image, f"{name}, train split", reading, notes, able)
    found = {}
    for split in (split for split in SPLITS if split in tables):
        table = tables[split]
        if split != "train" and (label not in table.features or missing_labels(table, label) == len(table) > 0):
            notes.append(f"{name}: the {split} split is left out, since it has no labels (column {label!r})")
            continue
        if image not in table.features:
            raise DataError(f"{name}: the {split} split has no column {image!r} as the train split has")
        refuse_missing(table, label, f"{name}, {split} split")
        names = tuple(getattr(table.features[label], "names", None) or ())
        table = table.select_columns([image, label])
        if not isinstance(table.features[image], dict):
            table = table.cast_column(image, datasets.Image(decode=False))  # {"bytes", "path"}
        found[split] = Records(split, table, image, label, names)
    return found, tuple(notes)


def image_columns(table: Any) -> list[str]:
    """Columns that hold encoded pictures: Image, a struct of bytes and path, or bytes."""
    return [
        name
        for name, feature in table.features.items()
        if (isinstance(feature, dict) and "bytes" in feature)
        or type(feature).__name__ == "Image"
        or str(getattr(feature, "dtype", "")) in ("binary", "large_binary")
    ]


def refuse_missing(table: Any, label: str, what: str) -> None:
    """Raise DataError if rows have no label."""
    if missing := missing_labels(table, label):
        raise DataError(
            f"{what}: {missing} of {len(table)} rows have no label in column {label!r}; fill them in, or take the rows "
            "away"
        )


def datasets_library() -> Any:
    """The module `datasets`. Raises DataError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        message = 'folders, tables and hub names need one more package: pip install "oncequant[data]"'
        raise DataError(message) from error
    return datasets


def _visible(root: Path, pattern: str) -> list[Path]:
    found = sorted(root.glob(pattern))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def is_one_table(files: list[Path]) -> bool:
    """Whether files are one table, or shards of one: their names differ in digits only."""
    return bool(files) and len({re.sub(r"\d+", "0", str(file)) for file in files}) == 1


def _failed(what: str, error: Exception) -> DataError:
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return DataError(f"{what} cannot be loaded: {' '.join(f'{error}{cause}'.split())}; {ACCEPTED}")


@contextmanager
def _offline(datasets: Any, is_offline: bool) -> Iterator[None]:
    """Make `datasets` look in its cache alone for a while: without a network it would try again for half a minute."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or is_offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _hub_answers(name: str) -> bool:
    """Whether the hub answers at all within HUB_SECONDS, be it that there is no such data set."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(name, timeout=HUB_SECONDS)
    except HfHubHTTPError:
        return True
    except Exception:  # no network, no answer in time, offline by the user's wish: of several libraries
        return False
    return True
