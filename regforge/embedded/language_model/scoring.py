"""How well each option fits a class noun: pointwise mutual information, cached per class noun.

score(option) = mean over stems of  log P(option | stem with the class noun)
                                  - log P(option | stem with "thing" and with "person", averaged)

The subtraction removes what makes an option likely anywhere (short, common words); what is left is
what the class noun adds. Knows field names, not schemas.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from regforge.embedded import phrase_banks
from regforge.embedded.language_model.smollm import SmolLM
from regforge.files import write_atomically

logger = logging.getLogger(__name__)

NOUN = "{class_noun}"
_GENERIC_NOUNS = ("thing", "person")
_DECIMALS = 4  # of a nat; the same on disk and in memory, and coarser than float32 noise

_PLACE = (
    "A photo of a {class_noun}",
    "You can usually see the {class_noun}",
    "The best place for a {class_noun} is",
)
_COLOR = (
    "The color of the {class_noun} is",
    "The color of this {class_noun} is",
    "The {class_noun} is",
)
_MATERIAL = (
    "The {class_noun} is made of",
    "A {class_noun} made of",
    "The {class_noun} is covered in",
)
_TEXTURE = (
    "The texture of the {class_noun} is",
    "The surface of the {class_noun} is",
    "The {class_noun} feels",
)
_SHAPE = ("The {class_noun} is", "This {class_noun} looks very", "The shape of the {class_noun} is")
_MOTION = ("A photo of a {class_noun}", "A picture of the {class_noun}", "She saw the {class_noun}")
_UNIFORM: tuple[str, ...] = ()  # a model this small judges light and style no better than chance

_STEMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("background", "place", "location", "setting", "scene", "surrounding"), _PLACE),
    **dict.fromkeys(("color", "colour"), _COLOR),
    **dict.fromkeys(("material", "coat"), _MATERIAL),
    **dict.fromkeys(("texture", "surface"), _TEXTURE),
    **dict.fromkeys(("shape", "adjective", "look", "appearance"), _SHAPE),
    **dict.fromkeys(("motion", "action", "activity", "pose"), _MOTION),
    **dict.fromkeys(("style", "lighting", "light", "time", "weather", "season"), _UNIFORM),
    **dict.fromkeys(("mood", "camera", "composition", "viewpoint", "angle", "framing"), _UNIFORM),
}


def stems_for(field: str) -> tuple[str, ...]:
    """The built-in stems of a field, by the first word of its name that is known.

    The name may be in snake, kebab or camel case, singular or plural, or empty. No stems mean that
    the field is best chosen uniformly.
    """
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in field)
    words = words.replace("_", " ").replace("-", " ").strip()
    for word in words.split():
        for known in (word, word.removesuffix("s")):
            if known in _STEMS:
                return _STEMS[known]
    if not words:
        return _PLACE
    return (f"The {words} of the {NOUN} is", f"The {NOUN} has this {words}:")


def fill(stem: str, noun: str) -> str:
    """Put a noun into a stem, with "an" for "a" before a vowel ("an unicorn" does no harm).

    A noun that takes no article gets none: "A photo of water".
    """
    if not phrase_banks.load().takes_article(noun):
        stem = re.sub(rf"\b[Aa] (?={re.escape(NOUN)})", "", stem)
    if noun[:1].lower() in tuple("aeiou"):
        stem = re.sub(rf"\b([Aa]) (?={re.escape(NOUN)})", r"\1n ", stem)
    return stem.replace(NOUN, noun)


class ScoreTable:
    """Scores options against class nouns and remembers them, in memory and on disk.

    Safe to share between threads and processes. Files are small JSON; a damaged or foreign one is
    computed anew and replaced.
    """

    def __init__(self, engine: SmolLM, cache_dir: Path) -> None:
        self._engine = engine
        self._folder = cache_dir / "scores"
        self._rows: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def scores(self, class_noun: str, options: Sequence[str], stems: Sequence[str]) -> list[float]:
        """How much likelier the class noun makes each option, in nats; higher fits better.

        Options are phrases, none empty, that could follow the stems, at least one.
        """
        nouns = (class_noun, *_GENERIC_NOUNS)
        with self._lock:  # two threads that want the same row shall not both compute it
            specific, *generic = (self._row(noun, options, stems) for noun in nouns)
        return [
            value - sum(others) / len(others)
            for value, others in zip(specific, zip(*generic, strict=True), strict=True)
        ]

    def _row(self, noun: str, options: Sequence[str], stems: Sequence[str]) -> list[float]:
        """Mean over stems of log P(option | stem with the noun), for each option."""
        parts = [self._engine.digest, list(stems), noun, list(options), _DECIMALS]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        if key not in self._rows:
            path = self._folder / f"{key}.json"
            row = _read_row(path, len(options))
            if row is None:
                columns = [
                    self._engine.log_probabilities(fill(stem, noun), options) for stem in stems
                ]
                means = (sum(values) / len(values) for values in zip(*columns, strict=True))
                row = [round(mean, _DECIMALS) for mean in means]
                try:
                    write_atomically(path, json.dumps({"noun": noun, "row": row}).encode())
                except OSError as problem:
                    logger.debug("cannot cache scores in %s: %s", path, problem)
            self._rows[key] = row
        return self._rows[key]


def _read_row(path: Path, length: int) -> list[float] | None:
    """A cached row, or None if there is none or it is not one of ours."""
    try:
        row = json.loads(path.read_bytes())["row"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sound = isinstance(row, list) and len(row) == length
    if not sound or not all(isinstance(v, int | float) and math.isfinite(v) for v in row):
        return None
    return [float(value) for value in row]
