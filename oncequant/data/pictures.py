"""What is known of every picture of a data set: where it belongs, the hash of its content, its size and kind.

A run folder keeps it as images.npz, so that every command can tell which pictures have changed since; the cache keeps
it beside the decoded pixels.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oncequant.files import FileError, write_atomically
from oncequant.images import DataError

SPLITS = ("train", "validation", "test")
ROW = np.dtype(
    [
        ("split", "i1"),  # index in SPLITS; -1: not used, as by max_train
        ("label", "i4"),
        ("hash", "V16"),  # blake2b of the encoded bytes, of the pixels where there are none; zeros: not looked at
        ("stamp", "i8", 2),  # changes when the content may have: bytes and time of a file, -1 and the table it is in
        ("width", "i4"),
        ("height", "i4"),
        ("mode", "S8"),  # Pillow's
        ("low", "f4"),  # least and largest value of 16-bit and float pictures, else NaN
        ("high", "f4"),
        ("whole", "?"),  # decoded without an error
    ]
)
OF_RUN = ("split", "label", "hash")  # what a run folder keeps: the rest follows from the content, or from the disk
FIRST = 3  # names in a message


@dataclass(frozen=True, eq=False)
class Pictures:
    """One row for each picture of the splits that a data set is made of."""

    classes: tuple[str, ...]
    names: list[str]
    """Paths below the source, or "row 3 of the train split"."""
    rows: np.ndarray
    """ROW (n,); those of a split in its order."""

    def digests(self) -> dict[str, str]:
        """Of each split: labels and contents, in order."""
        found = {}
        for number, split in enumerate(SPLITS):
            rows = self.rows[self.rows["split"] == number]
            digest = hashlib.blake2b(rows["label"].tobytes() + rows["hash"].tobytes(), digest_size=16)
            found[split] = digest.hexdigest()
        return found


class UnreadablePictures(DataError):
    """Pictures that cannot be decoded; `found` tells them from the others. The message names the first."""

    def __init__(self, message: str, found: Pictures | None = None):  # one argument is enough to be unpickled
        super().__init__(message)
        self.found = found


def write_pictures(path: Path, pictures: Pictures) -> None:
    """Keep what a run is made of: equal pictures give equal bytes. Raises FileError."""
    columns = {name: pictures.rows[name] for name in OF_RUN}
    write_atomically(path, packed(pictures.names, columns, classes=text_array(pictures.classes)))


def read_pictures(path: Path) -> Pictures | None:
    """What `write_pictures` kept; None if there is no file, as in older run folders. Raises FileError."""
    if not path.exists():
        return None
    try:
        names, rows, rest = unpacked(path)
        return Pictures(tuple(texts_of(rest["classes"])), names, rows)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(f"{path} is damaged: {error}") from error


def packed(names: Sequence[str], columns: dict[str, np.ndarray], **more: np.ndarray) -> bytes:
    """An .npz file of names, columns of ROW and other arrays. Its format has a checksum of every array."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, names=text_array(names), **columns, **more)
    return file.getvalue()


def unpacked(path: Path) -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    """Names, rows and other arrays of `packed`. Raises OSError, ValueError, KeyError, BadZipFile, zlib.error."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    names = texts_of(arrays.pop("names"))
    rows = blank(len(names))
    for name in ROW.names or ():
        if name in arrays:
            rows[name] = arrays.pop(name)
    return names, rows, arrays


def blank(count: int) -> np.ndarray:
    """Rows of which nothing is known."""
    rows = np.zeros(count, ROW)
    rows["split"], rows["low"], rows["high"], rows["stamp"] = -1, np.nan, np.nan, -1
    return rows


def text_array(texts: Sequence[str]) -> np.ndarray:
    """Texts without NUL, as file names are, in uint8."""
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), np.uint8)


def texts_of(array: np.ndarray) -> list[str]:
    """Inverse of `text_array`, for one text or more."""
    return array.tobytes().decode("utf-8", "surrogateescape").split("\0")


def some(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:FIRST]) + (", ..." if len(names) > FIRST else "")


@dataclass(frozen=True)
class Changes:
    """How pictures differ from those that a run was made with."""

    by_split: dict[str, list[str]]
    """Of every split that differs, for people: how many are gone, new, changed or cannot be read, and the first."""
    moved: bool
    """Pictures that are still there belong to other splits now."""
    classes: str
    """How the class names differ, or ""."""

    @property
    def of_test_alone(self) -> bool:
        """Whether training and validation pictures are what they were."""
        return set(self.by_split) <= {"test"} and not self.moved and not self.classes

    def __str__(self) -> str:
        parts = [f"{split} split: {', '.join(texts)}" for split, texts in self.by_split.items()]
        if self.moved:
            parts.append("splits are held out of the training images, so that all pictures would be dealt out anew")
        return "; ".join([*([self.classes] if self.classes else []), *parts])


def changes(before: Pictures, now: Pictures) -> Changes:
    """Compare by name."""
    old = dict(zip(before.names, before.rows))
    new = dict(zip(now.names, now.rows))
    kinds: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    moved = False

    def note(row: np.void, kind: str, name: str) -> None:
        split = SPLITS[max(0, row["split"])]  # one that was not used lies among the training pictures
        kinds[split].setdefault(kind, []).append(name)

    for name, row in old.items():
        if name not in new:
            note(row, "gone", name)
    for name, row in new.items():
        if name not in old:
            note(row, "new", name)
            continue
        past = old[name]
        moved |= bool(past["split"] != row["split"])
        if row["split"] >= 0 and not row["whole"]:
            note(past, "cannot be read", name)
        elif past["split"] >= 0 and row["split"] >= 0:
            if past["hash"] != row["hash"]:
                note(past, "changed", name)
            elif before.classes == now.classes and past["label"] != row["label"]:
                note(past, "with another class", name)
    lost = [name for name in before.classes if name not in now.classes]
    added = [name for name in now.classes if name not in before.classes]
    texts = [f"{kind} class {some(names)}" for kind, names in (("no", lost), ("new", added)) if names]
    by_split = {
        split: [f"{len(names)} {kind} ({some(names)})" for kind, names in found.items()]
        for split, found in kinds.items()
        if found
    }
    return Changes(by_split, moved, ", ".join(texts))
