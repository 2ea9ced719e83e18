"""What a check says: a grade, a sentence, advice; and how numbers are said in sentences.

Knows nothing about datasets; the other modules of the part look, each at one thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Grade = Literal["good", "look", "bad", "unknown"]

MOST_EXAMPLES = 5
"""Examples of a check; all of them would be no help."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What, in two or three words: `exact duplicates`.
        grade: `good`, `look` (worth a look), `bad` (will harm training), `unknown` (not told).
        finding: What was found, in one sentence with numbers.
        advice: What to do about it; empty where nothing is to be done.
        numbers: The same for scripts.
        examples: A few ids or phrases that show it.
    """

    name: str
    grade: Grade
    finding: str
    advice: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[str] = ()


def of(count: int, total: int, what: str = "images") -> str:
    """Such as `3 of 64 images (5 %)`; a part that is not nothing is never called 0 %."""
    return f"{count:,} of {total:,} {what} ({percent(count, total)})"


def percent(count: float, total: float) -> str:
    """Such as `5 %`, `under 1 %`, `over 99 %`."""
    if not total or not count:
        return "0 %"
    part = 100 * count / total
    if part < 1:
        return "under 1 %"
    return "over 99 %" if 99 < part < 100 else f"{part:.0f} %"


def ratio(count: float, total: float) -> float:
    """A share for scripts, 0 to 1, to four digits; 0 of nothing is 0."""
    return round(count / total, 4) if total else 0.0


def worse(*grades: Grade) -> Grade:
    """The worst of some grades."""
    order: tuple[Grade, ...] = ("good", "unknown", "look", "bad")
    return max(grades, key=order.index)


def shortened(text: str, most: int = 120) -> str:
    """A text in one line that is not too long for a table."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
