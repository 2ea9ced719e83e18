"""The JSON schema of recipes: what editors complete from and check against.

It says what one key may hold. What must hold between keys, and that files are there, only
`load_recipe` checks. `recipes/regforge.schema.json` is a copy (see `reference`).
"""

from __future__ import annotations

import json
from typing import Any

from regforge.recipe.models import Recipe

SCHEMA_FILE = "regforge.schema.json"
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""The first line of a recipe by which editors find the schema, in a file beside it."""


def json_schema() -> dict[str, Any]:
    """The schema, in JSON Schema draft 2020-12.

    Keys marked `x-runtime` say how a run is carried out and do not change what it makes.
    """
    made = Recipe.model_json_schema()
    for section in (made, *made["$defs"].values()):
        _tidy(section)
    _allow_bare_slot_names(made)
    _spell_out_sets(made)
    _loosen_for_extends(made)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:regforge:recipe:1",
        "title": "regforge recipe",
        **made,
    }


def schema_text() -> str:
    """The schema as the file `SCHEMA_FILE` has it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


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


def _loosen_for_extends(made: dict[str, Any]) -> None:
    """What a recipe must have, one that extends another may leave to that one."""
    required = made.pop("required")
    within = made["$defs"]["Subject"].pop("required")
    made["anyOf"] = [
        {"required": ["extends"]},
        {"required": required, "properties": {"subject": {"type": "object", "required": within}}},
    ]
