"""A language model that needs no network: SmolLM2-135M behind LiteLLM as `embedded/smollm2-135m`.

It chooses: every enum of a JSON schema is answered by scoring the options against the class noun.
It does not write. `docs/language-model.md` says what to expect and how to ask.

    from regforge.embedded import language_model

    language_model.register()
    litellm.completion(model=language_model.MODEL, messages=..., response_format=..., seed=1)

Importing this package is cheap; LiteLLM, torch and the weights load when they are first used.
"""

from __future__ import annotations

import threading

from regforge.embedded.language_model.choosing import LanguageModel
from regforge.embedded.language_model.errors import (
    LanguageModelError,
    LanguageModelMissing,
    SchemaError,
)
from regforge.embedded.language_model.provider import NAME, PROVIDER, install
from regforge.embedded.language_model.smollm import INSTALL_COMMAND, find_weights

MODEL = f"{PROVIDER}/{NAME}"

__all__ = [
    "INSTALL_COMMAND",
    "MODEL",
    "LanguageModel",
    "LanguageModelError",
    "LanguageModelMissing",
    "SchemaError",
    "is_installed",
    "register",
]

_lock = threading.Lock()


def register(language_model: LanguageModel | None = None) -> None:
    """Teach LiteLLM the model `embedded/smollm2-135m`. Calling it again changes nothing.

    Args:
        language_model: answers from now on, instead of one with SmolLM2 and the usual cache
            folder; for tests and special folders.
    """
    with _lock:
        install(language_model)


def is_installed() -> bool:
    """Whether the weights are there, without loading them."""
    try:
        find_weights()
    except LanguageModelMissing:
        return False
    return True
