"""The log and the ledger of a run, its progress for people, and how secrets are kept out of all.

    log.jsonl      calls, tokens, cost, timings: {"time": ..., "event": "llm_call", ...}
    ledger.jsonl   everything that was refused or went wrong, with the reason and the raw reply:
                   {"time": ..., "stage": "prompts", "item": ..., "reason": ...}

Lines are appended and never changed; one that a kill has cut in half is ended before the next one.
Progress goes to standard error: a live bar on a terminal, plain lines in a log, or nothing.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from regforge.files import parse_json, storage_error
from regforge.words import duration

_RAW_LIMIT = 20_000

_HIDDEN = "[secret]"
_SHAPES = re.compile(
    r"(?:\b|(?<=_))(?:"
    r"(?:hf_|sk-|sk_|rk_live_|api_org_|gsk_|xai-|r8_|npm_|pypi-|glpat-|xox[abeprs]-|ya29\.)[\w.-]{8,}"
    r"|(?:gh[opsur]|github_pat)_\w{8,}"
    r"|AIza[\w-]{8,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{12,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JSON web token
    r")"
)
_MARKS = re.compile(  # quicker to look for
    r"hf_|sk[-_]|rk_live_|api_org_|gsk_|xai-|r8_|npm_|pypi-|glpat-|xox|ya29\.|gh[opsur]_"
    r"|github_pat_|AIza|AKIA|ASIA|eyJ"
)
_HEADERS = re.compile(
    r"(?P<before>\b(?-i:Bearer)(?:\s|%20|\+)+|\bauthorization(?:\\?[\"'])?\s*[:=]\s*(?:\\?[\"'])?"
    r"(?:(?:basic|bearer|token|key)\s+)?|\bx?-?api-key(?:\\?[\"'])?\s*[:=]\s*(?:\\?[\"'])?"
    r"|[?&](?:api[-_]?key|key|(?:access_|auth_)?token|password|sig)=)(?P<secret>[^\s\"'\\&,;<>]{6,})",
    re.I,
)
_BASIC = re.compile(r"\b(Basic(?:\s|%20)+)([\w+/-]{4,}={0,2})", re.I)
_LOGIN = re.compile(r"((?::|%3A)(?:\\*/|%2F){2})[^\s/@\"'<>:]*(?::|%3A)[^\s/\"'<>]*(?=@|%40)", re.I)
_NAMED_SECRET = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)S?(?:_?\d+)?$", re.I)
_SPOKEN_OF = r"(?:key|token|secret|password|bearer|basic)\W{1,20}(?:\w+\W{1,3}){0,2}?"


class Journal:
    """The log and the ledger of one run, or of none; safe to use from several threads."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self.failures = 0

    @property
    def ledger(self) -> Path | None:
        """None if nothing is written down."""
        return None if self.folder is None else self.folder / "ledger.jsonl"

    def events(self) -> Iterator[dict[str, Any]]:
        """The entries of the log so far, of earlier sessions too."""
        return iter(()) if self.folder is None else read(self.folder / "log.jsonl")

    def event(self, event: str, **fields: Any) -> None:
        """Log something that happened: its name in snake case, and anything that JSON can hold."""
        self._append("log.jsonl", {"event": event, **fields})

    def failure(self, stage: str, item: str, reason: str, raw: str | None = None) -> None:
        """Write something that was refused or went wrong into the ledger.

        The stage is `prompts`, `images` or `dataset`; the item such as `slot color, call 2` or an
        image's id; the reason one sentence.
        """
        self.failures += 1
        entry: dict[str, Any] = {"stage": stage, "item": item, "reason": reason}
        if raw is not None:
            entry["raw"] = without_secrets(raw)[:_RAW_LIMIT]  # half a key would not be known
        self._append("ledger.jsonl", entry)

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        if self.folder is None:
            return
        stamped = {"time": round(time.time(), 3), **entry}
        line = json.dumps(_clean(stamped), ensure_ascii=False) + "\n"
        path = self.folder / name
        try:
            with self._lock:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a+b", buffering=0) as stream:
                    if end := stream.tell():
                        stream.seek(end - 1)
                        line = line if stream.read(1) == b"\n" else f"\n{line}"
                    rest = line.encode(errors="replace")
                    while rest:  # a disk that is nearly full takes a part
                        rest = rest[stream.write(rest) :]
        except OSError as error:
            raise storage_error(path, error) from error


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a log or ledger; a half-written line is left out."""
    if not path.is_file():
        return
    with path.open("rb") as lines:  # of text, other characters than \n could end a line
        for line in lines:
            try:
                entry = parse_json(line.decode(errors="replace"))
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def calls(events: Iterable[Mapping[str, Any]], kind: str) -> Iterator[Mapping[str, Any]]:
    """The `llm_call` or `image_call` entries, with calls that a kill left without an end."""
    sent: dict[str, Mapping[str, Any]] = {}
    for entry in events:
        if entry.get("event") == kind:
            sent.pop(str(entry.get("call")), None)
            yield entry
        elif entry.get("event") == f"{kind}_sent":
            sent[str(entry.get("call"))] = entry
    for entry in sent.values():
        yield {**entry, "event": kind, "error": "Killed before the reply came.", "cost": 0.0}


def _clean(value: Any) -> Any:
    """The value as JSON can hold it, without secrets in any text."""
    if isinstance(value, Mapping):
        return {without_secrets(str(key)): _clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each) for each in value]
    plain = value is None or isinstance(value, bool | int | float)
    return value if plain else without_secrets(str(value))


def without_secrets(text: str) -> str:
    """The text with everything that looks like a token or key blotted out.

    That is every value of an environment variable whose name ends like KEY, TOKEN, SECRET or
    PASSWORD, also as JSON, URLs and HTML write it; tokens of well-known shapes; what follows
    `Authorization`, `Bearer` and `Basic`; and the login in a URL. A value of less than
    eight characters that is a plain word or number, or of less than four, is hidden only where a
    key is spoken of: it is likely to be `none`, and captions and names of models consist of words.
    """
    low = text.lower()  # looking for words first is quicker: there may be a million captions
    if "@" in low or "%40" in low:
        text = _LOGIN.sub(rf"\1{_HIDDEN}", text)
    if "basic" in low:
        text = _BASIC.sub(_without_login, text)
    if any(mark in low for mark in ("bearer", "authorization", "api-key", "=")):
        text = _HEADERS.sub(rf"\g<before>{_HIDDEN}", text)
    values = {value.strip() for name, value in os.environ.items() if _names_secret(name)}
    if (own := _written_as_any_of(frozenset(values))) is not None:
        text = own.sub(lambda found: f"{found['before'] or ''}{_HIDDEN}", text)
    return _SHAPES.sub(_HIDDEN, text) if _MARKS.search(text) else text


@functools.cache
def _names_secret(variable: str) -> bool:
    return _NAMED_SECRET.search(variable) is not None


def _without_login(found: re.Match[str]) -> str:
    """The header without its value, if that is a login; "basic colours" is none."""
    try:
        decoded = base64.b64decode(found[2] + "=" * (-len(found[2]) % 4), validate=True)
    except ValueError:
        return found[0]
    return f"{found[1]}{_HIDDEN}" if b":" in decoded else found[0]


@functools.lru_cache(maxsize=8)
def _written_as_any_of(values: frozenset[str]) -> re.Pattern[str] | None:
    """Matches the values in every form that they are written in; None if there are none."""
    long = sorted((value for value in values if len(value) >= 8), key=len, reverse=True)
    short = [value for value in values if 0 < len(value) < 8]
    plain = {
        value for value in short if len(value) < 4 or re.fullmatch(r"[^\W\d]+|[\d.+-]+", value)
    }
    words = [_any_form(value) for value in plain]
    ways = [_any_form(value) for value in long]
    alone = r"(?:(?<!\w)|(?<=%[0-9A-Fa-f]{2}))"
    ways += [rf"{alone}{_any_form(value)}(?!\w)" for value in short if value not in plain]
    if not ways and not words:
        return None
    never = "(?!)"
    spoken = rf"(?P<before>{_SPOKEN_OF})(?:{'|'.join(words) or never})(?!\w)"
    return re.compile("|".join((spoken, *ways)), re.I)


def _any_form(value: str) -> str:
    return "".join(map(_forms_of, value))


@functools.cache
def _forms_of(character: str) -> str:
    """Matches a character as it is, and as JSON (once and twice), URLs and HTML write it."""
    import html

    if character.isascii() and character.isalnum():
        return character
    once = json.dumps(character)[1:-1]
    forms = {
        character,
        once,
        json.dumps(character, ensure_ascii=False)[1:-1],
        json.dumps(once)[1:-1],
        quote(character, safe=""),
        quote(character, safe="").lower(),
        f"%{ord(character):02X}",
        f"%{ord(character):02x}",
        html.escape(character),
        f"&#{ord(character)};",
        f"\\u{ord(character):04x}",
        *("+" if character == " " else ""),
    }
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})"


# --------------------------------------------------------------------------------------- progress

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
    """One piece of work with a known or unknown length; made by `Reporter.task`."""

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
        self.done_before = done
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
        self.done_before += count
        self.advance(count)

    def restart(self) -> None:
        """Count time from here on if nothing was done yet: loading is no part of the rate."""
        if self.done == self.done_before:
            self._start = time.monotonic()

    @property
    def rate(self) -> float:
        """Units a second in this session; 0.0 before the first."""
        seconds = time.monotonic() - self._start
        return (self.done - self.done_before) / seconds if seconds > 0 else 0.0

    def describe(self) -> str:
        """Such as `rendering: 24 of 64 images, 3.1/s, 13 s left`."""
        total = f" of {self.total}" if self.total is not None else ""
        text = f"{self.name}: {self.done}{total} {self.unit}"
        rate_known = self.done - self.done_before > 1  # the first of a batch says nothing of it
        if rate_known and self.rate > 0:
            text += f", {_per_second(self.rate)}"
            if self.total is not None and self.total > self.done:
                text += f", {duration((self.total - self.done) / self.rate)} left"
        return f"{text}, {self.remark}" if self.remark else text


class Reporter:
    """Where progress goes: standard error by default, with a live bar only on a terminal."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._print: Callable[..., object] = functools.partial(print, flush=True)

    def say(self, line: str) -> None:
        """Print one line."""
        if not self._quiet:
            self._print(printable(line), file=self._stream)

    @contextmanager
    def task(
        self, name: str, total: int | None, unit: str = "items", done: int = 0
    ) -> Iterator[Task]:
        """Show a piece of work while the block runs; an earlier session may have `done` units."""
        if self._quiet:
            yield Task(name, total, unit, done)
        elif self._stream.isatty() or _in_notebook():
            from tqdm.auto import tqdm

            with tqdm(
                desc=name,
                total=total,
                initial=done,
                unit=f" {unit}",
                file=self._stream,
                dynamic_ncols=True,
            ) as bar:
                self._print = bar.write  # above the bar

                def show_bar(task: Task) -> None:
                    bar.total, bar.initial = task.total, task.done_before
                    bar.set_postfix_str(task.remark, refresh=False)
                    bar.update(task.done - bar.n)

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


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this; a console's IPython is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def _per_second(rate: float) -> str:
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each" if rate > 0 else ""
