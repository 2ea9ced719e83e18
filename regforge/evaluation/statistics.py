"""How sure a mean is: a seeded bootstrap that knows which values are alike.

Images of one prompt are alike, and so are runs on one subject. Such values come in clusters, and
many values of few clusters say less than their number suggests. What is resampled here is
therefore whole clusters: the outermost units of which there is more than one, each with all that is
in it. Resampling the images of a prompt once more would count their scatter twice, because the
means of the prompts already have it (A. C. Davison, D. V. Hinkley, Bootstrap Methods and their
Application, 1997, section 3.8).

The interval is the percentile interval, widened around the mean by t / z * sqrt(k / (k - 1)) for k
clusters: plain percentiles are too narrow where there are few (T. C. Hesterberg, What Teachers
Should Know About the Bootstrap, The American Statistician 69(4), 2015, section 4). For 25 prompts
that is 7 percent, for 4 subjects almost double. In simulations with 3 to 25 clusters of 3 or 4
values the 95 percent interval held the truth in 91 to 97 percent of cases; plain percentiles of
clusters in 74 to 95, of values in 59 to 95 (tests/evaluation/test_statistics.py has some of them).

Knows arrays and clusters; nothing of images or models.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regforge.evaluation.interface import Interval

CONFIDENCE = 0.95
RESAMPLES = 10_000

_AT_ONCE = 1_000_000  # units drawn, so that memory stays flat


def interval(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of some values, and how sure it is.

    Args:
        values: Finite numbers, [N].
        clusters: The cluster of each value, such as its prompt; a tuple names nested clusters from
            the outermost to the innermost: `("teapot", 3)` for subject and training seed. Tuples of
            one call have one length. The outermost units of which there is more than one are
            resampled. With one cluster only the values themselves are: the interval then says what
            more images of this prompt would show, and nothing about other prompts.
        confidence: Share of such intervals that are to hold the truth.
        resamples: How often to draw.
        seed: Of the draws; the same call gives the same interval.

    Returns:
        `low <= mean <= high`. Equal values, or a single one, have an interval without width.

    Raises:
        ValueError: There are no values, one is not finite, or there is not one cluster for each.
    """
    numbers = _numbers(values)
    if len(clusters) != len(numbers):
        raise ValueError(f"{len(numbers)} values and {len(clusters)} clusters")
    # Around the first value, so that equal values have no rounding error for a width.
    origin = float(numbers[0])
    around = numbers - origin
    mean = float(around.mean())
    unit_of = _units(clusters)
    units = int(unit_of.max()) + 1
    if not around.any():
        return Interval(origin + mean, origin + mean, origin + mean, len(numbers))
    means = _resampled_means(around, unit_of, units, resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    wider = _widening(units, confidence)
    return Interval(
        origin + mean,
        origin + min(mean, mean + wider * (float(low) - mean)),
        origin + max(mean, mean + wider * (float(high) - mean)),
        len(numbers),
    )


def difference(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """How much higher the second is than the first, in pairs.

    What both share, such as a hard prompt or an unlucky seed, drops out of the difference, so it is
    surer than the two means are.

    Args:
        first: Finite numbers, [N].
        second: Likewise; value i belongs with value i of `first`: same prompt, same sample.
        clusters: The cluster of each pair, as for `interval`.
        confidence: As for `interval`.
        resamples: As for `interval`.
        seed: As for `interval`.

    Returns:
        The mean of second minus first; `count` is the number of pairs.

    Raises:
        ValueError: As for `interval`, or the two are not of one length.
    """
    before, after = _numbers(first), _numbers(second)
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values cannot be paired with {len(after)}")
    return interval(after - before, clusters, confidence=confidence, resamples=resamples, seed=seed)


def is_clear(found: Interval) -> bool:
    """Whether a difference is surely not zero; that of a single pair never is."""
    return found.count > 1 and (found.low > 0 or found.high < 0)


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not numbers.size:
        raise ValueError(f"values of shape {numbers.shape} have no mean with an interval")
    if not np.isfinite(numbers).all():
        raise ValueError("a value is not finite")
    return numbers


def _units(clusters: Sequence[Hashable]) -> NDArray[np.int64]:
    """The unit that each value is resampled with, counted from 0 in order of appearance."""
    paths = [each if isinstance(each, tuple) else (each,) for each in clusters]
    if len({len(path) for path in paths}) > 1:
        raise ValueError("clusters have different numbers of levels")
    for level in range(1, len(paths[0]) + 1):
        numbers: dict[tuple[Hashable, ...], int] = {}
        units = [numbers.setdefault(path[:level], len(numbers)) for path in paths]
        if len(numbers) > 1:
            return np.asarray(units)
    return np.arange(len(paths))


def _resampled_means(
    values: NDArray[np.float64],
    unit_of: NDArray[np.int64],
    units: int,
    resamples: int,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """Means of all values of so many units drawn with replacement, [resamples]."""
    sums = np.bincount(unit_of, weights=values, minlength=units)
    sizes = np.bincount(unit_of, minlength=units)
    alike = bool((sizes == sizes[0]).all())
    rows = max(1, _AT_ONCE // units)
    parts = []
    for start in range(0, resamples, rows):
        drawn = random.integers(units, size=(min(rows, resamples - start), units))
        counts = len(values) if alike else sizes[drawn].sum(axis=1)
        parts.append(sums[drawn].sum(axis=1) / counts)
    return np.concatenate(parts)


@lru_cache(maxsize=256)
def _widening(units: int, confidence: float) -> float:
    """By how much percentiles of the bootstrap of so few units fall short."""
    from scipy.stats import norm, t

    upper = (1 + confidence) / 2
    return float(t.ppf(upper, units - 1) / norm.ppf(upper) * math.sqrt(units / (units - 1)))
