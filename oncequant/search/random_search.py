"""Random search: uniform architectures within the budgets; the baseline that every other searcher has to beat."""

from collections.abc import Callable, Sequence

import numpy as np

from oncequant.arch import Arch
from oncequant.cost import Budget
from oncequant.search.budget import feasible_codes
from oncequant.search.trials import Trial, Trials
from oncequant.space import SearchSpace


def search(
    space: SearchSpace,
    measure: Callable[[Arch], float],
    *,
    budgets: Sequence[Budget] = (),
    cost: str = "bitops",
    evaluations: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trial]:
    """Measure (top-1 of an architecture) `evaluations` different random architectures within all budgets."""
    rng = np.random.default_rng(seed)
    trials = Trials(space, measure, budgets=budgets, cost=cost, evaluations=evaluations, progress=progress)
    while trials.remaining:
        codes = trials.unseen(feasible_codes(space, budgets, rng, 2 * trials.remaining + 32))
        codes = codes if len(codes) else trials.unseen_by_growth()
        if not len(codes):  # every architecture within the budgets is measured
            break
        trials.measure(codes)
    return trials.trials
