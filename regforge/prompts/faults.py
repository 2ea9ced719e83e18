"""What a provider's error means: for one call, or for all of them.

Decides from a status, the names of exceptions, and what was said; knows no library they come from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from regforge.errors import RegforgeError
from regforge.prompts.questions import (
    CallFailed,
    Failure,
    ModelUnusable,
    OutOfCredit,
    UnknownModel,
    WrongKey,
)

_CANNOT_CONNECT = ("ConnectError", "ConnectTimeout", "ClientConnector", "gaierror")
_CONNECTION_LOST = ("ServerDisconnected", "RemoteProtocolError", "ReadError", "ClientOSError")
_ABOUT_FORM = re.compile(
    r"response.?format|json.?schema|json.?object|json.?mode|structured.?output|output.?format"
    r"|schema|grammar|guided|response.?mime",
    re.I,
)
_OUT_OF_CREDIT = re.compile(
    r"insufficient.?(quota|balance|credit)|exceeded your current quota|credit balance", re.I
)
_SAYS_QUOTA_FOR_RATE = ("gemini/", "vertex_ai/")
_AGAIN = "and run the same command again."


@dataclass(frozen=True)
class Fault:
    """A failed call.

    Attributes:
        model: LiteLLM id.
        base: The server's address, where the recipe names one.
        status: HTTP status; None or 500 where there was no reply at all.
        names: Names of the exceptions, from the outermost to what caused it.
        said: The provider's own words.
        raw: All that the outermost exception says.
        host: The machine that no connection could be made to, if that was said.
        retry_after: Seconds that the provider asks to wait, or None.
        answered: Whether this model has answered before.
        timeout: Seconds that were waited at most.
        key: Environment variable of the provider's key.
        key_missing: Whether it is not set.
    """

    model: str
    base: str | None
    status: int | None
    names: frozenset[str]
    said: str
    raw: str
    host: str | None
    retry_after: float | None
    answered: bool
    timeout: float
    key: str
    key_missing: bool

    def _involves(self, beginnings: tuple[str, ...]) -> bool:
        return any(name.startswith(beginnings) for name in self.names)

    def meaning(self) -> RegforgeError:
        """A CallFailed, or a ModelUnusable if no other call will fare better."""
        if self._involves(_CANNOT_CONNECT) or self.host:
            return self._unreachable()
        return self._set_up() or self._account() or self._one_call()

    def _unreachable(self) -> CallFailed:
        where = self.base or self.host or "its provider"
        hint = (
            "Start the server, or correct prompts.llm.api_base."
            if self.base
            else "Check the network, or prompts.llm.model: embedded/smollm2-135m needs none."
        )
        message = f"{self.model} cannot be reached at {where}."
        return CallFailed("unreachable", message, hint=hint, raw=self.raw)

    def _set_up(self) -> ModelUnusable | None:
        """What is wrong with the recipe or the installation."""
        if "ModuleNotFoundError" in self.names:
            return ModelUnusable(
                f"{self.model} needs another Python package: {self.said.splitlines()[0]}.",
                hint="LiteLLM's documentation of the provider says which to install.",
            )
        if "LLM Provider NOT provided" in self.raw:
            return UnknownModel(
                f"{self.model!r} names no provider that LiteLLM knows.",
                hint="Write provider/model in prompts.llm.model, such as ollama_chat/llama3.1, or "
                "openai/my-model with prompts.llm.api_base.",
            )
        if self.status == 404 and not self.answered:
            address = ", and prompts.llm.api_base: many servers want it to end in /v1"
            return UnknownModel(
                f"There is no {self.model}{f' at {self.base}' if self.base else ''}: {self.said}",
                hint=f"Check prompts.llm.model{address if self.base else ''}.",
            )
        return None

    def _account(self) -> ModelUnusable | None:
        """What is wrong with the key or with what it may spend."""
        # After an answer, 403 is about one question: some providers refuse contents so.
        if self.status == 401 or (self.status == 403 and not self.answered) or self._no_key:
            if self.key_missing:
                return WrongKey(
                    f"There is no API key for {self.model}.",
                    hint=f"Set the environment variable {self.key}, {_AGAIN}",
                )
            return WrongKey(
                f"The API key for {self.model} was refused ({self.status}): {self.said}",
                hint=f"Correct the environment variable {self.key}, {_AGAIN}",
            )
        # Some say "quota" for calls a minute.
        rate = self.status == 429 and (
            self.retry_after is not None or self.model.startswith(_SAYS_QUOTA_FOR_RATE)
        )
        if self.status == 402 or (_OUT_OF_CREDIT.search(self.said) and not rate):
            return OutOfCredit(
                f"The account for {self.model} has no credit left: {self.said}",
                hint=f"Top it up, {_AGAIN}",
            )
        return None

    @property
    def _no_key(self) -> bool:
        return "missing credentials" in self.said.lower()

    def _one_call(self) -> CallFailed:
        status, said = self.status, self.said
        form = status in (400, 415, 422, 500, 501) and bool(_ABOUT_FORM.search(said))
        # A status of 200 is a page where JSON should be.
        server = status is None or status >= 500 or status in (200, 409, 425)
        rules: tuple[tuple[bool, Failure, str], ...] = (
            ("Timeout" in self.names, "timeout", f"No reply within {self.timeout:g} s."),
            (status == 429, "busy", f"The provider is busy (429): {said}"),
            (
                "ContextWindowExceededError" in self.names,
                "refused",
                f"The question is too long for the model: {said}",
            ),
            (
                "ContentPolicyViolationError" in self.names,
                "refused",
                f"The provider's content policy refused the question: {said}",
            ),
            (form, "form", f"The provider does not take this response format: {said}"),
            (self._involves(_CONNECTION_LOST), "lost", f"The connection broke: {said}"),
            (server, "server", f"The provider failed ({status}): {said}"),
            (True, "refused", f"The provider refused the question ({status}): {said}"),
        )
        kind, message = next((kind, message) for applies, kind, message in rules if applies)
        return CallFailed(kind, message, retry_after=self.retry_after, raw=self.raw)
