"""Measuring subnets of a supernet for search, and the family of subnets that a search hands out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from oncequant import distributed
from oncequant.answers import METRICS, Accuracy, Answers, Metric, answers_path, read_answers, write_answers
from oncequant.arch import FLOAT_BITS, Arch
from oncequant.cost import COSTS, Budget, Cost, find_cost, readable, shown_costs
from oncequant.cost_table import run_costs
from oncequant.data import eval_batches
from oncequant.measure import Judge, ask, calibrated_subnet
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
    """Run one of SEARCHERS on validation accuracies of subnets, measured without retraining, into `memory`, by its
    metric: within the budgets, or along the front of the cost `front`."""
    with track(f"search {memory.stage}", evaluations) as bar:
        best = 0.0

        def accuracy(arch: Arch) -> Accuracy:
            return judge.validation(supernet, arch)

        def accuracies(archs: Sequence[Arch]) -> Iterator[float]:
            nonlocal best
            for value in memory.measured(supernet.space, accuracy, searcher)(archs):
                assert value is not None  # nothing is given up
                best = max(best, value)
                yield value

        SEARCHERS[searcher](
            supernet.space,
            accuracies,
            budgets=budgets,
            cost=find_cost(front, memory.costs),
            evaluations=evaluations,
            seed=seed,
            progress=lambda done, total: bar(done, {f"best {METRICS[memory.metric]}": best}),
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
    in top-1 is given up after some of the images, and nothing is noted. By balanced accuracy none is: the first images
    say little about rare classes.
    """
    space, best = supernet.space, 0.0

    def accuracy(arch: Arch) -> Accuracy | None:
        subnet = calibrated_subnet(supernet, arch, judge.calibration)
        to_beat = (
            memory.best_within(stop_dominated, memory.costs[stop_dominated](space.layers(arch)))
            if stop_dominated and memory.metric == "top1"
            else 0.0
        )
        images = eval_batches(
            judge.data, judge.data.validation, shuffled=True
        )  # its first part tells something about the whole
        found = ask(subnet, arch, images, _hopeless(to_beat, len(judge.data.validation)))
        return None if found is None else found.accuracy

    with track(f"measure {searcher}", len(codes)) as bar:
        archs = [space.decode(row) for row in codes]
        for done, value in enumerate(memory.measured(space, accuracy, searcher)(archs), start=1):
            best = max(best, value or 0.0)
            bar(done, {f"best {METRICS[memory.metric]}": best})


def _hopeless(to_beat: float, images: int) -> Callable[[int, int], bool]:
    """Whether so many correct answers to the first `seen` of `images` images cannot become a top-1 of `to_beat`."""

    def stop(correct: int, seen: int) -> bool:
        share = (correct + 1) / (seen + 2)
        deviation = (share * (1 - share) / seen * (1 - seen / images)) ** 0.5
        return seen < images and share + STOP_SIGMAS * deviation < to_beat

    return stop


@dataclass(frozen=True)
class Pick:
    """A subnet that a search has picked; `hand_out` measures it on the test images and makes it a member."""

    name: str
    stage: str
    space: SearchSpace
    """In which the architecture is written down."""
    arch: Arch
    """Complete."""
    top1: float
    """On the validation images."""
    balanced: float | None
    """Balanced accuracy there; None if an older version measured it."""
    metric: Metric = "top1"
    """What it was picked by."""
    bits: int | None = None
    """Of all quantized layers; None for mixed precision."""
    more: Callable[[Arch], dict[str, float]] | None = None
    """Measures further fields of the `Member`, by name."""

    @property
    def accuracy(self) -> float:
        """What it was picked by."""
        found = self.top1 if self.metric == "top1" else self.balanced
        assert found is not None  # it was picked by it
        return found


def float_pick(name: str, net: Network, judge: Judge, run_dir: Path, metric: Metric = "top1") -> Pick:
    """The largest float network, which every search hands out too; its validation accuracy is measured once."""
    arch = net.space.largest()
    family = distributed.from_main(lambda: read_records(run_dir / "family.json", Member))
    known = [m for m in family if m.name == name and m.stage == "float" and m.balanced_validation is not None]
    if known:
        found = known[0].top1_validation, known[0].balanced_validation
    else:
        found = astuple(judge.validation(net, arch))
    return Pick(name, "float", net.space, arch, *found, metric, FLOAT_BITS)


def hand_out(
    picks: Sequence[Pick], network: Callable[[str], Network], judge: Judge, run_dir: Path, replaced: set[str]
) -> list[Member]:
    """The end of every search: what it has picked becomes members, with accuracies on the test images.

    They are added to `family.json` and returned. `network` gives the network of a stage; `replaced` are names of an
    earlier search that go. The test images are looked at once for each network, whatever its name: what it answers to
    them is kept in `answers/`.
    """
    path, costs, images = run_dir / "family.json", run_costs(run_dir), judge.data.test_digest
    family = {member.name: member for member in read_records(path, Member)}

    def member(pick: Pick) -> tuple[Member, Answers]:
        brief = pick.space.brief(pick.arch)
        answers = read_answers(answers_path(run_dir, pick.stage, brief), images)
        answers = answers or judge.test(network(pick.stage), pick.arch)
        found = Member(
            name=pick.name,
            stage=pick.stage,
            bits=pick.bits,
            arch=brief,
            top1_validation=pick.top1,
            top1_test=answers.accuracy.top1,
            balanced_validation=pick.balanced,
            balanced_test=answers.accuracy.balanced,
            metric=pick.metric,
            costs=all_costs(pick.space, pick.arch, costs),
            **(pick.more(pick.arch) if pick.more else {}),
        )
        return found, answers

    kept = {name: old for name, old in family.items() if name not in replaced}
    new: list[Member] = []
    at_once = distributed.world_size()

    def keep(found: Sequence[tuple[Member, Answers]]) -> None:
        for one, answers in found:
            write_answers(answers_path(run_dir, one.stage, one.arch), answers, images)
        write_records(path, list(kept.values()))

    for first in range(0, len(picks), at_once):  # a kill loses at most what is being measured
        found = distributed.shared_map(member, picks[first : first + at_once])
        new += [one for one, _ in found]
        kept.update((one.name, one) for one, _ in found)
        distributed.from_main(partial(keep, found))
    return new


def chosen_picks(
    memory: MeasurementFile,
    budgets: Sequence[Budget],
    front: str,
    space: SearchSpace,
    bits: int | None = None,
    more: Callable[[Arch], dict[str, float]] | None = None,
) -> list[Pick]:
    """The best measurement of a stage within the budgets, by the metric of `memory`, or S, M and L along the front of a
    cost. `bits` and `more`: see `Pick`."""

    def chosen() -> dict[str, Measurement]:
        everything = memory.read()
        if budgets:
            return {budget_name(budgets): best_under(everything, budgets, space, memory.metric)}
        members = spread(everything, 3, front, memory.metric)
        return dict(zip({1: "L", 2: "SL", 3: "SML"}[len(members)], members))

    stage = memory.stage
    return [
        Pick(f"{stage}-{name}", stage, space, space.complete(m.arch), m.top1, m.balanced, memory.metric, bits, more)
        for name, m in distributed.from_main(chosen).items()
    ]


def budget_name(budgets: Sequence[Budget]) -> str:
    """Name of the subnet that is chosen under budgets: those of a target by its name."""
    return "-".join(dict.fromkeys(budget.target or str(budget).replace("<=", "") for budget in budgets))


def family_table(members: Sequence[Member], costs: Mapping[str, Cost] = COSTS) -> Table:
    """Members with accuracies and costs, for people."""
    shown = shown_costs((member.costs for member in members), costs)
    accuracies = {"validation %": "top1_validation", "test %": "top1_test"}
    if any(member.metric == "balanced" for member in members):
        accuracies["balanced\nval. %"] = "balanced_validation"
    if any(member.balanced_test is not None for member in members):
        accuracies["balanced\ntest %"] = "balanced_test"
    table = Table("subnet", *accuracies, *(cost.title for cost in shown))

    def text(value: float | None) -> str:
        return "–" if value is None else readable(value)

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.2f}"

    for member in members:
        found = [percent(getattr(member, field)) for field in accuracies.values()]
        table.add_row(member.name, *found, *(text(member.costs.get(cost.name)) for cost in shown))
    return table
