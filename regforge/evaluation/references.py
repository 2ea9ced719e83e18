"""The photos that images are compared with: which they are, and whether they were trained on.

Reads a folder of photos and copies small ones for the page. Knows nothing about models or scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from regforge.dataset.samples import as_webp
from regforge.evaluation.interface import EvaluationError, Subject
from regforge.files import write_atomically
from regforge.image_files import decode, plain
from regforge.prompts.photos import PhotosError, photo_captions
from regforge.words import listed

SHOWN_SIZE = 256
"""Longest side of a reference photo on the page, in pixels."""


@dataclass(frozen=True)
class References:
    """What the images of one subject are compared with.

    Attributes:
        subject: Whose photos they are.
        photos: Files, each with other pixels than all before it, by name.
        held_out: Whether they are other photos than those trained on.
        notes: What a reader must know about them, a sentence each.
    """

    subject: Subject
    photos: Sequence[Path]
    held_out: bool
    notes: Sequence[str]

    def images(self) -> Iterator[Image.Image]:
        """The photos one after the other, RGB, turned the way a viewer shows them."""
        return (plain(decode(path.read_bytes())) for path in self.photos)

    def thumbnails(self) -> Iterator[Image.Image]:
        """The same, small."""
        for image in self.images():
            image.thumbnail((SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.LANCZOS)
            yield image

    def copy_small(self, folder: Path) -> list[Path]:
        """Write small copies for the page, and return them in order.

        Raises:
            StorageError: The folder cannot be written.
        """
        made = []
        for number, image in enumerate(self.thumbnails()):
            made.append(folder / f"{number:02d}.webp")
            write_atomically(made[-1], as_webp(image))
        return made


def references_for(
    learned: Iterable[tuple[Subject, Sequence[str]]], held_out: Path | None = None
) -> dict[str, References]:
    """The photos to compare with, by what prompts call the subject.

    Args:
        learned: Of each model who it knows, and the notes on it.
        held_out: As for `find_references`.

    Raises:
        EvaluationError: As for `find_references`; or held-out photos are given for several
            subjects, or models learned a subject of one name from other photos.
    """
    groups: dict[str, list[tuple[Subject, Sequence[str]]]] = {}
    for subject, notes in learned:
        groups.setdefault(name_of(subject), []).append((subject, notes))
    if held_out is not None and len(groups) > 1:
        raise EvaluationError(
            f"--references names the photos of one subject, and the models know {len(groups)}: "
            f"{', '.join(groups)}.",
            hint="Evaluate the models of each subject apart.",
        )
    found = {}
    for name, those in groups.items():
        by_folder = {str(subject.images): subject for subject, _ in those if subject.images}
        same = list(by_folder.values())
        differ = len(same) > 1 and len({frozenset(_trained_on(each)) for each in same}) > 1
        if held_out is None and differ:
            raise EvaluationError(
                f"Models learned {name} from other photos: {listed(list(by_folder), 3)}.",
                hint="If it is one subject, name the photos to compare with: --references FOLDER, "
                "or --subject FOLDER if they were trained on. If not, evaluate the models apart.",
            )
        subject, notes = next((each for each in those if each[0].images), those[-1])
        found[name] = find_references(subject, held_out, notes=notes, learned_as_well=same)
    return found


def find_references(
    subject: Subject,
    held_out: Path | None = None,
    *,
    notes: Sequence[str] = (),
    learned_as_well: Sequence[Subject] = (),
) -> References:
    """The photos to compare with.

    Args:
        subject: Who was learned.
        held_out: Folder of photos of it that were not trained on; None takes those that were.
        notes: What is known of the model; why its photos are not there, for one.
        learned_as_well: The same subject with the photos that other models learned it from.

    Raises:
        EvaluationError: Nobody knows where there are photos, or they cannot be used.
    """
    if held_out is None:
        return _trained_photos(subject, notes)
    if not held_out.is_dir():
        raise EvaluationError(f"There is no folder {held_out} (--references).")
    distinct, remarks = _distinct(held_out)
    trained_on = set().union(*map(_trained_on, (subject, *learned_as_well)))
    shared = [path.name for key, path in distinct.items() if key in trained_on]
    if not trained_on:
        remarks.append(
            "The photos that were trained on are not here, so nobody can say whether some of them "
            "are among the references."
        )
    elif len(shared) == len(distinct):
        remarks.append(
            "All reference photos were trained on: they are not held out, and likeness to them is "
            "overstated."
        )
    elif shared:
        remarks.append(
            f"{len(shared)} of {len(distinct)} reference photos were trained on "
            f"({listed(shared, 3)}), so likeness to them is overstated."
        )
    is_held_out = len(shared) < len(distinct)
    return References(subject, list(distinct.values()), is_held_out, remarks)


def _trained_photos(subject: Subject, notes: Sequence[str]) -> References:
    if subject.images is None or not subject.images.is_dir():
        gone = next((note for note in notes if note.startswith("The photos of the subject")), None)
        raise EvaluationError(
            gone or f"Nothing says where there are photos of {name_of(subject)}.",
            hint="Images are compared with them. Name their folder with --subject, or with "
            "--references if those photos were not trained on.",
        )
    distinct, remarks = _distinct(subject.images)
    return References(subject, list(distinct.values()), False, remarks)


def name_of(subject: Subject) -> str:
    """What prompts call it: `sks teapot`."""
    return f"{subject.identifier} {subject.class_noun}".strip()


def _trained_on(subject: Subject) -> set[str]:
    """Pixels of the photos that it was learned from, as far as they can still be read."""
    if subject.images is None or not subject.images.is_dir():
        return set()
    try:
        return set(_distinct(subject.images)[0])
    except EvaluationError:
        return set()


def _distinct(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Photos by digest of their pixels, and a note on those that are left out."""
    try:
        found = photo_captions(folder, spoken=False)
    except PhotosError as error:
        raise EvaluationError(error.message, hint=error.hint) from error
    distinct: dict[str, Path] = {}
    copies = []
    for each in found:
        path = folder / each.file
        if distinct.setdefault(_pixels(plain(decode(path.read_bytes()))), path) != path:
            copies.append(each.file)
    notes = []
    if copies:
        one = len(copies) == 1
        notes.append(
            f"{listed(copies, 3)} show{'s' if one else ''} the same as another reference photo and "
            f"{'is' if one else 'are'} left out."
        )
    return distinct, notes


def _pixels(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
