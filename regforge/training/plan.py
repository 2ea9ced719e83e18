"""The plan of a training for `check`: images, captions, how often each is seen, what is missing.

Touches nothing, loads no model and asks no service, the Hub neither. Images that are here are read
as the training itself reads them, so what cannot be trained on is said now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regforge.display import Displayed
from regforge.hub.errors import HubAddress
from regforge.images.loading import require_quantizer
from regforge.prompts.tokens import clip_tokens
from regforge.recipe import (
    TrainingRecipe,
    dataset_recipe_of,
    recipe_digest,
    recipe_warnings,
    twins_of,
    uses_regularization,
)
from regforge.recipe.memory import Memory, estimate
from regforge.recipe.model_checks import known_identifier
from regforge.recipe.named_files import language_models
from regforge.recipe.pipelines import class_here, described, folder_here
from regforge.runs import RunFolder, TrainingFolder, identifier_in
from regforge.training.data import (
    InstanceImages,
    RegularizationImages,
    at_odds,
    check_folders,
    is_finished,
    run_of,
)
from regforge.training.saving import result_path
from regforge.words import counted, listed

SAMPLES = 5
_LAYERS = 4
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "peft")


@dataclass(frozen=True)
class TrainingPlan(Displayed):
    """What a training would do.

    Attributes:
        done: What is in the folder already, in words; empty for a new run.
        identifier: How the model reads it, in words; empty if that cannot be known yet.
        captions: The captions of some photos, by file name.
        without_caption: Files that have none of their own and get the plain one.
        dataset: The regularization images, in words; None for none.
        images: How many of them can be trained on; None if that is not known before.
        batch: Photos and regularization images in a batch, on one device.
        batches: Batches a step.
        seen_photo: How often each photo is seen, on one device.
        seen_image: How often each regularization image is; None without any, or if not known.
        memory: What it takes of a GPU; None if none is used, or unknown.
        result: The file or folder that comes out.
        needs: What has to be there and is not, a sentence each.
    """

    name: str
    digest: str
    folder: Path
    done: str
    subject: str
    identifier: str
    base_model: str
    method: str
    photos: int
    captions: dict[str, str]
    without_caption: list[str]
    dataset: str | None
    images: int | None
    batch: tuple[int, int]
    steps: int
    batches: int
    seen_photo: float
    seen_image: float | None
    memory: Memory | None
    result: Path
    needs: list[str]
    notes: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        values = vars(self) | {"memory": self.memory and self.memory.as_dict()}
        return {n: str(value) if isinstance(value, Path) else value for n, value in values.items()}

    def as_text(self) -> str:
        """For people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        photos, images = self.batch
        yield f"{self.name} is a sound recipe ({self.digest[:12]})."
        yield ""
        yield f"  subject          {self.subject}, {counted(self.photos, 'photo')}"
        if self.identifier:
            yield f"  identifier       {self.identifier}"
        yield f"  base model       {self.base_model}"
        yield f"  method           {self.method}"
        yield f"  regularization   {self.dataset or 'none'}"
        beside = f" and {counted(images, 'regularization image')}" if images else ""
        yield f"  a batch          {counted(photos, 'photo')}{beside}"
        of = f" of {self.batches} batches" if self.batches > 1 else ""
        yield f"  training         {counted(self.steps, 'step')}{of}: {self._how_often()}"
        if self.memory is not None:
            yield f"  memory           {self.memory}"
        yield f"  run folder       {self.folder}{self.done}"
        yield f"  result           {self.result}"
        for number, need in enumerate(self.needs):
            yield f"  {'' if number else 'needs':<16} {need}"
        yield ""
        yield "Captions of the photos:"
        for name, caption in self.captions.items():
            yield f"  {name:<12} {caption}{' *' if name in self.without_caption else ''}"
        if self.photos > len(self.captions):
            yield f"  and {self.photos - len(self.captions)} more"
        if self.without_caption:
            yield "  * it has no caption of its own"
        for note in self.notes:
            yield f"\nnote: {note}"
        for warning in self.warnings:
            yield f"\nwarning: {warning}"

    def _how_often(self) -> str:
        photos = f"each photo is seen {_times(self.seen_photo)}"
        if self.seen_photo < 1:
            photos = f"{round(self.seen_photo * self.photos):,} of the photos are seen once"
        if self.seen_image is None:
            return photos
        if self.seen_image < 1:
            some = round(self.seen_image * (self.images or 0))
            return f"{photos}, {some:,} of the regularization images once"
        return f"{photos}, each regularization image {_times(self.seen_image)}"


def make_training_plan(recipe: TrainingRecipe, out: Path | None = None) -> TrainingPlan:
    """Plan a training; `out` is the run's folder, `runs/<name>` if left out.

    Raises:
        RegforgeError: Something in it cannot work: a photo, the regularization dataset.
    """
    folder = TrainingFolder(out or recipe.folder)
    check_folders(recipe, folder.path)
    made_by = dataset_recipe_of(recipe)
    where = str(RunFolder(made_by.folder).path) if made_by else recipe.regularization.dataset
    run = run_of(where) if uses_regularization(recipe) else None
    require_quantizer(recipe.method.quantize, recipe.device, "method.quantize", "device")
    photos = InstanceImages(recipe.subject, run)
    dataset, images, notes = _regularization(recipe)
    optimizer, twins = recipe.optimizer, twins_of(recipe)
    if twins:
        class_captions = photos.class_captions()
        share = f"for {100 * twins:.0f} % " if twins < 1 else ""
        text = f"class twins of the photos {share}(such as {class_captions[0].text!r})"
        weight = f"; weight {recipe.regularization.prior_weight:g}"
        dataset = f"{dataset}; {text}" if dataset else text + weight
    penalty = recipe.regularization.drift_penalty
    drift = f"drift penalty {penalty:g}" if penalty and recipe.method.kind != "embedding" else None
    beside = optimizer.batch_size * recipe.regularization.per_instance if dataset else 0
    batches = optimizer.steps * optimizer.gradient_accumulation
    memory = estimate(recipe)
    return TrainingPlan(
        name=recipe.name,
        digest=recipe_digest(recipe),
        folder=folder.path,
        done=_done(folder, recipe),
        subject=f"{recipe.subject.word} {recipe.subject.class_noun}",
        identifier=_identifier(recipe),
        base_model=described(recipe.base_model, recipe.config)
        + (f"@{recipe.revision}" if recipe.revision else ""),
        method=_method(recipe),
        photos=len(photos.images),
        captions={each.label: each.caption.text for each in photos.images[:SAMPLES]},
        without_caption=photos.without_caption,
        dataset="; ".join(filter(None, (dataset, drift))) or None,
        images=images,
        batch=(optimizer.batch_size, beside),
        steps=optimizer.steps,
        batches=optimizer.gradient_accumulation,
        seen_photo=batches * optimizer.batch_size / len(photos.images),
        seen_image=batches * beside * (1 - twins) / images if images else None,
        memory=memory,
        result=result_path(folder.path, recipe.method, recipe.subject.word),
        needs=list(_needs(recipe)),
        notes=[*known_identifier(recipe.subject.word, recipe.base_model), *photos.notes, *notes],
        warnings=[*recipe_warnings(recipe), *(memory.warnings if memory else ())],
    )


def _regularization(recipe: TrainingRecipe) -> tuple[str | None, int | None, list[str]]:
    """The dataset in words, how many images it has, and what was found in it."""
    named = recipe.regularization
    where = named.dataset
    if where is None or not uses_regularization(recipe):
        return None, None, []
    how = f"weight {named.prior_weight:g}, target {named.target}"
    made_by = dataset_recipe_of(recipe)
    if made_by is not None:
        run, images = RunFolder(made_by.folder), made_by.image_count
        if not is_finished(run, made_by):
            goes_on = run.state() and run.refusal(made_by) is None
            begun = "gone on with" if goes_on else "made"
            text = f"{run.path}, {begun} first: {counted(images, 'image')}; {how}"
            return text, images, at_odds(recipe, [made_by.render.model], made_by.subject.identifier)
        where = str(run.path)
    elif not Path(where).exists() and (address := HubAddress.parse(where, dataset=True)):
        return f"{address.at(named.revision)} on the Hub, not read yet; {how}", None, []
    found = RegularizationImages(
        named.model_copy(update={"dataset": where}),
        recipe.subject.word,
        slot_dropout=recipe.data.slot_dropout > 0,
    )
    images = len(found.images)
    notes = [*found.notes, *at_odds(recipe, found.models, identifier_in(run_of(where)))]
    return f"{where}, {counted(images, 'image')}; {how}", images, notes


def _identifier(recipe: TrainingRecipe) -> str:
    subject, token = recipe.subject, recipe.subject.token
    folder = folder_here(recipe.base_model, recipe.revision, recipe.config)
    if token is not None:
        init = subject.class_noun if token.init == "class_noun" else token.init
        what = f"a new token of {counted(token.vectors, 'vector')}, from {init!r} on"
        others = language_models(folder) if folder else []
        alone = f"; {listed(others)} is left alone: no CLIP" if others else ""
        return f"{what}, learning rate {token.lr:g}{alone}"
    tokens = clip_tokens(folder / "tokenizer", subject.word) if folder else None
    return f"{counted(tokens, 'token')} of {recipe.base_model}" if tokens else ""


def _method(recipe: TrainingRecipe) -> str:
    method = recipe.method
    if method.kind == "embedding":
        return "the new token alone (textual inversion)"
    encoder = "the text encoder too" if method.text_encoder else "not the text encoder"
    if method.kind == "full":
        return f"all weights, {encoder}"
    kind = "DoRA" if method.dora else "LoRA"
    scale = ", rank-stabilized" if method.rslora else ""
    where = listed(method.targets, _LAYERS) if method.targets else "the usual layers"
    return f"{kind} of rank {method.rank}{scale}, on {where}, {encoder}"


def _done(folder: TrainingFolder, recipe: TrainingRecipe) -> str:
    refusal, state = folder.refusal(recipe), folder.state()
    if refusal is not None:
        why = refusal.message.removeprefix(f"{folder.path} ").rstrip(".")
        return f" ({why}; choose another with --out)"
    if not state:
        return ""
    made, steps = state.get("finished") or {}, recipe.optimizer.steps
    if made.get("steps") == steps and (folder.path / made["weights"]).exists():
        return " (finished)"
    names = [path.name.removeprefix("step-") for path in folder.path.glob("checkpoints/step-*")]
    saved = [int(name) for name in names if name.isdecimal() and int(name) <= steps]
    reached = f" after step {max(saved):,}" if saved else ""
    return f" (begun: `train` goes on{reached})"


def _needs(recipe: TrainingRecipe) -> Iterator[str]:
    """What is missing on this machine; packages of optimizers and trackers the recipe refuses."""
    made_by = dataset_recipe_of(recipe)
    if made_by is not None and (refusal := RunFolder(made_by.folder).refusal(made_by)) is not None:
        yield f"the regularization images, which cannot be made: {refusal.message}"
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        yield f"packages that are not here: pip install {' '.join(missing)}"
    model = recipe.base_model
    if class_here(model, recipe.revision) is None:
        from huggingface_hub import constants

        address = HubAddress.parse(model)
        offline = "HF_HUB_OFFLINE keeps it from being downloaded"
        ending = offline if constants.HF_HUB_OFFLINE else "it will be downloaded"
        named = address.at(recipe.revision) if address else model
        yield f"{named}, which is not on this machine: {ending}"


def _times(number: float) -> str:
    """Such as `once` or `about 12 times`."""
    whole = round(number)
    if number == whole:
        return "once" if whole == 1 else f"{whole:,} times"
    return f"about {number:.1f} times" if number < 10 else f"about {whole:,} times"
