"""What is wrong with a training recipe as a whole, and what is allowed but probably not meant.

Findings have places and keep a recipe from being used; cautions are said before a run and keep
nobody from anything. Knows no tensors: whether a package is there is all it asks of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regforge import resources
from regforge.embedded import EMBEDDED_FOLDERS
from regforge.embedded.english import has_words
from regforge.hub.address import HubAddress
from regforge.recipe.cautions import drawable, is_ordinary, not_drawable, ordinary_identifier
from regforge.recipe.checks import (
    Finding,
    class_noun,
    dataset_revision,
    in_noun,
    is_embedded,
    multiple_of_8,
    photo_folder,
    pipeline_findings,
    plain_line,
    refuse,
)
from regforge.recipe.class_noun import noun_doubts
from regforge.recipe.named_files import (
    is_file,
    is_folder,
    names_recipe,
    photos_in,
    pipeline_class,
)
from regforge.recipe.problems import shown
from regforge.recipe.sections import Section
from regforge.recipe.training import TrainingRecipe
from regforge.words import nearest

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

TRAINABLE = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
"""The classes of pipelines that can be trained, as model_index.json names them."""

TRAINS = "Stable Diffusion 1.x, 2.x, XL and 3 can be trained, and embedded/tinyworld"


def training_findings(recipe: TrainingRecipe) -> Iterator[Finding]:
    """Everything that is wrong with a training recipe whose single values are right."""
    for check in _CHECKS:
        yield from check(recipe)


def check_training_recipe(recipe: TrainingRecipe) -> None:
    """Check a recipe that was made in Python; `load_training_recipe` has done it already.

    Raises:
        RecipeError: It cannot be carried out; the error names all problems.
    """
    refuse(recipe, training_findings(recipe))


def uses_regularization(recipe: TrainingRecipe) -> bool:
    """Whether there are regularization images in a batch; without weight they are not even read."""
    return recipe.regularization.dataset is not None and recipe.regularization.prior_weight > 0


# --------------------------------------------------------------------------------------- findings


def _subject(recipe: TrainingRecipe) -> Iterator[Finding]:
    subject = recipe.subject
    noun, at = subject.class_noun, ("subject", "identifier")
    yield from photo_folder(subject.images, ("subject", "images"))
    yield from class_noun(noun, ("subject", "class_noun"))
    bad = list(plain_line(subject.identifier, at))
    yield from bad
    same = subject.identifier.split() == noun.split()
    if not bad and not same and has_words(subject.identifier, noun):
        yield Finding(
            at,
            f"must be the token alone, without the class noun {noun!r}",
            (("subject", "class_noun"),),
        )


def _base_model(recipe: TrainingRecipe) -> Iterator[Finding]:
    at = ("base_model",)
    wrong = list(pipeline_findings(recipe.base_model, recipe.variant, at, ("variant",)))
    yield from wrong
    folder = EMBEDDED_FOLDERS.get(recipe.base_model) or Path(recipe.base_model)
    if not wrong and is_folder(folder):
        kind = pipeline_class(folder)
        if kind not in TRAINABLE:
            what = kind or "pipeline of its own kind"
            message = f"{recipe.base_model} is a {what}, which cannot be trained; {TRAINS}"
            yield Finding(at, message)


def _regularization(recipe: TrainingRecipe) -> Iterator[Finding]:
    named, at = recipe.regularization, ("regularization", "dataset")
    if named.dataset is None:
        return
    path, about = Path(named.dataset), (("regularization", "prior_weight"),)
    if names_recipe(named.dataset):
        if named.revision is not None:
            said = "goes with a dataset of the Hub alone: user/name"
            yield Finding(("regularization", "revision"), said, (at,))
        if uses_regularization(recipe) and not is_file(path):
            yield Finding(at, f"there is no recipe {path}", about)
        return
    yield from dataset_revision(named.dataset, named.revision, ("regularization",))
    is_here = is_file(path) or is_folder(path)
    if uses_regularization(recipe) and not is_here and HubAddress.parse(named.dataset) is None:
        yield Finding(at, f"there is no {path}{_how_to_get(path)}", about)


def _how_to_get(path: Path) -> str:
    """How to come by a dataset that is not there."""
    here = Path("runs") / path.name
    if is_folder(here) and here.absolute() != path:
        return f"; if you mean the run here: --set regularization.dataset={here}"
    shipped = resources.recipes() / f"{path.name}.yaml"
    if path.parent.name == "runs" and is_file(shipped):
        made = "`make quickstart`" if path.name == "quickstart" else f"`regforge run {shipped}`"
        return f" yet: run {made} first, or train without it: --set regularization.dataset=null"
    return ""


def _method(recipe: TrainingRecipe) -> Iterator[Finding]:
    for number, target in enumerate(recipe.method.targets or ()):
        if not target.strip():
            yield Finding(("method", "targets", number), "must not be blank")


def _data(recipe: TrainingRecipe) -> Iterator[Finding]:
    if recipe.data.resolution is not None:
        yield from multiple_of_8(recipe.data.resolution, ("data", "resolution"))


def _optimizer(recipe: TrainingRecipe) -> Iterator[Finding]:
    name, at = recipe.optimizer.name, ("optimizer", "name")
    if name not in OPTIMIZERS:
        near = nearest(name, OPTIMIZERS)
        but = f"; did you mean '{near}'?" if near else f", not {shown(name)}"
        yield Finding(at, f"must be one of {', '.join(OPTIMIZERS)}{but}")
        return
    package = OPTIMIZERS[name]
    if package is not None and find_spec(package) is None:
        yield Finding(at, f"{name!r} needs a package that is not here: pip install {package}")


def _precision(recipe: TrainingRecipe) -> Iterator[Finding]:
    device = recipe.device
    if device is not None and not device.strip():
        yield Finding(("device",), "must not be blank")
    if recipe.optimizer.precision == "fp16" and device == "cpu":
        yield Finding(
            ("optimizer", "precision"),
            "fp16 is for GPUs: on the CPU choose fp32 or bf16, or leave it out",
            (("device",),),
        )


def _tracking(recipe: TrainingRecipe) -> Iterator[Finding]:
    package = TRACKERS.get(recipe.tracking)
    if package is not None and find_spec(package) is None:
        message = f"{recipe.tracking!r} needs a package that is not here: pip install {package}"
        yield Finding(("tracking",), message)


_CHECKS: Sequence[Callable[[TrainingRecipe], Iterable[Finding]]] = (
    _subject,
    _base_model,
    _regularization,
    _method,
    _data,
    _optimizer,
    _precision,
    _tracking,
)


# --------------------------------------------------------------------------------------- cautions


def training_warnings(recipe: TrainingRecipe) -> list[str]:
    """What to tell the user before training; none of it keeps the recipe from being carried out."""
    return [
        *_about_the_subject(recipe),
        *_about_the_batch(recipe),
        *_without_effect(recipe),
        *_beyond_the_end(recipe),
        *_about_the_dataset(recipe),
    ]


def _about_the_subject(recipe: TrainingRecipe) -> Iterator[str]:
    subject = recipe.subject
    for doubt in noun_doubts(subject.class_noun):
        yield f"subject.class_noun: {doubt}"
    if has_words(subject.class_noun, subject.identifier):
        yield (
            f"subject.identifier: {subject.identifier!r} "
            f"{in_noun(subject.identifier, subject.class_noun)}. As it is, the whole class would "
            "become the subject."
        )
    elif is_ordinary(subject.identifier):
        yield ordinary_identifier(subject.identifier)
    try:
        photos = len(photos_in(subject.images))
    except OSError:  # whoever reads them says so
        photos = FEWEST_PHOTOS
    if not FEWEST_PHOTOS <= photos <= MOST_PHOTOS:
        but = (
            "with fewer, the model learns the image rather than the subject"
            if photos < FEWEST_PHOTOS
            else "with more, choose the sharpest that differ most"
        )
        yield (
            f"subject.images has {photos} photo{'s' if photos != 1 else ''}; {FEWEST_PHOTOS} to "
            f"{MOST_PHOTOS} are usual: {but}."
        )
    if is_embedded(recipe.base_model) and not drawable(subject.class_noun):
        yield not_drawable(recipe.base_model, subject.class_noun, "base_model")


def _about_the_batch(recipe: TrainingRecipe) -> Iterator[str]:
    optimizer, data = recipe.optimizer, recipe.data
    if data.crop == "none" and (optimizer.batch_size > 1 or uses_regularization(recipe)):
        yield (
            "data.crop: none: only images of the same proportions share a forward pass, so "
            "batches of mixed ones run in pieces and more slowly."
        )
    if optimizer.name == "prodigy" and optimizer.lr < 0.1:
        yield (
            f"optimizer.lr: prodigy finds the rate itself and multiplies it by {optimizer.lr:g}; "
            "1.0 is usual."
        )
    if optimizer.warmup_steps >= optimizer.steps:
        yield (
            f"optimizer.warmup_steps: the learning rate is still growing when the "
            f"{optimizer.steps} steps are over."
        )


def _without_effect(recipe: TrainingRecipe) -> Iterator[str]:
    for section, keys, reason in _idle(recipe):
        settings: Section = getattr(recipe, section)
        said = [key for key in keys if getattr(settings, key) != _default(settings, key)]
        if said:
            names = ", ".join(f"{section}.{key}" for key in said)
            yield f"{names} {'has' if len(said) == 1 else 'have'} no effect {reason}."
    if recipe.revision is not None and (
        is_embedded(recipe.base_model) or is_folder(Path(recipe.base_model))
    ):
        yield "revision has no effect where base_model is a folder."


def _idle(recipe: TrainingRecipe) -> Iterator[tuple[str, Sequence[str], str]]:
    """Keys that do nothing if they are given: their section, their names, and why."""
    of_lora = ("rank", "alpha", "dropout", "dora", "rslora", "targets")
    if recipe.method.kind == "full":
        yield "method", of_lora, "with method.kind: full"
    if not recipe.method.text_encoder:
        yield "method", ("text_encoder_lr",), "without method.text_encoder: true"
    if recipe.regularization.dataset is None:
        of_dataset = ("revision", "prior_weight", "target", "per_instance")
        yield "regularization", of_dataset, "without regularization.dataset"
    elif recipe.regularization.prior_weight == 0:
        weighted = ("dataset", "target", "per_instance")
        yield "regularization", weighted, "with regularization.prior_weight: 0"
    if recipe.data.crop != "random":
        yield "data", ("crop_scale", "crops_per_image"), f"with data.crop: {recipe.data.crop}"
    if not recipe.optimizer.ema:
        yield "optimizer", ("ema_decay",), "without optimizer.ema: true"


def _about_the_dataset(recipe: TrainingRecipe) -> Iterator[str]:
    name = recipe.regularization.dataset or ""
    if not uses_regularization(recipe) or names_recipe(name) or not name.startswith("runs/"):
        return
    if not is_folder(Path(name)) and not is_file(Path(name)):
        yield (
            f"regularization.dataset: there is no run {name} here, so the Hub is asked for a "
            "dataset of that name."
        )


def _beyond_the_end(recipe: TrainingRecipe) -> Iterator[str]:
    steps = recipe.optimizer.steps
    late = [str(step) for step in recipe.checkpoint.snapshots if step > steps]
    if late:
        yield f"checkpoint.snapshots: training ends at step {steps}, before {', '.join(late)}."


def _default(section: Section, key: str) -> Any:
    return type(section).model_fields[key].get_default(call_default_factory=True)
