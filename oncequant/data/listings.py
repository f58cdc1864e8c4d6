"""Tables that name pictures: CSV, TSV, JSONL or parquet files beside folders of pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oncequant.data.columns import choose_image, choose_label, column, split_column
from oncequant.data.layout import Folder, unwrapped
from oncequant.data.names import SPLITS, Reading, is_unlabelled, listed, split_of, words_of
from oncequant.data.rows import Records
from oncequant.data.tables import datasets_library, is_one_table, load_parquet, refuse_missing
from oncequant.images import DataError, files_below, is_image

SAMPLE = 256  # rows that decide which column names pictures, and from which folder on


@dataclass(frozen=True)
class _Pictures:
    """All pictures below a folder."""

    root: Path
    paths: list[str]


@dataclass(frozen=True)
class _Naming:
    """One way of naming pictures."""

    paths: dict[str, str]
    """What a table calls a picture, with its extension and without, to its path."""
    parts: int | None = None
    """How many names at the end of a path count; None for all."""

    def find(self, text: str) -> str | None:
        """The path of a picture."""
        name = text.strip().replace("\\", "/").removeprefix("./")
        return self.paths.get("/".join(name.split("/")[-self.parts :]) if self.parts else name)


@dataclass(frozen=True)
class Listing:
    """What tables tell of pictures."""

    files: tuple[Path, ...]
    splits: dict[str, Records]
    labels: dict[str, Any]
    """Path to label."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    file: Path
    rows: Any
    """A `datasets.Dataset`."""
    texts: dict[str, list[str]]
    """Columns that may name files, as text: numbers keep their leading zeros."""
    able: tuple[str, ...]
    """Those that do name pictures."""


def table_files(root: Folder) -> list[Path]:
    """Tables in a folder, in its folders, and in the folder that its only folder of pictures leads to."""
    places = {folder.path: folder for top in (root, unwrapped(root)) for folder in (top, *top.below)}
    return [table for folder in places.values() for table in folder.tables]


def read_listing(root: Path, files: list[Path], reading: Reading) -> Listing | None:
    """The pictures below a folder that tables name, with their labels. None if no table names pictures that are there.

    Raises DataError where columns leave a choice, labels are missing or contradict each other, or most pictures are
    not there."""
    pictures = _Pictures(root, sorted(path for path in files_below(root) if is_image(path)))
    notes: list[str] = []
    tables = []
    for file in files if pictures.paths else ():
        if len(files) > 1 and is_unlabelled(file.stem):
            notes.append(f"{file} left out: by its name its labels are none")
            continue
        if (table := _opened(file, pictures, reading)).able:
            tables.append(table)
    if not tables:
        return None
    if left := [file.name for file in files if file not in [table.file for table in tables] and not notes]:
        notes.append(f"{root}: {listed(left)} left out, since no column there names pictures")
    by_split = _by_split(root, tables)
    found: dict[str, list[tuple[str, Any]]] = {}
    label, feature = "", None
    for split in (split for split in SPLITS if split in by_split):
        for table in by_split[split]:
            what = table.file.name
            image = choose_image(table.rows, list(table.able), what, reading, notes)
            told = split_column(table.rows)
            if split != "train" and not told and label not in table.rows.features:
                notes.append(f"{table.file} left out: it has no column {label!r} with labels")
                continue
            if not label:
                others = {*table.able, *([told[0]] if told else [])}
                label = choose_label(table.rows, image, what, reading, notes, others)
                feature = table.rows.features[label]
            refuse_missing(table.rows, label, what)
            for part, rows in _parts(table, told, split, notes).items():
                pairs = _pairs(table, image, label, part, rows, pictures, notes)
                found.setdefault(part, []).extend(pairs)
    labels = {path: value for pairs in found.values() for path, value in pairs}
    if unnamed := len(pictures.paths) - len(labels):
        notes.append(f"{root}: {unnamed} pictures are left out, since no row names them")
    datasets = datasets_library()
    features = datasets.Features(image=datasets.Value("string"), label=feature)
    names = tuple(getattr(feature, "names", None) or ())
    splits = {}
    for split in (split for split in SPLITS if split in found):
        columns = {"image": [path for path, _ in found[split]], "label": [value for _, value in found[split]]}
        splits[split] = Records(split, datasets.Dataset.from_dict(columns, features), "image", "label", names)
    return Listing(tuple(table.file for table in tables), splits, labels, tuple(notes))


# -- reading


def read_table(file: Path) -> tuple[Any, dict[str, list[str]]]:
    """A table, and its columns of text and whole numbers as text. Raises DataError naming the file."""
    import pyarrow as pa
    from pyarrow import csv, json

    datasets = datasets_library()
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            rows = load_parquet(str(file), {"train": [str(file)]})["train"]
            texts = rows.with_format("arrow").select_columns(_nameable(rows))[:] if _nameable(rows) else pa.table({})
        elif suffix in (".jsonl", ".ndjson"):
            texts = json.read_json(file).flatten()
            rows = datasets.Dataset(datasets.table.InMemoryTable(texts))
        else:
            with open(file, "rb") as content:
                head = content.readline()
            delimiter = "\t" if suffix == ".tsv" else max(",;\t|", key=lambda mark: head.count(mark.encode()))
            parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            read = csv.ReadOptions()
            table = csv.read_csv(file, read, parse)
            if any(is_image(name) for name in table.column_names):  # no header
                read = csv.ReadOptions(autogenerate_column_names=True)
                table = csv.read_csv(file, read, parse)
            kinds = dict.fromkeys(table.column_names, pa.string())
            texts = csv.read_csv(file, read, parse, csv.ConvertOptions(column_types=kinds))
            names = [name.strip() or f"unnamed {i}" for i, name in enumerate(table.column_names)]
            texts = texts.rename_columns(names)
            rows = datasets.Dataset(datasets.table.InMemoryTable(table.rename_columns(names)))
    except DataError:
        raise
    except Exception as error:  # no table, no UTF-8, rows of different lengths, ...: pyarrow says which
        raise DataError(f"{file}: cannot be read as a table: {' '.join(str(error).split())}") from error
    able = [name for name in _nameable(rows) if name in texts.column_names]
    return rows, {name: texts.column(name).cast(pa.string()).to_pylist() for name in able}


def _nameable(rows: Any) -> list[str]:
    kinds = {name: str(getattr(feature, "dtype", "")) for name, feature in rows.features.items()}
    return [name for name, kind in kinds.items() if re.fullmatch(r"u?int\d+|(large_)?string", kind)]


def _opened(file: Path, pictures: _Pictures, reading: Reading) -> _Table:
    rows, texts = read_table(file)
    rates = {name: rate for name, (_, rate) in _named(texts, file, _split_of(pictures.root, file), pictures).items()}
    if rates.get(wanted := reading.image_column or "", 0) > 0:
        return _Table(file, rows, texts, (wanted,))
    able = {name: len(set(texts[name])) for name, rate in rates.items() if rate >= 0.5}
    able = {name: count for name, count in able.items() if 2 * count > max(able.values())}  # a class "1" is no "1.png"
    files_first = [name for name in able if any(is_image(text or "") for text in texts[name][:SAMPLE])] or able
    return _Table(file, rows, texts, tuple(files_first))


def _split_of(root: Path, file: Path) -> str | None:
    """The split that the name of a table tells, or of its folder below the root."""
    return split_of(file.stem) or (split_of(file.parent.name) if file.parent != root else None)


def _by_split(root: Path, tables: list[_Table]) -> dict[str, list[_Table]]:
    """Tables of each split; one whose name tells none is of the training split. Raises DataError where several are."""
    splits: dict[str, list[_Table]] = {}
    for table in tables:
        splits.setdefault(_split_of(root, table.file) or "", []).append(table)
    if unnamed := splits.pop("", []):
        splits["train"] = splits.get("train", []) + unnamed
    for split, those in splits.items():
        if not is_one_table([table.file for table in those]):
            names = listed(table.file.relative_to(root) for table in those)
            raise DataError(f"{root}: several tables name {split} pictures: {names}; give one of them as --data")
    if "train" not in splits:
        names = listed(table.file.relative_to(root) for table in tables)
        raise DataError(f"{root}: there is no table of the train split, only {names}")
    return splits


def _parts(table: _Table, told: tuple[str, dict[str, str]] | None, split: str, notes: list[str]) -> dict[str, list]:
    """The rows of each split of a table."""
    if told is None:
        return {split: list(range(len(table.rows)))}
    name, splits = told
    parts: dict[str, list[int]] = {}
    for row, value in enumerate(column(table.rows, name).to_pylist()):
        parts.setdefault(splits.get(value, ""), []).append(row)
    if left := parts.pop("", []):
        notes.append(f"{table.file}: {len(left)} rows left out, since column {name!r} is empty there")
    notes.append(f"{table.file}: column {name!r} tells the splits, {', '.join(s for s in SPLITS if s in parts)}")
    return parts


# -- finding pictures


def _named(
    columns: dict[str, list[str]], file: Path, split: str | None, pictures: _Pictures
) -> dict[str, tuple[_Naming, float]]:
    """For each column the way of naming pictures that fits best, and the part of its values that it finds."""
    samples = {name: [text for text in values if text] for name, values in columns.items()}
    samples = {name: values[:: max(1, len(values) // SAMPLE)] for name, values in samples.items() if values}
    best = {name: (_Naming({}), 0.0) for name in columns}
    for naming in _namings(file, split or "train", pictures):
        for name, values in samples.items():
            rate = sum(naming.find(value) is not None for value in values) / len(values)
            if rate > best[name][1]:
                best[name] = naming, rate
        if any(rate == 1 for _, rate in best.values()):
            break
    return best


def _namings(file: Path, split: str, pictures: _Pictures) -> Iterator[_Naming]:
    """How a table may name pictures: by their paths from its folder, from a folder called like it or like its split,
    or whole; or by the end of their paths, where that tells them apart, outside of folders of other splits."""
    root, paths, words = pictures.root, pictures.paths, words_of(file.stem)
    folders = sorted(set(map(Path, set(map(os.path.dirname, paths)))), key=_depth)
    other = {str(folder) for folder in folders if _tells(folder.relative_to(root)) not in (None, split)}
    above = sorted({up for f in folders for up in (f, *f.parents) if root in up.parents}, key=_depth)
    like = [f for f in above if split_of(f.name) == split or words_of(f.name) == words != []]
    for base in dict.fromkeys([file.parent, *like[:3]]):
        start = len(str(base)) + 1
        yield _Naming(_keyed((path[start:], path) for path in paths if path.startswith(f"{base}{os.sep}")))
    yield _Naming({path: path for path in paths})
    for parts in (3, 2, 1):
        ends: dict[str, list[str]] = {}
        for path in paths:
            if os.path.dirname(path) not in other:
                ends.setdefault("/".join(path.split(os.sep)[-parts:]), []).append(path)
        yield _Naming(_keyed((end, found[0]) for end, found in ends.items() if len(found) == 1), parts)


def _depth(folder: Path) -> tuple[int, Path]:
    return len(folder.parts), folder


def _tells(folder: Path) -> str | None:
    """The split of the first folder on a way whose name tells one."""
    return next((split for part in folder.parts if (split := split_of(part))), None)


def _keyed(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    lookup: dict[str, str] = {}
    for name, path in pairs:
        name = name.replace(os.sep, "/")
        lookup[name] = path
        lookup.setdefault(os.path.splitext(name)[0], path)
    return lookup


def _pairs(
    table: _Table, image: str, label: str, split: str, rows: list[int], pictures: _Pictures, notes: list[str]
) -> list[tuple[str, Any]]:
    """Path and label of the pictures of some rows. Raises DataError if most are not there, or one has two labels."""
    texts = [table.texts[image][row] or "" for row in rows]
    naming = _named({image: texts}, table.file, split, pictures)[image][0]
    paths = list(map(naming.find, texts))
    missing = [text for text, path in zip(texts, paths) if path is None]
    if missing:
        names = f"{len(missing)} of {len(texts)} pictures in column {image!r} are not there: {listed(missing, 3)}"
        if 2 * len(missing) > len(texts):
            raise DataError(f"{table.file}: {names}; looked for below {pictures.root}")
        notes.append(f"{table.file}: {names}; these rows are left out")
    values = column(table.rows, label).to_pylist()
    found: dict[str, Any] = {}
    twice = []
    for row, text, path in zip(rows, texts, paths):
        if path is not None and found.setdefault(path, values[row]) != values[row]:
            twice.append(text)
    if twice:
        raise DataError(
            f"{table.file}: {len(twice)} pictures have several labels in column {label!r}: {listed(twice, 3)}; one "
            "label for each is needed"
        )
    return list(found.items())
