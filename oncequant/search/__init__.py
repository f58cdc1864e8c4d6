"""Search for architectures in a trained supernet: every searcher has the same signature, see `random_search`."""

from dataclasses import dataclass, fields

from oncequant.cost import Budget
from oncequant.search import coarse_to_fine, nsga2, random_search

SEARCHERS = {
    "random": random_search.search,
    "coarse_to_fine": coarse_to_fine.search,
    "nsga2": nsga2.search,
}


@dataclass(frozen=True)
class SearchConfig:
    """Options of the search over trained supernets."""

    budgets: tuple[Budget, ...] = ()
    """Bounds every architecture must keep. Without any, a family along the Pareto front is chosen."""
    searcher: str | None = None
    """Of measured architectures: coarse_to_fine, nsga2, or random. None: the method's own."""
    evaluations: int | None = None
    """Architectures measured, for OQAT per bit-width. None: the method's default."""
    population: int = 200
    """Architectures per generation of a search on predicted accuracy."""
    generations: int = 200
    """Generations of a search on predicted accuracy. QFA's published search has 500 and 1,000."""
    front_members: int = 24
    """Members of the front of predicted accuracy that are measured, evenly along it; 0: all of them."""
    cost: str = "bitops"
    """The cost axis of the front along which a family is spread."""

    def __post_init__(self):
        """Refuse unknown searchers before any work."""
        if self.searcher is not None and self.searcher not in SEARCHERS:
            raise ValueError(f"searcher {self.searcher!r}: use one of {', '.join(SEARCHERS)}")
        if self.evaluations is not None and self.evaluations < 1:
            raise ValueError("evaluations is at least 1")
        if self.front_members < 0:
            raise ValueError("front_members is at least 0")
        if self.population < 4 or self.generations < 1:
            raise ValueError("population is at least 4, generations at least 1")

    def refuse_all_but(self, *used: str) -> None:
        """Raise ValueError if an option that a method does not use is not at its default."""
        flags = {"cost": "--front", "front_members": "--front-members"}
        for option in fields(self):
            if option.name not in used and getattr(self, option.name) != option.default:
                flag = flags.get(option.name, f"--{option.name}")
                raise ValueError(f"{flag} is not an option of this method's search")
