"""NSGA-II (Deb et al., 2002, https://doi.org/10.1109/4235.996017) on measured error and log cost, by pymoo.

Genes are the codes of the space, so crossover is uniform and mutation redraws a choice. Budgets are pymoo's constraints
G <= 0; offspring over budget take part in the ranking but are never measured. Adapted to the few measurements that a
search can pay: small populations, a quarter of which is renewed per generation; no architecture is proposed twice; and
with budgets half of the first population lies close to the limit and most tournaments are decided by error alone,
because crowding would spread the effort evenly over a front of which the best under the budget is only one end.
"""

from collections.abc import Callable, Sequence

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2, binary_tournament
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.problems.static import StaticProblem

from oncequant.cost import Budget, Cost
from oncequant.search.budget import cost_batch, covering_codes, limit_codes
from oncequant.search.measurements import MeasureAll
from oncequant.search.trials import Trial, Trials
from oncequant.space import SearchSpace

REDRAWN = 1.0  # expected number of choices that a mutation redraws
BY_ERROR = 0.75  # share of the tournaments decided by error alone when there are budgets
WORST = 1.0  # error that an architecture over budget, hence not measured, is ranked with


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
    """Measure (the accuracy of architectures) `evaluations` different architectures within all budgets."""
    rng = np.random.default_rng(seed)
    trials = Trials(space, measure, budgets=budgets, cost=cost, evaluations=evaluations, progress=progress)
    size = min(max(8, round(evaluations**0.5)), evaluations)  # population, 14 for 200 evaluations
    at_limit = size // 2 if budgets else 0
    first = covering_codes(space, budgets, cost, rng, size - at_limit)
    if at_limit:
        first = np.concatenate([first, limit_codes(space, budgets, rng, at_limit)])

    problem = Problem(n_var=len(space.free), n_obj=2, n_ieq_constr=len(budgets), xl=0, xu=space.cardinalities - 1)
    algorithm = NSGA2(
        pop_size=size,
        n_offsprings=max(2, size // 4),
        sampling=trials.unseen(first),
        selection=TournamentSelection(tournament_by_error if budgets else binary_tournament),
        crossover=UniformCrossover(),
        mutation=Redraw(space, REDRAWN / max(1, len(space.free))),
        eliminate_duplicates=OnlyUnseen(trials.has),
        seed=seed,
    )
    algorithm.setup(problem, termination=NoTermination())
    while trials.remaining and space.free:  # crossover fails on zero genes
        offspring = algorithm.ask()
        if offspring is None:  # crossover and mutation find nothing new any more
            break
        if not len(trials.unseen(offspring.get("X"))):  # ... or nothing within the budgets
            offspring = Population.new(X=trials.draw(rng)[: algorithm.n_offsprings])
            if not len(offspring):
                break
        trials.measure(offspring.get("X"))
        rank(trials, problem, offspring)
        algorithm.tell(infills=offspring)
    while trials.remaining and len(codes := trials.draw(rng)):  # the last ones of a small space
        trials.measure(codes)
    return trials.trials


def rank(trials: Trials, problem: Problem, offspring: Population) -> None:
    """`assign` the measured errors to `offspring`."""
    error = {row.tobytes(): error for row, error in zip(trials.codes, trials.errors)}
    errors = [error.get(row.tobytes(), WORST) for row in offspring.get("X")]
    assign(problem, offspring, errors, trials.space, trials.cost, trials.budgets)


def assign(
    problem: Problem,
    population: Population,
    errors: Sequence[float] | np.ndarray,
    space: SearchSpace,
    cost: Cost,
    budgets: Sequence[Budget],
) -> None:
    """Give pymoo the objectives F (error, log cost) and the constraints G (cost / limit - 1) of a population."""
    codes = population.get("X")
    values = {"F": np.column_stack([errors, np.log(cost_batch(space, cost, codes))])}
    if budgets:
        values["G"] = np.column_stack([cost_batch(space, b.cost, codes) / b.limit - 1 for b in budgets])
    Evaluator().eval(StaticProblem(problem, **values), population)


def tournament_by_error(pop: Population, P: np.ndarray, algorithm: NSGA2, **kwargs) -> np.ndarray:
    """Winners (n, 1) of the pairs `P` (n, 2): some as in NSGA-II, the others by the lower error."""
    winners = binary_tournament(pop, P, algorithm, **kwargs)
    errors = pop.get("F")[:, 0]
    by_error = np.take_along_axis(P, errors[P].argmin(axis=1)[:, None], axis=1)
    return np.where(algorithm.random_state.random(winners.shape) < BY_ERROR, by_error, winners)


class Redraw(Mutation):
    """Redraw every choice with the same probability; genes of absent blocks are set to 0 again after the crossover."""

    def __init__(self, space: SearchSpace, probability: float):
        super().__init__()
        self.space, self.probability = space, probability

    def _do(self, problem, X, random_state=None, **kwargs):
        return self.space.mutate_codes(X, self.probability, random_state)


class OnlyUnseen(DuplicateElimination):
    """Drop offspring that equal another one, one of the population, or anything seen before."""

    def __init__(self, seen_before: Callable[[np.ndarray], bool] | None = None):
        super().__init__()
        self.seen_before = seen_before

    def _do(self, pop, other, is_duplicate):
        seen = set() if other is None else {row.tobytes() for row in other.get("X")}
        for i, row in enumerate(pop.get("X")):
            is_duplicate[i] = row.tobytes() in seen or (self.seen_before is not None and self.seen_before(row))
            if other is None:
                seen.add(row.tobytes())
        return is_duplicate
