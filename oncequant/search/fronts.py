"""From some measured subnets to measured fronts, by the accuracy predictor: the search of QFA."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from oncequant import distributed
from oncequant.answers import Metric
from oncequant.arch import Arch
from oncequant.cost import Budget, find_cost
from oncequant.files import write_json
from oncequant.measure import Judge
from oncequant.network import Network
from oncequant.progress import track
from oncequant.records import Measurement
from oncequant.search import PredictedOptions
from oncequant.search.bits import bit_choices, with_uniform_bits
from oncequant.search.family import measure_codes
from oncequant.search.measurements import MeasurementFile
from oncequant.search.pareto import hypervolume
from oncequant.search.predictor import AccuracyPredictor, fit_predictor, load_predictor, quality, save_predictor
from oncequant.space import SearchSpace

MEASURED_OF_UNIFORM = 6  # subnets of the predicted front of each uniform bit-width that are measured
MEASURED_UNDER_BUDGET = 8
LEARNING = "sample"  # name in measurements.jsonl of the subnets that the predictor learns from first


def measure_predicted(
    supernet: Network,
    memory: MeasurementFile,
    bits: Sequence[int],
    budgets: Sequence[Budget],
    cost: str,
    options: PredictedOptions,
    path: Path,
    judge: Judge,
    seed: int,
    fit_again: bool = True,
) -> AccuracyPredictor:
    """Measure what the predictor finds best, save one fitted again to all there is, and return the one that was used.

    That is the front of error and cost, and those of the uniform bit-widths `bits`; with budgets the best within them.

    With `fit_again` a predictor is fitted to the LEARNING ones alone, so that a search that was killed measures the
    same front again; otherwise it is that of `path`.
    """
    from oncequant.search import predicted  # pymoo takes half a second to import

    space = supernet.space
    seen = distributed.from_main(lambda: pairs(memory, space, LEARNING if fit_again else None))
    fit = partial(fit_predictor, space, *seen, seed=seed, metric=memory.metric)
    predictor = distributed.from_main(lambda: fit() if fit_again else load_predictor(path, space)[0])
    front_of = partial(predicted.search, space, predictor, cost=find_cost(cost, memory.costs), first=seen[0], seed=seed)
    population, generations = options.population, options.generations

    def measured(front: np.ndarray, most: int, name: str, stop_dominated: str | None = None) -> None:
        measure_codes(supernet, memory, evenly(front, most), name, judge, stop_dominated)

    fewer, shorter = max(4, population // 2), max(1, generations // 2)  # where less is to be found
    if budgets:
        front = distributed.from_main(lambda: front_of(budgets=budgets, population=fewer, generations=shorter))
        best = np.argsort(-predictor.accuracy(front), kind="stable")[:MEASURED_UNDER_BUDGET]
        measured(front[best], MEASURED_UNDER_BUDGET, "budget")
    else:
        with track("predict", generations) as bar:
            whole = partial(front_of, population=population, generations=generations)
            front = distributed.from_main(lambda: whole(progress=lambda done, _: bar(done, {})))
        measured(front, options.front_members or len(front), "predicted", stop_dominated=cost)
        for width in sorted(bits) if bit_choices(space) else ():
            uniform = with_uniform_bits(space, space.largest(), width)
            fixed = {name: uniform[name] for name in bit_choices(space)}
            front = distributed.from_main(partial(front_of, fixed=fixed, population=fewer, generations=shorter))
            measured(front, MEASURED_OF_UNIFORM, f"uniform {width} bits")
    distributed.from_main(lambda: keep_predictor(predictor, memory, path, None if budgets else cost, seed))
    return predictor


def evenly(front: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows of `front`, evenly."""
    return front[np.unique(np.linspace(0, len(front) - 1, min(most, len(front))).round().astype(int))]


def pairs(memory: MeasurementFile, space: SearchSpace, searcher: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, genes) and accuracies (n,) of what is measured, by one searcher or all, each architecture once."""
    unique = {m.arch: m.accuracy(memory.metric) for m in memory.read() if searcher in (None, m.searcher)}
    return np.array([space.encode(space.complete(arch)) for arch in unique]), np.array(list(unique.values()))


def learned_from(memory: MeasurementFile, searcher: str | None) -> set[Arch]:
    """What is measured, by one searcher or all, in brief."""
    return {m.arch for m in memory.read() if searcher in (None, m.searcher)}


def keep_predictor(used: AccuracyPredictor, memory: MeasurementFile, path: Path, cost: str | None, seed: int) -> None:
    """Fit to everything measured and save it; after a search of the whole front of `cost`, beside it for the report,
    what the predictor that was `used` said of subnets of the fronts that it had not learned from, and how they compare.
    """
    space, everything = used.space, pairs(memory, used.space, None)
    found = quality(space, *everything, seed=seed)
    save_predictor(path, fit_predictor(space, *everything, seed=seed, metric=used.metric), found)
    here = memory.read()
    learned = {m.arch for m in here if m.searcher == LEARNING}
    fronts = [m for m in here if m.searcher.startswith(("predicted", "uniform")) and m.arch not in learned]
    if cost is None or not fronts:
        return
    said = used.accuracy(np.array([space.encode(space.complete(m.arch)) for m in fronts])).tolist()
    measured = [m.accuracy(used.metric) for m in fronts]
    points = [dict(searcher=m.searcher, predicted=p, measured=t) for m, p, t in zip(fronts, said, measured)]
    about = dict(cost=cost, hypervolume=compare_fronts(here, cost, used.metric), metric=used.metric)
    write_json(path.with_suffix(".json"), asdict(found) | about | dict(points=points))


def compare_fronts(measurements: Sequence[Measurement], cost: str, metric: Metric) -> dict[str, float]:
    """Hypervolume over validation error and a cost of what was measured of the predicted mixed-precision front, and of
    the fronts of uniform bit-widths; as a share of the box from nothing to the worst of everything measured.

    Candidates of the first that others dominate may be missing, which makes it smaller; of the second none is.
    """

    def points(name: str) -> np.ndarray:
        own = [[m.costs[cost], 1 - m.accuracy(metric)] for m in measurements if m.searcher.startswith(name)]
        return np.array(own).reshape(-1, 2)

    worst = np.maximum(points("").max(axis=0), 1e-9)
    return {name: hypervolume(points(name) / worst, (1.0, 1.0)) for name in ("predicted", "uniform")}
