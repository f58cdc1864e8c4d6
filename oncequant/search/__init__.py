"""Search for architectures in a trained supernet: every searcher has the same signature, see `random_search`."""

from dataclasses import dataclass
from typing import Any

from oncequant.answers import METRICS, Metric
from oncequant.cost import Budget
from oncequant.limits import check_ranges
from oncequant.search import coarse_to_fine, random_search


def _nsga2(*args: Any, **options: Any) -> Any:
    from oncequant.search import nsga2  # pymoo takes half a second to import

    return nsga2.search(*args, **options)


SEARCHERS = {
    "random": random_search.search,
    "coarse_to_fine": coarse_to_fine.search,
    "nsga2": _nsga2,
}


@dataclass(frozen=True)
class BudgetOptions:
    """What every search can be asked for; the SearchOptions of a method add their own."""

    budgets: tuple[Budget, ...] = ()
    """Bound like "bitops<=1.2G" or "weight_bytes<=90k", may be repeated: the most accurate network within all is
    chosen. Without: a few along the front of accuracy and cost."""
    metric: Metric = "top1"
    """Accuracy that networks are chosen by: top1, the share of right answers, or balanced, its mean over classes."""

    def __post_init__(self):
        """Refuse unknown names before any work."""
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r}: use one of {', '.join(METRICS)}")


@dataclass(frozen=True)
class FrontOptions:
    """Options of a search that measures subnets."""

    searcher: str | None = None
    """Who proposes the subnets that are measured. coarse_to_fine: OQAT's own; nsga2: genetic; random: the baseline."""
    evaluations: int | None = None
    """Subnets measured."""
    front: str = "bitops"
    """Cost axis of the front along which subnets are spread: a cost by name, or a table of --costs."""

    def __post_init__(self):
        """Refuse unknown names before any work."""
        if self.searcher is not None and self.searcher not in SEARCHERS:
            raise ValueError(f"searcher {self.searcher!r}: use one of {', '.join(SEARCHERS)}")
        check_ranges(self, evaluations=(1, 1_000_000))


@dataclass(frozen=True)
class PredictedOptions:
    """Options of a search on predicted accuracy."""

    population: int = 200
    """Architectures per generation of the search on predicted accuracy."""
    generations: int = 200
    """Generations of it; the published search has 500 and 1,000, half a minute for the imagenet space."""
    front_members: int = 24
    """Subnets of the front of predicted accuracy that are measured, evenly along it; 0 measures all."""

    def __post_init__(self):
        """Refuse impossible numbers before any work."""
        check_ranges(self, population=(4, 100_000), generations=(1, 1_000_000), front_members=(0, 100_000))
