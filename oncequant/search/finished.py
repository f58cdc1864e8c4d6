"""Choose among networks that are all trained to their end, as DNAS's samples are: nothing is measured any more."""

from collections.abc import Sequence
from pathlib import Path

from oncequant import distributed
from oncequant.cost import Budget
from oncequant.cost_table import run_costs
from oncequant.files import FileError
from oncequant.memory import float_layers
from oncequant.records import Sample, read_records
from oncequant.search.budget import BudgetError
from oncequant.search.measurements import MeasurementFile, with_costs
from oncequant.space import SearchSpace


def trained_samples(run_dir: Path, space: SearchSpace) -> list[Sample]:
    """The samples of a run, which become measurements of `measurements.jsonl`. Raises FileError if none is trained."""
    path = run_dir / "samples.json"
    samples = distributed.from_main(lambda: read_records(path, Sample))
    costs = run_costs(run_dir)
    if not samples:
        raise FileError(f"{path} does not exist: no sample is trained yet")
    by_arch = {space.complete(sample.arch): sample for sample in samples}
    memory = MeasurementFile(run_dir / "measurements.jsonl", "samples", space, costs)
    list(memory.measured(space, lambda arch: by_arch[arch].top1_validation, "dnas")(list(by_arch)))
    return [with_costs(sample, space, costs) for sample in samples]


def best_within(samples: Sequence[Sample], budgets: Sequence[Budget], space: SearchSpace) -> Sample:
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
    return max(fitting, key=lambda sample: sample.top1_validation)


def most_accurate_and_efficient(
    samples: Sequence[Sample], cost: str, float_top1: float, tolerance: float
) -> dict[str, Sample]:
    """MA, the most accurate, and ME, the most efficient (arXiv 1812.00090, section 5).

    ME is the least in `cost` of those that lose at most `tolerance` (top-1 from 0 to 1) against `float_top1`, or if
    none does, against MA.
    """
    accurate = max(samples, key=lambda sample: (sample.top1_validation, -sample.costs[cost]))
    holding = [sample for sample in samples if sample.top1_validation >= float_top1 - tolerance]
    near = [sample for sample in samples if sample.top1_validation >= accurate.top1_validation - tolerance]
    efficient = min(holding or near, key=lambda sample: sample.costs[cost])
    return {"MA": accurate, "ME": efficient}
