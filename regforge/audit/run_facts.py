"""What the folder of a run adds to its dataset: the recipe and the phrases on offer.

Files that are missing or damaged say nothing; they are the run's trouble, not the audit's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from regforge.files import parse_json
from regforge.recipe.named_files import content_of

_MOST_BYTES = 2**26


@dataclass(frozen=True)
class RunFacts:
    """See the module's docstring.

    Attributes:
        identifier: The subject's, or None.
        license: The dataset's, or None.
        curated: Whether black and single-coloured images were refused; None if not known.
        offered: Phrases on offer by slot.
        plain: Whether the recipe wants photos' captions as they are (`prompts.against: plain`).
    """

    identifier: str | None = None
    license: str | None = None
    curated: bool | None = None
    offered: Mapping[str, Sequence[str]] = field(default_factory=dict)
    plain: bool = False


def run_facts(folder: Path | None) -> RunFacts:
    """Read them.

    Args:
        folder: A run's folder; None knows nothing.
    """
    if folder is None:
        return RunFacts()
    recipe = _recipe(folder)
    constant = _section(recipe, "curate").get("constant")
    return RunFacts(
        identifier=_text(_section(recipe, "subject").get("identifier")),
        license=_text(_section(recipe, "dataset").get("license")),
        curated=constant if isinstance(constant, bool) else None,
        offered=_offered(folder),
        plain=_section(recipe, "prompts").get("against") == "plain",
    )


def _recipe(folder: Path) -> Mapping[str, Any]:
    try:
        recipe = yaml.safe_load(content_of(folder / "recipe.yaml", folder, _MOST_BYTES))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = recipe.get(name)
    return section if isinstance(section, dict) else {}


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _offered(folder: Path) -> dict[str, list[str]]:
    try:
        slots = parse_json(content_of(folder / "vocabulary.json", folder, _MOST_BYTES))["slots"]
        return {str(name): [str(value) for value in slot["values"]] for name, slot in slots.items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}
