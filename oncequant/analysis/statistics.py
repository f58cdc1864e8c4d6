"""What the analysis computes from measured answers: pure functions of arrays.

`right` is always (networks, images), booleans: which network got which image right; all were asked the same images.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from oncequant.intervals import DRAWS, Interval, bootstrap_interval
from oncequant.search.pareto import pareto_front

SPLITS = 10  # ways to halve the images, whose rank correlations are averaged
LEAST_OWN = 0.05  # share of a factor's variance that its covariate must leave, or the two cannot be told apart
LEAST_RELIABLE = 0.1  # rank correlation of two halves of the images below which nothing follows from a ranking


def log_odds(right: np.ndarray) -> np.ndarray:
    """Accuracy of each network (n,) as the logarithm of its odds, with half an image added to right and wrong ones
    (Haldane 1956), so that all or none right is a number.

    Differences of it mean the same at 50 and at 99 %, where points do not: near the ceiling no network can lose or
    gain many."""
    found = right.sum(1)
    return np.log((found + 0.5) / (right.shape[1] - found + 0.5))


def points_per_log_odds(right: np.ndarray) -> float:
    """How many points of accuracy a small difference of 1 in log odds is, at the mean accuracy of these networks."""
    mean = float(right.mean())
    return 100 * mean * (1 - mean)


def standardised(values: np.ndarray) -> np.ndarray:
    """Columns (n, k) with mean 0 and standard deviation 1; a constant column becomes 0."""
    spread = values.std(0)
    return (values - values.mean(0)) / np.where(spread > 1e-12, spread, 1.0)


def partial_effects(factors: np.ndarray, covariate: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Of each factor, one at a time, its slope b in the least-squares fit response = a + b factor + c covariate; (k,).

    One at a time, since networks of equal compute cannot differ in one factor alone: the others make up for it. NaN
    where the covariate leaves less than LEAST_OWN of a factor's variance. By Frisch-Waugh-Lovell: what the covariate
    explains is taken from both sides. Shapes: factors (n, k) or (n, 1), covariate (n,), response (n,) or (n, k).
    """
    c = covariate - covariate.mean()
    scale = float(c @ c)

    def rest(values: np.ndarray) -> np.ndarray:
        centred = values - values.mean(0)
        return centred - np.multiply.outer(c, (c @ centred) / scale) if scale > 1e-12 else centred

    x, y = rest(factors), rest(response if response.ndim > 1 else response[:, None])
    own = (x * x).sum(0)
    enough = own > LEAST_OWN * ((factors - factors.mean(0)) ** 2).sum(0) + 1e-12
    return np.where(enough, (x * y).sum(0) / np.where(enough, own, 1.0), np.nan)


def grouped_slopes(factors: np.ndarray, response: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Slopes of all factors together, (k,), in the least-squares fit whose intercept each group has for itself.

    `groups` (n,) are whole numbers, such as that of an architecture: only networks of one group are compared. All NaN
    where the factors cannot be told apart. Shapes: factors (n, k), response (n,).
    """
    x, y = factors.astype(float), response.astype(float)
    for group in np.unique(groups):
        here = groups == group
        x[here] -= x[here].mean(0)
        y[here] -= y[here].mean()
    slopes, _, rank, _ = np.linalg.lstsq(x, y, rcond=1e-6)
    return slopes if rank == x.shape[1] else np.full(x.shape[1], np.nan)


def intervals_of(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> list[Interval]:
    """`bootstrap_interval` of each number of a statistic that gives several of `count` things, (k,). One that has no
    number, or not in most draws, is NaN between infinite ends: nothing is known."""
    seen: dict[bytes, np.ndarray] = {}

    def one(drawn: np.ndarray, which: int) -> float:
        key = drawn.tobytes()
        if key not in seen:  # the draws are the same for each number
            seen[key] = statistic(drawn)
        return float(seen[key][which])

    found = []
    for which in range(len(statistic(np.arange(count)))):
        try:
            found.append(bootstrap_interval(partial(one, which=which), count, draws=DRAWS))
        except ValueError:
            found.append(UNKNOWN)
    return [UNKNOWN if np.isnan(interval.value) else interval for interval in found]


UNKNOWN = Interval(float("nan"), float("-inf"), float("inf"))


def rank_agreement(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """How well two rankings of the same networks agree, by `right` at one and at another bit-width.

    Returns a function of drawn networks (indices) that gives three numbers:

    * the corrected rank correlation: Spearman's of the true accuracies, without the noise of few images;
    * the noise ceiling: what would be seen with these images if the true rankings were the same;
    * what is seen: their product.

    Both bit-widths answer the same images, so errors go together and a plain correlation is too high. So the images
    are halved at random, SPLITS times, and accuracies on one half are compared with those on the other. The correction
    is Spearman's (1904), for halves; the reliability of all images follows by Spearman-Brown (1910). Corrected
    correlations can exceed 1 by chance. NaN where a ranking is not reliable.
    """
    from scipy.stats import rankdata  # late: importing it takes longer than most commands

    rng, images = np.random.default_rng(seed), first.shape[1]
    halves = [rng.permutation(images) < images // 2 for _ in range(SPLITS)]
    accuracies = np.array(
        [[right[:, half].mean(1) for right in (first, second) for half in (mask, ~mask)] for mask in halves]
    )  # (splits, 4, networks): first on both halves, second on both

    def agreement(drawn: np.ndarray) -> np.ndarray:
        ranks = rankdata(accuracies[:, :, drawn], axis=2)
        ranks -= ranks.mean(2, keepdims=True)
        spread = np.sqrt((ranks * ranks).sum(2, keepdims=True))
        ranks /= np.where(spread > 0, spread, np.inf)
        pairs = np.einsum("sin,sjn->ij", ranks, ranks) / len(ranks)  # mean rank correlations
        reliable = pairs[0, 1], pairs[2, 3]
        if min(reliable) < LEAST_RELIABLE:
            return np.full(3, np.nan)
        corrected = (pairs[0, 3] + pairs[1, 2]) / 2 / np.sqrt(reliable[0] * reliable[1])
        ceiling = np.sqrt(np.prod([2 * r / (1 + r) for r in reliable]))
        return np.array([corrected, ceiling, corrected * ceiling])

    return agreement


def front_of(costs: np.ndarray, accuracies: np.ndarray) -> np.ndarray:
    """Indices of the networks that no other beats in both, cheapest first."""
    return pareto_front(np.stack([costs, 1 - accuracies], axis=1))


def front_shift(
    factors: np.ndarray, log_cost: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """How much more of each factor the front has by the accuracies `low` (n,) than by `high` (n,), at equal cost.

    Returns a function of drawn networks (indices) that gives the slopes (k,) of "is on the front of `low`" over the
    members of both fronts, with the logarithm of the cost as covariate: fronts are found again in each draw, so that
    the interval counts that chance has a part in who is on them. Shapes: factors (n, k), log_cost (n,).
    """

    def shift(drawn: np.ndarray) -> np.ndarray:
        fronts = [drawn[front_of(log_cost[drawn], accuracies[drawn])] for accuracies in (low, high)]
        if min(map(len, fronts)) < 2:
            return np.full(factors.shape[1], np.nan)
        members = np.concatenate(fronts)
        is_low = np.repeat([1.0, 0.0], [len(front) for front in fronts])
        return partial_effects(is_low[:, None], log_cost[members], factors[members])

    return shift
