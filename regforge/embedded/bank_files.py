"""The phrase banks as they are written: YAML files, checked, with errors that name the line.

Knows which keys a bank file has and how to say where in it something is wrong. It does not know
which phrase suits what; `bank_phrases` does.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from regforge.errors import RegforgeError
from regforge.words import did_you_mean

Kind = Literal["living", "object"]
Location = tuple[int | str, ...]
"""Where in a file: the keys and list positions that lead there."""


class PhraseBankError(RegforgeError):
    """A bank file that cannot be used, or a question that the banks cannot answer."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Rules(_Strict):
    """What a phrase, or a whole block of them, goes with."""

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
    """One file's text, which can say where in it something is wrong."""

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
        """An error that names this file, the line and the key."""
        return PhraseBankError(
            f"{self.name}:{self._line(location)}: {_dotted(location)}: {message}"
        )

    def check_known(
        self, names: Iterable[str], valid: Collection[str], location: Location, what: str
    ) -> None:
        """Refuse a name that is not among the valid ones.

        Raises:
            PhraseBankError: The first such name, and the nearest valid one.
        """
        for name in names:
            if name not in valid:
                raise self.error(location, f"unknown {what} {name!r}.{did_you_mean(name, valid)}")

    def _line(self, location: Location) -> int:
        """The line of the innermost part of the location that the file has."""
        node = yaml.compose(self.text, Loader=_Loader)
        line = 1
        for step in location:
            found = _child(node, step)
            if found is None:
                break
            mark, node = found
            line = mark.start_mark.line + 1
        return line


def read_folder(folder: Traversable) -> dict[str, Source]:
    """File name -> source, for every `*.yaml` in a folder, which may lie in a zip.

    Raises:
        PhraseBankError: A file cannot be read.
    """
    return {
        file.name: Source(str(file), _read(file))
        for file in sorted(folder.iterdir(), key=str)
        if file.name.endswith(".yaml")
    }


def entries(
    source: Source, key: str, blocks: Iterable[Block], known: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, dict[str, frozenset[str]]]]:
    """Every phrase of a list of blocks with its rules: its block's and, on top, its own.

    Args:
        source: The file.
        key: Under which of its keys the blocks stand.
        blocks: What stands there.
        known: The valid names for each rule.

    Raises:
        PhraseBankError: A rule names something unknown, or a phrase is untidy or repeated.
    """
    seen: dict[str, str] = {}
    for number, block in enumerate(blocks):
        _check_rules(source, block, (key, number), known)
        for index, entry in enumerate(block.phrases):
            here = (key, number, "phrases", index)
            _check_rules(source, entry, here, known)
            _check_text(source, entry.phrase, here)
            essence = gist(entry.phrase)
            if essence in seen:
                raise source.error(here, f"{entry.phrase!r} repeats {seen[essence]!r}")
            seen[essence] = entry.phrase
            rules = Rules.model_fields
            yield (
                entry.phrase,
                {rule: frozenset(getattr(block, rule) + getattr(entry, rule)) for rule in rules},
            )


def plain(text: str) -> str:
    """Lower case, without hyphens, a leading article or superfluous space."""
    words = text.lower().replace("-", " ").split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in _ARTICLES else words)


def gist(text: str) -> str:
    """What is left of a phrase without articles: "on the porch" repeats "on a porch"."""
    return " ".join(word for word in plain(text).split() if word not in _ARTICLES)


_ARTICLES = {"a", "an", "the"}


def _check_rules(
    source: Source, rules: Rules, location: Location, known: Mapping[str, Collection[str]]
) -> None:
    for rule, valid in known.items():
        source.check_known(getattr(rules, rule), valid, (*location, rule), _WHAT[rule])


_WHAT = {
    "tags": "tag",
    "fits": "place tag",
    "avoids": "place tag",
    "only_for": "super-category or group",
    "not_for": "super-category or group",
}


def _check_text(source: Source, phrase: str, location: Location) -> None:
    if not phrase or phrase != " ".join(phrase.split()) or phrase[-1] in ".,;:!":
        raise source.error(location, f"missing text, or stray space or punctuation: {phrase!r}")


def _read(file: Traversable) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PhraseBankError(f"{file}: cannot be read as UTF-8 text: {error}") from error


def _child(node: yaml.Node | None, step: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    """The node that marks the place of a key or list item, and the node of its value."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(step)), None)
    return None


def _dotted(location: Location) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).lstrip(".") or "the whole file"
