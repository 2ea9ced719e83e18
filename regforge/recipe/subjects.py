"""Recipes over several subjects: `subjects` in place of `subject`, one recipe for each of them."""

from __future__ import annotations

import copy
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from regforge.files import MOST_TEXT, expanded, parse_json
from regforge.recipe.named_files import content_of, is_folder
from regforge.recipe.problems import Place, Problem, RecipeError, shown
from regforge.recipe.yaml_nodes import Node, child, laid_over, plain

_KEYS = ("class_noun", "identifier", "kind")
"""What a subject.json beside the photos may say."""


def by_subject(root: Node, *, counted: bool) -> dict[str, Node]:
    """The recipes of one subject each that a recipe stands for, by the subjects' names.

    What `subject` says holds for all of them, the `count` of one is its `prompts.count` unless
    `--set` gives one for all, and `{subject}` in `regularization.dataset` and `dataset.repo_id` is
    the name. Where nothing is `counted`, in a training, the same list may stand. Without `subjects`
    it is the recipe itself, under "".

    Raises:
        RecipeError: `subjects` names none, or two by one name.
    """
    assert isinstance(root.content, dict)
    listed = root.content.pop("subjects", None)
    if listed is None or listed.content is None:
        return {"": root}
    found: dict[str, Node] = {}
    for name, subject in _subjects(listed):
        if name in found:
            message = (
                f"two of them are called {name!r} (names are made of a-z, A-Z, 0-9 and `._-`); "
                "give each a `name` of its own, or rename the folder"
            )
            raise RecipeError([Problem.at(subject.place, ("subjects",), message)])
        recipe = copy.deepcopy(root)
        assert isinstance(recipe.content, dict)
        assert isinstance(subject.content, dict)
        count, said = subject.content.pop("count", None), child(recipe, "prompts", "count")
        if count and counted and not (said and said.place.source.startswith("--set ")):
            prompts = recipe.content.setdefault("prompts", Node(count.place, {}, count.key))
            if isinstance(prompts.content, dict):
                prompts.content["count"] = count
        shared = recipe.content.get("subject")
        recipe.content["subject"] = laid_over(shared, subject) if shared else subject
        named = recipe.content.get("name")
        if named is not None and isinstance(named.content, str):
            named.content = f"{named.content}-{name}"
        for location in (("regularization", "dataset"), ("dataset", "repo_id")):
            node = child(recipe, *location)
            if node is not None and isinstance(node.content, str):
                node.content = node.content.replace("{subject}", name)
        found[name] = recipe
    if not found:
        given = shown(plain(listed))
        message = f"needs a list of subjects, or a folder of folders with photos, not {given}"
        raise RecipeError([Problem.at(listed.place, ("subjects",), message)])
    return found


def require_photos(recipes: Mapping[str, Node]) -> None:
    """Check that photos are there, where several subjects lack them: their folder may be missing.

    Raises:
        RecipeError: It names where they are to lie.
    """
    named = filter(None, (child(each, "subject", "images") for each in recipes.values()))
    gone = {
        folder: node
        for node in named
        if isinstance(node.content, str)
        and not is_folder(folder := node.place.folder / expanded(node.content))
    }
    if len(gone) > 1:
        (first, node), where = next(iter(gone.items())), os.path.normpath(os.path.commonpath(gone))
        message = (
            f"there are no photos of {len(gone)} subjects: put them into {where}, a folder each, "
            f"such as {first.name}"
        )
        raise RecipeError([Problem.at(node.place, ("subjects",), message)])


def _subjects(listed: Node) -> Iterator[tuple[str, Node]]:
    """Names and subjects, of a list or of a folder."""
    if isinstance(listed.content, str):
        folder = listed.place.folder / expanded(listed.content)
        if not is_folder(folder):
            message = f"there is no folder {folder}"
            raise RecipeError([Problem.at(listed.place, ("subjects",), message)])
        for photos in sorted(folder.iterdir()):
            if photos.is_dir() and not photos.name.startswith("."):
                yield slug(photos.name), _of_folder(photos)
        return
    for number, each in enumerate(listed.content if isinstance(listed.content, list) else []):
        if not isinstance(each.content, dict):
            message = (
                f"must be a mapping such as `{{class_noun: teapot}}`, not {shown(each.content)}"
            )
            raise RecipeError([Problem.at(each.place, ("subjects", number), message)])
        said = {key: node.content for key, node in each.content.items()}
        images = said.get("images")
        folder_name = Path(images).name if isinstance(images, str) else None
        name = said.get("name") or folder_name or said.get("class_noun") or f"subject {number}"
        if isinstance(name, dict | list):
            message = f"needs a `name` or `class_noun` that is a text, not {shown(name)}"
            raise RecipeError([Problem.at(each.place, ("subjects", number), message)])
        rest = {key: node for key, node in each.content.items() if key != "name"}
        yield slug(str(name)), Node(each.place, rest, each.key)


def _of_folder(folder: Path) -> Node:
    """A subject of which there are photos; its class noun is the folder's name by default.

    What is wrong with it is wrong in its subject.json, also where there is none yet.
    """
    file = folder / "subject.json"
    place = Place(str(file), folder)
    facts = {"class_noun": " ".join(re.sub(r"[_\W\d]+", " ", folder.name).split())}
    try:
        said = parse_json(content_of(file, folder, MOST_TEXT)) if os.path.lexists(file) else {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError([Problem.at(place, (), f"cannot be read: {reason}")]) from error
    if not isinstance(said, dict):
        raise RecipeError([Problem.at(place, (), f"must be a mapping, not {shown(said)}")])
    facts |= {key: said[key] for key in _KEYS if key in said}
    facts["images"] = str(folder.absolute())
    return Node(place, {key: Node(place, value) for key, value in facts.items()})


def slug(name: str) -> str:
    """A name for folders, configurations and repositories."""
    letters = (c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "".join(letters)).strip("-.")[:40] or "subject"
