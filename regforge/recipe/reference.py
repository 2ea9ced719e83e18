"""docs/recipe.md, docs/training-recipe.md and the schemas in recipes/, all made from the models.

`python -m regforge.recipe.reference --write` writes them again; without `--write` it says whether
they are up to date. For a checkout only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regforge import resources
from regforge.files import write_atomically
from regforge.recipe.schema import (
    SCHEMA_FILE,
    TRAINING_SCHEMA_FILE,
    json_schema,
    schema_text,
    training_schema,
)
from regforge.recipe.starter import filled_in, in_yaml


@dataclass(frozen=True)
class Row:
    """One key of a section.

    Attributes:
        key: Its name.
        kind: What it may hold, in words.
        default: What holds if it is left out, as YAML; empty where that is said elsewhere.
        meaning: What it does.
        is_data: Whether it changes the digest.
    """

    key: str
    kind: str
    default: str
    meaning: str
    is_data: bool


def reference_markdown() -> str:
    """All keys of a dataset recipe, section by section, with a short introduction."""
    return _reference("reference.md.j2", json_schema())


def training_reference_markdown() -> str:
    """All keys of a training recipe, section by section, with a short introduction."""
    return _reference("training-reference.md.j2", training_schema())


def _reference(template: str, schema: dict[str, Any]) -> str:
    sections = [("", "", schema), *_sections(schema, schema, ())]
    return filled_in(
        template,
        sections=[(path, about, list(_rows(each, schema))) for path, about, each in sections],
    )


def _sections(
    section: dict[str, Any], schema: dict[str, Any], above: tuple[str, ...]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The sections below one: their path with dots, what they are about, their schema."""
    for key, described in section["properties"].items():
        below = _referred(described)
        if below is None:
            continue
        found = schema["$defs"][below]
        path = ".".join((*above, key))
        yield path, found["description"], found
        yield from _sections(found, schema, (*above, key))


def _referred(described: dict[str, Any]) -> str | None:
    """The name of the section that a key holds, or a list of which it holds."""
    options = [described, *described.get("anyOf", ())]
    options += [each["items"] for each in options if "items" in each]
    options += [each for option in options for each in option.get("anyOf", ())]
    names = [each["$ref"] for each in options if "$ref" in each]
    return names[0].rpartition("/")[2] if names else None


def _rows(section: dict[str, Any], schema: dict[str, Any]) -> Iterator[Row]:
    for key, described in section["properties"].items():
        below = _referred(described)
        about = schema["$defs"][below]["description"] if below else ""
        kind = _kind(described)
        yield Row(
            key,
            kind,
            "" if kind == "section" else _default(described.get("default")),
            _in_table(described.get("description", about)),
            kind != "section" and not described.get("x-runtime"),
        )


def _in_table(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _default(value: Any) -> str:
    return "" if value is None else f"`{in_yaml(value)}`"


def _kind(described: dict[str, Any]) -> str:
    """What a key may hold, in words."""
    if "anyOf" in described:
        kinds = [_kind(each) for each in described["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    choices = described.get("enum", [described["const"]] if "const" in described else [])
    if choices:
        return ", ".join(f"`{each}`" for each in choices)
    if "$ref" in described:
        return "section"
    if "prefixItems" in described:
        each = described["prefixItems"]
        return f"list of {len(each)}, each a {_kind(each[0])}"
    if described["type"] == "array":
        return f"list of {_kind(described['items'])}"
    words = {
        "boolean": "`true`, `false`",
        "integer": f"whole number{_range(described)}",
        "number": f"number{_range(described)}",
        "object": "mapping",
        "string": str(described.get("format", "text")),
    }
    return words[described["type"]]


def _range(described: dict[str, Any]) -> str:
    low, high = described.get("minimum"), described.get("maximum")
    above, below = described.get("exclusiveMinimum"), described.get("exclusiveMaximum")
    if above is not None:
        below_it = f", below {below}" if below is not None else ""
        return f" above {above}" + (f", to {high}" if high is not None else below_it)
    if low is not None and high is not None:
        return f", {low} to {high}"
    return f", {low} or more" if low is not None else ""


def _files() -> dict[Path, str]:
    """What the made files have to say."""
    recipes = resources.recipes()
    docs = recipes.parent / "docs"
    return {
        recipes / SCHEMA_FILE: schema_text(),
        recipes / TRAINING_SCHEMA_FILE: schema_text(training_schema()),
        docs / "recipe.md": reference_markdown(),
        docs / "training-recipe.md": training_reference_markdown(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the files or compare them; 1 if one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write them")
    stale = 0
    wanted = parser.parse_args(arguments)
    for path, text in _files().items():
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        if not same and wanted.write:
            write_atomically(path, text)
        stale += not same and not wanted.write
        state = "up to date" if same else "written" if wanted.write else "OUT OF DATE"
        print(f"{path.name}: {state}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
