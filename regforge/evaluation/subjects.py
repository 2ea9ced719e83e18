"""Who a model knows: what its run's recipe says, or the folder of photos that a user names.

Reads `subject.json`; looks at no photo.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regforge.evaluation.interface import EvaluationError, Kind, Subject
from regforge.evaluation.model_files import normal, section
from regforge.files import MOST_CAPTION
from regforge.recipe.defaults import bank_kind
from regforge.recipe.named_files import content_of

_KINDS: tuple[Kind, ...] = ("object", "living")


def find_subject(
    recipe: Mapping[str, Any] | None, given: Subject | str | Path | None
) -> tuple[Subject | None, tuple[str, ...]]:
    """Who the model knows, and what had to be assumed about it, a sentence each.

    Args:
        recipe: Of its run, if there is one.
        given: Folder of photos, which may have a `subject.json`; or all that is to be known.

    Raises:
        EvaluationError: The given folder is not there, or does not say who it is.
    """
    if isinstance(given, Subject):
        return given, ()
    said: dict[str, Any] = {
        key: value for key, value in section(recipe, "subject").items() if value is not None
    }
    if given is not None:
        folder = normal(Path(given))
        said |= {**_subject_json(folder), "images": str(folder)}
    noun = said.get("class_noun")
    if not isinstance(noun, str) or not noun.strip():
        if given is None:
            return None, ()
        raise EvaluationError(
            f"Nothing says what the subject in {given} is.",
            hint='Put a subject.json beside the photos: {"class_noun": "teapot", "identifier": '
            '"sks", "kind": "object"}',
        )
    kind, notes = _kind(said.get("kind"), noun)
    images = Path(str(said["images"])) if said.get("images") else None
    if images is not None and not images.is_dir():
        notes = (*notes, f"The photos of the subject are not in {images} any more.")
        images = None
    return Subject(str(said.get("identifier") or ""), noun, kind, images), notes


def _subject_json(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise EvaluationError(f"There is no folder {folder} with photos of the subject.")
    path = folder / "subject.json"
    if not path.is_file():
        return {}
    try:
        said = json.loads(content_of(path, folder, MOST_CAPTION).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} cannot be read ({error}).") from error
    if not isinstance(said, dict):
        raise EvaluationError(f"{path} is no JSON object.")
    if said.get("kind") not in (None, *_KINDS):
        raise EvaluationError(f"{path}: kind is 'object' or 'living', not {said['kind']!r}.")
    return {key: said[key] for key in ("class_noun", "identifier", "kind") if said.get(key)}


def _kind(said: Any, noun: str) -> tuple[Kind, tuple[str, ...]]:
    if said in _KINDS:
        return said, ()
    known = bank_kind(noun)
    if known is not None:
        return known, ()
    return "object", (
        f"Nothing says whether a {noun} is an object or living; it is taken for an object.",
    )
