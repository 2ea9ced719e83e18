"""What the parts of evaluation share.

    PersonalizedModel (models)    what is drawn with, and whose subject it knows
    Question          (suites)    a prompt of a benchmark, with a place for the subject
    Wanted, Drawn     (drawing)   an image that is to be drawn, and one that was
    ImageEncoder      (encoders)  images to unit vectors; TextImageEncoder: captions too
    Measured          (measures)  the scores of one image
    Interval          (statistics) a mean and what it may be

Directions of data: models and suites -> drawing -> encoders and text_fidelity -> measures ->
statistics -> results -> page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from regforge.errors import EXIT_USAGE, RegforgeError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

Kind = Literal["object", "living"]


class EvaluationError(RegforgeError):
    """Something that is to be evaluated, or evaluated with, is not there or does not fit."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Subject:
    """The one thing that a model was personalized with.

    Attributes:
        identifier: The rare token that stands for it.
        class_noun: What it is.
        kind: `object` or `living`; decides which prompts are asked.
        images: Folder of its photos; None where nobody knows them.
    """

    identifier: str
    class_noun: str
    kind: Kind
    images: Path | None


@dataclass(frozen=True)
class PersonalizedModel:
    """A base model, and what was trained on it.

    Attributes:
        name: For tables and legends; unique within an evaluation.
        base: Address or folder of the base model, or `embedded/tinyworld`.
        revision: Of the base model on the Hub.
        variant: Its weights variant.
        weights: A LoRA's file; None for a base model as it is, or one that was trained as a whole
            (then `base` is its folder).
        subject: Who it knows; None where nothing says so.
        steps: Optimizer steps it was trained for, if known.
        prompts: Of its own validation, to draw where nothing else is asked for.
        guidance_scale: Of its own validation.
        recipe: The training recipe as its run has it, if known.
        digest: SHA-256 of the weights, 64 hex digits: images of other weights are drawn anew.
        where: Where it lies: an absolute path, `embedded/tinyworld`, or `user/name` on the Hub.
        notes: What was assumed about it, a sentence each.
    """

    name: str
    base: str
    digest: str
    revision: str | None = None
    variant: str | None = None
    weights: Path | None = None
    subject: Subject | None = None
    steps: int | None = None
    prompts: tuple[str, ...] = ()
    guidance_scale: float | None = None
    recipe: Mapping[str, Any] | None = None
    where: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """One prompt of a benchmark.

    Attributes:
        text: With `{}` where the subject stands: "a {} in the jungle".
        suite: The benchmark that asks it: `dreambench`, `motion`, ...
        group: What it is about, as its suite says: `place`, `style`, `motion`, `property`, ...
    """

    text: str
    suite: str
    group: str = ""

    def about(self, noun: str) -> str:
        """The prompt, with a noun in it, `sks teapot` or `teapot`.

        "a {}" becomes "an owl", or "water" and "glasses", which take no article.
        """
        from regforge.embedded.phrase_banks import with_article

        named = with_article(noun)

        def written(found: re.Match[str]) -> str:
            return named[0].upper() + named[1:] if found[0][0] == "A" else named

        return re.sub(r"\b[Aa] \{\}", written, self.text).replace("{}", noun)


@dataclass(frozen=True)
class Wanted:
    """An image to be drawn.

    Attributes:
        prompt: What is drawn.
        number: Which of the samples of this prompt, from 0.
        seed: What its noise follows from; the same for all models, so that they are comparable.
        file: Where it goes, relative to the folder of its model's images; None: it is not kept.
    """

    prompt: str
    number: int
    seed: int
    file: str | None = None


@dataclass(frozen=True)
class Drawn:
    """An image that was drawn, or was there already."""

    wanted: Wanted
    image: Image.Image


class ImageEncoder(Protocol):
    """Images to vectors whose cosine says how much they are alike.

    Attributes:
        name: Model and revision, as results name it: `facebook/dino-vits16@...`.
    """

    name: str

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Float32 [N, D], of unit length."""
        ...


class TextImageEncoder(ImageEncoder, Protocol):
    """Captions as well, in the same space."""

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """Float32 [N, D], of unit length."""
        ...


@dataclass(frozen=True)
class Interval:
    """A mean, and a confidence interval around it.

    Attributes:
        mean: Of all values.
        low: Lower end of the interval.
        high: Upper end.
        count: How many images (or pairs of them) it is the mean of.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Comparison:
    """Two models with the same subject, image by image.

    Attributes:
        first: Name of a model.
        second: Name of another.
        metric: `Metric.key`.
        difference: Of second minus first, over pairs of the same prompt and sample; an interval
            that does not hold 0 is a difference that would be found again.
    """

    first: str
    second: str
    metric: str
    difference: Interval


@dataclass(frozen=True)
class Metric:
    """What a score means, for tables, axes and legends.

    Attributes:
        key: As in `evaluation.json`: `dino`.
        name: As people call it: `DINO`.
        meaning: One short sentence.
        higher_is_better: The direction.
    """

    key: str
    name: str
    meaning: str
    higher_is_better: bool = True


METRICS: tuple[Metric, ...] = (
    Metric("dino", "DINO", "Is it this subject? Cosine to the reference photos, by structure."),
    Metric("clip_i", "CLIP-I", "Is it this subject? Cosine to the reference photos, by CLIP."),
    Metric("clip_t", "CLIP-T", "Does it show what the prompt says? Cosine of image and prompt."),
    Metric("matched", "R-precision", "Share of images whose own prompt fits best of all asked."),
    Metric(
        "pres",
        "PRES",
        "Has the whole class become the subject? Cosine of other members of the class to it.",
        higher_is_better=False,
    ),
    Metric("div", "DIV", "Do images of one prompt differ? Mean distance of pairs."),
    Metric("text", "Text fidelity", "Is the writing on the subject still readable, and the same?"),
)
"""All scores there are, in the order of tables. A model has those that could be measured."""


@dataclass
class Measured:
    """The scores of one image.

    Attributes:
        question: What was asked; None for an image of another member of the class (`pres`).
        prompt: What was drawn.
        number: Which of its samples.
        file: Relative to the evaluation's folder.
        scores: By `Metric.key`; only those that one image can have.
    """

    question: Question | None
    prompt: str
    number: int
    file: str
    scores: dict[str, float] = field(default_factory=dict)
