"""Choose among networks that are all trained to their end, as DNAS's samples are: nothing is measured any more."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from oncequant import distributed
from oncequant.answers import Metric
from oncequant.cost import Budget
from oncequant.cost_table import run_costs
from oncequant.files import FileError
from oncequant.memory import float_layers
from oncequant.records import Measurement, Sample, read_records
from oncequant.search.budget import BudgetError
from oncequant.search.family import Pick
from oncequant.search.measurements import MeasurementFile, all_costs, with_costs
from oncequant.space import SearchSpace


def trained_samples(run_dir: Path, space: SearchSpace, metric: Metric) -> list[Sample]:
    """The samples of a run, which become measurements of `measurements.jsonl`. Raises FileError if none is trained, or
    if an older version did not measure the metric."""
    path = run_dir / "samples.json"
    samples = distributed.from_main(lambda: read_records(path, Sample))
    costs = run_costs(run_dir)
    if not samples:
        raise FileError(f"{path} does not exist: no sample is trained yet")
    if metric == "balanced" and any(sample.balanced_validation is None for sample in samples):
        raise FileError(f"{path} has no balanced accuracies: `oncequant train` again, as before, measures them")
    samples = [with_costs(sample, space, costs) for sample in samples]
    memory = MeasurementFile(run_dir / "measurements.jsonl", "samples", space, costs, metric)
    for one in samples:
        arch = space.complete(one.arch)
        brief, spent = space.brief(arch), all_costs(space, arch, costs)
        memory.note(Measurement(brief, one.top1_validation, spent, "samples", "dnas", one.balanced_validation))
    return samples


def picks_of(samples: Mapping[str, Sample], space: SearchSpace, metric: Metric) -> list[Pick]:
    """What is picked by a metric, by the name that it gets; `space` is that of the samples."""
    return [
        Pick(name, s.stage, space, space.complete(s.arch), s.top1_validation, s.balanced_validation, metric)
        for name, s in samples.items()
    ]


def best_within(
    samples: Sequence[Sample], budgets: Sequence[Budget], space: SearchSpace, metric: Metric = "top1"
) -> Sample:
    """The most accurate sample within all budgets; raises BudgetError if none is. `space` gives their costs."""
    specs = [space.layers(space.complete(sample.arch)) for sample in samples]
    fitting = [sample for sample, layers in zip(samples, specs) if all(b.holds(layers) for b in budgets)]
    if not fitting:
        wanted = ", ".join(map(str, budgets))
        least = ", ".join(f"{b.cost} {min(map(b.cost, specs)):.6g}" for b in budgets)
        if any(budget.cost.structural for budget in budgets) and all(map(float_layers, specs)):
            least += ", and all of them have layers in float, which cannot run in C"
        raise BudgetError(
            f"none of the {len(samples)} trained networks keeps {wanted}; the least are {least}. "
            "DNAS cannot make others without training: use another gamma"
        )
    return max(fitting, key=lambda sample: sample.accuracy(metric))


def most_accurate_and_efficient(
    samples: Sequence[Sample], cost: str, of_float: float, tolerance: float, metric: Metric = "top1"
) -> dict[str, Sample]:
    """MA, the most accurate, and ME, the most efficient (arXiv 1812.00090, section 5).

    ME is the least in `cost` of those that lose at most `tolerance` (from 0 to 1) against `of_float`, or if none
    does, against MA.
    """
    accurate = max(samples, key=lambda sample: (sample.accuracy(metric), -sample.costs[cost]))
    holding = [sample for sample in samples if sample.accuracy(metric) >= of_float - tolerance]
    near = [sample for sample in samples if sample.accuracy(metric) >= accurate.accuracy(metric) - tolerance]
    efficient = min(holding or near, key=lambda sample: sample.costs[cost])
    return {"MA": accurate, "ME": efficient}
