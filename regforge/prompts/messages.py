"""The messages to the language model: Jinja templates in templates/llm, and what fills them in.

    system          what holds for every request
    vocabulary      phrases for one slot
    choose          a choice among given phrases for one slot
    compatibility   which phrases contradict which backgrounds
    compose         whole captions, every slot of them
    photo           what can be seen around the subject in a photo

A recipe may lay a folder of its own over the shipped one (`prompts.messages`). Every template is
checked before the first call, so that a typo costs nothing. Templates run in a sandbox, and what a
user wrote into the recipe reaches the model as a quoted string.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from regforge.embedded import phrase_banks
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import templates_folder
from regforge.prompts.bounded import BoundedEnvironment
from regforge.prompts.vocabulary import BankPhrases
from regforge.recipe import Recipe, kind_of
from regforge.words import did_you_mean

Message = dict[str, Any]

_MOST_CHARACTERS = 2_000_000
_MOST_OPERATIONS = 400_000

_ABOUT = {
    "class_noun": "teapot",
    "kind": "object",
    "super_category": None,
    "number": "singular",
}
_EXAMPLES: dict[str, dict[str, Any]] = {
    "system": _ABOUT,
    "vocabulary": {
        **_ABOUT,
        "slot": "color",
        "slots": ["color", "background"],
        "wanted": 40,
        "known": ["deep red"],
    },
    "choose": {**_ABOUT, "slot": "color", "values": ["deep red", "ivory"], "wanted": 1},
    "compatibility": {
        **_ABOUT,
        "slot": "motion",
        "phrases": ["swimming"],
        "backgrounds": ["in a kitchen"],
    },
    "compose": {
        **_ABOUT,
        "slots": [{"name": "color", "values": None}, {"name": "style", "values": ["a photo of"]}],
        "wanted": 10,
        "used": {"color": [("deep red", 2)]},
        "call": 0,
    },
    "photo": _ABOUT,
}
"""Variables of each message, with values to try it with."""


class MessageError(RegforgeError):
    """A message template that cannot be used."""

    exit_code = EXIT_USAGE


class Messages:
    """The messages of a recipe.

    Args:
        recipe: Its `prompts.messages` is laid over the shipped folder.

    Raises:
        MessageError: A template of the folder is wrong, or the folder is no folder of templates.
    """

    def __init__(self, recipe: Recipe) -> None:
        shipped = templates_folder() / "llm"
        own = recipe.prompts.messages
        if own is not None:
            _check_names(own)
        self._folders = [own, shipped] if own is not None else [shipped]
        self._environment = BoundedEnvironment(
            self._folders,
            {"quoted": quoted},
            most_characters=_MOST_CHARACTERS,
            most_operations=_MOST_OPERATIONS,
        )
        self._about = _about(recipe)
        if own is not None:
            self._lint(own)

    def __call__(self, name: str, **values: Any) -> list[Message]:
        """Write a conversation: the system message and the named one, filled in with values.

        Raises:
            MessageError: The template fails.
        """
        values = {**self._about, **values}
        return [
            {"role": "system", "content": self._render("system", values)},
            {"role": "user", "content": self._render(name, values)},
        ]

    def _lint(self, folder: Path) -> None:
        """Check the user's templates without a call: syntax, variables, and one trial."""
        for path in sorted(folder.glob("*.j2")):
            try:
                _, needed = self._environment.parsed(path.name)
            except jinja2.TemplateSyntaxError as error:
                raise MessageError(f"{path}:{error.lineno}: {error.message}.") from error
            except (OSError, UnicodeDecodeError) as error:
                raise MessageError(f"{path} cannot be read: {error}.") from error
            if path.name.startswith("_"):  # a part; what it needs shows where it is used
                continue
            given = _EXAMPLES[path.stem]
            for unknown in sorted(needed - given.keys()):
                raise MessageError(
                    f"{path}: there is no {unknown!r} to fill in.{did_you_mean(unknown, given)}",
                    hint=f"This message is given {', '.join(sorted(given))}.",
                )
        for name, given in _EXAMPLES.items():
            self._render(name, given)

    def _render(self, name: str, values: Mapping[str, Any]) -> str:
        try:
            template = self._environment.get_template(f"{name}.j2")
            return self._environment.render(template, values).strip() + "\n"
        except jinja2.TemplateSyntaxError as error:
            raise MessageError(f"{error.filename}:{error.lineno}: {error.message}.") from error
        except Exception as error:  # whatever a template's own expressions run into
            where = self._place(error) or f"{name}.j2"
            raise MessageError(f"{where}: {str(error) or type(error).__name__}.") from error

    def _place(self, error: Exception) -> str | None:
        """`path:line` of the template in which an error happened."""
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if any(Path(frame.filename).parent == folder for folder in self._folders):
                return f"{frame.filename}:{frame.lineno}"
        return None


def _check_names(folder: Path) -> None:
    """Refuse a folder whose templates would never be used."""
    found = sorted(path.stem for path in folder.glob("*.j2")) if folder.is_dir() else []
    if not found:
        raise MessageError(
            f"prompts.messages: {folder} is not a folder with message templates.",
            hint=f"It may have {', '.join(f'{name}.j2' for name in _EXAMPLES)}.",
        )
    for name in found:
        if name not in _EXAMPLES and not name.startswith("_"):
            raise MessageError(
                f"{folder / name}.j2: there is no such message.{did_you_mean(name, _EXAMPLES)}",
                hint=f"Messages: {', '.join(_EXAMPLES)}. A part that they share starts with _.",
            )


def _about(recipe: Recipe) -> dict[str, Any]:
    """The variables of every message; `super_category` is None where the banks do not know it."""
    noun, bank = recipe.subject.class_noun, BankPhrases.of(recipe)
    return {
        "class_noun": noun,
        "kind": kind_of(recipe),
        "super_category": bank.super_category.replace("_", " ") if bank.known else None,
        "number": phrase_banks.load().number(noun),
    }


def quoted(text: str) -> str:
    """Quote a text as JSON on one line, so that it reads as data whatever it says."""
    plain = "".join(each if each.isprintable() else " " for each in str(text))
    return json.dumps(plain, ensure_ascii=False)


def question_seed(*parts: int | str) -> int:
    """Derive a seed from all parts, 0 to 2**31 - 1: what every provider takes."""
    text = json.dumps(parts, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def tokens_in(messages: Sequence[Mapping[str, Any]]) -> int:
    """Estimate the tokens of a conversation: English has four letters to one."""
    return sum(len(str(message["content"])) for message in messages) // 4
