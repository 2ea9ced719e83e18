"""YAML with places: every value and every key knows the line and the column it stands in.

The scalars are those of YAML 1.2's core schema: `no` and `on` are words, `1e-4` is a number, and
a date is text. No tag makes a Python object. Knows nothing about what a recipe may say, and how
one is laid over another: `extends`, and `--set key=value`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from regforge.errors import RegforgeError
from regforge.recipe.problems import Location, Place, Problem
from regforge.words import beginning, counted

MOST_CHARACTERS = 1_000_000
MOST_VALUES = 100_000
"""Aliases count each time they are used: a few lines of YAML can stand for billions of values."""
DEEPEST = 50
_MOST_DIGITS = 100
_MOST_PROBLEMS = 1000
_HALVES = re.compile("[\ud800-\udfff]")

Scalar = str | int | float | bool | None

_TAG = "tag:yaml.org,2002:"


@dataclass(slots=True)
class Node:
    """A value and its place; what a mapping holds has the place of its key beside."""

    place: Place
    content: Scalar | dict[str, Node] | list[Node]
    key: Place | None = None


def plain(node: Node) -> Any:
    """The value without places: scalars, dicts and lists."""
    if isinstance(node.content, dict):
        return {key: plain(value) for key, value in node.content.items()}
    if isinstance(node.content, list):
        return [plain(item) for item in node.content]
    return node.content


def child(node: Node | None, *location: str | int) -> Node | None:
    """The value at a location below another, or None if there is nothing."""
    for part in location:
        content = node.content if node else None
        if isinstance(content, dict) and part in content:
            node = content[str(part)]
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            node = content[part]
        else:
            return None
    return node


def place_of(root: Node, location: Location, *, of_key: bool = False) -> Place:
    """Where a value (or its key) stands; of something missing, where it would have stood."""
    node = root
    for part in location:
        below = child(node, part)
        if below is None:  # what is missing in a section is missing at the section's name
            return node.key or node.place
        node = below
    return (of_key and node.key) or node.place


def read_yaml(text: str, place: Place) -> tuple[Node | None, list[Problem]]:
    """Read one YAML document.

    Args:
        text: The document.
        place: Of the whole. Without a line, all its values are given this place (for text that
            is in no file); otherwise they get their own lines and columns.

    Returns:
        The document, and what is wrong with it as YAML. None in place of the document if it is
        empty or cannot be read at all.
    """
    reader = _Reader(place)
    node = reader.document(text)
    return node, reader.problems


class _Composer(yaml.composer.Composer):
    """Composes not too many nodes."""

    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, unless there are too many."""
        self.composed += 1
        if self.composed > MOST_VALUES:
            raise _TooMuch(
                f"it holds more than {MOST_VALUES:,} keys and values; long lists belong into text "
                "files (`file:` of a slot)",
                None,
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


class _Loader(_Composer, yaml.SafeLoader):
    """Reads the scalars of YAML 1.2's core schema."""


_READ_DIFFERENTLY = re.compile(r"[\t\ufeff?!&]|[|>]#|:\s*[,}\]]")
"""Where libyaml takes what PyYAML's own parser refuses, or puts an empty value elsewhere."""

_LIBYAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # where PyYAML was built with it


class _Quick(_Composer, _LIBYAML):  # type: ignore[misc]
    """The same with libyaml's parser, several times as fast; what it complains of says less."""

    def __init__(self, text: str) -> None:
        _LIBYAML.__init__(self, text)
        self.anchors: dict[str, yaml.Node] = {}  # of a composer, which libyaml's loader is none


class Dumper(yaml.SafeDumper):
    """Writes YAML that `read_yaml` reads back to the same values."""

    def increase_indent(
        self,
        flow: bool = False,
        indentless: bool = False,  # noqa: ARG002
    ) -> None:
        """Indent lists below their key, as people do."""
        return super().increase_indent(flow, False)


def _others(dumper: Dumper, value: Any) -> yaml.Node:
    """What Python users mean by a path, an enumeration's text, a NumPy number or array."""
    if isinstance(value, os.PathLike):
        return _text(dumper, str(os.fspath(value)))
    if isinstance(value, str):
        return _text(dumper, str.__str__(value))
    if hasattr(value, "tolist"):
        return dumper.represent_data(value.tolist())
    return dumper.represent_undefined(value)


def _text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    # Only double quotes keep line breaks as they are.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


Dumper.add_multi_representer(object, _others)
Dumper.add_representer(str, _text)
Dumper.add_representer(tuple, Dumper.represent_list)

_LOADERS: tuple[Any, ...] = (_Quick, _Loader)
for _class in (*_LOADERS, Dumper):
    _class.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    for _class in (*_LOADERS, Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_pattern})\\Z"), _first)
# YAML 1.1 readers take these for something else; quoted, they are text to everybody.
Dumper.add_implicit_resolver(
    f"{_TAG}timestamp",
    re.compile(r"(?:y|n|yes|no|on|off|=|[-+0-9][0-9_:.eE+-]*|\d{4}-\d.*)\Z", re.IGNORECASE),
    list("yYnNoO=-+0123456789"),
)


def _composed(text: str) -> yaml.Node | None:
    if not _READ_DIFFERENTLY.search(text):
        with suppress(yaml.YAMLError, UnicodeEncodeError):
            return yaml.compose(text, Loader=_Quick)
    return yaml.compose(text, Loader=_Loader)


@dataclass
class _Reader:
    place: Place
    problems: list[Problem] = field(default_factory=list)
    values: int = 0
    active: list[yaml.Node] = field(default_factory=list)

    def document(self, text: str) -> Node | None:
        if len(text) > MOST_CHARACTERS:
            self._problem(
                None,
                (),
                f"larger than {MOST_CHARACTERS:,} characters; long lists belong into text files "
                "(`file:` of a slot)",
            )
            return None
        try:
            composed = _composed(text)
            return None if composed is None else self._node(composed, ())
        except yaml.MarkedYAMLError as error:
            mark, message = _in_plain_words(error)
            self._problem(mark, (), message)
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            line, column = before.count("\n") + 1, error.position - before.rfind("\n")
            place = self.place if self.place.line is None else self._at(line, column)
            self.problems.append(
                Problem.at(place, (), f"control character {chr(error.character)!a}")
            )
        except RecursionError:
            self._problem(None, (), "nested too deeply")
        except _TooMuch as error:
            self.problems.append(self._told(error.mark, (), str(error)))
        return None

    def _node(self, node: yaml.Node, location: Location) -> Node:
        self.values += 1
        if self.values > MOST_VALUES:
            raise _TooMuch(
                f"its aliases stand for more than {MOST_VALUES:,} values", node.start_mark
            )
        if node in self.active:
            raise _TooMuch("an alias that contains itself", node.start_mark)
        if len(location) > DEEPEST:
            raise _TooMuch("nested too deeply", node.start_mark)
        place = self._of(node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return Node(place, self._scalar(node, location))
        self.active.append(node)
        self._refuse_tag(node, location)
        content: dict[str, Node] | list[Node]
        if isinstance(node, yaml.MappingNode):
            content = self._mapping(node, location)
        else:
            content = [self._node(item, (*location, n)) for n, item in enumerate(node.value)]
        self.active.pop()
        return Node(place, content)

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                merged.append(value)
            elif not isinstance(key, yaml.ScalarNode):
                self._problem(key.start_mark, location, "a key must be text")
            elif _HALVES.search(key.value):
                self._problem(key.start_mark, location, "half of a character in a key")
            elif key.value in entries:
                first = entries[key.value].key
                also = f"; the first is in line {first.line}" if first and first.line else ""
                self._problem(key.start_mark, (*location, key.value), f"given twice{also}")
            else:
                below = self._node(value, (*location, key.value))
                below.key = self._of(key.start_mark)
                entries[key.value] = below
        for each in merged:
            for name, value in self._merged(each, location):
                entries.setdefault(name, value)
        return entries

    def _merged(self, node: yaml.Node, location: Location) -> Iterator[tuple[str, Node]]:
        """The entries that `<<: *anchor` brings; earlier ones win."""
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(each, yaml.MappingNode):
                content = self._node(each, location).content
                yield from content.items() if isinstance(content, dict) else ()
            else:
                self._problem(each.start_mark, location, "`<<` takes mappings alone")

    def _scalar(self, node: yaml.ScalarNode, location: Location) -> Scalar:
        text = str(node.value)
        try:
            match node.tag.removeprefix(_TAG):
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int" if len(text) <= _MOST_DIGITS:
                    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
                case "int":  # Python itself writes out no number of 4,300 digits
                    raise ValueError
                case "float":
                    return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            self._problem(node.start_mark, location, "not a number that can be read")
            return None
        self._refuse_tag(node, location)
        if _HALVES.search(text):
            self._problem(node.start_mark, location, "half of a character, which no file can hold")
        return text

    def _refuse_tag(self, node: yaml.Node, location: Location) -> None:
        if node.tag not in (f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map", f"{_TAG}merge"):
            tag = node.tag.replace(_TAG, "!!")
            self._problem(node.start_mark, location, f"the tag {tag} has no place in a recipe")

    def _problem(self, mark: yaml.Mark | None, location: Location, message: str) -> None:
        if len(self.problems) == _MOST_PROBLEMS:
            raise _TooMuch("more is wrong with it than can be told", mark)
        self.problems.append(self._told(mark, location, message))

    def _told(self, mark: yaml.Mark | None, location: Location, message: str) -> Problem:
        return Problem.at(self._of(mark) if mark else self.place, location, message)

    def _of(self, mark: yaml.Mark) -> Place:
        return self.place if self.place.line is None else self._at(mark.line + 1, mark.column + 1)

    def _at(self, line: int, column: int) -> Place:
        return Place(self.place.source, self.place.folder, line, column)


class _TooMuch(RegforgeError):
    """Never leaves this module."""

    def __init__(self, message: str, mark: yaml.Mark | None) -> None:
        super().__init__(message)
        self.mark = mark


# What a parser's complaint is likely to mean: a part of it, whether to look where the complaint is
# or where what it is about began, and the words.
_MEANINGS: tuple[tuple[str, Literal["here", "start"], str], ...] = (
    ("'\\t'", "here", "a tab; YAML is indented with spaces"),
    ("a single document", "here", "a second document begins; a recipe is one YAML document"),
    ("found character '", "here", "text that begins with this character must stand in quotes"),
    ("a quoted scalar; found unexpected end", "start", "this quote is never closed"),
    ("could not find expected ':'", "start", "expected `key: value`; there is no ':' here"),
    (
        "mapping values are not allowed",
        "here",
        "a ':' that does not fit: put the text in quotes, or check the indentation",
    ),
    ("a flow sequence", "start", "'[' is never closed, or a comma is missing in the list"),
    ("a flow node", "here", "a value is missing, or a bracket is never closed"),
    ("a flow mapping", "start", "'{' is never closed, or a comma is missing between its keys"),
    ("sequence entries are not allowed", "here", "a list begins in the line below its key"),
    (
        "found '<scalar>'",
        "here",
        "text behind the end of a value; check the quotes and the indentation",
    ),
    ("a block", "here", "does not line up with the lines above; check the indentation"),
    ("undefined alias", "here", "an alias (*) without an anchor (&) of that name before it"),
    (
        "unknown escape character",
        "here",
        "a backslash has a meaning in double quotes; use single quotes",
    ),
)


def _in_plain_words(error: yaml.MarkedYAMLError) -> tuple[yaml.Mark | None, str]:
    said = " ".join(f"{error.context or ''}; {error.problem or ''}".split())
    here = error.problem_mark or error.context_mark
    for part, where, meaning in _MEANINGS:
        if part in said:
            return (here if where == "here" else error.context_mark or here), meaning
    return here, f"not YAML: {said.strip('; ')}"


# ------------------------------------------------------------------------- one laid over another

_REPLACED_WHOLE = ("prompts", "sets")
"""Its shares are one statement: a share of a base recipe must not leak into it."""


def laid_over(base: Node, over: Node, location: Location = ()) -> Node:
    """The base with what the other says laid over it; neither is changed.

    Mappings merge key by key; lists and single values replace what was there.
    """
    below, above = base.content, over.content
    if location == _REPLACED_WHOLE or not isinstance(below, dict) or not isinstance(above, dict):
        return over
    merged = {
        key: laid_over(below[key], value, (*location, key)) if key in below else value
        for key, value in above.items()
    }
    return replace(over, content=below | merged)


def source_of(setting: str) -> str:
    """What messages call a setting."""
    setting = setting if setting.isprintable() else ascii(setting)
    return f"--set {beginning(setting)}"


def apply_setting(root: Node, setting: str) -> list[Problem]:
    """Carry out one `--set key=value` on a recipe.

    The key's parts are separated by dots, and a number counts the items of a list from 0. The
    value is YAML: `50`, `null`, `[a, b]`.

    Returns:
        What is wrong with the setting; if anything is, the recipe is as it was.
    """
    key, equals, text = setting.partition("=")
    place = Place(source_of(setting), Path.cwd())
    parts = key.strip().split(".")
    if not equals or len(parts) > DEEPEST or not all(re.fullmatch(r"[\w-]+", p) for p in parts):
        return [Problem.at(place, (), "expected key=value, such as seed=1")]
    if parts == ["extends"]:
        return [Problem.at(place, ("extends",), "can be said only in a file")]
    value, problems = read_yaml(text, place)
    if not problems:
        return _put(root, parts, value or Node(place, None))
    return [
        replace(problem, key=".".join(filter(None, (key, problem.key)))) for problem in problems
    ]


def _put(node: Node, parts: list[str], value: Node) -> list[Problem]:
    for number, part in enumerate(parts):
        content, is_last = node.content, number + 1 == len(parts)
        above = ".".join(parts[:number])
        if isinstance(content, list):
            position = int(part) if re.fullmatch("[0-9]{1,6}", part) else len(content)
            if position >= len(content):
                message = f"{above} is a list of {counted(len(content), 'item')}, counted from 0"
                return [Problem.at(value.place, tuple(parts), message)]
            if is_last:
                content[position] = value
            else:
                node = content[position]
            continue
        if content is None:
            content = node.content = {}
        if not isinstance(content, dict):
            message = f"{above} is a single value and has no keys"
            return [Problem.at(value.place, tuple(parts), message)]
        if is_last:
            there = content.get(part)
            content[part] = laid_over(there, value, tuple(parts)) if there else value
        else:
            node = content.setdefault(part, Node(value.place, {}))
    return []
