"""Search of QFA (https://arxiv.org/abs/2105.08952): NSGA-II on predicted error and log cost, by pymoo.

Predictions cost next to nothing, so populations are large, every individual is replaced in each generation, and there
is no limit to the number of architectures looked at. The result is to be measured: a predictor is wrong about some, and
a search finds those it is too optimistic about.

Rates of mutation and crossover are those of the official code. Differently from it, parents win a tournament instead of
being drawn, children are mutated once instead of twice, equal architectures are not kept twice, all accuracies are
predicted ones (it compares measured percent with predicted fractions), and populations keep their size.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.binx import BinomialCrossover

from oncequant.cost import Budget, Cost, find_cost
from oncequant.cost_table import check_layers
from oncequant.search.budget import check_reachable, cost_batch, covering_codes, feasible_by_growth, within
from oncequant.search.nsga2 import OnlyUnseen, Redraw, assign
from oncequant.search.pareto import pareto_front
from oncequant.search.predictor import AccuracyPredictor
from oncequant.space import SearchSpace

MUTATION = 0.02  # probability of each choice to be redrawn
SWAP = 0.007  # probability of each choice to be swapped between parents, but at least one; fronts are worse with 0.5


def search(
    space: SearchSpace,
    predictor: AccuracyPredictor,
    *,
    cost: str | Cost = "bitops",
    budgets: Sequence[Budget] = (),
    fixed: Mapping[str, int] | None = None,
    first: np.ndarray | None = None,
    population: int = 500,
    generations: int = 1000,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Codes (k, genes) of the predicted Pareto front of error and `cost` within all budgets, cheapest first.

    `fixed` holds choices at one value (the same bits everywhere, for instance). `first` (n, genes) are architectures
    to start from, best those that were measured. `progress` is told how many of the generations are done.
    Raises ValueError for an unknown cost, BudgetError for a budget that no architecture meets, ArchError for a fixed
    value that the space does not have.
    """
    cost = find_cost(cost)
    if population < 2 or generations < 0:
        raise ValueError(f"a search needs a population of at least 2, got {population}, and {generations} generations")
    narrow = space.restrict(fixed or {})
    check_layers(narrow, cost)
    check_reachable(narrow, budgets)
    columns = [space.free.index(name) for name in narrow.free]
    point = space.encode(narrow.smallest())

    def widen(codes: np.ndarray) -> np.ndarray:
        """Codes of `space` from those of `narrow`."""
        wide = np.tile(point, (len(codes), 1))
        wide[:, columns] = codes
        return space.canonical(wide)

    def errors(codes: np.ndarray) -> np.ndarray:
        return 1 - predictor.accuracy(widen(codes))

    def front(codes: np.ndarray) -> np.ndarray:
        """Codes of `space`, cheapest first, of those that are within the budgets and not dominated."""
        codes = codes[within(narrow, budgets, codes)]
        return widen(codes[pareto_front(np.column_stack([cost_batch(narrow, cost, codes), errors(codes)]))])

    rng = np.random.default_rng(seed)
    own = np.empty((0, len(space.free)), dtype=np.int64) if first is None else first
    start = first_population(narrow, budgets, cost, narrow.canonical(own[:, columns]), population, rng)
    if len(start) < population:  # there are no more
        return front(start)
    problem = Problem(n_var=len(columns), n_obj=2, n_ieq_constr=len(budgets), xl=0, xu=narrow.cardinalities - 1)
    algorithm = NSGA2(
        pop_size=population,
        sampling=start,
        crossover=BinomialCrossover(bias=SWAP),
        mutation=Redraw(narrow, MUTATION),
        eliminate_duplicates=OnlyUnseen(),
        seed=seed,
    )
    algorithm.setup(problem, termination=NoTermination())
    for generation in range(generations + 1):  # before the first one, the start
        individuals = algorithm.ask()
        if individuals is None:  # crossover and mutation find nothing new any more
            break
        assign(problem, individuals, errors(individuals.get("X")), narrow, cost, budgets)
        algorithm.tell(infills=individuals)
        if progress and generation:
            progress(generation, generations)
    return front(algorithm.pop.get("X"))


def first_population(
    space: SearchSpace,
    budgets: Sequence[Budget],
    cost: Cost,
    own: np.ndarray,
    population: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """`population` different architectures within the budgets, (n, genes); fewer only if there are no more.

    Those of `own` (n, genes) that are within the budgets, some of them at random if they are too many; the others
    cover the range of log cost.
    """
    codes = rng.permutation(different(own[within(space, budgets, own)]))[:population]
    while missing := population - len(codes):
        before = len(codes)
        codes = different(np.concatenate([codes, covering_codes(space, budgets, cost, rng, missing)]))
        if len(codes) - before < missing / 10:  # a small space or a tight budget: count what there is
            codes = different(np.concatenate([codes, feasible_by_growth(space, budgets, population)]))[:population]
            break
    return codes


def different(codes: np.ndarray) -> np.ndarray:
    """The rows of `codes` (n, genes), each once, in order of first appearance."""
    return codes[np.sort(np.unique(codes, axis=0, return_index=True)[1])]
