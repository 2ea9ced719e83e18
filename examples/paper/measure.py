"""Draws with a run's weights, and scores what it draws.

Prompts are drawn with the identifier and, where they say nothing about the subject itself, without
it, from the same noise; the class is drawn several times a prompt. All runs are asked the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor

from grid import Experiment, Subject
from regforge.devices import pick_device
from regforge.evaluation.drawing import seed_of
from regforge.evaluation.encoders import ImageEncoder, TextImageEncoder, default_encoders
from regforge.evaluation.metrics import (
    Vectors,
    class_closeness,
    class_diversity,
    identity,
    identity_lift,
    pres_over_base,
)
from regforge.evaluation.scoring import cosine_of_pairs, matched
from regforge.evaluation.suites import class_prompts, load_suite
from regforge.images.local import LocalRenderer
from regforge.images.pipelines import default_size, place, set_scheduler
from regforge.images.renderer import ModelIdentity
from regforge.journal import Journal, Reporter
from regforge.recipe import TrainingRecipe
from regforge.recipe.rendering import Render
from regforge.records import ImageJob, Prompt
from regforge.training.families import open_family
from regforge.training.loop import precision_of
from regforge.training.weights import Trainable, attach

PARTS = SHOWN, PLAIN, CLASS = "shown", "plain", "class"
"""Prompts with the identifier, the same without it, and those for the class."""

PROPERTY = "property"
"""The kind of prompts that say something about the subject itself, such as its colour."""

Row = dict[str, Any]
"""An image: `part`, `group`, `text` with `{}`, `number`, and its scores."""

_AT_ONCE = 32


@dataclass(frozen=True)
class Asked:
    """One image: where it belongs, the prompt with `{}`, what is drawn, and its noise."""

    part: str
    group: str
    text: str
    number: int
    prompt: str
    caption: str

    @property
    def seed(self) -> int:
        """The same with the identifier and without."""
        return seed_of(0, self.text, self.number)


def asked(experiment: Experiment, about: Subject, noun: str, word: str | None) -> list[Asked]:
    """All images of a run, or without a word those of the untouched model."""
    found = []
    for each in load_suite(experiment.prompts, about.kind):
        plain = each.about(noun)
        if word is not None:
            shown = each.about(f"{word} {noun}")
            found.append(Asked(SHOWN, each.group, each.text, 0, shown, plain))
        if each.group != PROPERTY:
            found.append(Asked(PLAIN, each.group, each.text, 0, plain, plain))
    for each in class_prompts(experiment.prompts):
        plain = each.about(noun)
        found += [
            Asked(CLASS, "", each.text, n, plain, plain) for n in range(experiment.class_samples)
        ]
    return sorted(found, key=lambda one: PARTS.index(one.part))


class Measuring:
    """A base model that runs' weights are put on, and the encoders that look at what it draws."""

    def __init__(self, experiment: Experiment, recipe: TrainingRecipe) -> None:
        device = pick_device(recipe.device, "device")
        family = open_family(recipe, device, precision_of(recipe, device).weights)
        self._trainable = attach(family, recipe.method)
        for module in self._trainable.modules.values():
            module.eval()
        pipeline, dtype = family.pipeline, next(family.denoiser.parameters()).dtype
        render = Render(
            model=recipe.base_model,
            guidance_scale=experiment.guidance_scale,
            speed="fast",
            width=recipe.data.resolution,
            height=recipe.data.resolution,
        )
        scheduler = set_scheduler(pipeline, render.scheduler)
        width, height = default_size(pipeline, render)
        place(pipeline, render, device, width * height)
        name = str(dtype).removeprefix("torch.")
        self._renderer = LocalRenderer(
            pipeline,
            render,
            ModelIdentity(render.model, None, scheduler, name, width, height),
            _AT_ONCE,
            journal=Journal(None),
            reporter=Reporter(quiet=True),
        )
        structure, alignment = default_encoders(recipe.base_model)
        self._structure = ImageEncoder(experiment.structure_encoder or structure)
        self._alignment = TextImageEncoder(experiment.alignment_encoder or alignment)

    def draw(
        self, questions: Sequence[Asked], weights: Mapping[str, Tensor] | None
    ) -> list[Image.Image]:
        """Images in order; without weights those of the untouched model."""
        if weights is not None:
            self._trainable.load_state_dict(weights)
        jobs = [
            ImageJob(place, str(place), Prompt(place, one.prompt, "", "object", "import"), one.seed)
            for place, one in enumerate(questions)
        ]
        self._renderer.forget_prompts()
        with _merged(self._trainable):
            return [Image.fromarray(each.pixels) for each in self._renderer.render(jobs)]

    def vectors(self, images: Sequence[Image.Image]) -> Vectors:
        """What identity is measured with: float32 [N, D]."""
        return self._structure.images(images)

    def score(
        self,
        questions: Sequence[Asked],
        images: Sequence[Image.Image],
        photos: Vectors,
        base: Vectors,
    ) -> list[Row]:
        """Scores of a run's images; `base`: of the untouched model's, of all but `SHOWN`."""
        rows: list[Row] = [
            {"part": q.part, "group": q.group, "text": q.text, "number": q.number}
            for q in questions
        ]
        structure, alignment = self.vectors(images), self._alignment.images(images)
        of = {part: [n for n, q in enumerate(questions) if q.part == part] for part in PARTS}
        shown, free, of_class = of[SHOWN], of[PLAIN] + of[CLASS], of[CLASS]
        captions = list(dict.fromkeys(questions[n].caption for n in shown))
        own = [captions.index(questions[n].caption) for n in shown]
        texts = self._alignment.texts(captions)
        _note(rows, shown, "dino", identity(structure[shown], photos))
        _note(rows, shown, "clip_t", cosine_of_pairs(alignment[shown], texts[own]))
        _note(rows, shown, "matched", matched(alignment[shown], texts, own))
        by_text = {questions[n].text: n for n in shown}
        lifted = [by_text[questions[n].text] for n in of[PLAIN]]
        lift = identity_lift(structure[lifted], structure[of[PLAIN]], photos)
        _note(rows, lifted, "lift", lift)
        _note(rows, free, "pres", pres_over_base(structure[free], base, photos))
        before, prompts = base[-len(of_class) :], [questions[n].text for n in of_class]
        for key, share in (("closeness", class_closeness), ("diversity", class_diversity)):
            _note(rows, of_class, key, share(structure[of_class], before, prompts))
        return rows


def _note(rows: list[Row], places: Sequence[int], key: str, values: Any) -> None:
    for row, value in zip(places, values, strict=True):
        rows[row][key] = float(value)


@contextmanager
def _merged(trainable: Trainable) -> Iterator[None]:
    """While the block runs, LoRAs are added to the weights: drawing is quicker then."""
    layers: list[Any] = [
        layer
        for module in trainable.modules.values()
        for layer in module.modules()
        if isinstance(layer, LoraLayer)
    ]
    kept = [layer.get_base_layer().weight.data.clone() for layer in layers]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.data.copy_(weight)


def sheet(questions: Sequence[Asked], images: Sequence[Image.Image]) -> Image.Image:
    """All images of a run; one row a part."""
    rows = [[i for q, i in zip(questions, images, strict=True) if q.part == part] for part in PARTS]
    width, height = images[0].size
    made = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            made.paste(image, (x * width, y * height))
    return made


def photos_in(folder: Path) -> list[Image.Image]:
    """The photos in a folder."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix in (".png", ".jpg", ".jpeg"))
    return [Image.open(path).convert("RGB") for path in files]
