"""Phrases and the YAML files that they stand in, checked, with errors that name the line."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from regforge.errors import RegforgeError
from regforge.words import did_you_mean, gist, plain

Kind = Literal["living", "object"]
Location = tuple[int | str, ...]
"""Where in a file: the keys and list positions that lead there."""


OWN_SLOTS = ("shape", "color", "texture", "motion")
"""Slots that every super-category's own file fills; `motion` is for living things only."""

SHARED_SLOTS = {"background": "places", "lighting": "lighting", "style": "styles"}
"""Slots that all super-categories draw from one file, and the name of that file."""

SLOTS = (*OWN_SLOTS, *SHARED_SLOTS)


class PhraseBankError(RegforgeError):
    """A bank file that cannot be used, or a question that the banks cannot answer."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Rules(_Strict):
    """Tags of a phrase or of a whole block of them, and what it goes with; see `Phrase`."""

    tags: list[str] = []
    fits: list[str] = []
    avoids: list[str] = []
    only_for: list[str] = []
    not_for: list[str] = []


class Entry(Rules):
    """One phrase; in YAML a plain string does if there is nothing more to say."""

    phrase: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"phrase": value} if isinstance(value, str) else value


class Block(Rules):
    """Phrases for which the same rules hold."""

    name: str = ""
    phrases: list[Entry]


class SharedFile(_Strict):
    """A slot that all super-categories draw from: places, lighting, styles."""

    tags: dict[str, str] = {}
    blocks: list[Block]


class Group(_Strict):
    """Class nouns that behave alike; without `fits` or `avoids` the super-category's hold."""

    also: list[str] = []
    fits: list[str] | None = None
    avoids: list[str] | None = None
    nouns: list[str]


class CategoryFile(_Strict):
    """A super-category: its class nouns in groups, and the slots that are its own."""

    kind: Kind
    default_group: str
    fits: list[str]
    avoids: list[str] = []
    markers: dict[str, str] = {}
    without_article: list[str] = []
    groups: dict[str, Group]
    shape: list[Block]
    color: list[Block]
    texture: list[Block]
    motion: list[Block] = []


_KEYS = {
    key for model in (Block, Entry, SharedFile, Group, CategoryFile) for key in model.model_fields
}
_WHAT = {
    "tags": "tag",
    **dict.fromkeys(("fits", "avoids"), "place tag"),
    **dict.fromkeys(("only_for", "not_for"), "super-category or group"),
}
_File = TypeVar("_File", SharedFile, CategoryFile)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


@dataclass(frozen=True)
class Source:
    """One file's text, which can tell where in it something is wrong."""

    name: str
    text: str

    def parse(self, model: type[_File]) -> _File:
        """The file's content.

        Raises:
            PhraseBankError: It is not YAML, or not of this shape.
        """
        try:
            data = yaml.load(self.text, Loader=_Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or error
            raise PhraseBankError(f"{self.name}{line}: not valid YAML: {problem}") from error
        try:
            return model.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            location, message = first["loc"], first["msg"]
            if first["type"] == "extra_forbidden":
                message = f"unknown key.{did_you_mean(str(location[-1]), _KEYS)}"
            raise self.error(location, message) from error

    def error(self, location: Location, message: str) -> PhraseBankError:
        """An error that names this file, the line of the innermost part it has, and the key."""
        node, line = yaml.compose(self.text, Loader=_Loader), 1
        for step in location:
            if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
                found = [(each, each) for each in node.value[step : step + 1]]
            elif isinstance(node, yaml.MappingNode):
                found = [pair for pair in node.value if pair[0].value == str(step)]
            else:
                break
            if not found:
                break
            mark, node = found[0]
            line = mark.start_mark.line + 1
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
        key = "".join(steps).lstrip(".") or "the whole file"
        return PhraseBankError(f"{self.name}:{line}: {key}: {message}")

    def check_known(
        self, names: Iterable[str], valid: Collection[str], location: Location, what: str
    ) -> None:
        """Refuse the first name that is not among the valid ones."""
        for name in names:
            if name not in valid:
                raise self.error(location, f"unknown {what} {name!r}.{did_you_mean(name, valid)}")

    def entries(
        self, key: str, blocks: Iterable[Block], known: Mapping[str, Collection[str]]
    ) -> Iterator[tuple[str, dict[str, frozenset[str]]]]:
        """Every phrase below a key with its rules: its block's and, on top, its own.

        Args:
            key: One of the file's keys.
            blocks: Its value.
            known: The valid names for each rule.

        Raises:
            PhraseBankError: A rule names something unknown, or a phrase is untidy or repeated.
        """
        seen: dict[str, str] = {}
        for number, block in enumerate(blocks):
            self._check_rules(block, (key, number), known)
            for index, entry in enumerate(block.phrases):
                here, text = (key, number, "phrases", index), entry.phrase
                self._check_rules(entry, here, known)
                if not text or text != " ".join(text.split()) or text[-1] in ".,;:!":
                    message = f"missing text, or stray space or punctuation: {text!r}"
                    raise self.error(here, message)
                if gist(text) in seen:
                    raise self.error(here, f"{text!r} repeats {seen[gist(text)]!r}")
                seen[gist(text)] = text
                rules = {rule: getattr(block, rule) + getattr(entry, rule) for rule in _WHAT}
                yield text, {rule: frozenset(names) for rule, names in rules.items()}

    def _check_rules(
        self, rules: Rules, location: Location, known: Mapping[str, Collection[str]]
    ) -> None:
        for rule, valid in known.items():
            self.check_known(getattr(rules, rule), valid, (*location, rule), _WHAT[rule])

    def check_category(self, file: CategoryFile, place_tags: Collection[str]) -> None:
        """Refuse a super-category that contradicts itself, or names a place tag that is none."""
        self.check_known([file.default_group], file.groups, ("default_group",), "group")
        for word, group in file.markers.items():
            self.check_known([group], file.groups, ("markers", word), "group")
        nouns = {noun for entry in file.groups.values() for noun in entry.nouns}
        self.check_known(file.without_article, nouns, ("without_article",), "class noun")
        places: list[tuple[Location, Group | CategoryFile]] = [((), file)]
        places += [(("groups", group), entry) for group, entry in file.groups.items()]
        for here, entry in places:
            self.check_known(entry.fits or (), place_tags, (*here, "fits"), "place tag")
            self.check_known(entry.avoids or (), place_tags, (*here, "avoids"), "place tag")
        if (file.kind == "living") != bool(file.motion):
            message = "living things need motions, and objects must have none"
            raise self.error(("motion",), message)


def check_nouns(sources: Mapping[str, Source], files: Mapping[str, CategoryFile]) -> None:
    """Refuse a class noun that stands in two groups."""
    owner: dict[str, str] = {}
    for name, file in files.items():
        for group, entry in file.groups.items():
            for number, noun in enumerate(entry.nouns):
                if plain(noun) in owner:
                    message = f"{noun!r} is already in {owner[plain(noun)]}"
                    raise sources[name].error(("groups", group, "nouns", number), message)
                owner[plain(noun)] = f"{name}.yaml, group {group}"


@dataclass(frozen=True, slots=True)
class Phrase:
    """One phrase, and what it goes with.

    Attributes:
        text: The words, ready to stand in a caption.
        slot: The slot it fills.
        tags: What it is; for a place these are what `fits` and `avoids` of others look at.
        fits: If not empty, it needs a place with at least one of these tags.
        avoids: It needs a place with none of these tags.
        only_for: If not empty, only these super-categories or groups use it.
        not_for: These super-categories or groups never use it.
    """

    text: str
    slot: str
    tags: frozenset[str] = frozenset()
    fits: frozenset[str] = frozenset()
    avoids: frozenset[str] = frozenset()
    only_for: frozenset[str] = frozenset()
    not_for: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.text


def compatible(first: Phrase, second: Phrase, *more: Phrase) -> bool:
    """Whether phrases can stand in one caption.

    Only a place restricts the others: no swimming in a kitchen, no starry sky there either.
    """
    chosen = (first, second, *more)
    choosy = [phrase for phrase in chosen if phrase.fits or phrase.avoids]
    return all(
        (not phrase.fits or not phrase.fits.isdisjoint(place.tags))
        and phrase.avoids.isdisjoint(place.tags)
        for phrase in choosy
        for place in chosen
        if place.slot == "background"
    )


@dataclass(frozen=True, slots=True)
class NounGroup:
    """Class nouns that behave alike, such as the songbirds."""

    names: frozenset[str]
    """Its names in `only_for` and `not_for`: its own, those in `also`, its super-category's."""
    nouns: tuple[str, ...]
    fits: frozenset[str]
    avoids: frozenset[str]

    def uses(self, phrase: Phrase) -> bool:
        """Whether the phrase is ever said of these nouns."""
        if not phrase.not_for.isdisjoint(self.names):
            return False
        if phrase.only_for:
            # A place reserved for this group needs no matching tag.
            return not phrase.only_for.isdisjoint(self.names)
        if phrase.slot != "background":
            return True
        # Unlike a phrase, a group that fits no tag fits no place but the reserved ones.
        return not self.fits.isdisjoint(phrase.tags) and self.avoids.isdisjoint(phrase.tags)


@dataclass(frozen=True, slots=True)
class Category:
    """A super-category: its groups of class nouns, and the phrases of its own file."""

    kind: Kind
    default: NounGroup
    groups: Mapping[str, NounGroup]
    without_article: frozenset[str]
    own: tuple[Phrase, ...]


def category_of(
    source: Source, name: str, file: CategoryFile, known: Mapping[str, set[str]]
) -> Category:
    """The super-category that a file declares, which is in order; its phrases are checked here."""
    groups = {
        group: NounGroup(
            names=frozenset({name, group, *entry.also}),
            nouns=tuple(entry.nouns),
            fits=frozenset(file.fits if entry.fits is None else entry.fits),
            avoids=frozenset(file.avoids if entry.avoids is None else entry.avoids),
        )
        for group, entry in file.groups.items()
    }
    own = (
        Phrase(text, slot, **rules)
        for slot in OWN_SLOTS
        for text, rules in source.entries(slot, getattr(file, slot), known)
    )
    without = frozenset(plain(noun) for noun in file.without_article)
    return Category(file.kind, groups[file.default_group], groups, without, tuple(own))


def read_folder(folder: Traversable) -> dict[str, Source]:
    """Name without suffix -> source, for every `*.yaml` in a folder, which may lie in a zip.

    Raises:
        PhraseBankError: A file cannot be read.
    """
    sources = {}
    for file in sorted(folder.iterdir(), key=str):
        if file.name.endswith(".yaml"):
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise PhraseBankError(f"{file}: cannot be read as UTF-8 text: {error}") from error
            sources[file.name.removesuffix(".yaml")] = Source(str(file), text)
    return sources
