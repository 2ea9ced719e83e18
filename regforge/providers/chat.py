"""What is asked of a language model, and single calls to it through LiteLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from regforge.errors import RegforgeError
from regforge.journal import without_secrets
from regforge.providers import library
from regforge.providers.calls import Reply, server_arguments
from regforge.providers.errors import CallFailed, UnknownModel, UnreachableModel, meaning, plain
from regforge.providers.replies import Message, Rung, Schema, json_values, without_thoughts
from regforge.recipe.sections import LanguageModel

_TOKENS_OF_AN_IMAGE = 2000
_FIRST_REPLY_GUESS = 1000
FRESH_STARTS = 2
"""How often a question is asked from scratch after a reply and its repair could not be used."""


@dataclass(frozen=True)
class Question:
    """Something to ask of a language model.

    Attributes:
        item: What it is about, for the log and the ledger: "slot color, call 1".
        messages: The chat; contents may be lists with `image_url` parts, for vision models.
        reply: What the reply has to validate against.
        schema: JSON schema to send instead of the reply's own; keys beginning with `x-` are for
            the embedded model and are not sent to others.
        problems: Further checks of the validated reply: sentences about what is wrong with it.
        seed: For the model's sampling.
        model: LiteLLM id, instead of the settings' model.
    """

    item: str
    messages: Sequence[Message]
    reply: type[BaseModel]
    schema: Schema | None = None
    problems: Callable[[Any], list[str]] | None = None
    seed: int | None = None
    model: str | None = None


@dataclass
class ModelState:
    """What was learned about one model from its calls.

    Attributes:
        scale: Tokens of a prompt for each that was estimated.
        longest_reply: Tokens of its longest reply so far.
        renamed: Other names of parameters that it refuses; None where it takes none.
        fitted: Whether any reply has followed its schema.
    """

    rung: Rung = Rung.SCHEMA
    scale: float = 1.0
    longest_reply: int = _FIRST_REPLY_GUESS
    renamed: dict[str, str | None] = field(default_factory=dict)
    fitted: bool = False

    def step_to(self, rung: Rung) -> None:
        """Ask in a less strict form from now on, never in a stricter one again."""
        self.rung = max(rung, self.rung)


@dataclass
class Conversation:
    """One question on its way to an answer."""

    question: Question
    model: str
    schema: Schema
    strict: bool
    key: str
    messages: Sequence[Message]
    repairing: bool = False
    fresh_starts: int = 0
    cut_off: bool = False
    answers_before: int | None = None
    """Of all questions, when this one failed first."""

    @property
    def seed(self) -> int | None:
        """Another one for each fresh start."""
        if self.fresh_starts == 0:
            return self.question.seed
        return ((self.question.seed or 0) + 1_000_003 * self.fresh_starts) % 2**31

    def start_afresh(self) -> bool:
        """Forget the conversation; False if that was done often enough."""
        self.messages, self.repairing = self.question.messages, False
        self.fresh_starts += 1
        return self.fresh_starts <= FRESH_STARTS


@dataclass(frozen=True)
class Call:
    """What goes to the provider, once.

    Attributes:
        parameters: `temperature`, `max_tokens`, `seed`; a provider may refuse each of them.
    """

    model: str
    messages: Sequence[Message]
    response_format: Mapping[str, Any] | None
    parameters: Mapping[str, Any]

    def estimated_tokens(self) -> int:
        """About how many tokens the prompt has, rather too many: 3 bytes of UTF-8 each."""
        size, images = len(str(self.response_format or "").encode(errors="replace")), 0
        for message in self.messages:
            content = message["content"]
            parts = [{"text": content}] if isinstance(content, str) else content
            texts = [part.get("text") for part in parts]
            images += texts.count(None)
            size += sum(len(text.encode(errors="replace")) for text in texts if text is not None)
        return size // 3 + _TOKENS_OF_AN_IMAGE * images + 10 * len(self.messages) + 10


def chooses_only(model: str) -> bool:
    """Whether it is the embedded model: good at choosing among given phrases, unable to write."""
    return model.startswith("embedded/")


class ChatModel:
    """A recipe's language model, and the other models that may be asked beside it.

    Attributes:
        used: Whether connections may be open.
    """

    def __init__(self, settings: LanguageModel) -> None:
        self._settings = settings
        self._answered: set[str] = set()
        self.used = False

    def price(self, model: str) -> library.Price | None:
        """The price of its tokens: by the settings, else by LiteLLM's list, else free at home."""
        if chooses_only(model):
            return library.Price(0.0, 0.0)
        read = self._settings.input_cost_per_token
        written = self._settings.output_cost_per_token
        if read is None or written is None:
            listed = library.listed_price(model)
            if listed is None and library.is_local(model, self.base_of(model)):
                listed = library.Price(0.0, 0.0)
            if listed is None:
                return None
            read = listed.read if read is None else read
            written = listed.written if written is None else written
        return library.Price(read, written)

    async def send(self, call: Call) -> Reply:
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
            if chooses_only(call.model):
                from regforge.embedded import language_model

                language_model.register()
                with library.interruptible():
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
        server = server_arguments("prompts.llm", call.model, self.base_of(call.model))
        if call.model.startswith(library.SELF_HOSTED) and (
            problem := library.not_ready("prompts.llm", call.model, self.base_of(call.model))
        ):
            raise UnreachableModel(problem[0], hint=problem[1])  # LiteLLM would ask OpenAI
        return arguments | server

    def base_of(self, model: str) -> str | None:
        """The settings' address, unless it belongs to another provider than this model's."""
        main, base = self._settings.model, self._settings.api_base
        same = chooses_only(main) or main.partition("/")[0] == model.partition("/")[0]
        return base if not chooses_only(model) and (same or model == main) else None

    def _received(self, call: Call, response: Any) -> Reply:
        choice = response.choices[0] if response.choices else None
        text = _answer_in(getattr(choice, "message", None))
        # Half a surrogate pair cannot be sent back, and replies become captions.
        text = without_secrets(text.encode(errors="replace").decode())
        usage = getattr(response, "usage", None)
        read, written = (
            library.token_count(getattr(usage, name, None))
            for name in ("prompt_tokens", "completion_tokens")
        )
        reason = getattr(choice, "finish_reason", None)
        if chooses_only(call.model):
            return Reply(text, 0.0, read or 0, written or 0, reason)
        price = self.price(call.model)
        if not read or written is None:  # LiteLLM writes 0 where a server says nothing
            free = price is not None and price.of(1, 1) == 0
            return Reply(text, 0.0 if free else None, finish_reason=reason)
        cost = None if price is None else price.of(read, written)
        own = self._settings.input_cost_per_token, self._settings.output_cost_per_token
        listed = library.money(getattr(response, "_hidden_params", {}).get("response_cost"))
        if own == (None, None) and listed:
            cost = listed  # knows about discounts for what the provider had cached
        return Reply(text, cost, read, written, reason)

    def _meaning(self, call: Call, error: Exception) -> RegforgeError:
        if not chooses_only(call.model):
            return meaning(
                error,
                section="prompts.llm",
                model=call.model,
                base=self.base_of(call.model),
                answered=call.model in self._answered,
                timeout=self._settings.timeout,
                parameters=frozenset(call.parameters),
            )
        message, _, hint = plain(error).partition("\n")
        if getattr(error, "status_code", None) == 404:  # the weights
            return UnknownModel(f"{message[:1].upper()}{message[1:]}", hint=hint or None)
        return CallFailed("refused", plain(error))


def _answer_in(message: Any) -> str:
    """The answer, which servers put into the content, a tool call, or thoughts alone."""
    content = library.text_of(getattr(message, "content", None))
    calls = [call.function for call in getattr(message, "tool_calls", None) or ()]
    calls.append(getattr(message, "function_call", None))
    thoughts = library.text_of(getattr(message, "reasoning_content", None))
    others = getattr(message, "provider_specific_fields", None) or {}
    refusal = library.text_of(others.get("refusal") or getattr(message, "refusal", None))
    called = (library.text_of(getattr(call, "arguments", None)) for call in calls)
    for text in (content, *called, refusal, thoughts):
        if next(json_values(text), None) is not None:
            return text
    if thoughts and not content.strip():
        content = f"<think>{thoughts}</think>"
    return content if without_thoughts(content).strip() else refusal or content
