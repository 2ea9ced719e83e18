"""Keeps generated JSON inside a schema, token by token, with llguidance (an optional library)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from regforge.embedded.language_model.errors import LanguageModelMissing, SchemaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

LLGUIDANCE_COMMAND = "pip install llguidance"


def build_guide(tokenizer: Tokenizer, end: str) -> Any:
    """Tell llguidance about a tokenizer and the token that ends a reply; takes 0.3 s, so keep it.

    Raises:
        LanguageModelMissing: llguidance is not installed; the hint is the pip line.
    """
    if importlib.util.find_spec("llguidance") is None:
        raise LanguageModelMissing(
            "the embedded language model needs llguidance for free strings and numbers in a "
            "schema; this line installs it:",
            hint=LLGUIDANCE_COMMAND,
        )
    from llguidance import LLTokenizer

    return LLTokenizer(tokenizer.to_str(), eos_token=tokenizer.token_to_id(end))


class Constraint:
    """The tokens a JSON schema allows next.

    Args:
        guide: what `build_guide` returned.
        schema: a JSON schema.

    Raises:
        SchemaError: llguidance does not understand the schema.
    """

    def __init__(self, guide: Any, schema: dict[str, Any]) -> None:
        from llguidance import LLMatcher

        # No white space to choose between tokens: the model would only waste words on it.
        grammar = LLMatcher.grammar_from_json_schema(schema, {"whitespace_flexible": False})
        self._matcher = LLMatcher(guide, grammar, log_level=0)
        self._check()

    def allowed(self, vocabulary: int) -> Tensor:
        """Which tokens may come next: bool [vocabulary]."""
        import numpy as np
        import torch

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, bitorder="little").astype(bool)[:vocabulary])

    def accept(self, token: int) -> None:
        """Take a token, which must be an allowed one."""
        self._matcher.consume_token(token)
        self._check()

    def finished(self) -> bool:
        """Whether the JSON is complete and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = str(self._matcher.get_error()).strip().splitlines()[0]
            raise SchemaError(f"the embedded language model cannot follow this schema: {reason}")
