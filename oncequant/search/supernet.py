"""Measuring subnets of a supernet for search, and the family of subnets that a search hands out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oncequant import distributed
from oncequant.arch import Arch
from oncequant.calibrate import Batches
from oncequant.cost import COSTS, Budget
from oncequant.data import Data, eval_batches
from oncequant.evaluate import accuracy, calibrated_subnet, measure
from oncequant.files import read_records, write_json
from oncequant.network import Network
from oncequant.progress import track
from oncequant.search import SEARCHERS
from oncequant.search.measurements import Measurement, MeasurementFile, all_costs, read_measurements
from oncequant.search.pareto import best_under, spread
from oncequant.space import SearchSpace

STOP_SIGMAS = 4.0  # a candidate stops where even so many standard deviations more would leave it dominated


def search_by_measuring(
    supernet: Network,
    memory: MeasurementFile,
    searcher: str,
    evaluations: int,
    budgets: Sequence[Budget],
    front: str,
    calibration: Batches,
    data: Data,
    seed: int,
) -> None:
    """Run one of SEARCHERS on validation accuracies of subnets, measured without retraining, into `memory`: within the
    budgets, or along the front of the cost `front`."""
    with track(f"search {memory.stage}", evaluations) as bar:
        best = 0.0

        def top1(arch: Arch) -> float:
            return measure(supernet, arch, calibration, eval_batches(data, data.validation))

        def all_top1(archs: Sequence[Arch]) -> Iterator[float]:
            nonlocal best
            for value in memory.measured(supernet.space, top1, searcher)(archs):
                best = max(best, value)
                yield value

        SEARCHERS[searcher](
            supernet.space,
            all_top1,
            budgets=budgets,
            cost=front,
            evaluations=evaluations,
            seed=seed,
            progress=lambda done, total: bar(done, {"best top-1": best}),
        )


def measure_codes(
    supernet: Network,
    memory: MeasurementFile,
    codes: np.ndarray,
    searcher: str,
    calibration: Batches,
    data: Data,
    stop_dominated: str | None = None,
) -> None:
    """Measure architectures `codes` (n, genes) on the validation images into `memory`, under the name `searcher`.

    With the name of a cost in `stop_dominated`, an architecture that a measured one of at most this cost surely beats
    is given up after some of the images, and nothing is noted.
    """
    space, best = supernet.space, 0.0

    def top1(arch: Arch) -> float | None:
        subnet = calibrated_subnet(supernet, arch, calibration)
        to_beat = (
            memory.best_within(stop_dominated, COSTS[stop_dominated](space.layers(arch))) if stop_dominated else 0.0
        )
        images = eval_batches(data, data.validation, shuffled=True)  # its first part tells something about the whole
        return accuracy(subnet, arch, images, _hopeless(to_beat, len(data.validation)))

    with track(f"measure {searcher}", len(codes)) as bar:
        archs = [space.decode(row) for row in codes]
        for done, value in enumerate(memory.measured(space, top1, searcher)(archs), start=1):
            best = max(best, value or 0.0)
            bar(done, {"best top-1": best})


def _hopeless(to_beat: float, images: int) -> Callable[[int, int], bool]:
    """Whether so many correct answers to the first `seen` of `images` images cannot become a top-1 of `to_beat`."""

    def stop(correct: int, seen: int) -> bool:
        share = (correct + 1) / (seen + 2)
        deviation = (share * (1 - share) / seen * (1 - seen / images)) ** 0.5
        return seen < images and share + STOP_SIGMAS * deviation < to_beat

    return stop


@dataclass(frozen=True)
class Choice:
    """A subnet that a search hands out."""

    name: str
    stage: str
    arch: Arch
    top1: float
    """On the validation images."""
    bits: int | None = None
    """Of all quantized layers; None for mixed precision."""
    more: Callable[[Arch], dict[str, Any]] | None = None
    """What else family.json is to say of it."""


def record_family(
    run_dir: Path,
    choices: Sequence[Choice],
    spaces: Mapping[str, SearchSpace],
    top1_test: Callable[[Choice], float],
    replaced: set[str],
) -> list[dict[str, Any]]:
    """Add subnets to `family.json` and return their entries, each with its test accuracy, which is measured once.

    `spaces` by stage; `replaced` are names of an earlier search that go.
    """
    path = run_dir / "family.json"
    family = {entry["name"]: entry for entry in read_records(path)}

    def entry(choice: Choice) -> dict[str, Any]:
        space = spaces[choice.stage]
        brief = dict(space.brief(choice.arch))
        known = [e["top1_test"] for e in family.values() if e["stage"] == choice.stage and e["arch"] == brief]
        test = known[0] if known else top1_test(choice)
        accuracies = dict(top1_validation=choice.top1, top1_test=test)
        place = dict(name=choice.name, stage=choice.stage, bits=choice.bits, arch=brief)
        return {
            **place,
            **accuracies,
            **(choice.more(choice.arch) if choice.more else {}),
            "costs": all_costs(space, choice.arch),
        }

    kept, entries, at_once = {n: old for n, old in family.items() if n not in replaced}, [], distributed.world_size()
    for first in range(0, len(choices), at_once):  # a kill loses at most what is being measured
        entries += distributed.shared_map(entry, choices[first : first + at_once])
        kept.update((new["name"], new) for new in entries)
        distributed.from_main(lambda: write_json(path, list(kept.values())))
    return entries


def chosen_measurements(
    memory: MeasurementFile, budgets: Sequence[Budget], front: str, space: SearchSpace
) -> dict[str, Measurement]:
    """By name: the most accurate measurement of a stage within the budgets, or S, M and L along the front of a cost."""
    everything = [m for m in read_measurements(memory.path) if m.stage == memory.stage]
    if budgets:
        return {budget_name(budgets): best_under(everything, budgets, space)}
    members = spread(everything, 3, front)
    return dict(zip({1: "L", 2: "SL", 3: "SML"}[len(members)], members))


def budget_name(budgets: Sequence[Budget]) -> str:
    """Name of the subnet that is chosen under budgets."""
    return "-".join(str(budget).replace("<=", "") for budget in budgets)
