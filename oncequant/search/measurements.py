"""Measured architectures in a file: one JSON line each, on disk before the next one is measured.

Searchers are deterministic in their seed, so the file is all there is to resuming: the same searcher with the same seed
on the same file is answered from it up to the point of the kill, and at most one measurement per process is lost.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from oncequant.answers import Accuracy, Metric
from oncequant.arch import Arch
from oncequant.cost import COSTS, Cost
from oncequant.cost_table import TableError
from oncequant.distributed import is_main, shared_map, world_size
from oncequant.records import Measurement, Member, Sample, append_record, read_records
from oncequant.space import SearchSpace
from oncequant.structure import CannotRun

R = TypeVar("R", Measurement, Member, Sample)
MeasureAll = Callable[[Sequence[Arch]], Iterable[float]]
"""Accuracy in [0, 1] of architectures, in order, measured as the result is iterated."""


class MeasurementFile:
    """Append-only file of measurements, and the memory of one stage's results in it.

    Every measurement has both accuracies, so that searches by one metric and by the other share the file. Those of
    older versions have top-1 alone: for a search by balanced accuracy they are not there, and are measured again.

    With the `space` of the stage, measurements have all `costs`, also those of tables that are younger than they are.
    Raises FileError for a corrupt file, see `read_records`.
    """

    def __init__(
        self,
        path: Path | str,
        stage: str,
        space: SearchSpace | None = None,
        costs: Mapping[str, Cost] = COSTS,
        metric: Metric = "top1",
    ):
        self.path, self.stage, self.space, self.costs, self.metric = Path(path), stage, space, costs, metric
        self._by_arch: dict[Arch, Measurement] = {}
        self._credited: set[tuple[Arch, str]] = set()
        for measurement in self.read():
            self._remember(measurement)

    def read(self) -> list[Measurement]:
        """What the file holds of this stage and metric, in its order: each searcher's own list. Raises FileError."""
        found = [m for m in measurements_in(self.path) if m.stage == self.stage and m.has(self.metric)]
        return [with_costs(m, self.space, self.costs) for m in found] if self.space else found

    def best_within(self, cost: str, limit: float) -> float:
        """The highest accuracy measured at this stage with at most this cost; 0 if there is none."""
        within = (m for m in self._by_arch.values() if m.costs[cost] <= limit)
        return max((m.accuracy(self.metric) for m in within), default=0.0)

    def measured(
        self, space: SearchSpace, measure: Callable[[Arch], Accuracy | None], searcher: str
    ) -> Callable[[Sequence[Arch]], Iterator[float | None]]:
        """`measure` (of an architecture of `space`) for many, by the metric, with the memory of this file.

        An architecture of this stage is measured once. When another searcher comes to it, the value is reused and a
        line with that searcher's name is added, so that the file holds each searcher's own list. Every value is in the
        file before the next is measured; several processes measure one architecture each at a time. An architecture
        whose measurement was given up, None, is not in the file. The function
        raises ValueError for an accuracy outside [0, 1], and if the stored costs are not those of `space`: then the
        file belongs to another one.
        """

        def measurement(arch: Arch) -> Measurement | None:
            brief, costs = space.brief(arch), all_costs(space, arch, self.costs)
            if known := self._by_arch.get(brief):
                return replace(known, costs=costs, searcher=searcher)
            found = measure(arch)
            if found is None:
                return None
            return Measurement(brief, found.top1, costs, self.stage, searcher, found.balanced)

        def measure_all(archs: Sequence[Arch]) -> Iterator[float | None]:
            for start in range(0, len(archs), world_size()):
                for new in shared_map(measurement, archs[start : start + world_size()]):
                    if new is None:
                        yield None
                        continue
                    self.note(new)
                    yield new.accuracy(self.metric)

        return measure_all

    def note(self, new: Measurement) -> None:
        """Append a measurement, unless this searcher has it already."""
        if known := self._by_arch.get(new.arch):
            self._check_same_network(known, new.costs)
        if (new.arch, new.searcher) not in self._credited:
            if is_main():
                append_record(self.path, new)
            self._remember(new)

    def _check_same_network(self, known: Measurement, costs: dict[str, float]) -> None:
        """In another space a brief architecture means another network; its costs give it away."""
        # costs that are younger than the file are not in it, and structural ones may have been other numbers
        for name in known.costs.keys() & {name for name in costs if not self.costs[name].structural}:
            if known.costs[name] != costs[name]:
                raise ValueError(
                    f"{self.path} was measured in another search space: {name} of {known.arch} is "
                    f"{known.costs[name]:g} there and {costs[name]:g} here"
                )

    def _remember(self, measurement: Measurement) -> None:
        self._by_arch.setdefault(measurement.arch, measurement)
        self._credited.add((measurement.arch, measurement.searcher))


def measurements_in(path: Path) -> list[Measurement]:
    """What a file holds, without those of older versions that were measured again for balanced accuracy. Raises
    FileError."""
    found = read_records(path, Measurement)
    again = {(m.stage, m.arch, m.searcher) for m in found if m.balanced is not None}
    return [m for m in found if m.balanced is not None or (m.stage, m.arch, m.searcher) not in again]


def all_costs(space: SearchSpace, arch: Arch, costs: Mapping[str, Cost] = COSTS) -> dict[str, float]:
    """Every cost of an architecture by name, without those of tables that lack its layers, as of float networks, and
    without those in C of a network that has no kernels there."""
    specs, found = space.layers(arch), {}
    for name, cost in costs.items():
        try:
            found[name] = cost(specs)
        except (TableError, CannotRun):
            continue
    return found


def with_costs(record: R, space: SearchSpace, costs: Mapping[str, Cost]) -> R:
    """A measurement, member or sample with the costs that it lacks: it may be older than a cost or a table, or than the
    kernels that a structural cost follows."""
    lacking = {name: cost for name, cost in costs.items() if cost.structural or name not in record.costs}
    if not lacking:
        return record
    return replace(record, costs={**record.costs, **all_costs(space, space.complete(record.arch), lacking)})
