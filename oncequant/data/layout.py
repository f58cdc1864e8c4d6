"""Which folders are splits and which are classes.

Names decide, and what the folders hold must agree. Where it does not, the user is asked: nothing is guessed in silence.
A folder is a split if its name tells so (`names.splits_of`) and either another split stands beside it, or it holds
folders of pictures and all its siblings are splits, too. A class may so be called "train", where it holds pictures.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from oncequant.data.images import DataError
from oncequant.data.names import (
    ACCEPTED,
    SPLITS,
    is_image,
    is_litter,
    is_neutral,
    is_unlabelled,
    listed,
    splits_of,
)


@dataclass(frozen=True)
class Layout:
    """The class folders of each split."""

    classes: dict[str, dict[str, Path]]
    """Split to class to its folder."""
    places: tuple[Path, ...]
    """Folders whose folders are classes; a new one there would be another."""
    notes: tuple[str, ...]


def find_layout(root: Path, layout: Literal["auto", "classes", "splits"] = "auto") -> Layout:
    """Splits and classes of a folder. Raises DataError where what it holds leaves a choice, or is none of both."""
    notes: list[str] = []
    top = unwrapped(root, stop_at_splits=layout != "classes")
    if top != root:
        notes.append(f"{root}: read is {top.relative_to(root)}, its only folder with pictures")
    folders = filled(top)
    if layout == "splits" or (layout == "auto" and _are_splits(top, folders)):
        splits = _named(folders)
        if not splits and (within := _within_classes(folders)):
            return _classes_with_splits(top, within, notes)
        if "train" not in splits.values():
            raise DataError(
                f"{top}: there is no train split, only {listed(folder.name for folder in splits) or 'other folders'}; "
                "give the folder whose class folders are to be learned"
            )
        return _splits(top, splits, notes, check=layout == "auto")
    if layout == "auto" and (within := _within_classes(folders)):
        return _classes_with_splits(top, within, notes)
    if layout == "auto":
        _check_classes(top, folders)
    return Layout({"train": _classes(top, notes)}, (top,), tuple(notes))


# -- what a folder holds


def look(folder: Path) -> tuple[list[Path], bool]:
    """Folders directly inside, sorted, without hidden ones and litter; and whether pictures lie there, too."""
    below, pictures = [], False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not is_litter(entry.name):
                        below.append(folder / entry.name)
                elif is_image(entry.name) and not entry.name.startswith("."):
                    pictures = True
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error
    return sorted(below), pictures


def filled(folder: Path) -> list[Path]:
    """Folders directly inside that hold pictures, at any depth."""
    return [below for below in look(folder)[0] if any(map(is_image, files_below(below)))]


def files_below(folder: Path) -> Iterator[str]:
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
        below[:] = sorted(name for name in below if not is_litter(name))
        yield from (os.path.join(parent, file) for file in files if not file.startswith("."))


def _shows_pictures(folder: Path) -> bool:
    """Whether pictures lie in a folder or in those directly inside, as in one of classes or of a class."""
    below, pictures = look(folder)
    return pictures or any(look(inner)[1] for inner in below)


def unwrapped(folder: Path, stop_at_splits: bool = False, stop: Container[str] = ()) -> Path:
    """The folder that the only folder of pictures in a folder leads to, while that one holds folders of pictures."""
    seen = set()
    while (place := os.path.realpath(folder)) not in seen:
        seen.add(place)
        inner = [] if look(folder)[1] else filled(folder)
        if len(inner) != 1 or inner[0].name in stop or not filled(inner[0]):
            return folder
        if stop_at_splits and splits_of([inner[0].name]):
            return folder
        folder = inner[0]
    return folder


# -- splits


def _named(folders: list[Path]) -> dict[Path, str]:
    """The folders whose names tell a split, and which. Raises DataError if two name the same."""
    splits = splits_of(folder.name for folder in folders)
    named = {folder: splits[folder.name] for folder in folders if folder.name in splits}
    for one, other in combinations(named, 2):
        if named[one] == named[other]:
            raise DataError(
                f"{one.parent}: {one.name} and {other.name} name the same split, {named[one]}; give one of them "
                "another name or place, or say --layout classes if they are classes"
            )
    return named


def _are_splits(root: Path, folders: list[Path]) -> bool:
    """Whether folders are splits, at least some of them. Raises DataError where only the user can know."""
    names = splits_of(folder.name for folder in folders)
    named = [folder for folder in folders if folder.name in names]
    others = [folder for folder in folders if folder.name not in names]
    if len(set(names.values())) > 1:
        return True
    if not any(filled(folder) for folder in named):
        return False  # pictures of a class with such a name
    if "train" not in names.values():
        return not others
    doubtful = [folder.name for folder in others if not is_unlabelled(folder.name) and _shows_pictures(folder)]
    if doubtful:
        train = listed(folder.name for folder in named)
        raise DataError(
            f"{root}: {train} looks like a split, but the names of {listed(doubtful)} beside it are no splits'; say "
            f"--layout splits to leave these out, --layout classes to learn {train} as a class, or give {root / train}"
        )
    return True


def _splits(top: Path, splits: dict[Path, str], notes: list[str], check: bool) -> Layout:
    """The classes of each split; those whose pictures have no labels are left out."""
    names = listed(folder.name for folder in splits)
    _note_litter(top, notes)
    if left := [folder.name for folder in look(top)[0] if folder not in splits]:
        notes.append(f"{top}: {listed(left)} left out, since {names} {'are its splits' if len(splits) > 1 else 'is'}")
    classes: dict[str, dict[str, Path]] = {}
    places = []
    for folder, split in sorted(splits.items(), key=lambda item: SPLITS.index(item[1])):
        known = classes.get("train", {})
        place = unwrapped(folder, stop=known)
        inner = filled(place)
        if split != "train" and not any(f.name in known for f in inner) and len(inner) < 2:
            notes.append(f"{folder} left out: its images are in no class folders, so they have no labels")
            continue
        if check:
            _check_classes(place, inner)
        classes[split] = _classes(place, notes)
        places.append(place)
        if place != folder:
            notes.append(f"{folder}: read is {place.relative_to(folder)}, its only folder with pictures")
        if split != "train" and len(classes[split]) < 2 <= len(known):
            notes.append(f"{folder}: of {len(known)} classes only {listed(classes[split])} has pictures there")
    return Layout(classes, tuple(places), tuple(notes))


def _within_classes(folders: list[Path]) -> dict[Path, dict[Path, str]] | None:
    """The splits inside each class folder, if every one holds splits and nothing else."""
    within = {folder: filled(folder) for folder in folders}
    named = {folder: splits_of(inner.name for inner in below) for folder, below in within.items()}
    if len(folders) < 2 or len({split for splits in named.values() for split in splits.values()}) < 2:
        return None
    if any(not below or len(named[folder]) < len(below) or look(folder)[1] for folder, below in within.items()):
        return None
    return {folder: _named(below) for folder, below in within.items()}


def _classes_with_splits(top: Path, within: dict[Path, dict[Path, str]], notes: list[str]) -> Layout:
    _note_litter(top, notes)
    classes: dict[str, dict[str, Path]] = {}
    for folder, splits in within.items():
        for inner, split in splits.items():
            classes.setdefault(split, {})[folder.name] = inner
    notes.append(f"{top}: its class folders hold the splits, {', '.join(s for s in SPLITS if s in classes)}")
    return Layout({split: classes[split] for split in SPLITS if split in classes}, (top,), tuple(notes))


# -- classes


def _classes(place: Path, notes: list[str]) -> dict[str, Path]:
    """The class folders in a folder. Raises DataError if there are none."""
    _note_litter(place, notes)
    below, full = look(place)[0], filled(place)
    if not full:
        raise DataError(f"{place}: holds no class folders with images and no table of images; {ACCEPTED}")
    if empty := [folder.name for folder in below if folder not in full]:
        notes.append(f"{place}: {listed(empty)} left out, since no images are there")
    return {folder.name: folder for folder in full}


def _note_litter(folder: Path, notes: list[str]) -> None:
    """Note folders that are no classes for what they are called, of hidden ones those with pictures."""
    with os.scandir(folder) as entries:
        litter = sorted(entry.name for entry in entries if is_litter(entry.name) and entry.is_dir())
    litter = [name for name in litter if not name.startswith(".") or _shows_pictures(folder / name)]
    if litter:
        notes.append(f"{folder}: {listed(litter)} left out, since programs make such folders")


def _check_classes(root: Path, folders: list[Path]) -> None:
    """Raise DataError if folders look like splits or folds by what they hold."""
    inside = {folder: {inner.name for inner in filled(unwrapped(folder))} for folder in folders}
    inside = {folder: {name for name in names if not is_neutral(name)} for folder, names in inside.items()}
    siblings = {folder.name for folder in folders}
    way_out = "say --layout classes if these are classes"
    for folder, names in inside.items():
        if len(common := names & (siblings - {folder.name})) > 1:
            raise DataError(
                f"{root}: {folder.name} holds folders with the names of its siblings ({listed(sorted(common))}), as a "
                f"split beside classes would; move it away, or {way_out}"
            )
        if len(set(splits_of(names).values())) > 1:
            raise DataError(
                f"{folder}: holds splits ({listed(sorted(splits_of(names)))}), but not every folder beside it does, or "
                f"other folders, too; give one folder that holds splits, or {way_out}"
            )
    known = splits_of(siblings)
    if len(folders) > 1 and known and all(name in known or is_neutral(name) for name in siblings):
        raise DataError(f"{root}: the names {listed(sorted(siblings))} tell splits, not classes; {way_out}")
    for one, other in combinations([folder for folder in folders if inside[folder]], 2):
        common = inside[one] & inside[other]
        if len(common) > 1 or (common and inside[one] == inside[other]):
            raise DataError(
                f"{root}: {one.name} and {other.name} hold folders of the same names ({listed(sorted(common))}), so "
                f"they look like splits or folds, not classes; give one of them, {one}, name them train, validation "
                f"and test, or {way_out}"
            )
