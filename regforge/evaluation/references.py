"""The subject of a model, and the photos that its images are compared with.

Reads `subject.json` and folders of photos; knows nothing about weights or scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from regforge.dataset.card_parts import as_webp
from regforge.evaluation.suites import EvaluationError, Subject, absolute
from regforge.files import MOST_CAPTION, write_atomically
from regforge.image_files import decode, plain
from regforge.images.curation import pixel_digest_of
from regforge.prompts.photos import PhotosError, photo_captions
from regforge.recipe import Kind
from regforge.recipe.models import bank_kind
from regforge.recipe.named_files import content_of
from regforge.words import listed

SHOWN_SIZE = 256
"""Longest side of a reference photo on the page, in pixels."""

_KINDS = get_args(Kind)
_SUBJECT_JSON = '{"class_noun": "teapot", "identifier": "sks", "kind": "object"}'


# ------------------------------------------------------------------------------------ the subject


def find_subject(
    recipe: Mapping[str, Any], given: Subject | str | Path | None
) -> tuple[Subject | None, tuple[str, ...]]:
    """The subject of a model, and what had to be assumed about it, a sentence each.

    It is given, or follows from `subject` of its training recipe, and from a folder of photos and
    the `subject.json` in it.

    Raises:
        EvaluationError: The given folder is not there, or does not name its class noun.
    """
    if isinstance(given, Subject):
        return given, ()
    facts = {key: value for key, value in recipe.items() if value is not None}
    if given is not None:
        folder = absolute(given)
        facts |= {**_subject_json(folder), "images": str(folder)}
    noun = facts.get("class_noun")
    if not isinstance(noun, str) or not noun.strip():
        if given is None:
            return None, ()
        raise EvaluationError(
            f"Nothing says what the subject in {given} is.",
            hint=f"Put a subject.json beside the photos: {_SUBJECT_JSON}",
        )
    notes: tuple[str, ...] = ()
    kind = facts["kind"] if facts.get("kind") in _KINDS else bank_kind(noun)
    if kind is None:
        kind = "object"
        notes += (
            f"Nothing says whether a {noun} is an object or living; it is taken for an object.",
        )
    images = Path(str(facts["images"])) if facts.get("images") else None
    missing = None
    if images is not None and not images.is_dir():
        notes += (_missing(images),)
        images, missing = None, images
    identifier = facts.get("identifier") or ""
    if isinstance(identifier, dict):  # a new token
        identifier = identifier.get("new") or ""
    return Subject(str(identifier), noun, kind, images, missing), notes


def _missing(folder: Path) -> str:
    return f"The photos of the subject are not in {folder} any more."


def _subject_json(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise EvaluationError(f"There is no folder {folder} with photos of the subject.")
    path = folder / "subject.json"
    if not path.is_file():
        return {}
    try:
        facts = json.loads(content_of(path, folder, MOST_CAPTION).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} cannot be read ({error}).") from error
    if not isinstance(facts, dict):
        raise EvaluationError(f"{path} is no JSON object.")
    if facts.get("kind") not in (None, *_KINDS):
        raise EvaluationError(f"{path}: kind is 'object' or 'living', not {facts['kind']!r}.")
    return {key: facts[key] for key in ("class_noun", "identifier", "kind") if facts.get(key)}


# ------------------------------------------------------------------------------------- the photos


@dataclass(frozen=True)
class References:
    """What the images of one subject are compared with.

    Attributes:
        photos: Files by name, each with other pixels than all before it.
        held_out: Whether they are other photos than those trained on.
        notes: What a reader must know about them, a sentence each.
    """

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
        """Write small copies for the page, and return them in order."""
        made = []
        for number, image in enumerate(self.thumbnails()):
            made.append(folder / f"{number:02d}.webp")
            write_atomically(made[-1], as_webp(image))
        return made


def references_for(
    subjects: Iterable[Subject], held_out: Path | None = None
) -> dict[str, References]:
    """The photos to compare with, by `Subject.name`; `subjects` are those of all models.

    Raises:
        EvaluationError: As for `find_references`; or held-out photos are given for several
            subjects, or models learned a subject of one name from other photos.
    """
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(subject.name, []).append(subject)
    if held_out is not None and len(groups) > 1:
        raise EvaluationError(
            f"--references names the photos of one subject, and the models know {len(groups)}: "
            f"{', '.join(groups)}.",
            hint="Evaluate the models of each subject apart.",
        )
    found = {}
    for name, those in groups.items():
        by_folder = {str(subject.images): subject for subject in those if subject.images}
        same = list(by_folder.values())
        differ = len(same) > 1 and len({frozenset(_trained_on(each)) for each in same}) > 1
        if held_out is None and differ:
            raise EvaluationError(
                f"Models learned {name} from other photos: {listed(by_folder, 3)}.",
                hint="If it is one subject, name the photos to compare with: --references FOLDER, "
                "or --subject FOLDER if they were trained on. If not, evaluate the models apart.",
            )
        found[name] = find_references((same or those[-1:])[0], held_out, others=same)
    return found


def find_references(
    subject: Subject,
    held_out: Path | None = None,
    *,
    others: Sequence[Subject] = (),
) -> References:
    """The photos to compare with: those in `held_out`, else those that were trained on.

    `others` are the same subject with the photos that other models learned it from.

    Raises:
        EvaluationError: There are no photos, or they cannot be used.
    """
    if held_out is None:
        if subject.images is None or not subject.images.is_dir():
            raise EvaluationError(
                _missing(subject.missing)
                if subject.missing
                else f"Nothing says where there are photos of {subject.name}.",
                hint="Images are compared with them. Name their folder with --subject, or with "
                "--references if those photos were not trained on.",
            )
        distinct, remarks = _distinct(subject.images)
        return References(list(distinct.values()), False, remarks)
    if not held_out.is_dir():
        raise EvaluationError(f"There is no folder {held_out} (--references).")
    distinct, remarks = _distinct(held_out)
    trained_on = set().union(*map(_trained_on, (subject, *others)))
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
    return References(list(distinct.values()), len(shared) < len(distinct), remarks)


def _trained_on(subject: Subject) -> set[str]:
    """Digests of the photos that it was learned from, as far as they can still be read."""
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
        if distinct.setdefault(pixel_digest_of(plain(decode(path.read_bytes()))), path) != path:
            copies.append(each.file)
    if not copies:
        return distinct, []
    shows, is_left = ("shows", "is") if len(copies) == 1 else ("show", "are")
    return distinct, [
        f"{listed(copies, 3)} {shows} the same as another reference photo and {is_left} left out."
    ]
