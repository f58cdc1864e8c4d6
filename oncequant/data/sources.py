"""Where images come from: digits, class folders, parquet, the hub, Python datasets.

A source is opened as `Records`, rows of a split that are not decoded yet.
"""

from __future__ import annotations

import operator
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from oncequant.data.images import DataError, open_image, square

SPLIT_NAMES = {  # compared in lower case
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
    **dict.fromkeys(["test", "testing"], "test"),
}
EXTENSIONS = frozenset(".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2 .avif".split())
ACCEPTED = (
    "accepted are 'digits', a folder of class folders (directly inside, or below train/ and optionally validation/ and "
    "test/), a folder with train-*.parquet or train/*.parquet, or the name of a Hugging Face hub dataset such as "
    "'uoft-cs/cifar10'"
)
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
        out[position] = square(image, channels, size, None if uniform is None else uniform[position].numpy())

    for _ in records.map(rows, render):
        pass
    return torch.from_numpy(out)


@dataclass(frozen=True)
class Source:
    """An opened source; "train" is always among its splits."""

    name: str
    splits: dict[str, Records]
    notes: tuple[str, ...] = ()
    """What of it is not used, for the user."""


def open_source(source: Any) -> Source:
    """Find the undecoded splits of a source, see `oncequant.data.load_data`. Raises DataError."""
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
        name, parquet = folder.resolve().name, _parquet_splits(folder)
        if parquet:
            opened = Source(name, _load(str(folder), "parquet", data_files=parquet))
        else:
            opened = Source(name, *_class_folders(folder))
    elif not folder.exists() and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        opened = Source(source, _load(f"{source!r} is no folder here, and as a hub dataset it", source))
    else:
        raise DataError(f"{source}: not a folder and not the name of a dataset; {ACCEPTED}")
    name, splits = opened.name, opened.splits
    if "train" not in splits:
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


# ------------------------------------------------------------------ class folders


def _class_folders(root: Path) -> tuple[dict[str, Records], tuple[str, ...]]:
    """Splits of class folders, and notes on what is left out."""
    roots, notes = _split_folders(root)
    files: dict[str, dict[str, list[str]]] = {}  # split -> {class: paths}
    for split, folder in roots.items():
        files[split], ignored = _class_files(folder)
        if ignored:
            kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in ignored.most_common())
            notes.append(f"{folder}: files that are no images by their names are left out: {kinds}")
    names = sorted({name for classes in files.values() for name in classes})
    datasets = _datasets()
    features = datasets.Features(image=datasets.Value("string"), label=datasets.ClassLabel(names=names))
    splits = {}
    for split, classes in files.items():
        pairs = [(path, name) for name, paths in classes.items() for path in paths]
        columns = {"image": [path for path, _ in pairs], "label": [name for _, name in pairs]}
        # A table and not a list: loader workers share the memory of a million paths.
        table = datasets.Dataset.from_dict(columns, features)
        splits[split] = Records(split, table, "image", "label", tuple(names))
    return splits, tuple(notes)


def _split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of class folders of each split, and notes on what is left out."""
    inside = _folders(root)
    notes: list[str] = []
    # A folder named "train" full of images is a class (of vehicles, say); one that holds folders is a split.
    splits_of = {f: SPLIT_NAMES.get(f.name.lower()) for f in inside}
    if not inside or not (
        all(splits_of.values()) or any(split == "train" and _folders(f) for f, split in splits_of.items())
    ):
        return {"train": root}, notes
    named = {folder: split for folder, split in splits_of.items() if split}
    roots = {split: folder for folder, split in named.items()}
    if len(named) > len(roots):
        raise DataError(f"{root}: two of {', '.join(f.name for f in named)} name the same split")
    if left := [f.name for f in inside if f not in named]:
        notes.append(f"{root}: {', '.join(left)} left out, since {', '.join(f.name for f in named)} are its splits")
    for split, folder in list(roots.items()):
        if split != "train" and not _folders(folder) and any(is_image(path.name) for path in folder.iterdir()):
            notes.append(f"{folder} left out: its images are in no class folders, so they have no labels")
            del roots[split]
    return roots, notes


def is_read(root: Path, folder: Path) -> bool:
    """Whether the images of the source `root` are looked for in a folder, too."""
    roots = () if not root.is_dir() or _parquet_splits(root) else _split_folders(root)[0].values()
    return any(folder.is_relative_to(place) for place in roots)


def _class_files(root: Path) -> tuple[dict[str, list[str]], Counter[str]]:
    """Class name to the sorted paths of its images, at any depth; the suffixes of all other files."""
    if not (folders := _folders(root)):
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


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


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


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        message = 'folders, parquet files and hub names need one more package: pip install "oncequant[data]"'
        raise DataError(message) from error
    return datasets


# ------------------------------------------------------------------ tables


def _parquet_splits(root: Path) -> dict[str, list[str]]:
    """Parquet files by split, as the hub names them: train-*.parquet, NAME/train-*.parquet or train/*.parquet.

    {} where there are none, or only some that name no split beside folders, which may be classes."""
    files = sorted(root.glob("*.parquet")) or sorted(root.glob("*/*.parquet"))
    splits: dict[str, list[str]] = {}
    folders: set[str] = set()
    for file in files:
        own, above = (SPLIT_NAMES.get(re.split(r"[-_.]", name)[0].lower()) for name in (file.name, file.parent.name))
        if file.parent == root or _folders(file.parent):  # a table beside class folders is not the split
            above = None
        if split := own or above:
            splits.setdefault(split, []).append(str(file))
            folders |= {file.parent.name} if not above else set()
    if not splits and (not files or _folders(root)):
        return {}
    if "train" not in splits:
        names = ", ".join(str(file.relative_to(root)) for file in files)
        raise DataError(f"{root}: there is no train-*.parquet, only {names}")
    if len(folders) > 1:
        raise DataError(f"{root}: {', '.join(sorted(folders))} hold a data set each: give one of these folders")
    return splits


def _load(what: str, *args: Any, **kwargs: Any) -> dict[str, Records]:
    datasets = _datasets()
    try:
        tables = datasets.load_dataset(*args, **kwargs)
    except Exception as error:  # network, authorisation, unknown name, broken parquet, ...: the library says which
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise DataError(f"{what} cannot be loaded: {error}{cause}; {ACCEPTED}") from error
    return {SPLIT_NAMES.get(split, split): _table(split, table) for split, table in tables.items()}


def _table(split: str, table: Any) -> Records:
    """Find the image and the label column; a column called "label" is taken among several."""
    datasets = _datasets()
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
