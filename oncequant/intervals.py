"""How sure a measured figure is, and what follows from it for a claim.

Every interval of this project is made here, at one level:

* of one accuracy on so many images: `share_interval` (Wilson);
* of a mean over seeds: `seeds_interval` (Student's t, which knows how few they are);
* of a difference of two such means, of which only mean, spread and count are known: `means_difference` (Welch's t);
* of a difference between two networks on the same images, and of any other statistic of things drawn at random
  (images, architectures): `bootstrap_interval` (percentiles of draws with replacement, Efron 1979); faster where the
  statistic is one of several networks' accuracies on the same images: `accuracies_interval`;
* of a mean over things of two kinds, crossed (each of some architectures on each of some images): `crossed_interval`
  (both kinds are drawn: Owen 2007, https://doi.org/10.1214/07-AOAS122).

A claim says that something is above 0, or above a margin. `verdict` is the one rule that judges it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
DRAWS = 2000
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"


@dataclass(frozen=True)
class Interval:
    """A measured value and the ends between which the true one lies with a probability of `LEVEL`."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Interval":
        """The same in another unit; `factor` is above 0. An accuracy of 0 to 1 becomes percent by 100."""
        return Interval(factor * self.value, factor * self.low, factor * self.high)

    def text(self, digits: int = 2) -> str:
        """Such as `1.25 (0.31 to 2.19)`."""
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def share_interval(share: float, images: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of an accuracy (0 to 1) that was measured on so many images drawn at random: Wilson's, which holds for
    few images and near 0 and 1, too. Raises ValueError for no images, or for what is no share."""
    if images < 1 or not 0 <= share <= 1:
        raise ValueError(f"an accuracy of {share} on {images} images: use 0 to 1, on at least one image")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre, scale = share + z * z / (2 * images), 1 + z * z / images
    half = z * (share * (1 - share) / images + (z / (2 * images)) ** 2) ** 0.5
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def seeds_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Of the mean over seeds, one value a seed, by Student's t. One seed says nothing of the spread: its ends are
    infinite. Raises ValueError for no values, or for one that is not finite."""
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values of seeds {list(values)}: use at least one, all of them finite")
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return mean_interval(float(np.mean(values)), spread, len(values), level)


def mean_interval(mean: float, std: float, count: int, level: float = LEVEL) -> Interval:
    """As `seeds_interval`, of the mean, the standard deviation (n - 1) and the number of such values."""
    if count < 2:
        return Interval(mean, float("-inf"), float("inf"))
    from scipy.stats import t  # late: its import takes longer than commands that only print a share's interval

    half = float(t.ppf((1 + level) / 2, count - 1) * std / count**0.5)
    return Interval(mean, mean - half, mean + half)


def means_difference(
    mean: float, std: float, count: int, mean_other: float, std_other: float, count_other: int, level: float = LEVEL
) -> Interval:
    """Of the first of two means less the other, by Welch's t: spreads may differ, degrees of freedom are
    Welch-Satterthwaite's (Welch 1947). `std` are standard deviations of single values (n - 1), `count` how many values
    each mean has; values of one are independent of those of the other. Fewer than two values say nothing of
    the spread: the ends are infinite. Raises ValueError for no values, a spread below 0, or a number that is not finite
    (of one value, the spread is not looked at)."""
    squares = []
    for centre, spread, number in ((mean, std, count), (mean_other, std_other, count_other)):
        if number < 1 or not np.isfinite(centre) or (number > 1 and not (np.isfinite(spread) and spread >= 0)):
            raise ValueError(
                f"mean {centre}, standard deviation {spread}, {number} values: use finite numbers, a standard "
                "deviation of at least 0, and at least one value"
            )
        squares.append(spread * spread / number)
    value = mean - mean_other
    if min(count, count_other) < 2:
        return Interval(value, float("-inf"), float("inf"))
    total = sum(squares)
    if total == 0:  # no spread at all, so no degrees of freedom either
        return Interval(value, value, value)
    from scipy.stats import t

    free = total**2 / (squares[0] ** 2 / (count - 1) + squares[1] ** 2 / (count_other - 1))
    half = float(t.ppf((1 + level) / 2, free) * total**0.5)
    return Interval(value, value - half, value + half)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], count: int, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Of any statistic of `count` things drawn at random.

    `statistic` takes indices (integers of 0 to count - 1, shape (count,), repeated as drawn) and gives a number. Called
    once with all of them in order for the value, then `draws` times for the ends, which are percentiles. Draws for
    which it gives NaN (a regression on too few different architectures) are left out. The seed fixes the
    draws: the same data give the same interval. Raises ValueError for fewer than two things, or if fewer than half of
    the draws gave a number.
    """
    if count < 2:
        raise ValueError(f"{count} things to draw from: use at least 2")
    rng = np.random.default_rng(seed)
    found = np.array([statistic(rng.integers(count, size=count)) for _ in range(draws)], float)
    found = found[~np.isnan(found)]
    if len(found) < draws / 2:
        raise ValueError(f"only {len(found)} of {draws} draws gave a number: measure more than {count}")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(np.arange(count))), float(low), float(high))


def difference_on_images(
    right: np.ndarray, right_other: np.ndarray, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Of the difference in accuracy (0 to 1) between two networks on the same images, by the paired bootstrap over
    images. `right` and `right_other` are booleans, one an image, in the same order: whether the answer was right.
    Raises ValueError if their lengths differ, or for fewer than two images."""
    if right.shape != right_other.shape or right.ndim != 1:
        raise ValueError(f"answers of shapes {right.shape} and {right_other.shape}: use the same images for both")
    apart = right.astype(np.int64) - right_other.astype(np.int64)
    count = len(apart)
    if count < 2:
        raise ValueError(f"{count} images to draw from: use at least 2")
    # images of one kind cannot be told apart, so a draw is one of three counts, not of single images
    shares = [np.count_nonzero(apart == sign) / count for sign in (1, -1, 0)]
    counts = np.random.default_rng(seed).multinomial(count, shares, size=draws)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / count, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(apart.mean()), float(low), float(high))


def crossed_interval(values: np.ndarray, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Of the mean of `values` (rows, columns), one for each pair of a thing of one kind (an architecture) and one of
    another (an image): both kinds are drawn with replacement, so that the interval holds for other architectures and
    other images. It is rather too wide than too narrow. Raises ValueError for fewer than two of either kind."""
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(f"values of shape {values.shape}: use at least 2 rows and 2 columns")
    rng, (rows, columns) = np.random.default_rng(seed), values.shape
    by_row = rng.multinomial(rows, np.full(rows, 1 / rows), size=draws) / rows
    by_column = rng.multinomial(columns, np.full(columns, 1 / columns), size=draws) / columns
    found = np.einsum("dc,dc->d", by_row @ values.astype(float), by_column)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def accuracies_interval(
    statistic: Callable[[np.ndarray], float], right: np.ndarray, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Of any statistic of the accuracies (0 to 1) of several networks on the same images, by the paired bootstrap over
    images. `right` (networks, images) are booleans: whether an answer was right. `statistic` takes accuracies
    (networks,) and gives a number. The networks must not have been chosen by these images: of the best of many the
    interval would be too high. Raises ValueError for fewer than two images."""
    count = right.shape[1]
    if count < 2:
        raise ValueError(f"{count} images to draw from: use at least 2")
    # images with the same answers cannot be told apart: a draw is how many there are of each kind
    kinds, sizes = np.unique(right, axis=1, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(count, sizes / count, size=draws) @ kinds.T / count
    low, high = np.quantile([statistic(accuracies) for accuracies in drawn], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(right.mean(axis=1))), float(low), float(high))


def verdict(interval: Interval, margin: float = 0.0) -> str:
    """What follows for the claim that the true value is above `margin`: `confirmed` if the whole interval is above it,
    `refuted` if the whole interval is below it, else `undecided`. A claim that a value is below something is judged
    with both signs turned round."""
    if interval.low > margin:
        return CONFIRMED
    return REFUTED if interval.high < margin else UNDECIDED
