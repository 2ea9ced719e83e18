"""Validation errors in plain words: `must be at least 1, not 0`, `did you mean 'count'?`.

Knows pydantic's error types and the recipe's keys. It does not know where in a file a value stands.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from regforge.recipe.problems import Location, shown
from regforge.recipe.sections import PROBLEM
from regforge.words import nearest

PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$": "at most 80 letters, digits, '.', '_' and '-', the first "
    "a letter or digit",
    r"^[a-z][a-z0-9_]{0,31}$": "at most 32 small letters, digits and '_', the first a letter",
}
"""What the patterns of text fields ask for, in words."""

_Error = Mapping[str, Any]


def explained(
    error: ValidationError, data: Any, recipe: type[BaseModel], most: int
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
    return [_explained(recipe, location, errors) for location, errors in grouped.items()]


def one_of(choices: Sequence[str], given: object = None) -> str:
    """`one of object, living`, with the one that was probably meant."""
    wanted = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if given is None:
        return wanted
    near = nearest(given, choices) if len(choices) > 1 else None
    return f"{wanted}; did you mean '{near}'?" if near else f"{wanted}, not {shown(given)}"


# ---------------------------------------------------------------------------------------- where


def _in_the_data(error: _Error, data: Any) -> Location:
    """An error's location without what pydantic adds to it, such as the branch of a union."""
    location: list[str | int] = []
    for part in error["loc"]:
        inside = isinstance(data, dict) or (isinstance(data, list) and isinstance(part, int))
        if inside and (isinstance(data, list) or part in data):
            data = data[part]
        elif not (isinstance(data, dict) and error["type"] == "missing"):
            break
        location.append(part)
    return tuple(location)


def _explained(
    recipe: type[BaseModel], location: Location, errors: Sequence[_Error]
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


def _unknown_key(recipe: type[BaseModel], location: Location) -> str:
    *above, key = location
    known = _names(_model_at(recipe, tuple(above)))
    elsewhere = [
        path for path in _all_keys(recipe) if path[-1] == key and path[:-1] != tuple(above)
    ]
    if elsewhere:
        places = [".".join(path) if len(path) > 1 else f"{key} at the top" for path in elsewhere]
        return f"unknown key here, did you mean {' or '.join(places)}?"
    near = nearest(key, known)
    if near:
        return f"unknown key, did you mean '{near}'?"
    return f"unknown key; there are {', '.join(known)}"


def _names(model: type[BaseModel] | None) -> list[str]:
    fields = model.model_fields.items() if model else ()
    return [field.alias or name for name, field in fields]


@cache
def _all_keys(recipe: type[BaseModel]) -> tuple[tuple[str, ...], ...]:
    """All keys that a recipe can have, but those in lists."""
    return tuple(_keys_of(recipe, ()))


def _keys_of(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        name = field.alias or name
        yield (*above, name)
        below = _section(field.annotation)
        if below and not _within_list(field.annotation):
            yield from _keys_of(below, (*above, name))


def _field_at(recipe: type[BaseModel], location: Location) -> FieldInfo | None:
    """The field that describes a value, if it is one with a name of its own."""
    if not location or not isinstance(location[-1], str):
        return None
    return _field(_model_at(recipe, location[:-1]), location[-1])


def _model_at(recipe: type[BaseModel], location: Location) -> type[BaseModel] | None:
    model: type[BaseModel] | None = recipe
    for part in location:
        if isinstance(part, int):
            continue  # the list's own annotation already led to what is in it
        found = _field(model, part)
        model = _section(found.annotation) if found else None
    return model


def _field(model: type[BaseModel] | None, key: str) -> FieldInfo | None:
    """The field of a key, which may have another name in Python."""
    fields = model.model_fields if model else {}
    return next((field for name, field in fields.items() if key in (name, field.alias)), None)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as `tuple[Slot, ...] | None` is about."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section(each) for each in get_args(annotation))
    return next((each for each in found if each), None)


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


def _length(error: _Error) -> str:
    return f"at most {error['ctx']['max_length']} characters long"


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
    "literal_error": lambda error: one_of(_choices(error)),
    "model_type": "a section with keys of its own",
    "path_type": "a path",
    "string_pattern_mismatch": _pattern,
    "string_too_long": _length,
    "string_type": "text",
    "tuple_type": "a list",
}
"""What a value must be, by pydantic's name of the error."""


def _wrong_value(recipe: type[BaseModel], location: Location, errors: Sequence[_Error]) -> str:
    first = errors[0]
    if first["type"] in ("string_too_short", "too_short"):
        return "must not be empty"
    if len(errors) == 1 and first["type"] == "literal_error":
        return f"must be {one_of(_choices(first), first['input'])}"
    wanted = [_wanted(error) for error in errors]
    if None in wanted:
        return str(first["msg"])
    options = " or ".join(dict.fromkeys(str(each) for each in wanted))
    return f"must be {options}, not {shown(first['input'])}{_advice(recipe, location, first)}"


def _wanted(error: _Error) -> str | None:
    wanted = _WANTED.get(error["type"])
    return wanted(error) if callable(wanted) else wanted


def _advice(recipe: type[BaseModel], location: Location, error: _Error) -> str:
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


def _example(recipe: type[BaseModel], location: Location) -> str:
    """The example of a field, the way one would write it."""
    found = _field_at(recipe, location)
    if found is None or not found.examples:
        return ""
    return f"; for example {location[-1]}: {_flow(found.examples[0])}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return str(value)
