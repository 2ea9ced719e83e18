"""Types that the parts of evaluation share.

Data flows from models and suites over planning, drawing and scoring to results and the page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.recipe import Kind


class EvaluationError(RegforgeError):
    """A model, folder, benchmark or setting of an evaluation is not there or does not fit."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Subject:
    """The one thing that a model was personalized with.

    Attributes:
        images: The folder of its photos, if known.
        missing: Where they were, if they are not there any more.
    """

    identifier: str
    class_noun: str
    kind: Kind
    images: Path | None
    missing: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """What prompts call it: `sks teapot`."""
        return f"{self.identifier} {self.class_noun}".strip()


@dataclass(frozen=True)
class PersonalizedModel:
    """A base model, and what was trained on it.

    Attributes:
        name: For tables and legends; unique within an evaluation.
        base: Address or folder of the base model, or `embedded/tinyworld`.
        digest: SHA-256 of the weights, 64 hex digits: images of other weights are drawn anew.
        revision: Of the base model on the Hub.
        variant: Weights variant of the base model.
        weights: A LoRA's file; None for a base model as it is, or one that was trained as a whole
            (then `base` is its folder).
        steps: Optimizer steps it was trained for, if known.
        prompts: Of its own validation.
        guidance_scale: Of its own validation.
        recipe: The training recipe as its run has it, if known.
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

    def setting(self, section: str, key: str) -> Any:
        """A value of its training recipe; None where there is none."""
        return section_of(self.recipe, section).get(key)

    @property
    def is_snapshot(self) -> bool:
        """Whether it is a snapshot of a run."""
        return snapshot_step(home_of(self.weights or Path(self.base))) is not None

    @property
    def run(self) -> Path:
        """The folder of the run that it is of."""
        return run_of(self.weights or Path(self.base))


def home_of(path: Path) -> Path:
    """The folder of a run or snapshot, by itself or by the folder or file of its weights."""
    folder = path.parent if path.suffix == ".safetensors" else path
    return folder.parent if folder.name in ("lora", "model") else folder


def run_of(path: Path) -> Path:
    """The folder of a run, likewise, and by one of its snapshots."""
    home = home_of(path)
    return home if snapshot_step(home) is None else home.parent.parent


def snapshot_step(folder: Path) -> int | None:
    """Of which step a run's snapshot is; None for any other folder, such as the Hub's cache."""
    named = re.fullmatch(r"step-(\d+)", folder.name)
    return int(named[1]) if named and folder.parent.name == "snapshots" else None


def section_of(recipe: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """A section of a recipe, which may be anybody's; empty where there is none."""
    found = (recipe or {}).get(name)
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class BenchmarkPrompt:
    """One prompt of a benchmark.

    Attributes:
        text: With `{}` where the subject stands: "a {} in the jungle".
        suite: Name of the benchmark: `dreambench`, `motion`, ...
        group: Its kind in the benchmark: `place`, `style`, `motion`, `property`, ...
    """

    text: str
    suite: str
    group: str = ""

    def about(self, noun: str) -> str:
        """The prompt with a noun in it, `sks teapot` or `teapot`.

        "a {}" becomes "an owl", or "water" and "glasses", which take no article.
        """
        from regforge.embedded.phrase_banks import with_article

        named = with_article(noun)
        upper = named[:1].upper() + named[1:]
        text = re.sub(r"\bA \{\}", lambda _: upper, self.text)
        return re.sub(r"\ba \{\}", lambda _: named, text).replace("{}", noun)


def without_identifier(prompt: str, subject: Subject | None) -> str:
    """A prompt for the base model: `a photo of a sks owl` becomes `a photo of an owl`."""
    if subject is None or not subject.identifier.strip():
        return prompt
    from regforge.embedded.phrase_banks import indefinite_article

    identifier, words = subject.identifier.split(), prompt.split()
    kept: list[str] = []
    while words:
        if [_bare(word) for word in words[: len(identifier)]] != [_bare(w) for w in identifier]:
            kept.append(words.pop(0))
            continue
        last = words[len(identifier) - 1]
        del words[: len(identifier)]
        if kept and kept[-1].lower() in ("a", "an") and words:
            article = indefinite_article(words[0])
            kept[-1] = article.capitalize() if kept[-1][0].isupper() else article
        stop = last[len(last.rstrip(",.;:!?")) :]
        if stop and kept:
            kept[-1] += stop
    return " ".join(kept)


def _bare(word: str) -> str:
    return word.strip("\"'(),.;:!?").casefold()


@dataclass(frozen=True)
class ImageRequest:
    """An image to be drawn.

    Attributes:
        number: Which of the samples of this prompt, from 0.
        seed: Of the noise; the same for all models, so that they are comparable.
        file: Relative to the folder of its model's images; None: it is not kept.
        question: The benchmark's prompt; None for an image of another member of the class.
        caption: The prompt without the identifier, which alignment is measured with: an encoder
            knows what an owl is, and not what `sks` is.
    """

    prompt: str
    number: int
    seed: int
    file: str | None = None
    question: BenchmarkPrompt | None = None
    caption: str = ""


@dataclass
class ImageScores:
    """The scores of one image.

    Attributes:
        question: The benchmark's prompt; None for another member of the class (`pres`).
        prompt: What was drawn.
        number: Which of its samples.
        file: Relative to the evaluation's folder.
        scores: By `Metric.key`; only those that one image can have.
    """

    question: BenchmarkPrompt | None
    prompt: str
    number: int
    file: str
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Suite and prompt as all models have them; a base model's lacks the identifier."""
        return (self.question.suite, self.question.text) if self.question else ("", self.prompt)


def absolute(path: str | Path) -> Path:
    """Absolute and without `..`, so that its last part is a name; links are not followed."""
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111
