"""What a network answers to labelled images, and what follows from it: accuracies, a confusion matrix, mistakes.

A run keeps the answers of every chosen network to its test images, in `answers/`: a class and a probability for each
image. Every figure follows from them, so that the images are looked at once. A confusion matrix of 1,000 classes would
be larger, and would not tell which images are wrong.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from oncequant.arch import Arch
from oncequant.files import FileError
from oncequant.tensor_files import read_tensors, write_tensors

Metric = Literal["top1", "balanced"]
METRICS: dict[str, str] = {"top1": "top-1", "balanced": "balanced accuracy"}  # with their names, for people
FORMAT = "oncequant answers 1"
MOST_CLASSES = 1_000_000  # a damaged file must not ask for the memory of more


@dataclass(frozen=True)
class Accuracy:
    """How often a network is right, in [0, 1]."""

    top1: float
    """Share of the images with the right answer."""
    balanced: float
    """Mean over classes of this share: of the classes that have images."""

    def by(self, metric: Metric) -> float:
        """The one that is asked for."""
        return self.top1 if metric == "top1" else self.balanced


@dataclass(frozen=True, eq=False)
class Answers:
    """Of one network to labelled images, one row for each, in the order of their split. Raises ValueError without
    images, or for classes that there are not."""

    labels: Tensor
    """True classes (n,), int64."""
    predicted: Tensor
    """Most probable classes (n,), int64."""
    probability: Tensor
    """What the network gives to them (n,), float32 in [0, 1]."""
    classes: int

    def __post_init__(self) -> None:
        """Refuse what cannot be answers to images."""
        shapes = {tuple(column.shape) for column in (self.labels, self.predicted, self.probability)}
        if len(shapes) != 1 or len(shapes.pop()) != 1:
            raise ValueError("labels, predicted and probability must have one value for each image")
        if not 1 <= self.classes <= MOST_CLASSES:
            raise ValueError(f"classes {self.classes}: there can be 1 to {MOST_CLASSES:,}")
        if not len(self.labels):
            raise ValueError("there are no images to measure on")
        for name in ("labels", "predicted"):
            low, high = getattr(self, name).aminmax()
            if low < 0 or high >= self.classes:
                raise ValueError(f"{name} must be classes from 0 to {self.classes - 1}, not {int(low)} to {int(high)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> Accuracy:
        """Both accuracies."""
        images, right = self._counts()
        there = images > 0
        return Accuracy(float(right.sum()) / len(self), float(np.mean(right[there] / images[there])))

    @property
    def recall(self) -> list[float | None]:
        """By class, the share of its images that are found; None without images."""
        images, right = self._counts()
        return _shares(right, images)

    @property
    def precision(self) -> list[float | None]:
        """By class, the share of the images taken for it that are of it; None if none is."""
        return _shares(self._counts()[1], np.bincount(self.predicted.numpy(), minlength=self.classes))

    @property
    def images(self) -> list[int]:
        """Images of each class."""
        return self._counts()[0].tolist()

    def pairs(self) -> list[tuple[int, int, int]]:
        """The confusion matrix without its zeros: (true class, answer, how many images), in this order."""
        cells, counts = (self.labels * self.classes + self.predicted).unique(return_counts=True)
        return [(*divmod(cell, self.classes), count) for cell, count in zip(cells.tolist(), counts.tolist())]

    def surest_mistakes(self, most: int) -> list[int]:
        """At most so many images with a wrong answer, those with the highest probability of it first."""
        wrong = (self.labels != self.predicted).nonzero().flatten()
        order = self.probability[wrong].argsort(descending=True, stable=True)
        return wrong[order][:most].tolist()

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each class the images, and those with the right answer."""
        labels, right = self.labels.numpy(), (self.labels == self.predicted).numpy()
        return np.bincount(labels, minlength=self.classes), np.bincount(labels[right], minlength=self.classes)


Rows = tuple[Tensor, Tensor, Tensor]
"""Labels, most probable classes and their probabilities of a batch, (N,) each."""


def answered(logits: Tensor, labels: Tensor) -> Rows:
    """What logits (N, classes) say of images with `labels` (N,), on their device."""
    predicted = logits.argmax(1)
    return labels, predicted, logits.softmax(1).gather(1, predicted[:, None])[:, 0]


def answers_of(batches: Sequence[Rows], classes: int) -> Answers:
    """The answers to all batches, on the CPU. Raises ValueError without any."""
    if not batches:
        raise ValueError("there are no images to measure on")
    labels, predicted, probability = (torch.cat(column).cpu() for column in zip(*batches))
    return Answers(labels, predicted, probability, classes)


def joined(parts: Sequence[Answers]) -> Answers:
    """Answers of one network to several groups of images, one after the other."""
    return answers_of([(part.labels, part.predicted, part.probability) for part in parts], parts[0].classes)


def _shares(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist())]


# -- in a run folder


def answers_path(run_dir: Path, stage: str, arch: Arch) -> Path:
    """The file of a network's answers to the test images; `arch` in brief. Names of members change, this does not."""
    digest = hashlib.sha256(arch.to_json().encode()).hexdigest()[:12]
    return run_dir / "answers" / f"{stage.replace('/', '-')}-{digest}.safetensors"


def write_answers(path: Path, answers: Answers, images: str) -> None:
    """Keep answers to the images with this `Data.test_digest`. Raises FileError."""
    columns = {"labels": answers.labels.int(), "predicted": answers.predicted.int(), "probability": answers.probability}
    write_tensors(path, columns, {"format": FORMAT, "classes": str(answers.classes), "images": images})


def read_answers(path: Path, images: str | None = None) -> Answers | None:
    """Answers that were kept; None if there are none, or if they are to images with another digest. Raises
    FileError for a damaged file."""
    if not path.exists():
        return None
    columns, about = read_tensors(path)
    if about.get("format") != FORMAT:
        raise FileError(f"{path} is no file of answers: its format is {about.get('format')!r}")
    if images is not None and about.get("images") != images:
        return None
    try:
        rows = columns["labels"].long(), columns["predicted"].long(), columns["probability"].float()
        return Answers(*rows, int(about["classes"]))
    except (KeyError, ValueError) as error:
        raise FileError(f"{path} is not what a network answered: {error}; delete it to measure again") from error
