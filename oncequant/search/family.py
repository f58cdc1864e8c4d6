"""Measuring subnets of a supernet for search, and the family of subnets that a search hands out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from oncequant import distributed
from oncequant.arch import FLOAT_BITS, Arch
from oncequant.cost import COSTS, Budget, Cost, find_cost, readable, shown_costs
from oncequant.cost_table import run_costs
from oncequant.data import eval_batches
from oncequant.measure import Judge, accuracy, calibrated_subnet
from oncequant.network import Network
from oncequant.progress import track
from oncequant.records import Measurement, Member, read_records, write_records
from oncequant.search import SEARCHERS
from oncequant.search.measurements import MeasurementFile, all_costs
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
    judge: Judge,
    seed: int,
) -> None:
    """Run one of SEARCHERS on validation accuracies of subnets, measured without retraining, into `memory`: within the
    budgets, or along the front of the cost `front`."""
    with track(f"search {memory.stage}", evaluations) as bar:
        best = 0.0

        def top1(arch: Arch) -> float:
            return judge.validation(supernet, arch)

        def all_top1(archs: Sequence[Arch]) -> Iterator[float]:
            nonlocal best
            for value in memory.measured(supernet.space, top1, searcher)(archs):
                assert value is not None  # nothing is given up
                best = max(best, value)
                yield value

        SEARCHERS[searcher](
            supernet.space,
            all_top1,
            budgets=budgets,
            cost=find_cost(front, memory.costs),
            evaluations=evaluations,
            seed=seed,
            progress=lambda done, total: bar(done, {"best top-1": best}),
        )


def measure_codes(
    supernet: Network,
    memory: MeasurementFile,
    codes: np.ndarray,
    searcher: str,
    judge: Judge,
    stop_dominated: str | None = None,
) -> None:
    """Measure architectures `codes` (n, genes) on the validation images into `memory`, under the name `searcher`.

    With the name of a cost in `stop_dominated`, an architecture that a measured one of at most this cost surely beats
    is given up after some of the images, and nothing is noted.
    """
    space, best = supernet.space, 0.0

    def top1(arch: Arch) -> float | None:
        subnet = calibrated_subnet(supernet, arch, judge.calibration)
        to_beat = (
            memory.best_within(stop_dominated, memory.costs[stop_dominated](space.layers(arch)))
            if stop_dominated
            else 0.0
        )
        images = eval_batches(
            judge.data, judge.data.validation, shuffled=True
        )  # its first part tells something about the whole
        return accuracy(subnet, arch, images, _hopeless(to_beat, len(judge.data.validation)))

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
class Pick:
    """A subnet that a search has picked; `record_family` measures it on the test images and makes it a member."""

    name: str
    stage: str
    space: SearchSpace
    """In which the architecture is written down."""
    arch: Arch
    """Complete."""
    top1: float
    """On the validation images."""
    bits: int | None = None
    """Of all quantized layers; None for mixed precision."""
    more: Callable[[Arch], dict[str, float]] | None = None
    """Measures further fields of the `Member`, by name."""


def record_family(
    run_dir: Path,
    picks: Sequence[Pick],
    top1_test: Callable[[Pick], float],
    replaced: set[str],
) -> list[Member]:
    """Make members of the family of subnets that a search has picked, add them to `family.json` and return them.

    The test accuracy of a subnet is measured once. `replaced` are names of an earlier search that go.
    """
    path, costs = run_dir / "family.json", run_costs(run_dir)
    family = {member.name: member for member in read_records(path, Member)}

    def member(pick: Pick) -> Member:
        brief = pick.space.brief(pick.arch)
        known = [m.top1_test for m in family.values() if m.stage == pick.stage and m.arch == brief]
        return Member(
            name=pick.name,
            stage=pick.stage,
            bits=pick.bits,
            arch=brief,
            top1_validation=pick.top1,
            top1_test=known[0] if known else top1_test(pick),
            costs=all_costs(pick.space, pick.arch, costs),
            **(pick.more(pick.arch) if pick.more else {}),
        )

    kept = {name: old for name, old in family.items() if name not in replaced}
    new: list[Member] = []
    at_once = distributed.world_size()
    for first in range(0, len(picks), at_once):  # a kill loses at most what is being measured
        new += distributed.shared_map(member, picks[first : first + at_once])
        kept.update((one.name, one) for one in new)
        distributed.from_main(lambda: write_records(path, list(kept.values())))
    return new


def float_pick(name: str, net: Network, judge: Judge, run_dir: Path) -> Pick:
    """The largest float network, which every search hands out too; its validation accuracy is measured once."""
    arch = net.space.largest()
    family = distributed.from_main(lambda: read_records(run_dir / "family.json", Member))
    known = [member.top1_validation for member in family if member.name == name and member.stage == "float"]
    top1 = known[0] if known else judge.validation(net, arch)
    return Pick(name, "float", net.space, arch, top1, FLOAT_BITS)


def hand_out(
    picks: Sequence[Pick], network: Callable[[str], Network], judge: Judge, run_dir: Path, replaced: set[str]
) -> list[Member]:
    """The end of every search: what it has picked becomes members, with accuracies on the test images.

    `network` gives the network of a stage; `replaced` are names of an earlier search that go.
    """

    def top1_test(pick: Pick) -> float:
        return judge.test(network(pick.stage), pick.arch)

    return record_family(run_dir, picks, top1_test, replaced)


def chosen_measurements(
    memory: MeasurementFile, budgets: Sequence[Budget], front: str, space: SearchSpace
) -> dict[str, Measurement]:
    """By name: the most accurate measurement of a stage within the budgets, or S, M and L along the front of a cost."""
    everything = memory.read()
    if budgets:
        return {budget_name(budgets): best_under(everything, budgets, space)}
    members = spread(everything, 3, front)
    return dict(zip({1: "L", 2: "SL", 3: "SML"}[len(members)], members))


def budget_name(budgets: Sequence[Budget]) -> str:
    """Name of the subnet that is chosen under budgets: those of a target by its name."""
    return "-".join(dict.fromkeys(budget.target or str(budget).replace("<=", "") for budget in budgets))


def family_table(members: Sequence[Member], costs: Mapping[str, Cost] = COSTS) -> Table:
    """Members with accuracies and costs, for people."""
    shown = shown_costs((member.costs for member in members), costs)
    table = Table("subnet", "validation %", "test %", *(cost.title for cost in shown))

    def text(value: float | None) -> str:
        return "–" if value is None else readable(value)

    for member in members:
        accuracies = [f"{100 * top1:.2f}" for top1 in (member.top1_validation, member.top1_test)]
        table.add_row(member.name, *accuracies, *(text(member.costs.get(cost.name)) for cost in shown))
    return table
