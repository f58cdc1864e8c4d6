"""What the files of a run folder say, as one value. Whatever is not there yet is empty."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oncequant.answers import Answers, answers_path, read_answers
from oncequant.arch import FLOAT_BITS
from oncequant.cost import Cost, shown_costs
from oncequant.cost_table import run_costs
from oncequant.data import SPLITS, read_pictures
from oncequant.family import ElasticConfig, with_bits
from oncequant.files import FileError, read_object
from oncequant.models import config_from_json, space_of
from oncequant.records import (
    RECORDS,
    Distribution,
    Export,
    Measurement,
    Member,
    Metrics,
    Predictions,
    from_json,
    read_exports,
    read_metrics,
    read_records,
)
from oncequant.report.by_hand import networks_by_hand
from oncequant.run_folder import commands_of, date_of
from oncequant.search.measurements import R, measurements_in, with_costs
from oncequant.space import SearchSpace
from oncequant.supernet_file import load_space

AXES = ("bitops", "weight_bytes")  # costs that every record must have: sections and pictures are about them


class ReportError(ValueError):
    """The folder cannot be reported; the message names the path and what is wrong or missing."""


@dataclass(frozen=True)
class Contents:
    """A run folder."""

    folder: Path
    info: dict[str, Any]
    """run.json, and all `commands` that have changed the folder; without the date."""
    date: str
    """When the folder was made, "" if that is not known."""
    metrics: list[Metrics]
    measurements: list[Measurement]
    family: list[Member]
    answers: dict[str, tuple[Path, Answers]]
    """By name of a member, what it answered to the test images, and the file that has it."""
    test_names: list[str]
    """Of the pictures of the test split, in its order; none in older folders."""
    exports: list[Export]
    """With times; of networks that are still in the family."""
    distribution: list[Distribution]
    drawn_from: SearchSpace | None
    """The space of the distribution."""
    predictions: dict[str, Any] | None
    """predictor.json: what an accuracy predictor said before subnets were measured, and how good it is."""
    comparison: dict[str, Any] | None
    """compare.json: networks made in other ways at equal budgets, and what that took."""
    spaces: dict[str, SearchSpace]
    """By stage, of those whose networks are measured or chosen."""
    known_costs: dict[str, Cost]
    """By name, with those of the tables in the folder."""
    by_hand: list[Member]
    """Networks made by hand for the comparison; their stages are `by-hand/NAME`."""

    @property
    def costs(self) -> list[Cost]:
        """The costs that tables and pictures show."""
        return shown_costs([m.costs for m in self.measurements] + [m.costs for m in self.family], self.known_costs)

    @property
    def layer_names(self) -> list[str]:
        """The layers of all networks, in the order of a forward pass."""
        return list(dict.fromkeys(name for space in self.spaces.values() for name in space.layers(space.largest())))


def read_contents(folder: Path) -> Contents:
    """Read a run folder; only run.json must be there. Raises ReportError."""
    if not (folder / "run.json").is_file():
        expected = f"run.json and, as the run goes on, {', '.join(RECORDS)}"
        raise ReportError(f"{folder} is not a run folder: it has no run.json; expected in it: {expected}")
    try:
        info = read_object(folder / "run.json")
        info["commands"] = commands_of(folder)
        date = date_of(folder)
        info.pop("date", None)
        metrics = read_metrics(folder)
        measurements = measurements_in(folder / "measurements.jsonl")
        family = read_records(folder / "family.json", Member)
        answers = _answers(folder, family)
        pictures = read_pictures(folder / "images.npz")
        exports = read_exports(folder)
        distribution = read_records(folder / "distribution.jsonl", Distribution)
        predictions = _predictions(folder / "predictor.json")
        known_costs = run_costs(folder)
        comparison = read_object(folder / "compare.json", "totals") if (folder / "compare.json").exists() else None
        by_hand, spaces_by_hand = networks_by_hand(folder, comparison, known_costs)
    except FileError as error:
        raise ReportError(str(error)) from error
    _check_costs(folder / "measurements.jsonl", (m.costs for m in measurements))
    _check_costs(folder / "family.json", (m.costs for m in family))
    # networks in a folder inside the run, which were trained one by one, are shown together
    family = [replace(member, stage=member.stage.partition("/")[0]) for member in family]
    members = {member.name: member for member in family}
    exports = [one for one in exports if one.arch is None or one.is_of(members.get(one.name))]
    stages = dict.fromkeys([m.stage for m in measurements] + [m.stage for m in family])
    drawn_from = _last_space(folder, metrics) if distribution or "samples" in stages else None
    spaces = {stage: _space_of(folder, info, stage, drawn_from) for stage in stages}
    if comparison and "hypervolumes" not in comparison:  # of a version that did not count seconds
        comparison = None
    measurements = [_with_costs(folder / "measurements.jsonl", m, spaces[m.stage], known_costs) for m in measurements]
    family = [_with_costs(folder / "family.json", m, spaces[m.stage], known_costs) for m in family]
    test = [] if pictures is None else (pictures.rows["split"] == SPLITS.index("test")).nonzero()[0].tolist()
    names = [pictures.names[i] for i in test] if pictures else []
    spaces |= spaces_by_hand
    rest = (answers, names, exports, distribution, drawn_from, predictions, comparison, spaces, known_costs, by_hand)
    return Contents(folder, info, date, metrics, measurements, family, *rest)


def _answers(folder: Path, family: Sequence[Member]) -> dict[str, tuple[Path, Answers]]:
    """What is kept of the members' answers; older versions kept none. Raises FileError."""
    paths = {member.name: answers_path(folder, member.stage, member.arch) for member in family}
    found = {name: (path, read_answers(path)) for name, path in paths.items()}
    return {name: (path, answers) for name, (path, answers) in found.items() if answers is not None}


def _predictions(path: Path) -> dict[str, Any] | None:
    """predictor.json, if there is one. Raises FileError."""
    if not path.exists():
        return None
    found = read_object(path)
    try:
        from_json(Predictions, found)
    except ValueError as error:
        raise FileError(f"{path}: {error}") from error
    return found


def _with_costs(path: Path, record: R, space: SearchSpace, costs: Mapping[str, Cost]) -> R:
    """With those of tables that came later. Raises ReportError for an architecture of another space."""
    try:
        return with_costs(record, space, costs)
    except ValueError as error:
        raise ReportError(f"{path}, stage {record.stage}: {error}") from error


def _check_costs(path: Path, costs: Iterable[dict[str, float]]) -> None:
    for number, row in enumerate(costs, start=1):
        if missing := [cost for cost in AXES if cost not in row]:
            raise ReportError(f"{path}, record {number}: {missing[0]!r} is missing")


def _space_of(folder: Path, info: dict[str, Any], stage: str, drawn_from: SearchSpace | None) -> SearchSpace:
    """The search space of a stage: of its supernet, or by its name: float, 4bit, ...

    Networks that were drawn from a distribution are from its space. Raises ReportError.
    """
    try:
        if (folder / f"{stage}.safetensors").exists():
            return load_space(folder, stage)[1]
        bits = FLOAT_BITS if stage == "float" else int((re.match(r"(\d+)bit", stage) or "00")[1])
        if not bits and drawn_from:
            return drawn_from
        config = config_from_json(info["model"]["config"])
        return space_of(with_bits(config, bits) if bits and isinstance(config, ElasticConfig) else config)
    except (KeyError, TypeError, ValueError, FileError) as error:
        raise ReportError(f"{folder / 'run.json'}: model.config does not fit: {error!r}") from error


def _last_space(folder: Path, metrics: list[Metrics]) -> SearchSpace | None:
    """The space of the supernet that was trained last, None as long as there is none. Raises ReportError."""
    trained = [row.stage for row in metrics if (folder / f"{row.stage}.safetensors").exists()]
    try:
        return load_space(folder, trained[-1])[1] if trained else None
    except FileError as error:
        raise ReportError(str(error)) from error
