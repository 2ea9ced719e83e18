"""Captions of another dataset: kept in the run's imported.jsonl, and handed on by the `import` set.

    {"format": 1, "dataset": "user/name", "revision": "0123..."}
    {"text": "a photo of a red teapot", "slots": {"color": "red"}}
    {"text": null}                                                      an image without a caption

They are read once, so that a run goes on whatever becomes of the dataset, and may be edited like
vocabulary.json. Knows nothing of where a dataset comes from, nor of its images.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import open_atomically, parse_json
from regforge.progress import Task
from regforge.prompts.captions import noun_pattern
from regforge.prompts.prompt_sets import Caption
from regforge.prompts.sources import Fault, NotEnoughPrompts, Refused
from regforge.prompts.tokens import TokenBudget
from regforge.recipe.phrases import nonsense
from regforge.records import Example

FORMAT = 1
MOST_READ = 1_000_000
"""Images whose captions are read: a stream may have no end."""

_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of characters, which no file can hold."""


class NotImported(RegforgeError):
    """An imported.jsonl that says something else."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class ImportedCaption:
    """The caption of one image.

    Attributes:
        text: What it says, white space tidied; empty if there is none.
        slots: The phrase in each slot of the dataset that has one.
        language_model: LiteLLM id of the model that supplied phrases, if the dataset says so.
    """

    text: str
    slots: Mapping[str, str] = field(default_factory=dict)
    language_model: str | None = None

    @classmethod
    def of(cls, example: Example) -> ImportedCaption:
        """The caption of an image of any dataset."""
        return cls._of(example.text, example.slots, example.metadata.get("language_model"))

    @classmethod
    def _of(cls, text: object, slots: Mapping[str, object], model: object) -> ImportedCaption:
        phrases = {name: _tidy(phrase) for name, phrase in slots.items()}
        known = {name: phrase for name, phrase in phrases.items() if phrase}
        return cls(_tidy(text), known, _tidy(model) or None)

    def to_json(self) -> str:
        """A line of imported.jsonl, without the line's end."""
        content: dict[str, Any] = {"text": self.text or None}
        if self.slots:
            content["slots"] = dict(self.slots)
        if self.language_model:
            content["language_model"] = self.language_model
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> ImportedCaption:
        """The caption that `to_json` wrote, or that somebody made of it.

        Raises:
            ValueError: The line is none.
        """
        content = parse_json(line)
        if not isinstance(content, dict) or "text" not in content:
            raise ValueError("not a mapping with `text`")
        slots = content.get("slots") or {}
        if not isinstance(slots, dict):
            raise ValueError("`slots` is not a mapping")
        return cls._of(content["text"], slots, content.get("language_model"))


def _tidy(text: object) -> str:
    return " ".join(_NO_TEXT.sub(" ", text).split()) if isinstance(text, str) else ""


@dataclass(frozen=True)
class ImportedCaptions:
    """The captions of a dataset.

    Attributes:
        dataset: Its name, for people.
        captions: One for each image, in the dataset's order; may be gone through several times.
        revision: Commit on the Hub, 40 hex digits; None for a local one.
    """

    dataset: str
    captions: Iterable[ImportedCaption]
    revision: str | None = None

    @classmethod
    def load(cls, path: Path) -> ImportedCaptions:
        """Those in an imported.jsonl; its lines are read when they are needed.

        Raises:
            NotImported: The file is something else.
        """
        saved = _Saved(path)
        try:
            head = parse_json(next(saved.lines(), b""))
            name, revision = head["dataset"], head.get("revision")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotImported(
                f"{path} does not begin with the dataset that its captions are from.",
                hint="Delete it, and the dataset is read again.",
            ) from error
        return cls(str(name), saved, revision)


@dataclass(frozen=True)
class _Saved:
    """The captions in a file."""

    path: Path

    def lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as lines:
            yield from lines

    def __iter__(self) -> Iterator[ImportedCaption]:
        for number, line in enumerate(self.lines(), 1):
            if number == 1 or not line.strip():
                continue
            try:
                caption = ImportedCaption.from_json(line.decode())
            except ValueError as error:
                raise NotImported(
                    f"{self.path}:{number}: is no caption: {error}.",
                    hint="Correct the line, or delete the file, and the dataset is read again.",
                ) from error
            yield caption


def save_captions(
    path: Path,
    dataset: str,
    examples: Iterable[Example],
    *,
    revision: str | None = None,
    class_noun: str,
    task: Task | None = None,
) -> list[str]:
    """Write an imported.jsonl, atomically.

    Args:
        path: The file.
        dataset: The dataset's name, for people.
        examples: Its images in order; only captions and slots are looked at.
        revision: Commit on the Hub, 40 hex digits.
        class_noun: What the captions should be about.
        task: Advances with each image.

    Returns:
        What a person should know of the captions, a sentence each.

    Raises:
        NotImported: No image has a caption; then there is no file.
        StorageError: The file cannot be written.
    """
    noun, found = noun_pattern(class_noun), Counter[str]()
    head = {"format": FORMAT, "dataset": dataset, "revision": revision}
    with open_atomically(path) as stream:
        stream.write((json.dumps(head, ensure_ascii=False) + "\n").encode())
        for example in islice(examples, MOST_READ):
            caption = ImportedCaption.of(example)
            stream.write((caption.to_json() + "\n").encode())
            found["images"] += 1
            found["captions"] += bool(caption.text)
            found["naming"] += bool(noun.search(caption.text))
            if task is not None:
                task.advance()
        if not found["captions"]:
            raise NotImported(
                f"No image of {dataset} has a caption.",
                hint="Captions stand in the column that prompts.import.caption_column names, or "
                "in text files beside the images.",
            )
    return list(_notes(dataset, found, class_noun))


def _notes(dataset: str, found: Mapping[str, int], class_noun: str) -> Iterator[str]:
    if found["images"] == MOST_READ:
        yield f"Of {dataset} no more than the first {MOST_READ:,} images count."
    if found["naming"] < found["captions"] / 2:
        yield (
            f"warning: only {found['naming']:,} of {found['captions']:,} captions of {dataset} "
            f"name the class noun, {class_noun!r}. Is it the right dataset?"
        )


class ImportSource:
    """The `import` set at work: hands on what may be said, in the dataset's order.

    Args:
        imported: The captions.
        slots: The recipe's, which are taken over where the dataset has them too.
        budget: The longest caption; a longer one is passed over, for nobody else's words are cut.
        refused: Gets what was passed over.
    """

    name = "import"
    language_model: str | None = None

    def __init__(
        self,
        imported: ImportedCaptions,
        slots: Sequence[str],
        budget: TokenBudget,
        refused: Refused,
    ) -> None:
        self._imported = imported
        self._slots = tuple(slots)
        self._budget = budget
        self._refused = refused
        self._images = self._without = self._made = 0

    def captions(self, fault: Callable[[Caption], Fault | None]) -> Iterator[Caption]:
        """The captions that can be used, until there are no more.

        Args:
            fault: Judges a caption; None means that it is taken.
        """
        for each in self._imported.captions:
            self._images += 1
            if not each.text:
                self._without += 1
                continue
            slots = {
                slot: None if nonsense(each.slots.get(slot, ""), slot) else each.slots[slot]
                for slot in self._slots
            }
            caption = Caption(each.text, slots, language_model=each.language_model)
            if (
                found := self._said_nothing(each.text)
                or self._too_long(each.text)
                or fault(caption)
            ):
                self._refused.add(found, each.text)
            else:
                self._made += 1
                yield caption

    def _said_nothing(self, text: str) -> Fault | None:
        why = nonsense(text)
        return ("are no captions", why) if why else None

    def _too_long(self, text: str) -> Fault | None:
        if self._budget.fits(text):
            return None
        tokens = self._budget.count(text)
        return f"have more than {self._budget.limit} tokens", f"has {tokens} tokens"

    def not_enough(self, index: int, count: int) -> NotEnoughPrompts:
        """The error for a set that has no more captions.

        Args:
            index: How many prompts there are, of all sets.
            count: How many there should be.
        """
        there = f"It has {self._images:,} images"
        if self._without:
            there += f", {self._without:,} without a caption"
        if str(self._refused):
            there += f"; of its captions {self._refused}"
        fewer = f"or set prompts.count to {index}" if index else "or leave the set out"
        return NotEnoughPrompts(
            f"Only {index:,} of {count:,} captions could be made: the import set has no more after "
            f"{self._made:,} captions of {self._imported.dataset}. {there}.",
            hint="Name a larger dataset in `prompts.import`, lower the share of import in "
            f"`prompts.sets`, {fewer}. ledger.jsonl has what was refused. If the dataset has "
            "grown, delete imported.jsonl, and it is read again.",
        )
