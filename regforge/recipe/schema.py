"""For those who write recipes: the JSON schema that editors check against, and a recipe to begin.

The schema says what one key may hold. What must hold between keys, and that files are there, only
`load_recipe` checks. The files in `recipes` are copies, made by docs/reference.py. The recipe that
`regforge init` writes runs on the embedded models with nothing else installed; its comments say
what to change for real images.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from regforge.embedded import load_vocabulary
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import templates_folder, write_atomically
from regforge.recipe.model_checks import class_noun as check_noun
from regforge.recipe.model_checks import drawable, is_embedded
from regforge.recipe.models import (
    LIVING_SLOTS,
    OBJECT_SLOTS,
    PRESENCE,
    Recipe,
    bank_kind,
)
from regforge.recipe.named_files import is_folder
from regforge.recipe.sections import RARE, Kind
from regforge.recipe.training import TrainingRecipe
from regforge.recipe.yaml_nodes import Dumper

SCHEMA_FILE = "regforge.schema.json"
TRAINING_SCHEMA_FILE = "regforge-train.schema.json"
SCHEMA_LINE = "# yaml-language-server: $schema="
"""With the name of the file, the first line of a recipe by which editors find the schema."""

_PLACES = 8
"""How many of the places that the embedded pipeline can draw a starter lists."""


class StarterError(RegforgeError):
    """A starter recipe that cannot be written as asked."""

    exit_code = EXIT_USAGE


# ----------------------------------------------------------------------------------------- schema


def json_schema(*, training: bool = False) -> dict[str, Any]:
    """The schema of dataset recipes or of training recipes, in JSON Schema draft 2020-12.

    Keys marked `x-runtime` say how a run is carried out and do not change what it makes.
    """
    kind = "training-recipe" if training else "recipe"
    made = (TrainingRecipe if training else Recipe).model_json_schema()
    for section in (made, *made["$defs"].values()):
        _tidy(section)
    if not training:
        _allow_short_forms(made["$defs"])
    # What a recipe must have, one that extends another may leave to that one.
    required = made.pop("required")
    within = made["$defs"]["TrainingSubject" if training else "Subject"].pop("required")
    others = [key for key in required if key != "subject"]
    made["anyOf"] = [
        {"required": ["extends"]},
        {"required": [*others, "subjects"]},
        {"required": required, "properties": {"subject": {"type": "object", "required": within}}},
    ]
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:regforge:{kind}:1",
        "title": f"regforge {kind.replace('-', ' ')}",
    }
    return {**head, **made}


def schema_text(*, training: bool = False) -> str:
    """The schema as its file has it."""
    return json.dumps(json_schema(training=training), indent=2, ensure_ascii=False) + "\n"


def _tidy(section: dict[str, Any]) -> None:
    """Take out titles, which repeat the key's name, and line breaks, and let sections be empty."""
    section.pop("title", None)
    for described in section["properties"].values():
        described.pop("title", None)
        if "oneOf" in described:
            described["anyOf"] = described.pop("oneOf")
        if "description" in described:
            described["description"] = " ".join(described["description"].split())
        if "$ref" in described:
            described["anyOf"] = [{"$ref": described.pop("$ref")}, {"type": "null"}]


def _allow_short_forms(sections: dict[str, Any]) -> None:
    """Allow slots that are only named; name the prompt sets, from which editors complete."""
    name, prompts = sections["Slot"]["properties"]["name"], sections["Prompts"]["properties"]
    slots, sets = prompts["slots"]["anyOf"][0], prompts["sets"]
    bare = {"type": "string", "pattern": name["pattern"], "description": name["description"]}
    slots["items"] = {"anyOf": [bare, slots["items"]]}
    share, names = sets.pop("additionalProperties"), sets.pop("propertyNames")["enum"]
    sets |= {"properties": dict.fromkeys(names, share), "additionalProperties": False}


# ---------------------------------------------------------------------------------------- starter


def starter_recipe(
    name: str,
    class_noun: str,
    *,
    kind: Kind | None = None,
    images: str | Path | None = None,
    identifier: str | None = None,
    model: str = "embedded/tinyworld",
    language_model: str | None = None,
) -> str:
    """A commented recipe to start from, which `load_recipe` takes if `images` is there.

    Args:
        name: Of the dataset.
        class_noun: What the subject is.
        kind: `object` or `living`; what the phrase banks say of the class noun if left out, and
            `object` if they do not know it.
        images: Folder with photos of the subject, from where the recipe will lie; without it,
            the recipe has no `against` set.
        identifier: What stands for the subject; the name of a new token if left out.
        model: What draws the images.
        language_model: What fills the slots; if left out, nobody needs to be asked.
    """
    known = bank_kind(class_noun)
    slug = re.sub(r"[^a-z0-9]+", "-", class_noun.lower())[:30].strip("-")
    kind = kind or known or "object"
    words = load_vocabulary()
    listed = ("color", "motion", "background", "style")
    return filled_in(
        "starter.yaml.j2",
        schema_line=SCHEMA_LINE + SCHEMA_FILE,
        name=name,
        class_noun=class_noun,
        kind=kind,
        kind_is_guessed=known is None,
        images=str(images) if images is not None else None,
        identifier=identifier or (f"<my-{slug}>" if slug else RARE),
        model=model,
        embedded=is_embedded(model),
        drawable=not is_embedded(model) or drawable(class_noun),
        language_model=language_model,
        slots={
            slot: words[slot][: _PLACES if slot == "background" else None]
            for slot in listed
            if slot != "motion" or kind == "living"
        },
        slot_names=LIVING_SLOTS if kind == "living" else OBJECT_SLOTS,
        presence=PRESENCE,
    )


def write_starter(
    path: Path, *, class_noun: str = "teapot", images: Path | None = None, force: bool = False
) -> Path:
    """Write a starter recipe, and beside it the schema that editors complete it from.

    Args:
        path: The recipe: `mug.yaml`, or `mug` for the same; in an existing folder, `recipe.yaml`.
        class_noun: What the subject is.
        images: Folder with photos of the subject, from the current directory.
        force: Replace a recipe that is there.

    Returns:
        The recipe's path.

    Raises:
        StarterError: There is a file already, or no such folder of photos.
        StorageError: It cannot be written.
    """
    if is_folder(path):
        path = path / "recipe.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        path = path.with_name(f"{path.name}.yaml")
    if path.exists() and not force:
        raise StarterError(
            f"{path} is there already.", hint="Choose another name, or replace it with --force."
        )
    if images is not None and not is_folder(images):
        raise StarterError(f"There is no folder {images}.")
    for finding in check_noun(class_noun, ("class_noun",)):
        raise StarterError(f"--class-noun: {class_noun!r} {finding.message}.")
    name = path.stem if path.stem != "recipe" else f"{class_noun}-reg"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:80] or "my-dataset"
    if images is not None and not images.is_absolute():
        images = Path(os.path.relpath(images, path.parent))
    write_atomically(path.with_name(SCHEMA_FILE), schema_text())
    write_atomically(path, starter_recipe(name, class_noun, images=images))
    return path


def filled_in(template: str, **values: Any) -> str:
    """A template of templates/recipe with its values; the filter `yaml` quotes where need be."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_folder() / "recipe"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # it makes YAML and Markdown, which have other rules than HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = in_yaml
    return environment.get_template(template).render(values)


def in_yaml(value: Any) -> str:
    """A value as YAML in one line."""
    options: dict[str, Any] = {"allow_unicode": True, "width": 10**6, "sort_keys": False}
    text = str(yaml.dump(value, Dumper=Dumper, default_flow_style=True, **options))
    return text.removesuffix("\n").removesuffix("\n...")
