"""A recipe written out in full: every key with its value, as one YAML document."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from regforge.hub.address import HubAddress
from regforge.recipe.defaults import (
    is_benchmark,
    kind_of,
    shipped_template,
    slots_of,
    template_name,
)
from regforge.recipe.digest import recipe_digest
from regforge.recipe.models import Recipe
from regforge.recipe.named_files import names_recipe
from regforge.recipe.training import TrainingRecipe
from regforge.recipe.training_digest import training_digest
from regforge.recipe.yaml_nodes import Dumper
from regforge.version import __version__


def resolved_yaml(
    recipe: Recipe | TrainingRecipe, *, portable: bool = False, digest: str | None = None
) -> str:
    """The full recipe as YAML, headed by the version of regforge and the digest.

    Args:
        recipe: What to write.
        portable: Write only the last part of every path, for datasets that others will see:
            nobody's home folder is in it, but the files have to be put beside it again.
        digest: Of a training recipe, where it is known and its photos may be gone.

    Returns:
        YAML from which `load_recipe` or `load_training_recipe` makes an equal recipe with the same
        digest, unless it is `portable` and names files.

    Raises:
        RecipeError: A file that the recipe names cannot be read.
    """
    data = recipe.model_dump(mode="json", by_alias=True, exclude={"extends"})
    change = _name if portable else _absolute
    if isinstance(recipe, TrainingRecipe):
        _change_training_paths(data, change)
        said = [f"# digest: {digest or training_digest(recipe)}"]
    else:
        _change_paths(data, change)
        if portable:
            _hide_places(data)
        _tidy_slots(data)
        said = _said_by_default(recipe)
    lines = [f"# Written by regforge {__version__}, with every key spelled out.", *said]
    if portable:
        lines.append("# Of paths only the last part is here.")
    body = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=88)
    return "\n".join((*lines, "", body))


def _tidy_slots(data: dict[str, Any]) -> None:
    slots = data["prompts"]["slots"]
    if slots is not None:  # most keys of most slots say nothing
        data["prompts"]["slots"] = [
            {key: value for key, value in slot.items() if value is not None} for slot in slots
        ]


def _said_by_default(recipe: Recipe) -> list[str]:
    """The digest, and what a dataset recipe means where it says nothing, a comment each."""
    lines = [f"# digest: {recipe_digest(recipe)}"]
    if recipe.subject.kind is None:
        lines.append(f"# kind: {kind_of(recipe)}")
    if recipe.prompts.slots is None:
        lines.append(f"# slots: {', '.join(slot.name for slot in slots_of(recipe))}")
    if recipe.prompts.template is None:
        lines.append(f"# template: {template_name(recipe)}")
    return lines


def _change_paths(data: dict[str, Any], change: Callable[[str], str]) -> None:
    """Change each path that the recipe names, as JSON values have it."""
    subject, prompts = data["subject"], data["prompts"]
    for section, key in ((subject, "images"), (prompts, "messages"), (prompts, "vocabulary")):
        section[key] = section[key] and change(section[key])
    if prompts["template"] and not shipped_template(prompts["template"]):
        prompts["template"] = change(prompts["template"])
    for slot in prompts["slots"] or ():
        slot["file"] = slot["file"] and change(slot["file"])
    prompts["exclude"] = [
        each if is_benchmark(each) else change(each) for each in prompts["exclude"]
    ]
    taken = prompts["import"]
    if taken and HubAddress.parse(taken["dataset"]) is None:
        taken["dataset"] = change(taken["dataset"])


def _change_training_paths(data: dict[str, Any], change: Callable[[str], str]) -> None:
    subject, regularization = data["subject"], data["regularization"]
    subject["images"] = change(subject["images"])
    dataset, model = regularization["dataset"], data["base_model"]
    if dataset and (names_recipe(dataset) or HubAddress.parse(dataset) is None):
        regularization["dataset"] = change(dataset)
    if Path(model).is_absolute():
        data["base_model"] = change(model)


def _hide_places(data: dict[str, Any]) -> None:
    """Leave out where on this machine models lie, and what an address says besides the server."""
    render, llm, alignment = data["render"], data["prompts"]["llm"], data["curate"]["alignment"]
    loras = [(lora, "path") for lora in render["lora"]]
    for section, key in ((render, "model"), (render, "vae"), *loras, (alignment or {}, "model")):
        value = section.get(key)
        if value and (Path(value).is_absolute() or value[0] in "~."):
            section[key] = _name(value)
    for section in (render, llm):
        if section["api_base"]:
            parts = urlsplit(section["api_base"])
            server = parts.netloc.rpartition("@")[2]
            section["api_base"] = parts._replace(netloc=server, query="", fragment="").geturl()


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (keeps symbolic links)


def _name(path: str) -> str:
    return Path(path).name
