"""Reads a recipe file of either kind: what it extends, `--set`, and everything that may be wrong.

Sees to it that all problems are reported together, each with its place. The parts are elsewhere:
YAML with places in `yaml_nodes`, words in `problems`, what does not fit together in the checks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from regforge.files import expanded, read_text, recipes_folder
from regforge.hub.errors import HubAddress
from regforge.recipe.checks import findings
from regforge.recipe.model_checks import Finding, is_embedded
from regforge.recipe.models import (
    Recipe,
    is_benchmark,
    shipped_template,
)
from regforge.recipe.named_files import is_file, is_folder, names_recipe
from regforge.recipe.problems import Location, Place, Problem, RecipeError, explained, shown
from regforge.recipe.sections import Section
from regforge.recipe.single_files import hub_file
from regforge.recipe.subjects import by_subject, require_photos, slug
from regforge.recipe.training import TrainingRecipe
from regforge.recipe.training_checks import training_findings, uses_regularization
from regforge.recipe.yaml_nodes import (
    MOST_CHARACTERS,
    Dumper,
    Node,
    apply_setting,
    child,
    laid_over,
    place_of,
    plain,
    read_yaml,
    source_of,
)
from regforge.words import listed, path_near

AnyRecipe = Recipe | TrainingRecipe
RecipeSource = str | os.PathLike[str] | Mapping[str, Any]
"""A YAML file, or what one would say: relative paths in it start at the current directory."""

_MOST_ROUNDS = 20
_MOST_TOLD = 1000
"""Wrong values that are told apart; with more of them it is no recipe, and the first ones do."""

PATHS: dict[type[AnyRecipe], dict[tuple[str, ...], str]] = {
    Recipe: {
        ("subject", "images"): "path",
        ("prompts", "messages"): "path",
        ("prompts", "vocabulary"): "path",
        ("prompts", "template"): "template",
        ("prompts", "template", "*", "file"): "template",
        ("prompts", "slots", "*", "file"): "path",
        ("prompts", "exclude", "*"): "exclusion",
        ("prompts", "import", "dataset"): "dataset",
        ("curate", "alignment", "model"): "model",
        ("render", "vae"): "model",
        ("render", "model"): "model",
        ("render", "config"): "model",
        ("render", "lora", "*", "path"): "model",
        ("render", "workflow"): "path",
        ("render", "folder"): "path",
    },
    TrainingRecipe: {
        ("subject", "images"): "path",
        ("regularization", "dataset"): "dataset",
        ("base_model",): "model",
        ("config",): "model",
    },
}
"""The keys whose values may be paths, and what they are otherwise; `*` is each item of a list."""


@dataclass(frozen=True)
class _Kind:
    """What is peculiar to one kind of recipe.

    `subject` takes the place of one that is missing or wrong, so that the rest is checked.
    """

    name: str
    command: str
    model: type[AnyRecipe]
    subject: dict[str, str]
    findings: Callable[[Any], Iterable[Finding]]

    @property
    def stand_ins(self) -> dict[Location, Any]:
        """What takes the place of required keys."""
        required: dict[Location, Any] = {("name",): "unnamed", ("subject",): self.subject}
        for key in self.subject.keys() - {"kind"}:
            required["subject", key] = self.subject[key]
        return required

    @property
    def telling(self) -> set[str]:
        """Keys at the top that the other kind of recipe does not have."""
        top = {location[0] for location in _sections(self.model)} - {"subject"}
        return top | ({"base_model"} & self.model.model_fields.keys())


_OBJECT = {"class_noun": "thing", "kind": "object"}
_PHOTOS = {"class_noun": "thing", "images": "."}
_DATASET = _Kind("dataset recipe", "`regforge run`", Recipe, _OBJECT, findings)
_TRAINING = _Kind("training recipe", "`regforge train`", TrainingRecipe, _PHOTOS, training_findings)


def load_recipe(source: RecipeSource, overrides: Sequence[str] = ()) -> Recipe:
    """Read a dataset recipe and check all of it.

    Args:
        source: The YAML file, or a mapping of the same keys.
        overrides: Settings such as `prompts.count=50`, laid over the file one after the other.
            Their values are YAML, and relative paths in them start at the current directory.

    Returns:
        The recipe, with what it extends carried out and all paths absolute.

    Raises:
        RecipeError: Something is wrong; the error names everything that is, and where.
    """
    recipe = _load(source, overrides, _DATASET)
    assert isinstance(recipe, Recipe)
    return recipe


def load_training_recipe(source: RecipeSource, overrides: Sequence[str] = ()) -> TrainingRecipe:
    """Read a training recipe and check all of it; see `load_recipe`.

    Where `regularization.dataset` is a recipe, what is wrong with that is said afterwards.
    """
    recipe = _load(source, overrides, _TRAINING)
    assert isinstance(recipe, TrainingRecipe)
    return recipe


def load_any_recipe(source: RecipeSource, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe of either kind, by the keys that it has; see `load_recipe`."""
    return _load(source, overrides, None)


def load_recipes(
    source: RecipeSource,
    overrides: Sequence[str] = (),
    only: Collection[str] = (),
    *,
    training: bool | None = None,
) -> dict[str, AnyRecipe]:
    """Read a recipe over one or several subjects; see `load_recipe`.

    Args:
        source: The YAML file, or a mapping of the same keys.
        overrides: Settings such as `prompts.count=50`.
        only: Names of those that are wanted, as folders have them or as the recipe does; all by
            default.
        training: Whether it has to be a training recipe; either kind will do by default.

    Returns:
        A recipe for each subject, by the subject's name; of a recipe with `subject` that recipe
        alone, under "".

    Raises:
        RecipeError: Something is wrong with one of them; or a name of `only` is none of theirs.
    """
    wanted = {None: None, True: _TRAINING, False: _DATASET}[training]
    path, kind, nodes, reading = _read(source, overrides, wanted)
    names = {slug(name) for name in only}
    if unknown := next((name for name in only if slug(name) not in nodes), None):
        there = "has one" if "" in nodes else f"has {listed(sorted(nodes))}"
        message = f"there is no subject {unknown!r}; the recipe {there}"
        raise RecipeError([Problem.at(Place(str(path or ""), Path()), ("subjects",), message)])
    recipes, problems = dict[str, AnyRecipe](), dict[Problem, None]()
    nodes = {name: node for name, node in nodes.items() if not only or name in names}
    require_photos(nodes)
    for name, node in nodes.items():
        try:
            recipes[name] = _validated(path, kind, node, reading, name)
        except RecipeError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise RecipeError(problems)
    return recipes


def dataset_recipe_of(recipe: TrainingRecipe) -> Recipe | None:
    """The dataset recipe that `regularization.dataset` names, read once; None if it is a dataset.

    Raises:
        RecipeError: Something is wrong with it; the places are those in its own file.
    """
    named = recipe.regularization.dataset
    if named is None or not uses_regularization(recipe) or not names_recipe(named):
        return None
    if recipe._dataset is None or recipe._dataset[0] != named:
        recipe._dataset = named, _load(named, (), _DATASET, recipe._subject_name)
    made_by = recipe._dataset[1]
    assert isinstance(made_by, Recipe)
    return made_by


def _load(
    source: RecipeSource, overrides: Sequence[str], kind: _Kind | None, subject: str = ""
) -> AnyRecipe:
    """The recipe, or of several subjects the one of that name."""
    path, kind, nodes, reading = _read(source, overrides, kind)
    subject = "" if "" in nodes else subject
    if subject not in nodes:
        wanted = f"{subject!r} is none of them" if subject else "here one is needed"
        message = f"is about several subjects ({listed(list(nodes))}), and {wanted}"
        hint = None if subject else "In Python, `load_recipes` gives a recipe for each."
        raise RecipeError([Problem.at(Place(str(path or ""), Path()), (), message)], hint=hint)
    return _validated(path, kind, nodes[subject], reading, subject)


def _read(
    source: RecipeSource, overrides: Sequence[str], kind: _Kind | None
) -> tuple[Path | None, _Kind, dict[str, Node], _Reading]:
    """The file, its kind, and its subjects' recipes; what was wrong is in the reading."""
    reading = _Reading()
    if isinstance(source, Mapping):
        path, root = None, reading.read_mapping(source)
    else:
        path = Path(source)
        root = reading.read_file(path)
    keys = set(root.content) if isinstance(root.content, dict) else set()
    if kind is None:
        keys |= {setting.partition("=")[0].partition(".")[0].strip() for setting in overrides}
        kind = max((_DATASET, _TRAINING), key=lambda each: len(keys & each.telling))
    other = _TRAINING if kind is _DATASET else _DATASET
    if keys & other.telling and not keys & kind.telling:  # before each of its keys is found wrong
        message = f"is a {other.name}, for {other.command}; here a {kind.name} is needed"
        raise RecipeError([Problem.at(root.place, (), message)])
    for slot in _nodes(root, ("prompts", "slots", "*")):  # for `--set prompts.slots.0.values=...`
        _spell_out(slot, "name")
    for setting in overrides:
        reading.sources.append(source_of(setting))
        reading.problems += apply_setting(root, setting)
    return path, kind, by_subject(root, counted=kind is _DATASET), reading


def _validated(
    path: Path | None, kind: _Kind, root: Node, read: _Reading, subject: str = ""
) -> AnyRecipe:
    reading = replace(read, problems=list(read.problems))
    _resolve_paths(root, kind.model)
    recipe = reading.validated(root, kind)
    if reading.problems or recipe is None:
        raise RecipeError(reading.in_order())
    recipe._subject_name = subject
    if isinstance(recipe, TrainingRecipe):
        dataset_recipe_of(recipe)
    return recipe.known(source=path and Path(os.path.abspath(path)))  # noqa: PTH100 (keeps symbolic links)


def _sections(model: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys below which there are keys."""
    for name, described in model.model_fields.items():
        below = described.annotation
        if isinstance(below, type) and issubclass(below, Section):
            yield (*above, name)
            yield from _sections(below, (*above, name))


@dataclass
class _Reading:
    """One recipe on its way: the files and settings that it was read from, what is wrong so far."""

    sources: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def read_file(
        self, path: Path, named_at: Place | None = None, chain: tuple[Path, ...] = ()
    ) -> Node:
        """The file as a mapping, laid over the recipe that it extends.

        Raises:
            RecipeError: It is no mapping, or cannot be read at all.
        """
        place = Place(str(path), path.parent, 1, 1)
        return self._read(_text_of(path, named_at), place, (*chain, path))

    def read_mapping(self, source: Mapping[str, Any]) -> Node:
        """The recipe that a mapping says, laid over what it extends.

        Raises:
            RecipeError: It holds what no recipe can say.
        """
        place = Place("", Path.cwd())
        try:
            text = yaml.dump(dict(source), Dumper=Dumper, sort_keys=False, allow_unicode=True)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            message = f"holds what YAML cannot say: {error.args[-1]!r}"
            raise RecipeError([Problem.at(place, (), message)]) from None
        return self._read(text, place, ())

    def _read(self, text: str, place: Place, chain: tuple[Path, ...]) -> Node:
        self.sources.append(place.source)
        root, problems = read_yaml(text, place)
        if root is None or not isinstance(root.content, dict):
            given = shown(root.content) if root else "an empty file"
            advice = "a recipe is a mapping that begins with `name:`, not " + given
            raise RecipeError(problems or [Problem.at(place, (), advice)])
        self.problems += problems
        for location in (*_sections(Recipe), *_sections(TrainingRecipe)):
            section = child(root, *location)
            if section and section.content is None:  # all its lines may be comments
                section.content = {}
        # Problems of the document as a whole are said of its beginning.
        return self._extended(Node(place, root.content), chain)

    def _extended(self, root: Node, chain: tuple[Path, ...]) -> Node:
        """The root without `extends`, laid over what it names."""
        assert isinstance(root.content, dict)
        named = root.content.pop("extends", None)
        if named is None or named.content is None:
            return root
        value, place = named.content, named.place
        if not isinstance(value, str):
            message = f"must be the path of a recipe, not {shown(value)}"
        else:
            base = Path(os.path.normpath(place.folder / expanded(value)))
            if not any(_same_file(base, each) for each in chain):
                below = self.read_file(base, place, chain)
                assert isinstance(below.content, dict)
                for one, other in (("subject", "subjects"), ("subjects", "subject")):
                    if one in root.content and other not in root.content:
                        below.content.pop(other, None)
                return laid_over(below, root)
            message = f"goes round in a circle: {' -> '.join(map(str, (*chain, base)))}"
        self.problems.append(Problem.at(place, ("extends",), message))
        return root

    def validated(self, root: Node, kind: _Kind) -> AnyRecipe | None:
        """The recipe, if all is well; otherwise the problems are added to those there are.

        What is wrong is taken out and the rest validated again, because some checks run only
        where the others found nothing. Knock-on problems of what was taken out are dropped.
        """
        removed: list[Location] = []
        for _ in range(_MOST_ROUNDS):
            data = plain(root)
            try:
                recipe = kind.model.model_validate(data)
            except ValidationError as error:
                wrong = explained(error, data, kind.model, _MOST_TOLD)
                for location, message, of_key in wrong:
                    if not _touched(location, removed):
                        self._add(location, message, place_of(root, location, of_key=of_key))
                if len(wrong) == _MOST_TOLD:
                    return None
                now: list[Location] = []
                for location, _, _ in wrong:
                    # Still wrong after it was taken out: it is required, so what holds it goes.
                    cut = location[:-1] if _inside(location, removed) else location
                    if not _inside(cut, now):
                        now.append(_take_out(root, cut, kind.stand_ins))
                removed += now
            else:
                for found in kind.findings(recipe):
                    if not any(_touched(each, removed) for each in (found.location, *found.about)):
                        self._add(found.location, found.message, place_of(root, found.location))
                return recipe
        return None

    def _add(self, location: Location, message: str, place: Place) -> None:
        """Add a problem, unless its value could not even be read as YAML."""
        problem = Problem.at(place, location, message)
        if not any((p.file, p.key) == (problem.file, problem.key) for p in self.problems):
            self.problems.append(problem)

    def in_order(self) -> list[Problem]:
        """The problems by file, the user's own first, and by line; those of `--set` last."""

        def order(problem: Problem) -> tuple[int, int, int]:
            files = [*self.sources, problem.file]  # that of a subject's folder was not read here
            return files.index(problem.file), problem.line or 0, problem.column or 0

        return sorted(self.problems, key=order)


def _text_of(path: Path, named_at: Place | None) -> str:
    """What a recipe file says.

    Raises:
        RecipeError: It cannot be read; the problem is where another recipe named it, if one did.
    """
    place, key = named_at or Place(str(path), path.parent), ("extends",) if named_at else ()
    hint = None
    try:
        return read_text(path, 4 * MOST_CHARACTERS)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        place, key, message = Place(str(path), path.parent, line, column), (), "not UTF-8 text"
    except FileNotFoundError:
        message = f"there is no file {path}" if key else "there is no such file"
        hint = _recipe_near(path)
    except IsADirectoryError:
        message = f"{path} is a folder" if key else "is a folder, not a recipe"
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
    raise RecipeError([Problem.at(place, key, message)], hint=hint)


def _recipe_near(path: Path) -> str | None:
    """The recipe that may have been meant."""
    shipped = recipes_folder() / path.with_suffix(".yaml").name
    if is_file(shipped):
        return f"regforge comes with one of that name: {shipped}"
    return path_near(path, "*.y*ml")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


# ------------------------------------------------------------------------------------- taking out


def _inside(location: Location, removed: Iterable[Location]) -> bool:
    return any(location[: len(each)] == each for each in removed)


def _touched(location: Location, removed: Iterable[Location]) -> bool:
    """Whether a location lies in, or around, one that was taken out."""
    return _inside(location, removed) or any(_inside(each, (location,)) for each in removed)


def _take_out(root: Node, location: Location, stand_ins: dict[Location, Any]) -> Location:
    """Take a wrong value out of the recipe, or put a stand-in in its place.

    Keys are taken out and never items of lists, so that the other items keep their numbers.

    Returns:
        What was taken out: the location itself, or the nearest key around it.
    """
    owner: dict[str, Node] = {}
    cut = location
    for depth, part in enumerate(location):
        holder = child(root, *location[:depth])
        content = holder.content if holder else None
        here = location[: depth + 1]
        if isinstance(content, dict) and (part in content or here in stand_ins):
            owner, cut = content, here
    key = str(cut[-1])
    owner.pop(key, None)
    if cut in stand_ins:
        value = stand_ins[cut]
        if isinstance(value, dict):
            value = {k: Node(root.place, v) for k, v in value.items()}
        owner[key] = Node(root.place, value)
    return cut


# ----------------------------------------------------------------------------------------- paths


def may_be_path(value: str, what: str) -> bool:
    """Whether a value is a path, as far as the words alone tell; see `PATHS`."""
    match what:
        case "template":
            return not shipped_template(value)
        case "exclusion":
            return not is_benchmark(value)
        case "dataset":
            return names_recipe(value) or HubAddress.parse(value, dataset=True) is None
        case "model":
            remote = is_embedded(value) or HubAddress.parse(value) or hub_file(value)
            return bool(value.strip()) and not remote
    return True


def _resolve_paths(root: Node, model: type[AnyRecipe]) -> None:
    """Make paths absolute, each from the folder of the file that names it.

    What lies beside the recipe is taken for a path and never looked for on the Hub. An address
    becomes `user/name`: a page's URL could hold a password.
    """
    _spell_out_loras(child(root, "render", "lora"))
    renderer = child(root, "render", "renderer")
    for location, what in PATHS[model].items():
        if location == ("render", "model") and renderer and renderer.content != "local":
            continue
        for node in _nodes(root, location):
            value = node.content
            if not isinstance(value, str) or not value or (what == "model" and not value.strip()):
                continue
            here = node.place.folder / value
            named = what in ("dataset", "model") and (is_file(here) or is_folder(here))
            if named or may_be_path(value, what):
                path = node.place.folder / expanded(value)
                node.content = os.path.abspath(path)  # noqa: PTH100 (keeps symbolic links)
            elif what == "dataset":
                node.content = str(HubAddress.parse(value, dataset=True))


def _nodes(node: Node | None, location: Sequence[str]) -> Iterator[Node]:
    if node is None or not location:
        yield from [node] if node else []
    elif location[0] != "*":
        yield from _nodes(child(node, location[0]), location[1:])
    elif isinstance(node.content, list):
        for each in node.content:
            yield from _nodes(each, location[1:])


def _spell_out_loras(node: Node | None) -> None:
    """Make each LoRA into `{path: ...}`, and what holds them into a list."""
    if node is None or node.content is None:
        return
    if not isinstance(node.content, list):
        node.content = [Node(node.place, node.content)]
    for each in node.content:
        _spell_out(each, "path")


def _spell_out(node: Node, key: str) -> None:
    if isinstance(node.content, str):
        node.content = {key: Node(node.place, node.content)}
