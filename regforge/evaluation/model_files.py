"""Finds what a trained model consists of: its weights, its run's recipe, its card, its base model.

Knows the folders that training leaves, and LoRA files of any maker. What becomes of all that,
`models` knows; nothing here loads weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from regforge.dataset.card_parts import Card
from regforge.digests import revision_of
from regforge.embedded import EMBEDDED_FOLDERS
from regforge.evaluation.interface import EvaluationError
from regforge.files import MOST_TEXT, expanded
from regforge.hub import HubAddress
from regforge.images.loading import EMBEDDED
from regforge.lora_files import LORA_NAME, PICKLES, lora_header, lora_in, require_lora
from regforge.recipe.named_files import MODEL_INDEX, content_of

_SNAPSHOT = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Found:
    """A trained model on the disk.

    Attributes:
        weights: The LoRA's file; None for a whole pipeline.
        pipeline: The folder of a whole pipeline; None for a LoRA.
        home: The run's folder, the snapshot's, or the one that holds the weights; the file itself
            if it has a name of its own.
        run: Folder of the training run, if there is one.
        step: Of a snapshot.
        recipe: Of the run.
        state: Of the run.
        card: Front matter of the README.md beside it.
    """

    weights: Path | None
    pipeline: Path | None
    home: Path
    run: Path | None = None
    step: int | None = None
    recipe: Mapping[str, Any] | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)


def find_files(path: Path) -> Found:
    """What lies in a folder, or which run a file belongs to.

    Args:
        path: A run, a snapshot of it, its `lora` or `model`, a LoRA file, or a pipeline's folder.

    Raises:
        EvaluationError: There is no model, or none yet.
        LoraError: A file is no LoRA, or there are several.
    """
    path = normal(path)
    if path.is_file():
        require_lora(path)
        return _with_run(path, None, path if path.name != LORA_NAME else _home(path.parent))
    if (path / MODEL_INDEX).is_file():
        return _with_run(None, path, _home(path))
    if (path / "model" / MODEL_INDEX).is_file():
        return _with_run(None, path / "model", path)
    weights = lora_in(path)
    if weights is not None:
        require_lora(weights)
        return _with_run(weights, None, _home(path))
    raise _nothing_in(path)


def normal(path: Path) -> Path:
    """Absolute and without `..`, so that its last part is a name; links are not followed."""
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


def snapshot_step(folder: Path) -> int | None:
    """Of which step a run's snapshot is; None for any other folder, such as the Hub's cache."""
    named = _SNAPSHOT.fullmatch(folder.name)
    return int(named[1]) if named and folder.parent.name == "snapshots" else None


def _home(folder: Path) -> Path:
    return folder.parent if folder.name in ("lora", "model") else folder


def _with_run(weights: Path | None, pipeline: Path | None, home: Path) -> Found:
    folder = _home(home.parent) if home.is_file() else home
    run, step = _run_of(folder)
    recipe = None if run is None else read_recipe(run / "recipe.yaml")
    places = [folder, *([run] if run else [])]
    return Found(
        weights,
        pipeline,
        home,
        run=run if recipe is not None else None,
        step=step,
        recipe=recipe,
        state={} if run is None else _read_json(run / "state.json"),
        card=next((card for place in places if (card := _read_card(place))), {}),
    )


def _run_of(folder: Path) -> tuple[Path | None, int | None]:
    """The run that a folder is, or that it is a snapshot of, and of which step."""
    step = snapshot_step(folder)
    if step is not None:
        return folder.parent.parent, step
    return (folder, None) if (folder / "recipe.yaml").is_file() else (None, None)


def _nothing_in(path: Path) -> EvaluationError:
    recipe = read_recipe(path / "recipe.yaml") if (path / "recipe.yaml").is_file() else None
    if recipe is not None and "render" in recipe:
        return EvaluationError(
            f"{path} is the run of a dataset, not of a training.",
            hint="Train with it first: regforge train recipe.yaml",
        )
    if recipe is not None:
        return _unfinished(path, recipe)
    if path.name in ("lora", "model") and (path.parent / "recipe.yaml").is_file():
        return _nothing_in(path.parent)
    if path.is_dir() and any(each.suffix in PICKLES for each in path.iterdir()):
        return EvaluationError(
            f"{path} has weights that are no safetensors files; others can hold code, so regforge "
            "does not load them."
        )
    return EvaluationError(
        f"{path} holds no model.",
        hint="A model is a training run's folder, a LoRA's .safetensors file, a diffusers folder, "
        f"{EMBEDDED}, or user/name on the Hub.",
    )


def _unfinished(run: Path, recipe: Mapping[str, Any]) -> EvaluationError:
    """What to say of a run without a result, with what there is in its place."""
    snapshots = sorted(
        (step, each)
        for each in (run / "snapshots").glob("step-*")
        if (step := snapshot_step(each)) is not None and _is_whole(each)
    )
    steps = section(recipe, "optimizer").get("steps")
    so_far = f"It was to train {steps:,} steps. " if isinstance(steps, int) else ""
    hint = f"{so_far}Go on with it: regforge train {run / 'recipe.yaml'} --out {run}"
    if snapshots:
        step, newest = snapshots[-1]
        hint += f"\nOr take its newest snapshot, of step {step:,}: {newest}"
    return EvaluationError(f"{run} is not finished: it has no weights yet.", hint=hint)


def _is_whole(snapshot: Path) -> bool:
    places = (snapshot / "lora" / LORA_NAME, snapshot / "model" / MODEL_INDEX)
    return any(each.is_file() for each in places)


# ------------------------------------------------------------------------------------- reading


def read_recipe(path: Path) -> Mapping[str, Any] | None:
    """A run's recipe as it stands there; None if it cannot be read. Nothing it names need exist."""
    try:
        recipe = yaml.safe_load(_text_of(path))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _text_of(path: Path) -> str:
    """A text of a model's folder, which may be a stranger's."""
    return content_of(path, path.parent, MOST_TEXT).decode("utf-8")


def section(recipe: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """A section of a recipe; empty where there is none."""
    found = (recipe or {}).get(name)
    return found if isinstance(found, dict) else {}


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_text_of(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_card(folder: Path) -> Mapping[str, Any]:
    try:
        return Card.parse(_text_of(folder / "README.md")).front
    except (OSError, ValueError):
        return {}


def base_named(weights: Path, card: Mapping[str, Any]) -> str | None:
    """The base model that a LoRA's file or its card names; None if neither does."""
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
    address = HubAddress.parse(name)
    return address is not None and not name.endswith((".safetensors", ".ckpt"))


# ------------------------------------------------------------------------------------- digests


def pipeline_digest(folder: Path) -> str:
    """SHA-256 of what a pipeline's files hold.

    Of all of it: two trainings leave files of the same names, sizes and headers.
    """
    return hashlib.sha256(revision_of(folder).encode()).hexdigest()


def base_digest(base: str, revision: str | None) -> str:
    """SHA-256 that stands for a base model: of what its files hold, or of its name on the Hub."""
    folder = EMBEDDED_FOLDERS.get(base) or expanded(base)
    if (folder / MODEL_INDEX).is_file():
        return pipeline_digest(folder)
    return hashlib.sha256(f"{base}@{revision or 'main'}".encode()).hexdigest()
