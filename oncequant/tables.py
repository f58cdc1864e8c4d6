"""Costs that were measured, in a run: their tables are checked before any work, and kept in its folder."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from oncequant import distributed
from oncequant.cost import find_cost
from oncequant.cost_table import check_layers, keep_table, known_costs
from oncequant.family import NetworkConfig
from oncequant.methods import METHODS, method_of
from oncequant.methods.dnas import PRECISIONS
from oncequant.search import BudgetOptions
from oncequant.train import TrainingOptions


def check_costs(
    cfg: TrainingOptions, search: BudgetOptions | None, model: NetworkConfig, folder: Path, paths: Sequence[Path]
) -> None:
    """Before any work, raise ValueError for a cost that is named in the options and that there is not, or if a table
    (of `paths`, or kept in the folder) lacks a layer that networks of the run can have; FileError for broken ones."""
    costs = known_costs(folder, paths)
    front, trained = getattr(search, "front", None), getattr(cfg, "cost", None)
    if front is not None:
        find_cost(front, costs)
    if trained is not None and not find_cost(trained, costs).partial and trained not in PRECISIONS:
        raise ValueError(f"cost {trained}: use {', '.join(PRECISIONS)}, or a table of --costs")
    for space in METHODS[method_of(cfg)].searched_spaces(cfg, model):
        for cost in costs.values():
            check_layers(space, cost)


def keep_tables(paths: Sequence[Path], folder: Path) -> None:
    """Copy tables of costs to a run folder. Raises FileError."""
    for path in paths:
        distributed.from_main(partial(keep_table, path, folder))
