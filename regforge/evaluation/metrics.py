"""Metrics, and how sure a mean is: a seeded bootstrap that knows what is alike.

Images of one prompt are alike, and so are runs on one subject. Such values come in clusters, and
many values of few clusters say less than their number suggests. What is resampled here is
therefore whole clusters: the outermost units of which there is more than one, each with all that is
in it. Resampling the images of a prompt once more would count their scatter twice, because the
means of the prompts already have it (A. C. Davison, D. V. Hinkley, Bootstrap Methods and their
Application, 1997, section 3.8).

The interval is the percentile interval, widened around the mean by t / z * sqrt(k / (k - 1)) for k
clusters: plain percentiles are too narrow where there are few (T. C. Hesterberg, What Teachers
Should Know About the Bootstrap, The American Statistician 69(4), 2015, section 4). What that means,
and how often such intervals hold the truth, is in docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vectors = NDArray[np.float32]
Values = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 10_000

_AT_ONCE = 1_000_000  # units drawn, so that memory stays flat


@dataclass(frozen=True)
class Interval:
    """A mean of `count` images or pairs, and the ends of a confidence interval around it."""

    mean: float
    low: float
    high: float
    count: int


Scores = dict[str, Interval]
"""By `Metric.key`."""


@dataclass(frozen=True)
class Metric:
    """What a score means, for tables, axes and legends."""

    key: str
    name: str
    meaning: str
    higher_is_better: bool = True
    of_class: bool = False
    """Whether it is measured on images of the class, drawn without the identifier."""

    @property
    def arrow(self) -> str:
        """Where better is."""
        return "↑" if self.higher_is_better else "↓"

    def best_of(self, means: Mapping[str, float]) -> list[str]:
        """Names with the best mean, all that share it; none where all do."""
        best = (max if self.higher_is_better else min)(means.values(), default=0.0)
        found = [name for name, mean in means.items() if mean == best]
        return found if len(found) < len(means) else []


OVER_BASE = "pres_over_base"
"""Key of a metric by which two models differ as by PRES, whose differences say it all."""

METRICS: tuple[Metric, ...] = (
    Metric("dino", "DINO", "Is it this subject? Cosine to the reference photos, by structure."),
    Metric("clip_i", "CLIP-I", "Is it this subject? Cosine to the reference photos, by CLIP."),
    Metric("clip_t", "CLIP-T", "Does it show what the prompt says? Cosine of image and prompt."),
    Metric("matched", "R-precision", "Share of images whose own prompt fits best of all asked."),
    Metric(
        "lift",
        "Lift",
        "Is it the identifier that brings the subject? DINO with it less DINO without it.",
    ),
    Metric(
        "pres",
        "PRES",
        "Has the whole class become the subject? Cosine of other members of the class to it.",
        higher_is_better=False,
        of_class=True,
    ),
    Metric(
        OVER_BASE,
        "PRES over base",
        "How much nearer to the subject has the class come? PRES less that of the base model.",
        higher_is_better=False,
        of_class=True,
    ),
    Metric(
        "class_closeness",
        "Class closeness",
        "Is the class what it was? Cosine of its images to the base model's, 1 as among those.",
        of_class=True,
    ),
    Metric(
        "class_diversity",
        "Class diversity",
        "Is the class as varied as it was? Distance within a prompt, 1 as the base model's.",
        of_class=True,
    ),
    Metric("div", "DIV", "Do images of one prompt differ? Mean distance of pairs."),
    Metric("text", "Text fidelity", "Is the writing on the subject still readable, and the same?"),
)
"""All metrics, in the order of tables. A model has those that could be measured."""

BY_KEY: Mapping[str, Metric] = {metric.key: metric for metric in METRICS}


@dataclass(frozen=True)
class Comparison:
    """Two models with the same subject, image by image, by names and `Metric.key`.

    The difference is that of second minus first, over pairs of the same prompt and sample; an
    interval that does not hold 0 is a difference that would be found again.
    """

    first: str
    second: str
    metric: str
    difference: Interval


def metrics_of(scores: Iterable[Mapping[str, Interval]]) -> list[Metric]:
    """The metrics that at least one of these has, in the order of tables."""
    keys = {key for each in scores for key in each}
    return [metric for metric in METRICS if metric.key in keys]


def interval(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of some values, and how sure it is; `low <= mean <= high`.

    Equal values, or a single one, have an interval without width.

    A cluster is a name, such as a prompt, or a tuple of nested ones from the outermost to the
    innermost: `("teapot", 3)` for subject and training seed, all of one length. The outermost units
    of which there is more than one are resampled. With one cluster only the values themselves are:
    the interval then says what more images of this prompt would show, and nothing about others.

    Raises:
        ValueError: There are no values, one is not finite, or there is not one cluster for each.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not numbers.size:
        raise ValueError(f"values of shape {numbers.shape} have no mean with an interval")
    if not np.isfinite(numbers).all():
        raise ValueError("a value is not finite")
    if len(clusters) != len(numbers):
        raise ValueError(f"{len(numbers)} values and {len(clusters)} clusters")
    # Around the first value, so that equal values have no rounding error for a width.
    origin = float(numbers[0])
    around = numbers - origin
    mean = float(around.mean())
    unit_of = _units(clusters)
    if not around.any():
        return Interval(origin + mean, origin + mean, origin + mean, len(numbers))
    means = _resampled_means(around, unit_of, resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    wider = _widening(int(unit_of.max()) + 1, confidence)
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
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """How much higher the second is than the first, in pairs; see `interval`.

    What both share, such as a hard prompt or an unlucky seed, drops out of the difference, so it is
    surer than the two means are.
    """
    before, after = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values cannot be paired with {len(after)}")
    return interval(after - before, clusters, resamples=resamples, seed=seed)


def is_clear(found: Interval) -> bool:
    """Whether a difference is surely not zero; that of a single pair never is."""
    return found.count > 1 and (found.low > 0 or found.high < 0)


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
    resamples: int,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """Means of all values of so many units drawn with replacement, [resamples]."""
    sums, sizes = np.bincount(unit_of, weights=values), np.bincount(unit_of)
    units = len(sizes)
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


# --------------------------------------------------------------- with and without, model and base
#
# All vectors are of unit length, [N, D], from the structure encoder. Each image gets a value, so
# that `interval` and `difference` can say how sure their mean is. Images at the same place of two
# arrays are of the same prompt and noise; `prompts`, [N], says which images are of one prompt.


def cosines(left: Vectors, right: Vectors) -> Values:
    """Each with each, [N, M]. In double precision: the sums of many images keep their digits.

    Raises:
        ValueError: There is nothing to compare with.
    """
    if not len(right):
        raise ValueError("there is nothing to compare with")
    # A float32 vector is of unit length but for its last digit.
    return np.clip(left.astype(np.float64) @ right.astype(np.float64).T, -1.0, 1.0)


def identity(images: Vectors, references: Vectors) -> Values:
    """How much each image looks like the subject, -1 to 1: DINO, CLIP-I, and PRES.

    The mean cosine of an image with all reference photos, of which there is at least one. Its mean
    over images is the mean of the whole matrix, as DreamBooth defines it
    (https://arxiv.org/abs/2208.12242). Of other members of the class it is PRES: lower is better.
    """
    found: Values = cosines(images, references).mean(axis=1)
    return found


def identity_lift(images: Vectors, without: Vectors, references: Vectors) -> Values:
    """How much more an image looks like the subject than one without the identifier, -2 to 2.

    `without` are images of the same prompts and noise with the class noun alone. What the prompt
    and the drift of the whole class bring drops out of it.
    """
    return identity(images, references) - identity(without, references)


def pres_over_base(images: Vectors, base: Vectors, references: Vectors) -> Values:
    """PRES of images of the class, less that of the base model's, -2 to 2.

    Members of a class look alike: the base model's own PRES is not 0, and differs by subject.
    """
    return identity(images, references) - identity(base, references)


def class_closeness(images: Vectors, base: Vectors, prompts: Sequence[Hashable]) -> Values:
    """How near images of the class are to the base model's: 1 where they are as near as its own.

    The mean cosine with the base model's other images of the same prompt, as a share (`relative`)
    of what its own images have. The pair of the same noise is left out of both: an image is always
    like itself.
    """
    return relative(_to_others(images, base, prompts), _to_others(base, base, prompts))


def class_diversity(images: Vectors, base: Vectors, prompts: Sequence[Hashable]) -> Values:
    """How different images of the class are within a prompt, as a share of the base model's.

    1 - cosine with the other images of the same prompt, by `relative`; 0 and up on average.
    """
    own, before = _to_others(images, images, prompts), _to_others(base, base, prompts)
    return relative(1.0 - own, 1.0 - before)


def relative(values: Values, base: Values) -> Values:
    """Values, [N], whose mean is the ratio of two means, mean(values) / mean(base).

    R + (value - R * base) / mean(base), with R the ratio: its linearization, so that an interval of
    these is one of the ratio, in pairs, with the uncertainty of both means (Davison and Hinkley,
    Bootstrap Methods, 1997, section 2.7). NaN where either value is, and everywhere if the base's
    mean is not above 0.
    """
    known = np.isfinite(values) & np.isfinite(base)
    found = np.full(len(values), np.nan)
    level = float(base[known].mean()) if known.any() else 0.0
    if level > 0:
        ratio = float(values[known].mean()) / level
        found[known] = ratio + (values[known] - ratio * base[known]) / level
    return found


def _to_others(images: Vectors, base: Vectors, prompts: Sequence[Hashable]) -> Values:
    """Mean cosine of each image with those of its prompt at other places; NaN without any."""
    numbers: dict[Hashable, int] = {}
    of = np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])
    others = (of[:, None] == of[None, :]) & ~np.eye(len(of), dtype=bool)
    sums, counts = (cosines(images, base) * others).sum(axis=1), others.sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
