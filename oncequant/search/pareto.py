"""Pareto fronts, and the choices people make on them. All objectives are minimised."""

from collections.abc import Sequence

import numpy as np

from oncequant.answers import Metric
from oncequant.cost import Budget, bitops
from oncequant.records import Measurement
from oncequant.search.budget import BudgetError
from oncequant.space import SearchSpace


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Indices of the non-dominated rows of `points` (n, m), in lexicographic order of the rows; int64, shape (k,).

    A point is dominated if another is no worse in every column and better in one. Of equal points the first is kept.
    """
    points = np.asarray(points, dtype=float)
    order = np.lexsort(points.T[::-1])  # by the first column, ties by the second, ...; stable
    if points.shape[1] == 2:
        # sorted by the first column, a point is on the front if its second is below all before it
        second = points[order, 1]
        before = np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
        return order[(second < before) | (np.arange(len(order)) == 0)]
    front = []
    while len(order):
        front.append(order[0])  # nothing after it in lexicographic order can dominate it
        order = order[(points[order] < points[order[0]]).any(axis=1)]
    return np.array(front, dtype=np.int64)


def hypervolume(points: np.ndarray, reference: Sequence[float]) -> float:
    """Volume that `points` (n, m) dominate up to the point `reference` (m,); points beyond it count nothing."""
    from pymoo.indicators.hv import HV  # half a second

    if len(points) == 0:
        return 0.0
    return float(HV(ref_point=np.asarray(reference, dtype=float))(np.asarray(points, dtype=float)))


def spread(
    measurements: Sequence[Measurement], k: int, cost: str = "bitops", metric: Metric = "top1"
) -> list[Measurement]:
    """`k` measurements along the Pareto front of error and cost (fewer if the front is smaller), cheapest first.

    Both ends, and between them those nearest to equal steps of log cost: S, M and L for k = 3. For k = 1 the most
    accurate.
    """
    points = np.array([[m.costs[cost], 1 - m.accuracy(metric)] for m in measurements]).reshape(-1, 2)
    front = [measurements[i] for i in pareto_front(points)]  # cheapest first, hence most accurate last
    log_costs = np.log([m.costs[cost] for m in front])
    targets = np.linspace(log_costs[-1], log_costs[0], k) if front else np.empty(0)
    left, chosen = list(range(len(front))), []
    for target in [*targets[:1], *targets[1:][::-1]][: len(front)]:  # the two ends first
        chosen.append(min(left, key=lambda i: abs(log_costs[i] - target)))
        left.remove(chosen[-1])
    return [front[i] for i in sorted(chosen)]


def best_under(
    measurements: Sequence[Measurement], budgets: Sequence[Budget], space: SearchSpace, metric: Metric = "top1"
) -> Measurement:
    """The most accurate measurement within all budgets; of equally accurate ones that with the fewest BitOPs.

    Costs are those of `space`. Raises BudgetError if no measurement fits.
    """
    specs = [space.layers(space.complete(m.arch)) for m in measurements]
    fitting = [i for i, s in enumerate(specs) if all(budget.holds(s) for budget in budgets)]
    if not fitting:
        wanted = ", ".join(map(str, budgets)) or "no budget"
        raise BudgetError(f"none of {len(measurements)} measured architectures is within {wanted}")
    return measurements[min(fitting, key=lambda i: (-measurements[i].accuracy(metric), bitops(specs[i])))]
