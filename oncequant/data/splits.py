"""A source's images as a training, a validation and a test split.

Splits that a source lacks are carved out of its training rows. A split is then *resident* (decoded once, one uint8
tensor on the device) or *streaming* (decoded when asked for).
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from oncequant.data.cache import Squares
from oncequant.data.loading import Loading
from oncequant.data.names import AUTO, Reading
from oncequant.data.pictures import SPLITS, Pictures
from oncequant.data.rows import CHUNK, Records, decode
from oncequant.data.scan import Part, Scan, scan
from oncequant.data.sources import Source, open_source
from oncequant.distributed import from_main
from oncequant.files import user_path
from oncequant.images import DataError, random_boxes
from oncequant.progress import console

HEADER_SAMPLE = 256  # images whose headers decide between 1 and 3 channels when reading all headers costs too much
STATISTICS_SAMPLE = 2048  # training images behind mean and std
FRACTIONS = {"validation": 0.15, "test": 0.2}  # of the training images, held out where a source has no such split
MOST_VALIDATION = 5000  # images, of those: more choose hardly better, and training needs them
SECONDS_OF_PATIENCE = 300  # of processes that wait for the main one


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
        left, top, right, bottom = torch.from_numpy(random_boxes(uniform.T.numpy(), 1)).to(pixels.device)
        zero = torch.zeros_like(left)
        affine = torch.stack([right - left, zero, right + left - 1, zero, bottom - top, bottom + top - 1], dim=1)
        grid = F.affine_grid(affine.view(-1, 2, 3), list(pixels.shape), align_corners=False)
        crops = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
        return crops.round().to(torch.uint8)  # bilinear: never outside 0..255

    def subset(self, indices: Tensor) -> ResidentSplit:
        return ResidentSplit(self.labels[indices], self.pixels[indices.to(self.pixels.device)])


@dataclass(frozen=True, eq=False)
class StreamingSplit(Split):
    """Decoded at every access, but squares that the cache has; `images` returns tensors on the CPU."""

    records: Records
    rows: Tensor  # (n,) which rows of `records`
    channels: int
    size: int
    squares: Squares | None = None  # decoded ones in the cache
    places: np.ndarray | None = None  # int64 (n,), of each image in `squares`

    def images(self, indices: Tensor, uniform: Tensor | None = None) -> Tensor:
        if self.squares is None or self.places is None or uniform is not None:
            return decode(self.records, self.rows[indices], self.channels, self.size, uniform)
        pixels, whole = self.squares.read(self.places[indices.numpy()])
        if not whole.all():
            damaged = torch.from_numpy(~whole)
            pixels[~whole] = decode(self.records, self.rows[indices[damaged]], self.channels, self.size)
        return torch.from_numpy(pixels)

    def subset(self, indices: Tensor) -> StreamingSplit:
        places = None if self.places is None else self.places[indices.numpy()]
        return replace(self, labels=self.labels[indices], rows=self.rows[indices], places=places)


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
    pictures: Pictures | None = None  # what is known of every image; `load_data` finds it
    loading: Loading | None = None  # how `load_data` made it

    def __post_init__(self):
        if self.device.type == "cuda":
            # cuDNN would round the operands of convolutions to 10 bits, by default and in what is called float32 here
            torch.backends.cudnn.allow_tf32 = False

    @property
    def test_digest(self) -> str:
        """Tells the test images and their labels from others: by all contents where these are known, else a sample."""
        contents = self.pictures.digests()["test"] if self.pictures else self.fingerprint
        return hashlib.sha256(contents.encode() + self.test.labels.numpy().tobytes()).hexdigest()[:16]

    def raw(self, normalised: Tensor) -> Tensor:  # (N, C, H, W)
        """Pixels 0 to 255, of normalised images."""
        mean, std = (normalised.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (normalised * std + mean) * 255

    def on(self, device: torch.device) -> Data:
        """The same data set for training on another device."""

        def moved(split: Split) -> Split:
            return replace(split, pixels=split.pixels.to(device)) if isinstance(split, ResidentSplit) else split

        train, validation, test = map(moved, (self.train, self.validation, self.test))
        return replace(self, device=device, train=train, validation=validation, test=test)


def native_size(source: str | tuple | Source, reading: Reading = AUTO) -> int:
    """Median shorter side, in pixels, of 64 training images (headers only); of a source, or one that is open.

    Raises `DataError` if the source cannot be opened."""
    records = open_source(source, reading).splits["train"]
    return int(np.median(list(records.map(_spread(len(records), 64), lambda _, image: min(image.size)))))


def load_data(
    source: str | tuple[Dataset, Dataset | None, Dataset | None] | Source,
    *,
    size: int,
    seed: int = 0,
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
    flip: bool | None = None,
    device: torch.device | str = "cpu",
    resident_limit_bytes: int = 2 * 2**30,
    max_train: int | None = None,
    refuse_fractions: Collection[str] = ("validation", "test"),
    reading: Reading = AUTO,
    cache: bool = True,
) -> Data:
    """Open `source`, carve the splits it lacks out of its training images, and store all images as `size` x `size`.

    `source` is "digits", a folder (of class folders, of pictures and a table, of parquet files), a table, a hub name,
    (train, validation or None, test or None) of map-style Python datasets of (PIL image, array or tensor; integer
    label), whose `__getitem__` must be deterministic, or one of these that `open_source` has opened; `reading` tells
    how, where it leaves a choice.
    Splits that exist are kept; carved ones are stratified and depend on `seed` alone. Fractions count the training
    images of the source, by default FRACTIONS, for validation at most MOST_VALIDATION images; one for a split that
    exists is refused, or if not in `refuse_fractions` ignored. `max_train` then keeps a stratified part of the training
    split.
    `flip` defaults to true except for digits. A split whose labels are all negative hides them and counts as missing.

    Every image is decoded once, whether it stays in memory or not, so that a broken one is found here. With `cache`
    the decoded squares are kept on disk for the next time (`oncequant.data.cache`), those of Python datasets are not.

    Raises `DataError` naming the file, class, column or split that is wrong."""
    asked = {"validation": validation_fraction, "test": test_fraction}
    fractions = {s: FRACTIONS[s] if fraction is None else fraction for s, fraction in asked.items()}
    if size < 2 or not min(fractions.values()) > 0 or not sum(fractions.values()) < 1:
        given = ", ".join([f"size={size}", *(f"{s}_fraction={fraction:g}" for s, fraction in fractions.items())])
        raise DataError(f"size must be 2 or more and both fractions above 0 with a sum below 1, not {given}")
    device, asked_flip = torch.device(device), flip
    opened = open_source(source, reading)
    name, splits = opened.name, opened.splits
    for note in opened.notes:
        console.print(note, soft_wrap=True)
    classes, labels = _classes(name, splits)
    if validation_fraction is None:
        fractions["validation"] = min(FRACTIONS["validation"], MOST_VALIDATION / len(labels["train"]))
    for split, fraction in asked.items():
        if fraction is not None and split in labels and split in refuse_fractions:
            raise DataError(f"{split}_fraction {fraction:g}: {name} has a {split} split; leave the option out")
    rows = _carve(labels["train"], classes, {s: fractions[s] for s in ("test", "validation") if s not in labels}, seed)
    if max_train is not None:
        rows["train"] = rows["train"][_stratified(labels["train"][rows["train"]], classes, max_train, seed)]
    parts = []
    for number, split in enumerate(SPLITS):
        origin = split if split in labels else "train"
        chosen = rows[split] if split in rows else torch.arange(len(labels[split]))
        parts.append(Part(number, splits[origin], chosen, labels[origin][chosen]))
    used = torch.zeros(len(labels["train"]), dtype=torch.bool)
    for part in parts:
        if part.records is splits["train"]:
            used[part.rows] = True
    left = (~used).nonzero().flatten()
    unused = [Part(-1, splits["train"], left, labels["train"][left])]
    sample = _spread(len(parts[0].rows), HEADER_SAMPLE)
    found = _from_main(scan([*parts, *unused], classes, opened.given, size, resident_limit_bytes, sample, cache))
    channels, first = found.channels, 0
    stored: dict[str, Split] = {}
    for split, part in zip(SPLITS, parts):
        end = first + len(part.rows)
        streamed = StreamingSplit(
            part.labels, part.records, part.rows, channels, size, found.squares, found.places[first:end]
        )
        if sum(len(part.rows) for part in parts) * size * size * channels > resident_limit_bytes:
            stored[split] = streamed
        elif found.pixels is not None:
            stored[split] = ResidentSplit(part.labels, torch.from_numpy(found.pixels[first:end]).to(device))
        else:  # of another process, which has put it into the cache
            stored[split] = ResidentSplit(part.labels, streamed.images(torch.arange(len(part.rows))).to(device))
        first = end
    mean, std = _statistics(stored["train"], seed)
    flip = name != "digits" if flip is None else flip
    fingerprint = _fingerprint(classes, stored)
    place = place_of(opened.given) if opened.given else None
    parts_of = fractions["validation"], fractions["test"]
    how = Loading(place, seed, *parts_of, asked_flip, max_train, resident_limit_bytes, reading)
    three = stored["train"], stored["validation"], stored["test"]
    return Data(name, classes, channels, size, mean, std, flip, *three, fingerprint, device, found.pictures, how)


def place_of(source: str | os.PathLike[str]) -> str:
    """How a source is named so that it is found from anywhere: the absolute path of one on this machine."""
    text = os.fspath(source)
    path = user_path(text)
    return str(path.resolve()) if text != "digits" and path.exists() else text


def _from_main(work: Generator[None, None, Scan]) -> Scan:
    """The main process's scan, in every process; others get no pixels. They hear of it now and then, since they would
    not wait for hours."""
    pixels = None

    def some_minutes() -> Scan | None:
        nonlocal pixels
        until = time.monotonic() + SECONDS_OF_PATIENCE
        try:
            while time.monotonic() < until:
                next(work)
        except StopIteration as done:
            pixels = done.value.pixels
            return replace(done.value, pixels=None)
        return None

    while (found := from_main(some_minutes)) is None:
        pass
    return replace(found, pixels=pixels)


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
    ranks, counts = _ranks(labels, generator_of("split", seed))
    taken, rows = torch.zeros_like(counts), {}
    for split, fraction in fractions.items():
        more = taken + (counts * fraction).round().long().clamp(min=1)
        rows[split] = ((ranks >= taken[labels]) & (ranks < more[labels])).nonzero().flatten()
        taken = more
    if (counts <= taken).any():
        worst = (counts - taken).argmin()
        wanted = " and ".join(f"{fraction:.0%} for {split}" for split, fraction in fractions.items())
        raise DataError(
            f"class {classes[worst]!r} has too few training images, {counts[worst]}: {wanted} leaves none; add "
            "some, or take the class away"
        )
    return rows | {"train": (ranks >= taken[labels]).nonzero().flatten()}


def _stratified(labels: Tensor, classes: tuple[str, ...], keep: int, seed: int) -> Tensor:
    """Sorted indices of `keep` images in proportion to the classes, at least one of each; fewer are part of more."""
    if keep < len(classes):
        raise DataError(f"max_train={keep} is less than the number of classes, {len(classes)}")
    ranks, counts = _ranks(labels, generator_of("max_train", seed))
    return (ranks / counts[labels]).argsort(stable=True)[:keep].sort().values


def _statistics(split: Split, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of pixels in [0, 1]; integer sums, so equal on every device."""
    sample = torch.randperm(len(split), generator=generator_of("statistics", seed))[:STATISTICS_SAMPLE].sort().values
    found = []  # counts of each value, by channel: (C, 256)
    for indices in sample.split(CHUNK):
        channels = split.images(indices).cpu().numpy().swapaxes(0, 1)
        found.append([np.bincount(channel.ravel(), minlength=256) for channel in channels])
    counts, values = torch.from_numpy(np.sum(found, axis=0)), torch.arange(256)
    total, squares, count = (counts * values).sum(1), (counts * values**2).sum(1), counts[0].sum()
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


def generator_of(purpose: str, *key: int) -> torch.Generator:
    """CPU generator that depends on its arguments only; on the CPU, so that every device sees the same numbers."""
    digest = hashlib.sha256(" ".join(map(str, (purpose, *key))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
