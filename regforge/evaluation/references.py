"""The subject of a model, the photos that its images are compared with, and the text on them.

Reads `subject.json` and folders of photos; knows nothing about weights.
"""

from __future__ import annotations

import functools
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
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


# ------------------------------------------------------------------------------------ text fidelity

# What several reference photos agree on is the lexicon; an image scores by how well its own text
# matches it. Reads with RapidOCR, whose models are inside its package: nothing is downloaded. Where
# that is not installed, or the subject carries no text, there is no score.


READER_CONFIDENCE = 0.8
"""How sure the reader must be of a string on a reference photo."""

AGREEING = 2
"""Reference photos that must show the same string."""

INSTALL = 'Text fidelity is left out: it needs `pip install "regforge[evaluation]"`.'

_SHORTEST = 2  # letters; single ones are found in any pattern
_SIDE = 736  # pixels: the shorter side that the reader was made for
_MOST_ENLARGED = 4


class SubjectText:
    """The text on a subject, as its reference photos show it.

    Attributes:
        lexicon: The strings that at least `AGREEING` photos show with at least `READER_CONFIDENCE`,
            sorted; empty if there are none, or no reader is installed.
        notes: Why nothing can be scored, a sentence each.
    """

    def __init__(self, references: Iterable[Image.Image]) -> None:
        reader = _reader()
        self.notes = [reader] if isinstance(reader, str) else []
        shown = Counter(
            text
            for image in ([] if self.notes else references)
            for text in {
                text for text, confidence in _read(image) if confidence >= READER_CONFIDENCE
            }
        )
        self.lexicon = tuple(sorted(text for text, times in shown.items() if times >= AGREEING))

    def scores(self, images: Iterable[Image.Image]) -> list[float | None]:
        """How much of the lexicon each image shows, 0 to 1; None if the lexicon is empty."""
        if not self.lexicon:
            return [None for _ in images]
        return [self.score_of([text for text, _ in _read(image)]) for image in images]

    def score_of(self, texts: Sequence[str]) -> float:
        """The score of an image with these strings, 0 to 1.

        For each string of the lexicon the similarity of the nearest one, weighted by its length.
        """
        return sum(
            len(word) * max((similarity(word, text) for text in texts), default=0.0)
            for word in self.lexicon
        ) / sum(map(len, self.lexicon))


def folded(text: str) -> str:
    """What is compared: letters and digits, case folded, with no spaces or punctuation."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in normal if letter.isalnum())


def similarity(first: str, second: str) -> float:
    """1 less the Levenshtein distance as a share of the longer string's letters; 0 to 1."""
    row = list(range(len(second) + 1))
    for place, letter in enumerate(first, start=1):
        above, row = row, [place]
        for column, other in enumerate(second):
            change = above[column] + (letter != other)
            row.append(min(change, above[column + 1] + 1, row[column] + 1))
    return 1.0 - row[-1] / max(len(first), len(second), 1)


def _read(image: Image.Image) -> list[tuple[str, float]]:
    """Strings in an image, folded, and the reader's confidence, 0 to 1."""
    run: Any = _reader()
    image = image.convert("RGB")
    larger = min(_MOST_ENLARGED, _SIDE / min(image.size))
    if larger > 1:
        size = (round(image.width * larger), round(image.height * larger))
        image = image.resize(size, Image.Resampling.LANCZOS)
    found = run(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))  # blue first
    lines = zip(found.txts or (), found.scores or (), strict=True)
    kept = ((folded(text), float(confidence)) for text, confidence in lines)
    return [(text, confidence) for text, confidence in kept if len(text) >= _SHORTEST]


@functools.cache
def _reader() -> Any:
    """The loaded reader, or a sentence that says why there is none."""
    try:
        import onnxruntime  # noqa: F401
        import rapidocr
    except ImportError:
        return INSTALL
    models = Path(rapidocr.__file__).parent / "models"
    detection, recognition = (_model(models, part) for part in ("det", "rec"))
    if detection is None or recognition is None:  # it would fetch them from the network
        version = metadata.version("rapidocr")
        return f"Text fidelity is left out: rapidocr {version} has no models inside."
    settings: dict[str, Any] = {
        "Global.log_level": "critical",
        "Global.use_cls": False,  # turns short words on their head, and subjects stand upright
        "Det.limit_side_len": 32,  # `_read` has enlarged it
        "Det.model_path": str(detection),
        "Rec.model_path": str(recognition),
    }
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        settings["EngineConfig.onnxruntime.intra_op_num_threads"] = int(threads)
    return rapidocr.RapidOCR(params=settings)


def _model(models: Path, part: str) -> Path | None:
    """The model that was measured, else the newest there is."""
    found = sorted(models.glob(f"*_{part}_*.onnx"))
    measured = models / f"PP-OCRv6_{part}_small.onnx"
    return measured if measured in found else next(reversed(found), None)
