"""What a search has measured so far, and the promises all searchers share.

No architecture is measured twice, none is over a budget, and there are exactly `evaluations` of them unless fewer
architectures fit the budgets.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from oncequant.arch import Arch
from oncequant.cost import COSTS, Budget
from oncequant.search.budget import check_reachable, cost_batch, feasible_by_growth, within
from oncequant.space import SearchSpace


class Trial(NamedTuple):
    """One measured architecture."""

    arch: Arch
    top1: float


class Trials:
    """The measured architectures of one search, in the order of measuring.

    Raises ValueError for an unknown cost or no evaluations, BudgetError for a budget that no architecture meets.
    """

    def __init__(
        self,
        space: SearchSpace,
        measure: Callable[[Arch], float],
        *,
        budgets: Sequence[Budget],
        cost: str,
        evaluations: int,
        progress: Callable[[int, int], None] | None,
    ):
        if cost not in COSTS:
            raise ValueError(f"unknown cost {cost!r}; the costs are: {', '.join(COSTS)}")
        if evaluations < 1:
            raise ValueError(f"a search needs at least one evaluation, got {evaluations}")
        check_reachable(space, budgets)
        self.space, self.budgets, self.cost, self.evaluations = space, tuple(budgets), cost, evaluations
        self.trials: list[Trial] = []
        self.codes = np.empty((0, len(space.free)), dtype=np.int64)
        self._measure, self._progress = measure, progress
        self._seen: set[bytes] = set()

    @property
    def remaining(self) -> int:
        """Evaluations left."""
        return self.evaluations - len(self.trials)

    @property
    def errors(self) -> np.ndarray:
        """1 - top1 of the measured architectures, shape (n,)."""
        return np.array([1 - trial.top1 for trial in self.trials])

    @property
    def log_costs(self) -> np.ndarray:
        """Logarithm of the search's cost of the measured architectures, shape (n,)."""
        return np.log(cost_batch(self.space, self.cost, self.codes))

    def unseen(self, codes: np.ndarray) -> np.ndarray:
        """Rows of `codes` (n, genes) that are within the budgets and not measured yet, each once."""
        rows = {row.tobytes(): row for row in codes[within(self.space, self.budgets, codes)]}
        rows = [row for key, row in rows.items() if key not in self._seen]
        return np.array(rows, dtype=np.int64).reshape(-1, codes.shape[1])

    def unseen_by_growth(self) -> np.ndarray:
        """One unmeasured architecture found by enumeration, shape (1, genes), or (0, genes) when there is none left.

        For the end of small spaces, where random proposals hardly hit the last ones.
        """
        return self.unseen(feasible_by_growth(self.space, self.budgets, len(self.trials) + 1))[:1]

    def measure(self, codes: np.ndarray) -> None:
        """Measure the rows of `codes` that are `unseen`, as many as evaluations remain."""
        for row in self.unseen(codes)[: self.remaining]:
            arch = self.space.decode(row)
            self.trials.append(Trial(arch, self._measure(arch)))
            self.codes = np.concatenate([self.codes, row[None]])
            self._seen.add(row.tobytes())
            if self._progress:
                self._progress(len(self.trials), self.evaluations)
