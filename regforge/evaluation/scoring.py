"""Scoring: what each image of a model scores, by every metric that one image can have.

Of images, a few are in memory at a time; what stays of each are its vectors. docs/metrics.md says
what each score means, where it comes from and what is wrong with it; how sure a mean is, `metrics`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby, islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from regforge.embedded import EMBEDDED_JUDGE
from regforge.evaluation.encoders import (
    ImageEncoder,
    Lpips,
    TextImageEncoder,
    open_lpips,
)
from regforge.evaluation.metrics import (
    OVER_BASE,
    Interval,
    Vectors,
    class_closeness,
    class_diversity,
    cosines,
    identity,
    identity_lift,
    interval,
    pres_over_base,
)
from regforge.evaluation.planning import ModelPlan
from regforge.evaluation.references import References, SubjectText
from regforge.evaluation.suites import ImageRequest, ImageScores
from regforge.images.curation import perceptual_hash_of

Scores = NDArray[np.float64]

NEAR = 4
"""Bits, of 64, in which the perceptual hashes of near duplicates differ at most."""

_TIE = 1e-6  # cosines of float32 vectors that differ less are the same
_BATCH = 16  # images that are encoded together
_MOST_COMPARED = 64  # reference photos of which each is compared with each

Item = TypeVar("Item")


@dataclass(frozen=True)
class SubjectFeatures:
    """What images of one subject are compared with.

    Attributes:
        structure: Vectors of its reference photos, [M, D]; likewise `alignment`.
        text: The text on it; None where text fidelity is not wanted.
        ceiling: What the photos themselves score, by `Metric.key`.
        notes: What a reader must know, a sentence each.
        untouched: Vectors of the base model's images of the class, [N, D], once it was scored.
    """

    structure: Vectors
    alignment: Vectors
    text: SubjectText | None
    ceiling: Mapping[str, Interval]
    notes: Sequence[str]
    untouched: list[Vectors] = field(default_factory=list)


class Scorer:
    """Scores images.

    `structure` (DINO, or what stands for it) tells one thing from another, `alignment` (CLIP) knows
    captions, and `perceptual` tells how different images of one prompt are; without it the vectors
    of `structure` do, on another scale. `lacks` says what could not be had, a sentence each.
    """

    def __init__(
        self,
        structure: ImageEncoder,
        alignment: TextImageEncoder,
        perceptual: Lpips | None = None,
        *,
        text_fidelity: bool = True,
        lacks: Sequence[str] = (),
    ) -> None:
        self.lacks, self._text_fidelity = lacks, text_fidelity
        self._structure, self._alignment, self._perceptual = structure, alignment, perceptual

    @classmethod
    def open(
        cls, structure: str, alignment: str, *, device: str | None, text_fidelity: bool
    ) -> Scorer:
        """Load the encoders; see `ImageEncoder` for what it raises."""
        encoders = (
            ImageEncoder(structure, device=device),
            TextImageEncoder(alignment, device=device),
        )
        # Trained on photos.
        lpips = None if structure == EMBEDDED_JUDGE else open_lpips(device=device)
        if isinstance(lpips, str):
            return cls(*encoders, text_fidelity=text_fidelity, lacks=[lpips])
        return cls(*encoders, lpips, text_fidelity=text_fidelity)

    @property
    def names(self) -> dict[str, str]:
        """The encoders, as results have them."""
        return {
            "structure": self._structure.name,
            "alignment": self._alignment.name,
            "diversity": (self._perceptual or self._structure).name,
        }

    @property
    def notes(self) -> list[str]:
        """Captions that were cut, and the like."""
        return [*self._structure.notes, *self._alignment.notes]

    def learn(self, references: References, *, seed: int) -> SubjectFeatures:
        """Encode and score the reference photos of a subject; `seed` is that of the intervals."""
        vectors = [self._encoded(batch) for batch in _batches(references.images())]
        structure, alignment = map(np.concatenate, zip(*vectors, strict=True))
        scores = {"dino": ceiling(structure), "clip_i": ceiling(alignment)}
        notes = _alike(references)
        text = None
        if self._text_fidelity:
            text = SubjectText(references.images())
            known = [score for score in text.scores(references.images()) if score is not None]
            scores["text"] = np.array(known)
            notes = [*text.notes, *notes]
            if text.lexicon:
                notes.append(
                    f"Text fidelity looks for what was read on the reference photos: "
                    f"{', '.join(text.lexicon)}. If nothing is written there, leave it aside."
                )
        intervals = {
            key: interval(values, range(len(values)), seed=seed)
            for key, values in scores.items()
            if len(values)
        }
        return SubjectFeatures(structure, alignment, text, intervals, notes)

    def score(
        self, plan: ModelPlan, images: Iterable[Image.Image], subject: SubjectFeatures
    ) -> list[ImageScores]:
        """The scores of a model's images, which come in the order of `ModelPlan.drawn`.

        A base model (`steps` is 0) is to be scored before the others of its subject.
        """
        vectors: list[tuple[Vectors, Vectors]] = []
        readings: list[float | None] = []
        distances: dict[int, float] = {}
        for batch in _batches(self._compared(plan, images, distances)):
            vectors.append(self._encoded(batch))
            planned = plan.images[len(readings) : len(readings) + len(batch)]
            readings += _text_scores(planned, batch, subject.text)
        structure, alignment = map(np.concatenate, zip(*vectors, strict=True))
        at = f"images/{plan.folder}"
        scored = [
            ImageScores(e.question, e.prompt, e.number, f"{at}/{e.file}") for e in plan.images
        ]
        suites: dict[str | None, list[int]] = defaultdict(list)
        for place, each in enumerate(plan.images):
            suites[each.question.suite if each.question else None].append(place)
        for suite, places in suites.items():
            planned = [plan.images[place] for place in places]
            if suite is None:
                found = _of_class(plan, planned, structure[places], subject)
            else:
                found, means = self._asked(planned, structure[places], alignment[places], subject)
                distances |= {places[number]: mean for number, mean in means.items()}
            for key, values in found.items():
                for place, value in zip(places, values, strict=True):
                    scored[place].scores[key] = float(value)
        for place, lift in _lifts(plan, structure, subject):
            scored[place].scores["lift"] = lift
        for place, distance in distances.items():
            scored[place].scores["div"] = distance
        for image, score in zip(scored, readings, strict=True):
            if score is not None:
                image.scores["text"] = score
        return scored

    def _asked(
        self,
        planned: Sequence[ImageRequest],
        own: Vectors,
        aligned: Vectors,
        subject: SubjectFeatures,
    ) -> tuple[dict[str, Scores], dict[int, float]]:
        """Scores of the images of one benchmark, and distances to the others of their prompts."""
        captions = [each.caption for each in planned]
        distinct = list(dict.fromkeys(captions))
        of = [distinct.index(caption) for caption in captions]
        texts = np.concatenate([self._alignment.texts(part) for part in _batches(distinct)])
        pairs = [] if self._perceptual else pairs_within(captions)
        return {
            "dino": identity(own, subject.structure),
            "clip_i": identity(aligned, subject.alignment),
            "clip_t": cosine_of_pairs(aligned, texts[of]),
            "matched": matched(aligned, texts, of),
        }, _means(pairs, diversity(own, pairs))

    def _compared(
        self,
        plan: ModelPlan,
        images: Iterable[Image.Image],
        distances: dict[int, float],
    ) -> Iterator[Image.Image]:
        """The images, unchanged; perceptual distances to others of the prompt go to `distances`.

        Images of a prompt follow one another, and no more than those are held.
        """
        if self._perceptual is None:
            yield from images
            return
        asked = [*(each.question for each in plan.images), *(None for _ in plan.without)]
        numbered = zip(range(len(asked)), images, strict=True)
        for question, group in groupby(numbered, lambda each: asked[each[0]]):
            together = []
            for place, image in group:
                together.append((place, image))
                yield image
            pairs = pairs_within([0] * len(together)) if question else []
            if pairs:
                found = self._perceptual.distances([image for _, image in together], pairs)
                for number, mean in _means(pairs, found).items():
                    distances[together[number][0]] = mean

    def _encoded(self, images: Sequence[Image.Image]) -> tuple[Vectors, Vectors]:
        return self._structure.images(images), self._alignment.images(images)


def _of_class(
    plan: ModelPlan, planned: Sequence[ImageRequest], own: Vectors, subject: SubjectFeatures
) -> dict[str, Scores]:
    """Scores of images of the class; those of a base model are kept to compare with."""
    if plan.model.steps == 0:
        subject.untouched[:] = [own]
    found = {"pres": identity(own, subject.structure)}
    prompts = [each.prompt for each in planned]
    for base in subject.untouched:
        found[OVER_BASE] = pres_over_base(own, base, subject.structure)
        found["class_closeness"] = class_closeness(own, base, prompts)
        found["class_diversity"] = class_diversity(own, base, prompts)
    return found


def _lifts(
    plan: ModelPlan, structure: Vectors, subject: SubjectFeatures
) -> list[tuple[int, float]]:
    """Places of the images that were drawn without the identifier too, and their lifts."""
    places = {(each.question, each.number): place for place, each in enumerate(plan.images)}
    lifted = [places[each.question, each.number] for each in plan.without]
    plain = structure[len(plan.images) :]
    lifts = identity_lift(structure[lifted], plain, subject.structure)
    return list(zip(lifted, map(float, lifts), strict=True))


def _text_scores(
    planned: Sequence[ImageRequest], images: Sequence[Image.Image], text: SubjectText | None
) -> list[float | None]:
    """Text fidelity of the images that are to show the subject."""
    scores: list[float | None] = [None] * len(planned)
    if text is not None and text.lexicon:
        shown = [place for place, each in enumerate(planned) if each.question is not None]
        for place, score in zip(shown, text.scores(images[n] for n in shown), strict=True):
            scores[place] = score
    return scores


def _alike(references: References) -> list[str]:
    """Notes on photos that are nearly the same: they raise what the photos themselves score."""
    if len(references.photos) > _MOST_COMPARED:
        return []
    names = [path.name for path in references.photos]
    return [
        f"{names[second]} is nearly the same as {names[first]}{', mirrored' if mirrored else ''}: "
        "the photos' own scores are higher for it."
        for first, second, mirrored in near_duplicates(list(references.thumbnails()))
    ]


def _means(pairs: Sequence[tuple[int, int]], distances: Iterable[float]) -> dict[int, float]:
    """Mean distance of each image to the others of its prompt, by its place.

    The mean over all images is that over all pairs, where prompts have equally many images.
    """
    found: dict[int, list[float]] = defaultdict(list)
    for pair, distance in zip(pairs, distances, strict=True):
        for place in pair:
            found[place].append(float(distance))
    return {place: float(np.mean(values)) for place, values in sorted(found.items())}


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    each = iter(items)
    while batch := list(islice(each, _BATCH)):
        yield batch


# ------------------------------------------------------------------------------------ arithmetic
#
# All vectors are of unit length, [N, D]; each image has one value, so that `metrics` can say how
# sure their mean is.


def ceiling(references: Vectors) -> Scores:
    """What a real photo of the subject scores, each one against all the others; [M], -1 to 1.

    Empty if there are fewer than two photos.
    """
    count = len(references)
    if count < 2:
        return np.zeros(0)
    each = cosines(references, references)
    found: Scores = (each.sum(axis=1) - np.diagonal(each)) / (count - 1)
    return found


def cosine_of_pairs(images: Vectors, captions: Vectors) -> Scores:
    """How well each image shows its own prompt, -1 to 1: CLIP-T, a plain cosine.

    Not CLIPScore, which is 2.5 times as large and never negative.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images cannot be compared with {len(captions)} captions")
    found: Scores
    found = np.einsum("nd,nd->n", images.astype(np.float64), captions.astype(np.float64))
    return np.clip(found, -1.0, 1.0)


def matched(images: Vectors, captions: Vectors, own: Sequence[int]) -> Scores:
    """Whether each image's own prompt fits it best of all that were drawn: R-precision.

    `captions`, [K, D], are the distinct prompts of one benchmark; `own`, [N], says which of them
    each image was drawn from. A score is 1 where it is, 0 where it is not, a share where several
    fit equally well, so that an encoder that sees no difference scores 1 / K.
    """
    each = cosines(images, captions)
    best = each >= each.max(axis=1, keepdims=True) - _TIE
    hit = best[np.arange(len(images)), np.asarray(own, dtype=np.intp)]
    found: Scores = hit / best.sum(axis=1)
    return found


def pairs_within(groups: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pairs of places with equal groups, in the order of the groups' first places."""
    members: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    return [pair for places in members.values() for pair in combinations(places, 2)]


def diversity(images: Vectors, pairs: Sequence[tuple[int, int]]) -> Scores:
    """How different the images of each pair are, 1 - cosine: DIV, where there is no LPIPS."""
    first, second = np.asarray(pairs, dtype=np.intp).reshape(-1, 2).T
    return 1.0 - cosine_of_pairs(images[first], images[second])


def near_duplicates(images: Sequence[Image.Image]) -> list[tuple[int, int, bool]]:
    """Images that are there twice, also resized, compressed again or mirrored.

    By 64-bit perceptual hashes. Reference photos that are copies of one another raise the ceiling
    and count one view twice. Found are places of the first and of the later image, each once, and
    whether one is the other's mirror image.
    """
    seen = [int(perceptual_hash_of(image), 16) for image in images]
    mirrored = [int(perceptual_hash_of(ImageOps.mirror(image)), 16) for image in images]
    found = []
    for second, hashed in enumerate(seen):
        for first in range(second):
            plain = (seen[first] ^ hashed).bit_count()
            flipped = (mirrored[first] ^ hashed).bit_count()
            if min(plain, flipped) <= NEAR:
                found.append((first, second, flipped < plain))
                break
    return found
