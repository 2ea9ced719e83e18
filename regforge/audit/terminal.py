"""An audit as text: an aligned table, then what to do, then the verdict.

Plain text of at most 100 columns, so that it reads the same in a terminal, a pipe and a log.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from regforge.audit.findings import Check, Grade

WIDTH = 100

MARKS: dict[Grade, str] = {"good": "ok", "look": "look", "bad": "BAD", "unknown": "?"}

_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
)


def as_text(head: str, notes: Sequence[str], checks: Sequence[Check], verdict: str) -> str:
    """An audit for people, without any control character that a caption may hold.

    Args:
        head: What was audited.
        notes: What should be known about it, a sentence each.
        checks: What was found.
        verdict: All in one sentence.
    """
    lines = [_cut(head), *(_wrapped(note, "  ") for note in notes), ""]
    if not checks:
        return "\n".join([*lines, "Nothing to audit."])
    marks = max(len(mark) for mark in MARKS.values())
    names = max(len(check.name) for check in checks)
    for check in checks:
        start = f"  {MARKS[check.grade]:<{marks}}  {check.name:<{names}}  "
        lines.append(_wrapped(check.finding, start, " " * len(start)))
    todo = [check for check in checks if check.advice or _shows(check)]
    if todo:
        lines += ["", "What to do"]
    for check in todo:
        start = f"  {check.name:<{names}}  "
        below = " " * len(start)
        lines += [_wrapped(check.advice, start, below)] if check.advice else [start.rstrip()]
        if _shows(check):
            lines += [_cut(f"{below}e.g. {example}") for example in list(check.examples)[:3]]
    return "\n".join([*lines, "", _wrapped(f"{verdict[0].upper()}{verdict[1:]}.", "")])


def _shows(check: Check) -> bool:
    return bool(check.examples) and check.grade in ("look", "bad")


def _wrapped(text: str, start: str, below: str | None = None) -> str:
    return textwrap.fill(
        _printable(text),
        WIDTH,
        initial_indent=start,
        subsequent_indent=start if below is None else below,
        break_on_hyphens=False,
    )


def _cut(line: str) -> str:
    line = _printable(line)
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def _printable(text: str) -> str:
    """Without what moves the cursor, colours the screen, or turns the reading direction."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
