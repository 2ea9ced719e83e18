"""The language model client: usable answers from a model that is busy, down, talkative or wrong.

    with LanguageModelClient(recipe.prompts.llm, journal=journal) as client:
        answers = client.ask([Question(item, messages, Reply), ...])

    question ── kept on disk? ── ask ── reply fits? ── answer
                                  │         └ no: show it what is wrong, once; then start afresh
                                  └ failed: wait and ask again; refuses the form: ask in another

Every failed call is one line of the ledger. What can only go wrong again (no key, no server, no
money) ends the run at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regforge.errors import RegforgeError
from regforge.files import StorageError
from regforge.journal import Journal, Reporter
from regforge.providers import library
from regforge.providers.calls import MINUTE, Caller, Clock, Reply, Usage
from regforge.providers.chat import (
    Call,
    ChatModel,
    Conversation,
    ModelState,
    Question,
    chooses_only,
)
from regforge.providers.errors import (
    CallFailed,
    ModelUnusable,
    UnreachableModel,
)
from regforge.providers.replies import (
    Reading,
    ReplyCache,
    Rung,
    Schema,
    key_of,
    repair_turn,
    strict_schema,
    understand,
    without_annotations,
)
from regforge.recipe.sections import LanguageModel
from regforge.version import __version__
from regforge.words import duration

__all__ = ["LanguageModelClient", "Question", "estimate_cost"]

_TRIES_TO_CONNECT = 3
"""Before the first answer; a server that has answered gets all the tries there are."""
_SILENT_QUESTIONS = 3
"""So many questions in a row without any answer, and the server counts as down."""
_SHORT_WAIT = 5.0
"""Seconds that pass without a message; longer waits look as if it hung."""
_GRACE = 1.0
"""Seconds for calls that are under way when the run stops."""


class LanguageModelClient:
    """Asks a language model, many questions at a time, and keeps its replies.

    A context manager; one event loop serves it for its life. Works in notebooks too.

    Replies are kept in `cache_dir`, by default `replies` in the cache folder.

    Attributes:
        failed: Items without an answer, and why.
        chooses_only: Whether the model chooses among given phrases and cannot write any.
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
        self.failed: dict[str, str] = {}
        self.chooses_only = chooses_only(settings.model)
        self._settings = settings
        self._journal = journal
        self._reporter = reporter or Reporter()
        self._clock = clock or Clock()
        self._cache = ReplyCache(cache_dir) if settings.cache else None
        self._chat = ChatModel(settings)
        self._caller = Caller("prompts.llm", "llm_call", settings, journal, self._clock)
        self._loop = library.EventLoop()
        self._models: dict[str, ModelState] = {}
        self._quiet_until = float("-inf")
        self._stopping = False
        self._silence = (0, 0)  # answers there were, questions given up since
        self._enough = _SILENT_QUESTIONS

    @property
    def usage(self) -> Usage:
        """Calls, tokens and cost so far."""
        return self._caller.usage

    def ask(self, questions: Sequence[Question]) -> list[Any | None]:
        """Ask all of them, as many at a time as the settings allow.

        Returns:
            An instance of each question's `reply`, in order; None for those that failed. Why is in
            the ledger and in `failed`.

        Raises:
            ModelUnusable: One of its kinds, or anything else that would happen to every question.
        """
        return self._loop.run(self._answer_all(questions))

    def close(self) -> None:
        """Close connections; what was answered stays in the cache."""
        if self._chat.used:
            self._loop.run(library.close_clients())
            self._chat.used = False
        self._loop.close()

    def __enter__(self) -> LanguageModelClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _answer_all(self, questions: Sequence[Question]) -> list[Any | None]:
        self._stopping = False
        self._enough = min(_SILENT_QUESTIONS, len(questions))
        tasks = [asyncio.ensure_future(self._answer(question)) for question in questions]
        try:
            # Unlike gather, it leaves the tasks alone when this one is cancelled.
            if tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()):
                    raise error
            return [task.result() for task in tasks]
        except ModelUnusable as error:
            if self._cache and self._caller.answers:
                error.hint = f"{error.hint or ''} What was answered so far is kept.".strip()
            raise
        finally:
            # Start nothing more, and let what is under way come in, for it is paid for.
            self._stopping = True
            for task in tasks:
                if task not in self._caller.under_way:
                    task.cancel()
            if self._caller.under_way:
                await asyncio.wait(tasks, timeout=_GRACE)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, question: Question) -> Any | None:
        model = question.model or self._settings.model
        self._models.setdefault(model, ModelState())
        schema: Schema = question.schema or question.reply.model_json_schema()
        strict = False
        if not chooses_only(model):
            schema, strict = strict_schema(without_annotations(schema))
        key = self._key(question, model, schema)
        kept = self._kept(question, model, key)
        if kept is not None:
            return kept
        # Waiting after a failure keeps its place: a server in trouble should not meet new
        # questions, and one that is down shows it before all of them were asked.
        async with self._caller.limiter.place():
            try:
                return await self._converse(
                    Conversation(question, model, schema, strict, key, question.messages)
                )
            except RegforgeError:
                self._stopping = True  # before the place goes to the next question
                raise

    async def _converse(self, conversation: Conversation) -> Any | None:
        for attempt in range(1, self._settings.max_attempts + 1):
            try:
                reply = await self._ask(conversation, attempt)
            except CallFailed as failure:
                if not await self._wait_out(conversation, failure, attempt):
                    return None
                continue
            reading = self._read(conversation, reply)
            if reading.value is not None:
                self._keep(conversation, reply)
                return reading.value
            if not self._go_on(conversation, reply, reading, attempt):
                return None
        return None

    # Replies

    def _read(self, conversation: Conversation, reply: Reply) -> Reading:
        if reply.finish_reason == "length":
            most = self._settings.max_tokens
            cut_off = f"The reply was cut off at prompts.llm.max_tokens = {most}; raise it."
            return Reading(None, (cut_off,))
        if reply.finish_reason == "content_filter":
            return Reading(None, ("The provider's content filter stopped the reply.",))
        question, model = conversation.question, self._models[conversation.model]
        reading = understand(reply.content, question.reply, question.problems)
        if reading.fits:
            model.fitted = True
        elif not model.fitted and not chooses_only(conversation.model):
            # A server may take a schema and ignore it; the model then has never seen it.
            model.step_to(Rung.SCHEMA_AND_WORDS)
        return reading

    def _go_on(
        self, conversation: Conversation, reply: Reply, reading: Reading, attempt: int
    ) -> bool:
        """Write down an unusable reply; whether to ask again, and with which messages."""
        self.usage.failed_calls += 1
        cut_off = reply.finish_reason == "length"
        writes = not chooses_only(conversation.model)
        finished = reply.finish_reason not in ("length", "content_filter")
        if finished and writes and reply.content.strip() and not conversation.repairing:
            conversation.messages = repair_turn(
                conversation.messages, reply.content, reading.complaints, conversation.schema
            )
            conversation.repairing = more = True
        elif cut_off and conversation.cut_off:
            more = False  # it is the limit, and not bad luck
        else:
            more = conversation.start_afresh()
        conversation.cut_off = cut_off
        more = more and attempt < self._settings.max_attempts
        reason = " ".join(reading.complaints)
        tries = None if more else attempt
        self._write_down(conversation, reason, reply.content, given_up_after=tries)
        return more

    # Failures

    async def _wait_out(
        self, conversation: Conversation, failure: CallFailed, attempt: int
    ) -> bool:
        """Write down a failed call and wait; whether to try again."""
        tries = self._settings.max_attempts
        if conversation.answers_before is None:
            conversation.answers_before = self._caller.answers
        if failure.kind == "unreachable" and self._caller.answers == 0:
            tries = min(tries, _TRIES_TO_CONNECT)
        if not failure.may_pass or attempt >= tries:
            self._write_down(conversation, failure.message, failure.raw, given_up_after=attempt)
            if failure.may_pass and self._caller.answers == conversation.answers_before:
                self._count_silence(conversation.model, failure)
            return False
        try:
            seconds = self._caller.seconds_to_wait(conversation.model, failure, attempt)
        except UnreachableModel:
            self._write_down(conversation, failure.message, failure.raw, given_up_after=attempt)
            raise
        lasts = failure.kind == "unreachable" or attempt > 1 or seconds > _SHORT_WAIT
        if lasts and self._clock.now() >= self._quiet_until:
            self._quiet_until = self._clock.now() + MINUTE  # of many calls, one speaks for all
            self._reporter.say(f"{failure.message} Trying again in {duration(seconds)}.")
        again = f"{failure.message} Tried again after {seconds:.1f} s."
        self._write_down(conversation, again, failure.raw)
        await self._clock.sleep(seconds)
        return True

    def _count_silence(self, model: str, failure: CallFailed) -> None:
        """A question was given up, and no call got an answer since it was first asked."""
        if failure.kind == "unreachable":
            raise UnreachableModel(failure.message, hint=failure.hint)
        answers, silent = self._silence
        silent = silent + 1 if answers == self._caller.answers else 1
        self._silence = (self._caller.answers, silent)
        if silent >= self._enough:
            asked = f"{silent} questions in a row" if silent > 1 else "a question, often as it came"
            raise UnreachableModel(
                f"{model} did not answer {asked}. The last time: {failure.message}",
                hint="Run the same command again later.",
            )

    def _write_down(
        self,
        conversation: Conversation,
        reason: str,
        raw: str | None,
        given_up_after: int | None = None,
    ) -> None:
        item = conversation.question.item
        if given_up_after is not None:
            tries = "1 try" if given_up_after == 1 else f"{given_up_after} tries"
            stop = "." if reason[-1:].isalnum() else ""
            self.failed[item] = reason = f"{reason}{stop} Given up after {tries}."
        self._journal.failure("prompts", item, reason, raw)

    # Calls

    async def _ask(self, conversation: Conversation, attempt: int) -> Reply:
        """Send a question, in another form if the provider does not take the one that it has."""
        while True:
            if self._stopping:
                raise asyncio.CancelledError
            call, rung = self._call(conversation), self._models[conversation.model].rung
            try:
                return await self._send(call, conversation.question.item, attempt)
            except ModelUnusable as error:
                self._write_down(conversation, error.message, None, given_up_after=attempt)
                raise
            except CallFailed as failure:
                if failure.kind == "parameter":
                    now = self._without(failure, call)
                elif failure.kind == "form" and (below := rung.below) is not None:
                    now = f"Asked for {below.form} from now on, with the schema in the message."
                    self._models[conversation.model].step_to(below)
                else:
                    raise
                self._write_down(conversation, f"{failure.message} {now}", failure.raw)

    def _call(self, conversation: Conversation) -> Call:
        name, settings = conversation.question.reply.__name__, self._settings
        model = self._models[conversation.model]
        wanted = {
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "seed": conversation.seed,
        }
        parameters = {model.renamed.get(key, key): value for key, value in wanted.items()}
        return Call(
            conversation.model,
            model.rung.messages(conversation.messages, conversation.schema),
            model.rung.response_format(conversation.schema, name, conversation.strict),
            {key: value for key, value in parameters.items() if key and value is not None},
        )

    def _without(self, failure: CallFailed, call: Call) -> str:
        """Leave out or rename the parameter that the provider refuses; what was done, in words."""
        refused, instead = str(failure.parameter), failure.instead
        renamed = self._models[call.model].renamed
        name = "max_tokens" if refused == "max_completion_tokens" else refused
        known = name in renamed and renamed[name] != refused  # another question has met it before
        if renamed.get(name) == refused:
            instead = None  # neither the one nor the other
        if name == "max_tokens" and instead is None and self._settings.max_cost is not None:
            raise ModelUnusable(
                f"{failure.message} Without it, prompts.llm.max_cost cannot be kept.",
                hint="Leave out prompts.llm.max_cost, or name another model.",
            )
        if not known:
            renamed[name] = instead
            done = f"{instead} is sent instead" if instead else "it is left out"
            self._reporter.say(f"{failure.message} From now on {done}.")
        now = renamed[name]
        return "Left out from now on." if now is None else f"Sent as {now} from now on."

    async def _send(self, call: Call, item: str, attempt: int) -> Reply:
        estimate = call.estimated_tokens()
        model, longest = self._models[call.model], self._settings.max_tokens
        reading = round(estimate * model.scale)
        writing = model.longest_reply if longest is None else min(model.longest_reply, longest)
        # Found out only where it is needed: prices are in LiteLLM, which takes seconds to import.
        limited = self._settings.max_cost is not None
        price = self._chat.price(call.model) if limited else None
        reply = await self._caller.send(
            lambda: self._chat.send(call),
            model=call.model,
            entry={"item": item, "attempt": attempt, "cached": False},
            tokens=reading + writing,
            most=None if price is None else price.of(reading, longest or 0),
        )
        model.scale = max(model.scale, (reply.prompt_tokens or 0) / estimate)
        model.longest_reply = max(model.longest_reply, reply.completion_tokens or 0)
        return reply

    # Kept replies

    def _key(self, question: Question, model: str, schema: Schema) -> str:
        return key_of(
            {
                "model": model,
                "api_base": self._settings.api_base,
                "messages": list(question.messages),
                "schema": schema,
                "temperature": self._settings.temperature,
                "max_tokens": self._settings.max_tokens,
                "seed": question.seed,
                # The embedded model may choose differently in another version.
                "version": __version__ if chooses_only(model) else None,
            }
        )

    def _kept(self, question: Question, model: str, key: str) -> Any | None:
        kept = self._cache.get(key) if self._cache else None
        if kept is None:
            return None
        # What was good enough once may not be for today's checks.
        value = understand(kept, question.reply, question.problems).value
        if value is not None:
            self.usage.cached += 1
            self._journal.event("llm_call", item=question.item, model=model, cached=True)
        return value

    def _keep(self, conversation: Conversation, reply: Reply) -> None:
        if self._cache is None:
            return
        tokens = (reply.prompt_tokens, reply.completion_tokens)
        try:
            self._cache.put(conversation.key, reply.content, conversation.model, tokens)
        except StorageError as error:
            self._reporter.say(f"Replies of the language model are not kept: {error.message}")
            self._cache = None


def estimate_cost(
    settings: LanguageModel, prompt_tokens: int, completion_tokens: int
) -> float | None:
    """Cost of so many tokens, in US dollars; None if unknown, 0.0 for the embedded model."""
    price = ChatModel(settings).price(settings.model)
    return None if price is None else price.of(prompt_tokens, completion_tokens)
