"""Budgets on architectures: refuse what cannot be met, and find architectures that fit.

Everything rests on one property of the spaces of elastic families: at a given resolution every monotone cost
(`Cost.monotone`) grows with every choice. So the smallest choices minimise all costs at once. Most costs grow with the
resolution too; `qfa_mflops` may fall. Hence budgets are jointly reachable as soon as the smallest choices keep them at
some resolution. Every feasible architecture is connected to those by single choices, lowered one after the other
without leaving the budget, the resolution last.

Other costs, such as the latency of a device, may be less with a larger choice. For their budgets a start is looked for,
choice by choice (`_least_codes`). It may be missed, and so may architectures that single choices do not connect to it.
"""

from collections.abc import Sequence

import numpy as np

from oncequant.arch import FLOAT_BITS, Arch
from oncequant.cost import Budget, Cost, find_cost
from oncequant.cost_table import check_layers, layer_variants
from oncequant.memory import float_layers
from oncequant.space import SearchSpace

REJECTION_BATCHES = 16  # uniform draws before the rest is shrunk into the budget
BATCH = 1024
POOL = 64  # candidates drawn per architecture kept


class BudgetError(ValueError):
    """No architecture is within a budget; the message says what the smallest one costs."""


def check_reachable(space: SearchSpace, budgets: Sequence[Budget]) -> None:
    """Raise BudgetError if no architecture keeps all budgets, TableError if a budget's table lacks a layer."""
    check_in_c(space, budgets)
    for budget in budgets:
        check_layers(space, budget.cost)
    smallest_codes(space, budgets)


def check_in_c(space: SearchSpace, budgets: Sequence[Budget]) -> None:
    """Raise BudgetError for budgets of structural costs if some layer of the space can be in float only."""
    wanted = [budget for budget in budgets if budget.cost.structural]
    for name, spec in layer_variants(space) if wanted else ():
        if np.all((spec.weight_bits == FLOAT_BITS) | (spec.act_bits == FLOAT_BITS)):
            raise BudgetError(
                f"{wanted[0].target or wanted[0]}: networks with a layer in float cannot run in C, and {name} has no "
                "other bit-widths here"
            )


def smallest_codes(space: SearchSpace, budgets: Sequence[Budget]) -> np.ndarray:
    """Codes (genes,) of the smallest choices at the lowest resolution that keeps all budgets. Raises BudgetError.

    If they keep them at no resolution, and a cost is not monotone, of the architecture that is nearest to the budgets.
    """
    codes = space.encode(space.smallest())[None]
    if "resolution" in space.free:
        codes = np.repeat(codes, len(space.choices["resolution"]), axis=0)
        codes[:, space.free.index("resolution")] = np.arange(len(codes))
    fits = within(space, budgets, codes)
    if fits.any():
        return codes[fits.argmax()]
    if not all(budget.cost.monotone for budget in budgets):
        codes = np.concatenate([codes, _least_codes(space, budgets, codes[0])[None]])
        if within(space, budgets, codes[-1:])[0]:
            return codes[-1]
    for budget in budgets:
        least = cost_batch(space, budget.cost, codes).min()
        if least > budget.limit:
            of = "of this search space" if budget.cost.monotone else "that was found"
            raise BudgetError(f"budget {budget} cannot be met: the smallest {budget.cost} {of} is {least:.15g}")
    raise BudgetError(f"budgets {', '.join(map(str, budgets))} can be met one by one, but not together")


def _least_codes(space: SearchSpace, budgets: Sequence[Budget], codes: np.ndarray) -> np.ndarray:
    """From `codes` (genes,), one choice after the other at the value with the most `slack`, until none has more."""
    best, previous = slack(space, budgets, codes[None])[0], -np.inf
    while best > previous:
        previous = best
        for column, count in enumerate(space.cardinalities):
            values = np.tile(codes, (count, 1))
            values[:, column] = np.arange(count)
            values = space.canonical(values)
            room = slack(space, budgets, values)
            if room.max() > best:
                codes, best = values[room.argmax()], room.max()
    return codes


def check_each(space: SearchSpace, budgets: Sequence[Budget]) -> None:
    """Raise BudgetError if a budget is below the cheapest architecture of a space whose choices add up (`cheapest`).

    The least of costs that are no sums over layers is looked for as in other spaces."""
    check_in_c(space, budgets)
    for budget in budgets:
        if not budget.cost.additive and not budget.cost.monotone:
            check_reachable(space, [budget])
            continue
        least = budget.cost(space.layers(cheapest(space, budget.cost)))
        if least > budget.limit:
            raise BudgetError(f"budget {budget} cannot be met: the least {budget.cost} of this space is {least:.15g}")


def cheapest(space: SearchSpace, cost: Cost) -> Arch:
    """The architecture of the least cost where each choice adds its own, as DNAS's pairs do.

    Each is decided alone: fewer bits need not be cheaper, as shortcuts around a block that is left out have bits of
    their own.
    """
    arch = space.smallest()
    for name in space.free:
        each = [arch.replace(**{name: value}) for value in space.choices[name]]
        arch = min(each, key=lambda one: cost(space.layers(one)))
    return arch


def cost_batch(space: SearchSpace, cost: str | Cost, codes: np.ndarray) -> np.ndarray:
    """A cost, or that of this name, of the architectures `codes` (n, genes), shape (n,), float."""
    # a space with one point has no vectors in its specs, hence broadcast
    return np.broadcast_to(np.asarray(find_cost(cost)(space.layers_batch(codes)), dtype=float), len(codes))


def slack(space: SearchSpace, budgets: Sequence[Budget], codes: np.ndarray) -> np.ndarray:
    """log(limit / cost) of the tightest budget, shape (n,); negative is over budget, infinite without budgets. Where a
    budget is for networks in C, every layer in float takes much away."""
    slacks = [np.log(budget.limit / cost_batch(space, budget.cost, codes)) for budget in budgets]
    least = np.min(slacks, axis=0) if slacks else np.full(len(codes), np.inf)
    if any(budget.cost.structural for budget in budgets):
        least = least - 1000 * float_layers(space.layers_batch(codes))
    return least


def within(space: SearchSpace, budgets: Sequence[Budget], codes: np.ndarray) -> np.ndarray:
    """Which of the architectures `codes` (n, genes) keep all budgets, shape (n,), bool."""
    fits = np.ones(len(codes), dtype=bool)
    if budgets:
        specs = space.layers_batch(codes)
        for budget in budgets:
            fits &= budget.holds(specs)
    return fits


def shrink(space: SearchSpace, budgets: Sequence[Budget], codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace random choices of `codes` (n, genes) by those of `smallest_codes`, as few as needed to keep all budgets.

    Each architecture gets its own random order of choices; how many of them to replace is found by bisection, which
    ends with a feasible architecture, at worst the smallest one. Raises BudgetError.
    """
    smallest = smallest_codes(space, budgets)
    order = np.argsort(rng.random(codes.shape), axis=1).argsort(axis=1)  # (n, genes), position of the gene in its row

    def lowered(count: np.ndarray) -> np.ndarray:
        return space.canonical(np.where(order < count[:, None], smallest, codes))

    too_few, enough = np.full(len(codes), -1), np.full(len(codes), codes.shape[1])
    while (enough - too_few > 1).any():
        middle = (too_few + enough) // 2
        fits = within(space, budgets, lowered(middle))
        too_few, enough = np.where(fits, too_few, middle), np.where(fits, middle, enough)
    return lowered(enough)


def feasible_codes(space: SearchSpace, budgets: Sequence[Budget], rng: np.random.Generator, n: int) -> np.ndarray:
    """`n` random architectures within all budgets, shape (n, genes); repetitions are possible.

    Uniform by rejection; where a budget admits too few, the rest are uniform draws shrunk into it. Raises BudgetError.
    """
    smallest_codes(space, budgets)
    found = np.empty((0, len(space.free)), dtype=np.int64)
    for _ in range(REJECTION_BATCHES):
        if len(found) >= n:
            return found[:n]
        codes = space.sample_codes(rng, BATCH)
        found = np.concatenate([found, codes[within(space, budgets, codes)]])
    missing = max(0, n - len(found))
    return np.concatenate([found[:n], shrink(space, budgets, space.sample_codes(rng, missing), rng)])


def covering_codes(
    space: SearchSpace, budgets: Sequence[Budget], cost: str | Cost, rng: np.random.Generator, n: int
) -> np.ndarray:
    """`n` random architectures within the budgets, evenly over the logarithm of a cost, shape (n, genes).

    Uniform draws crowd in the middle of the cost range. Here each candidate of a pool has its own leaning towards small
    or large values, candidates over budget are shrunk into it, and those nearest above `n` equal steps of log cost are
    taken. The smallest architecture and the most expensive candidate are the ends. Repetitions are possible where
    there are few architectures. Raises BudgetError.
    """
    leaning = np.exp(rng.uniform(-2, 2, size=(POOL * n, 1)))
    pool = (space.cardinalities * rng.random((POOL * n, len(space.free))) ** leaning).astype(np.int64)
    pool = np.concatenate([[smallest_codes(space, budgets), space.encode(space.largest())], pool])
    pool = shrink(space, budgets, space.canonical(pool), rng)
    log_cost = np.log(cost_batch(space, cost, pool))
    order = np.argsort(log_cost)
    steps = np.linspace(log_cost[order[0]], log_cost[order[-1]], n)
    nearest = np.searchsorted(log_cost[order], steps[1:-1])
    return pool[np.concatenate([order[[0, -1][: min(n, 2)]], order[nearest]])]


def limit_codes(space: SearchSpace, budgets: Sequence[Budget], rng: np.random.Generator, n: int) -> np.ndarray:
    """`n` random architectures close to the limit of the tightest budget, shape (n, genes); repetitions are possible.

    The best architecture under a budget is nearly always one that uses it up. Raises BudgetError.
    """
    pool = shrink(space, budgets, space.sample_codes(rng, POOL * n), rng)
    closest = np.argsort(slack(space, budgets, pool))[: POOL * n // 8]
    return pool[rng.permutation(closest)[:n]]


def feasible_by_growth(space: SearchSpace, budgets: Sequence[Budget], at_least: int) -> np.ndarray:
    """Different architectures within the budgets, found by growing the smallest one choice at a time.

    Stops once there are `at_least`, or else returns every feasible architecture there is. Shape (m, genes).
    Raises BudgetError.
    """
    smallest = smallest_codes(space, budgets)
    columns = np.repeat(np.arange(len(smallest)), space.cardinalities)  # one row per value of every choice
    values = np.concatenate([np.arange(0), *map(np.arange, space.cardinalities)])
    found, waiting = {smallest.tobytes(): smallest}, [smallest]
    while waiting and len(found) < at_least:
        neighbours = np.tile(waiting.pop(0), (len(columns), 1))
        neighbours[np.arange(len(columns)), columns] = values
        neighbours = space.canonical(neighbours)
        for codes in neighbours[within(space, budgets, neighbours)]:
            if codes.tobytes() not in found:
                found[codes.tobytes()] = codes
                waiting.append(codes)
    return np.array(list(found.values()))
