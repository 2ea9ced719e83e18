"""The order of the images: every beginning of it is balanced.

Many trainers use only the first so-and-so many regularization images. So each prompt set is
spread evenly over the whole order, and within a set the next image is the one, out of a few drawn
at random, whose slots have fallen behind most. Knows numbers and names, no files.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW = 256
"""Out of how many images the next one is chosen. More of them balance hardly better."""

_SEED = 0
_Codes = NDArray[np.int64]


class Traits:
    """What the order goes by, gathered one image at a time: a number for each different value."""

    def __init__(self) -> None:
        self.count = 0
        self._codes: dict[str, array[int]] = {}
        self._values: dict[str, dict[Hashable, int]] = {}

    def add(self, traits: Mapping[str, Hashable]) -> None:
        """One more image; what it has no value for is its value None."""
        for name in traits:
            if name not in self._codes:
                self._values[name] = {None: 0}
                self._codes[name] = array("q", bytes(8 * self.count))
        for name, codes in self._codes.items():
            values = self._values[name]
            codes.append(values.setdefault(traits.get(name), len(values)))
        self.count += 1

    def codes(self, name: str) -> _Codes:
        """Number of each image's value, (images,); all 0 for an unknown trait."""
        if name not in self._codes:
            return np.zeros(self.count, np.int64)
        return np.frombuffer(self._codes[name], np.int64)

    @property
    def names(self) -> list[str]:
        """The traits, as they came."""
        return list(self._codes)


def balanced_order(traits: Traits, stratum: str) -> list[int]:
    """Numbers of the images in an order of which every beginning is balanced.

    The j-th image of a stratum with n stands at (j + 1/2) / n of the way. So among the first k
    images of N, a stratum has k * n / N of them, give or take (1 + number of strata) / 2. The
    other traits are balanced greedily within each stratum. The same traits give the same order.

    Args:
        traits: Of all images.
        stratum: The trait whose balance is guaranteed, such as the prompt set.

    Returns:
        Each number from 0 to the count once.
    """
    strata = traits.codes(stratum)
    others = [traits.codes(name) for name in traits.names if name != stratum]
    place = np.zeros(traits.count)
    for number in np.unique(strata):
        members = np.flatnonzero(strata == number)
        ordered = members[_spread([codes[members] for codes in others], len(members))]
        place[ordered] = (np.arange(len(members)) + 0.5) / len(members)
    return [int(index) for index in np.argsort(place, kind="stable")]


def _spread(traits: Sequence[_Codes], count: int) -> list[int]:
    """An order of 0 to count - 1 in which each value of each trait comes in its share so far.

    Greedy: each step takes, of a window over a shuffled list, the image whose values are most
    behind. It costs a few numpy calls on `WINDOW` rows an image.
    """
    shuffled = list(range(count))
    random.Random(_SEED).shuffle(shuffled)
    table, shares = _one_table(traits)
    if not len(shares) or count < 3:
        return shuffled
    waiting = np.array(shuffled[:WINDOW])
    taken = np.zeros(len(shares))
    order: list[int] = []
    following = len(waiting)
    while len(waiting):
        values = table[waiting]
        ahead = (taken[values] - shares[values] * len(order)).sum(axis=1)
        best = int(ahead.argmin())
        taken[values[best]] += 1
        order.append(int(waiting[best]))
        if following < count:
            waiting[best] = shuffled[following]
            following += 1
        else:
            waiting = np.delete(waiting, best)
    return order


def _one_table(traits: Sequence[_Codes]) -> tuple[_Codes, NDArray[np.float64]]:
    """All traits with numbers of their own, (images, traits), and the share of each number.

    Traits that cannot be balanced are left out: the same for all, or different for each.
    """
    columns, shares, start = [], [], 0
    for codes in traits:
        different, column, counts = np.unique(codes, return_inverse=True, return_counts=True)
        if 1 < len(different) < len(codes):
            columns.append(column + start)
            shares.append(counts / len(codes))
            start += len(different)
    if not columns:
        return np.zeros((0, 0), np.int64), np.zeros(0)
    return np.stack(columns, axis=1).astype(np.int64), np.concatenate(shares)
