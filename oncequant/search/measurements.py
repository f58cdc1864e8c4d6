"""Measured architectures in a file: one JSON line each, on disk before the next one is measured.

Searchers are deterministic in their seed, so the file is all there is to resuming: the same searcher with the same seed
on the same file is answered from it up to the point of the kill, and at most one measurement per process is lost.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oncequant.arch import Arch
from oncequant.cost import COSTS
from oncequant.distributed import is_main, shared_map, world_size
from oncequant.files import append_line, read_lines
from oncequant.space import SearchSpace

MeasureAll = Callable[[Sequence[Arch]], Iterable[float]]
"""Top-1 in [0, 1] of architectures, in order, measured as the result is iterated."""


@dataclass(frozen=True)
class Measurement:
    """One measured architecture."""

    arch: Arch
    """As `space.brief` gives it; `space.complete` turns it into what a supernet takes."""
    top1: float
    """In [0, 1]."""
    costs: dict[str, float]
    """Every cost in `cost.COSTS` by name."""
    stage: str
    """The weights it was measured with: "4bit", "3bit", ..."""
    searcher: str

    def record(self) -> dict[str, Any]:
        """What is written as one line of JSON."""
        return {**vars(self), "arch": dict(self.arch)}


def read_measurements(path: Path | str) -> list[Measurement]:
    """All measurements of a file, in the order of measuring; none if there is no file yet.

    A last line without its end was cut by a kill and is ignored. Raises FileError or ValueError naming file and line
    for any other line that is not a measurement.
    """
    measurements = []
    for number, row in enumerate(read_lines(Path(path)), start=1):
        try:
            measurements.append(Measurement(**{**row, "arch": Arch(row["arch"])}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a measurement ({error})") from None
    return measurements


class MeasurementFile:
    """Append-only file of measurements, and the memory of one stage's results in it.

    Raises ValueError for a corrupt file, see `read_measurements`.
    """

    def __init__(self, path: Path | str, stage: str):
        self.path, self.stage = Path(path), stage
        self._by_arch: dict[Arch, Measurement] = {}
        self._credited: set[tuple[Arch, str]] = set()
        for measurement in read_measurements(self.path):
            if measurement.stage == stage:
                self._remember(measurement)

    def best_within(self, cost: str, limit: float) -> float:
        """The highest top-1 measured at this stage with at most this cost; 0 if there is none."""
        return max((m.top1 for m in self._by_arch.values() if m.costs[cost] <= limit), default=0.0)

    def measured(self, space: SearchSpace, measure: Callable[[Arch], float | None], searcher: str) -> MeasureAll:
        """`measure` (top-1 in [0, 1] of an architecture of `space`) for many, with the memory of this file.

        An architecture of this stage is measured once. When another searcher comes to it, the value is reused and a
        line with that searcher's name is added, so that the file holds each searcher's own list. Every value is in the
        file before the next is measured; several processes measure one architecture each at a time. An architecture
        whose measurement was given up, None, is not in the file. The function
        raises ValueError for a top-1 outside [0, 1], and if the stored costs are not those of `space`: then the file
        belongs to another one.
        """

        def top1_of(arch: Arch) -> float | None:
            known = self._by_arch.get(space.brief(arch))
            return known.top1 if known else measure(arch)

        def measure_all(archs: Sequence[Arch]) -> Iterator[float]:
            for start in range(0, len(archs), world_size()):
                group = archs[start : start + world_size()]
                for arch, top1 in zip(group, shared_map(top1_of, group)):
                    if top1 is not None:
                        costs = all_costs(space, arch)
                        self._note(Measurement(space.brief(arch), float(top1), costs, self.stage, searcher))
                    yield top1

        return measure_all

    def _note(self, new: Measurement) -> None:
        """Check a measurement and append it, unless this searcher has it already."""
        if not 0 <= new.top1 <= 1:
            raise ValueError(f"top-1 must be in [0, 1], measured {new.top1} for {new.arch}")
        if known := self._by_arch.get(new.arch):
            self._check_same_network(known, new.costs)
        if (new.arch, new.searcher) not in self._credited:
            if is_main():
                append_line(self.path, new.record())
            self._remember(new)

    def _check_same_network(self, known: Measurement, costs: dict[str, float]) -> None:
        """In another space a brief architecture means another network; its costs give it away."""
        for name in known.costs.keys() & costs.keys():
            if known.costs[name] != costs[name]:
                raise ValueError(
                    f"{self.path} was measured in another search space: {name} of {known.arch} is "
                    f"{known.costs[name]:g} there and {costs[name]:g} here"
                )

    def _remember(self, measurement: Measurement) -> None:
        self._by_arch.setdefault(measurement.arch, measurement)
        self._credited.add((measurement.arch, measurement.searcher))


def all_costs(space: SearchSpace, arch: Arch) -> dict[str, float]:
    """Every cost of an architecture by name."""
    specs = space.layers(arch)
    return {name: cost(specs) for name, cost in COSTS.items()}
