"""The records in the files of a run: their fields, and the one place where they are read, checked and written.

A file that ends in `.jsonl` has one record a line, a `.json` file a list of them. The names of the fields are those in
the file, in the same order. A field with a default may be missing there, and is left out when it has this value.
Accuracies are shares in [0, 1]; costs are those of `cost.COSTS` by name, without those that are younger than the file.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin

from oncequant.answers import METRICS, Metric
from oncequant.arch import Arch
from oncequant.files import FileError, append_line, read_json, read_lines, read_object, write_atomically, write_json


@dataclass(frozen=True)
class Command:
    """A line of `commands.jsonl`: a command that changed the run folder."""

    command: str
    """As it was typed, quoted for a shell."""
    version: str
    commit: str | None
    """Of the checkout that ran it; None for an installed package."""
    device: str
    date: str | None = None
    """Year-month-day, UTC; of older versions, others have it in `times.jsonl`."""


@dataclass(frozen=True)
class Metrics:
    """A line of `metrics.jsonl`: how far the training of a stage is."""

    stage: str
    step: int
    steps: int
    """Of the whole stage."""
    time_s: float | None = None
    """Seconds of training so far, without interruptions. In the file only of older versions: `read_metrics` takes it
    from `times.jsonl`."""
    values: dict[str, float] = field(default_factory=dict, metadata={"rest": True})
    """Everything else in the line, by name. `loss` and `lr`; `images` that training has seen, once for each subnet of a
    step (not in the first folders); at some steps what was measured on the validation images: `top1_largest`,
    `top1_smallest`, `top1`, `top1_likely`, `expected_COST`."""


@dataclass(frozen=True)
class Time:
    """A line of `times.jsonl`: when, or how long; what no two runs of the same commands have alike."""

    command: int | None = None
    """Number of the line in `commands.jsonl`, from 1; 0 is the making of the folder. Its date:"""
    date: str | None = None
    """Year-month-day, UTC."""
    stage: str | None = None
    """Of a line in `metrics.jsonl`, with its step. Its seconds:"""
    step: int | None = None
    time_s: float | None = None
    """See `Metrics`."""


@dataclass(frozen=True)
class Measurement:
    """A line of `measurements.jsonl`: an architecture whose accuracy a search has measured."""

    arch: Arch
    """In brief, as `space.brief` gives it; `space.complete` turns it into what a supernet takes."""
    top1: float
    """On the validation images."""
    costs: dict[str, float]
    stage: str
    """The weights it was measured with: "4bit", "mixed", ..."""
    searcher: str
    balanced: float | None = None
    """Balanced accuracy on the validation images; not in older folders."""

    def __post_init__(self):
        """Refuse what cannot be an accuracy."""
        _check_shares(top1=self.top1, balanced=self.balanced)

    def has(self, metric: Metric) -> bool:
        """Whether this was measured."""
        return metric == "top1" or self.balanced is not None

    def accuracy(self, metric: Metric) -> float:
        """On the validation images. Raises ValueError if it was not measured."""
        return _measured(self.top1 if metric == "top1" else self.balanced)


@dataclass(frozen=True, kw_only=True)
class Member:
    """An entry of `family.json`: a subnet that a search has chosen."""

    name: str
    stage: str
    bits: int | None
    """Of all quantized layers, 32 for a float network; None for mixed precision."""
    arch: Arch
    """In brief."""
    top1_validation: float
    top1_test: float
    top1_predicted: float | None = None
    """On the validation images, as the accuracy predictor said before it was measured; QFA alone."""
    top1_before_folding: float | None = None
    """On the validation images, before zero points were rounded; QFA alone."""
    balanced_validation: float | None = None
    """Balanced accuracy on the validation images, and on the test images; not in older folders."""
    balanced_test: float | None = None
    balanced_predicted: float | None = None
    """As `top1_predicted`, of a predictor of balanced accuracy."""
    metric: str = "top1"
    """The accuracy on the validation images that it was chosen by."""
    costs: dict[str, float]

    def __post_init__(self):
        """Refuse what cannot be an accuracy."""
        _check_shares(top1_validation=self.top1_validation, top1_test=self.top1_test)
        _check_shares(balanced_validation=self.balanced_validation, balanced_test=self.balanced_test)
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r}: there are {', '.join(METRICS)}")


@dataclass(frozen=True)
class Sample:
    """An entry of `samples.json`: an architecture drawn from DNAS's distribution, after its training."""

    stage: str
    arch: Arch
    """In brief."""
    top1_validation: float
    costs: dict[str, float]
    balanced_validation: float | None = None
    """Balanced accuracy on the validation images; not in older folders."""

    def __post_init__(self):
        """Refuse what cannot be an accuracy."""
        _check_shares(top1_validation=self.top1_validation, balanced_validation=self.balanced_validation)

    def accuracy(self, metric: Metric) -> float:
        """On the validation images. Raises ValueError if it was not measured."""
        return _measured(self.top1_validation if metric == "top1" else self.balanced_validation)


@dataclass(frozen=True)
class Distribution:
    """A line of `distribution.jsonl`: DNAS's distribution at a step of its search."""

    step: int
    steps: int
    """Of the whole search."""
    probabilities: dict[str, list[float]]
    """By choice, of each of its candidates; they add up to 1."""


@dataclass(frozen=True)
class Export:
    """An entry of `exports.json`: the files of a member of the family, and what verification found of them."""

    name: str
    folder: str
    """In the run folder."""
    problems: list[str]
    """Why the files cannot be trusted; empty if they can."""
    stage: str | None = None
    arch: Arch | None = None
    """In brief."""
    found: dict[str, float] = field(default_factory=dict, metadata={"rest": True})
    """Everything else in the entry, by name: numbers that all formats share, such as `images` and `top1_plain`, and the
    judgement of each format (its `Format.keys`). Of formats that were not exported there is nothing. Times are in the
    file only of older versions: `read_exports` takes them from the `times.json` beside the exported files."""

    def is_of(self, member: Member | None) -> bool:
        """Whether the files are those of a member; its name may stand for another network after a new search."""
        return member is not None and self.arch == member.arch


@dataclass(frozen=True)
class Probe:
    """A line of `probes.jsonl`: a network that `oncequant analyse` has measured."""

    stage: str
    """The weights it was measured with."""
    arch: Arch
    """In brief, in the space of the stage, or for bit-widths that were lowered in a wider one."""
    images: int
    """Validation images that it was asked, in an order that is always the same."""
    right: str
    """Which of them it got right: a bit each, as hexadecimal digits."""

    def __post_init__(self):
        """Refuse answers to another number of images."""
        if len(self.right) != 2 * -(-self.images // 8) or not set(self.right) <= set("0123456789abcdef"):
            raise ValueError(f"right must be {2 * -(-self.images // 8)} hexadecimal digits, for {self.images} images")


@dataclass(frozen=True)
class Prediction:
    """A point of `Predictions`: a subnet that the predictor had not seen."""

    searcher: str
    predicted: float
    measured: float
    """Both accuracies on the validation images."""


@dataclass(frozen=True)
class Hypervolumes:
    """Of the fronts that a predictor found in `Predictions`, and of those of uniform bit-widths."""

    predicted: float
    uniform: float


@dataclass(frozen=True)
class Predictions:
    """`predictor.json`: how good QFA's accuracy predictor is."""

    kendall_tau: float
    rmse: float
    points: list[Prediction]
    pairs: int | None = None
    held_out: int | None = None
    cost: str | None = None
    hypervolume: Hypervolumes | None = None
    metric: str = "top1"
    """The accuracy that it predicts."""


Record = (
    Predictions
    | Prediction
    | Hypervolumes
    | Command
    | Metrics
    | Time
    | Measurement
    | Member
    | Sample
    | Distribution
    | Export
    | Probe
)
R = TypeVar("R", bound=Record)

RECORDS: dict[str, type[Record]] = {  # file in a run folder -> what it holds
    "commands.jsonl": Command,
    "metrics.jsonl": Metrics,
    "times.jsonl": Time,
    "measurements.jsonl": Measurement,
    "family.json": Member,
    "exports.json": Export,
    "samples.json": Sample,
    "distribution.jsonl": Distribution,
    "probes.jsonl": Probe,
}


def read_records(path: Path, kind: type[R]) -> list[R]:
    """All records of a file, in its order; none if there is no file.

    A last line without its end was cut by a kill and is left out. Raises FileError naming the file, the line or the
    record, and the field, if anything else is not what it should be.
    """
    is_lines = path.suffix == ".jsonl"
    rows = read_lines(path) if is_lines else _read_list(path)
    records = []
    for number, row in enumerate(rows, start=1):
        try:
            records.append(from_json(kind, row))
        except ValueError as error:
            raise FileError(f"{path}, {'line' if is_lines else 'record'} {number}: {error}") from error
    return records


def read_metrics(run_dir: Path) -> list[Metrics]:
    """The lines of `metrics.jsonl` with their times. Raises FileError."""
    times = {(t.stage, t.step): t.time_s for t in read_records(run_dir / "times.jsonl", Time) if t.stage is not None}
    rows = read_records(run_dir / "metrics.jsonl", Metrics)
    return [row if row.time_s is not None else replace(row, time_s=times.get((row.stage, row.step))) for row in rows]


def read_exports(run_dir: Path) -> list[Export]:
    """The entries of `exports.json` with their times. Raises FileError."""
    found = []
    for one in read_records(run_dir / "exports.json", Export):
        times = run_dir / one.folder / "times.json"
        found.append(replace(one, found=one.found | read_object(times)) if times.exists() else one)
    return found


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write a whole file atomically. Raises FileError."""
    rows = [to_json(record) for record in records]
    if path.suffix == ".jsonl":
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    else:
        write_json(path, rows)


def append_record(path: Path, record: Record) -> None:
    """Append a line to a file and push it to the disk. Raises FileError."""
    append_line(path, to_json(record))


def to_json(record: Record) -> dict[str, Any]:
    """A record as it is written."""
    values: dict[str, Any] = {}
    for of in fields(record):
        value = getattr(record, of.name)
        if of.metadata.get("rest"):
            values.update(value)
        elif of.default is MISSING or value != of.default:
            values[of.name] = dict(value) if isinstance(value, Mapping) else value
    return values


def from_json(kind: type[R], values: Any) -> R:
    """Inverse of `to_json`. Raises ValueError naming the field that is missing, unknown or of another type."""
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    found: dict[str, Any] = {}
    rest = dict(values)
    for of in fields(kind):
        if of.metadata.get("rest"):
            found[of.name] = {name: _parsed(value, float, name, diverged=True) for name, value in rest.items()}
            rest = {}
        elif of.name in rest:
            found[of.name] = _parsed(rest.pop(of.name), of.type, of.name)
        elif of.default is MISSING:
            raise ValueError(f"{of.name!r} is missing")
    if rest:
        raise ValueError(f"unknown field {next(iter(rest))!r}")
    return kind(**found)


LARGEST = sys.float_info.max
WORDS = {str: "text", int: "a whole number", float: "a number", dict: "a JSON object", list: "a JSON list"}


def _parsed(value: Any, kind: Any, name: str, diverged: bool = False) -> Any:
    """`value` as a field of a type; `name` is for the message. Numbers are finite, or may be those of a training that
    has `diverged`. Raises ValueError."""
    if kind is Arch:
        return Arch(_parsed(value, dict[str, int], name))
    if is_dataclass(kind):
        return from_json(cast(Any, kind), value)
    if get_origin(kind) is UnionType:  # of a type and None
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
        return None if value is None else _parsed(value, kind, name)
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if not isinstance(value, outer if outer is not float else int | float) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.60}, not {WORDS[outer]}")
    is_finite = not isinstance(value, int | float) or -LARGEST <= value <= LARGEST
    if not is_finite and (isinstance(value, int) or not diverged):
        raise ValueError(f"{name} is {value!r:.60}, not a finite number")
    if isinstance(value, dict):
        return {key: _parsed(one, inner[1], f"{name}.{key}") for key, one in value.items()}
    return [_parsed(one, inner[0], name) for one in value] if isinstance(value, list) else value


def _read_list(path: Path) -> list[Any]:
    rows = read_json(path) if path.exists() else []
    if not isinstance(rows, list):
        raise FileError(f"{path} should hold a JSON list")
    return rows


def _measured(accuracy: float | None) -> float:
    if accuracy is None:
        raise ValueError("balanced accuracy was not measured by the older version that made this")
    return accuracy


def _check_shares(**shares: float | None) -> None:
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"{name} must be in [0, 1], not {share}")
