"""Decisions that people made about single images: which go, and why, and what captions should say.

    {"n": 7, "at": "2025-11-29T20:15:02.113Z", "do": "reject", "id": "3f2a9c01b7de-000041",
     "image": "<SHA-256 of its file>", "seed": 1234, "reason": "two spouts", "was": "a photo ..."}

One a line, in `review.jsonl` of a run, or beside a dataset that is not ours, in
`<its name>.review.jsonl`. Lines are only ever added, so that nothing a person did is lost to a kill
or to another page; taking one back is a line too. Whoever reads the dataset leaves out what was
rejected, and `regforge run` draws other images in its place.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from regforge.dataset.store import FURTHEST_ATTEMPT
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import parse_json, storage_errors
from regforge.records import ImageJob, ImageRow
from regforge.words import still_said

Do = Literal["keep", "reject", "caption", "undo"]
Key = tuple[str, str]
"""An image: its id, and the SHA-256 of its file (empty where the dataset does not have it)."""

FILE = "review.jsonl"


class DecisionsError(RegforgeError):
    """Decisions that cannot be read, or that cannot be meant so."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Decision:
    """What somebody decided about an image.

    Attributes:
        image: SHA-256 of the image file, 64 hex digits: an image that is drawn anew under the
            same id is another one. Empty in a dataset that does not have it.
        reason: Why it was rejected, in a few words.
        text: What the caption should say (`caption`).
        was: The caption that the image had.
        redraw: Whether an image of that caption is drawn (`caption`), or this one kept.
        undoes: Numbers of the decisions that are taken back (`undo`).
        n: Its number in the file, from 1.
        at: When, in UTC; those of one action have the same.
    """

    do: Do
    id: str = ""
    image: str = ""
    seed: int | None = None
    reason: str = ""
    text: str = ""
    was: str = ""
    redraw: bool = False
    undoes: tuple[int, ...] = ()
    n: int = 0
    at: str = ""

    @property
    def key(self) -> Key:
        """Which image it is about."""
        return self.id, self.image

    def as_dict(self) -> dict[str, Any]:
        """What it says, without what is as usual."""
        values, usual = asdict(self), {each.name: each.default for each in fields(self)}
        order = ("n", "at", *(name for name in values if name not in ("n", "at")))
        return {name: values[name] for name in order if values[name] != usual[name]}

    @classmethod
    def from_json(cls, value: Any) -> Decision:
        """Read what somebody may have written by hand.

        Raises:
            ValueError: It is no decision; the message says why.
        """
        if not isinstance(value, dict):
            raise ValueError("it is no mapping")
        usual = {each.name: each.default for each in fields(cls)}
        for name, given in value.items():
            if name not in usual:
                raise ValueError(f"there is no key {name!r}")
            if not _fits(name, given, usual[name]):
                raise ValueError(f"`{name}` is {given!r}")
        if (do := value.get("do")) != "undo" and not value.get("id"):
            raise ValueError("it names no image (`id`)")
        if do == "caption" and not str(value.get("text", "")).strip():
            raise ValueError("the caption is empty (`text`)")
        return cls(**{**value, "undoes": tuple(value.get("undoes", ()))})


def _fits(name: str, given: Any, usual: Any) -> bool:
    if name == "do":
        return given in get_args(Do)
    if name == "undoes":
        return isinstance(given, list) and all(type(each) is int for each in given)
    if name == "seed":
        return given is None or type(given) is int
    return usual is not MISSING and type(given) is type(usual)


# ------------------------------------------------------------------------------------- the file


def decisions_of(dataset: Path, run: Path | None) -> Path:
    """Where decisions about a dataset on this machine lie; the file need not be there."""
    if run is not None:
        return run / FILE
    real = dataset.resolve()
    return real.with_name(f"{real.name}.{FILE}")


class DecisionFile:
    """A file of decisions, to which several processes may add.

    A line that a kill left unfinished counts for nothing, and the next writer removes it, unless
    the file is somebody's list, which is taken as a `whole` or not at all.
    """

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self.path = path
        self._whole = whole
        self._known: list[Decision] = []
        self._end, self._last = 0, b""  # bytes that were read, and the last line of them
        self._lock = threading.RLock()

    def read(self) -> Sequence[Decision]:
        """All decisions; reads only what was added since the last call.

        Raises:
            DecisionsError: The file cannot be read, or somebody wrote something else into it.
        """
        with self._lock:
            self._read_on()
            return tuple(self._known)

    def _read_on(self) -> None:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._end - len(self._last))
                if stream.read(len(self._last)) != self._last:  # somebody has edited it
                    self._known, self._end, self._last = [], 0, b""
                stream.seek(self._end)
                lines = stream.read().splitlines(keepends=True)
        except FileNotFoundError:
            self._known, self._end, self._last = [], 0, b""
            return
        except OSError as error:
            raise DecisionsError(f"{self.path} cannot be read: {error.strerror}.") from error
        for line in lines:
            try:
                decision = Decision.from_json(parse_json(line)) if line.strip() else None
            except ValueError as error:
                if not (self._whole or line.endswith(b"\n")):
                    break
                raise DecisionsError(
                    f"{self.path}, decision {len(self._known) + 1}: {error}.",
                    hint="Put the line right, or delete it.",
                ) from error
            self._end, self._last = self._end + len(line), line
            if decision is not None:
                number = decision.n or (self._known[-1].n if self._known else 0) + 1
                self._known.append(replace(decision, n=number))

    def append(self, decisions: Iterable[Decision]) -> list[Decision]:
        """Add the decisions of one action, as one; they are on the disk when this returns.

        Returns:
            The decisions with their numbers and the time.

        Raises:
            DecisionsError: The file cannot be read.
            StorageError: It cannot be written.
        """
        with self._lock, storage_errors(self.path), self.path.open("a+b") as stream:
            _wait_for(stream)
            known = self.read()
            first = (known[-1].n if known else 0) + 1
            at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            new = [replace(each, n=first + k, at=at) for k, each in enumerate(decisions)]
            stream.truncate(self._end)
            stream.seek(max(0, self._end - 1))
            text = "" if stream.read(1) in (b"", b"\n") else "\n"
            text += "".join(
                json.dumps(each.as_dict(), ensure_ascii=False, separators=(", ", ": ")) + "\n"
                for each in new
            )
            stream.write(text.encode("utf-8", errors="replace"))
            stream.flush()
            os.fsync(stream.fileno())
        self.read()
        return new


def _wait_for(stream: BinaryIO) -> None:
    """Hold a file until it is closed, on systems that can."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(stream, fcntl.LOCK_EX)


def kept_file(run: Path, image_id: str, image: str) -> Path | None:
    """The file of an image that was replaced in a run, if it is still there."""
    if not re.fullmatch(r"[0-9a-f]+-[0-9]+ [0-9a-f]{64}", f"{image_id} {image}"):
        return None
    return next(run.glob(f"reviewed/{image_id}.{image[:8]}.*"), None)


# ----------------------------------------------------------------------- what they come to


class Review:
    """What some decisions come to: the later one counts, and one that was undone does not.

    Attributes:
        marks: The decision to keep or to reject an image, where there is one.
        captions: Decisions about captions, in the order in which they were made.
        rejected: The decisions to reject, by the images' ids.
    """

    def __init__(self, decisions: Iterable[Decision] = ()) -> None:
        made = list(decisions)
        undone = {number for each in made for number in each.undoes}
        self.marks: dict[Key, Decision] = {}
        self.captions: dict[Key, Decision] = {}
        self.rejected: dict[str, list[Decision]] = {}
        self._drawn: dict[Key, str] = {}  # what captions said before they were corrected
        self._asked: dict[str, str] = {}
        for each in made:
            if each.do == "caption" and not each.redraw:
                self._drawn.setdefault(each.key, each.was)
            if each.n in undone:
                continue
            if each.do in ("keep", "reject"):
                self.marks[each.key] = each
            elif each.do == "caption":
                self.captions.pop(each.key, None)
                self.captions[each.key] = each
        for each in self.marks.values():
            if each.do == "reject":
                self.rejected.setdefault(each.id, []).append(each)
        for each in self.captions.values():
            if each.redraw:
                self._asked[each.id] = each.text

    @classmethod
    def of(cls, run: Path) -> Review:
        """Read the decisions about a run, if there are any; a DecisionsError if not possible."""
        return cls(DecisionFile(run / FILE).read())

    def decisions(self) -> list[Decision]:
        """Those that count, in the order in which they were made."""
        return sorted([*self.marks.values(), *self.captions.values()], key=lambda each: each.n)

    def goes(self, key: Key) -> bool:
        """Whether another image is to take the place of this one."""
        mark, caption = self.marks.get(key), self.captions.get(key)
        return (mark is not None and mark.do == "reject") or (
            caption is not None and caption.redraw
        )

    def text(self, key: Key, text: str) -> str:
        """The caption of an image that stays, where `text` is the one that is stored with it."""
        caption = self.captions.get(key)
        return self.drawn_text(key, text) if caption is None or caption.redraw else caption.text

    def drawn_text(self, key: Key, text: str) -> str:
        """The caption that an image was drawn from, where `text` is the one stored with it."""
        return self._drawn.get(key, text)

    def corrected(self, row: ImageRow) -> ImageRow:
        """The image with the caption that it should have."""
        text = self.text((row.id, row.image_digest), row.text)
        if text == row.text:
            return row
        scores = {**row.scores, "alignment": None}  # that of the old caption
        return replace(row, text=text, slots=still_said(row.slots, text), scores=scores)

    def is_pending(self, row: ImageRow) -> bool:
        """Whether `regforge run` would change a stored image or its caption."""
        return self.goes((row.id, row.image_digest)) or self.corrected(row) is not row

    def asked_text(self, image_id: str) -> str | None:
        """The caption that an image was to be drawn from instead of its prompt's."""
        return self._asked.get(image_id)

    def first_attempt(self, job: ImageJob, recipe_digest: str) -> ImageJob:
        """The first attempt at an image after all those that were rejected."""
        seeds = [each.seed for each in self.rejected.get(job.id, ())]
        left, first, attempt = set(seeds) - {None}, job, job
        while left and attempt.attempt < FURTHEST_ATTEMPT:
            seed, attempt = attempt.seed, attempt.again(recipe_digest)
            if seed in left:
                left.discard(seed)
                first = attempt
        for _ in range(seeds.count(None)):  # of services that take no seed
            first = first.again(recipe_digest)
        return first
