"""What an evaluation draws: which models, which prompts, which seeds, into which files.

Refuses what cannot be compared before anything is loaded. Draws and scores nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regforge.evaluation.drawing import STEPS, ModelPool, seed_of
from regforge.evaluation.encoders import default_encoders
from regforge.evaluation.models import base_of, open_model, snapshots_of
from regforge.evaluation.references import References, references_for
from regforge.evaluation.suites import (
    BenchmarkPrompt,
    EvaluationError,
    ImageRequest,
    PersonalizedModel,
    Subject,
    absolute,
    class_prompts,
    default_suites,
    load_suite,
    run_of,
    without_identifier,
)
from regforge.files import expanded
from regforge.journal import Reporter
from regforge.recipe.named_files import LORA_NAME
from regforge.words import listed

BASE = "base model"
"""Name of the row of the model that others were trained on."""

SAMPLES = 4
"""Images of each prompt, as DreamBench has it."""

_CLASS_SAMPLES = 8  # times the samples of a prompt
_MOST = 10_000  # of anything that is counted here


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What an evaluation draws and measures.

    Attributes:
        subject: Whose photos, where the models do not say; as `open_model` takes it.
        references: Folder of photos of the subject that were not trained on; images are compared
            with those then, and not with the ones that were.
        base_model: What LoRAs were trained on, where nothing says it, or another place of it.
        suites: Benchmarks, by name or file; the usual ones of model and subject by default.
        samples: Images of each prompt; DreamBench has 4.
        class_samples: Images of other members of the class, over all prompts for it; 8 times
            `samples` by default.
        lift_samples: How many of them are drawn without the identifier as well, for the lift; 0
            leaves it out.
        limit: Only the first so many prompts of each benchmark, for a quick look.
        seed: Of the noise of all images.
        steps: Denoising steps.
        guidance_scale: Of all models; that of the first one's recipe by default.
        structure_encoder: For DINO, a transformers name or folder; by the base model by default.
        alignment_encoder: For CLIP-I and CLIP-T, likewise.
        text_fidelity: Whether it is measured, where the subject has text on it; reading an image
            takes about as long as drawing a small one.
        with_base: Whether the base model is measured too, as the row where things start.
        snapshots: Whether each snapshot of a run is a model of its own.
        device: The best there is by default.
        batch_size: Images at a time; as many as memory suffices for by default.

    Raises:
        EvaluationError: A number is out of range.
    """

    subject: Subject | str | Path | None = None
    references: str | Path | None = None
    base_model: str | Path | None = None
    suites: Sequence[str | Path] | None = None
    samples: int = SAMPLES
    class_samples: int | None = None
    lift_samples: int = 1
    limit: int | None = None
    seed: int = 0
    steps: int = STEPS
    guidance_scale: float | None = None
    structure_encoder: str | None = None
    alignment_encoder: str | None = None
    text_fidelity: bool = True
    with_base: bool = True
    snapshots: bool = False
    device: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "class_samples", "limit"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MOST:
                raise EvaluationError(f"{name} is {value:,}; it can be 1 to {_MOST:,}.")
        if self.lift_samples < 0:
            raise EvaluationError(f"lift_samples is {self.lift_samples:,}; it can be 0 or more.")
        if not 0 <= self.seed < 2**63:
            raise EvaluationError(f"The seed is {self.seed}; it must be 0 or more.")


@dataclass(frozen=True)
class ModelPlan:
    """All images of one model in order, and their folder, relative to that of all images.

    Attributes:
        without: Some of the questions again, without the identifier: they are drawn after the
            others, and the lift is measured against them.
    """

    model: PersonalizedModel
    subject: Subject
    folder: str
    images: Sequence[ImageRequest]
    without: Sequence[ImageRequest] = ()

    @property
    def drawn(self) -> list[ImageRequest]:
        """What is drawn, in order."""
        return [*self.images, *self.without]


@dataclass(frozen=True)
class Plan:
    """A whole evaluation; nothing is loaded yet.

    Attributes:
        references: By `Subject.name`.
        settings: What decides it besides models and photos, as `evaluation.json` has it.
        notes: What a reader must know about it, a sentence each.
    """

    models: Sequence[ModelPlan]
    pool: ModelPool
    references: Mapping[str, References]
    settings: Mapping[str, Any]
    notes: Sequence[str]


def plan_evaluation(
    models: Sequence[str | Path | PersonalizedModel],
    settings: EvaluationSettings,
    reporter: Reporter | None = None,
) -> Plan:
    """Everything that can be known before the first image.

    Models are as `open_model` takes them; those that are open already stay as they are.

    Raises:
        EvaluationError: There is nothing to evaluate, or something is no model, or has no subject,
            or cannot be compared with the others; there is no such benchmark, or no photos.
    """
    opened = open_all(models, settings)
    guidance, notes = _one_guidance(opened, settings.guidance_scale)
    pool = ModelPool(
        device=settings.device,
        steps=settings.steps,
        guidance_scale=guidance,
        batch_size=settings.batch_size,
        reporter=reporter or Reporter(quiet=True),
    )
    class_samples = settings.class_samples or _CLASS_SAMPLES * settings.samples
    plans = [
        _model_plan(model, noun, replace(settings, class_samples=class_samples), pool)
        for model, noun in _with_base(opened, with_base=settings.with_base)
    ]
    sizes = {pool.settings_for(model)["resolution"]: model.name for model in opened}
    if len(sizes) > 1:
        shown = [f"{name} at {size or 'its own size'}" for size, name in sizes.items()]
        notes.append(
            f"Models draw at the size that they were trained at ({listed(shown)}), so their "
            "images do not come from the same noise."
        )
    references = references_for(
        (plan.subject for plan in plans),
        None if settings.references is None else absolute(settings.references),
    )
    structure, alignment = default_encoders((base_of(opened[0]) or opened[0]).base)
    suites = [each.question.suite for plan in plans for each in plan.images if each.question]
    facts = {
        "suites": list(dict.fromkeys(suites)),
        "samples": settings.samples,
        "class_samples": class_samples,
        "lift_samples": min(settings.lift_samples, settings.samples),
        "limit": settings.limit,
        "seed": settings.seed,
        "steps": settings.steps,
        "guidance_scale": guidance,
        "encoders": {
            "structure": settings.structure_encoder or structure,
            "alignment": settings.alignment_encoder or alignment,
        },
    }
    return Plan(plans, pool, references, facts, notes)


# --------------------------------------------------------------------------------------- models


def open_all(
    models: Sequence[str | Path | PersonalizedModel], settings: EvaluationSettings
) -> list[PersonalizedModel]:
    """The models of an evaluation, by names that differ; snapshots before what they became."""
    if not models:
        raise EvaluationError(
            "There is no model to evaluate.", hint="Name a training run's folder."
        )
    opened: list[PersonalizedModel] = []
    for each in models:
        if isinstance(each, PersonalizedModel):
            opened.append(each)
            continue
        paths = [path for _, path in snapshots_of(expanded(each))] if settings.snapshots else []
        known: Any = {"base": settings.base_model, "subject": settings.subject}
        try:
            final = [open_model(each, **known)]
        except EvaluationError:
            if not paths:  # of a run that still goes on, its snapshots will do
                raise
            final = []
        of_run = [open_model(path, **known) for path in paths]
        digests = {model.digest for model in final}
        opened += [model for model in of_run if model.digest not in digests] + final
    if settings.snapshots and not any(model.is_snapshot for model in opened):
        raise EvaluationError(
            f"{listed([str(each) for each in models if not isinstance(each, PersonalizedModel)])} "
            "has no snapshots.",
            hint="Training keeps them after the steps that its recipe names: "
            "checkpoint.snapshots: [100, 200, 400]",
        )
    _check_together(opened)
    return distinct_names(opened)


def _check_together(models: Sequence[PersonalizedModel]) -> None:
    """Refuse what cannot be drawn, or not in one evaluation."""
    places: set[tuple[str, str]] = set()
    for model in models:
        if model.subject is None:
            raise EvaluationError(
                f"Nothing says which subject {model.name} knows.",
                hint="Name the folder of its photos with --subject; a subject.json in it says who "
                'it is: {"class_noun": "teapot", "identifier": "sks", "kind": "object"}',
            )
        place = (str(model.weights or model.base), model.where)
        if place in places:
            raise EvaluationError(f"{model.where or model.base} is asked for twice.")
        places.add(place)
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


def _with_base(
    models: Sequence[PersonalizedModel], *, with_base: bool
) -> list[tuple[PersonalizedModel, str]]:
    """The models, each with what prompts call the subject.

    Before the first model of each subject stands what it was trained on, if that is wanted and
    known. That one draws the class alone, because it knows no identifier.
    """
    found: list[tuple[PersonalizedModel, str]] = []
    several = len({model.subject.name for model in models if model.subject}) > 1
    begun: set[str] = set()
    for model in models:
        subject = model.subject
        assert subject is not None  # _check_together
        base = base_of(model) if with_base and subject.name not in begun else None
        begun.add(subject.name)
        if base is not None:
            name = f"{BASE} ({subject.name})" if several else BASE
            found.append((replace(base, name=name, subject=subject, steps=0), subject.class_noun))
        found.append((model, subject.name))
    named = distinct_names([model for model, _ in found])
    return [(model, noun) for model, (_, noun) in zip(named, found, strict=True)]


def _one_guidance(
    models: Sequence[PersonalizedModel], given: float | None
) -> tuple[float | None, list[str]]:
    """One guidance scale for all models, or more than the weights would differ; and notes."""
    if given is not None:
        return given, []
    scales = {model.name: model.guidance_scale for model in models}
    first = next((scale for scale in scales.values() if scale is not None), None)
    others = [name for name, scale in scales.items() if scale not in (None, first)]
    if not others:
        return first, []
    return first, [
        f"All images are drawn with guidance scale {first:g}; the recipe of {listed(others)} "
        "names another one."
    ]


def distinct_names(models: Sequence[PersonalizedModel]) -> list[PersonalizedModel]:
    """The same models, with names that differ: of equal ones, their folder's name is put before.

    What lies in the same place keeps its name but for a number: `teapot`, `teapot (2)`.
    """
    names = [model.name for model in models]
    parents = [_parents_of(Path(model.where or model.base)) for model in models]
    while True:
        places: dict[str, set[str]] = {}
        for name, model in zip(names, models, strict=True):
            places.setdefault(name, set()).add(str(model.weights or model.base))
        confused = [n for n, name in enumerate(names) if len(places[name]) > 1 and parents[n]]
        if not confused:
            break
        for number in confused:
            names[number] = f"{parents[number].pop()}/{names[number]}"
    unique: list[str] = []
    for name in names:
        count, free = 1, name
        while free in unique or (count > 1 and free in names):
            count += 1
            free = f"{name} ({count})"
        unique.append(free)
    return [replace(model, name=name) for model, name in zip(models, unique, strict=True)]


def _parents_of(path: Path) -> list[str]:
    """Names of the folders around a model, the nearest one last."""
    has_own_name = path.suffix == ".safetensors" and path.name != LORA_NAME
    folder = (path if has_own_name else run_of(path)).parent
    return [part for part in folder.parts if part != folder.anchor]


# -------------------------------------------------------------------------------------- images


def _model_plan(
    model: PersonalizedModel, noun: str, settings: EvaluationSettings, pool: ModelPool
) -> ModelPlan:
    """All images of one model; prompts call the subject `noun`: `sks teapot`, or `teapot`."""
    subject, class_samples = model.subject, settings.class_samples
    assert subject is not None  # _check_together
    assert class_samples is not None
    suites = settings.suites
    names = default_suites(model, subject.kind) if suites is None else suites
    if not names:
        raise EvaluationError("There is no prompt to ask.", hint="Name a benchmark with --suite.")
    names = list(dict.fromkeys(map(str, names)))
    prompts: dict[str, list[BenchmarkPrompt]] = {}
    for name in names:
        found = load_suite(name, subject.kind)[: settings.limit]
        suite = found[0].suite
        if suite in prompts:  # their images and scores would be one benchmark's
            raise EvaluationError(
                f"Two benchmarks are called {suite}.", hint="Give one of the files another name."
            )
        prompts[suite] = found
    images: list[ImageRequest] = []
    without: list[ImageRequest] = []
    plain, lifted = subject.class_noun, min(settings.lift_samples, settings.samples)
    for prompt in (each for found in prompts.values() for each in found):
        images += _samples(prompt, noun, subject, settings.samples, settings.seed)
        if noun != plain:
            without += _samples(prompt, plain, subject, lifted, settings.seed)
    of_class = list(dict.fromkeys(each for name in names for each in class_prompts(name)))
    for number, prompt in enumerate(of_class):
        share = len(range(number, class_samples, len(of_class)))
        images += _samples(prompt, subject.class_noun, subject, share, settings.seed)
    facts = json.dumps(pool.settings_for(model), sort_keys=True)
    digest = hashlib.sha256(facts.encode()).hexdigest()
    folder = f"{_as_file(model.name)}-{digest[:10]}"
    return ModelPlan(model, subject, folder, images, without)


def _samples(
    prompt: BenchmarkPrompt, noun: str, subject: Subject, count: int, seed: int
) -> Iterator[ImageRequest]:
    """Samples of a prompt; one of no suite asks for the class.

    Their seeds follow from that of the evaluation, from the prompt with the subject left open, and
    from their number; so all models draw from the same noise, and can be compared image by image.
    """
    text = prompt.about(noun)
    caption = without_identifier(text, subject)
    for number in range(count):
        own = seed_of(seed, prompt.text, number)
        # Suites can be edited and seeds changed; a file belongs to one prompt and one seed.
        key = hashlib.sha256(f"{text}\0{own}".encode()).hexdigest()[:8]
        file = f"{_as_file(prompt.suite or 'class')}/{_as_file(text)}-{number}-{key}.png"
        yield ImageRequest(text, number, own, file, prompt if prompt.suite else None, caption)


def _as_file(text: str) -> str:
    """A name that every file system takes."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")
    return plain[:60].rstrip("-.") or "model"
