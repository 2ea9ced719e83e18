"""Measures images as they are drawn: what each scores, for one model after the other.

Holds the encoders, which are loaded once, and what is known of each subject's reference photos. Of
images, a few are in memory at a time; what stays of each are its vectors. The arithmetic is in
`measures`, how sure a mean is in `statistics`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
from PIL import Image

from regforge.evaluation import measures
from regforge.evaluation.encoders import (
    EMBEDDED,
    EncoderNames,
    open_image_encoder,
    open_text_image_encoder,
)
from regforge.evaluation.interface import (
    Drawn,
    ImageEncoder,
    Interval,
    Measured,
    TextImageEncoder,
)
from regforge.evaluation.perceptual import Lpips, open_lpips
from regforge.evaluation.planning import Asked, Row
from regforge.evaluation.references import References
from regforge.evaluation.statistics import interval
from regforge.evaluation.text_fidelity import Lettering

_AT_ONCE = 16
"""Images that are encoded together."""

_MOST_COMPARED = 64
"""Reference photos of which each is compared with each."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Known:
    """What images of one subject are compared with.

    Attributes:
        structure: Vectors of its reference photos, [M, D].
        content: Likewise, of the other encoder.
        lettering: The writing on it; None where nobody asks for it.
        ceiling: What the photos themselves score, by `Metric.key`.
        notes: What a reader must know, a sentence each.
    """

    structure: np.ndarray
    content: np.ndarray
    lettering: Lettering | None
    ceiling: Mapping[str, Interval]
    notes: Sequence[str]


def open_gauge(
    names: EncoderNames, *, device: str | None, lettering: bool
) -> tuple[Gauge, list[str]]:
    """Load what measures.

    Args:
        names: Which encoders.
        device: Where to compute; the best there is if None.
        lettering: Whether to look for writing on the subject.

    Returns:
        It, and notes on what it lacks.

    Raises:
        EvaluationError: An encoder is not there or cannot be used.
        HubError: The Hub has it not, or cannot be reached.
    """
    structure = open_image_encoder(names.structure, device=device)
    content = open_text_image_encoder(names.alignment, device=device)
    if names.structure == EMBEDDED:  # LPIPS was trained on photos
        return Gauge(structure, content, lettering=lettering), []
    found = open_lpips(device=device)
    if isinstance(found, str):
        return Gauge(structure, content, lettering=lettering), [found]
    return Gauge(structure, content, found, lettering=lettering), []


class Gauge:
    """Measures images.

    Args:
        structure: Tells one thing from another: DINO, or what stands for it.
        content: Images and captions: CLIP, or what stands for it.
        perceptual: Tells how different images of one prompt are; the structure encoder's vectors
            do, where it is left out.
        lettering: Whether to look for writing on the subject.
    """

    def __init__(
        self,
        structure: ImageEncoder,
        content: TextImageEncoder,
        perceptual: Lpips | None = None,
        *,
        lettering: bool = True,
    ) -> None:
        self._lettering = lettering
        self._structure = structure
        self._content = content
        self._perceptual = perceptual

    @property
    def names(self) -> dict[str, str]:
        """What measures, as results name it."""
        distance = self._perceptual or self._structure
        return {
            "structure": self._structure.name,
            "alignment": self._content.name,
            "diversity": distance.name,
        }

    @property
    def notes(self) -> list[str]:
        """What they said about captions that they could not read whole, and the like."""
        both = (self._structure, self._content)
        return [note for each in both for note in getattr(each, "notes", ())]

    def learn(self, references: References, *, seed: int) -> Known:
        """Look at the reference photos of a subject.

        Args:
            references: Which.
            seed: Of the intervals around what they score.
        """
        structure, content = self._vectors(references.images())
        lettering = Lettering(references.images()) if self._lettering else None
        scores: dict[str, Sequence[float] | np.ndarray] = {
            "dino": measures.ceiling(structure),
            "clip_i": measures.ceiling(content),
        }
        notes = _alike(references)
        if lettering is not None:
            scores["text"] = _numbers(lettering.score(references.images()))
            notes = [*lettering.notes, *notes]
        ceiling = {
            key: interval(values, range(len(values)), seed=seed)
            for key, values in scores.items()
            if len(values)
        }
        if lettering is not None and lettering.lexicon:
            notes.append(
                f"Text fidelity looks for what was read on the reference photos: "
                f"{', '.join(lettering.lexicon)}. If nothing is written there, leave it aside."
            )
        return Known(structure, content, lettering, ceiling, notes)

    def measure(self, row: Row, drawn: Iterable[Drawn], known: Known) -> list[Measured]:
        """The scores of all images of a model.

        Args:
            row: What it was asked.
            drawn: What it drew, in the same order.
            known: What it is compared with.
        """
        vectors: list[tuple[np.ndarray, np.ndarray]] = []
        texts: list[float | None] = []
        apart: dict[int, float] = {}
        for some in _few(self._told_apart(row.asked, drawn, apart), _AT_ONCE):
            images = [each.image for each in some]
            vectors.append(self._encoded(images))
            asked = row.asked[len(texts) : len(texts) + len(some)]
            texts += _texts(asked, images, known.lettering)
        structure = np.concatenate([each for each, _ in vectors])
        content = np.concatenate([each for _, each in vectors])
        measured = [
            Measured(
                each.question,
                each.wanted.prompt,
                each.wanted.number,
                f"images/{row.folder}/{each.wanted.file}",
            )
            for each in row.asked
        ]
        self._of_class(row, measured, structure, known)
        self._of_questions(row, measured, structure, content, known)
        for place, distance in apart.items():
            measured[place].scores["div"] = distance
        for each, score in zip(measured, texts, strict=True):
            if score is not None:
                each.scores["text"] = score
        return measured

    # ------------------------------------------------------------------------------------- parts

    def _told_apart(
        self, asked: Sequence[Asked], drawn: Iterable[Drawn], found: dict[int, float]
    ) -> Iterator[Drawn]:
        """The images, unchanged; how far those of one prompt are apart is put into `found`.

        Only where that takes the images themselves. Those of a prompt follow one another.
        """
        if self._perceptual is None:
            yield from drawn
            return
        places = iter(range(len(asked)))
        for question, group in groupby(
            zip(places, drawn, strict=True), lambda e: asked[e[0]].question
        ):
            together = []
            for place, each in group:
                together.append((place, each.image))
                yield each
            pairs = measures.pairs_within([0] * len(together)) if question else []
            if pairs:
                distances = self._perceptual.distances([image for _, image in together], pairs)
                for number, mean in _means(pairs, distances).items():
                    found[together[number][0]] = mean

    def _of_class(
        self, row: Row, measured: Sequence[Measured], structure: np.ndarray, known: Known
    ) -> None:
        """Images of other members of the class."""
        places = [n for n, each in enumerate(row.asked) if each.question is None]
        values = measures.preservation(structure[places], known.structure)
        _note(measured, places, "pres", values)

    def _of_questions(
        self,
        row: Row,
        measured: Sequence[Measured],
        structure: np.ndarray,
        content: np.ndarray,
        known: Known,
    ) -> None:
        """Images of the subject, each benchmark for itself."""
        suites: dict[str, list[int]] = defaultdict(list)
        for place, each in enumerate(row.asked):
            if each.question is not None:
                suites[each.question.suite].append(place)
        for places in suites.values():
            says = list(dict.fromkeys(row.asked[place].says for place in places))
            own = [says.index(row.asked[place].says) for place in places]
            captions = np.concatenate([self._content.texts(some) for some in _few(says, _AT_ONCE)])
            here = content[places]
            scores = {
                "dino": measures.identity(structure[places], known.structure),
                "clip_i": measures.identity(here, known.content),
                "clip_t": measures.alignment(here, captions[own]),
                "matched": measures.matched(here, captions, own),
            }
            for key, values in scores.items():
                _note(measured, places, key, values)
            if self._perceptual is None:
                pairs = measures.pairs_within(own)
                distances = measures.diversity(structure[places], pairs)
                for place, value in _means(pairs, distances).items():
                    measured[places[place]].scores["div"] = value

    def _vectors(self, images: Iterable[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        found = [self._encoded(some) for some in _few(images, _AT_ONCE)]
        return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])

    def _encoded(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        return self._structure.images(images), self._content.images(images)


def _alike(references: References) -> list[str]:
    """A note on photos that are nearly the same: they raise what the photos themselves score."""
    small = list(references.thumbnails())
    if len(small) > _MOST_COMPARED:
        return []
    names = [path.name for path in references.photos]
    return [
        f"{names[each.second]} is nearly the same as {names[each.first]}"
        f"{', mirrored' if each.mirrored else ''}: the photos' own scores are higher for it."
        for each in measures.near_duplicates(small)
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


def _texts(
    asked: Sequence[Asked], images: Sequence[Image.Image], lettering: Lettering | None
) -> list[float | None]:
    """How well writing is kept, of the images that are to show it."""
    shown = [n for n, each in enumerate(asked) if each.question is not None]
    scores: list[float | None] = [None] * len(asked)
    if lettering is not None and lettering.lexicon:
        for place, score in zip(shown, lettering.score(images[n] for n in shown), strict=True):
            scores[place] = score
    return scores


def _note(
    measured: Sequence[Measured], places: Sequence[int], key: str, values: Iterable[float]
) -> None:
    for place, value in zip(places, values, strict=True):
        measured[place].scores[key] = float(value)


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _few(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    each = iter(items)
    while some := list(islice(each, count)):
        yield some
