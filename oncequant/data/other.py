"""Labelled images of another place, to measure a network of a run on them: same classes, or some of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oncequant.data.names import ACCEPTED, AUTO
from oncequant.data.rows import Records
from oncequant.data.sources import open_source
from oncequant.data.splits import Data, Split, StreamingSplit
from oncequant.images import DataError
from oncequant.progress import console


@dataclass(frozen=True, eq=False)
class OtherImages:
    """Images to measure on, with the labels of a run."""

    name: str
    like: Data
    """Of the run: classes, size, channels, normalisation, device."""
    parts: Mapping[str, Split]
    """By the split that they come from; labels are indices of the run's classes."""

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    @property
    def classes(self) -> tuple[str, ...]:
        """Those that occur, in the order of the run's."""
        there = torch.cat([part.labels for part in self.parts.values()]).unique().tolist()
        return tuple(self.like.classes[label] for label in there)

    def about(self) -> dict[str, Any]:
        """What they are, for a result."""
        there, known = len(self.classes), len(self.like.classes)
        found: dict[str, Any] = {"data": self.name, "splits": {split: len(part) for split, part in self.parts.items()}}
        found["classes"] = list(self.classes)
        if there < known:
            found["note"] = f"{there} of the run's {known} classes are there; the network may answer any of the {known}"
        return found


def other_images(source: Any, like: Data, split: str | None = None) -> OtherImages:
    """All labelled images of a source (see `load_data`), or those of one of its splits, as networks trained on `like`
    take them. Classes are matched by name, by number where there are no names. `source` may be loaded images too.

    Raises DataError naming the classes that `like` does not have, the split that is not there, or what cannot be read.
    """
    if isinstance(source, Data):
        name, found = source.name, _of_loaded(source, like)
    else:
        name, found = _of_source(source, like)
    if split is not None and split not in found:
        raise DataError(f"{name}: there is no {split} split with labels, only {', '.join(found)}")
    return OtherImages(name, like, found if split is None else {split: found[split]})


def _of_loaded(data: Data, like: Data) -> dict[str, Split]:
    if (data.size, data.channels) != (like.size, like.channels):
        there, own = (f"{d.size} px with {d.channels} channels" for d in (data, like))
        raise DataError(
            f"{data.name}: these images have {there}, the run's {own}; give the data sets or the folder itself"
        )
    found: dict[str, Split] = {}
    for name in ("train", "validation", "test"):
        part: Split = getattr(data, name)
        found[name] = replace(part, labels=_matched(data.name, data.classes, part.labels, like))
    return found


def _of_source(source: Any, like: Data) -> tuple[str, dict[str, Split]]:
    opened = open_source(source, like.loading.reading if like.loading else AUTO, needs_train=False)
    for note in opened.notes:
        console.print(note, soft_wrap=True)
    found: dict[str, Split] = {}
    for name, records in opened.splits.items():
        classes, labels = _labels(opened.name, name, records)
        if classes is None:
            console.print(f"{opened.name}: the {name} split hides its labels and is left out", soft_wrap=True)
            continue
        every = torch.arange(len(records))
        labels = _matched(opened.name, classes, labels, like)
        found[name] = StreamingSplit(labels, records, every, like.channels, like.size)
    if not found:
        raise DataError(f"{opened.name} has no labelled images; {ACCEPTED}")
    return opened.name, found


def _labels(source: str, split: str, records: Records) -> tuple[tuple[str, ...] | None, Tensor]:
    """Names of the classes of a split, and its labels (n,) as indices of them; no names where labels are hidden."""
    values, inverse = np.unique(np.array(records.labels()), return_inverse=True)
    numbers = torch.from_numpy(inverse.reshape(-1))
    if not isinstance(values.tolist()[-1], str) and values[-1] < 0:
        return None, numbers
    if records.names and not (0 <= values[0] and values[-1] < len(records.names)):
        span = f"labels of the {split} split go from {values[0]} to {values[-1]}"
        raise DataError(f"{source}: {span}, but there are {len(records.names)} class names")
    return tuple(records.names[v] if records.names else str(v) for v in values.tolist()), numbers


def _matched(source: str, classes: tuple[str, ...], labels: Tensor, like: Data) -> Tensor:
    """Labels as indices of the run's classes."""
    place = {name: i for i, name in enumerate(like.classes)}
    used = [classes[i] for i in labels.unique().tolist()]
    if unknown := [name for name in used if name not in place]:
        raise DataError(f"{source}: the run does not know {_listed(unknown)}; its classes are {_listed(like.classes)}")
    return torch.tensor([place.get(name, -1) for name in classes])[labels]


def _listed(names: Any) -> str:
    shown = ", ".join(map(repr, list(names)[:10]))
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
