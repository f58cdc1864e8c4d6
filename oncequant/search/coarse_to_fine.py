"""Coarse-to-fine search of OQAT (https://arxiv.org/abs/2010.04354): cover the cost range, then perturb the best.

Coarse: random architectures spread over the range of log cost. Fine: again and again, for one bin of log cost after
the other, mutate the best architecture of the bin and measure one mutant that stays in the bin (four bins together, so
that up to four processes share the work); the mutations become finer towards the end. The paper's description is short,
so two things are ours:

- "Best of the bin" is by the error relative to the trend of error over log cost, and neighbouring bins count with a
  penalty for the distance. What is good for its cost is a good start for a slightly different cost too; on synthetic
  accuracies the gain in hypervolume over random search was a third to a half larger than with the bin's own front.
- With budgets, every second fine measurement is a mutant close to the limit of the tightest budget, of one of the most
  accurate architectures so far, since the best under a budget nearly uses it up.
"""

from collections.abc import Callable, Sequence

import numpy as np

from oncequant.cost import Budget, Cost
from oncequant.search.budget import cost_batch, covering_codes, slack
from oncequant.search.measurements import MeasureAll
from oncequant.search.trials import Trial, Trials
from oncequant.space import SearchSpace

COARSE = 0.3  # share of the evaluations
BINS = 12
REDRAWN = (4.0, 1.0)  # expected number of choices that a mutation redraws, at the start and at the end
MUTANTS = 64  # candidates per measurement
DISTANCE_PENALTY = 3.0  # standard deviations of the error, from one end of the cost range to the other
NEAR_LIMIT = 0.1  # log(limit / cost) that counts as close to the limit
AT_ONCE = 4  # fine measurements proposed together, which several processes can share
BEST = 3  # most accurate architectures that are mutated close to the limit


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
    trials.measure(covering_codes(space, budgets, cost, rng, max(1, round(COARSE * evaluations))))
    step = 0
    while trials.remaining:
        proposed = [propose(trials, step + i, rng) for i in range(min(AT_ONCE, trials.remaining))]
        proposed = [mutant for mutant in proposed if mutant is not None]
        if not proposed:  # every architecture within the budgets is measured
            break
        trials.measure(np.array(proposed))
        step += AT_ONCE
    return trials.trials


def propose(trials: Trials, step: int, rng: np.random.Generator) -> np.ndarray | None:
    """The architecture (genes,) to measure at one step of the fine phase; None if there is none left."""
    space, budgets = trials.space, trials.budgets
    redrawn = REDRAWN[0] * (REDRAWN[1] / REDRAWN[0]) ** (len(trials.trials) / trials.evaluations)
    at_limit = bool(budgets) and step % 2 == 1
    if at_limit:
        parent = rng.choice(np.argsort(trials.errors)[:BEST])
    else:
        centre = (step // (2 if budgets else 1) % BINS + 0.5) / BINS
        parent = best_near(trials.log_costs, trials.errors, centre)
    probability = min(1.0, redrawn / max(1, len(space.free)))
    mutants = space.mutate_codes(np.repeat(trials.codes[[parent]], MUTANTS, axis=0), probability, rng)
    mutants = trials.unseen(mutants)
    mutants = mutants if len(mutants) else trials.draw(rng)
    if not len(mutants):
        return None
    if at_limit:
        excess = slack(space, budgets, mutants) - NEAR_LIMIT
    else:
        position = relative(trials.log_costs, np.log(cost_batch(space, trials.cost, mutants)))
        excess = abs(position - centre) - 0.5 / BINS
    return mutants[np.maximum(excess, 0).argmin()]  # the first mutant in the wanted range, else the closest to it


def relative(log_costs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Positions of `values` in the range of the measured `log_costs`, 0 to 1."""
    return (values - log_costs.min()) / (float(np.ptp(log_costs)) or 1.0)


def best_near(log_costs: np.ndarray, errors: np.ndarray, centre: float) -> int:
    """Index of the architecture that is best for its cost, near the position `centre` (0 to 1) in the cost range.

    Best for its cost: lowest error relative to a parabola fitted to error (n,) over log cost (n,).
    """
    position = relative(log_costs, log_costs)
    degree = min(2, len(np.unique(position)) - 1)
    residual = errors - np.polyval(np.polyfit(position, errors, degree), position)
    score = residual / (residual.std() or 1.0) + DISTANCE_PENALTY * abs(position - centre)
    return int(score.argmin())
