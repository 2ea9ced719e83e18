"""The card of a trained model: README.md, with what the Hub reads and what people read.

The text comes from templates/model/README.md.j2. It stands between two markers, as in the cards of
datasets, and what somebody wrote around them stays when the card is written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regforge.dataset.card import card_environment
from regforge.dataset.card_parts import BEGIN, END, LICENSE_KEYS, Card, front_matter
from regforge.files import expanded, write_atomically
from regforge.hub.errors import HubAddress
from regforge.journal import without_secrets
from regforge.prompts.captions import instance_caption
from regforge.recipe import TrainingRecipe, twins_of, uses_regularization
from regforge.recipe.named_files import (
    EMBEDDING_FOLDER,
    embedding_in,
    lora_header,
    names_recipe,
)
from regforge.recipe.rendering import terms_of
from regforge.records import without_folders
from regforge.training.recording import IMAGES, prompts_of
from regforge.training.saving import LORA_FILE, kohya_file
from regforge.version import __version__

OUR_KEYS = frozenset(
    {"base_model", "base_model_relation", "datasets", "instance_prompt", "library_name", "license"}
    | {"pipeline_tag", "tags", "widget"}
)
"""Keys of the card's front matter that regforge writes; all others are somebody's own."""

_FAMILY_TAGS = {
    "sd": ("stable-diffusion", "stable-diffusion-diffusers"),
    "sdxl": ("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
    "flux1": ("flux", "flux-diffusers"),
}
"""What diffusers' training scripts call families; the others by their names here."""

_EMBEDDED = "embedded/"


def write_card(
    recipe: TrainingRecipe,
    folder: Path,
    *,
    base_revision: str | None = None,
    dataset_revision: str | None = None,
    family: str | None = None,
) -> Path:
    """Write README.md into a run's folder, about what lies there; see `model_card`.

    Raises:
        StorageError: It cannot be written.
    """
    path = folder / "README.md"
    other, token = kohya_file(folder), embedding_in(folder)
    card = model_card(
        recipe,
        base_revision=base_revision,
        dataset_revision=dataset_revision,
        samples="samples.webp" if (folder / "samples.webp").is_file() else None,
        images=images_of(recipe, folder),
        other=f"{LORA_FILE.parent}/{other.name}" if other else None,
        token=token,
        family=family,
        existing=path.read_text(encoding="utf-8") if path.is_file() else None,
    )
    write_atomically(path, card)
    return path


def images_of(recipe: TrainingRecipe, folder: Path) -> list[tuple[str, str]]:
    """Validation prompts, each with the name of its image in a run's folder, if it is there."""
    named = enumerate(prompts_of(recipe), start=1)
    images = [(prompt, f"{IMAGES}/{number:02d}.webp") for number, prompt in named]
    return [(prompt, name) for prompt, name in images if (folder / name).is_file()]


def model_card(
    recipe: TrainingRecipe,
    *,
    repo_id: str | None = None,
    base_revision: str | None = None,
    dataset_revision: str | None = None,
    samples: str | None = None,
    images: Sequence[tuple[str, str]] = (),
    other: str | None = None,
    token: Path | None = None,
    family: str | None = None,
    existing: str | None = None,
) -> str:
    """The text of README.md.

    Args:
        recipe: What was trained.
        repo_id: `user/name` on the Hub, if it goes there: its files lie at the top.
        base_revision: Commit of the base model; the recipe's revision if left out.
        dataset_revision: Likewise, of the regularization dataset.
        samples: Name of an image beside the card.
        images: Prompts, each with the name of an image for the Hub's gallery.
        other: Name of the file for other programs.
        token: The file of the new token, if there is one.
        family: Name of the model's family.
        existing: The card that is to be replaced: what stands outside of its markers is kept, and
            so are the keys of its front matter that regforge does not write.
    """
    kept = Card.parse(existing)
    front = _front_matter(recipe, images, family)
    ours = OUR_KEYS | front.keys()
    if front.get("license") != "other":
        ours |= LICENSE_KEYS
    front |= {key: value for key, value in kept.front.items() if key not in ours}
    terms = terms_of(recipe.base_model)
    body = (
        card_environment("model")
        .get_template("README.md.j2")
        .render(
            title=recipe.name,
            lora=recipe.method.kind == "lora",
            full=recipe.method.kind == "full",
            token=_token(recipe, token, family),
            new=recipe.subject.token.new if recipe.subject.token else "",
            base=without_folders(recipe.base_model),
            embedded=recipe.base_model.startswith(_EMBEDDED),
            class_noun=recipe.subject.class_noun,
            subject=f"{recipe.subject.word} {recipe.subject.class_noun}",
            prompt=instance_caption(recipe.subject.word, recipe.subject.class_noun),
            repo_id=repo_id or "path/to/this/folder",
            on_hub=repo_id is not None,
            samples=samples,
            other=other,
            dataset=uses_regularization(recipe),
            twins=twins_of(recipe),
            made=list(_made(recipe, base_revision, dataset_revision).items()),
            license=front.get("license"),
            of_base=terms is not None and terms.license == front.get("license"),
            license_name=front.get("license_name"),
        )
    )
    part = f"{BEGIN}\n{body.strip()}\n{END}\n"
    return f"---\n{without_secrets(front_matter(front))}---\n{kept.before}{part}{kept.after}"


def _token(recipe: TrainingRecipe, file: Path | None, family: str | None) -> dict[str, Any] | None:
    """What the card says of the new token's file."""
    if file is None:
        return None
    return {
        "folder": EMBEDDING_FOLDER,
        "file": file.name,
        "stem": file.stem,
        "word": recipe.subject.word,
        "parts": lora_header(file)[0],
        "by_hand": family not in ("sd", "sdxl", "flux1"),
        "pooled": family != "sd",
    }


def _front_matter(
    recipe: TrainingRecipe, images: Sequence[tuple[str, str]], family: str | None
) -> dict[str, Any]:
    """What the Hub reads; its keys are those that diffusers' training scripts write.

    https://github.com/huggingface/diffusers/blob/main/examples/dreambooth/train_dreambooth_lora.py,
    `save_model_card`; https://huggingface.co/docs/hub/model-cards.
    """
    subject = recipe.subject.word, recipe.subject.class_noun
    base, dataset = _on_hub(recipe.base_model), _on_hub(recipe.regularization.dataset)
    lora = recipe.method.kind == "lora"
    tags = ["text-to-image", "diffusers", "dreambooth", "regforge"]
    tags += ["textual_inversion"] if recipe.subject.token else []
    tags += ["lora", "template:sd-lora"] if lora else []
    tags += ["dora"] if lora and recipe.method.dora else []
    tags += _FAMILY_TAGS.get(family, (family, f"{family}-diffusers")) if family else ()
    relation = "finetune" if recipe.method.kind == "full" else "adapter"
    front: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": relation if base else None,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        **_license(recipe),
        "datasets": [dataset] if dataset and uses_regularization(recipe) else None,
        "instance_prompt": instance_caption(*subject),
        "tags": tags,
        "widget": [{"text": text, "output": {"url": url}} for text, url in images] or None,
    }
    return {key: value for key, value in front.items() if value is not None}


def _license(recipe: TrainingRecipe) -> dict[str, str | None]:
    """The licence that the recipe names, or the base model's."""
    terms, named = terms_of(recipe.base_model), recipe.hub.license
    if terms is None or named not in (None, terms.license):
        return {"license": named}
    return {
        "license": terms.license,
        "license_name": terms.name,
        "license_link": terms.link,
    }


def _made(
    recipe: TrainingRecipe, base_revision: str | None, dataset_revision: str | None
) -> Mapping[str, str]:
    method, optimizer, prior = recipe.method, recipe.optimizer, recipe.regularization
    kind, token = "all weights", recipe.subject.token
    if method.kind == "lora":
        alpha = method.rank if method.alpha is None else method.alpha
        flags = [name for name in ("dora", "rslora") if getattr(method, name)]
        kind = ", ".join([f"LoRA, rank {method.rank}, alpha {alpha:g}", *flags])
    kind += ", and the text encoder" if method.text_encoder else ""
    rate = optimizer.lr
    if token is not None:
        rate = token.lr if method.kind == "embedding" else rate
        of = f"the embedding of {token.new}, learning rate {token.lr:g}"
        kind = of if method.kind == "embedding" else f"{kind}, and {of}"
    photos = optimizer.batch_size * optimizer.gradient_accumulation
    facts: dict[str, str | None] = {
        "base model": without_folders(recipe.base_model),
        "its revision": base_revision or recipe.revision,
        "trained": kind,
        "steps": f"{optimizer.steps:,}, of {photos} photo{'s' * (photos > 1)} each",
        "optimizer": f"{optimizer.name}, learning rate {rate:g}, {optimizer.scheduler}",
        "min-SNR gamma": f"{optimizer.min_snr_gamma:g}" if optimizer.min_snr_gamma else None,
        "weights saved": "moving average" if optimizer.ema else None,
        "resolution": f"{recipe.data.resolution} pixels" if recipe.data.resolution else None,
        "cropping": recipe.data.crop,
        "caption dropout": f"{recipe.data.caption_dropout:g}",
        "seed": str(recipe.seed),
    }
    if uses_regularization(recipe):
        facts |= {
            "regularization dataset": without_folders(prior.dataset or ""),
            "revision of the dataset": dataset_revision or prior.revision,
            "regularization images per photo": str(prior.per_instance),
            "prior weight": f"{prior.prior_weight:g}",
            "what they teach": {
                "pixels": "themselves",
                "teacher": "what the base model predicts for them",
            }[prior.target],
            "slot dropout": f"{recipe.data.slot_dropout:g}",
        }
    if twins := twins_of(recipe):
        facts |= {
            "class twins": f"{100 * twins:g} % of the regularization images",
            "prior weight": f"{prior.prior_weight:g}",
        }
    facts["drift penalty"] = f"{prior.drift_penalty:g}" if prior.drift_penalty else None
    facts["made with"] = f"regforge {__version__}"
    return {name: value for name, value in facts.items() if value}


def _on_hub(name: str | None) -> str | None:
    """The repository that a recipe names; None for folders and what is in the package."""
    if name is None or name.startswith(_EMBEDDED) or names_recipe(name):
        return None
    if expanded(name).exists():
        return None
    address = HubAddress.parse(name)
    return address.repo_id if address else None
