"""Reads a recipe: its file, the recipes it extends, `--set`, and everything that may be wrong.

The parts are elsewhere: YAML with places in `yaml_nodes`, laying over in `overrides`, words in
`messages`, whole-recipe checks in `checks`. This module knows the order, resolves relative paths,
and sees to it that all problems are reported together.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from regforge import resources
from regforge.hub.address import HubAddress
from regforge.recipe.checks import findings
from regforge.recipe.defaults import is_benchmark, shipped_template
from regforge.recipe.messages import explained
from regforge.recipe.models import Recipe
from regforge.recipe.named_files import is_file, is_folder
from regforge.recipe.overrides import apply_setting, laid_over, source_of
from regforge.recipe.problems import Location, Place, Problem, RecipeError, shown
from regforge.recipe.yaml_nodes import MOST_CHARACTERS, Entry, Node, place_of, plain, read_yaml

_MOST_ROUNDS = 20

SECTIONS = ("subject", "prompts", "render", "curate", "dataset")

_STAND_INS: dict[Location, Any] = {
    ("name",): "unnamed",
    ("subject",): {"class_noun": "thing", "kind": "object"},
    ("subject", "class_noun"): "thing",
}
"""What takes the place of required keys that are missing or wrong, so that the rest is checked."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        path: The YAML file.
        overrides: Settings such as `prompts.count=50`, laid over the file one after the other.
            Their values are YAML, and relative paths in them start at the current directory.

    Returns:
        The recipe, with what it extends carried out and all paths absolute.

    Raises:
        RecipeError: Something is wrong; the error names everything that is, and where.
    """
    loading = _Loading()
    root = loading.read_file(Path(path))
    _spell_out_slots(root)
    for setting in overrides:
        loading.sources.append(source_of(setting))
        loading.problems += apply_setting(root, setting)
    _resolve_paths(root)
    recipe = loading.validated(root)
    if loading.problems or recipe is None:
        raise RecipeError(loading.in_order())
    return recipe.read_from(Path(os.path.abspath(path)))  # noqa: PTH100 (keeps symbolic links)


@dataclass
class _Loading:
    """One call of `load_recipe`: what was read so far and what is wrong with it."""

    sources: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    # ------------------------------------------------------------------------------------- files

    def read_file(self, path: Path) -> Node:
        """The file as a mapping, laid over the recipe that it extends.

        Raises:
            RecipeError: It is no mapping, or cannot be read at all.
        """
        place = Place(str(path), path.parent, 1, 1)
        root = self._mapping(_text_of(path, Place(str(path), path.parent)), place)
        return self._extended(root, path, (path,))

    def _mapping(self, text: str, place: Place) -> Node:
        self.sources.append(place.source)
        root, problems = read_yaml(text, place)
        if root is None or not isinstance(root.content, dict):
            given = shown(root.content) if root else "an empty file"
            advice = "a recipe is a mapping that begins with `name:`, not " + given
            raise RecipeError(problems or [Problem.at(place, (), advice)])
        self.problems += problems
        _open_empty_sections(root)
        # Problems of the document as a whole are said of its beginning.
        return Node(place, root.content)

    def _extended(self, root: Node, path: Path, chain: tuple[Path, ...]) -> Node:
        """The root without `extends`, laid over what it names."""
        if not isinstance(root.content, dict) or "extends" not in root.content:
            return root
        entry = root.content.pop("extends")
        value, place = entry.value.content, entry.value.place
        if value is None:
            return root
        if not isinstance(value, str):
            message = f"must be the path of a recipe, not {shown(value)}"
            self.problems.append(Problem.at(place, ("extends",), message))
            return root
        base_path = Path(os.path.normpath(path.parent / Path(value).expanduser()))
        if any(_same_file(base_path, each) for each in chain):
            names = " -> ".join(str(each) for each in (*chain, base_path))
            message = f"goes round in a circle: {names}"
            self.problems.append(Problem.at(place, ("extends",), message))
            return root
        base_place = Place(str(base_path), base_path.parent, 1, 1)
        base = self._mapping(_text_of(base_path, place, ("extends",)), base_place)
        base = self._extended(base, base_path, (*chain, base_path))
        return laid_over(base, root)

    # -------------------------------------------------------------------------------- validation

    def validated(self, root: Node) -> Recipe | None:
        """The recipe, if all is well; otherwise the problems are added to those there are.

        What is wrong is taken out and the rest validated again, because some checks run only
        where the others found nothing. Knock-on problems of what was taken out are dropped.
        """
        removed: list[Location] = []
        for _ in range(_MOST_ROUNDS):
            data = plain(root)
            try:
                recipe = Recipe.model_validate(data)
            except ValidationError as error:
                wrong = explained(error, data)
                self._note(root, wrong, removed)
                before: tuple[Location, ...] = tuple(removed)
                now: list[Location] = []
                for location, _, _ in wrong:
                    # Still wrong after it was taken out: it is required, so what holds it goes.
                    cut = location[:-1] if _inside(location, before) else location
                    if not _inside(cut, now):
                        now.append(_take_out(root, cut))
                removed += now
            else:
                self._check(root, recipe, removed)
                return recipe
        return None

    def _note(
        self, root: Node, wrong: Iterable[tuple[Location, str, bool]], removed: list[Location]
    ) -> None:
        for location, message, of_key in wrong:
            if not _touched(location, removed):
                self._add(Problem.at(place_of(root, location, of_key=of_key), location, message))

    def _check(self, root: Node, recipe: Recipe, removed: list[Location]) -> None:
        for found in findings(recipe):
            if not any(_touched(each, removed) for each in (found.location, *found.about)):
                place = place_of(root, found.location)
                self._add(Problem.at(place, found.location, found.message))

    def _add(self, problem: Problem) -> None:
        """Add a problem, unless its value could not even be read as YAML."""
        if not any((p.file, p.key) == (problem.file, problem.key) for p in self.problems):
            self.problems.append(problem)

    def in_order(self) -> list[Problem]:
        """The problems by file, the user's own first, and by line; those of `--set` last."""

        def order(problem: Problem) -> tuple[int, int, int]:
            return self.sources.index(problem.file), problem.line or 0, problem.column or 0

        return sorted(self.problems, key=order)


# ----------------------------------------------------------------------------------------- files


def _text_of(path: Path, place: Place, key: Location = ()) -> str:
    """What a recipe file says.

    Raises:
        RecipeError: It cannot be read; `place` and `key` are where it was named.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(4 * MOST_CHARACTERS + 1)  # of /dev/zero too
        return content.decode(
            "utf-8-sig", "replace" if len(content) > MOST_CHARACTERS else "strict"
        )
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        here = Place(str(path), path.parent, line, column)
        raise RecipeError([Problem.at(here, (), "not UTF-8 text")]) from error
    except (FileNotFoundError, ValueError) as error:
        message = f"there is no file {path}" if key else "there is no such file"
        raise RecipeError([Problem.at(place, key, message)], hint=_near(path)) from error
    except IsADirectoryError as error:
        message = f"{path} is a folder" if key else "is a folder, not a recipe"
        raise RecipeError([Problem.at(place, key, message)]) from error
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise RecipeError([Problem.at(place, key, message)]) from error


def _near(path: Path) -> str | None:
    """Recipes that may have been meant."""
    shipped = resources.recipes() / path.with_suffix(".yaml").name
    if is_file(shipped):
        return f"regforge comes with one of that name: {shipped}"
    try:
        names = [each.name for each in path.parent.glob("*.y*ml")]
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / near[0]}?" if near else None


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


# ------------------------------------------------------------------------------- slots and paths


def _open_empty_sections(root: Node) -> None:
    """Let `render:` with nothing below it say nothing, as when all its lines are comments."""
    for section in (*(_child(root, key) for key in SECTIONS), _child(root, "prompts", "llm")):
        if section and section.content is None:
            section.content = {}


def _spell_out_slots(root: Node) -> None:
    """Make `color` into `{name: color}`, so that `--set prompts.slots.0.values=...` works."""
    for slot in _items(_child(root, "prompts", "slots")):
        if isinstance(slot.content, str):
            slot.content = {"name": Entry(slot.place, Node(slot.place, slot.content))}


def _resolve_paths(root: Node) -> None:
    """Make paths absolute, each from the folder of the file that names it."""
    for location in (("subject", "images"), ("prompts", "messages"), ("prompts", "vocabulary")):
        _make_absolute(_child(root, *location))
    template = _child(root, "prompts", "template")
    if template and isinstance(template.content, str) and not shipped_template(template.content):
        _make_absolute(template)
    for slot in _items(_child(root, "prompts", "slots")):
        _make_absolute(_child(slot, "file"))
    for entry in _items(_child(root, "prompts", "exclude")):
        if not is_benchmark(str(entry.content)):
            _make_absolute(entry)
    _resolve_import(_child(root, "prompts", "import", "dataset"))


def _resolve_import(node: Node | None) -> None:
    """Make a dataset on this machine an absolute path, so that nothing takes it for a Hub address.

    An address becomes `user/name`: a page's URL could hold a password.
    """
    if node is None or not isinstance(node.content, str):
        return
    address = HubAddress.parse(node.content)
    here = node.place.folder / node.content
    if address is None or is_file(here) or is_folder(here):
        _make_absolute(node)
    else:
        node.content = str(address)


def _items(node: Node | None) -> Iterator[Node]:
    if node and isinstance(node.content, list):
        yield from node.content


def _make_absolute(node: Node | None) -> None:
    if node and isinstance(node.content, str) and node.content:
        path = node.place.folder / Path(node.content).expanduser()
        node.content = os.path.abspath(path)  # noqa: PTH100 (keeps symbolic links)


# ------------------------------------------------------------------------------------- taking out


def _inside(location: Location, removed: Iterable[Location]) -> bool:
    return any(location[: len(each)] == each for each in removed)


def _touched(location: Location, removed: Iterable[Location]) -> bool:
    """Whether a location lies in, or around, one that was taken out."""
    return _inside(location, removed) or any(_inside(each, (location,)) for each in removed)


def _take_out(root: Node, location: Location) -> Location:
    """Take a wrong value out of the recipe, or put a stand-in in its place.

    Keys are taken out and never items of lists, so that the other items keep their numbers.

    Returns:
        What was taken out: the location itself, or the nearest key around it.
    """
    owner: dict[str, Entry] = {}
    cut = location
    node: Node | None = root
    for depth, part in enumerate(location):
        content = node.content if node else None
        here = location[: depth + 1]
        if isinstance(content, dict) and (part in content or here in _STAND_INS):
            owner, cut = content, here
        node = _child(node, part)
    key = str(cut[-1])
    owner.pop(key, None)
    if cut in _STAND_INS:
        stand_in = _without_place(_STAND_INS[cut], root.place)
        owner[key] = Entry(root.place, stand_in)
    return cut


def _child(node: Node | None, *location: str | int) -> Node | None:
    for part in location:
        content = node.content if node else None
        if isinstance(content, dict) and part in content:
            node = content[str(part)].value
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            node = content[part]
        else:
            return None
    return node


def _without_place(value: Any, place: Place) -> Node:
    if isinstance(value, dict):
        below = {key: Entry(place, _without_place(each, place)) for key, each in value.items()}
        return Node(place, below)
    return Node(place, value)
