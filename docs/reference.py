"""Makes recipe.md, training-recipe.md, models.md and memory.md here, the schemas in recipes/.

`python docs/reference.py --write` writes them again; without `--write` it says whether they are up
to date, and exits with 1 if one is not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regforge.exporting.writing import TRAINERS
from regforge.files import write_atomically
from regforge.recipe.memory import CARDS, GB, MODELS, known_sizes, lightest_change, memory_of
from regforge.recipe.pipelines import FAMILIES, NAMED, TRAINABLE, Family
from regforge.recipe.rendering import Render, terms_of
from regforge.recipe.schema import (
    SCHEMA_FILE,
    TRAINING_SCHEMA_FILE,
    filled_in,
    in_yaml,
    json_schema,
    schema_text,
)
from regforge.recipe.training import TrainingRecipe

DOCS = Path(__file__).resolve().parent
RECIPES = DOCS.parent / "recipes"


def reference(template: str, schema: dict[str, Any]) -> str:
    """All keys of a recipe, section by section, with a short introduction."""
    sections = [("", "", schema), *sections_of(schema, schema, ())]
    return filled_in(
        template,
        sections=[(path, about, list(rows(each, schema))) for path, about, each in sections],
    )


def sections_of(
    section: dict[str, Any], schema: dict[str, Any], above: tuple[str, ...]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The sections below one: their path with dots, what they are about, their schema."""
    for key, described in section["properties"].items():
        below = referred(described)
        if below is not None:
            found = schema["$defs"][below]
            yield ".".join((*above, key)), found["description"], found
            yield from sections_of(found, schema, (*above, key))


def referred(described: dict[str, Any]) -> str | None:
    """The name of the section that a key holds, or a list of which it holds."""
    options = [described, *described.get("anyOf", ())]
    options += [each["items"] for each in options if "items" in each]
    options += [each for option in options for each in option.get("anyOf", ())]
    names = [each["$ref"] for each in options if "$ref" in each]
    return names[0].rpartition("/")[2] if names else None


def rows(section: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """For each key its kind and default, in words, what it does, and if it changes the digest."""
    for key, described in section["properties"].items():
        below = referred(described)
        about = schema["$defs"][below]["description"] if below else ""
        kind, default = kind_of(described), described.get("default")
        yield {
            "key": key,
            "kind": kind,
            "default": "" if kind == "section" or default is None else f"`{in_yaml(default)}`",
            "meaning": escaped(described.get("description", about)),
            "is_data": kind != "section" and not described.get("x-runtime"),
        }


def escaped(text: str) -> str:
    """A text for a table; in code `<` is no markup, and `&lt;` would be read as it stands."""
    text = re.sub("(`[^`]*`)|<", lambda found: found[1] or "&lt;", text)
    return text.replace("|", "\\|")


def kind_of(described: dict[str, Any]) -> str:
    """What a key may hold, in words."""
    if "anyOf" in described:
        kinds = [kind_of(each) for each in described["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    choices = described.get("enum", [described["const"]] if "const" in described else [])
    if choices:
        return ", ".join(f"`{each}`" for each in choices)
    if "$ref" in described:
        return "section"
    if "prefixItems" in described:
        each = described["prefixItems"]
        return f"list of {len(each)}, each a {kind_of(each[0])}"
    if described["type"] == "array":
        return f"list of {kind_of(described['items'])}"
    words = {
        "boolean": "`true`, `false`",
        "integer": f"whole number{range_of(described)}",
        "number": f"number{range_of(described)}",
        "object": "mapping",
        "string": str(described.get("format", "text")),
    }
    return words[described["type"]]


def range_of(described: dict[str, Any]) -> str:
    """Such as `, 0 to 2`, or ` above 0`."""
    low, high = described.get("minimum"), described.get("maximum")
    above, below = described.get("exclusiveMinimum"), described.get("exclusiveMaximum")
    if above is not None:
        below_it = f", below {below}" if below is not None else ""
        return f" above {above}" + (f", to {high}" if high is not None else below_it)
    if low is not None and high is not None:
        return f", {low} to {high}"
    return f", {low} or more" if low is not None else ""


def models() -> str:
    """What is known of each base model."""
    return filled_in("models.md.j2", models=[model_row(family) for family in FAMILIES])


def plans_of(family: Family) -> Iterator[Render | TrainingRecipe]:
    """Recipes that draw with a base model and, if it can be, train it."""
    yield Render(model=family.repository)
    if family.pipeline in TRAINABLE:
        subject = {"images": "photos", "class_noun": "cat"}
        yield TrainingRecipe.model_validate(
            {
                "name": "x",
                "base_model": family.repository,
                "subject": subject,
                "regularization": {"dataset": "user/cats"},
            }
        )


def memory() -> str:
    """On which GPUs a recipe of each base model runs, and with what it sets."""
    drawn, trained = [], []
    for family in FAMILIES:
        sizes = MODELS.get(family.name)  # variants take what the model takes that they are like
        if sizes is None:
            continue
        for plan, rows in zip(plans_of(family), (drawn, trained), strict=False):
            cells = [lightest_change(plan, sizes, card * GB) or "-" for card in CARDS]
            rows.append([family.title, f"{memory_of(plan, sizes).peak / GB:.0f}", *cells])
    return filled_in("memory.md.j2", cards=CARDS, drawn=drawn, trained=trained)


def model_row(family: Family) -> dict[str, str]:
    """The row of a base model, each column in words."""
    trained, terms = TRAINABLE.get(family.pipeline or ""), terms_of(family.repository)
    here = "no"
    if trained is not None:
        here = "LoRA, full, text encoder" if trained.text_encoder else "LoRA, full"
    if trained is not None and family.distilled:
        here = (
            f"better {NAMED[family.like].title}" if family.like else "better what it was made from"
        )
    sizes = known_sizes(family)
    plans = plans_of(family) if sizes is not None else ()
    verbs = ("draw", "train")
    peaks = [
        f"{verb} {memory_of(plan, sizes).peak / GB:.0f}"
        for verb, plan in zip(verbs, plans, strict=False)
    ]
    return {
        "title": family.title,
        "repository": family.repository,
        "drawn": f"{family.made_for}{' *' if family.distilled or family.drawn_so else ''}",
        "trained": here,
        "exports": ", ".join(each.name for each in TRAINERS if each.trains(family)) or "",
        "memory": ", ".join(peaks) or "unknown",
        "licence": f"`{terms.name or terms.license}`" if terms else "see its card",
    }


def main(*, write: bool) -> int:
    """Write the files or compare them; 1 if one is out of date."""
    files = {
        RECIPES / SCHEMA_FILE: schema_text(),
        RECIPES / TRAINING_SCHEMA_FILE: schema_text(training=True),
        DOCS / "recipe.md": reference("reference.md.j2", json_schema()),
        DOCS / "training-recipe.md": reference(
            "training-reference.md.j2", json_schema(training=True)
        ),
        DOCS / "models.md": models(),
        DOCS / "memory.md": memory(),
    }
    stale = 0
    for path, text in files.items():
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        if not same and write:
            write_atomically(path, text)
        stale += not same and not write
        print(f"{path.name}: {'up to date' if same else 'written' if write else 'OUT OF DATE'}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(write="--write" in sys.argv[1:]))
