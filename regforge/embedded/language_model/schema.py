"""Reads a JSON schema: follows references, and finds out which parts are choices.

Knows the keywords, draws nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from regforge.embedded.language_model.errors import SchemaError

Json = Any
Schema = dict[str, Any]

_ANNOTATIONS = {
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly"),
    *("writeOnly", "$comment", "$schema", "$id", "$defs", "definitions", "discriminator"),
}
_OBJECT = {"type", "properties", "required", "additionalProperties"}
_ARRAY = {"type", "items", "prefixItems", "minItems", "maxItems", "uniqueItems"}
_ANYTHING: Schema = {}
_LINKS = 12  # references to references, unions in unions


class SchemaReader:
    """A JSON schema (draft 2020-12) and what its parts mean.

    Args:
        root: the whole schema; a `$ref` must point inside it.

    Raises:
        SchemaError: `root` is no JSON schema.
    """

    def __init__(self, root: Schema) -> None:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError as InvalidSchema

        try:
            Draft202012Validator.check_schema(root)
        except InvalidSchema as error:
            raise SchemaError(f"the response format is no JSON schema: {error.message}") from error
        self.root = root
        self._validator = Draft202012Validator(root)
        self._resolved: dict[int, tuple[Any, Schema]] = {}  # by id; the first keeps the id alive

    def is_valid(self, value: Json, part: Schema | None = None) -> bool:
        """Whether a value satisfies a part of the schema, or all of it."""
        validator = self._validator if part is None else self._validator.evolve(schema=part)
        return bool(validator.is_valid(value))

    def resolve(self, part: Schema | bool) -> Schema:
        """A part with `$ref`, a lone `allOf` and a list of types written out.

        The same part always gives the same object.
        """
        if part is False:
            raise SchemaError("the schema forbids every value (false)")
        if part is True:
            return _ANYTHING
        if id(part) not in self._resolved:
            plain = self._write_out(part)
            self._resolved[id(part)] = (part, plain)
            self._resolved[id(plain)] = (plain, plain)
        return self._resolved[id(part)][1]

    def options(self, part: Schema | bool, depth: int = 0) -> list[Json] | None:
        """All values of a part that is a choice, or None if it is none."""
        part = self.resolve(part)
        values: list[Json] = []
        if "enum" in part:
            values = part["enum"]
        elif "const" in part:
            values = [part["const"]]
        elif part.get("type") in ("boolean", "null"):
            values = [True, False] if part["type"] == "boolean" else [None]
        elif is_union(part) and depth < _LINKS:
            for branch in branches(part):
                of_branch = self.options(branch, depth + 1)
                if of_branch is None:
                    return None
                values = values + of_branch
        else:
            return None
        beside = {key: rule for key, rule in part.items() if key not in ("enum", "const")}
        if _keywords(beside):
            values = [value for value in values if self.is_valid(value, beside)]
        return list({identity(value): value for value in values}.values())

    def self_contained(self, part: Schema) -> Schema:
        """A part that can stand alone: with the definitions it may refer to."""
        shared = {key: self.root[key] for key in ("$defs", "definitions") if key in self.root}
        return {key: rule for key, rule in part.items() if not key.startswith("x-")} | shared

    def _write_out(self, part: Schema) -> Schema:
        for _ in range(_LINKS):
            rest = dict(part)
            if "$ref" in part:
                part = self._target(rest.pop("$ref")) | rest
            elif len(part.get("allOf", [])) == 1:
                part = self.resolve(rest.pop("allOf")[0]) | rest
            elif isinstance(part.get("type"), list) and not {"enum", "const"} & part.keys():
                kinds = rest.pop("type")
                notes = {key: rest[key] for key in rest.keys() - _keywords(rest)}
                part = notes | {"anyOf": [rest | {"type": kind} for kind in kinds]}
            else:
                return part
        raise SchemaError("a $ref of the schema leads back to itself")

    def _target(self, pointer: str) -> Schema:
        """What a local `$ref` points to."""
        target: Any = self.root
        try:
            if not pointer.startswith("#"):
                raise KeyError(pointer)
            for step in unquote(pointer[1:]).split("/")[1:]:
                step = step.replace("~1", "/").replace("~0", "~")
                target = target[int(step)] if isinstance(target, list) else target[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise SchemaError(f"$ref {pointer!r} points to nothing in the schema") from None
        return dict(self.resolve(target) if isinstance(target, bool) else target)


def is_union(part: Schema) -> bool:
    """Whether a resolved part is `anyOf` or `oneOf` and nothing else."""
    return _keywords(part) in ({"anyOf"}, {"oneOf"})


def branches(union: Schema) -> Sequence[Schema | bool]:
    """The alternatives of a union."""
    found: Sequence[Schema | bool] = union["anyOf"] if "anyOf" in union else union["oneOf"]
    return found


def is_object(part: Schema) -> bool:
    """Whether a resolved part is an object with all its properties named."""
    properties = part.get("properties", {})
    typed = part.get("type") == "object" or ("type" not in part and "properties" in part)
    named = bool(properties) or part.get("additionalProperties") is False
    complete = set(part.get("required", [])) <= properties.keys()
    return typed and named and complete and _keywords(part) <= _OBJECT


def is_array(part: Schema) -> bool:
    """Whether a resolved part is an array with all its items described."""
    described = part.get("items", True) is not True or "prefixItems" in part
    typed = part.get("type") == "array" or ("type" not in part and described)
    return typed and described and _keywords(part) <= _ARRAY


def identity(value: Json) -> str:
    """Equal for values that JSON schema calls equal: 1 and 1.0 are, 1 and true are not."""

    def number(digits: str) -> float | int:
        parsed = float(digits)
        return int(parsed) if parsed.is_integer() else parsed

    return json.dumps(json.loads(json.dumps(value), parse_float=number), sort_keys=True)


def _keywords(part: Schema) -> set[str]:
    """The keys of a part that restrict values."""
    return {key for key in part if key not in _ANNOTATIONS and not key.startswith("x-")}
