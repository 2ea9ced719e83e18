"""What is wrong with a recipe, and where: all of it at once, a line each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regforge.errors import EXIT_USAGE, RegforgeError

Location = tuple[str | int, ...]
"""The keys and list positions that lead to a value."""

_MOST_LINES = 100


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
        file: The file as the user named it, `--set key=value`, or empty for a recipe that was
            made in Python.
        line: From 1; None where there is no line.
        column: From 1; None where there is no line.
        key: The key, with dots: `prompts.count`; empty if it is about the file.
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
        if place is None:
            return cls("", None, None, dotted(location), message)
        return cls(place.source, place.line, place.column, dotted(location), message)

    def __str__(self) -> str:
        """One line: `recipe.yaml:12:9  prompts.conut: unknown key, did you mean 'count'?`."""
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        said = f"{self.key}: {self.message}" if self.key else self.message
        return f"{place}  {said}" if place else said


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
    return ".".join(_printable(str(part)) for part in location)


def _printable(key: str) -> str:
    # A key is the user's text; it must not move the cursor of whoever reads the message.
    key = key if key.isprintable() else ascii(key)
    return key if len(key) <= 80 else f"{key[:77]}..."


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
