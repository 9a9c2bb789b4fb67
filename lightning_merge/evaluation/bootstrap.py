"""Bootstrap over test examples and seeds: intervals, p values and their correction.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993: percentile intervals (13.3)
and stratified resampling; Student, The Probable Error of a Mean, 1908; Holm, A Simple Sequentially
Rejective Multiple Test Procedure, 1979.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_merge.core.seeding import generator_for

Array = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 10_000
ZERO = 1e-12
"""Differences of accuracies below this are rounding."""
_AT_ONCE = 50  # resamples


class Interval(NamedTuple):
    """Ends of a 95 % interval.

    Examples:
        >>> Interval(-0.1, 0.4).holds(0.0)
        True
    """

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value is between the ends."""
        return self.low - ZERO <= value <= self.high + ZERO


def resample(
    cells: Mapping[str, Array],
    columns: Callable[[Mapping[str, Array]], Array],
    resamples: int = RESAMPLES,
) -> Array:
    """Return the columns of a table for resampled test examples and seeds.

    Images are drawn with replacement, as many as there are, in every task apart. All candidates
    and all seeds keep the same drawn images, so differences of rows are paired by image. Seeds are
    drawn independently of images (crossed, as in Owen, The Pigeonhole Bootstrap, 2007). The draws
    depend only on names of tasks, numbers of images and number of seeds.

    Two or three seeds make intervals too narrow. If runs differed by nothing but the seed, the
    standard deviation would be sqrt((S - 1) / S) of what it should be, 0.71 for S = 2 and 0.82 for
    S = 3, and the interval, which cannot exceed the range of the seeds, would hold the median over
    all seeds in 1 - 2 / 2^S of all cases at most: 50 % and 75 %, not 95 %. The part that images
    contribute is not affected.

    Args:
        cells: Task -> what each image adds to an accuracy, in [0, 1], [seeds, rows, images].
        columns: Maps accuracies by task, [..., rows], to columns of a table, [..., rows, columns].
        resamples: How many.

    Returns:
        [resamples, rows, columns], means over the drawn seeds.

    Examples:
        >>> right = {"pets": np.array([[[1.0, 1.0, 0.0, 1.0]]])}
        >>> drawn = resample(right, lambda accuracy: np.stack([*accuracy.values()], -1))
        >>> drawn.shape, float(drawn.mean().round(2))
        ((10000, 1, 1), 0.75)
    """
    seeds = next(iter(cells.values())).shape[0]
    generator = _generator("seeds")
    shares = generator.multinomial(seeds, [1 / seeds] * seeds, size=resamples) / seeds
    generators = {task: _generator("images", task) for task in cells}
    found = []
    for start in range(0, resamples, _AT_ONCE):
        share = shares[start : start + _AT_ONCE]
        drawn = {task: _drawn(cell, len(share), generators[task]) for task, cell in cells.items()}
        found.append(np.einsum("bs,bsrc->brc", share, columns(drawn)))
    return np.concatenate(found)


def _generator(*names: str) -> np.random.Generator:
    return np.random.default_rng(generator_for(0, "bootstrap", *names).initial_seed())


def _drawn(cell: Array, resamples: int, generator: np.random.Generator) -> Array:
    """Return accuracies on drawn images, [resamples, seeds, rows]."""
    *shape, images = cell.shape
    counts = np.empty((resamples, images))
    for row in counts:
        row[:] = np.bincount(generator.integers(images, size=images), minlength=images)
    return (counts @ cell.reshape(-1, images).T).reshape(resamples, *shape) / images


def percentiles(values: Array) -> Array:
    """Return the ends of percentile intervals over the first axis, [2, ...].

    If all values are equal, as for an accuracy of 100 %, the interval has no width.

    Examples:
        >>> percentiles(np.arange(1001.0)).round(3).tolist()
        [25.0, 975.0]
    """
    return np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def p_value(differences: Array) -> float:
    """Return the two-sided p value of resampled differences: twice the share beyond zero.

    It is below 0.05 where the 95 % percentile interval leaves out zero. It is too small if hardly
    any image tells two candidates apart (five images, all for one of them, give 0.013), for which
    there is `p_of_signs`. It is too small with few seeds, too: it is below 0.05 wherever all seeds
    have one sign, as half of all pairs of seeds have by chance, for which there is `p_of_seeds`.

    Args:
        differences: [resamples].

    Examples:
        >>> round(p_value(np.linspace(-1, 99, 1001)), 3)
        0.024
    """
    below, above = np.sum(differences <= ZERO), np.sum(differences >= -ZERO)
    return float(min(1.0, 2 * (1 + min(below, above)) / (1 + len(differences))))


def p_of_seeds(differences: Array) -> float:
    """Return the two-sided p value of a t test of the seeds' differences against zero.

    It is 0 if the seeds agree or there is only one: then the images alone decide.

    Args:
        differences: [seeds].

    Examples:
        >>> round(p_of_seeds(np.array([0.01, 0.03])), 3)
        0.295
    """
    from scipy.special import stdtr

    seeds = len(differences)
    if seeds == 1 or np.ptp(differences) <= ZERO:
        return 0.0
    t = differences.mean() / differences.std(ddof=1) * seeds**0.5
    return float(2 * stdtr(seeds - 1, -abs(t)))


def p_of_signs(images: int) -> float:
    """Return the smallest two-sided p value that a sign test can have.

    Args:
        images: Number of images on which two candidates differ; here all are for one of them.

    Examples:
        >>> p_of_signs(5), p_of_signs(6)
        (0.0625, 0.03125)
    """
    return min(1.0, 2.0 ** (1 - images))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down procedure.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
