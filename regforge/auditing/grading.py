"""Puts the checks of an audit together, and says one verdict over all of them.

The order is that of reading: what is there twice, what captions say, what is known, whether the
subject leaks, what the images are like, and last what follows for training.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from regforge.auditing import images as files
from regforge.auditing import leakage, slots
from regforge.auditing.captions import caption_checks, word_coverage
from regforge.auditing.gathering import Check, Gathered, gather, has_stored_hashes, printable
from regforge.dataset.sources import CaptionedDataset, open_dataset
from regforge.display import Tabular
from regforge.embedded import EMBEDDED
from regforge.files import parse_json
from regforge.journal import Reporter
from regforge.prompts.tokens import TokenBudget, estimated_budget, token_budget
from regforge.recipe import Render
from regforge.recipe.named_files import content_of
from regforge.records import Example, ImageRow
from regforge.words import counted

WIDTH = 100
MARKS = {"good": "ok", "look": "look", "bad": "BAD", "unknown": "?"}

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_BYTES = 2**26
# What moves the cursor, colours the screen, or turns the reading direction.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Audit(Tabular):
    """What an audit found. Its rows are the checks.

    Attributes:
        checks: In the order in which to read them.
        source: The name of the dataset.
        layout: What the dataset is: `regforge`, `folder`, ...
        revision: Commit on the Hub, or None.
        notes: What the reader of the dataset had to say, a sentence each.
    """

    source: str
    images: int
    checks: Sequence[Check]
    layout: str = ""
    revision: str | None = None
    notes: Sequence[str] = ()

    @property
    def grade(self) -> str:
        """The worst grade of any check; `unknown` ones do not count."""
        grades = {check.grade for check in self.checks}
        return "bad" if "bad" in grades else "look" if "look" in grades else "good"

    @property
    def verdict(self) -> str:
        """All in one line: `usable; 2 things worth a look: class noun, image files`."""
        found = [check.name for check in self.checks if check.grade == self.grade]
        if self.grade == "bad":
            return f"not fit for training as it is: {', '.join(found)}"
        if self.grade == "look":
            return f"usable; {counted(len(found), 'thing')} worth a look: {', '.join(found)}"
        return "fit for training"

    def rows(self) -> list[dict[str, Any]]:
        """One row a check."""
        facts = ("grade", "finding", "advice")
        return [
            {"check": each.name, **{name: getattr(each, name) for name in facts}}
            for each in self.checks
        ]

    def as_dict(self) -> dict[str, Any]:
        """For scripts; the keys stay the same from version to version."""
        return {
            "dataset": self.source,
            "layout": self.layout,
            "revision": self.revision,
            "images": self.images,
            "grade": self.grade,
            "verdict": self.verdict,
            "notes": list(self.notes),
            "checks": [asdict(check) | {"examples": list(check.examples)} for check in self.checks],
        }

    def as_text(self) -> str:
        """For a terminal, a pipe or a log: at most 100 columns, no control characters."""
        head = f"{self.source}: {counted(self.images, 'image')}"
        head += f", {self.layout}" if self.layout else ""
        head += f", revision {self.revision[:12]}" if self.revision else ""
        lines = [_cut(head), *(_wrapped(note, "  ", "  ") for note in self.notes), ""]
        if not self.checks:
            return "\n".join([*lines, "Nothing to audit."])
        names = max(len(check.name) for check in self.checks)
        for check in self.checks:
            start = f"  {MARKS[check.grade]:<4}  {check.name:<{names}}  "
            lines.append(_wrapped(check.finding, start, " " * len(start)))
        todo = []
        for check in self.checks:
            start = f"  {check.name:<{names}}  "
            below = " " * len(start)
            shown = list(check.examples)[:3] if check.grade in ("look", "bad") else []
            if check.advice:
                todo.append(_wrapped(check.advice, start, below))
            elif shown:
                todo.append(start.rstrip())
            todo += [_cut(f"{below}e.g. {example}") for example in shown]
        lines += ["", "What to do", *todo] if todo else []
        verdict = f"{self.verdict[0].upper()}{self.verdict[1:]}."
        return "\n".join([*lines, "", _wrapped(verdict, "", "")])


def _wrapped(text: str, start: str, below: str) -> str:
    return textwrap.fill(
        _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text),
        WIDTH,
        initial_indent=start,
        subsequent_indent=below,
        break_on_hyphens=False,
    )


def _cut(line: str) -> str:
    line = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", line)
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def audit_dataset(
    dataset: str | os.PathLike[str] | CaptionedDataset,
    *,
    subject: str | os.PathLike[str] | None = None,
    identifier: str | None = None,
    class_noun: str | None = None,
    photos: int | None = None,
    resolution: int | None = None,
    thorough: bool = False,
    reporter: Reporter | None = None,
) -> Audit:
    """Audit a dataset; only reads.

    The images of a dataset that stores their hashes stay closed, unless they are asked for or
    have to be compared with the subject's.

    Args:
        dataset: What `open_dataset` takes, or an opened dataset; ours or anybody's.
        subject: Folder with photos of the subject, to look for it among the images.
        identifier: The token that captions must not say; the run's own if left out.
        class_noun: What the images show, where the dataset does not say it.
        photos: How many photos the subject has, for the suggested repeats; those in `subject`, or
            5, if left out.
        resolution: Side of a square that the trainer trains at; if left out, sizes are compared
            with nothing.
        thorough: Open all images, also where their hashes are stored.
        reporter: Gets progress.

    Raises:
        RegforgeError: The dataset cannot be read, or `subject` has no photos.
    """
    if isinstance(dataset, str | os.PathLike):
        dataset = open_dataset(os.fspath(dataset))
    run = read_run(dataset.run)
    theirs = leakage.photos_of(Path(subject)) if subject is not None else None
    first = next(iter(dataset.examples(images=False)), None)
    likeness = None
    if theirs is not None and first is not None and first.metadata.get("model") == EMBEDDED:
        likeness = leakage.Likeness(theirs)
    found = gather(
        dataset,
        images=thorough or likeness is not None or not first or not has_stored_hashes(first),
        class_noun=class_noun,
        see=likeness.see if likeness else None,
        reporter=reporter,
    )
    notes = [printable(note) for note in dataset.notes]
    left_out = [note for note in notes if note.startswith("Left out") and " read" in note]
    checks = [
        files.exact_duplicates(found),
        files.near_duplicates(found),
        *caption_checks(found, _budget(found)),
        *_slot_checks(found, run),
        files.metadata(found),
        files.licence(dataset.license or run.license),
        leakage.identifier(found, identifier or run.identifier),
        leakage.subject_copies(found, theirs),
        *([likeness.check()] if likeness else [leakage.NO_ENCODER] if theirs else []),
        files.sizes(found, resolution),
        files.file_problems(found, curated=run.curated, left_out=left_out),
    ]
    count = photos or (len(theirs) if theirs else files.PHOTOS)
    by_name = {check.name: check for check in checks}
    checks.append(files.suggestions(len(found.ids), count, by_name))
    return Audit(
        source=printable(dataset.name),
        images=len(found.ids),
        checks=checks if found.ids else [],
        layout=dataset.layout,
        revision=dataset.revision,
        notes=tuple(notes),
    )


def _slot_checks(found: Gathered, run: RunFacts) -> list[Check]:
    followed = slots.followed(found)
    more = [followed] if followed else []
    if any(value for values in found.slots.values() for value in values):
        return [slots.coverage(found, run.offered), slots.pairs(found), *more]
    return [word_coverage(found), *more]


def _budget(found: Gathered) -> TokenBudget:
    """That of the model which drew most images; only what is on this machine is asked."""
    if not found.models:
        return estimated_budget("nobody says which model drew the images")
    (model, revision), _ = found.models.most_common(1)[0]
    commit = revision if revision and _COMMIT.fullmatch(revision) else None
    with suppress(ValueError):  # a name that no recipe would take
        return token_budget(Render(model=model, revision=commit), offline=True)
    return estimated_budget(f"{model[:80]!r} is no model's name")


# ------------------------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class RunFacts:
    """What the folder of a run adds to its dataset.

    Attributes:
        identifier: The subject's, or None.
        license: The dataset's, or None.
        curated: Whether black and single-coloured images were refused; None if not known.
        offered: Phrases on offer by slot.
    """

    identifier: str | None
    license: str | None
    curated: bool | None
    offered: Mapping[str, Sequence[str]]


def read_run(folder: Path | None) -> RunFacts:
    """Read the recipe and the vocabulary of a run.

    What is missing or damaged says nothing; it is the run's trouble, not the audit's.
    """
    recipe: Any = None
    offered = {}
    if folder is not None:
        with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
            recipe = yaml.safe_load(content_of(folder / "recipe.yaml", folder, _MOST_BYTES))
        with suppress(OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            vocabulary = parse_json(content_of(folder / "vocabulary.json", folder, _MOST_BYTES))
            slots_ = vocabulary["slots"].items()
            offered = {str(name): [str(value) for value in s["values"]] for name, s in slots_}

    def value(section: str, key: str, kind: type) -> Any:
        table = recipe.get(section) if isinstance(recipe, dict) else None
        found = table.get(key) if isinstance(table, dict) else None
        return found if isinstance(found, kind) else None

    return RunFacts(
        identifier=(value("subject", "identifier", str) or "").strip() or None,
        license=(value("dataset", "license", str) or "").strip() or None,
        curated=value("curate", "constant", bool),
        offered=offered,
    )


_COLUMNS = frozenset("image text width height class_noun kind prompt_set slots id".split())
_METADATA = tuple(each.name for each in fields(ImageRow) if each.name not in _COLUMNS)


class StoredRows:
    """A `CaptionedDataset` of a run's rows that are in memory already, without their images."""

    def __init__(self, name: str, rows: Sequence[ImageRow], run: Path) -> None:
        self.name = name
        self.layout = "regforge"
        self.revision: str | None = None
        self.license: str | None = read_run(run).license
        self.slots: tuple[str, ...] = tuple(dict.fromkeys(n for row in rows for n in row.slots))
        self.run: Path | None = run
        self.notes: list[str] = []
        self._rows = rows

    def examples(self, *, images: bool = True) -> Iterator[Example]:
        """The rows; their images only if they have them, whatever is asked for."""
        for row in self._rows:
            columns = {name: getattr(row, name) for name in _COLUMNS}
            metadata = {name: getattr(row, name) for name in _METADATA}
            yield Example(**columns | {"image": row.image if images else b"", "metadata": metadata})
