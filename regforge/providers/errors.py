"""What can go wrong with a provider, and what its errors mean: for one call, or for all of them."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import Literal

from regforge.errors import RegforgeError
from regforge.journal import without_secrets
from regforge.providers.library import key_of

_PREFIX = re.compile(r"^(?:(?:litellm\.)?\w*(?:Error|Exception|Timeout)(?: \w+)?\s*[:-]\s*)+")
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
_LENGTHS = frozenset({"max_tokens", "max_completion_tokens"})
"""Two names of one thing: most servers know one of them, new ones of OpenAI's the other."""


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


_Passing = Literal["busy", "server", "garbled", "timeout", "lost", "unreachable"]
Failure = _Passing | Literal["form", "parameter", "policy", "refused"]


class CallFailed(RegforgeError):
    """One call got no reply.

    Attributes:
        kind: `busy`, `server`, `garbled` (a reply that cannot be read), `timeout`, `lost` (the
            connection broke) and `unreachable` may pass; `form`: the provider does not take this
            response format; `parameter`: nor one of the parameters; `policy`: it does not want to
            answer this; `refused`: anything else.
        retry_after: Seconds that the provider asks to wait, or None.
        raw: The provider's message in full.
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


def meaning(
    error: Exception,
    *,
    section: str,
    model: str,
    base: str | None,
    answered: bool,
    timeout: float,
    parameters: frozenset[str] = frozenset(),
) -> RegforgeError:
    """Translate an exception of LiteLLM's.

    `section` of the recipe names the model and may name its server, `base`; `answered` is whether
    it has answered before; `parameters` were sent and can be left out.

    Returns:
        A CallFailed, or a ModelUnusable if no other call will fare better.
    """
    causes = list(_causes(error))
    names = {name for each in causes for name in _names(each)}
    host = re.search(r"[Cc]onnect to host ([^\s:]+)", " ".join(map(str, causes)))
    if host or any(name.startswith(_CANNOT_CONNECT) for name in names):
        where = base or (host[1] if host else "its provider")
        offline = "embedded/tinyworld" if section == "render" else "embedded/smollm2-135m"
        hint = (
            f"Start the server, or correct {section}.api_base."
            if base
            else f"Check the network, or {section}.model: {offline} needs none."
        )
        message = f"{model} cannot be reached at {where}."
        return CallFailed("unreachable", message, hint=hint, raw=str(error))
    status = getattr(error, "status_code", None)
    text = " ".join(plain(error).split())
    wait = next(filter(None, map(_wait_in, causes)), None)
    return (
        _setup_error(error, names, text, section, model, base, status == 404 and not answered)
        or _account_error(names, text, model, status, answered, wait)
        or _call_error(error, names, text, section, status, timeout, wait, parameters)
    )


def _setup_error(
    error: Exception,
    names: set[str],
    text: str,
    section: str,
    model: str,
    base: str | None,
    missing: bool,
) -> ModelUnusable | None:
    """A fault of the recipe or the installation."""
    if "ModuleNotFoundError" in names:
        return ModelUnusable(
            f"{model} needs another Python package: {text}.",
            hint="LiteLLM's documentation of the provider says which to install.",
        )
    if "LLM Provider NOT provided" in str(error):
        return UnknownModel(
            f"{model!r} names no provider that LiteLLM knows.",
            hint=f"Write provider/model in {section}.model, such as ollama_chat/llama3.1, or "
            f"openai/my-model with {section}.api_base.",
        )
    if missing:
        address = f", and {section}.api_base: many servers want it to end in /v1" if base else ""
        return UnknownModel(
            f"There is no {model}{f' at {base}' if base else ''}: {text}",
            hint=f"Check {section}.model{address}.",
        )
    return None


def _account_error(
    names: set[str], text: str, model: str, status: int | None, answered: bool, wait: float | None
) -> ModelUnusable | None:
    """A fault of the key, or of what it may spend."""
    again = "and run the same command again."
    no_key = bool(_NO_KEY.search(text))
    # After an answer, 403 is about one question: some providers refuse contents so.
    if status == 401 or (status == 403 and not answered) or no_key:
        key, missing = key_of(model)
        refused = f"refused ({status}): {text}"
        if missing:
            return WrongKey(
                f"There is no API key for {model}"
                + ("." if no_key else f", and the server {refused}"),
                hint=f"Set the environment variable {key}, {again}",
            )
        hint = f"Correct the environment variable {key}, {again}"
        return WrongKey(f"The API key for {model} was {refused}", hint=hint)
    # Some say "quota" for calls a minute.
    rate = status == 429 and (wait is not None or model.startswith(_SAYS_QUOTA_FOR_RATE))
    if status == 402 or (_OUT_OF_CREDIT.search(" ".join((text, *names))) and not rate):
        return OutOfCredit(
            f"The account for {model} has no credit left: {text}", hint=f"Top it up, {again}"
        )
    return None


def _call_error(
    error: Exception,
    names: set[str],
    text: str,
    section: str,
    status: int | None,
    timeout: float,
    wait: float | None,
    parameters: frozenset[str],
) -> CallFailed:
    # LiteLLM says 500, or nothing, where there was no reply at all.
    server = status is None or status >= 500 or status in (409, 425)
    # A status of 200 is a page where JSON should be.
    garbled = status == 200 or "Invalid response object" in str(error)
    refused = status in (400, 415, 422, 500, 501)
    parameter, instead = _parameter_in(text, parameters) if refused else (None, None)
    policy = "ContentPolicyViolationError" in names or any(map(_POLICY.search, (text, *names)))
    too_long = "ContextWindowExceededError" in names
    lost = any(name.startswith(_CONNECTION_LOST) for name in names)
    rules: tuple[tuple[bool, Failure, str], ...] = (
        ("Timeout" in names, "timeout", f"No reply within {timeout:g} s."),
        (garbled, "garbled", f"The provider failed: its reply cannot be read. {text}"),
        (status == 429, "busy", f"The provider is busy (429): {text}"),
        (too_long, "refused", f"The question is too long for the model: {text}"),
        (policy, "policy", f"The provider's content policy refused the question: {text}"),
        (
            parameter is not None,
            "parameter",
            f"The provider does not take {section}.{parameter}: {text}",
        ),
        (
            refused and bool(_ABOUT_FORM.search(text)),
            "form",
            f"The provider does not take this response format: {text}",
        ),
        (lost, "lost", f"The connection broke: {text}"),
        (server, "server", f"The provider failed ({status}): {text}"),
        (True, "refused", f"The provider refused the question ({status}): {text}"),
    )
    kind, message = next((kind, message) for applies, kind, message in rules if applies)
    return CallFailed(
        kind,
        message if message.endswith((".", "!", "?")) else f"{message}.",  # more may follow
        retry_after=wait,
        raw=str(error),
        parameter=parameter,
        instead=instead,
    )


def _parameter_in(text: str, parameters: frozenset[str]) -> tuple[str | None, str | None]:
    """The parameter that the provider refuses, and the one that it wants in its place."""
    named = [
        (found.start(), name)
        for name in parameters
        if (found := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))
    ]
    name = min(named)[1] if named else None
    if name not in _LENGTHS:
        return name, None
    if _TOO_LARGE.search(text):
        return None, None  # it is taken, and its value is wrong; without it replies get cut
    other = next(iter(_LENGTHS - {name}))
    return name, other if other in text else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that led to it."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


def _names(error: BaseException) -> Iterator[str]:
    """The name of an exception, and what the provider calls it."""
    yield type(error).__name__
    body = getattr(error, "body", None)
    codes = (getattr(error, "code", None), body.get("code") if isinstance(body, dict) else None)
    yield from (code for code in codes if isinstance(code, str))


def _wait_in(error: BaseException) -> float | None:
    response = getattr(error, "response", None)
    headers = getattr(error, "litellm_response_headers", None) or getattr(response, "headers", None)
    return retry_after(headers)


def retry_after(headers: Mapping[str, str] | None, now: float | None = None) -> float | None:
    """Seconds that a reply's Retry-After header asks to wait, or None; it may give a date."""
    named = {name.lower(): value for name, value in (headers or {}).items()}
    now = time.time() if now is None else now
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(named[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            # Some servers say when, in seconds since 1970, and not for how long.
            return max(0.0, seconds - now if seconds > now / 2 else seconds)
    try:
        date = email.utils.parsedate_to_datetime(named["retry-after"])
        return max(0.0, date.timestamp() - now)
    except (KeyError, ValueError, OverflowError):
        return None


def plain(error: Exception) -> str:
    """The provider's own words, without LiteLLM's prefixes, JSON, HTML and keys."""
    raw = str(error).partition("Traceback (most recent call last)")[0]
    text = _PREFIX.sub("", without_secrets(raw[:5000]))
    try:
        inner = json.loads(text[text.index("{") : text.rindex("}") + 1])
        inner = inner.get("error", inner)
        text = str(inner.get("message") or text) if isinstance(inner, dict) else str(inner)
    except (ValueError, AttributeError):
        pass
    if re.search(r"<(?:html|head|body|title|h1|center)\b", text, re.I):
        page = re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", text)
        text = f"a web page: {' '.join(page.split())}"
    return text.strip()[:300]
