"""How much of the plane of error and cost the fronts of several runs cover.

A hypervolume is over the logarithm of a cost and the error, as a share of the box between the best and the worst of all
runs, so that it can be compared on one page alone. There are two:

* of the networks that were measured on the validation images. Searches look for the best of these very accuracies, so
  it is too good, and has no interval: intervals by drawing each accuracy anew as a binomial missed the true volume in
  nearly all of simulated searches with hundreds of networks;
* of the chosen networks on the test images, which no search has seen. Its interval is from the paired bootstrap over
  these images, of runs that have kept the answers.
"""

from collections.abc import Callable, Sequence

import numpy as np

from oncequant.cost import Cost
from oncequant.intervals import Interval, accuracies_interval
from oncequant.records import Member
from oncequant.report.contents import AXES, Contents
from oncequant.search.pareto import hypervolume

Points = Sequence[tuple[dict[str, float], float]]
"""Costs and accuracy of networks."""


def volume_costs(runs: Sequence[Contents]) -> list[Cost]:
    """The costs that fronts are compared by: BitOPs, packed weights, RAM, and tables that all runs have."""
    shared = [{cost.name for cost in run.costs} for run in runs]
    wanted = [cost for cost in runs[0].costs if cost.name in (*AXES, "ram_bytes") or cost.partial]
    return [cost for cost in wanted if all(cost.name in names for names in shared)]


def measured_volumes(runs: Sequence[Contents], cost: str) -> list[float | None]:
    """Of each run, of all that it has measured, by validation top-1; None without measurements."""
    groups = [[(m.costs, m.top1) for m in run.measurements if cost in m.costs] for run in runs]
    return [None if volume is None else volume(_accuracies(own)) for volume, own in zip(_volumes(groups, cost), groups)]


def chosen_volumes(runs: Sequence[Contents], cost: str) -> list[tuple[Interval | float | None, float | None]]:
    """Of each run, of the networks that it has chosen, by test top-1, with its interval if the run has the answers of
    all of them; and of its networks that were made by hand. None without such networks."""
    chosen = [[m for m in run.family if cost in m.costs] for run in runs]
    by_hand = [[m for m in run.by_hand if cost in m.costs] for run in runs]
    groups = [[(m.costs, m.top1_test) for m in members] for members in (*chosen, *by_hand)]
    volumes = _volumes(groups, cost)
    values = [None if volume is None else volume(_accuracies(own)) for volume, own in zip(volumes, groups)]
    intervals = [_interval(run, members, volume) for run, members, volume in zip(runs, chosen, volumes)]
    return [(interval or value, other) for interval, value, other in zip(intervals, values, values[len(runs) :])]


def _interval(
    run: Contents, members: Sequence[Member], volume: Callable[[np.ndarray], float] | None
) -> Interval | None:
    if volume is None or any(member.name not in run.answers for member in members):
        return None
    answers = [run.answers[member.name][1] for member in members]
    right = [(one.labels == one.predicted).numpy() for one in answers]
    if len({len(row) for row in right}) > 1 or len(right[0]) < 2:  # measured on other images than the others
        return None
    return accuracies_interval(volume, np.stack(right))


def _accuracies(points: Points) -> np.ndarray:
    return np.array([accuracy for _, accuracy in points])


def _volumes(groups: Sequence[Points], cost: str) -> list[Callable[[np.ndarray], float] | None]:
    """Of each group of networks, its volume in the box of all groups as a function of its accuracies; None if it is
    empty."""
    every = np.array([(np.log(costs[cost]), 1 - top1) for points in groups for costs, top1 in points]).reshape(-1, 2)
    if not len(every):
        return [None] * len(groups)
    low = every.min(axis=0)
    extent = np.ptp(every, axis=0)
    extent = np.where(extent > 0, extent, 1)

    def of(points: Points) -> Callable[[np.ndarray], float]:
        x = (np.log([costs[cost] for costs, _ in points]) - low[0]) / extent[0]

        def volume(accuracies: np.ndarray) -> float:
            errors = np.maximum((1 - accuracies - low[1]) / extent[1], 0)  # draws can be better than what was measured
            return hypervolume(np.stack([x, errors], axis=1), (1, 1))

        return volume

    return [of(points) if points else None for points in groups]
