"""Search for architectures in a trained supernet: every searcher has the same signature, see `random_search`."""

from oncequant.search import coarse_to_fine, nsga2, random_search

SEARCHERS = {
    "random": random_search.search,
    "coarse_to_fine": coarse_to_fine.search,
    "nsga2": nsga2.search,
}
