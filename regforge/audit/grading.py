"""Puts the checks of an audit together, and says one verdict over all of them.

The order is that of reading: what is there twice, what captions say, what is known, whether the
subject leaks, what the images are like, and last what follows for training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regforge.audit import captions, copies, files, leakage, provenance, sizes, slots, words
from regforge.audit.findings import Check, Grade
from regforge.audit.gathering import Gathered, first_of, gather, has_stored_hashes, sayable
from regforge.audit.run_facts import RunFacts, run_facts
from regforge.audit.terminal import as_text
from regforge.audit.training import PHOTOS, suggestions
from regforge.dataset.sources import CaptionedDataset
from regforge.progress import Reporter
from regforge.prompts.tokens import EMBEDDED, TokenBudget, estimated_budget, token_budget
from regforge.recipe import Render

__all__ = ["Audit", "Check", "Grade", "audit_dataset"]

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        dataset: Its name.
        images: How many.
        checks: In the order in which to read them.
        layout: What the dataset is: `regforge`, `folder`, ...
        revision: Commit on the Hub, or None.
        notes: What the reader of the dataset had to say, a sentence each.
    """

    dataset: str
    images: int
    checks: Sequence[Check]
    layout: str = ""
    revision: str | None = None
    notes: Sequence[str] = ()

    @property
    def grade(self) -> Grade:
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
            things = "1 thing" if len(found) == 1 else f"{len(found)} things"
            return f"usable; {things} worth a look: {', '.join(found)}"
        return "fit for training"

    def as_dict(self) -> dict[str, Any]:
        """For scripts; the keys stay the same from version to version."""
        return {
            "dataset": self.dataset,
            "layout": self.layout,
            "revision": self.revision,
            "images": self.images,
            "grade": self.grade,
            "verdict": self.verdict,
            "notes": list(self.notes),
            "checks": [
                {**asdict(check), "numbers": dict(check.numbers), "examples": list(check.examples)}
                for check in self.checks
            ],
        }

    def as_text(self) -> str:
        """For a terminal, at most 100 columns wide."""
        head = f"{self.dataset}: {self.images:,} image{'s' * (self.images != 1)}"
        head += f", {self.layout}" if self.layout else ""
        head += f", revision {self.revision[:12]}" if self.revision else ""
        return as_text(head, self.notes, self.checks, self.verdict)


def audit_dataset(
    dataset: CaptionedDataset,
    *,
    subject: Path | None = None,
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
        dataset: Any.
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
    run = run_facts(dataset.run)
    theirs = leakage.photos_of(subject) if subject is not None else None
    first = first_of(dataset)
    likeness = None
    if theirs is not None and first is not None and first.metadata.get("model") == EMBEDDED:
        likeness = leakage.Likeness(theirs)
    found = gather(
        dataset,
        images=thorough or likeness is not None or (not first or not has_stored_hashes(first)),
        class_noun=class_noun,
        see=likeness.see if likeness else None,
        reporter=reporter,
    )
    checks = [
        copies.exact_duplicates(found),
        copies.near_duplicates(found),
        *_of_captions(found, run),
        provenance.metadata(found),
        provenance.licence(dataset.license or run.license),
        leakage.identifier(found, identifier or run.identifier),
        leakage.copies(found, theirs),
        *([likeness.check()] if likeness else [leakage.no_encoder()] if theirs else []),
        sizes.sizes(found, resolution),
        files.problems(found, curated=run.curated, left_out=_left_out(dataset.notes)),
    ]
    count = photos or (len(theirs) if theirs else PHOTOS)
    checks.append(suggestions(len(found.ids), count, {check.name: check for check in checks}))
    return Audit(
        dataset=sayable(dataset.name),
        images=len(found.ids),
        checks=checks if found.ids else [],
        layout=dataset.layout,
        revision=dataset.revision,
        notes=tuple(sayable(note) for note in dataset.notes),
    )


def _of_captions(found: Gathered, run: RunFacts) -> list[Check]:
    has_slots = any(value for values in found.slots.values() for value in values)
    coverage = (
        [slots.coverage(found, run.offered), slots.pairs(found)]
        if has_slots
        else [words.coverage(found)]
    )
    followed = slots.followed(found, plain=run.plain)
    coverage += [followed] if followed else []
    return [
        captions.missing(found),
        captions.variety(found),
        captions.length(found),
        captions.class_noun(found),
        captions.form(found),
        captions.tokens(found, _budget(found)),
        *coverage,
    ]


def _left_out(notes: Sequence[str]) -> list[str]:
    """What the reader of the dataset says about images that it could not read."""
    return [sayable(note) for note in notes if note.startswith("Left out") and " read" in note]


def _budget(found: Gathered) -> TokenBudget:
    """That of the model which drew most images; only what is on this machine is asked."""
    if not found.models:
        return estimated_budget("nobody says which model drew the images")
    (model, revision), _ = found.models.most_common(1)[0]
    commit = revision if revision and _COMMIT.fullmatch(revision) else None
    with suppress(ValueError):  # a name that no recipe would take
        return token_budget(Render(model=model, revision=commit), offline=True)
    return estimated_budget(f"{model[:80]!r} is no model's name")
