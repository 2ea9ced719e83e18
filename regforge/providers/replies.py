"""From a language model's reply to a checked value, and how to ask for a form it will keep to.

Models wrap their JSON in thoughts, code fences and pleasantries; `understand` looks past all that.
A schema reaches a model on one of four rungs, the strictest first: `Rung`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from regforge.files import cache_folder, parse_json, write_atomically

Message = Mapping[str, Any]
Schema = Mapping[str, Any]

_MARK_OF_THOUGHT = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.I)
_START_OF_JSON = re.compile(r"[{\[]")
_MOST_STARTS = 1000
_MOST_COMPLAINTS = 8
_LONGEST_QUOTE = 6000


@dataclass(frozen=True)
class Reading:
    """What could be made of a reply.

    Attributes:
        value: An instance of the model that was asked for; None if there are complaints.
        complaints: What is wrong with it, in sentences that the model can act on.
        fits: Whether it follows the schema, complaints or not.
    """

    value: Any | None
    complaints: tuple[str, ...] = ()
    fits: bool = True


def understand(
    text: str, reply: type[BaseModel], problems: Callable[[Any], list[str]] | None = None
) -> Reading:
    """Find the JSON in a reply, validate it against `reply`, and look for further `problems`."""
    reading = None
    for value in json_values(text):
        reading = _check(value, reply, problems)
        if reading.value is not None:
            return reading
    if reading is not None:
        return reading
    start = " ".join(text.split())
    complaint = f'The reply has no complete JSON in it. It begins: "{start}"'
    if not start:
        complaint = "The reply is empty."
    elif not without_thoughts(text).strip():
        complaint = "The reply consists of thoughts alone; there is no answer in it."
    elif len(start) > 80:
        complaint = f'The reply has no complete JSON in it. It begins: "{start[:80]}..."'
    return Reading(None, (complaint,), fits=False)


def json_values(text: str) -> Iterator[Any]:
    """The JSON objects and arrays in a text, outermost ones only, first to last.

    Nothing inside one that was begun and not properly ended counts: half a reply is no reply.
    """
    text = without_thoughts(text)
    decoder = json.JSONDecoder(strict=False)
    place = 0
    for _ in range(_MOST_STARTS):
        start = _START_OF_JSON.search(text, place)
        if start is None:
            return
        try:
            value, place = decoder.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            if error.msg.startswith(("Unterminated", "Invalid")):
                return  # within a string, where brackets mean nothing
            place = max(error.pos, start.end())
        except RecursionError:
            return
        else:
            yield value


def without_thoughts(text: str) -> str:
    """The text without `<think>...</think>`, also where one of the two marks is missing."""
    text = text.lstrip("\ufeff")
    if _begins_json(text):
        return text  # a phrase in the JSON may talk about thoughts
    answer, place, thinking = "", 0, False
    for mark in _MARK_OF_THOUGHT.finditer(text):
        if mark[1]:  # if none was begun, it was in the prompt
            place, thinking = mark.end(), False
        elif not thinking:
            answer += text[place : mark.start()]
            place, thinking = mark.end(), True
    # Servers that force JSON may open a thought and never get to close it.
    if not thinking or _begins_json(text[place:]):
        answer += text[place:]
    return answer


def _begins_json(text: str) -> bool:
    return text.lstrip().startswith(("{", "["))


def _check(
    value: Any, reply: type[BaseModel], problems: Callable[[Any], list[str]] | None
) -> Reading:
    try:
        answer = reply.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        places = [".".join(map(str, each["loc"])) for each in faults]
        texts = [each["msg"] for each in faults]
        sentences = [f"{a}: {b}" if a else b for a, b in zip(places, texts, strict=True)]
        return Reading(None, _few(sentences), fits=False)
    complaints = problems(answer) if problems else []
    return Reading(None, _few(complaints)) if complaints else Reading(answer)


def _few(complaints: list[str]) -> tuple[str, ...]:
    more = len(complaints) - _MOST_COMPLAINTS
    rest = [f"And {more} more like these."] if more > 0 else []
    return (*complaints[:_MOST_COMPLAINTS], *rest)


class Rung(IntEnum):
    """How a language model is told which form its reply must have."""

    SCHEMA = 0
    """The provider enforces the JSON schema."""
    SCHEMA_AND_WORDS = 1
    """The same, and the schema is in the message too: the provider took it and ignored it."""
    OBJECT_AND_WORDS = 2
    """The provider enforces JSON, the schema is in the message."""
    WORDS = 3
    """The schema is in the message, and that is all."""

    @property
    def below(self) -> Rung | None:
        """What to try when the provider refuses this one; None at the bottom."""
        if self is Rung.WORDS:
            return None
        return Rung.WORDS if self is Rung.OBJECT_AND_WORDS else Rung.OBJECT_AND_WORDS

    @property
    def form(self) -> str:
        """What is asked for, in words."""
        return ("a JSON schema", "a JSON schema", "JSON of any kind", "plain text")[self]

    def response_format(self, schema: Schema, name: str, strict: bool) -> dict[str, Any] | None:
        """OpenAI's `response_format` for this rung."""
        if self is Rung.WORDS:
            return None
        if self is Rung.OBJECT_AND_WORDS:
            return {"type": "json_object"}
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "reply"
        named = {"name": safe, "schema": dict(schema), "strict": strict}
        return {"type": "json_schema", "json_schema": named}

    def messages(self, messages: Sequence[Message], schema: Schema) -> list[Message]:
        """The messages to send on this rung."""
        changed = list(messages)
        if self is Rung.SCHEMA:
            return changed
        words = _form(schema)
        for number in reversed(range(len(changed))):
            message = changed[number]
            if message.get("role") == "user":
                content = message["content"]
                if isinstance(content, str):
                    content = f"{content}\n\n{words}"
                else:
                    content = [*content, {"type": "text", "text": words}]
                changed[number] = {**message, "content": content}
                return changed
        return [*changed, {"role": "user", "content": words}]


def repair_turn(
    messages: Sequence[Message], reply: str, complaints: Sequence[str], schema: Schema
) -> list[Message]:
    """The conversation, the reply that cannot be used, and why it cannot."""
    wrong = "\n".join(f"- {complaint}" for complaint in complaints)
    request = f"This reply cannot be used:\n{wrong}\n\nAnswer again, correctly. {_form(schema)}"
    return [
        *messages,
        {"role": "assistant", "content": reply[:_LONGEST_QUOTE]},
        {"role": "user", "content": request},
    ]


def _form(schema: Schema) -> str:
    text = json.dumps(schema, ensure_ascii=False)
    return f"Reply with nothing but JSON that follows this JSON schema:\n{text}"


_NAMED = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "contains", "propertyNames")
_NOT_IN_STRICT = ("default", "minLength", "maxLength", "uniqueItems")


def _inner(schema: Schema, change: Callable[[Schema], dict[str, Any]]) -> dict[str, Any]:
    """The schema with each schema right inside it changed; values such as enums are left alone."""
    result = dict(schema)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            result[key] = {name: change(part) for name, part in value.items()}
        elif key in _LISTED and isinstance(value, list):
            result[key] = [change(part) for part in value]
        elif key in _SINGLE and isinstance(value, Mapping):
            result[key] = change(value)
    return result


def without_annotations(schema: Schema) -> dict[str, Any]:
    """The schema without keys that begin with `x-`, which strict providers refuse."""
    kept = {key: value for key, value in schema.items() if not key.startswith("x-")}
    return _inner(kept, without_annotations)


def strict_schema(schema: Schema) -> tuple[dict[str, Any], bool]:
    """The schema as providers want it that enforce schemas to the letter.

    All properties are required, no others are allowed, there are no defaults, a reference stands
    alone. What they cannot express (lengths of strings) is left out; the reply is checked for it.

    Returns:
        The schema, and whether it can be enforced: mappings with any keys cannot.
    """
    loose = False

    def change(part: Schema) -> dict[str, Any]:
        nonlocal loose
        if "$ref" in part and "$defs" not in part:
            return {"$ref": part["$ref"]}
        changed = _inner(
            {key: value for key, value in part.items() if key not in _NOT_IN_STRICT}, change
        )
        if "properties" in part:
            changed["required"] = list(part["properties"])
            changed["additionalProperties"] = False
        elif part.get("type") == "object":
            loose = True
        return changed

    return change(schema), not loose


FORMAT = 1


class ReplyCache:
    """Replies that were good enough to use, so that the same question is paid for once.

        <folder>/ab/abcd...json    {"format": 1, "text": "...", "model": "...",
                                    "prompt_tokens": 210, "completion_tokens": 90}

    Several processes may share the folder; a damaged file counts as none.

    Args:
        folder: Created when first written to; `replies` in regforge's cache folder by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_folder() / "replies"

    def get(self, key: str) -> str | None:
        """The text kept under a key."""
        try:
            entry = parse_json(self._path(key).read_bytes())
            good = entry["format"] == FORMAT and isinstance(entry["text"], str)
            return entry["text"] if good else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, key: str, text: str, model: str, tokens: Sequence[int | None]) -> None:
        """Keep a reply, with whatever stood around the JSON.

        Raises:
            StorageError: The folder cannot be written.
        """
        counts = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
        entry = {"format": FORMAT, "text": text, "model": model, **counts}
        write_atomically(self._path(key), json.dumps(entry, ensure_ascii=False))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def key_of(parts: Mapping[str, Any]) -> str:
    """A name, 64 hex digits, for everything that could change a reply."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
