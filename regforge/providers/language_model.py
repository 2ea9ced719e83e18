"""The language model client.

    with LanguageModelClient(recipe.prompts.llm, journal=journal) as client:
        answers = client.ask([Question(item, messages, Reply), ...])

Sends chats through LiteLLM, and finds the answer in what comes back. How answers are got is in
`conversation`, how calls are limited in `calls`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regforge.errors import RegforgeError
from regforge.journal import Journal, without_secrets
from regforge.progress import Reporter
from regforge.providers import library
from regforge.providers.calls import Price, Usage
from regforge.providers.conversation import Asker
from regforge.providers.errors import (
    CallFailed,
    CostLimitReached,
    ModelUnusable,
    OutOfCredit,
    UnknownModel,
    UnreachableModel,
    WrongKey,
)
from regforge.providers.limits import Clock, RealClock
from regforge.providers.questions import Call, Question, Received
from regforge.providers.replies import ReplyCache, json_values, without_thoughts
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
        self._loop = library.EventLoop()
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
            self._loop.run(library.close_clients())
            self._provider.used = False
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


class _LiteLLM:
    """Sends single calls through LiteLLM."""

    def __init__(self, settings: LanguageModel) -> None:
        self._settings = settings
        self._answered: set[str] = set()
        self.used = False

    def chooses_only(self, model: str) -> bool:
        """Whether it is the embedded model."""
        return model.startswith(_EMBEDDED)

    def price(self, model: str) -> Price | None:
        """What its tokens cost: by the settings, else by LiteLLM's list, else nothing at home."""
        if self.chooses_only(model):
            return Price(0.0, 0.0)
        read = self._settings.input_cost_per_token
        written = self._settings.output_cost_per_token
        if read is None or written is None:
            listed = library.listed_price(model)
            if listed is None and library.is_local(model, self._base(model)):
                listed = Price(0.0, 0.0)
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
        litellm = library.litellm()
        self.used = True
        arguments = self._arguments(call)
        timeout = self._settings.timeout
        try:
            if self.chooses_only(call.model):
                from regforge.embedded import language_model

                language_model.register()
                with library.ctrl_c_strikes_here():
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

    def _arguments(self, call: Call) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": call.model,
            "messages": list(call.messages),
            "num_retries": 0,
            "drop_params": True,
            **call.parameters,
        }
        if call.response_format is not None:
            arguments["response_format"] = dict(call.response_format)
        server = library.server_of("prompts.llm", call.model, self._base(call.model))
        known = server or os.environ.get("HOSTED_VLLM_API_BASE")
        if call.model.startswith(_VLLM) and not known:
            raise UnreachableModel(  # LiteLLM would send it to OpenAI
                f"There is no address for {call.model}.",
                hint="Put the server's URL into prompts.llm.api_base: http://127.0.0.1:8000/v1.",
            )
        return arguments | server

    def _base(self, model: str) -> str | None:
        """The settings' address, unless it belongs to another provider than this model's."""
        main, base = self._settings.model, self._settings.api_base
        same = self.chooses_only(main) or main.partition("/")[0] == model.partition("/")[0]
        return base if not self.chooses_only(model) and (same or model == main) else None

    def _received(self, call: Call, response: Any) -> Received:
        choice = response.choices[0] if response.choices else None
        text = _answer_in(getattr(choice, "message", None))
        # Half a surrogate pair cannot be sent back, and what is said becomes captions.
        text = without_secrets(text.encode(errors="replace").decode())
        usage = getattr(response, "usage", None)
        read, written = (
            library.token_count(getattr(usage, name, None))
            for name in ("prompt_tokens", "completion_tokens")
        )
        reason = getattr(choice, "finish_reason", None)
        if self.chooses_only(call.model):
            return Received(text, reason, read or 0, written or 0, 0.0)
        price = self.price(call.model)
        free = price is not None and price.of(1, 1) == 0
        if not read or written is None:  # LiteLLM writes 0 where a server says nothing
            return Received(text, reason, None, None, 0.0 if free else None)
        cost = None if price is None else price.of(read, written)
        own = self._settings.input_cost_per_token, self._settings.output_cost_per_token
        listed = library.money(getattr(response, "_hidden_params", {}).get("response_cost"))
        if own == (None, None) and listed:
            cost = listed  # knows about discounts for what the provider had cached
        return Received(text, reason, read, written, cost)

    def _meaning(self, call: Call, error: Exception) -> RegforgeError:
        """One of our errors for one of LiteLLM's."""
        if self.chooses_only(call.model):
            return _embedded_meaning(error)
        return library.meaning(
            error,
            section="prompts.llm",
            model=call.model,
            base=self._base(call.model),
            answered=call.model in self._answered,
            timeout=self._settings.timeout,
            parameters=frozenset(call.parameters),
        )


def _answer_in(message: Any) -> str:
    """What a message says; servers put it into the content, a tool call, or thoughts alone."""
    content = library.text_of(getattr(message, "content", None))
    calls = [call.function for call in getattr(message, "tool_calls", None) or ()]
    calls.append(getattr(message, "function_call", None))
    thoughts = library.text_of(getattr(message, "reasoning_content", None))
    others = getattr(message, "provider_specific_fields", None) or {}
    said = [
        content,
        *(library.text_of(getattr(call, "arguments", None)) for call in calls),
        library.text_of(others.get("refusal") or getattr(message, "refusal", None)),
        thoughts,
    ]
    if answer := next((text for text in said if next(json_values(text), None) is not None), None):
        return answer
    if thoughts and not content.strip():
        content = f"<think>{thoughts}</think>"
    return content if without_thoughts(content).strip() else said[-2] or content


def _embedded_meaning(error: Exception) -> RegforgeError:
    said = library.plain(error)
    if getattr(error, "status_code", None) == 404:  # the weights, or what it needs to write
        message, _, hint = said.partition("\n")
        return UnknownModel(f"{message[:1].upper()}{message[1:]}", hint=hint or None)
    return CallFailed("refused", said)
