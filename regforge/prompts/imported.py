"""Captions of another dataset: kept in the run's imported.jsonl, and handed on by the `import` set.

    {"format": 1, "dataset": "user/name", "revision": "0123..."}
    {"text": "a photo of a red teapot", "slots": {"color": "red"}}
    {"text": null}                                                      an image without a caption

They are read once, so that a run goes on whatever becomes of the dataset, and may be edited like
vocabulary.json.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import open_atomically, parse_json
from regforge.journal import Task
from regforge.prompts.captions import noun_pattern
from regforge.prompts.prompt_sets import Caption, Fault, NotEnoughPrompts, PromptSet
from regforge.recipe.phrases import nonsense
from regforge.records import Example

FORMAT = 1
MOST_READ = 1_000_000
"""Images whose captions are read: a stream may have no end."""

NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of characters, which no file can hold."""


class NotImported(RegforgeError):
    """An imported.jsonl that cannot be used."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class ImportedCaption:
    """The caption of one image.

    Attributes:
        text: White space tidied; empty if there is none.
        slots: The phrase in each slot of the dataset that has one.
        language_model: LiteLLM id of the model that supplied phrases, if the dataset names one.
    """

    text: str
    slots: Mapping[str, str] = field(default_factory=dict)
    language_model: str | None = None

    @classmethod
    def of(cls, example: Example) -> ImportedCaption:
        """Take the caption of an image of any dataset."""
        return cls._of(example.text, example.slots, example.metadata.get("language_model"))

    @classmethod
    def _of(cls, text: object, slots: Mapping[str, object], model: object) -> ImportedCaption:
        known = {name: tidied for name, phrase in slots.items() if (tidied := _tidy(phrase))}
        return cls(_tidy(text), known, _tidy(model) or None)

    def to_json(self) -> str:
        """Format a line of imported.jsonl, without the line's end."""
        content: dict[str, Any] = {"text": self.text or None}
        if self.slots:
            content["slots"] = dict(self.slots)
        if self.language_model:
            content["language_model"] = self.language_model
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> ImportedCaption:
        """Read a line that `to_json` wrote, or that somebody made of it.

        Raises:
            ValueError: The line is no caption.
        """
        content = parse_json(line)
        if not isinstance(content, dict) or "text" not in content:
            raise ValueError("not a mapping with `text`")
        slots = content.get("slots") or {}
        if not isinstance(slots, dict):
            raise ValueError("`slots` is not a mapping")
        return cls._of(content["text"], slots, content.get("language_model"))


def _tidy(text: object) -> str:
    return " ".join(NO_TEXT.sub(" ", text).split()) if isinstance(text, str) else ""


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
        """Open an imported.jsonl; its lines are read when they are needed.

        Raises:
            NotImported: The file is something else.
        """
        try:
            with path.open("rb") as lines:
                head = parse_json(next(lines, b""))
            name, revision = head["dataset"], head.get("revision")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotImported(
                f"{path} does not begin with the dataset that its captions are from.",
                hint="Delete it, and the dataset is read again.",
            ) from error
        return cls(str(name), _Saved(path), revision)


@dataclass(frozen=True)
class _Saved:
    """The captions in a file."""

    path: Path

    def __iter__(self) -> Iterator[ImportedCaption]:
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1 or not line.strip():
                    continue
                try:
                    yield ImportedCaption.from_json(line.decode())
                except ValueError as error:
                    raise NotImported(
                        f"{self.path}:{number}: is no caption: {error}.",
                        hint="Correct the line, or delete the file, and the dataset is read again.",
                    ) from error


def save_captions(
    path: Path,
    dataset: str,
    examples: Iterable[Example],
    *,
    revision: str | None = None,
    class_noun: str,
    task: Task | None = None,
) -> list[str]:
    """Write an imported.jsonl, atomically, from the captions and slots of a dataset's images.

    Returns:
        Notes on the captions, a sentence each.

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
    notes = []
    if found["images"] == MOST_READ:
        notes.append(f"Of {dataset} no more than the first {MOST_READ:,} images count.")
    if found["naming"] < found["captions"] / 2:
        notes.append(
            f"warning: only {found['naming']:,} of {found['captions']:,} captions of {dataset} "
            f"name the class noun, {class_noun!r}. Is it the right dataset?"
        )
    return notes


@dataclass(kw_only=True)
class ImportSet(PromptSet):
    """The `import` set: hands on usable captions in the dataset's order, with the recipe's slots.

    A caption over the token limit is passed over: nobody else's words are cut.
    """

    name = "import"
    imported: ImportedCaptions
    _images: int = 0
    _without: int = 0

    def captions(self, fault: Callable[[Caption], Fault | None]) -> Iterator[Caption]:
        """Yield the captions that can be used, until there are no more."""
        for each in self.imported.captions:
            self._images += 1
            if not each.text:
                self._without += 1
                continue
            slots = {
                slot: None if nonsense(each.slots.get(slot, ""), slot) else each.slots[slot]
                for slot in self.slots
            }
            caption = Caption(each.text, slots, language_model=each.language_model)
            if found := self._fault(each.text) or fault(caption):
                self.refuse(found, each.text)
            else:
                self.made += 1
                yield caption

    def _fault(self, text: str) -> Fault | None:
        if why := nonsense(text):
            return "are no captions", why
        if self.budget.fits(text):
            return None
        tokens = self.budget.count(text)
        return f"have more than {self.budget.limit} tokens", f"has {tokens} tokens"

    def not_enough(self, index: int, count: int) -> NotEnoughPrompts:
        """Build the error, with what the dataset has and what was passed over."""
        there = f"It has {self._images:,} images"
        there += f", {self._without:,} without a caption" if self._without else ""
        there += f"; of its captions {refused}" if (refused := self.refusals()) else ""
        fewer = f"or set prompts.count to {index}" if index else "or leave the set out"
        return NotEnoughPrompts(
            f"Only {index:,} of {count:,} captions could be made: the import set has no more after "
            f"{self.made:,} captions of {self.imported.dataset}. {there}.",
            hint="Name a larger dataset in `prompts.import`, lower the share of import in "
            f"`prompts.sets`, {fewer}. ledger.jsonl has what was refused. If the dataset has "
            "grown, delete imported.jsonl, and it is read again.",
        )
