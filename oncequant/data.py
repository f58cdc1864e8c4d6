"""A user's labelled images in, training batches out.

A *source* (digits, class folders, parquet, hub, Python datasets) is opened as `Records`: rows that are not decoded yet.
Missing splits are carved out of the training rows. A split is then *resident* (decoded once, one uint8 tensor on the
device) or *streaming* (decoded when asked for). Batches are augmented as a whole on the device, and every random choice
is a function of (seed, epoch) or (seed, step), never of what ran before.

Images leave Pillow as uint8 squares of side S with 1 channel (if every image is greyscale) or 3; transparency becomes
white, 16-bit values are divided by 257, EXIF orientation is applied.
"""

from __future__ import annotations

import hashlib
import io
import math
import operator
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
EXTENSIONS = frozenset(".jpg .jpeg .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2 .avif".split())
CROPS = ("auto", "pad", "resized", "none")
GREY_MODES = frozenset(["1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"])
ACCEPTED = (
    "accepted are 'digits', a folder of class folders (directly inside, or below train/ and optionally validation/ and "
    "test/), a folder with train-*.parquet, or the name of a Hugging Face hub dataset such as 'uoft-cs/cifar10'"
)
CHUNK = 64  # rows fetched and decoded together
HEADER_SAMPLE = 256  # images whose headers decide between 1 and 3 channels when reading all headers costs too much
STATISTICS_SAMPLE = 2048  # training images behind mean and std


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


def _open_source(source: Any) -> tuple[str, dict[str, Records]]:
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
        if len(rows) and not (isinstance(rows[0], Sequence) and len(rows[0]) == 2):
            raise DataError(f"row 0 of the {split} split is a {type(rows[0]).__name__}, not a pair (image, label)")
    names = tuple(map(str, getattr(source[0], "classes", ())))
    return {split: Records(split, rows, 0, 1, names) for split, rows in given.items()}


def _class_folders(root: Path) -> dict[str, Records]:
    roots = {"train": root}
    inside = _folders(root)
    # A folder named "train" full of images is a class (of vehicles, say); one that holds folders is a split.
    if all(f.name in SPLIT_NAMES for f in inside) or any(f.name == "train" and _folders(f) for f in inside):
        named = [f for f in inside if f.name in SPLIT_NAMES]
        roots = {SPLIT_NAMES[f.name]: f for f in named} or roots
        if len(named) > len(roots):
            raise DataError(f"{root}: two of {', '.join(f.name for f in named)} name the same split")
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
        if split := SPLIT_NAMES.get(re.split(r"[-_.]", file.name)[0]):
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
        raise DataError(f"{len(labels)} columns, not 1, may hold labels (ClassLabel, else integer or string), "
                        f"and none of them is called 'label'; {listing}")
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


def _random_boxes(uniform: np.ndarray, aspect: float) -> np.ndarray:
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
    left, top, right, bottom = _random_boxes(uniform, width / height).tolist()
    return left * width, top * height, min(right * width, width), min(bottom * height, height)


def _decode(records: Records, rows: Tensor, channels: int, size: int, uniform: Tensor | None = None) -> Tensor:
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


# ------------------------------------------------------------------ splits and data


@dataclass(frozen=True, eq=False)
class Split(ABC):
    """Images and labels of one split; `labels` is int64 (n,) on the CPU."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def images(self, indices: Tensor, uniform: Tensor | None = None) -> Tensor:
        """uint8 (len(indices), C, S, S); `uniform` (len(indices), 4) in [0, 1) asks for random resized crops."""

    @abstractmethod
    def subset(self, indices: Tensor) -> Split:
        """The images at `indices`, in that order."""


@dataclass(frozen=True, eq=False)
class ResidentSplit(Split):
    """Decoded once, on the training device; `images` returns tensors on that device."""

    pixels: Tensor  # uint8 (n, C, S, S)

    def images(self, indices: Tensor, uniform: Tensor | None = None) -> Tensor:
        pixels = self.pixels[indices.to(self.pixels.device)]
        if uniform is None:
            return pixels
        left, top, right, bottom = torch.from_numpy(_random_boxes(uniform.T.numpy(), 1)).to(pixels.device)
        zero = torch.zeros_like(left)
        affine = torch.stack([right - left, zero, right + left - 1, zero, bottom - top, bottom + top - 1], dim=1)
        grid = F.affine_grid(affine.view(-1, 2, 3), list(pixels.shape), align_corners=False)
        crops = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
        return crops.round().to(torch.uint8)  # bilinear: never outside 0..255

    def subset(self, indices: Tensor) -> ResidentSplit:
        return ResidentSplit(self.labels[indices], self.pixels[indices.to(self.pixels.device)])


@dataclass(frozen=True, eq=False)
class StreamingSplit(Split):
    """Decoded at every access; `images` returns tensors on the CPU."""

    records: Records
    rows: Tensor  # (n,) which rows of `records`
    channels: int
    size: int

    def images(self, indices: Tensor, uniform: Tensor | None = None) -> Tensor:
        return _decode(self.records, self.rows[indices], self.channels, self.size, uniform)

    def subset(self, indices: Tensor) -> StreamingSplit:
        return StreamingSplit(self.labels[indices], self.records, self.rows[indices], self.channels, self.size)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set ready for training; see `load_data`."""

    name: str
    classes: tuple[str, ...]
    channels: int  # 1 or 3
    size: int  # side S of every image, in pixels
    mean: tuple[float, ...]  # per channel, of training pixels in [0, 1]
    std: tuple[float, ...]
    flip: bool  # mirroring an image keeps its label
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    device: torch.device


def native_size(source: str | tuple) -> int:
    """Median shorter side, in pixels, of a sample of 64 training images (headers only).

    Raises `DataError` if the source cannot be opened."""
    records = _open_source(source)[1]["train"]
    return int(np.median(list(records.map(_spread(len(records), 64), lambda _, image: min(image.size)))))


def load_data(
    source: str | tuple[Dataset, Dataset | None, Dataset | None],
    *,
    size: int,
    seed: int = 0,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.2,
    flip: bool | None = None,
    device: torch.device | str = "cpu",
    resident_limit_bytes: int = 2 * 2**30,
    max_train: int | None = None,
) -> Data:
    """Open `source`, carve the splits it lacks out of its training images, and store all images as `size` x `size`.

    `source` is "digits", a folder (of class folders or parquet files), a hub name, or (train, validation or None,
    test or None) of map-style Python datasets of (PIL image, array or tensor; integer label), whose `__getitem__`
    must be deterministic. Splits that exist are kept; carved ones are stratified and depend on `seed` alone.
    Fractions count the training images of the source. `max_train` then keeps a stratified part of the training split.
    `flip` defaults to true except for digits. A split whose labels are all negative hides them and counts as missing.

    Raises `DataError` naming the file, class, column or split that is wrong."""
    if size < 2 or min(validation_fraction, test_fraction) <= 0 or validation_fraction + test_fraction >= 1:
        given = f"size={size}, validation_fraction={validation_fraction}, test_fraction={test_fraction}"
        raise DataError(f"size must be 2 or more and both fractions above 0 with a sum below 1, not {given}")
    device = torch.device(device)
    name, splits = _open_source(source)
    classes, labels = _classes(name, splits)
    missing = {"test": test_fraction, "validation": validation_fraction}
    rows = _carve(labels["train"], classes, {s: f for s, f in missing.items() if s not in labels}, seed)
    if max_train is not None:
        rows["train"] = rows["train"][_stratified(labels["train"][rows["train"]], classes, max_train, seed)]
    parts = {}  # split -> (records, their rows, labels)
    for split in ("train", "validation", "test"):
        origin = split if split in labels else "train"
        chosen = rows[split] if split in rows else torch.arange(len(labels[split]))
        parts[split] = (splits[origin], chosen, labels[origin][chosen])

    def colour(part: tuple, sample: int | None = None) -> bool:
        records, chosen, _ = part
        chosen = chosen if sample is None else chosen[_spread(len(chosen), sample)]
        return any(records.map(chosen, lambda _, image: image.mode not in GREY_MODES))

    pixels = sum(len(part[1]) for part in parts.values()) * size * size
    channels = 3 if colour(parts["train"], HEADER_SAMPLE) else 1
    if channels == 1 and pixels <= resident_limit_bytes and any(colour(part) for part in parts.values()):
        channels = 3
    stored: dict[str, Split] = {}
    for split, (records, chosen, part_labels) in parts.items():
        if pixels * channels <= resident_limit_bytes:
            stored[split] = ResidentSplit(part_labels, _decode(records, chosen, channels, size).to(device))
        else:
            stored[split] = StreamingSplit(part_labels, records, chosen, channels, size)
    mean, std = _statistics(stored["train"], seed)
    flip = name != "digits" if flip is None else flip
    fingerprint = _fingerprint(classes, stored)
    return Data(name, classes, channels, size, mean, std, flip, **stored, fingerprint=fingerprint, device=device)


def _classes(name: str, splits: dict[str, Records]) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Names of the classes that occur, and per split the labels as int64 indices of them."""
    found, inverse = {}, {}
    for split, records in splits.items():
        values, inverse[split] = np.unique(np.array(records.labels()), return_inverse=True)
        values = values.tolist()
        if split != "train" and not isinstance(values[-1], str) and values[-1] < 0:
            continue  # the hub's way to withhold the labels of a test split
        names = records.names
        if names and not (0 <= values[0] and values[-1] < len(names)):
            span = f"labels of the {split} split go from {values[0]} to {values[-1]}"
            raise DataError(f"{name}: {span}, but there are {len(names)} class names: {', '.join(names)}")
        found[split] = [names[value] if names else str(value) for value in values]
    for split, texts in found.items():
        if extra := [text for text in texts if text not in found["train"]]:
            raise DataError(f"{name}: class {extra[0]!r} occurs in the {split} split but not in the train split")
    classes = tuple(found["train"])  # in the order of their numbers or, if they are strings, of the alphabet
    if len(classes) < 2:
        raise DataError(f"{name}: at least 2 classes are needed, but there is only {classes[0]!r}")
    position = {text: i for i, text in enumerate(classes)}
    return classes, {s: torch.tensor([position[text] for text in found[s]])[inverse[s]] for s in found}


def _ranks(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Place of each image in a random order of its class (n,), and number of images per class (k,)."""
    shuffled = torch.randperm(len(labels), generator=generator)
    grouped = shuffled[labels[shuffled].argsort(stable=True)]  # by class, at random inside a class
    counts = labels.bincount()
    ranks = torch.empty_like(labels)
    ranks[grouped] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[grouped]]
    return ranks, counts


def _carve(labels: Tensor, classes: tuple[str, ...], fractions: dict[str, float], seed: int) -> dict[str, Tensor]:
    """Rows of the splits named in `fractions` and of what they leave for "train", each in the order of the source."""
    ranks, counts = _ranks(labels, _generator("split", seed))
    taken, rows = torch.zeros_like(counts), {}
    for split, fraction in fractions.items():
        more = taken + (counts * fraction).round().long().clamp(min=1)
        rows[split] = ((ranks >= taken[labels]) & (ranks < more[labels])).nonzero().flatten()
        taken = more
    if (counts <= taken).any():
        worst = (counts - taken).argmin()
        wanted = " and ".join(f"{fraction:.0%} for {split}" for split, fraction in fractions.items())
        raise DataError(f"class {classes[worst]!r} has too few training images, {counts[worst]}: {wanted} leaves none")
    return rows | {"train": (ranks >= taken[labels]).nonzero().flatten()}


def _stratified(labels: Tensor, classes: tuple[str, ...], keep: int, seed: int) -> Tensor:
    """Sorted indices of `keep` images in proportion to the classes, at least one of each; fewer are part of more."""
    if keep < len(classes):
        raise DataError(f"max_train={keep} is less than the number of classes, {len(classes)}")
    ranks, counts = _ranks(labels, _generator("max_train", seed))
    return (ranks / counts[labels]).argsort(stable=True)[:keep].sort().values


def _statistics(split: Split, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of pixels in [0, 1]; integer sums, so equal on every device."""
    sample = torch.randperm(len(split), generator=_generator("statistics", seed))[:STATISTICS_SAMPLE].sort().values
    total = squares = count = 0
    for indices in sample.split(CHUNK):
        pixels = split.images(indices).long()
        total, squares = total + pixels.sum((0, 2, 3)).cpu(), squares + pixels.square().sum((0, 2, 3)).cpu()
        count += pixels[:, 0].numel()
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).clamp(min=1).sqrt()  # min: blank images must not divide by zero
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _fingerprint(classes: tuple[str, ...], splits: dict[str, Split]) -> str:
    digest = hashlib.sha256("\0".join(classes).encode())
    for split in splits.values():
        digest.update(split.labels.numpy().tobytes())
        digest.update(split.images(_spread(len(split), 64)).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _spread(total: int, count: int) -> Tensor:
    """At most `count` evenly spaced indices below `total`."""
    count = min(total, count)
    return torch.arange(count) * total // max(1, count)


def _generator(purpose: str, *key: int) -> torch.Generator:
    """CPU generator that depends on its arguments only; on the CPU, so that every device sees the same numbers."""
    digest = hashlib.sha256(" ".join(map(str, (purpose, *key))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


# ------------------------------------------------------------------ batches


def steps_per_epoch(data: Data, batch_size: int) -> int:
    """Full batches in the training split; 1 if it is smaller than a batch."""
    return max(1, len(data.train) // batch_size)


@dataclass(frozen=True)
class _Pixels:
    """Map-style dataset of whole batches, (step, indices) to uint8 (N, C, S, S): the part that loader workers do."""

    split: Split
    seed: int
    resized: bool

    def __getitem__(self, batch: tuple[int, list[int] | Tensor]) -> Tensor:
        step, indices = batch
        uniform = torch.rand(len(indices), 4, generator=_generator("crop", self.seed, step)) if self.resized else None
        return self.split.images(torch.as_tensor(indices), uniform)


def train_batches(
    data: Data, batch_size: int, *, seed: int, start_step: int = 0, crop: str = "auto", workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless augmented batches from step `start_step` on: float32 (N, C, S, S) normalised, int64 (N,), on the device.

    The batch of a step is a function of (data, batch_size, seed, step) alone, so a resumed run sees what an
    uninterrupted one sees. N = min(batch_size, training images); the incomplete batch at the end of an epoch is
    dropped. `crop`: "pad" shifts by up to S / 8 with reflection, "resized" cuts out 1/4 to all of the area, "none";
    "auto" is "pad" for resident and "resized" for streaming data. `workers` processes decode streaming data.

    Raises `DataError` for an argument that is out of range, and for a broken image of streaming data."""
    if crop not in CROPS:
        raise DataError(f"crop must be one of {', '.join(CROPS)}, not {crop!r}")
    if batch_size < 1 or start_step < 0:
        raise DataError(f"batch_size must be at least 1 and start_step at least 0, not {batch_size} and {start_step}")
    resident = isinstance(data.train, ResidentSplit)
    crop = crop if crop != "auto" else "pad" if resident else "resized"
    plan = partial(_plan, data, min(batch_size, len(data.train)), seed, start_step)
    pixels = _Pixels(data.train, seed, crop == "resized")
    if resident:
        fetched = map(pixels.__getitem__, plan())
    else:
        fetched = DataLoader(
            pixels,
            batch_size=None,
            sampler=((step, indices.tolist()) for step, indices in plan()),  # tensors would need shared memory
            num_workers=workers,
            pin_memory=data.device.type == "cuda",
            generator=torch.Generator(),  # otherwise a loader advances the global one
        )
    return _augmented(data, zip(plan(), fetched), seed, max(1, data.size // 8) if crop == "pad" else 0)


def _plan(data: Data, batch_size: int, seed: int, step: int) -> Iterator[tuple[int, Tensor]]:
    steps, n = steps_per_epoch(data, batch_size), len(data.train)
    while True:
        order = torch.randperm(n, generator=_generator("order", seed, step // steps))
        for i in range(step % steps, steps):
            yield step, order[i * batch_size : (i + 1) * batch_size]
            step += 1


def _augmented(data: Data, batches: Iterator, seed: int, pad: int) -> Iterator[tuple[Tensor, Tensor]]:
    labels, normalise = data.train.labels.to(data.device), _normaliser(data)
    for (step, indices), pixels in batches:
        pixels = pixels.to(data.device, non_blocking=True)
        if pad or data.flip:
            pixels = _shift_flip(pixels, pad, data.flip, _generator("shift", seed, step))
        yield normalise(pixels), labels[indices.to(data.device)]


def _shift_flip(pixels: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Reflect-pad by `pad`, crop at random, mirror half of the images: one gather of rows, one of columns."""
    n, channels, side, _ = pixels.shape
    shift = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator).to(pixels.device, non_blocking=True)
    mirror = (torch.rand(n, 1, generator=generator) < (0.5 if flip else 0)).to(pixels.device, non_blocking=True)
    source = (torch.arange(side, device=pixels.device) + shift).abs()
    rows, columns = (side - 1) - ((side - 1) - source).abs()  # (N, S) each: reflected at both borders
    columns = torch.where(mirror, columns.flip(1), columns)
    plane = torch.arange(n * channels, device=pixels.device).view(n, channels, 1)
    pixels = pixels.reshape(n * channels * side, side)[(plane * side + rows[:, None]).flatten()]
    return pixels.view(n, channels, side, side).gather(3, columns[:, None, None].expand(n, channels, side, side))


def _normaliser(data: Data) -> Callable[[Tensor], Tensor]:
    """uint8 (N, C, S, S) to float32 with zero mean and unit standard deviation per channel."""
    mean = torch.tensor(data.mean, device=data.device).view(1, -1, 1, 1)
    std = torch.tensor(data.std, device=data.device).view(1, -1, 1, 1)
    scale, offset = 1 / (255 * std), mean / std
    return lambda pixels: pixels.to(data.device).to(torch.float32).mul_(scale).sub_(offset)  # moved while small


def eval_batches(data: Data, split: Split, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of `split` in order, normalised and not augmented: float32 (N, C, S, S), int64 (N,), on the device."""
    normalise = _normaliser(data)
    for indices in torch.arange(len(split)).split(batch_size):
        yield normalise(split.images(indices)), split.labels[indices].to(data.device)


def calibration_batches(data: Data, images: int, batch_size: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """At most `images` random training images, not augmented, for batch-norm statistics.

    Batches differ by one image at most and hold 2 or more, since a variance needs two values."""
    if images < 2 or batch_size < 2:
        raise DataError(f"calibration needs at least 2 images and a batch size of 2, not {images} and {batch_size}")
    chosen = torch.randperm(len(data.train), generator=_generator("calibration", seed))[:images]
    normalise = _normaliser(data)
    parts = chosen.tensor_split(max(1, min(math.ceil(len(chosen) / batch_size), len(chosen) // 2)))
    return [(normalise(data.train.images(part)), data.train.labels[part].to(data.device)) for part in parts]


def resize(images: Tensor, resolution: int) -> Tensor:
    """Float (N, C, S, S) to (N, C, resolution, resolution), bilinear with antialiasing; the same tensor if equal."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
