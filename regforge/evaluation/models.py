"""Opens trained models: whatever people call one becomes a `PersonalizedModel`.

    open_model("runs/teapot")                           a run; also its lora/ or model/
    open_model("runs/teapot/snapshots/step-000500")     what it was on the way
    open_model("teapot.safetensors", base="stabilityai/stable-diffusion-xl-base-1.0")
    open_model("user/teapot-lora")                      on the Hub
    open_model("embedded/tinyworld")                    a base model as it is

Decides which base model, which subject and which name; where the files are, `model_files` knows.
Loads no weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from regforge.digests import file_digest
from regforge.embedded import TINYWORLD
from regforge.evaluation.interface import EvaluationError, PersonalizedModel, Subject
from regforge.evaluation.model_files import (
    Found,
    base_digest,
    base_named,
    find_files,
    normal,
    pipeline_digest,
    section,
)
from regforge.evaluation.subjects import find_subject
from regforge.files import expanded
from regforge.hub import HubAddress
from regforge.images.loading import EMBEDDED
from regforge.images.loras import download

__all__ = ["PersonalizedModel", "base_of", "distinct_names", "open_model", "without_identifier"]


def open_model(
    where: str | Path,
    *,
    base: str | Path | None = None,
    subject: Subject | str | Path | None = None,
    name: str | None = None,
) -> PersonalizedModel:
    """Find a model and what is known about it.

    Args:
        where: A training run's folder, its `lora` or `model`, a snapshot of it, a LoRA's
            .safetensors file, a diffusers folder, `embedded/tinyworld`, or `user/name[@revision]`
            on the Hub.
        base: The model below a LoRA, where nothing says it, or another than that; a whole pipeline
            has none, and notes that it was named in vain.
        subject: Folder of the subject's photos, in which a `subject.json` may say its
            `class_noun`, `identifier` and `kind`; or all of that.
        name: For tables and legends; made from `where` if left out.

    Returns:
        The model; nothing is loaded yet.

    Raises:
        EvaluationError: There is no model, none yet, or nobody knows its base model.
        HubError: It is on the Hub, which has it not or cannot be reached.
    """
    text = str(where)
    if text == EMBEDDED:
        model = _plain(EMBEDDED, pipeline_digest(TINYWORLD), subject, name)
        return _noted(model, base)
    path = normal(Path(text))
    if _exists(path):
        found = find_files(path)
        model = _assembled(found, str(path), base, subject, name or _name_of(found))
        return _noted(model, base)
    address = HubAddress.parse(text)
    if address is None or text.startswith((".", "~", "/")):
        raise EvaluationError(
            f"There is no file or folder {text}.",
            hint="A model is a training run's folder, a LoRA's .safetensors file, a diffusers "
            f"folder, {EMBEDDED}, or user/name on the Hub.",
        )
    return _noted(_from_hub(address, base, subject, name), base)


def base_of(model: PersonalizedModel) -> PersonalizedModel | None:
    """The model that another one was trained on, as it was before; None if nothing says which.

    It keeps the recipe (for the size of the images) and the guidance scale, and has no subject.
    """
    if model.weights is not None:
        base, revision, variant = model.base, model.revision, model.variant
    elif model.recipe is not None and isinstance(model.recipe.get("base_model"), str):
        base = model.recipe["base_model"]
        revision = _word(model.recipe.get("revision"))
        variant = _word(model.recipe.get("variant"))
    else:
        return None
    return PersonalizedModel(
        name=base.rstrip("/").rpartition("/")[2],
        base=base,
        digest=base_digest(base, revision),
        revision=revision,
        variant=variant,
        guidance_scale=model.guidance_scale,
        recipe=model.recipe,
        where=base,
    )


def distinct_names(models: Sequence[PersonalizedModel]) -> list[PersonalizedModel]:
    """The same models, with names that differ: of equal ones, their folder's name is put before.

    What lies in the same place keeps its name but for a number: `teapot`, `teapot (2)`.
    """
    names = [model.name for model in models]
    parents = [list(_around(Path(model.where or model.base))) for model in models]
    while longer := [n for n in _confused(names, models) if parents[n]]:
        for number in longer:
            names[number] = f"{parents[number].pop()}/{names[number]}"
    unique: list[str] = []
    for name in names:
        count, free = 1, name
        while free in unique or (count > 1 and free in names):
            count += 1
            free = f"{name} ({count})"
        unique.append(free)
    return [replace(model, name=name) for model, name in zip(models, unique, strict=True)]


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


# ------------------------------------------------------------------------------- putting together


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False


def _noted(model: PersonalizedModel, base: str | Path | None) -> PersonalizedModel:
    """With a note on a base model that was named in vain."""
    if base is None or model.weights is not None:
        return model
    note = (
        f"{model.name} is a whole pipeline and is drawn with as it is; {base} is not used for it."
    )
    return replace(model, notes=(*model.notes, note))


def _plain(
    base: str, digest: str, subject: Subject | str | Path | None, name: str | None, **more: Any
) -> PersonalizedModel:
    """A pipeline of which nothing is known but where it is."""
    whose, notes = find_subject(None, subject)
    return PersonalizedModel(
        name=name or base.rpartition("/")[2],
        base=base,
        digest=digest,
        subject=whose,
        prompts=_prompts(None, {}, whose),
        notes=notes,
        where=base,
        **more,
    )


def _assembled(
    found: Found,
    where: str,
    base: str | Path | None,
    subject: Subject | str | Path | None,
    name: str,
) -> PersonalizedModel:
    recipe = found.recipe
    whose, notes = find_subject(recipe, subject)
    below, revision, variant = _base(found, base)
    digest = (
        file_digest(found.weights) if found.weights else pipeline_digest(Path(str(found.pipeline)))
    )
    guidance = section(recipe, "validation").get("guidance_scale")
    return PersonalizedModel(
        name=name,
        base=below,
        digest=digest,
        revision=revision,
        variant=variant,
        weights=found.weights,
        subject=whose,
        steps=_steps(found),
        prompts=_prompts(recipe, found.card, whose),
        guidance_scale=float(guidance) if isinstance(guidance, int | float) else None,
        recipe=recipe,
        where=where,
        notes=notes,
    )


def _from_hub(
    address: HubAddress,
    base: str | Path | None,
    subject: Subject | str | Path | None,
    name: str | None,
) -> PersonalizedModel:
    got = download(address)
    short = name or address.repo_id.rpartition("/")[2]
    if got.is_pipeline:  # its weights are downloaded when something is drawn
        digest = hashlib.sha256(f"{address.repo_id}@{got.commit}".encode()).hexdigest()
        return replace(
            _plain(address.repo_id, digest, subject, short, revision=got.commit),
            where=str(address),
        )
    return _assembled(_of_a_stranger(find_files(got.folder)), str(address), base, subject, short)


def _of_a_stranger(found: Found) -> Found:
    """Without the folder that a recipe from the Hub has photos in: that is not ours to show."""
    photos = section(found.recipe, "subject")
    if found.recipe is None or "images" not in photos:
        return found
    bare = {key: value for key, value in photos.items() if key != "images"}
    return replace(found, recipe={**found.recipe, "subject": bare})


def _base(found: Found, given: str | Path | None) -> tuple[str, str | None, str | None]:
    """Base model, revision and variant.

    Raises:
        EvaluationError: Nothing says which, or it is not there any more.
    """
    if found.weights is None:
        return str(found.pipeline), None, None
    if given is not None:
        path = normal(Path(given))
        return (str(path) if path.is_dir() else str(given)), None, None
    recipe = found.recipe or {}
    base = recipe.get("base_model")
    if isinstance(base, str) and base:
        folder = expanded(base)
        gone = folder.is_absolute() and not folder.is_dir()
        if gone or (HubAddress.parse(base) is None and not folder.is_dir()):
            raise EvaluationError(
                f"The base model of {found.home} was {base}, which is not there.",
                hint="Say where it is now: --base-model FOLDER",
            )
        return base, _word(recipe.get("revision")), _word(recipe.get("variant"))
    named = base_named(found.weights, found.card)
    if named is None:
        raise EvaluationError(
            f"Nothing says which base model {found.weights} was trained on.",
            hint="Name it: --base-model stabilityai/stable-diffusion-xl-base-1.0, or a folder.",
        )
    return named, None, None


def _word(value: Any) -> str | None:
    """A value of a recipe that can be anybody's."""
    return value if isinstance(value, str) else None


def _steps(found: Found) -> int | None:
    if found.step is not None:
        return found.step
    finished = found.state.get("finished")
    done = finished.get("steps") if isinstance(finished, dict) else None
    # A run that was copied or downloaded may have come without its state.
    steps = done if found.state else section(found.recipe, "optimizer").get("steps")
    return steps if isinstance(steps, int) else None


def _prompts(
    recipe: Mapping[str, Any] | None, card: Mapping[str, Any], subject: Subject | None
) -> tuple[str, ...]:
    """What its own validation drew; see `regforge.training.validation.prompts_of`."""
    asked = section(recipe, "validation").get("prompts")
    if isinstance(asked, list) and asked:
        return tuple(str(each) for each in asked)
    if subject is not None:
        from regforge.embedded.phrase_banks import with_article

        named = f"{subject.identifier} {subject.class_noun}".strip()
        named = with_article(named, subject.class_noun)
        return f"a photo of {named}", f"{named} on a beach"
    instance = card.get("instance_prompt")
    return (instance,) if isinstance(instance, str) and instance.strip() else ()


# --------------------------------------------------------------------------------------- names


def _name_of(found: Found) -> str:
    if found.step is not None and found.run is not None:
        return f"{found.run.name}-step-{found.step}"
    return found.home.stem if found.home.is_file() else found.home.name


def _confused(names: Sequence[str], models: Sequence[PersonalizedModel]) -> list[int]:
    """Which models share their name with one that lies elsewhere."""
    places: dict[str, set[str]] = {}
    for name, model in zip(names, models, strict=True):
        places.setdefault(name, set()).add(str(model.weights or model.base))
    return [number for number, name in enumerate(names) if len(places[name]) > 1]


def _around(path: Path) -> Iterator[str]:
    """Names of the folders around a model, the nearest one last."""
    folder = path.parent
    if path.name in ("lora", "model") or path.name == "pytorch_lora_weights.safetensors":
        folder = folder.parent.parent if path.suffix and folder.name == "lora" else folder.parent
    elif folder.name == "snapshots":
        folder = folder.parent.parent
    return (part for part in folder.parts if part != folder.anchor)
