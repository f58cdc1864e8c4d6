"""What a data set is, in lines for people: its splits, classes, sizes and colours, and what may not be meant so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from oncequant.data.pictures import SPLITS, Pictures, some
from oncequant.data.scan import is_colour

LISTED = 10  # classes, with their counts
IMBALANCE = 10  # of the largest class to the smallest
FEW = 10  # training images of a class
DEEP = 2**14  # 16-bit pictures whose values all lie below have fewer bits


def summary(pictures: Pictures, size: int, channels: int) -> list[str]:
    """Lines on the pictures that are used, which are scaled to `size` px and `channels`; the last ones are notes."""
    chosen = np.flatnonzero(pictures.rows["split"] >= 0)
    rows, names = pictures.rows[chosen], [pictures.names[i] for i in chosen.tolist()]
    splits = (f"{(rows['split'] == number).sum():,} {split}" for number, split in enumerate(SPLITS))
    counts = np.bincount(rows["label"][rows["split"] == 0], minlength=len(pictures.classes))
    notes = [*_repeated(rows, names), _imbalance(counts, pictures.classes)]
    notes += [_deep(rows, names), _large(rows, names), _converted(rows, names, channels)]
    lines = [f"images: {', '.join(splits)}", _classes(counts, pictures.classes), _sizes(rows, size, channels)]
    return [*lines, *(f"note: {note}" for note in notes if note)]


def _classes(counts: np.ndarray, classes: tuple[str, ...]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(zip(classes, counts))[:LISTED])
    if (more := len(classes) - LISTED) > 0:
        least, most = counts.argmin(), counts.argmax()
        shown += f" and {more:,} more; smallest {classes[least]} {counts[least]:,}"
        shown += f", largest {classes[most]} {counts[most]:,}"
    return f"{len(classes):,} classes, with their training images: {shown}"


def _sizes(rows: np.ndarray, size: int, channels: int) -> str:
    width, height = rows["width"], rows["height"]
    span = f"{width.min()} x {height.min()} px"
    if (width != width[0]).any() or (height != height[0]).any():
        span = f"{width.min()} to {width.max()} px wide and {height.min()} to {height.max()} px high"
        span += f", shorter side {np.median(np.minimum(width, height)):.0f} px in the median"
    modes = sorted(zip(*np.unique(rows["mode"], return_counts=True)), key=lambda found: -found[1])
    kinds = ", ".join(f"{count:,} {mode.decode()}" for mode, count in modes)
    return f"pictures: {span}; {kinds}; used as {size} x {size} px in {'colour' if channels == 3 else 'grey'}"


def _repeated(rows: np.ndarray, names: Sequence[str]) -> list[str]:
    """Equal contents in two splits or two classes."""
    _, group, counts = np.unique(rows["hash"], return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    first = np.full(len(counts), len(rows))
    np.minimum.at(first, group, np.arange(len(rows)))  # of each content
    notes, is_harmless = [], first[group] != np.arange(len(rows))
    for field, where, harm in (
        ("split", "another split", "figures of validation and test are too good; remove the copies"),
        ("label", "another class", "one of the labels is wrong"),
    ):
        other = np.flatnonzero(rows[field] != rows[field][first[group]])
        is_harmless[other] = False
        if len(other):
            pairs = [f"{names[first[group[i]]]} = {names[i]}" for i in other[:4].tolist()]
            has = "picture is" if len(other) == 1 else "pictures are"
            notes.append(f"{len(other):,} {has} in {where} too ({some(pairs)}): {harm}")
    if is_harmless.any():
        copies = "picture is a copy" if is_harmless.sum() == 1 else "pictures are copies"
        notes.append(f"{is_harmless.sum():,} {copies} of another one of the same split and class")
    return notes


def _imbalance(counts: np.ndarray, classes: tuple[str, ...]) -> str:
    least, most = counts.argmin(), counts.argmax()
    if counts[most] > IMBALANCE * counts[least]:
        return (
            f"class {classes[most]} has {counts[most]:,} training images, {classes[least]} has {counts[least]:,}: a "
            "network can have a high accuracy and never answer the small ones"
        )
    if counts[least] >= FEW:
        return ""
    small = [f"{name} {count}" for name, count in zip(classes, counts) if count < FEW]
    return f"fewer than {FEW} training images in {len(small):,} of the classes ({some(small)})"


def _deep(rows: np.ndarray, names: Sequence[str]) -> str:
    """16-bit pictures that do not use their 16 bits, or 32-bit ones that use more."""
    deep = np.flatnonzero(np.isfinite(rows["high"]) & (rows["mode"] != b"F"))
    if not len(deep):
        return ""
    low, high = rows["low"][deep].min(), rows["high"][deep].max()
    if high > 65535 or low < 0:
        return (
            f"values from {low:g} to {high:g} in {len(deep):,} pictures ({_first(deep, names)}) are cut at 0 and 65535"
        )
    if high >= DEEP:
        return ""
    bits, levels = int(high).bit_length(), int(high / 257) + 1
    return (
        f"the values of {len(deep):,} pictures with 16 bits ({_first(deep, names)}) go from {low:g} to {high:g} only, "
        f"{bits} bits: divided by 257, {levels} levels remain; multiply them by {2 ** (16 - bits)}, or save 8 bits"
    )


def _large(rows: np.ndarray, names: Sequence[str]) -> str:
    pixels = rows["width"].astype(np.int64) * rows["height"]
    large = np.flatnonzero(pixels > (Image.MAX_IMAGE_PIXELS or np.inf))
    if not len(large):
        return ""
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
    return (
        f"{len(large):,} large pictures of up to {pixels.max() / 1e6:.0f} megapixels ({_first(large, names)}): slow to "
        f"decode; more than {most} megapixels are refused"
    )


def _converted(rows: np.ndarray, names: Sequence[str], channels: int) -> str:
    """Colour that is lost: sets that are streamed are judged by a sample."""
    coloured = np.flatnonzero(is_colour(rows))
    if channels == 3 or not len(coloured):
        return ""
    return (
        f"{len(coloured):,} pictures in colour ({_first(coloured, names)}) are used in grey, as nearly all others are"
    )


def _first(indices: np.ndarray, names: Sequence[str]) -> str:
    return some([names[i] for i in indices[:4].tolist()])
