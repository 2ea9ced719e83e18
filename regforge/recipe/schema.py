"""The JSON schema of recipes: what editors complete from and check against.

It says what one key may hold. What must hold between keys, and that files are there, only
`load_recipe` checks. The files in `recipes` are copies (see `reference`).
"""

from __future__ import annotations

import json
from typing import Any

from regforge.recipe.models import Recipe
from regforge.recipe.sections import RecipeDocument
from regforge.recipe.training import TrainingRecipe

SCHEMA_FILE = "regforge.schema.json"
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""The first line of a recipe by which editors find the schema, in a file beside it."""

TRAINING_SCHEMA_FILE = "regforge-train.schema.json"
TRAINING_SCHEMA_LINE = f"# yaml-language-server: $schema={TRAINING_SCHEMA_FILE}"
"""The same for training recipes."""


def json_schema() -> dict[str, Any]:
    """The schema of dataset recipes, in JSON Schema draft 2020-12.

    Keys marked `x-runtime` say how a run is carried out and do not change what it makes.
    """
    made = _schema(Recipe, "urn:regforge:recipe:1", "regforge recipe")
    _allow_bare_slot_names(made)
    _spell_out_sets(made)
    _loosen_for_extends(made, "Subject")
    return made


def training_schema() -> dict[str, Any]:
    """The schema of training recipes; see `json_schema`."""
    made = _schema(TrainingRecipe, "urn:regforge:training-recipe:1", "regforge training recipe")
    _loosen_for_extends(made, "TrainingSubject")
    return made


def schema_text(schema: dict[str, Any] | None = None) -> str:
    """A schema as its file has it; that of dataset recipes if none is given."""
    schema = json_schema() if schema is None else schema
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _schema(recipe: type[RecipeDocument], name: str, title: str) -> dict[str, Any]:
    made = recipe.model_json_schema()
    for section in (made, *made["$defs"].values()):
        _tidy(section)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": name, "title": title}
    return {**head, **made}


def _tidy(section: dict[str, Any]) -> None:
    """Take out titles, which only repeat the key's name, and let sections be empty."""
    section.pop("title", None)
    for described in section["properties"].values():
        described.pop("title", None)
        if "$ref" in described:
            described["anyOf"] = [{"$ref": described.pop("$ref")}, {"type": "null"}]


def _allow_bare_slot_names(made: dict[str, Any]) -> None:
    name = made["$defs"]["Slot"]["properties"]["name"]
    slots = made["$defs"]["Prompts"]["properties"]["slots"]["anyOf"][0]
    bare = {"type": "string", "pattern": name["pattern"], "description": name["description"]}
    slots["items"] = {"anyOf": [bare, slots["items"]]}


def _spell_out_sets(made: dict[str, Any]) -> None:
    """Name the prompt sets one by one: editors complete from properties alone."""
    sets = made["$defs"]["Prompts"]["properties"]["sets"]
    share = sets.pop("additionalProperties")
    names = sets.pop("propertyNames")["enum"]
    sets["properties"] = dict.fromkeys(names, share)
    sets["additionalProperties"] = False


def _loosen_for_extends(made: dict[str, Any], subject: str) -> None:
    """What a recipe must have, one that extends another may leave to that one."""
    required = made.pop("required")
    within = made["$defs"][subject].pop("required")
    made["anyOf"] = [
        {"required": ["extends"]},
        {"required": required, "properties": {"subject": {"type": "object", "required": within}}},
    ]
