"""Text fidelity: optical character recognition of the reference photos and of generated images.

What several reference photos agree on is the lexicon; an image scores by how well its own text
matches it. Reads with RapidOCR, whose models are inside its package: nothing is downloaded. Where
that is not installed, or the subject carries no text, there is no score.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
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


class SubjectText:
    """The text on a subject, as its reference photos show it.

    Attributes:
        lexicon: The strings that at least `AGREEING` photos show with at least `CONFIDENCE`,
            sorted; empty if there are none, or no reader is installed.
        notes: Why nothing can be scored, a sentence each.
    """

    def __init__(self, references: Iterable[Image.Image]) -> None:
        reader = _reader()
        self.notes = [reader] if isinstance(reader, str) else []
        shown = Counter(
            text
            for image in ([] if self.notes else references)
            for text in {text for text, confidence in _read(image) if confidence >= CONFIDENCE}
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
