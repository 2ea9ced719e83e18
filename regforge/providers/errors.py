"""What can go wrong with a provider, and what its errors mean: for one call, or for all of them.

Decides from a status, the names of exceptions, and what was said; knows no library they come from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from regforge.errors import RegforgeError

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
_POLICY = re.compile(r"content.?policy|moderation.?blocked|safety system", re.I)
_TOO_LARGE = re.compile(r"too (large|high|big)|at most|exceed|maximum|less than|up to", re.I)
_NO_KEY = re.compile(r"missing (\w+ )?(credentials|api.?key)|api_key client option", re.I)
_SAYS_QUOTA_FOR_RATE = ("gemini/", "vertex_ai/")
_AGAIN = "and run the same command again."


class ModelUnusable(RegforgeError):
    """The model cannot be used at all; asking it anything else is pointless."""


class UnreachableModel(ModelUnusable):
    """The endpoint is unreachable, or takes no calls for long."""


class WrongKey(ModelUnusable):
    """There is no API key, or the provider does not take it."""


class UnknownModel(ModelUnusable):
    """The provider has no such model, or nobody knows the provider."""


class OutOfCredit(ModelUnusable):
    """The provider's account is empty."""


class CostLimitReached(ModelUnusable):
    """The next call could cost more than is left of `max_cost`."""


Failure = Literal[
    "busy",
    "server",
    "garbled",
    "timeout",
    "lost",
    "unreachable",
    "form",
    "parameter",
    "policy",
    "refused",
]


class CallFailed(RegforgeError):
    """One call got no reply.

    Attributes:
        kind: `busy`, `server`, `garbled` (a reply that cannot be read), `timeout`, `lost` (the
            connection broke) and `unreachable` may pass; `form`: the provider does not take this
            response format; `parameter`: nor one of the parameters; `policy`: it does not want to
            answer this; `refused`: anything else.
        retry_after: Seconds that the provider asks to wait, or None.
        raw: All that the provider said.
        parameter: The parameter that the provider does not take, for `parameter`.
        instead: The parameter that it wants in its place, if it names one.
    """

    def __init__(
        self,
        kind: Failure,
        message: str,
        *,
        hint: str | None = None,
        retry_after: float | None = None,
        raw: str | None = None,
        parameter: str | None = None,
        instead: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.retry_after = retry_after
        self.raw = raw
        self.parameter = parameter
        self.instead = instead

    @property
    def may_pass(self) -> bool:
        """Whether asking again may help."""
        return self.kind not in ("form", "parameter", "policy", "refused")

    @property
    def may_be_billed(self) -> bool:
        """Whether the provider may have worked on it."""
        return self.kind in ("garbled", "timeout", "lost")


@dataclass(frozen=True)
class Fault:
    """A failed call.

    Attributes:
        section: Section of the recipe that names the model: `prompts.llm` or `render`.
        model: LiteLLM id.
        base: The server's address, where the recipe names one.
        status: HTTP status; None or 500 where there was no reply at all.
        names: Names and codes of the exceptions, from the outermost to what caused it.
        said: The provider's own words.
        raw: All that the outermost exception says.
        host: The machine that no connection could be made to, if that was said.
        retry_after: Seconds that the provider asks to wait, or None.
        answered: Whether this model has answered before.
        timeout: Seconds that were waited at most.
        key: Environment variable of the provider's key.
        key_missing: Whether it is not set.
        parameters: Names of the parameters that were sent and can be left out.
    """

    section: str
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
    parameters: frozenset[str] = frozenset()

    def _involves(self, beginnings: tuple[str, ...]) -> bool:
        return any(name.startswith(beginnings) for name in self.names)

    def meaning(self) -> RegforgeError:
        """A CallFailed, or a ModelUnusable if no other call will fare better."""
        if self._involves(_CANNOT_CONNECT) or self.host:
            return self._unreachable()
        return self._set_up() or self._account() or self._one_call()

    def _unreachable(self) -> CallFailed:
        where = self.base or self.host or "its provider"
        models = {"render": "embedded/tinyworld", "prompts.llm": "embedded/smollm2-135m"}
        hint = (
            f"Start the server, or correct {self.section}.api_base."
            if self.base
            else f"Check the network, or {self.section}.model: {models[self.section]} needs none."
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
                hint=f"Write provider/model in {self.section}.model, such as ollama_chat/llama3.1, "
                f"or openai/my-model with {self.section}.api_base.",
            )
        if self.status == 404 and not self.answered:
            address = f", and {self.section}.api_base: many servers want it to end in /v1"
            return UnknownModel(
                f"There is no {self.model}{f' at {self.base}' if self.base else ''}: {self.said}",
                hint=f"Check {self.section}.model{address if self.base else ''}.",
            )
        return None

    def _account(self) -> ModelUnusable | None:
        """What is wrong with the key or with what it may spend."""
        no_key = bool(_NO_KEY.search(self.said))
        # After an answer, 403 is about one question: some providers refuse contents so.
        if self.status == 401 or (self.status == 403 and not self.answered) or no_key:
            if self.key_missing:
                server = "" if no_key else f", and the server refused ({self.status}): {self.said}"
                return WrongKey(
                    f"There is no API key for {self.model}{server or '.'}",
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
        broke = _OUT_OF_CREDIT.search(" ".join((self.said, *self.names)))
        if self.status == 402 or (broke and not rate):
            return OutOfCredit(
                f"The account for {self.model} has no credit left: {self.said}",
                hint=f"Top it up, {_AGAIN}",
            )
        return None

    def _one_call(self) -> CallFailed:
        status, said = self.status, self.said
        server = status is None or status >= 500 or status in (409, 425)
        # A status of 200 is a page where JSON should be.
        garbled = status == 200 or "Invalid response object" in self.raw
        refused = status in (400, 415, 422, 500, 501)
        parameter, instead = self._parameter() if refused else (None, None)
        rules: tuple[tuple[bool, Failure, str], ...] = (
            ("Timeout" in self.names, "timeout", f"No reply within {self.timeout:g} s."),
            (garbled, "garbled", f"The provider failed: its reply cannot be read. {said}"),
            (status == 429, "busy", f"The provider is busy (429): {said}"),
            (
                "ContextWindowExceededError" in self.names,
                "refused",
                f"The question is too long for the model: {said}",
            ),
            (
                "ContentPolicyViolationError" in self.names
                or any(map(_POLICY.search, (said, *self.names))),
                "policy",
                f"The provider's content policy refused the question: {said}",
            ),
            (
                parameter is not None,
                "parameter",
                f"The provider does not take {self.section}.{parameter}: {said}",
            ),
            (
                refused and bool(_ABOUT_FORM.search(said)),
                "form",
                f"The provider does not take this response format: {said}",
            ),
            (self._involves(_CONNECTION_LOST), "lost", f"The connection broke: {said}"),
            (server, "server", f"The provider failed ({status}): {said}"),
            (True, "refused", f"The provider refused the question ({status}): {said}"),
        )
        kind, message = next((kind, message) for applies, kind, message in rules if applies)
        return CallFailed(
            kind,
            message if message.endswith((".", "!", "?")) else f"{message}.",  # more may follow
            retry_after=self.retry_after,
            raw=self.raw,
            parameter=parameter,
            instead=instead,
        )

    def _parameter(self) -> tuple[str | None, str | None]:
        """The parameter that the provider refuses, and the one that it wants in its place."""
        named = [
            (found.start(), name)
            for name in self.parameters
            if (found := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self.said))
        ]
        if not named:
            return None, None
        name = min(named)[1]
        if name in _LENGTHS and _TOO_LARGE.search(self.said):
            return None, None  # it is taken, and its value is wrong; without it replies get cut
        other = next(iter(_LENGTHS - {name})) if name in _LENGTHS else ""
        return name, other if other and other in self.said else None


_LENGTHS = frozenset({"max_tokens", "max_completion_tokens"})
"""Two names of one thing: most servers know one of them, new ones of OpenAI's the other."""
