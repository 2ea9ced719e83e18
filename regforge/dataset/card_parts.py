"""A card taken apart: its front matter, regforge's part between two markers, the words around it.

Knows which of these are regforge's and which are somebody's own; knows nothing about what they say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

BEGIN = "<!-- regforge:begin -->"
END = "<!-- regforge:end -->"

OUR_KEYS = frozenset(
    {"license", "pretty_name", "language", "task_categories", "size_categories", "tags"}
    | {"configs", "dataset_info"}
)
"""Keys of the front matter that regforge writes; all others are somebody's own."""

LICENSE_KEYS = frozenset({"license_name", "license_link"})
"""Keys that say more about `license: other`. Of the card on disk, whoever wrote them."""

_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---[ \t]*\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """A card's parts: its front matter, regforge's part, and the texts before and after that."""

    front: Mapping[str, Any] = field(default_factory=dict)
    before: str = ""
    ours: str | None = None  # None if it lacks one of its markers
    after: str = ""
    readable: bool = True  # the front matter is a mapping, or not there

    @classmethod
    def parse(cls, text: str | None) -> Card:
        """Take a card apart. Without both markers nothing says what is ours: all is theirs."""
        text = (text or "").removeprefix("\ufeff").replace("\r\n", "\n")
        found = _FRONT_MATTER.match(text)
        rest = text[found.end() :] if found else text
        try:
            front = (yaml.safe_load(found.group(1)) or {}) if found else {}
        except (yaml.YAMLError, ValueError, RecursionError):  # a date such as 2024-13-45
            front = None
        readable = isinstance(front, dict)
        front = front if isinstance(front, dict) else {}
        before, begin, inside = rest.partition(BEGIN)
        ours, end, after = inside.partition(END)
        if begin and end:
            return cls(front, before, ours, after.removeprefix("\n"), readable)
        return cls(front, after=f"\n{rest.strip()}\n" if rest.strip() else "", readable=readable)

    def as_text(self) -> str:
        """The card as a file; secrets in the front matter are not masked."""
        front = front_matter(self.front)
        return f"---\n{front}---\n{self.before}{BEGIN}{self.ours or ''}{END}\n{self.after}"


def front_matter(values: Mapping[str, Any]) -> str:
    """The front matter as YAML, without the lines around it."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)


class _Dumper(yaml.SafeDumper):
    """Writes what reads back the same."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Only double quotes keep every kind of line break.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def merged(
    local: str, remote: str | None, *, our_keys: frozenset[str] = OUR_KEYS
) -> tuple[str, list[str]]:
    """The card for a repository: regforge's part of the local one, everybody's words of theirs.

    Of the words around regforge's part and of keys that are not regforge's, the repository's count;
    where it has none, the local ones.

    Returns:
        The card, byte for byte the repository's if that says the same; and what of the local one
        was left out, a sentence each.
    """
    ours, theirs = Card.parse(local), Card.parse(remote)
    our_keys |= LICENSE_KEYS
    front = {
        key: value
        for key, value in {**ours.front, **theirs.front}.items()
        if key in ours.front or key not in our_keys
    }
    front |= {key: value for key, value in ours.front.items() if key in our_keys}
    both = Card(
        front,
        theirs.before if theirs.before.strip() else ours.before,
        ours.ours,
        theirs.after if theirs.after.strip() else ours.after,
        theirs.readable,
    )
    card = remote if remote and both == theirs else both.as_text()
    return card, list(_left_out(ours, theirs, our_keys))


def _left_out(ours: Card, theirs: Card, our_keys: frozenset[str]) -> Iterator[str]:
    if not theirs.readable:
        yield "README.md: the front matter on the Hub cannot be read, and was written anew."
    kept = "differs from the one on the Hub, and that was kept"
    for where, own, other in (
        ("before", ours.before, theirs.before),
        ("after", ours.after, theirs.after),
    ):
        if own.strip() and other.strip() and own.strip() != other.strip():
            yield f"README.md: the text {where} regforge's part {kept}."
    for key, value in ours.front.items():
        if key not in our_keys and theirs.front.get(key, value) != value:
            yield f"README.md: the key {key!r} {kept}."
