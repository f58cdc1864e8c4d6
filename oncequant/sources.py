"""Where images come from: digits, class folders, parquet, the hub, Python datasets; and how one is decoded.

A source is opened as `Records`, rows of a split that are not decoded yet. Images leave Pillow as uint8 squares of side
S with 1 channel (if every image is greyscale) or 3; transparency becomes white, 16-bit values are divided by 257, EXIF
orientation is applied.
"""

from __future__ import annotations

import io
import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import get_worker_info

from oncequant.progress import console

SPLIT_NAMES = {  # compared in lower case
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
    **dict.fromkeys(["test", "testing"], "test"),
}
EXTENSIONS = frozenset(".jpg .jpeg .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2 .avif".split())
GREY_MODES = frozenset(["1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"])
ACCEPTED = (
    "accepted are 'digits', a folder of class folders (directly inside, or below train/ and optionally validation/ and "
    "test/), a folder with train-*.parquet, or the name of a Hugging Face hub dataset such as 'uoft-cs/cifar10'"
)
CHUNK = 64  # rows fetched and decoded together


class DataError(ValueError):
    """The user's data cannot be used; the message names the file, class or split."""


# ------------------------------------------------------------------ sources: rows that are not decoded yet


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
                with _open(raw) as image:
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


def open_source(source: Any) -> tuple[str, dict[str, Records]]:
    """Name and undecoded splits of a source; "train" is always among them."""
    if isinstance(source, tuple):
        splits, name = _python_datasets(source), type(source[0]).__name__
    elif not isinstance(source, (str, os.PathLike)):
        raise DataError(f"a source is text or a tuple of three Python datasets, not a {type(source).__name__}")
    elif (source := os.fspath(source)) == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = (digits.images * (255 / 16)).round().astype(np.uint8)  # (1797, 8, 8)
        name, splits = source, _python_datasets((list(zip(pixels, digits.target.tolist())), None, None))
    elif (folder := Path(source).expanduser()).is_dir():
        name = folder.resolve().name
        parquet = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
        splits = _parquet(folder, parquet) if parquet else _class_folders(folder)
    elif not folder.exists() and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        name, splits = source, _load(f"{source!r} is no folder here, and as a hub dataset it", source)
    else:
        raise DataError(f"{source}: not a folder and not the name of a dataset; {ACCEPTED}")
    if "train" not in splits:
        raise DataError(f"{name}: there is no train split, only {', '.join(splits)}")
    splits = {split: splits[split] for split in ("train", "validation", "test") if split in splits}
    for split, records in splits.items():
        if not len(records):
            raise DataError(f"{name}: the {split} split has no images")
    return name, splits


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


def _class_folders(root: Path) -> dict[str, Records]:
    roots = {"train": root}
    inside = _folders(root)
    # A folder named "train" full of images is a class (of vehicles, say); one that holds folders is a split.
    splits_of = {f: SPLIT_NAMES.get(f.name.lower()) for f in inside}
    if all(splits_of.values()) or any(split == "train" and _folders(f) for f, split in splits_of.items()):
        named = [f for f, split in splits_of.items() if split]
        roots = {splits_of[f]: f for f in named} or roots
        if len(named) > len(roots):
            raise DataError(f"{root}: two of {', '.join(f.name for f in named)} name the same split")
        if named and (left := [f.name for f in inside if f not in named]):
            console.print(
                f"{root}: {', '.join(left)} left out, since {', '.join(f.name for f in named)} are its splits",
                soft_wrap=True,
            )
    files = {split: _class_files(folder) for split, folder in roots.items()}  # split -> {class: paths}
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
    return splits


def _class_files(root: Path) -> dict[str, list[str]]:
    """Class name to the sorted paths of its images, at any depth."""
    if not (folders := _folders(root)):
        raise DataError(f"{root}: holds no class folders and no *.parquet files; {ACCEPTED}")
    classes = {}
    for folder in folders:
        found = []
        for parent, below, files in os.walk(folder, followlinks=True):
            below[:] = [name for name in below if not name.startswith(".")]
            images = (f for f in files if f[0] != "." and os.path.splitext(f)[1].lower() in EXTENSIONS)
            found += [os.path.join(parent, file) for file in images]
        if not found:
            raise DataError(f"{folder}: this class folder holds no images ({' '.join(sorted(EXTENSIONS))})")
        classes[folder.name] = sorted(found)
    return classes


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        message = 'folders, parquet files and hub names need one more package: pip install "oncequant[data]"'
        raise DataError(message) from error
    return datasets


def _parquet(root: Path, files: list[Path]) -> dict[str, Records]:
    groups: dict[str, list[str]] = {}
    for file in files:
        if split := SPLIT_NAMES.get(re.split(r"[-_.]", file.name)[0].lower()):
            groups.setdefault(split, []).append(str(file))
    if "train" not in groups:
        raise DataError(f"{root}: there is no train-*.parquet, only {', '.join(file.name for file in files)}")
    return _load(str(root), "parquet", data_files=groups)


def _load(what: str, *args: Any, **kwargs: Any) -> dict[str, Records]:
    datasets = _datasets()
    try:
        tables = datasets.load_dataset(*args, **kwargs)
    except Exception as error:  # network, authorisation, unknown name, broken parquet, ...: the library says which
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise DataError(f"{what} cannot be loaded: {error}{cause}; {ACCEPTED}") from error
    return {SPLIT_NAMES.get(split, split): _table(split, table) for split, table in tables.items()}


def _table(split: str, table: Any) -> Records:
    """Find the image and the label column; a column called "label" settles a choice between several."""
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


# ------------------------------------------------------------------ decoding one image


def _open(raw: Any) -> Image.Image:
    """PIL image of one raw row; of an encoded one only the header has been read."""
    if isinstance(raw, dict):
        raw = raw.get("path") if raw.get("bytes") is None else io.BytesIO(raw["bytes"])
    if isinstance(raw, (str, io.BytesIO)):
        return Image.open(raw)
    if isinstance(raw, Image.Image):
        return raw.copy()  # what follows works in place, and the image belongs to the user
    if not isinstance(raw, (np.ndarray, Tensor)):
        raise DataError(f"an image must be a PIL image, an array or a tensor, not {type(raw).__name__}")
    array = raw.detach().cpu().numpy() if isinstance(raw, Tensor) else raw
    if array.ndim == 3:
        # Tensors are channels first and arrays channels last by custom; only 3 x 3 images leave the choice to custom.
        first, last = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
        if first and (isinstance(raw, Tensor) or not last):
            array = array.transpose(1, 2, 0)
        elif not last:
            raise DataError(f"an image of shape {array.shape} is none of HxW, HxWxC and CxHxW with 1, 3 or 4 channels")
        array = array[:, :, 0] if array.shape[2] == 1 else array
    elif array.ndim != 2:
        raise DataError(f"an image of shape {array.shape} is none of HxW, HxWxC and CxHxW")
    return Image.fromarray(np.ascontiguousarray(_eight_bits(array)))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (array.astype(np.float32) / 257).round().astype(np.uint8)
    if array.dtype.kind != "f":
        raise DataError(f"pixels must be uint8, uint16 or float, not {array.dtype}")
    low, high = array.min(), array.max()
    if not (low >= -1e-3 and high <= 1.001):  # also true of NaN; the slack is for interpolated images
        raise DataError(f"float pixels must lie in [0, 1], not [{low:g}, {high:g}]: normalising is done here")
    return (array.clip(0, 1) * 255).round().astype(np.uint8)


def _flatten(image: Image.Image, channels: int) -> Image.Image:
    """Any Pillow mode to "L" or "RGB"."""
    if image.mode == "I":  # how Pillow opens some 16-bit files
        image = Image.fromarray(_eight_bits(np.asarray(image).clip(0, 65535).astype(np.uint16)))
    elif image.mode == "F" or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def random_boxes(uniform: np.ndarray, aspect: float) -> np.ndarray:
    """Crops of 1/4 to all of the area with sides in ratio 3/4 to 4/3: from 4 numbers in [0, 1) each, (4, ...), their
    left, top, right and bottom (4, ...) as fractions of an image with width / height = `aspect`."""
    area, ratio = 0.25 + 0.75 * uniform[0], (4 / 3) ** (2 * uniform[1] - 1)
    width, height = np.minimum(1, np.sqrt(area * ratio / aspect)), np.minimum(1, np.sqrt(area * aspect / ratio))
    left, top = uniform[2] * (1 - width), uniform[3] * (1 - height)
    return np.stack([left, top, left + width, top + height])


def _box(width: int, height: int, uniform: np.ndarray | None) -> tuple[float, float, float, float]:
    """Pixels to keep: the square in the centre, or a random crop."""
    if uniform is None:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side
    left, top, right, bottom = random_boxes(uniform, width / height).tolist()
    return left * width, top * height, min(right * width, width), min(bottom * height, height)


def decode(records: Records, rows: Tensor, channels: int, size: int, uniform: Tensor | None = None) -> Tensor:
    """Images of some rows, centred or (with `uniform` (n, 4)) randomly cropped: uint8 (n, C, S, S) on the CPU."""
    out = np.empty((len(rows), channels, size, size), np.uint8)

    def render(position: int, image: Image.Image) -> None:
        numbers = None if uniform is None else uniform[position].numpy()
        left, top, right, bottom = _box(*image.size, numbers)
        shrink = min(right - left, bottom - top) / size
        if shrink >= 2:  # JPEG decodes to 1/2, 1/4 or 1/8 of the size in a fraction of the time; others ignore this
            image.draft(image.mode, (math.ceil(image.size[0] / shrink), math.ceil(image.size[1] / shrink)))
        ImageOps.exif_transpose(image, in_place=True)
        box = _box(*image.size, numbers)  # again: draft and orientation changed the size
        image = _flatten(image, channels).resize((size, size), Image.Resampling.BILINEAR, box)
        out[position] = np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)

    for _ in records.map(rows, render):
        pass
    return torch.from_numpy(out)
