"""Parts of sentences that messages share: lists, counts, times, money, paths, suggestions."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable
from pathlib import Path


def listed(names: Collection[str], most: int | None = None, conjunction: str = "and") -> str:
    """Join names as a sentence does: `a, b and c`; with `most`, `a, b and 2,000 more`.

    Empty names are left out.
    """
    shown = [name for name in names if name]
    if most is not None and len(shown) > most:
        return f"{', '.join(shown[:most])} and {len(shown) - most:,} more"
    return f" {conjunction} ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)


def counted(number: int, noun: str) -> str:
    """A number and what it counts: `1 image`, `2,000 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Such as `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def dollars(amount: float | None) -> str:
    """US dollars for people: `$12.30`, `$0.000045`; None is unknown."""
    if amount is None:
        return "unknown"
    if amount == 0 or amount >= 0.0995:
        return f"${amount:,.2f}"
    digits = 1 - math.floor(math.log10(amount))  # two that count, and no exponent
    return f"${amount:.{digits}f}".rstrip("0")


def from_here(path: Path) -> Path:
    """The path as a person in this folder would write it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def nearest(wrong: object, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: one that it begins, or one spelled much like it."""
    spelled = {name.lower(): name for name in known}
    wanted = str(wrong)[:100].strip().lower()
    for spelling in (wanted, wanted.replace("-", "_"), wanted.replace(" ", "-")):
        begun = [name for name in spelled if len(spelling) > 2 and name.startswith(spelling)]
        near = begun or difflib.get_close_matches(spelling, spelled, n=1)
        if near:
            return spelled[near[0]]
    return None


def did_you_mean(wrong: object, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, to stand after a sentence; empty where nothing is near."""
    near = nearest(wrong, known)
    return f" Did you mean {near!r}?" if near else ""


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of an error's message without its full stop; its type if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:most].rstrip(".:")
