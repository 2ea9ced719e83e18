"""What is wrong with a training recipe as a whole, and what is allowed but probably not meant.

Knows no tensors: whether a package is there is all it asks of the machine. See `checks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from regforge.files import recipes_folder
from regforge.hub.errors import HubAddress
from regforge.recipe.model_checks import (
    Finding,
    class_noun,
    dataset_revision,
    in_noun,
    is_embedded,
    multiple_of_8,
    not_drawable,
    ordinary_identifier,
    photo_folder,
    pipeline,
    plain_line,
    quantized_file,
)
from regforge.recipe.named_files import (
    is_file,
    is_folder,
    names_recipe,
    photos_in,
)
from regforge.recipe.phrases import noun_doubts
from regforge.recipe.pipelines import (
    TRAINABLE,
    TRAINS,
    class_here,
    distilled,
    likely_class,
    mismatch,
    undistilled,
    unsaid_velocity,
)
from regforge.recipe.problems import Location, one_of
from regforge.recipe.training import NewToken, TrainingRecipe
from regforge.words import counted, has_words

OPTIMIZERS: dict[str, str | None] = {
    "adamw": None,
    "adamw8bit": "bitsandbytes",
    "prodigy": "prodigyopt",
}
"""The names that `optimizer.name` takes, and the package that each needs besides torch."""

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""The package that each value of `tracking` needs."""

FEWEST_PHOTOS, MOST_PHOTOS = 3, 20
"""How many photos of a subject are usual (DreamBooth, arXiv 2208.12242: 3 to 5)."""


def uses_regularization(recipe: TrainingRecipe) -> bool:
    """Whether images of a dataset are in a batch; without weight they are not even read."""
    named = recipe.regularization
    return named.dataset is not None and named.class_twins < 1 and _has_prior(recipe)


def twins_of(recipe: TrainingRecipe) -> float:
    """The share of the regularization images that are class twins, 0 where there are none."""
    return recipe.regularization.class_twins if _has_prior(recipe) else 0.0


def _has_prior(recipe: TrainingRecipe) -> bool:
    """Whether something would learn from regularization images.

    Their captions do not hold the new token, so that nothing of it would.
    """
    return recipe.regularization.prior_weight > 0 and recipe.method.kind != "embedding"


def training_findings(recipe: TrainingRecipe) -> Iterator[Finding]:
    """Everything that is wrong with a training recipe whose single values are right."""
    yield from _subject(recipe)
    yield from _base_model(recipe)
    yield from _regularization(recipe)
    for number, target in enumerate(recipe.method.targets or ()):
        if not target.strip():
            yield Finding(("method", "targets", number), "must not be blank")
    if recipe.method.kind == "full" and recipe.method.quantize is not None:
        message = "freezes the weights, and `full` trains them: take a LoRA, or leave it out"
        yield Finding(("method", "quantize"), message, (("method", "kind"),))
    if recipe.offload != "model":
        message = (
            f"`{recipe.offload}` takes weights off the device that the gradient needs afterwards; "
            "all but the denoiser leaves by itself, and method.quantize makes that smaller"
        )
        yield Finding(("offload",), message)
    yield from multiple_of_8(recipe.data.resolution, ("data", "resolution"))
    yield from _machine(recipe)


def _subject(recipe: TrainingRecipe) -> Iterator[Finding]:
    subject = recipe.subject
    noun, noun_at, at = subject.class_noun, ("subject", "class_noun"), ("subject", "identifier")
    yield from photo_folder(subject.images, ("subject", "images"))
    yield from class_noun(noun, noun_at)
    if subject.token is not None:
        yield from _new_token(recipe, subject.token)
        return
    if recipe.method.kind == "embedding":
        message = "trains a new token alone: subject.identifier must be one, {new: <my-cat>}"
        yield Finding(("method", "kind"), message, (at,))
    bad = list(plain_line(subject.word, at))
    yield from bad
    same = subject.word.split() == noun.split()
    if not bad and not same and has_words(subject.word, noun):
        yield Finding(at, f"must be the token alone, without the class noun {noun!r}", (noun_at,))


def _new_token(recipe: TrainingRecipe, token: NewToken) -> Iterator[Finding]:
    yield from plain_line(token.init, ("subject", "identifier", "init"))
    if recipe.method.kind == "embedding" and recipe.method.text_encoder:
        message = "must be false with method.kind: embedding, which trains the new token alone"
        yield Finding(("method", "text_encoder"), message, (("method", "kind"),))
    if recipe.optimizer.name == "prodigy" and token.lr != recipe.optimizer.lr:
        message = f"prodigy knows one rate for all: must be optimizer.lr, {recipe.optimizer.lr:g}"
        yield Finding(("subject", "identifier", "lr"), message, (("optimizer", "name"),))


def _base_model(recipe: TrainingRecipe) -> Iterator[Finding]:
    at = ("base_model",)
    model, variant_at = recipe.base_model, ("variant",)
    wrong = list(pipeline(model, recipe.variant, at, variant_at, config=recipe.config))
    yield from wrong
    yield from quantized_file(model, recipe.method.quantize, ("method", "quantize"), at)
    if recipe.method.kind == "full" and model.lower().endswith(".gguf"):
        message = "the weights of a .gguf are quantized and stay as they are; train a lora"
        yield Finding(("method", "kind"), message, (at,))
    kind = class_here(model, recipe.revision)
    if not wrong and kind is not None:
        yield from unfit(recipe, kind)


def unfit(recipe: TrainingRecipe, kind: str) -> Iterator[Finding]:
    """What a recipe asks for that a class of pipelines cannot do; "" is one of its own kind."""
    model, about = recipe.base_model, (("base_model",),)
    trained = TRAINABLE.get(kind)
    if trained is None:
        what = kind or "pipeline of its own kind"
        yield Finding(("base_model",), f"{model} is a {what}, which cannot be trained; {TRAINS}")
        return
    if trained.flow and recipe.optimizer.min_snr_gamma is not None:
        message = (
            f"is for models that predict noise or velocity; {model} learns by flow matching, which "
            "weights times by how often it draws them: leave it out"
        )
        yield Finding(("optimizer", "min_snr_gamma"), message, about)
    if not trained.flow and recipe.optimizer.timestep_sampling != "auto":
        message = f"is for models that learn by flow matching, and {model} does not: leave it out"
        yield Finding(("optimizer", "timestep_sampling"), message, about)
    if recipe.method.text_encoder and not trained.text_encoder:
        message = f"{model} reads captions with a language model, which cannot be trained"
        yield Finding(("method", "text_encoder"), message, about)
    token = recipe.subject.token
    if token is not None and trained.vectors < token.vectors:
        message = (
            f"a {kind} does not write a token of several vectors out in prompts: vectors: 1"
            if trained.vectors
            else f"{model} has no CLIP text encoder, which a new token would be a row of"
        )
        yield Finding(("subject", "identifier"), message, about)


def _regularization(recipe: TrainingRecipe) -> Iterator[Finding]:
    named, at = recipe.regularization, ("regularization", "dataset")
    if named.drift_penalty and recipe.method.kind == "lora" and recipe.method.dora:
        message = (
            "is for plain LoRAs and full fine-tuning, not for DoRA, which has no plain product"
        )
        yield Finding(("regularization", "drift_penalty"), message, (("method", "dora"),))
    if named.dataset is None:
        if 0 < twins_of(recipe) < 1:
            message = "needs regularization.dataset for the other images, or must be 1"
            yield Finding(("regularization", "class_twins"), message, (at,))
        return
    path, about = Path(named.dataset), (("regularization", "prior_weight"),)
    if names_recipe(named.dataset):
        if named.revision is not None:
            message = "goes with a dataset of the Hub alone: user/name"
            yield Finding(("regularization", "revision"), message, (at,))
        if uses_regularization(recipe) and not is_file(path):
            yield Finding(at, f"there is no recipe {path}", about)
        return
    yield from dataset_revision(named.dataset, named.revision, ("regularization",))
    is_here = is_file(path) or is_folder(path)
    if (
        uses_regularization(recipe)
        and not is_here
        and HubAddress.parse(named.dataset, dataset=True) is None
    ):
        yield Finding(at, f"there is no {path}{_how_to_get(path)}", about)


def _how_to_get(path: Path) -> str:
    """How to come by a dataset that is not there."""
    here = Path("runs") / path.name
    if is_folder(here) and here.absolute() != path:
        return f"; if you mean the run here: --set regularization.dataset={here}"
    shipped = recipes_folder() / f"{path.name}.yaml"
    if path.parent.name == "runs" and is_file(shipped):
        made = "`make quickstart`" if path.name == "quickstart" else f"`regforge run {shipped}`"
        return f" yet: run {made} first, or train without it: --set regularization.dataset=null"
    return ""


def _machine(recipe: TrainingRecipe) -> Iterator[Finding]:
    name, device, at = recipe.optimizer.name, recipe.device, ("optimizer", "name")
    if name not in OPTIMIZERS:
        yield Finding(at, f"must be {one_of(OPTIMIZERS, name)}")
    yield from _needs(OPTIMIZERS.get(name), name, at)
    yield from _needs(TRACKERS.get(recipe.tracking), recipe.tracking, ("tracking",))
    if device is not None and not device.strip():
        yield Finding(("device",), "must not be blank")
    if recipe.optimizer.precision == "fp16" and device == "cpu":
        message = "fp16 is for GPUs: on the CPU choose fp32 or bf16, or leave it out"
        yield Finding(("optimizer", "precision"), message, (("device",),))


def _needs(package: str | None, name: str, at: Location) -> Iterator[Finding]:
    if package is not None and find_spec(package) is None:
        yield Finding(at, f"{name!r} needs a package that is not here: pip install {package}")


# -------------------------------------------------------------------------------------- warnings


def training_cautions(recipe: TrainingRecipe) -> Iterator[str]:
    """What a training recipe may say but probably does not mean."""
    yield from _about_the_subject(recipe)
    yield from _about_the_base_model(recipe)
    yield from _about_the_steps(recipe)
    yield from _without_effect(recipe)
    if twins_of(recipe) * recipe.regularization.per_instance > 1:
        yield (
            "regularization.class_twins: a photo has one twin, and more than one of the "
            f"{recipe.regularization.per_instance} regularization images beside it would be that."
        )
    name = recipe.regularization.dataset or ""
    is_run = name.startswith("runs/") and not names_recipe(name)
    there = is_folder(Path(name)) or is_file(Path(name))
    if uses_regularization(recipe) and is_run and not there:
        yield (
            f"regularization.dataset: there is no run {name} here, so the Hub is asked for a "
            "dataset of that name."
        )


def _about_the_base_model(recipe: TrainingRecipe) -> Iterator[str]:
    model, validation = recipe.base_model, recipe.validation
    kind = likely_class(model)
    if class_here(model, recipe.revision) is None and kind is not None:
        for found in unfit(recipe, kind):
            yield f"{'.'.join(map(str, found.location))}: by its name, {found.message}."
    if made_for := distilled(model):
        yield (
            f"base_model: {Path(model).name} is distilled ({made_for}), and training undoes that: "
            f"{undistilled(model)}."
        )
    if unsaid := unsaid_velocity(model, recipe.revision, recipe.config):
        yield f"base_model: {unsaid}"
    steps, guidance = validation.steps, validation.guidance_scale
    if other := mismatch(model, recipe.revision, steps, guidance, recipe.config):
        yield (
            f"validation.steps and validation.guidance_scale: {Path(model).name} is made for "
            f"{other}."
        )


def _about_the_subject(recipe: TrainingRecipe) -> Iterator[str]:
    subject = recipe.subject
    for doubt in noun_doubts(subject.class_noun):
        yield f"subject.class_noun: {doubt}"
    if has_words(subject.class_noun, subject.word):
        yield (
            f"subject.identifier: {subject.word!r} "
            f"{in_noun(subject.word, subject.class_noun)}. As it is, the whole class would "
            "become the subject."
        )
    else:
        yield from ordinary_identifier(subject.word)
    try:
        photos = len(photos_in(subject.images))
    except OSError:  # whoever reads them says so
        photos = FEWEST_PHOTOS
    if not FEWEST_PHOTOS <= photos <= MOST_PHOTOS:
        fewer = "with fewer, the model learns the image rather than the subject"
        more = "with more, choose the sharpest that differ most"
        yield (
            f"subject.images has {counted(photos, 'photo')}; {FEWEST_PHOTOS} to {MOST_PHOTOS} are "
            f"usual: {fewer if photos < FEWEST_PHOTOS else more}."
        )
    yield from not_drawable(recipe.base_model, subject.class_noun, "base_model")


def _about_the_steps(recipe: TrainingRecipe) -> Iterator[str]:
    optimizer, steps = recipe.optimizer, recipe.optimizer.steps
    if optimizer.name == "prodigy" and optimizer.lr < 0.1:
        yield (
            f"optimizer.lr: prodigy finds the rate itself and multiplies it by {optimizer.lr:g}; "
            "1.0 is usual."
        )
    if optimizer.warmup_steps >= steps:
        yield (
            f"optimizer.warmup_steps: the learning rate is still growing when the {steps} steps "
            "are over."
        )
    late = [str(step) for step in recipe.checkpoint.snapshots if step > steps]
    if late:
        yield f"checkpoint.snapshots: training ends at step {steps}, before {', '.join(late)}."


def _without_effect(recipe: TrainingRecipe) -> Iterator[str]:
    for name, keys, reason in _idle(recipe):
        section = getattr(recipe, name)
        defaults = {key: type(section).model_fields[key].get_default() for key in keys}
        given = [f"{name}.{key}" for key in keys if getattr(section, key) != defaults[key]]
        if given:
            yield f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect {reason}."
    if recipe.revision is not None and (
        is_embedded(recipe.base_model) or is_folder(Path(recipe.base_model))
    ):
        yield "revision has no effect where base_model is a folder."


def _idle(recipe: TrainingRecipe) -> Iterator[tuple[str, Sequence[str], str]]:
    """Keys that do nothing if they are given: their section, their names, and why."""
    of_lora = ("rank", "alpha", "dropout", "dora", "rslora", "targets")
    if recipe.method.kind != "lora":
        yield "method", of_lora, f"with method.kind: {recipe.method.kind}"
    if not recipe.method.text_encoder:
        yield "method", ("text_encoder_lr",), "without method.text_encoder: true"
    prior = recipe.regularization
    of_images = ("class_twins", "target", "per_instance")
    if prior.dataset is None and prior.class_twins == 0:
        of_dataset = ("revision", "prior_weight", "target", "per_instance")
        yield "regularization", of_dataset, "without regularization.dataset"
    elif prior.prior_weight == 0:
        weighted = ("dataset", *of_images)
        yield "regularization", weighted, "with regularization.prior_weight: 0"
    elif recipe.method.kind == "embedding":
        every = ("dataset", "prior_weight", *of_images)
        yield "regularization", every, "with method.kind: embedding: their captions lack the token"
    elif prior.class_twins == 1:
        of_others = ("dataset", "revision", "target")
        yield "regularization", of_others, "with regularization.class_twins: 1"
    if recipe.method.kind == "embedding":
        yield "regularization", ("drift_penalty",), "with method.kind: embedding: no weight changes"
    if recipe.data.crop != "random":
        yield "data", ("crop_scale", "crops_per_image"), f"with data.crop: {recipe.data.crop}"
    if not recipe.optimizer.ema:
        yield "optimizer", ("ema_decay",), "without optimizer.ema: true"
