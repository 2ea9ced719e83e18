"""What images score: arithmetic on vectors, one number for each image or pair of images.

Takes the unit vectors of `encoders` and returns a value for every single image, so that
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


def identity(images: Vectors, references: Vectors) -> Scores:
    """How much each image looks like the subject: DINO and CLIP-I.

    The mean cosine of an image with all reference photos. Its mean over images is the mean of
    the whole matrix, as DreamBooth defines it (https://arxiv.org/abs/2208.12242).

    Args:
        images: Unit vectors, [N, D].
        references: Unit vectors of the reference photos, [M, D]; at least one.

    Returns:
        [N], -1 to 1.
    """
    found: Scores = _cosines(images, references).mean(axis=1)
    return found


def preservation(images: Vectors, references: Vectors) -> Scores:
    """How much other members of the class have become the subject: PRES, lower is better.

    Args:
        images: Unit vectors of what the model draws of "a photo of a {class}", [N, D].
        references: Unit vectors of the reference photos, [M, D]; at least one.

    Returns:
        [N], -1 to 1.
    """
    return identity(images, references)


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


def alignment(images: Vectors, captions: Vectors) -> Scores:
    """How well each image shows its own prompt: CLIP-T, a plain cosine.

    Args:
        images: Unit vectors, [N, D].
        captions: Unit vectors of each image's prompt, [N, D]; the identifier left out of it.

    Returns:
        [N], -1 to 1. Not CLIPScore, which is 2.5 times as large and never negative.
    """
    _same_length(images, captions)
    found: Scores = np.einsum("nd,nd->n", _wide(images), _wide(captions))
    return _bounded(found)


def matched(images: Vectors, captions: Vectors, own: Sequence[int]) -> Scores:
    """Whether each image's own prompt fits it best of all that were asked: R-precision.

    Args:
        images: Unit vectors, [N, D].
        captions: Unit vectors of the distinct prompts of one benchmark, [K, D].
        own: Which of them each image was drawn from, [N].

    Returns:
        [N]: 1.0 where it is, 0.0 where it is not, a share where several fit equally well, so that
        an encoder that sees no difference scores 1 / K.
    """
    _same_length(images, own)
    cosines = _cosines(images, captions)
    best = cosines >= cosines.max(axis=1, keepdims=True) - _TIE
    hit = best[np.arange(len(own)), np.asarray(own, dtype=np.intp)]
    found: Scores = hit / best.sum(axis=1)
    return found


def pairs_within(groups: Sequence[Hashable]) -> list[tuple[int, int]]:
    """All pairs of places with equal groups: the images of one prompt that are compared.

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


def diversity(images: Vectors, pairs: Sequence[tuple[int, int]]) -> Scores:
    """How different the images of one prompt are: DIV, where there is no LPIPS.

    Args:
        images: Unit vectors, [N, D].
        pairs: Which are compared; of `pairs_within`.

    Returns:
        [P], 1 - cosine: 0 to 2. `perceptual.Lpips` gives distances on another scale, so results
        must say which it was.
    """
    first, second = np.asarray(pairs, dtype=np.intp).reshape(-1, 2).T
    return 1.0 - alignment(images[first], images[second])


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that are nearly the same.

    Attributes:
        first: Place of the earlier one.
        second: Place of the later one.
        mirrored: Whether one is the other's mirror image.
    """

    first: int
    second: int
    mirrored: bool


def near_duplicates(images: Sequence[Image.Image]) -> list[NearDuplicate]:
    """Images that are there twice, also resized, compressed again or mirrored.

    Reference photos that are copies of one another raise the ceiling and count one view twice.

    Args:
        images: A few of any size; each is compared with each.

    Returns:
        Pairs whose 64-bit perceptual hashes differ in at most `NEAR` bits. Each later image is
        named once, with the first one it resembles.
    """
    seen = [int(perceptual_hash_of(image), 16) for image in images]
    mirrored = [int(perceptual_hash_of(ImageOps.mirror(image)), 16) for image in images]
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
    """[N, M]. In double precision: the sums of many images keep their last digits."""
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
        raise ValueError(f"{len(left)} images cannot be compared with {len(right)} captions")
