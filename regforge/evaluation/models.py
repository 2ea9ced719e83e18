"""Opens trained models: whatever people call one becomes a `PersonalizedModel`.

    open_model("runs/teapot")                           a run; also its lora/ or model/
    open_model("runs/teapot/snapshots/step-000500")     a snapshot of it
    open_model("teapot.safetensors", base="stabilityai/stable-diffusion-xl-base-1.0")
    open_model("user/teapot-lora")                      on the Hub
    open_model("embedded/tinyworld")                    a base model as it is

Knows the folders that training leaves, and LoRA files of any maker. Loads no weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from regforge.dataset.card_parts import Card
from regforge.embedded import EMBEDDED, EMBEDDED_FOLDERS
from regforge.evaluation.references import find_subject
from regforge.evaluation.suites import (
    EvaluationError,
    PersonalizedModel,
    Subject,
    absolute,
    home_of,
    run_of,
    section_of,
    snapshot_step,
)
from regforge.files import MOST_TEXT, expanded, file_digest, revision_of
from regforge.hub import HubAddress
from regforge.images.loras import download
from regforge.recipe.named_files import (
    EMBEDDING_FOLDER,
    LORA_NAME,
    MODEL_INDEX,
    PICKLES,
    content_of,
    embedding_in,
    is_embedding,
    lora_header,
    lora_in,
    require_lora,
)
from regforge.recipe.single_files import SingleFileError, hub_file, single_file
from regforge.recipe.training import DEFAULT_PROMPTS

_A_MODEL = (
    "A model is a training run's folder, a LoRA's .safetensors file, a diffusers folder or single "
    f"file, {EMBEDDED}, or user/name on the Hub."
)


def open_model(
    where: str | Path,
    *,
    base: str | Path | None = None,
    subject: Subject | str | Path | None = None,
    name: str | None = None,
) -> PersonalizedModel:
    """Find a model and what is known about it; nothing is loaded yet.

    Args:
        where: A training run's folder, its `lora` or `model`, a snapshot of it, a LoRA's
            .safetensors file, a diffusers folder, a whole model's file, `embedded/tinyworld`, or
            `user/name[@revision]` on the Hub.
        base: The model below a LoRA, where nothing says it, or another than that; a whole pipeline
            has none, and notes that it was named in vain.
        subject: Folder of the subject's photos, in which a `subject.json` may say its
            `class_noun`, `identifier` and `kind`; or the whole subject.
        name: For tables and legends; made from `where` by default.

    Raises:
        EvaluationError: There is no model, none yet, or its base model is unknown.
        HubError: It is on the Hub, which has it not or cannot be reached.
    """
    text, path, is_here = str(where), absolute(where), False
    with suppress(OSError):  # a name that no file system takes
        is_here = path.exists()
    if text == EMBEDDED:
        found = ModelFiles(pipeline=EMBEDDED)
    elif is_here:
        found, text = find_files(path), str(path)
    else:
        address = HubAddress.parse(text)
        if address is None or text.startswith((".", "~", "/")):
            raise EvaluationError(f"There is no file or folder {text}.", hint=_A_MODEL)
        found, text = _of_the_hub(address), str(address)
    name = name or _name_of(found)
    known, notes = find_subject(section_of(found.recipe, "subject"), subject)
    if base is not None and found.weights is None:
        notes += (f"{name} is a whole pipeline and is drawn with as it is; {base} is not used.",)
    below, below_as = _base(found, base)
    # A run that was copied or downloaded may have come without its state.
    finished, planned = (found.state, "finished"), (found.recipe, "optimizer")
    steps = section_of(*(finished if found.state else planned)).get("steps")
    steps = found.step if found.step is not None else steps
    guidance = section_of(found.recipe, "validation").get("guidance_scale")
    return PersonalizedModel(
        name=name,
        base=below,
        digest=_digest(found) or base_digest(below, below_as.get("revision")),
        **below_as,
        weights=found.weights,
        embedding=found.embedding,
        subject=known,
        steps=steps if isinstance(steps, int) else None,
        prompts=_prompts(found.recipe, found.card, known),
        guidance_scale=float(guidance) if isinstance(guidance, int | float) else None,
        recipe=found.recipe,
        where=text,
        notes=notes,
    )


def base_of(model: PersonalizedModel) -> PersonalizedModel | None:
    """The untrained model below another one; None if nothing says which.

    It keeps the recipe (for the size of the images) and the guidance scale, and has no subject.
    """
    if model.weights is not None:
        base, base_as = model.base, {name: getattr(model, name) for name in _AS}
    elif model.recipe is not None and isinstance(model.recipe.get("base_model"), str):
        base, base_as = _base_in(model.recipe)
    else:
        return None
    return PersonalizedModel(
        name=base.rstrip("/").rpartition("/")[2],
        base=base,
        digest=base_digest(base, base_as.get("revision")),
        **base_as,
        guidance_scale=model.guidance_scale,
        recipe=model.recipe,
        where=base,
    )


def base_digest(base: str, revision: str | None) -> str:
    """SHA-256 that stands for a base model: of what its files hold, or of its name on the Hub.

    Of all that its files hold: two trainings leave files of the same names, sizes and headers.
    """
    path = EMBEDDED_FOLDERS.get(base) or expanded(base)
    text = f"{base}@{revision or 'main'}"
    if (path / MODEL_INDEX).is_file():
        text = revision_of(path)
    elif path.is_file():
        text = file_digest(path)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(found: ModelFiles) -> str:
    """SHA-256 of what was trained; empty for a whole pipeline."""
    files = dict.fromkeys(each for each in (found.weights, found.embedding) if each is not None)
    digests = list(map(file_digest, files))
    if len(digests) > 1:
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    return "".join(digests)


# ------------------------------------------------------------------------------- putting together


def _of_the_hub(address: HubAddress) -> ModelFiles:
    got, home = download(address), Path(address.repo_id)
    if got.is_pipeline:  # its weights are downloaded when something is drawn
        return ModelFiles(pipeline=address.repo_id, revision=got.commit, home=home)
    found = replace(find_files(got.folder), home=home)
    photos = section_of(found.recipe, "subject")
    if found.recipe is not None and "images" in photos:  # a folder of ours, which is not theirs
        bare = {key: value for key, value in photos.items() if key != "images"}
        found = replace(found, recipe={**found.recipe, "subject": bare})
    return found


_AS = ("revision", "variant", "config")
"""Keys of a training recipe that say how its base model is read."""


def _base(found: ModelFiles, given: str | Path | None) -> tuple[str, dict[str, Any]]:
    """The base model, and how it is read."""
    if found.weights is None:
        return found.pipeline, {"revision": found.revision}
    if given is not None:
        path = absolute(given)
        return (str(path) if path.exists() else str(given)), {}
    recipe = found.recipe or {}
    base = recipe.get("base_model")
    if isinstance(base, str) and base:
        path = expanded(base)
        on_hub = HubAddress.parse(base) is not None or hub_file(base) is not None
        if not path.exists() and (path.is_absolute() or not on_hub):
            raise EvaluationError(
                f"The base model of {found.home} was {base}, which is not there.",
                hint="Say where it is now: --base-model FOLDER",
            )
        return _base_in(recipe)
    named = _base_named(found.weights, found.card)
    if named is None:
        raise EvaluationError(
            f"Nothing says which base model {found.weights} was trained on.",
            hint="Name it: --base-model stabilityai/stable-diffusion-xl-base-1.0, or a folder.",
        )
    return named, {}


def _base_in(recipe: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return recipe["base_model"], {key: v for key in _AS if isinstance(v := recipe.get(key), str)}


def _base_named(weights: Path, card: Mapping[str, Any]) -> str | None:
    """The base model that a LoRA's file or its card names."""
    metadata = lora_header(weights)[1]
    try:
        adapter = json.loads(metadata.get("lora_adapter_metadata") or "{}")
    except (ValueError, RecursionError):
        adapter = {}
    named: list[Any] = [metadata.get("base_model"), metadata.get("ss_sd_model_name")]
    if isinstance(adapter, dict):
        named += [v for k, v in adapter.items() if k.endswith("base_model_name_or_path")]
    on_card = card.get("base_model")
    named += on_card if isinstance(on_card, list) else [on_card]
    return next((each for each in named if isinstance(each, str) and _is_model(each)), None)


def _is_model(name: str) -> bool:
    """Whether a name can be loaded; kohya's scripts write file names there too."""
    if name == EMBEDDED or (Path(name) / MODEL_INDEX).is_file():
        return True
    return HubAddress.parse(name) is not None and not name.endswith((".safetensors", ".ckpt"))


def _prompts(
    recipe: Mapping[str, Any] | None, card: Mapping[str, Any], subject: Subject | None
) -> tuple[str, ...]:
    """Those of its own validation; see `regforge.training.recording.prompts_of`."""
    prompts = section_of(recipe, "validation").get("prompts")
    if isinstance(prompts, list) and prompts:
        return tuple(map(str, prompts))
    if subject is not None:
        return DEFAULT_PROMPTS
    instance = card.get("instance_prompt")
    return (instance,) if isinstance(instance, str) and instance.strip() else ()


def _name_of(found: ModelFiles) -> str:
    if found.step is not None and found.run is not None:
        return f"{found.run.name}-step-{found.step}"
    if found.home.is_file():
        return found.home.stem
    return found.home.name or found.pipeline.rpartition("/")[2]


# ------------------------------------------------------------------------------------ the files


@dataclass(frozen=True)
class ModelFiles:
    """The files of a trained model, and what its run and its card say.

    Attributes:
        weights: The file of a LoRA, or of a new token alone; None for a whole pipeline.
        embedding: The file of a new token, if there is one.
        pipeline: Folder or repository of a whole pipeline; empty for a LoRA.
        revision: Of a repository.
        home: The run's folder, the snapshot's, or the one that holds the weights; the file itself
            if it has a name of its own.
        run: Folder of the training run, if there is one.
        step: Of a snapshot.
        card: Front matter of the README.md beside it.
    """

    weights: Path | None = None
    embedding: Path | None = None
    pipeline: str = ""
    revision: str | None = None
    home: Path = Path()
    run: Path | None = None
    step: int | None = None
    recipe: Mapping[str, Any] | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)


def find_files(path: Path) -> ModelFiles:
    """The model in a folder, or the run that a file belongs to; the path is absolute.

    Raises:
        EvaluationError: There is no model, or none yet.
        LoraError: A file is no LoRA, or there are several.
    """
    if path.is_file():
        if _is_whole(path):
            return ModelFiles(pipeline=str(path), home=path)
        if path.suffix == ".safetensors" and is_embedding(path):
            return replace(_with_run(path, "", home_of(path)), embedding=path)
        require_lora(path)
        return _with_run(path, "", path if path.name != LORA_NAME else home_of(path))
    if (path / MODEL_INDEX).is_file():
        return _with_run(None, str(path), home_of(path))
    if (path / "model" / MODEL_INDEX).is_file():
        return _with_run(None, str(path / "model"), path)
    weights = lora_in(home_of(path) if path.name == EMBEDDING_FOLDER else path)
    embedding = embedding_in(home_of(path))
    if weights is not None:
        require_lora(weights)
    elif embedding is None:
        raise _nothing_in(path)
    return _with_run(weights or embedding, "", home_of(path))


def _is_whole(path: Path) -> bool:
    try:
        return single_file(str(path)) is not None
    except SingleFileError:
        return False


def _with_run(weights: Path | None, pipeline: str, home: Path) -> ModelFiles:
    folder, run = home_of(home), run_of(home)
    step = snapshot_step(folder)
    recipe = _read(run / "recipe.yaml", yaml.safe_load)
    is_run = step is not None or (run / "recipe.yaml").is_file()
    cards = [
        _read(each / "README.md", lambda text: Card.parse(text).front) for each in (folder, run)
    ]
    return ModelFiles(
        weights,
        embedding_in(folder) if weights is not None else None,
        pipeline,
        home=home,
        run=run if recipe is not None else None,
        step=step,
        recipe=recipe,
        state=(_read(run / "state.json", json.loads) if is_run else None) or {},
        card=next(filter(None, cards), {}),
    )


def snapshots_of(run: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the whole snapshots of a run, by step."""
    return sorted(
        (step, path)
        for path in (run / "snapshots").glob("step-*")
        if (step := snapshot_step(path)) is not None
        and (
            (path / "lora" / LORA_NAME).is_file()
            or (path / "model" / MODEL_INDEX).is_file()
            or embedding_in(path) is not None
        )
    )


def _read(path: Path, parse: Callable[[str], Any]) -> Mapping[str, Any] | None:
    """A file of a model's folder, which may be a stranger's; None if it cannot be read."""
    try:
        found = parse(content_of(path, path.parent, MOST_TEXT).decode("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def _nothing_in(path: Path) -> EvaluationError:
    recipe = _read(path / "recipe.yaml", yaml.safe_load)
    if recipe is not None and "render" in recipe:
        return EvaluationError(
            f"{path} is the run of a dataset, not of a training.",
            hint="Train with it first: regforge train recipe.yaml",
        )
    if recipe is not None:
        steps = section_of(recipe, "optimizer").get("steps")
        hint = f"It was to train {steps:,} steps. " if isinstance(steps, int) else ""
        hint += f"Go on with it: regforge train {path / 'recipe.yaml'} --out {path}"
        if snapshots := snapshots_of(path):
            step, newest = snapshots[-1]
            hint += f"\nOr take its newest snapshot, of step {step:,}: {newest}"
        return EvaluationError(f"{path} is not finished: it has no weights yet.", hint=hint)
    if path.name in ("lora", "model", EMBEDDING_FOLDER) and (path.parent / "recipe.yaml").is_file():
        return _nothing_in(path.parent)
    if path.is_dir() and any(each.suffix in PICKLES for each in path.iterdir()):
        return EvaluationError(
            f"{path} has weights that are no safetensors files; others can hold code, so regforge "
            "does not load them."
        )
    return EvaluationError(f"{path} holds no model.", hint=_A_MODEL)
