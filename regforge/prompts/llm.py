"""The language model client: the only module of the prompts stage that knows LiteLLM.

    with LanguageModelClient(recipe.prompts.llm, journal=journal) as client:
        answers = client.ask([Question(item, messages, Reply), ...])

LiteLLM takes seconds to import, so that is done with the first call. Of LiteLLM one call is used,
`acompletion`, with its own retries off: those, limits, cache and checks are ours, because its own
reject calls instead of queueing them, need packages that it does not install, or forget the
server's address. How answers are got is in `conversation`, how calls are limited in `calls`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from regforge.errors import RegforgeError
from regforge.journal import Journal, without_secrets
from regforge.progress import Reporter
from regforge.prompts.conversation import Asker
from regforge.prompts.event_loop import EventLoop, ctrl_c_strikes_here
from regforge.prompts.faults import Fault
from regforge.prompts.limits import Clock, RealClock, retry_after
from regforge.prompts.questions import (
    Call,
    CallFailed,
    CostLimitReached,
    ModelUnusable,
    OutOfCredit,
    Price,
    Question,
    Received,
    UnknownModel,
    UnreachableModel,
    Usage,
    WrongKey,
)
from regforge.prompts.reply_cache import ReplyCache
from regforge.recipe.prompts import LanguageModel

__all__ = [
    "CostLimitReached",
    "LanguageModelClient",
    "ModelUnusable",
    "OutOfCredit",
    "Question",
    "UnknownModel",
    "UnreachableModel",
    "Usage",
    "WrongKey",
    "estimate_cost",
]

_EMBEDDED = "embedded/"
_VLLM = "hosted_vllm/"
_PREFIX = re.compile(r"^(?:(?:litellm\.)?\w*(?:Error|Exception|Timeout)(?: \w+)?\s*[:-]\s*)+")


class LanguageModelClient:
    """Asks a language model, many questions at a time, and keeps what it says.

    A context manager; one event loop serves it for its life. Works in notebooks too.

    Args:
        settings: Which model, and how it may be used.
        journal: Gets every call (`log.jsonl`) and every failure (`ledger.jsonl`).
        cache_dir: Where replies are kept; `replies` in the cache folder by default.
        reporter: Told what a person should know while it works.
        clock: For tests that do not want to wait.
    """

    def __init__(
        self,
        settings: LanguageModel,
        *,
        journal: Journal,
        cache_dir: Path | None = None,
        reporter: Reporter | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._provider = _LiteLLM(settings)
        self._asker = Asker(
            settings,
            self._provider,
            journal,
            ReplyCache(cache_dir) if settings.cache else None,
            clock or RealClock(),
            (reporter or Reporter()).say,
        )
        self._loop = EventLoop()
        self.chooses_only = self._provider.chooses_only(settings.model)
        """Whether the model is good at choosing among given phrases and cannot write any."""

    @property
    def usage(self) -> Usage:
        """Calls, tokens and cost so far."""
        return self._asker.usage

    @property
    def failed(self) -> Mapping[str, str]:
        """Items without an answer, and why."""
        return self._asker.failed

    def ask(self, questions: Sequence[Question]) -> list[Any | None]:
        """Ask all of them, as many at a time as the settings allow.

        Returns:
            An instance of each question's `reply`, in order; None for those that failed. Why is in
            the ledger and in `failed`.

        Raises:
            UnreachableModel: Nobody answers.
            WrongKey: There is no API key, or it is not taken.
            UnknownModel: There is no such model.
            OutOfCredit: The provider's account is empty.
            CostLimitReached: The next call could exceed `max_cost`.
            ModelUnusable: Anything else that would happen to every question.
        """
        return self._loop.run(self._asker.answer_all(questions))

    def close(self) -> None:
        """Close connections; what was answered stays in the cache."""
        if self._provider.used:
            self._loop.run(self._provider.close())
        self._loop.close()

    def __enter__(self) -> LanguageModelClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def estimate_cost(
    settings: LanguageModel, prompt_tokens: int, completion_tokens: int
) -> float | None:
    """What so many tokens cost, in US dollars; None if unknown, 0.0 for the embedded model."""
    price = _LiteLLM(settings).price(settings.model)
    return None if price is None else price.of(prompt_tokens, completion_tokens)


@functools.cache
def _litellm() -> ModuleType:
    """LiteLLM, imported so that it asks nothing of the network and says nothing on its own."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")  # or it would read .env files
    import litellm

    litellm.suppress_debug_info = True
    for name in ("litellm", "LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return litellm


class _LiteLLM:
    """Sends single calls through LiteLLM, and says what its errors mean."""

    def __init__(self, settings: LanguageModel) -> None:
        self._settings = settings
        self._answered: set[str] = set()
        self.used = False

    def chooses_only(self, model: str) -> bool:
        """Whether it is the embedded model."""
        return model.startswith(_EMBEDDED)

    def price(self, model: str) -> Price | None:
        """What its tokens cost: what the settings say, else LiteLLM's list."""
        if self.chooses_only(model):
            return Price(0.0, 0.0)
        read = self._settings.input_cost_per_token
        written = self._settings.output_cost_per_token
        if read is None or written is None:
            listed = _listed_price(model)
            if listed is None:
                return None
            read = listed.read if read is None else read
            written = listed.written if written is None else written
        return Price(read, written)

    async def send(self, call: Call) -> Received:
        """Send one call.

        Raises:
            CallFailed: It got no reply.
            ModelUnusable: No other call will get one either.
        """
        litellm = _litellm()
        self.used = True
        arguments = self._arguments(call)
        timeout = self._settings.timeout
        try:
            if self.chooses_only(call.model):
                from regforge.embedded import language_model

                language_model.register()
                with ctrl_c_strikes_here():
                    response = litellm.completion(**arguments)
            else:
                # Its timeout starts anew with every byte, and leaves out what it imports first.
                reply = litellm.acompletion(**arguments, timeout=timeout)
                response = await asyncio.wait_for(reply, 1.5 * timeout + 5)
        except TimeoutError:
            raise CallFailed("timeout", f"No reply within {timeout:g} s.") from None
        except Exception as error:
            raise self._meaning(call, error) from error
        self._answered.add(call.model)
        return self._received(call, response)

    async def close(self) -> None:
        """Close what LiteLLM holds open."""
        litellm = _litellm()
        self.used = False
        await litellm.close_litellm_async_clients()
        litellm.in_memory_llm_clients_cache.flush_cache()  # they belong to this event loop

    def _arguments(self, call: Call) -> dict[str, Any]:
        settings = self._settings
        arguments: dict[str, Any] = {
            "model": call.model,
            "messages": list(call.messages),
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "num_retries": 0,
            "drop_params": True,
        }
        if call.seed is not None:
            arguments["seed"] = call.seed
        if call.response_format is not None:
            arguments["response_format"] = dict(call.response_format)
        if base := self._api_base(call.model):
            arguments["api_base"] = base
            if call.model.startswith("openai/") and not os.environ.get("OPENAI_API_KEY"):
                arguments["api_key"] = "none"  # servers on this machine rarely want one
        elif call.model.startswith(_VLLM) and not os.environ.get("HOSTED_VLLM_API_BASE"):
            raise UnreachableModel(  # LiteLLM would send it to OpenAI
                f"There is no address for {call.model}.",
                hint="Put the server's URL into prompts.llm.api_base: http://127.0.0.1:8000/v1.",
            )
        return arguments

    def _api_base(self, model: str) -> str | None:
        """The settings' address, unless it belongs to another provider than this model's."""
        main, base = self._settings.model, self._settings.api_base
        same = self.chooses_only(main) or main.partition("/")[0] == model.partition("/")[0]
        if base is None or self.chooses_only(model) or not (same or model == main):
            return None
        if not base.startswith(("http://", "https://")):
            raise UnreachableModel(
                f"prompts.llm.api_base is {base!r}, which is no URL.",
                hint="It looks like http://127.0.0.1:8000/v1.",
            )
        return base

    def _received(self, call: Call, response: Any) -> Received:
        choice = response.choices[0] if response.choices else None
        message = getattr(choice, "message", None)
        text = getattr(message, "content", None) or getattr(message, "refusal", None) or ""
        text = text.encode(errors="replace").decode()  # half a surrogate pair cannot be sent back
        usage = getattr(response, "usage", None)
        read, written = (
            getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")
        )
        reason = getattr(choice, "finish_reason", None)
        if self.chooses_only(call.model):
            return Received(text, reason, read or 0, written or 0, 0.0)
        if not read:  # LiteLLM writes 0 where a server says nothing
            return Received(text, reason, None, None, None)
        written = written or 0
        return Received(text, reason, read, written, self._cost(call, response, read, written))

    def _cost(self, call: Call, response: Any, read: int, written: int) -> float | None:
        own = self._settings.input_cost_per_token, self._settings.output_cost_per_token
        listed = getattr(response, "_hidden_params", {}).get("response_cost")
        if own == (None, None) and listed:
            return float(listed)  # knows about discounts for what the provider had cached
        price = self.price(call.model)
        return None if price is None else price.of(read, written)

    def _meaning(self, call: Call, error: Exception) -> RegforgeError:
        """One of our errors for one of LiteLLM's."""
        model, said = call.model, _plain(error)
        if self.chooses_only(model):
            return _embedded_meaning(error, said)
        causes = list(_causes(error))
        host = re.search(r"[Cc]onnect to host ([^\s:]+)", " ".join(map(str, causes)))
        key, missing = _key_of(model)
        fault = Fault(
            model=model,
            base=self._api_base(model),
            status=getattr(error, "status_code", None),
            names=frozenset(type(each).__name__ for each in causes),
            said=" ".join(said.split()),
            raw=str(error),
            host=host[1] if host else None,
            retry_after=retry_after(getattr(error, "litellm_response_headers", None)),
            answered=model in self._answered,
            timeout=self._settings.timeout,
            key=key,
            key_missing=missing,
        )
        return fault.meaning()


def _embedded_meaning(error: Exception, said: str) -> RegforgeError:
    if getattr(error, "status_code", None) == 404:  # the weights, or what it needs to write
        message, _, hint = said.partition("\n")
        return UnknownModel(f"{message[:1].upper()}{message[1:]}", hint=hint or None)
    return CallFailed("refused", said)


def _key_of(model: str) -> tuple[str, bool]:
    """The environment variable of the provider's key, and whether it is missing."""
    litellm = _litellm()
    try:
        missing = litellm.validate_environment(model).get("missing_keys") or []
        provider = litellm.get_llm_provider(model)[1]
    except Exception:  # it raises plain exceptions for models it does not know
        return "that LiteLLM reads", False
    keys = [name for name in missing if name.endswith(("KEY", "TOKEN"))]
    return (" or ".join(keys) or f"{provider.upper()}_API_KEY", bool(keys))


def _listed_price(model: str) -> Price | None:
    """What LiteLLM's list says; a price of 0 there means that nobody has looked."""
    if model.startswith("ollama"):
        return None  # LiteLLM would ask the server about it
    try:
        listed = _litellm().get_model_info(model)
    except Exception:  # it raises plain exceptions for models it does not know
        return None
    read, written = listed.get("input_cost_per_token"), listed.get("output_cost_per_token")
    return Price(read or 0.0, written or 0.0) if read or written else None


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


def _plain(error: Exception) -> str:
    """What the provider itself said, without LiteLLM's prefixes, JSON around it, and keys."""
    text = _PREFIX.sub("", without_secrets(str(error)[:5000]))
    try:
        inner = json.loads(text[text.index("{") : text.rindex("}") + 1])
        inner = inner.get("error", inner)
        text = str(inner.get("message") or text) if isinstance(inner, dict) else str(inner)
    except (ValueError, AttributeError):
        pass
    return text.strip()[:300]
