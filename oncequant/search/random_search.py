"""Random search: uniform architectures within the budgets; the baseline that every other searcher has to beat."""

from collections.abc import Callable, Sequence

import numpy as np

from oncequant.cost import Budget, Cost
from oncequant.search.measurements import MeasureAll
from oncequant.search.trials import Trial, Trials
from oncequant.space import SearchSpace


def search(
    space: SearchSpace,
    measure: MeasureAll,
    *,
    budgets: Sequence[Budget] = (),
    cost: str | Cost = "bitops",
    evaluations: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trial]:
    """Measure (the accuracy of architectures) `evaluations` different random architectures within all budgets."""
    rng = np.random.default_rng(seed)
    trials = Trials(space, measure, budgets=budgets, cost=cost, evaluations=evaluations, progress=progress)
    while trials.remaining and len(codes := trials.draw(rng)):
        trials.measure(codes)
    return trials.trials
