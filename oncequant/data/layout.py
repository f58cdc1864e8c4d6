"""Which folders are splits and which are classes.

Names decide, and what the folders hold must agree. Where it does not, the user is asked: nothing is guessed in silence.
A folder is a split if its name tells so (`names.splits_of`) and either another split stands beside it, or it holds
folders of pictures and all its siblings are splits, too. A class may so be called "train", where it holds pictures.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Literal

from oncequant.data.names import ACCEPTED, SPLITS, TABLES, is_neutral, is_unlabelled, listed, splits_of, words_of
from oncequant.images import DataError, is_image, is_litter


@dataclass(frozen=True)
class Layout:
    """The class folders of each split."""

    classes: dict[str, dict[str, Path]]
    """Split to class to its folder."""
    places: tuple[Path, ...]
    """Folders whose folders are classes; a new one there would be another."""
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder, and what it holds."""

    path: Path
    below: tuple[Folder, ...]
    """Folders directly inside, sorted, without hidden ones and litter."""
    litter: tuple[Path, ...]
    """Those left out."""
    pictures: bool
    """Whether pictures lie directly in it."""
    tables: tuple[Path, ...]
    """Tables directly in it, by their names."""

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def filled(self) -> bool:
        """Whether it holds pictures at any depth."""
        return self.pictures or any(folder.filled for folder in self.below)

    @cached_property
    def inside(self) -> tuple[Folder, ...]:
        """Folders directly inside that hold pictures, at any depth."""
        return tuple(folder for folder in self.below if folder.filled)

    @property
    def shows_pictures(self) -> bool:
        """Whether pictures lie in it or in the folders directly inside, as in one of classes or of a class."""
        return self.pictures or any(folder.pictures for folder in self.below)


def find_layout(
    root: Folder, layout: Literal["auto", "classes", "splits"] = "auto", needs_train: bool = True
) -> Layout:
    """Splits and classes of a folder. Raises DataError where what it holds leaves a choice, or is none of both."""
    notes: list[str] = []
    top = unwrapped(root, stop_at_splits=layout != "classes")
    if top is not root:
        notes.append(f"{root.path}: read is {top.path.relative_to(root.path)}, its only folder with pictures")
    if layout == "splits" or (layout == "auto" and _are_splits(top)):
        splits = _named(top.inside)
        if not splits and (within := _within_classes(top)):
            return _classes_with_splits(top, within, notes)
        if "train" not in splits.values() and (needs_train or not splits):
            found = listed(folder.name for folder in splits) or "other folders"
            raise DataError(
                f"{top.path}: there is no train split, only {found}; give the folder "
                "whose class folders are to be learned"
            )
        return _splits(top, splits, notes, check=layout == "auto")
    if layout == "auto" and (within := _within_classes(top)):
        return _classes_with_splits(top, within, notes)
    if layout == "auto":
        _check_classes(top)
    return Layout({"train": _classes(top, notes)}, (top.path,), tuple(notes))


# -- what a folder holds


def survey(path: Path) -> Folder:
    """What a folder holds, at any depth. Raises DataError naming a folder that cannot be read."""
    real = os.path.realpath(path)
    return _survey(path, real, frozenset(map(os.path.realpath, path.absolute().parents)))


def _survey(path: Path, real: str, above: frozenset[str]) -> Folder:
    below: list[tuple[Path, str]] = []
    litter: list[tuple[Path, str]] = []
    tables: list[Path] = []
    pictures = False
    above = above | {real}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir():
                    place = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                    if place not in above:
                        (litter if is_litter(entry.name) else below).append((path / entry.name, place))
                elif entry.name.startswith("."):
                    continue
                elif is_image(entry.name):
                    pictures = True
                elif os.path.splitext(entry.name)[1].lower() in TABLES:
                    tables.append(path / entry.name)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
    inner = tuple(_survey(folder, place, above) for folder, place in sorted(below))
    return Folder(path, inner, tuple(sorted(folder for folder, _ in litter)), pictures, tuple(sorted(tables)))


def unwrapped(folder: Folder, stop_at_splits: bool = False, stop: Container[str] = ()) -> Folder:
    """The folder that the only folder of pictures in a folder leads to, while that one holds folders of pictures."""
    while not folder.pictures and len(folder.inside) == 1:
        inner = folder.inside[0]
        if not inner.inside or inner.name in stop or (stop_at_splits and splits_of([inner.name])):
            break
        folder = inner
    return folder


# -- splits


def _named(folders: Sequence[Folder]) -> dict[Folder, str]:
    """The folders whose names tell a split, and which. Raises DataError if two name the same."""
    splits = splits_of(folder.name for folder in folders)
    named = {folder: splits[folder.name] for folder in folders if folder.name in splits}
    for one, other in combinations(named, 2):
        if named[one] == named[other]:
            raise DataError(
                f"{one.path.parent}: {one.name} and {other.name} name the same split, {named[one]}; give one of them "
                "another name or place, or say --layout classes if they are classes"
            )
    return named


def _are_splits(root: Folder) -> bool:
    """Whether the folders in one are splits, at least some of them. Raises DataError where only the user can know."""
    names = splits_of(folder.name for folder in root.inside)
    named = [folder for folder in root.inside if folder.name in names]
    others = [folder for folder in root.inside if folder.name not in names]
    if len(set(names.values())) > 1:
        return True
    if not any(folder.inside for folder in named):
        return False  # pictures of a class with such a name
    if "train" not in names.values():
        return not others
    doubtful = [folder.name for folder in others if folder.shows_pictures and not is_unlabelled(folder.name)]
    if doubtful:
        train = listed(folder.name for folder in named)
        raise DataError(
            f"{root.path}: {train} looks like a split, but {listed(doubtful)} beside it like classes, or splits of "
            f"unknown names; say --layout splits to leave these out, --layout classes to learn {train} as a class, or "
            f"give {named[0].path}"
        )
    return True


def _splits(top: Folder, splits: dict[Folder, str], notes: list[str], check: bool) -> Layout:
    """The classes of each split; those whose pictures have no labels are left out."""
    names = listed(folder.name for folder in splits)
    _note_litter(top, notes)
    if left := [folder.name for folder in top.below if folder not in splits]:
        are = "are its splits" if len(splits) > 1 else "is its only split"
        notes.append(f"{top.path}: {listed(left)} left out, since {names} {are}")
    classes: dict[str, dict[str, Path]] = {}
    places = []
    for folder, split in sorted(splits.items(), key=lambda item: SPLITS.index(item[1])):
        known = classes.get("train", {})
        place = unwrapped(folder, stop=known)
        inner = place.inside
        if split != "train" and not any(f.name in known for f in inner) and len(inner) < 2:
            notes.append(f"{folder.path} left out: its images are in no class folders, so they have no labels")
            continue
        if not inner and place.pictures:
            raise DataError(
                f"{place.path}: holds no class folders, but images; put these in class folders, or a table of their "
                f"labels beside them, or say --layout classes if {names} are classes; {ACCEPTED}"
            )
        if check:
            _check_classes(place)
        classes[split] = _classes(place, notes)
        places.append(place.path)
        if place is not folder:
            notes.append(f"{folder.path}: read is {place.path.relative_to(folder.path)}, its only folder with pictures")
        if split != "train" and len(classes[split]) < 2 <= len(known):
            notes.append(f"{folder.path}: of {len(known)} classes only {listed(classes[split])} has pictures there")
    return Layout(classes, tuple(places), tuple(notes))


def _within_classes(top: Folder) -> dict[Folder, dict[Folder, str]] | None:
    """The splits inside each class folder, if every one holds splits and nothing else."""
    named = {folder: splits_of(inner.name for inner in folder.inside) for folder in top.inside}
    if len(named) < 2 or len({split for splits in named.values() for split in splits.values()}) < 2:
        return None
    if any(folder.pictures or not splits or len(splits) < len(folder.inside) for folder, splits in named.items()):
        return None
    return {folder: _named(folder.inside) for folder in named}


def _classes_with_splits(top: Folder, within: dict[Folder, dict[Folder, str]], notes: list[str]) -> Layout:
    _note_litter(top, notes)
    classes: dict[str, dict[str, Path]] = {}
    for folder, splits in within.items():
        for inner, split in splits.items():
            classes.setdefault(split, {})[folder.name] = inner.path
    notes.append(f"{top.path}: its class folders hold the splits, {', '.join(s for s in SPLITS if s in classes)}")
    return Layout({split: classes[split] for split in SPLITS if split in classes}, (top.path,), tuple(notes))


# -- classes


def _classes(place: Folder, notes: list[str]) -> dict[str, Path]:
    """The class folders in a folder. Raises DataError if there are none."""
    _note_litter(place, notes)
    if not place.inside:
        raise DataError(f"{place.path}: holds no class folders with images and no table of images; {ACCEPTED}")
    if empty := [folder.name for folder in place.below if not folder.filled]:
        notes.append(f"{place.path}: {listed(empty)} left out, since no images are there")
    return {folder.name: folder.path for folder in place.inside}


def _note_litter(folder: Folder, notes: list[str]) -> None:
    """Note folders that are no classes for what they are called, of hidden ones those with pictures."""
    shown = [path.name for path in folder.litter if not path.name.startswith(".") or survey(path).shows_pictures]
    if shown:
        notes.append(f"{folder.path}: {listed(shown)} left out, since programs make such folders")


def _check_classes(root: Folder) -> None:
    """Raise DataError if folders look like splits, folds or parts, by what they hold or are called."""
    inside = {folder: {inner.name for inner in unwrapped(folder).inside} for folder in root.inside}
    inside = {folder: {name for name in names if not is_neutral(name)} for folder, names in inside.items()}
    siblings = {folder.name for folder in inside}
    way_out = "say --layout classes if these are classes"
    for folder, names in inside.items():
        if len(common := names & (siblings - {folder.name})) > 1:
            raise DataError(
                f"{root.path}: {folder.name} holds folders with the names of its siblings ({listed(sorted(common))}), "
                f"as a split beside classes would; move it away, or {way_out}"
            )
        if len(set(splits_of(names).values())) > 1:
            raise DataError(
                f"{folder.path}: holds splits ({listed(sorted(splits_of(names)))}), but not every folder beside it "
                f"does, or other folders, too; give one folder that holds splits, or {way_out}"
            )
    known = splits_of(siblings)
    if len(siblings) > 1 and known and all(name in known or is_neutral(name) for name in siblings):
        raise DataError(f"{root.path}: the names {listed(sorted(siblings))} tell splits, not classes; {way_out}")
    if are_parts(siblings) and all(map(is_neutral, siblings)):
        raise DataError(f"{root.path}: {listed(sorted(siblings))} look like parts of one folder; {way_out}")
    for one, other in combinations([folder for folder in inside if inside[folder]], 2):
        common = inside[one] & inside[other]
        if len(common) > 1 or (common and inside[one] == inside[other]):
            raise DataError(
                f"{root.path}: {one.name} and {other.name} hold folders of the same names "
                f"({listed(sorted(common))}), so they look like splits or folds, not classes; give one of them, "
                f"{one.path}, name them train, validation and test, or {way_out}"
            )


def are_parts(names: Collection[str]) -> bool:
    """Whether folders are called like numbered parts of one: "images_001" and "images_002", but not "class 1"."""
    words = {tuple(words_of(name)) for name in names}
    return len(names) > 1 and len(words) == 1 and not words & {(), ("class",), ("label",), ("category",)}
