"""Reads a file of any kind of recipe: what it extends, `--set`, and everything that may be wrong.

The parts are elsewhere: YAML with places in `yaml_nodes`, laying over in `overrides`, words in
`messages`. This module knows the order, and sees to it that all problems are reported together.
What is peculiar to one kind of recipe it learns from a `Form`; `loading` has them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from regforge import resources
from regforge.files import expanded, read_text
from regforge.recipe.checks import Finding
from regforge.recipe.messages import explained
from regforge.recipe.named_files import is_file
from regforge.recipe.overrides import apply_setting, laid_over, source_of
from regforge.recipe.problems import Location, Place, Problem, RecipeError, shown
from regforge.recipe.sections import RecipeDocument
from regforge.recipe.yaml_nodes import MOST_CHARACTERS, Entry, Node, place_of, plain, read_yaml
from regforge.words import nearest

_MOST_ROUNDS = 20
_MOST_TOLD = 1000
"""Wrong values that are told apart; with more of them it is no recipe, and the first ones do."""

R = TypeVar("R", bound=RecipeDocument)


@dataclass(frozen=True)
class Form(Generic[R]):
    """What one kind of recipe may say.

    Attributes:
        name: What messages call it.
        command: What it is for, as people type it.
        model: What it becomes.
        sections: Keys that may have nothing below them.
        stand_ins: What takes the place of required keys that are missing or wrong, so that the
            rest is checked.
        telling: Keys at the top that no other kind of recipe has.
        resolve_paths: Makes paths absolute, each from the folder of the file that names it.
        findings: What is wrong with a recipe whose single values are right.
        spell_out: Writes short forms out, before `--set` is carried out.
    """

    name: str
    command: str
    model: type[R]
    sections: Sequence[Location]
    stand_ins: Mapping[Location, Any]
    telling: frozenset[str]
    resolve_paths: Callable[[Node], None]
    findings: Callable[[R], Iterable[Finding]]
    spell_out: Callable[[Node], None] | None = None


def read_recipe(
    form: Form[R], path: Path, overrides: Sequence[str], others: Sequence[Form[Any]] = ()
) -> R:
    """Read a recipe and check all of it.

    Args:
        form: The kind of recipe that it should be.
        path: The YAML file.
        overrides: Settings such as `seed=1`, laid over the file one after the other.
        others: The kinds of recipes that it may have been taken for.

    Raises:
        RecipeError: Something is wrong; the error names everything that is, and where.
    """
    reading = _Reading((form, *others))
    root = reading.read_file(path)
    _refuse_other(form, others, root)
    return _as(form, reading, root, path, overrides)


def read_any_recipe(
    forms: Sequence[Form[Any]], path: Path, overrides: Sequence[str]
) -> RecipeDocument:
    """Read a recipe of the kind whose keys it has, the first kind where nothing tells.

    Raises:
        RecipeError: Something is wrong; the error names everything that is, and where.
    """
    reading = _Reading(forms)
    root = reading.read_file(path)
    keys = set(root.content) if isinstance(root.content, dict) else set()
    keys |= {setting.partition("=")[0].partition(".")[0].strip() for setting in overrides}
    form: Form[RecipeDocument] = max(forms, key=lambda form: len(keys & form.telling))
    return _as(form, reading, root, path, overrides)


def _as(form: Form[R], reading: _Reading, root: Node, path: Path, overrides: Sequence[str]) -> R:
    """What was read as a recipe of this form.

    Raises:
        RecipeError: Something is wrong.
    """
    if form.spell_out is not None:
        form.spell_out(root)
    for setting in overrides:
        reading.sources.append(source_of(setting))
        reading.problems += apply_setting(root, setting)
    form.resolve_paths(root)
    recipe = reading.validated(root, form)
    if reading.problems or recipe is None:
        raise RecipeError(reading.in_order())
    return recipe.read_from(Path(os.path.abspath(path)))  # noqa: PTH100 (keeps symbolic links)


def _refuse_other(form: Form[Any], others: Iterable[Form[Any]], root: Node) -> None:
    """Refuse a recipe of another kind, before each of its keys is found wrong.

    Raises:
        RecipeError: It is one.
    """
    keys = root.content.keys() if isinstance(root.content, dict) else set()
    for other in others:
        if keys & other.telling and not keys & form.telling:
            message = f"is a {other.name}, for {other.command}; here a {form.name} is needed"
            raise RecipeError([Problem.at(root.place, (), message)])


@dataclass
class _Reading:
    """One recipe, of one of some forms: what was read of it so far and what is wrong with it."""

    forms: Sequence[Form[Any]]
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
        for form in self.forms:
            _open_empty_sections(root, form.sections)
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
        base_path = Path(os.path.normpath(path.parent / expanded(value)))
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

    def validated(self, root: Node, form: Form[R]) -> R | None:
        """The recipe, if all is well; otherwise the problems are added to those there are.

        What is wrong is taken out and the rest validated again, because some checks run only
        where the others found nothing. Knock-on problems of what was taken out are dropped.
        """
        removed: list[Location] = []
        for _ in range(_MOST_ROUNDS):
            data = plain(root)
            try:
                recipe = form.model.model_validate(data)
            except ValidationError as error:
                wrong = explained(error, data, form.model, _MOST_TOLD)
                self._note(root, wrong, removed)
                if len(wrong) == _MOST_TOLD:
                    return None
                before: tuple[Location, ...] = tuple(removed)
                now: list[Location] = []
                for location, _, _ in wrong:
                    # Still wrong after it was taken out: it is required, so what holds it goes.
                    cut = location[:-1] if _inside(location, before) else location
                    if not _inside(cut, now):
                        now.append(_take_out(root, cut, form.stand_ins))
                removed += now
            else:
                self._check(root, recipe, form, removed)
                return recipe
        return None

    def _note(
        self, root: Node, wrong: Iterable[tuple[Location, str, bool]], removed: list[Location]
    ) -> None:
        for location, message, of_key in wrong:
            if not _touched(location, removed):
                self._add(Problem.at(place_of(root, location, of_key=of_key), location, message))

    def _check(self, root: Node, recipe: R, form: Form[R], removed: list[Location]) -> None:
        for found in form.findings(recipe):
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
        return read_text(path, 4 * MOST_CHARACTERS)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        here = Place(str(path), path.parent, line, column)
        raise RecipeError([Problem.at(here, (), "not UTF-8 text")]) from error
    except FileNotFoundError as error:
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
    near = nearest(path.name, names)
    return f"Did you mean {path.parent / near}?" if near else None


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def _open_empty_sections(root: Node, sections: Iterable[Location]) -> None:
    """Let `render:` with nothing below it say nothing, as when all its lines are comments."""
    for location in sections:
        section = child(root, *location)
        if section and section.content is None:
            section.content = {}


# ------------------------------------------------------------------------------------- taking out


def _inside(location: Location, removed: Iterable[Location]) -> bool:
    return any(location[: len(each)] == each for each in removed)


def _touched(location: Location, removed: Iterable[Location]) -> bool:
    """Whether a location lies in, or around, one that was taken out."""
    return _inside(location, removed) or any(_inside(each, (location,)) for each in removed)


def _take_out(root: Node, location: Location, stand_ins: Mapping[Location, Any]) -> Location:
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
        if isinstance(content, dict) and (part in content or here in stand_ins):
            owner, cut = content, here
        node = child(node, part)
    key = str(cut[-1])
    owner.pop(key, None)
    if cut in stand_ins:
        stand_in = _without_place(stand_ins[cut], root.place)
        owner[key] = Entry(root.place, stand_in)
    return cut


def child(node: Node | None, *location: str | int) -> Node | None:
    """The value at a location below another, or None if there is nothing."""
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
