"""What an evaluation is to draw: which models, which prompts, which seeds, into which files.

Refuses what cannot be compared before anything is loaded. Draws and measures nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.evaluation.drawing import Artist, seed_of
from regforge.evaluation.interface import (
    EvaluationError,
    PersonalizedModel,
    Question,
    Subject,
    Wanted,
)
from regforge.evaluation.model_files import snapshot_step
from regforge.evaluation.models import base_of, distinct_names, open_model, without_identifier
from regforge.evaluation.references import name_of
from regforge.evaluation.steps import is_snapshot
from regforge.evaluation.suites import class_prompts, default_suites, load_suite
from regforge.files import expanded
from regforge.words import listed

if TYPE_CHECKING:
    from regforge.evaluation.interface import Kind

BASE = "base model"
"""Name of the row of the model that others were trained on."""


@dataclass(frozen=True)
class Asked:
    """An image that is to be drawn and measured.

    Attributes:
        question: What is asked; None for an image of another member of the class.
        wanted: The image.
        says: The prompt without the identifier, which alignment is measured with: an encoder knows
            what an owl is, and not what `sks` is.
    """

    question: Question | None
    wanted: Wanted
    says: str


@dataclass(frozen=True)
class Row:
    """All that one model is asked.

    Attributes:
        model: Which.
        subject: Who it is asked for.
        folder: Of its images, relative to that of all images.
        asked: In the order in which they are drawn.
    """

    model: PersonalizedModel
    subject: Subject
    folder: str
    asked: Sequence[Asked]


# --------------------------------------------------------------------------------------- models


def open_all(
    models: Sequence[str | Path | PersonalizedModel],
    *,
    base: str | Path | None,
    subject: Subject | str | Path | None,
    snapshots: bool,
) -> list[PersonalizedModel]:
    """The models that are asked for, by names that differ.

    Args:
        models: See `open_model`; those that are open already stay as they are.
        base: As `open_model` takes it.
        subject: As `open_model` takes it.
        snapshots: Take each snapshot of a run as well, before what it became.

    Raises:
        EvaluationError: There is nothing to evaluate, or something is no model, or has no subject,
            or cannot be compared with the others.
    """
    if not models:
        raise EvaluationError(
            "There is no model to evaluate.", hint="Name a training run's folder."
        )
    opened: list[PersonalizedModel] = []
    for each in models:
        if isinstance(each, PersonalizedModel):
            opened.append(each)
            continue
        on_the_way = list(_snapshots(Path(each))) if snapshots else []
        of_run = [open_model(path, base=base, subject=subject) for path in on_the_way]
        try:
            final = [open_model(each, base=base, subject=subject)]
        except EvaluationError:
            if not of_run:  # of a run that still goes on, its snapshots will do
                raise
            final = []
        digests = {model.digest for model in final}
        opened += [model for model in of_run if model.digest not in digests] + final
    if snapshots and not any(is_snapshot(model) for model in opened):
        raise EvaluationError(
            f"{listed([str(each) for each in models if not isinstance(each, PersonalizedModel)])} "
            "has no snapshots.",
            hint="Training keeps them after the steps that its recipe names: "
            "checkpoint.snapshots: [100, 200, 400]",
        )
    _check_together(opened)
    return distinct_names(opened)


def _snapshots(run: Path) -> Iterator[Path]:
    """The whole snapshots of a run, by step."""
    found = [
        (step, path)
        for path in (expanded(run) / "snapshots").glob("step-*")
        if (step := snapshot_step(path)) is not None
        and ((path / "lora").is_dir() or (path / "model").is_dir())
    ]
    return (path for _, path in sorted(found))


def _check_together(models: Sequence[PersonalizedModel]) -> None:
    """Refuse what cannot be asked, or not in one evaluation."""
    seen: dict[tuple[str, str], PersonalizedModel] = {}
    for model in models:
        if model.subject is None:
            raise EvaluationError(
                f"Nothing says which subject {model.name} knows.",
                hint="Name the folder of its photos with --subject; a subject.json in it says who "
                'it is: {"class_noun": "teapot", "identifier": "sks", "kind": "object"}',
            )
        place = (str(model.weights or model.base), model.where)
        if place in seen:
            raise EvaluationError(f"{model.where or model.base} is asked for twice.")
        seen[place] = model
    first = models[0]
    for other in models[1:]:
        if _origin(other) != _origin(first):
            raise EvaluationError(
                f"{first.name} was trained on {_origin(first)}, and {other.name} on "
                f"{_origin(other)}: their scores cannot be compared.",
                hint="Evaluate them one at a time. If it is the same model in two places, name one "
                "of them with --base-model.",
            )


def _origin(model: PersonalizedModel) -> str:
    """What it was trained on; the same for a LoRA and for a model trained as a whole."""
    base = base_of(model) or model
    return base.base if base.revision is None else f"{base.base}@{base.revision}"


def rows_of(
    models: Sequence[PersonalizedModel], *, with_base: bool
) -> list[tuple[PersonalizedModel, str]]:
    """The models, each with what prompts call the subject.

    Before the first model of each subject stands what it was trained on, if that is asked for and
    known. That one is asked for the class alone, because it knows no identifier.
    """
    found: list[tuple[PersonalizedModel, str]] = []
    subjects: dict[str, Subject] = {name_of(each): each for each in _subjects(models)}
    begun: set[str] = set()
    for model in models:
        assert model.subject is not None  # _check_together
        called = name_of(model.subject)
        base = base_of(model) if with_base and called not in begun else None
        begun.add(called)
        if base is not None:
            name = BASE if len(subjects) == 1 else f"{BASE} ({called})"
            base = replace(base, name=name, subject=model.subject, steps=0)
            found.append((base, model.subject.class_noun))
        found.append((model, called))
    named = distinct_names([model for model, _ in found])
    return [(model, noun) for model, (_, noun) in zip(named, found, strict=True)]


def _subjects(models: Sequence[PersonalizedModel]) -> Iterator[Subject]:
    return (model.subject for model in models if model.subject is not None)


def guidance_for(
    models: Sequence[PersonalizedModel], given: float | None
) -> tuple[float | None, list[str]]:
    """One guidance scale for all models, or what differs in them would be more than the weights.

    Returns:
        The scale, None for the pipeline's own; and notes.
    """
    if given is not None:
        return given, []
    scales = {model.name: model.guidance_scale for model in models}
    first = next((scale for scale in scales.values() if scale is not None), None)
    others = [name for name, scale in scales.items() if scale not in (None, first)]
    if first is None or not others:
        return first, []
    return first, [
        f"All images are drawn with guidance scale {first:g}; the recipe of {listed(others)} "
        "names another one."
    ]


def note_on_sizes(models: Sequence[PersonalizedModel], artist: Artist) -> Iterator[str]:
    """A note where models draw in other sizes, and so from other noise."""
    sizes = {artist.settings_for(model)["resolution"]: model.name for model in models}
    if len(sizes) > 1:
        shown = [f"{name} at {size or 'its own size'}" for size, name in sizes.items()]
        yield (
            f"Models draw at the size that they were trained at ({listed(shown)}), so their "
            "images do not come from the same noise."
        )


# -------------------------------------------------------------------------------------- images


def questions_for(
    model: PersonalizedModel,
    subject: Subject,
    suites: Sequence[str | Path] | None,
    limit: int | None,
) -> list[Question]:
    """The prompts that a model is asked.

    Args:
        model: Which.
        subject: Who it knows; its kind decides.
        suites: Benchmarks by name or file; None takes those that are usual for the model.
        limit: Only the first so many prompts of each.

    Raises:
        EvaluationError: There is no such benchmark, or it asks this kind of subject nothing.
    """
    kind: Kind = subject.kind
    asked: dict[str, Sequence[Question]] = {}
    for name in _suites_of(model, kind, suites):
        questions = load_suite(name, kind)[:limit]
        suite = questions[0].suite
        if suite in asked:  # their images and scores would be one benchmark's
            raise EvaluationError(
                f"Two benchmarks are called {suite}.", hint="Give one of the files another name."
            )
        asked[suite] = questions
    return [each for questions in asked.values() for each in questions]


def class_questions_for(
    model: PersonalizedModel, subject: Subject, suites: Sequence[str | Path] | None
) -> list[Question]:
    """What a model is asked of the class as a whole, by all its benchmarks together, each once.

    Args:
        model: Which.
        subject: Who it knows.
        suites: As `questions_for` takes them.
    """
    names = _suites_of(model, subject.kind, suites)
    return list(dict.fromkeys(each for name in names for each in class_prompts(name)))


def _suites_of(
    model: PersonalizedModel, kind: Kind, suites: Sequence[str | Path] | None
) -> list[str]:
    names = default_suites(model, kind) if suites is None else suites
    if not names:
        raise EvaluationError("There is no prompt to ask.", hint="Name a benchmark with --suite.")
    return list(dict.fromkeys(map(str, names)))


def row_of(
    model: PersonalizedModel,
    noun: str,
    questions: Sequence[Question],
    class_questions: Sequence[Question],
    artist: Artist,
    *,
    samples: int,
    class_samples: int,
    seed: int,
) -> Row:
    """All images of one model.

    The seed of an image follows from that of the evaluation, from its prompt with the subject left
    open, and from its number; so all models are asked with the same noise, and can be compared
    image by image.

    Args:
        model: Which.
        noun: What prompts call the subject: `sks teapot`, or `teapot`.
        questions: What it is asked.
        class_questions: What it is asked of the class as a whole.
        artist: Who draws; its settings decide which images that are there may be taken.
        samples: Images of each prompt.
        class_samples: Images of other members of the class, over all of `class_questions`.
        seed: Of the evaluation.
    """
    subject = model.subject
    assert subject is not None  # _check_together
    asked: list[Asked] = []
    for question in questions:
        asked += _samples(question, question, noun, subject, samples, seed)
    for number, question in enumerate(class_questions):
        share = len(range(number, class_samples, len(class_questions)))
        asked += _samples(question, None, subject.class_noun, subject, share, seed)
    settings = json.dumps(artist.settings_for(model), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()
    return Row(model, subject, f"{_as_file(model.name)}-{digest[:10]}", asked)


def _samples(
    question: Question,
    shown: Question | None,
    noun: str,
    subject: Subject,
    count: int,
    seed: int,
) -> Iterator[Asked]:
    prompt = question.about(noun)
    says = without_identifier(prompt, subject)
    for number in range(count):
        own = seed_of(seed, question.text, number)
        # Suites can be edited and seeds changed; a file belongs to one prompt and one seed.
        key = hashlib.sha256(f"{prompt}\0{own}".encode()).hexdigest()[:8]
        file = f"{_as_file(question.suite or 'class')}/{_as_file(prompt)}-{number}-{key}.png"
        yield Asked(shown, Wanted(prompt, number, own, file), says)


def _as_file(text: str, longest: int = 60) -> str:
    """A name that every file system takes."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")
    return plain[:longest].rstrip("-.") or "model"


# ----------------------------------------------------------------------------------------- words


def settings_of(
    rows: Sequence[Row],
    *,
    samples: int,
    class_samples: int,
    seed: int,
    steps: int,
    guidance_scale: float | None,
    limit: int | None,
    encoders: Mapping[str, str],
) -> dict[str, Any]:
    """What decides an evaluation besides models and photos, as `evaluation.json` has it."""
    suites = dict.fromkeys(
        each.question.suite for row in rows for each in row.asked if each.question is not None
    )
    return {
        "suites": list(suites),
        "samples": samples,
        "class_samples": class_samples,
        "limit": limit,
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "encoders": dict(encoders),
    }
