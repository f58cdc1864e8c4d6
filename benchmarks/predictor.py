"""Speed of the accuracy predictor and of the search over it, on the imagenet space with 2, 3 and 4 bits.

    python benchmarks/predictor.py [--out results/NAME.csv]

The space is that of QFA (width 1.2). Accuracies are synthetic: what is measured is time, which does not depend on them.
`encode + predict` starts from codes; it includes the costs that the predictor reads. The front starts from the fitted
architectures and includes its own costs; the budget question is the same search, smaller and with a constraint.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from rows import measured, save

from oncequant.cost import COSTS, Budget
from oncequant.models import space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.search import predicted
from oncequant.search.budget import cost_batch
from oncequant.search.predictor import encode, fit_predictor, quality


@dataclass(frozen=True)
class Options:
    """What to measure."""

    pairs: int = 2000
    """Architectures that the predictor is fitted to."""
    architectures: int = 100_000
    """Architectures that are encoded and predicted."""
    population: int = 500
    generations: int = 1000
    budget_population: int = 100
    budget_generations: int = 100
    passes: int = 3
    """Median of so many, but the front is searched for once."""
    out: Path | None = None


def seconds(task: Callable[[], object], passes: int) -> float:
    """Median time of a task."""
    times = []
    for _ in range(passes):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(options: Options) -> None:
    """Measure and print a table."""
    bits = (2, 3, 4)
    config = replace(PRESETS["imagenet"], width=1.2, weight_bits=bits, act_bits=bits, edge_bits=8)
    space, rng = space_of(config), np.random.default_rng(0)
    codes, many = space.sample_codes(rng, options.pairs), space.sample_codes(rng, options.architectures)
    bitops = cost_batch(space, "bitops", codes)
    error = (bitops / bitops.min()) ** -0.3 * rng.uniform(0.3, 0.35, size=len(codes))
    predictor = fit_predictor(space, codes, 1 - error, seed=0)
    budget = Budget(COSTS["bitops"], float(np.median(bitops)))

    def fit() -> None:
        fit_predictor(space, codes, 1 - error, seed=0)

    def cross_validate() -> None:
        quality(space, codes, 1 - error, seed=0)

    def encode_all() -> None:
        for start in range(0, len(many), 4096):
            encode(space, many[start : start + 4096])

    def predict_all() -> None:
        predictor.accuracy(many)

    def front() -> None:
        sizes = dict(population=options.population, generations=options.generations)
        predicted.search(space, predictor, first=codes, seed=0, **sizes)

    def budget_question() -> None:
        sizes = dict(population=options.budget_population, generations=options.budget_generations)
        predicted.search(space, predictor, budgets=[budget], first=codes, seed=0, **sizes)

    looked_at = options.population * (options.generations + 1)
    looked_at_under_budget = options.budget_population * (options.budget_generations + 1)
    tasks = [  # name, what to do, how often, architectures
        (f"fit, {options.pairs} pairs", fit, options.passes, None),
        (f"quality, {options.pairs} pairs", cross_validate, options.passes, None),
        ("encode", encode_all, options.passes, len(many)),
        ("encode + predict", predict_all, options.passes, len(many)),
        (f"front, {options.population} x {options.generations}", front, 1, looked_at),
        (
            f"budget, {options.budget_population} x {options.budget_generations}",
            budget_question,
            options.passes,
            looked_at_under_budget,
        ),
    ]
    rows = []
    for name, task, passes, architectures in tasks:
        duration = seconds(task, passes)
        rate = architectures and round(architectures / duration)
        rows.append(
            measured(task=name, seconds=round(duration, 3), architectures_per_second=rate, numpy=np.__version__)
        )
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
