"""How many tokens a caption has for the model that will draw it, and how many may be.

Text encoders cut what is too long without a word, so that the end of the caption (its light, its
place) is in no image. Captions are counted with the renderer's own tokenizer where it can be
had, and with a cautious estimate where not.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regforge.embedded import EMBEDDED, TINYWORLD
from regforge.files import expanded
from regforge.recipe.pipelines import READS, likely_class
from regforge.recipe.rendering import Render
from regforge.recipe.single_files import hub_file, pipeline_of
from regforge.words import first_line

CLIP_LIMIT = 77
"""Tokens that the text encoders of SD and SDXL take, start and end included."""


_NEAR = 0.85
_NO_LIMIT = 100_000  # transformers writes 1e30 where a tokenizer has no limit
_RUNS = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_+")
_RUN_LETTERS = 5
_PARTS = re.compile(r"[a-z]+|\d|[^\sa-z\d]+")  # CLIP's tokenizer joins nothing else


@dataclass(eq=False)
class TokenBudget:
    """The longest caption, in tokens, start and end tokens included.

    Attributes:
        source: Who counts, for people: "the tokenizer of ..." or "an estimate (...)".
        exact: Counts the tokens of a text.
        special: How many of them are start and end tokens.
        estimated: Whether no tokenizer was there to count.
    """

    limit: int
    source: str
    exact: Callable[[str], int]
    special: int = field(default=2, kw_only=True)
    estimated: bool = field(default=False, kw_only=True)
    _words: dict[str, int] = field(default_factory=dict, init=False)

    def count(self, text: str) -> int:
        """Count the tokens of a text, start and end included.

        Tokenizers of text encoders do not join words, so that the counts of the words add up;
        near the limit the tokenizer is asked about the whole text, to be sure.
        """
        known, total = self._words, self.special
        for word in text.split():
            tokens = known.get(word)
            if tokens is None:
                tokens = known[word] = self.exact(word) - self.special
            total += tokens
        return total if total < _NEAR * self.limit else self.exact(text)

    def fits(self, text: str) -> bool:
        """Tell whether a text is within the limit."""
        return self.count(text) <= self.limit


def token_budget(
    render: Render, max_tokens: int | None = None, *, offline: bool = False
) -> TokenBudget:
    """Find the budget of the model that a recipe renders with.

    Args:
        render: The recipe's section. Its model may be a folder, a repository on the Hub or in its
            cache, or `embedded/tinyworld`.
        max_tokens: `prompts.max_tokens`, which replaces the model's limit.
        offline: Take no tokenizer that is not on this machine.

    Returns:
        Counted by the tokenizer with the largest limit among the model's text encoders: what one
        encoder cuts, another still reads (Flux: T5's 512 beside CLIP's 77). An estimate for hosted
        models and where no tokenizer can be loaded; the limit then is what the model's name says.
    """
    if render.renderer != "local":
        who = f"{render.model} is hosted and" if render.renderer == "hosted" else "what draws"
        return estimated_budget(f"{who} shows no tokenizer", max_tokens)
    try:
        exact, limit = _longest(_folder(render, offline=offline))
    except Exception as error:  # whatever the Hub client, transformers or a broken folder raises
        limit = READS.get(likely_class(render.model) or "", CLIP_LIMIT)
        return estimated_budget(_why_none(render.model, error), max_tokens or limit)
    source = f"the tokenizer of {render.model}"
    return TokenBudget(max_tokens or limit, source, exact, special=exact(""))


def pipeline_budget(pipeline: Any) -> TokenBudget:
    """The budget of a loaded diffusers pipeline, with the new tokens that it has now."""

    def counting(tokenizer: Any) -> Callable[[str], int]:
        def exact(text: str) -> int:
            if hasattr(pipeline, "maybe_convert_prompt"):  # writes tokens of several vectors out
                text = pipeline.maybe_convert_prompt(text, tokenizer)
            return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])

        return exact

    name, parts = type(pipeline).__name__, pipeline.components.items()
    tokenizers = [part for key, part in parts if key.startswith("tokenizer") and part is not None]
    try:
        exact, limit = _largest([(counting(t), t.model_max_length) for t in tokenizers], name)
    except FileNotFoundError as error:
        return estimated_budget(_why_none(name, error))
    return TokenBudget(limit, f"the tokenizer of {name}", exact, special=exact(""))


def clip_tokens(folder: Path, word: str) -> int | None:
    """Count the tokens of a word for the CLIP tokenizer in a folder; None if it is none.

    Without transformers, which takes seconds to import.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    try:
        if (folder / "tokenizer.json").is_file():
            model = Tokenizer.from_file(str(folder / "tokenizer.json")).model
        else:  # as Stable Diffusion's repositories have it
            files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
            model = BPE.from_file(*files, end_of_word_suffix="</w>")
        if getattr(model, "end_of_word_suffix", None) != "</w>" or not word.isascii():
            return None
        return sum(len(model.tokenize(part)) for part in _PARTS.findall(word.lower()))
    except Exception:  # whatever that library raises on a damaged file; who uses it says so
        return None


def estimated_budget(reason: str, max_tokens: int | None = None) -> TokenBudget:
    """Guess the tokens of captions whose model cannot count them, for that `reason`."""
    source = f"an estimate ({reason})"
    return TokenBudget(max_tokens or CLIP_LIMIT, source, estimated_tokens, estimated=True)


def estimated_tokens(text: str) -> int:
    """Guess a text's CLIP tokens cautiously, start and end included: rather too many.

    CLIP has a token for most short words and splits longer ones; letters of other scripts cost up
    to a token a byte.
    """
    return 2 + sum(
        -(-len(run) // _RUN_LETTERS) if run.isascii() else len(run.encode())
        for run in _RUNS.findall(text)
    )


def _folder(render: Render, *, offline: bool) -> Path:
    if render.model == EMBEDDED:
        return TINYWORLD
    named = pipeline_of(render.model, render.config)
    folder = expanded(named)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    found = snapshot_download(
        named,
        revision=render.revision,
        allow_patterns=["model_index.json", "tokenizer*/*"],
        local_files_only=offline,
    )
    return Path(found)


def _longest(folder: Path) -> tuple[Callable[[str], int], int]:
    """What counts with the tokenizer of the largest limit, and that limit."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    found = [
        _tokenizer(folder / name)
        for name, entry in index.items()
        if name.startswith("tokenizer") and isinstance(entry, list) and entry[-1]
    ]
    return _largest(found, str(index.get("_class_name")))


def _largest(
    tokenizers: Sequence[tuple[Callable[[str], int], int]], pipeline_class: str
) -> tuple[Callable[[str], int], int]:
    """Of what counts, each with its tokenizer's own limit, the one with the largest limit."""
    found: list[tuple[Callable[[str], int], int]] = []
    for exact, limit in tokenizers:
        if limit > CLIP_LIMIT:
            limit = min(limit, _sequence_length(pipeline_class) or limit)
        found.append((exact, CLIP_LIMIT if limit > _NO_LIMIT else int(limit)))
    if not found:
        raise FileNotFoundError("its model_index.json names none")
    return max(found, key=lambda pair: pair[1])


def _tokenizer(folder: Path) -> tuple[Callable[[str], int], int]:
    """What counts the tokens of a text, and the tokenizer's own limit."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if config.get("backend") == "tokenizers":  # complete without transformers, which loads torch
        from tokenizers import Tokenizer

        own = Tokenizer.from_file(str(folder / "tokenizer.json"))
        own.no_truncation()
        own.no_padding()
        limit = config.get("model_max_length") or _NO_LIMIT + 1
        return lambda text: len(own.encode(text).ids), limit
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def exact(text: str) -> int:
        return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])

    return exact, tokenizer.model_max_length


def _sequence_length(pipeline_class: str) -> int | None:
    """How many tokens the pipeline passes to encoders that could take more, if that is known."""
    if (known := READS.get(pipeline_class)) is not None:
        return known
    with suppress(Exception):  # an unknown pipeline class has no opinion
        import diffusers

        pipeline = getattr(diffusers, pipeline_class)
        parameter = inspect.signature(pipeline.__call__).parameters["max_sequence_length"]
        return int(parameter.default)
    return None


def _why_none(model: str, error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) or hub_file(model) is not None:
        return f"{model} is not on this machine, and the Hub was not reached"
    return f"{model} has no tokenizer here: {first_line(error, 200)}"
