"""The one look at every picture: hash, size, kind, and the decoded square.

What the cache knows of pictures that have not changed is taken from there. All pictures are gone through, also after
one that cannot be decoded, so that the user learns of all of them at once.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oncequant.data.cache import (
    Entry,
    PixelWriter,
    Squares,
    cache_folder,
    no_room,
    read_entry,
    table_path,
    write_entry,
)
from oncequant.data.pictures import Pictures, UnreadablePictures, blank, some
from oncequant.data.rows import Records
from oncequant.images import GREY_MODES, content_of, open_image, square, value_range, whole_image
from oncequant.progress import console, track

BLOCK = 1024  # pictures whose squares are taken from the cache together
SECONDS_TO_BAR = 1  # what is done sooner needs no progress bar
OF_CONTENT = ("hash", "width", "height", "mode", "low", "high", "whole")
GREY = np.array(sorted(mode.encode() for mode in GREY_MODES))


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of a source that make up a split, or that none uses."""

    split: int  # index in SPLITS, -1 for none
    records: Records
    rows: Tensor  # (n,)
    labels: Tensor  # int64 (n,)


@dataclass(frozen=True, eq=False)
class Scan:
    """What is known of all pictures; those of a part follow each other."""

    pictures: Pictures
    channels: int
    pixels: np.ndarray | None  # uint8 (n, C, S, S), of all that are used; None if they are not to be in memory
    squares: Squares | None  # the same in the cache
    places: np.ndarray  # int64 (n,), of each in `squares`


def hash_of(*parts: bytes) -> np.void:
    """Hash of a content."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return np.void(found.digest())


def look_at(raw: Any, row: np.void, size: int, channels: int | None, before: np.void | None) -> np.ndarray | None:
    """The square of a picture, in its own colours if `channels` is None, and in `row` what it is. None if its content
    is that of the row `before`. Raises what Pillow's decoders raise."""
    content = content_of(raw)
    if content is not None:
        row["hash"] = hash_of(content)
        if before is not None and row["hash"] == before["hash"]:
            for name in OF_CONTENT:
                row[name] = before[name]
            return None
    with whole_image(raw if content is None else content) as image:
        row["mode"], row["width"], row["height"] = image.mode.encode(), *image.size
        if content is None:
            row["hash"] = hash_of(repr((image.mode, image.size)).encode(), image.tobytes())
        if (found := value_range(raw, image)) is not None:
            row["low"], row["high"] = found
        pixels = square(image, channels or (1 if image.mode in GREY_MODES else 3), size)
    row["whole"] = True
    return pixels


def listed(parts: Sequence[Part], source: str) -> tuple[list[str], np.ndarray]:
    """Names and rows (n,) of all pictures, with what is known before they are looked at."""
    root = Path(source).expanduser()
    prefix = os.path.join(root.parent if root.is_file() else root, "")
    names: list[str] = []
    tables = []
    for part in parts:
        found, stamps = part.records.stamps(part.rows)
        names.extend(name.removeprefix(prefix) for name in found)
        rows = blank(len(found))
        rows["split"], rows["label"], rows["stamp"] = part.split, part.labels.numpy(), stamps
        tables.append(rows)
    return names, np.concatenate(tables)


def is_colour(rows: np.ndarray) -> np.ndarray:
    """Of pictures whose modes are known, bool (n,)."""
    return (rows["mode"] != b"") & ~np.isin(rows["mode"], GREY)


def has_colour(part: Part, chosen: Tensor) -> bool:
    """Whether a picture of a part is in colour by its header; what has none is found later."""

    def act(position: int, row: int, raw: Any) -> bool:
        try:
            with open_image(raw) as image:
                return image.mode not in GREY_MODES
        except Exception:  # of Pillow's decoders, any kind
            return False

    return any(part.records.in_threads(part.rows[chosen], act))


@dataclass(frozen=True, eq=False)
class Work:
    """A scan that is going on: `rows`, `failures` and `colours` are filled in."""

    parts: Sequence[Part]  # those that are used
    rows: np.ndarray  # ROW (n,), of all their pictures
    size: int
    channels: int
    is_open: bool  # grey so far, but one picture in colour makes it a set in colour
    entry: Entry | None
    positions: np.ndarray  # int64 (n,), of each picture in the entry, -1 for none
    stored: Squares | None  # of the entry, if they have this size and these channels
    wanted: bool  # squares are, not only what is known of the pictures
    failures: dict[int, str]
    colours: dict[int, np.ndarray]  # squares (3, S, S) of a set that is grey so far

    def looks(self, part: Part, indices: np.ndarray, first: int, again: bool = False) -> Iterator[np.ndarray | None]:
        """Squares of some pictures of a part, which begins at `first`; None of one whose square is stored or not
        wanted. With `again` the store is not believed."""
        use_entry = self.entry is not None and not again and (self.stored is not None or not self.wanted)

        def act(position: int, number: int, raw: Any) -> np.ndarray | None:
            i = indices[position]
            row, before = self.rows[i : i + 1][0], None  # a view
            if use_entry and self.entry and self.positions[i] >= 0 and self.entry.rows["whole"][self.positions[i]]:
                before = self.entry.rows[self.positions[i]]
            try:
                found = look_at(raw, row, self.size, None if self.is_open else self.channels, before)
            except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, ...
                self.failures[int(i)] = part.records.failure(number, raw, error)
                row["whole"] = False
                return np.zeros((self.channels, self.size, self.size), np.uint8)
            if found is not None and len(found) > self.channels:
                self.colours[int(i)] = found
                return found[: self.channels]
            return found

        return part.records.in_threads(part.rows[torch.from_numpy(indices - first)], act)

    def blocks(self, todo: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """(indices, squares, how many are new) of all pictures in their order, BLOCK together; those of `todo` (n,)
        are looked at. Squares are empty if they are not wanted."""
        first = 0
        for part in self.parts:
            end = first + len(part.rows)
            results = self.looks(part, first + todo[first:end].nonzero()[0], first)
            for begin in range(first, end, BLOCK):
                block = np.arange(begin, min(begin + BLOCK, end))
                found = {i: next(results) for i in block[todo[block]]}
                new = {i: square for i, square in found.items() if square is not None}
                squares = np.empty((len(block) * self.wanted, self.channels, self.size, self.size), np.uint8)
                if self.wanted and self.stored and len(new) < len(block):
                    old = block[[i not in new for i in block]] if new else block
                    kept, whole = self.stored.read(self.positions[old])
                    squares[old - begin if new else slice(None)] = kept
                    damaged = old[~whole]
                    for i, square in zip(damaged, self.looks(part, damaged, first, again=True)):
                        assert square is not None  # what is stored is not believed
                        new[i] = square
                if self.wanted:
                    for i, square in new.items():
                        squares[i - begin] = square
                yield block, squares, len(new)
            first = end


def scan(
    parts: Sequence[Part], classes: tuple[str, ...], source: str, size: int, limit: int, sample: Tensor, cached: bool
) -> Generator[None, None, Scan]:
    """Look at all pictures of the parts, the training split first, the unused ones (split -1) last; `yield` now and
    then. `source` names them for the cache. Pixels stay in memory up to `limit` bytes.

    A set has 3 channels if one of the `sample` of training pictures is in colour, or, if it fits into memory, any.
    Raises UnreadablePictures."""
    names, rows = listed(parts, source)
    used = [part for part in parts if part.split >= 0]
    n, began = sum(len(part.rows) for part in used), time.time_ns()
    place = os.path.expanduser(source)
    is_cached = cached and all(isinstance(part.records.image, str) for part in parts)
    path = table_path(os.path.realpath(place) if os.path.exists(place) else source, size) if is_cached else None
    entry = read_entry(path) if path else None
    positions, good = np.full(n, -1), np.zeros(n, bool)
    if entry:
        positions = entry.find(names[:n])
        good = entry.is_good(rows["stamp"][:n], positions)
        for name in OF_CONTENT:
            rows[name][:n][good] = entry.rows[name][positions[good]]

    grey_bytes, known = n * size * size, is_colour(rows[:n])
    channels = 3 if (known[sample].any() if good.all() else has_colour(parts[0], sample)) else 1
    if channels == 1 and grey_bytes <= limit and known.any():
        channels = 3
    stored = entry.squares if entry and entry.squares and entry.squares.shape[1:] == (channels, size, size) else None
    pixels, writer, problem = None, None, ""
    if grey_bytes * channels <= limit:
        pixels = np.empty((n, channels, size, size), np.uint8)
    elif path and not (good.all() and stored) and not (problem := no_room(path, grey_bytes * channels)):
        writer = PixelWriter(path, (n, channels, size, size))
    wanted = pixels is not None or writer is not None
    is_open = channels == 1 and grey_bytes <= limit
    work = Work(used, rows[:n], size, channels, is_open, entry, positions, stored, wanted, {}, {})
    todo = ~good | (wanted and stored is None)

    fresh = 0
    with ExitStack() as stack:
        stack.callback(lambda: writer.discard() if writer else None)
        update, began_s = None, time.monotonic()
        for block, squares, new in work.blocks(todo):
            fresh += new
            if pixels is not None:
                pixels[block[0] : block[-1] + 1] = squares
            if writer:
                writer.add(squares)
            if update is None and todo.any() and time.monotonic() - began_s > SECONDS_TO_BAR:
                update = stack.enter_context(track("read images", n, int(block[0])))
            if update:
                update(int(block[-1]) + 1, {})
            yield
        squares_now = writer.squares() if writer else None
        problem = problem or (writer.problem if writer else "")
    if work.colours and pixels is not None:
        pixels, channels = np.repeat(pixels, 3, axis=1), 3
        for i, square in work.colours.items():
            pixels[i] = square
    if path and pixels is not None and fresh and not (problem := no_room(path, pixels.nbytes)):
        writer = PixelWriter(path, pixels.shape)
        writer.add(pixels)
        squares_now, problem = writer.squares(), writer.problem
    in_cache, places = stored, positions
    if squares_now:
        in_cache, places = squares_now, np.arange(n)
    elif fresh:
        in_cache = None
    if path and (fresh or squares_now):
        problem = write_entry(path, names[:n], rows[:n], began, in_cache) or problem
    elif path and entry and not good.all():  # the same contents, in files with other times
        write_entry(path, entry.names, entry.updated(positions, rows[:n]), began, entry.squares)
    if problem:
        console.print(f"decoded images are not kept for later commands ({cache_folder()}): {problem}", soft_wrap=True)
    found = Pictures(classes, names, rows)
    if work.failures:
        raise UnreadablePictures(_told(work.failures, names), found)
    kept = pixels if pixels is not None and pixels.nbytes <= limit else None
    return Scan(found, channels, kept, in_cache, places)


def _told(failures: dict[int, str], names: list[str]) -> str:
    """One line on pictures that cannot be decoded."""
    first, *others = sorted(failures)
    if not others:
        return f"{failures[first]}; put a readable image in its place, or take it away"
    more = some([names[i] for i in others])
    return f"{failures[first]}; {len(others)} more cannot be used: {more}; mend them or take them away"
