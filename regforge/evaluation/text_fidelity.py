"""Whether the writing on a subject is still there: optical character recognition before and after.

What several reference photos agree on is the lexicon; an image scores by how well its own
writing matches it. Reads with RapidOCR, whose models are inside its package: nothing is downloaded.
Where that is not installed, or the subject carries no writing, there is no score.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIDENCE = 0.8
"""How sure the reader must be of a string on a reference photo."""

AGREEING = 2
"""Reference photos that must show the same string."""

INSTALL = 'Text fidelity is left out: it needs `pip install "regforge[evaluation]"`.'

_SHORTEST = 2  # letters; single ones are found in any pattern
_SIDE = 736  # pixels: the shorter side that the reader was made for
_MOST_ENLARGED = 4


@dataclass(frozen=True)
class Line:
    """A string that was read.

    Attributes:
        text: Letters and digits only, case folded.
        confidence: 0 to 1.
    """

    text: str
    confidence: float


class Lettering:
    """The writing on a subject, learned from its reference photos.

    Attributes:
        lexicon: The strings that at least `AGREEING` photos show with at least `CONFIDENCE`,
            sorted; empty if there are none, or nothing can read.
        notes: Why nothing can be scored, a sentence each.
        reader: What reads, and its version; empty if nothing does.
    """

    def __init__(self, references: Iterable[Image.Image]) -> None:
        """Read the reference photos.

        Args:
            references: Images of any size, at least `AGREEING` of them.
        """
        self.lexicon: tuple[str, ...] = ()
        self.notes: list[str] = []
        self.reader = ""
        reader = _reader()
        self.reader = reader.name
        if reader.run is None:
            self.notes.append(reader.note)
            return
        shown = Counter(
            text
            for image in references
            for text in {line.text for line in read(image) if line.confidence >= CONFIDENCE}
        )
        self.lexicon = tuple(sorted(text for text, times in shown.items() if times >= AGREEING))

    def score(self, images: Iterable[Image.Image]) -> list[float | None]:
        """How much of the lexicon each image shows.

        Returns:
            One an image, 0 to 1: for each string of the lexicon the similarity of whatever was
            read in the image that is nearest to it, weighted by its length. None if the lexicon
            is empty.
        """
        if not self.lexicon:
            return [None for _ in images]
        return [self.score_of([line.text for line in read(image)]) for image in images]

    def score_of(self, texts: Sequence[str]) -> float:
        """The score of an image in which these strings were read, 0 to 1."""
        total = sum(map(len, self.lexicon))
        return (
            sum(
                len(word) * max((similarity(word, text) for text in texts), default=0.0)
                for word in self.lexicon
            )
            / total
        )


def read(image: Image.Image) -> list[Line]:
    """All writing in an image, strings of at least two letters or digits.

    Small images are enlarged, four times at most.
    """
    run = _reader().run
    if run is None:
        return []
    found = run(_pixels(image))
    lines = zip(found.txts or (), found.scores or (), strict=True)
    kept = (Line(folded(text), float(sure)) for text, sure in lines)
    return [line for line in kept if len(line.text) >= _SHORTEST]


def folded(text: str) -> str:
    """What is compared: letters and digits, case folded, with no spaces or punctuation."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in normal if letter.isalnum())


def similarity(first: str, second: str) -> float:
    """1 less the share of the longer string's letters that have to be changed; 0 to 1."""
    longest = max(len(first), len(second))
    return 1.0 if not longest else 1.0 - _edits(first, second) / longest


def _edits(first: str, second: str) -> int:
    """Letters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(second) + 1))
    for place, letter in enumerate(first, start=1):
        above, row = row, [place]
        for column, other in enumerate(second):
            change = above[column] + (letter != other)
            row.append(min(change, above[column + 1] + 1, row[column] + 1))
    return row[-1]


def _pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    """Uint8 [H, W, 3], blue first, as the reader takes it."""
    image = image.convert("RGB")
    larger = min(_MOST_ENLARGED, _SIDE / min(image.size))
    if larger > 1:
        size = (round(image.width * larger), round(image.height * larger))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


@dataclass(frozen=True)
class _Reader:
    """What reads.

    Attributes:
        name: It and its version; empty if there is none.
        note: Why there is none.
        run: Pixels to lines.
    """

    name: str = ""
    note: str = ""
    run: Any = None


@functools.cache
def _reader() -> _Reader:
    """The reader, loaded once."""
    try:
        import onnxruntime  # noqa: F401
        import rapidocr
    except ImportError:
        return _Reader(note=INSTALL)
    version = metadata.version("rapidocr")
    models = Path(rapidocr.__file__).parent / "models"
    detects, reads = (_model(models, part) for part in ("det", "rec"))
    if detects is None or reads is None:  # without a path it would fetch them from the network
        return _Reader(note=f"Text fidelity is left out: rapidocr {version} has no models inside.")
    settings: dict[str, Any] = {
        "Global.log_level": "critical",
        "Global.use_cls": False,  # turns short words on their head, and subjects stand upright
        "Det.limit_side_len": 32,  # `_pixels` has enlarged it
        "Det.model_path": str(detects),
        "Rec.model_path": str(reads),
    }
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        settings["EngineConfig.onnxruntime.intra_op_num_threads"] = int(threads)
    return _Reader(f"rapidocr {version} ({reads.stem})", run=rapidocr.RapidOCR(params=settings))


def _model(models: Path, part: str) -> Path | None:
    """The model that was measured, else the newest there is; None if there is none."""
    found = sorted(models.glob(f"*_{part}_*.onnx"))
    measured = models / f"PP-OCRv6_{part}_small.onnx"
    return measured if measured in found else next(reversed(found), None)
