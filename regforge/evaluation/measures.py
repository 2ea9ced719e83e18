"""What pictures score: arithmetic on vectors, one number for each picture or pair of pictures.

Takes the unit vectors of `encoders` and returns a value for every single picture, so that
`statistics` can say how sure their mean is. Knows no model and no file; docs/metrics.md says what
each score means, where it comes from and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from regforge.images.curation import perceptual_hash_of

Vectors = NDArray[np.float32]
Scores = NDArray[np.float64]

NEAR = 4
"""Bits, of 64, in which the perceptual hashes of near duplicates differ at most."""

_TIE = 1e-6  # cosines of float32 vectors that differ less are the same


def identity(pictures: Vectors, references: Vectors) -> Scores:
    """How much each picture looks like the subject: DINO and CLIP-I.

    The mean cosine of a picture with all reference photos. Its mean over pictures is the mean of
    the whole matrix, as DreamBooth defines it (https://arxiv.org/abs/2208.12242).

    Args:
        pictures: Unit vectors, [N, D].
        references: Unit vectors of the reference photos, [M, D]; at least one.

    Returns:
        [N], -1 to 1.
    """
    found: Scores = _cosines(pictures, references).mean(axis=1)
    return found


def preservation(pictures: Vectors, references: Vectors) -> Scores:
    """How much other members of the class have become the subject: PRES, lower is better.

    Args:
        pictures: Unit vectors of what the model draws of "a photo of a {class}", [N, D].
        references: Unit vectors of the reference photos, [M, D]; at least one.

    Returns:
        [N], -1 to 1.
    """
    return identity(pictures, references)


def ceiling(references: Vectors) -> Scores:
    """What a real photo of the subject scores: each one against all the others.

    Args:
        references: Unit vectors of the reference photos, [M, D].

    Returns:
        [M], -1 to 1; empty if there are fewer than two photos.
    """
    count = len(references)
    if count < 2:
        return np.zeros(0)
    cosines = _cosines(references, references)
    found: Scores = (cosines.sum(axis=1) - np.diagonal(cosines)) / (count - 1)
    return found


def alignment(pictures: Vectors, captions: Vectors) -> Scores:
    """How well each picture shows its own prompt: CLIP-T, a plain cosine.

    Args:
        pictures: Unit vectors, [N, D].
        captions: Unit vectors of each picture's prompt, [N, D]; the identifier left out of it.

    Returns:
        [N], -1 to 1. Not CLIPScore, which is 2.5 times as large and never negative.
    """
    _same_length(pictures, captions)
    found: Scores = np.einsum("nd,nd->n", _wide(pictures), _wide(captions))
    return _bounded(found)


def matched(pictures: Vectors, captions: Vectors, own: Sequence[int]) -> Scores:
    """Whether each picture's own prompt fits it best of all that were asked: R-precision.

    Args:
        pictures: Unit vectors, [N, D].
        captions: Unit vectors of the distinct prompts of one benchmark, [K, D].
        own: Which of them each picture was drawn from, [N].

    Returns:
        [N]: 1.0 where it is, 0.0 where it is not, a share where several fit equally well, so that
        an encoder that sees no difference scores 1 / K.
    """
    _same_length(pictures, own)
    cosines = _cosines(pictures, captions)
    best = cosines >= cosines.max(axis=1, keepdims=True) - _TIE
    hit = best[np.arange(len(own)), np.asarray(own, dtype=np.intp)]
    found: Scores = hit / best.sum(axis=1)
    return found


def pairs_within(groups: Sequence[Hashable]) -> list[tuple[int, int]]:
    """All pairs of places with equal groups: the pictures of one prompt that are compared.

    Returns:
        (first, second) with first < second, in the order of the groups' first places.
    """
    members: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    return [
        (first, second)
        for places in members.values()
        for number, first in enumerate(places)
        for second in places[number + 1 :]
    ]


def diversity(pictures: Vectors, pairs: Sequence[tuple[int, int]]) -> Scores:
    """How different the pictures of one prompt are: DIV, where there is no LPIPS.

    Args:
        pictures: Unit vectors, [N, D].
        pairs: Which are compared; of `pairs_within`.

    Returns:
        [P], 1 - cosine: 0 to 2. `perceptual.Lpips` gives distances on another scale, so results
        must say which it was.
    """
    first, second = np.asarray(pairs, dtype=np.intp).reshape(-1, 2).T
    return 1.0 - alignment(pictures[first], pictures[second])


@dataclass(frozen=True)
class NearDuplicate:
    """Two pictures that are nearly the same.

    Attributes:
        first: Place of the earlier one.
        second: Place of the later one.
        mirrored: Whether one is the other's mirror image.
    """

    first: int
    second: int
    mirrored: bool


def near_duplicates(pictures: Sequence[Image.Image]) -> list[NearDuplicate]:
    """Pictures that are there twice, also resized, compressed again or mirrored.

    Reference photos that are copies of one another raise the ceiling and count one view twice.

    Args:
        pictures: A few of any size; each is compared with each.

    Returns:
        Pairs whose 64-bit perceptual hashes differ in at most `NEAR` bits. Each later picture is
        named once, with the first one it resembles.
    """
    seen = [int(perceptual_hash_of(picture), 16) for picture in pictures]
    mirrored = [int(perceptual_hash_of(ImageOps.mirror(picture)), 16) for picture in pictures]
    found = []
    for second, hashed in enumerate(seen):
        for first in range(second):
            plain = (seen[first] ^ hashed).bit_count()
            flipped = (mirrored[first] ^ hashed).bit_count()
            if min(plain, flipped) <= NEAR:
                found.append(NearDuplicate(first, second, flipped < plain))
                break
    return found


def _cosines(left: Vectors, right: Vectors) -> Scores:
    """[N, M]. In double precision: the sums of many pictures keep their last digits."""
    if not len(right):
        raise ValueError("there is nothing to compare with")
    return _bounded(_wide(left) @ _wide(right).T)


def _wide(vectors: Vectors) -> Scores:
    return np.asarray(vectors, dtype=np.float64)


def _bounded(cosines: Scores) -> Scores:
    # A float32 vector is of unit length but for its last digit.
    return np.clip(cosines, -1.0, 1.0)


def _same_length(left: Sequence[object] | Vectors, right: Sequence[object] | Vectors) -> None:
    if len(left) != len(right):
        raise ValueError(f"{len(left)} pictures cannot be compared with {len(right)} captions")
