"""What a search has measured so far, and the promises all searchers share.

No architecture is measured twice, none is over a budget, and there are exactly `evaluations` of them unless fewer
architectures fit the budgets.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from oncequant.arch import Arch
from oncequant.cost import Budget, Cost, find_cost
from oncequant.cost_table import check_layers
from oncequant.search.budget import check_reachable, cost_batch, feasible_by_growth, feasible_codes, within
from oncequant.search.measurements import MeasureAll
from oncequant.space import SearchSpace


class Trial(NamedTuple):
    """One measured architecture."""

    arch: Arch
    accuracy: float
    """By the metric of the search."""


class Trials:
    """The measured architectures of one search, in the order of measuring.

    Raises ValueError for an unknown cost or no evaluations, BudgetError for a budget that no architecture meets.
    """

    def __init__(
        self,
        space: SearchSpace,
        measure: MeasureAll,
        *,
        budgets: Sequence[Budget],
        cost: str | Cost,
        evaluations: int,
        progress: Callable[[int, int], None] | None,
    ):
        cost = find_cost(cost)
        if evaluations < 1:
            raise ValueError(f"a search needs at least one evaluation, got {evaluations}")
        check_layers(space, cost)
        check_reachable(space, budgets)
        self.space, self.budgets, self.cost, self.evaluations = space, tuple(budgets), cost, evaluations
        self.trials: list[Trial] = []
        self.codes = np.empty((0, len(space.free)), dtype=np.int64)
        self.errors, self.log_costs = np.empty(0), np.empty(0)
        self._measure, self._progress = measure, progress
        self._seen: set[bytes] = set()

    @property
    def remaining(self) -> int:
        """Evaluations left."""
        return self.evaluations - len(self.trials)

    def has(self, codes: np.ndarray) -> bool:
        """Is the architecture `codes` (genes,) measured already?"""
        return codes.tobytes() in self._seen

    def unseen(self, codes: np.ndarray) -> np.ndarray:
        """Rows of `codes` (n, genes) that are within the budgets and not measured yet, each once."""
        new = {row.tobytes(): row for row in codes[within(self.space, self.budgets, codes)] if not self.has(row)}
        return np.array(list(new.values()), dtype=np.int64).reshape(len(new), codes.shape[1])

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Random architectures within the budgets that are not measured yet, (n, genes); n = 0 if there are none left.

        Uniform as long as random draws hit new ones; the last few of a small space are found by enumeration.
        """
        codes = self.unseen(feasible_codes(self.space, self.budgets, rng, 2 * self.remaining + 64))
        return codes if len(codes) else self.unseen(self._enumerated)

    @cached_property
    def _enumerated(self) -> np.ndarray:
        """As many architectures as there are evaluations, or all: some are unseen while any are."""
        return feasible_by_growth(self.space, self.budgets, self.evaluations)

    def measure(self, codes: np.ndarray) -> None:
        """Measure the rows of `codes` that are `unseen`, as many as evaluations remain."""
        codes = self.unseen(codes)[: self.remaining]
        archs = [self.space.decode(row) for row in codes]
        log_costs = np.log(cost_batch(self.space, self.cost, codes))
        for row, arch, log_cost, accuracy in zip(codes, archs, log_costs, self._measure(archs)):
            self.trials.append(Trial(arch, accuracy))
            self.codes = np.concatenate([self.codes, row[None]])
            self.errors = np.append(self.errors, 1 - accuracy)
            self.log_costs = np.append(self.log_costs, log_cost)
            self._seen.add(row.tobytes())
            if self._progress:
                self._progress(len(self.trials), self.evaluations)
