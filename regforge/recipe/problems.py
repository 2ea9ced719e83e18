"""What is wrong with a recipe, and where: all of it at once, a line each, in plain words.

`must be at least 1, not 0`, `did you mean 'count'?`: made from pydantic's errors and the keys of
the recipe. `loading` knows where in a file a value stands.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, ValidationError
from pydantic.fields import FieldInfo

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.recipe.sections import PROBLEM, UNION
from regforge.words import beginning, nearest

Location = tuple[str | int, ...]
"""The keys and list positions that lead to a value."""

_MOST_LINES = 100

PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$": "at most 80 letters, digits, '.', '_' and '-', the first "
    "a letter or digit",
    r"^<[a-z0-9][a-z0-9_-]{0,37}>$": "small letters, digits, '-' and '_' in angle brackets, such "
    "as <my-cat>, at most 40 characters",
    r"^[a-z][a-z0-9_]{0,31}$": "at most 32 small letters, digits and '_', the first a letter",
}
"""What the patterns of text fields ask for, in words."""

_Model = type[BaseModel]
_Error = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written.

    Attributes:
        source: The file as the user named it, or `--set key=value`.
        folder: Where relative paths written there start.
        line: From 1; None in `--set`.
        column: From 1; None in `--set`.
    """

    source: str
    folder: Path
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        """As editors understand it: `recipe.yaml:12:9`."""
        return ":".join(str(part) for part in (self.source, self.line, self.column) if part)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: As the user named it, `--set key=value`, or empty for a recipe made in Python.
        line: From 1; None where there is no line.
        column: From 1; None where there is no line.
        key: With dots: `prompts.count`; empty if it is about the file.
        message: What is wrong, with no full stop.
    """

    file: str
    line: int | None
    column: int | None
    key: str
    message: str

    @classmethod
    def at(cls, place: Place | None, location: Location, message: str) -> Problem:
        """A problem of the value at a location."""
        message = "".join(c if c.isprintable() else f"{c!a}"[1:-1] for c in message)
        place = place or Place("", Path())
        return cls(place.source, place.line, place.column, dotted(location), message)

    def __str__(self) -> str:
        """One line: `recipe.yaml:12:9  prompts.conut: unknown key, did you mean 'count'?`."""
        place = str(Place(self.file, Path(), self.line, self.column))
        about = f"{self.key}: {self.message}" if self.key else self.message
        return f"{place}  {about}" if place else about


class RecipeError(RegforgeError):
    """A recipe that cannot be used.

    Attributes:
        problems: All that is wrong with it, in the order of the files.
    """

    exit_code = EXIT_USAGE

    def __init__(self, problems: Iterable[Problem], *, hint: str | None = None) -> None:
        self.problems: Sequence[Problem] = tuple(problems)
        lines = [str(problem) for problem in self.problems[:_MOST_LINES]]
        if len(self.problems) > 1:
            lines.insert(0, f"the recipe has {len(self.problems)} problems")
        if len(self.problems) > _MOST_LINES:
            lines.append(f"... and {len(self.problems) - _MOST_LINES} more")
        super().__init__("\n".join(lines), hint=hint)


def dotted(location: Location) -> str:
    """A location as `--set` takes it: `prompts.slots.0.values`."""
    # A key is the user's text; it must not move the cursor of whoever reads the message.
    keys = (key if key.isprintable() else ascii(key) for key in map(str, location))
    return ".".join(beginning(key, 80) for key in keys)


def shown(value: object) -> str:
    """A value the way a message shows it: short, in one line, with nothing unprintable."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value) if str(value).isprintable() else ascii(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[0]}"


def suggestion(wrong: object, known: Iterable[str], otherwise: str = "") -> str:
    """`, did you mean 'count'?`, to end a message; another end where no known word is near."""
    near = nearest(wrong, known)
    return f", did you mean '{near}'?" if near else otherwise


def one_of(choices: Iterable[str], given: object, more: str = "") -> str:
    """`one of object, living; did you mean 'living'?`, or `..., not 'alive'`."""
    choices = list(choices)
    near = nearest(given, choices) if len(choices) > 1 else None
    but = f"; did you mean '{near}'?" if near else f", not {shown(given)}"
    return _any_of(choices) + more + but


def _any_of(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"


# ------------------------------------------------------------------------------ pydantic's errors


def explained(
    error: ValidationError, data: Any, recipe: _Model, most: int
) -> list[tuple[Location, str, bool]]:
    """What is wrong with a recipe.

    Args:
        error: Of `recipe.model_validate(data)`.
        data: The recipe as plain dicts, lists and scalars.
        recipe: The model of all of it.
        most: How many problems at most.

    Returns:
        For each problem where it is, what it is, and whether it is the key rather than the value.
    """
    grouped: dict[Location, list[_Error]] = {}
    for each in error.errors(include_url=False):
        location = _in_the_data(each, data)
        if len(grouped) < most or location in grouped:
            grouped.setdefault(location, []).append(each)
    # Of what may be a text or a mapping, the mapping's problems are nearer to what was meant.
    inner = {each[:length] for each in grouped for length in range(len(each))}
    return [_explained(recipe, at, errors) for at, errors in grouped.items() if at not in inner]


def _in_the_data(error: _Error, data: Any) -> Location:
    """An error's location without what pydantic adds to it, such as the branch of a union."""
    location: list[str | int] = []
    for part in error["loc"]:
        if isinstance(part, str) and part.startswith((UNION, "dict[", "tuple[")):
            continue
        inside = isinstance(data, dict) or (isinstance(data, list) and isinstance(part, int))
        if inside and (isinstance(data, list) or part in data):
            data = data[part]
        elif not (isinstance(data, dict) and error["type"] == "missing"):
            break
        location.append(part)
    return tuple(location)


def _explained(
    recipe: _Model, location: Location, errors: Sequence[_Error]
) -> tuple[Location, str, bool]:
    first = errors[0]
    if first["type"] == "extra_forbidden":
        return location, _unknown_key(recipe, location), True
    if first["type"] == "missing":
        return location, f"is missing{_example(recipe, location)}", False
    if "[key]" in first["loc"]:
        return location, f"must be {one_of(_choices(first), location[-1])}", True
    if first["type"] == PROBLEM:
        context = first["ctx"]
        key = (context["key"],) if context["key"] else ()
        return (*location, *key), str(context["message"]), False
    return location, _wrong_value(recipe, location, errors), False


# ------------------------------------------------------------------------------------------ keys


def _unknown_key(recipe: _Model, location: Location) -> str:
    *above, key = location
    known = list(_fields(_model_at(recipe, tuple(above))))
    elsewhere = [path for path in _all_keys(recipe) if path[-1] == key and path[:-1] != (*above,)]
    if elsewhere:
        places = [".".join(path) if len(path) > 1 else f"{key} at the top" for path in elsewhere]
        return f"unknown key here, did you mean {' or '.join(places)}?"
    return "unknown key" + suggestion(key, known, f"; there are {', '.join(known)}")


@cache
def _all_keys(recipe: _Model) -> tuple[tuple[str, ...], ...]:
    """All keys that a recipe can have, but those in lists and of sections that may be a text."""

    def below(model: _Model, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, field in _fields(model).items():
            yield (*above, name)
            section = _section(field.annotation)
            text = any(isinstance(each, Discriminator) for each in field.metadata)
            if section and not text and not _within_list(field.annotation):
                yield from below(section, (*above, name))

    return tuple(below(recipe, ()))


def _fields(model: _Model | None) -> dict[str, FieldInfo]:
    """The fields of a section by their keys, which may have another name in Python."""
    fields = model.model_fields.items() if model else ()
    return {field.alias or name: field for name, field in fields}


def _model_at(recipe: _Model, location: Location) -> _Model | None:
    model: _Model | None = recipe
    for part in location:
        if isinstance(part, str):  # of a list, its own annotation led to what is in it
            found = _fields(model).get(part)
            model = _section(found.annotation) if found else None
    return model


def _section(annotation: Any) -> _Model | None:
    """The model that an annotation such as `tuple[Slot, ...] | None` is about."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def _within_list(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return any(_within_list(each) for each in get_args(annotation))
    return get_origin(annotation) is tuple


# ---------------------------------------------------------------------------------------- values


def _limit(name: str, words: str) -> Callable[[_Error], str]:
    def wanted(error: _Error) -> str:
        limit = error["ctx"][name]
        return f"{words} {int(limit) if float(limit).is_integer() else limit}"

    return wanted


def _choices(error: _Error) -> list[str]:
    return re.findall(r"'([^']*)'", error["ctx"]["expected"])


def _pattern(error: _Error) -> str:
    return PATTERNS.get(error["ctx"]["pattern"], f"like {error['ctx']['pattern']}")


_WANTED: dict[str, str | Callable[[_Error], str]] = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": _limit("gt", "more than"),
    "greater_than_equal": _limit("ge", "at least"),
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_type": "a whole number",
    "less_than": _limit("lt", "less than"),
    "less_than_equal": _limit("le", "at most"),
    "literal_error": lambda error: _any_of(_choices(error)),
    "model_type": "a section with keys of its own",
    "path_type": "a path",
    "string_pattern_mismatch": _pattern,
    "string_too_long": lambda error: f"at most {error['ctx']['max_length']} characters long",
    "string_type": "text",
    "tuple_type": "a list",
}
"""What a value must be, by pydantic's name of the error."""


def _wrong_value(recipe: _Model, location: Location, errors: Sequence[_Error]) -> str:
    first = errors[0]
    if first["type"] in ("string_too_short", "too_short"):
        return "must not be empty"
    if len(errors) == 1 and first["type"] == "literal_error":
        return f"must be {one_of(_choices(first), first['input'])}"
    if any(error["type"] not in _WANTED for error in errors):
        return str(first["msg"])
    wanted = [(_WANTED[error["type"]], error) for error in errors]
    options = dict.fromkeys(each(error) if callable(each) else each for each, error in wanted)
    given = f"{shown(first['input'])}{_advice(recipe, location, first)}"
    return f"must be {' or '.join(options)}, not {given}"


def _advice(recipe: _Model, location: Location, error: _Error) -> str:
    given = error["input"]
    match error["type"]:
        case "string_type" | "path_type" if isinstance(given, int | float):
            return "; put it in quotes"
        case "string_type" if given is None:
            return "; for empty text write ''"
        case "model_type" if given is None:
            return "; give it keys or take the line out"
        case "tuple_type" if isinstance(given, str):
            return f"; write [{given}]" if re.fullmatch(r"[\w./-]+", given) else ""
        case "dict_type" | "tuple_type":
            return _example(recipe, location)
    return ""


def _example(recipe: _Model, location: Location) -> str:
    """The example of a field, the way one would write it."""
    key = location[-1] if location else ""
    found = _fields(_model_at(recipe, location[:-1])).get(str(key))
    if found is None or not found.examples:
        return ""
    return f"; for example {key}: {_flow(found.examples[0])}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return str(value)
