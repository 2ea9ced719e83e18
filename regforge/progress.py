"""Shows how far the work is: a live bar on a terminal, plain lines in a log, or nothing.

Everything goes to standard error; standard output belongs to results.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from regforge.journal import without_secrets

if TYPE_CHECKING:
    from rich.progress import Progress

_SECONDS_BETWEEN_LINES = 10.0
_CONTROL = {
    code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}


def printable(text: str) -> str:
    """The text with control characters spelled out, as JSON spells them, and without secrets.

    Captions and file names may come from anybody; a terminal obeys what it is sent.
    """
    return without_secrets(text).translate(_CONTROL)


class Task:
    """One piece of work with a known or unknown length; made by `Reporter.task`.

    Args:
        show: Called after each change.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        unit: str,
        done: int,
        show: Callable[[Task], None] | None = None,
    ) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = done
        self.remark = ""
        self._show = show
        self._done_before = done
        self._start = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count so many more units as done."""
        self.done += count
        if self._show is not None:
            self._show(self)

    def note(self, remark: str) -> None:
        """Show this beside the numbers, from the next change on."""
        self.remark = remark

    def extend(self, count: int) -> None:
        """Raise the total."""
        if self.total is not None:
            self.total += count

    def skip(self, count: int) -> None:
        """Count units that were done before; they do not count in the rate."""
        self._done_before += count
        self.advance(count)

    @property
    def rate(self) -> float:
        """Units a second in this session; 0.0 before the first."""
        seconds = time.monotonic() - self._start
        return (self.done - self._done_before) / seconds if seconds > 0 else 0.0

    def describe(self) -> str:
        """Such as `rendering: 24 of 64 images, 3.1/s, 13 s left`."""
        total = f" of {self.total}" if self.total is not None else ""
        text = f"{self.name}: {self.done}{total} {self.unit}"
        if self.rate > 0:
            text += f", {_per_second(self.rate)}"
            if self.total is not None and self.total > self.done:
                text += f", {duration((self.total - self.done) / self.rate)} left"
        return f"{text}, {self.remark}" if self.remark else text


class Reporter:
    """Where progress goes: standard error by default, with a live bar only on a terminal."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr

    def say(self, line: str) -> None:
        """Print one line."""
        if not self._quiet:
            print(printable(line), file=self._stream, flush=True)

    @contextmanager
    def task(
        self, name: str, total: int | None, unit: str = "items", done: int = 0
    ) -> Iterator[Task]:
        """Show a piece of work while the block runs; an earlier session may have `done` units."""
        if self._quiet:
            yield Task(name, total, unit, done)
        elif self._stream.isatty():
            with _live_bar(self._stream) as bar:
                number = bar.add_task(name, total=total, completed=done, speed="", unit=unit)

                def show_bar(task: Task) -> None:
                    speed: Any = ", ".join(filter(None, (_per_second(task.rate), task.remark)))
                    bar.update(number, total=task.total, completed=task.done, speed=speed)

                yield Task(name, total, unit, done, show_bar)
        else:
            shown, last = "", time.monotonic()

            def show_line(task: Task, *, now: bool = False) -> None:
                nonlocal shown, last
                if now or time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                    last = time.monotonic()
                    if shown != (line := task.describe()):
                        self.say(line)
                    shown = line

            task = Task(name, total, unit, done, show_line)
            try:
                yield task
            finally:
                show_line(task, now=True)


@contextmanager
def _live_bar(stream: TextIO) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as progress:
        yield progress


def _per_second(rate: float) -> str:
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each" if rate > 0 else ""


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
