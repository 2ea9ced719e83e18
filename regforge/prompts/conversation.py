"""Gets usable answers out of a language model that is busy, down, talkative or wrong.

    question ── kept on disk? ── ask ── reply fits? ── answer
                                  │         └ no: show it what is wrong, once; then start afresh
                                  └ failed: wait and ask again; refuses the form: ask in another

Every failed call is one line of the ledger. What can only go wrong again (no key, no server, no
money) ends the run at once. Knows the provider only as something that sends one call.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from regforge.errors import RegforgeError
from regforge.files import StorageError
from regforge.journal import Journal
from regforge.prompts.calls import Caller
from regforge.prompts.limits import Clock, backoff
from regforge.prompts.questions import (
    Call,
    CallFailed,
    ModelUnusable,
    Provider,
    Question,
    Received,
    UnreachableModel,
    Usage,
)
from regforge.prompts.replies import (
    Message,
    Reading,
    Rung,
    Schema,
    repair_turn,
    strict_schema,
    understand,
    without_annotations,
)
from regforge.prompts.reply_cache import KeptReply, ReplyCache, key_of
from regforge.recipe.prompts import LanguageModel
from regforge.version import __version__

_FRESH_STARTS = 2
"""How often a question is asked from scratch after a reply and its repair could not be used."""
_TRIES_TO_CONNECT = 3
"""Before the first answer; a server that has answered gets all the tries there are."""
_SILENT_QUESTIONS = 3
"""So many questions in a row without any answer, and the server counts as down."""
_LONGEST_RETRY_AFTER = 600.0
_GRACE = 1.0
"""Seconds for calls that are under way when the run stops."""


@dataclass
class _Pursuit:
    """One question on its way to an answer."""

    question: Question
    model: str
    schema: Schema
    strict: bool
    key: str
    messages: Sequence[Message] = ()
    repairing: bool = False
    fresh_starts: int = 0
    cut_off: bool = False
    answers_before: int | None = None
    """Of all questions, when this one failed first."""

    def __post_init__(self) -> None:
        self.messages = self.question.messages

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
        return self.fresh_starts <= _FRESH_STARTS

    def repair(self, said: str, complaints: Sequence[str]) -> None:
        """Go on with what is wrong with the reply."""
        self.messages = repair_turn(self.messages, said, complaints, self.schema)
        self.repairing = True


@dataclass
class Asker:
    """Asks questions, many at a time.

    Attributes:
        settings: Which model, how fast, how often, for how much.
        provider: Sends the calls.
        journal: Where calls and failures are written down.
        cache: Where good replies are kept, or None.
        clock: Where waiting comes from.
        say: Told things that a person should know now.
        failed: Items without an answer, and why.
    """

    settings: LanguageModel
    provider: Provider
    journal: Journal
    cache: ReplyCache | None
    clock: Clock
    say: Callable[[str], None]
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._caller = Caller(self.settings, self.provider, self.journal, self.clock)
        self._rng = random.Random()  # only for how long to wait
        self._rungs: dict[str, Rung] = {}
        self._fitted: set[str] = set()
        self._stopping = False
        self._silence = (0, 0)  # answers there were, questions given up since

    @property
    def usage(self) -> Usage:
        """What all calls have come to."""
        return self._caller.usage

    async def answer_all(self, questions: Sequence[Question]) -> list[Any | None]:
        """The answers, in the order of the questions; None where there is none.

        Raises:
            ModelUnusable: The language model cannot be used; the answers so far are in the cache.
        """
        self._stopping = False
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
            if self.cache and self._caller.answers:
                error.hint = f"{error.hint or ''} What was answered so far is kept.".strip()
            raise
        finally:
            await self._wind_down(tasks)

    async def _wind_down(self, tasks: Sequence[asyncio.Future[Any]]) -> None:
        """Start nothing more, and let what is under way come in, for it is paid for."""
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
        model = question.model or self.settings.model
        schema: Schema = question.schema or question.reply.model_json_schema()
        strict = False
        if not self.provider.chooses_only(model):
            schema, strict = strict_schema(without_annotations(schema))
        key = self._key(question, model, schema)
        kept = self._kept(question, model, key)
        if kept is not None:
            return kept
        # Waiting after a failure keeps its place: a server in trouble should not meet new
        # questions, and one that is down shows it before all of them were asked.
        async with self._caller.place():
            try:
                return await self._pursue(_Pursuit(question, model, schema, strict, key))
            except RegforgeError:
                self._stopping = True  # before the place goes to the next question
                raise

    async def _pursue(self, pursuit: _Pursuit) -> Any | None:
        for attempt in range(1, self.settings.max_attempts + 1):
            try:
                received = await self._ask(pursuit, attempt)
            except CallFailed as failure:
                if not await self._wait_out(pursuit, failure, attempt):
                    return None
                continue
            reading = self._read(pursuit, received)
            if reading.value is not None:
                self._keep(pursuit, received)
                return reading.value
            if not self._go_on(pursuit, received, reading, attempt):
                return None
        return None

    # Replies

    def _read(self, pursuit: _Pursuit, received: Received) -> Reading:
        if received.finish_reason == "length":
            most = self.settings.max_tokens
            cut_off = f"The reply was cut off at prompts.llm.max_tokens = {most}; raise it."
            return Reading(None, (cut_off,))
        if received.finish_reason == "content_filter":
            return Reading(None, ("The provider's content filter stopped the reply.",))
        question = pursuit.question
        reading = understand(received.text, question.reply, question.problems)
        if reading.fits:
            self._fitted.add(pursuit.model)
        elif pursuit.model not in self._fitted and not self.provider.chooses_only(pursuit.model):
            # A server may take a schema and ignore it; the model then has never seen it.
            self._step_to(pursuit.model, Rung.SCHEMA_AND_WORDS)
        return reading

    def _go_on(self, pursuit: _Pursuit, received: Received, reading: Reading, attempt: int) -> bool:
        """Write down an unusable reply; whether to ask again, and with which messages."""
        self.usage.failed_calls += 1
        cut_off = received.finish_reason == "length"
        writes = not self.provider.chooses_only(pursuit.model)
        finished = received.finish_reason not in ("length", "content_filter")
        if finished and writes and received.text.strip() and not pursuit.repairing:
            pursuit.repair(received.text, reading.complaints)
            more = True
        elif cut_off and pursuit.cut_off:
            more = False  # it is the limit, and not bad luck
        else:
            more = pursuit.start_afresh()
        pursuit.cut_off = cut_off
        more = more and attempt < self.settings.max_attempts
        reason = " ".join(reading.complaints)
        self._write_down(pursuit, reason, received.text, given_up_after=None if more else attempt)
        return more

    # Failures

    async def _wait_out(self, pursuit: _Pursuit, failure: CallFailed, attempt: int) -> bool:
        """Write down a failed call and wait; whether to try again."""
        tries = self.settings.max_attempts
        if pursuit.answers_before is None:
            pursuit.answers_before = self._caller.answers
        if failure.kind == "unreachable" and self._caller.answers == 0:
            tries = min(tries, _TRIES_TO_CONNECT)
        if not failure.may_pass or attempt >= tries:
            self._write_down(pursuit, failure.args[0], failure.raw, given_up_after=attempt)
            if failure.may_pass and self._caller.answers == pursuit.answers_before:
                self._count_silence(pursuit.model, failure)
            return False
        if failure.retry_after is None:
            seconds = backoff(attempt, self._rng)
        else:
            seconds = failure.retry_after
            if seconds > _LONGEST_RETRY_AFTER:
                self._write_down(pursuit, failure.args[0], failure.raw, given_up_after=attempt)
                raise UnreachableModel(
                    f"{pursuit.model} takes no calls for the next {seconds / 60:.0f} minutes.",
                    hint="Run the same command again then.",
                )
            self._caller.pause(seconds)  # it will refuse the others as well
        if attempt == 1 and failure.kind == "unreachable":
            self.say(f"{failure.args[0]} Trying again.")
        again = f"{failure.args[0]} Tried again after {seconds:.1f} s."
        self._write_down(pursuit, again, failure.raw)
        await self.clock.sleep(seconds)
        return True

    def _count_silence(self, model: str, failure: CallFailed) -> None:
        """A question was given up, and nobody's call got an answer since it was first asked."""
        if failure.kind == "unreachable":
            raise UnreachableModel(failure.args[0], hint=failure.hint)
        answers, silent = self._silence
        silent = silent + 1 if answers == self._caller.answers else 1
        self._silence = (self._caller.answers, silent)
        if silent >= _SILENT_QUESTIONS:
            raise UnreachableModel(
                f"{model} did not answer {silent} questions in a row. The last time: "
                f"{failure.args[0]}",
                hint="Run the same command again later.",
            )

    def _write_down(
        self,
        pursuit: _Pursuit,
        reason: str,
        raw: str | None,
        given_up_after: int | None = None,
    ) -> None:
        item = pursuit.question.item
        if given_up_after is not None:
            tries = "1 try" if given_up_after == 1 else f"{given_up_after} tries"
            reason = f"{reason} Given up after {tries}."
            self.failed[item] = reason
        self.journal.failure("prompts", item, reason, raw)

    # Calls

    async def _ask(self, pursuit: _Pursuit, attempt: int) -> Received:
        """Send a question, in another form if the provider does not take the one that it has."""
        while True:
            if self._stopping:
                raise asyncio.CancelledError
            rung = self._rungs.get(pursuit.model, Rung.SCHEMA)
            call = self._call(pursuit, rung)
            try:
                return await self._caller.send(call, pursuit.question.item, attempt)
            except ModelUnusable as error:
                self._write_down(pursuit, error.args[0], None, given_up_after=attempt)
                raise
            except CallFailed as failure:
                below = rung.below
                if failure.kind != "form" or below is None:
                    raise
                now = f"Asked for {below.form} from now on, with the schema in the message."
                self._write_down(pursuit, f"{failure.args[0]} {now}", failure.raw)
                self._step_to(pursuit.model, below)

    def _call(self, pursuit: _Pursuit, rung: Rung) -> Call:
        name = pursuit.question.reply.__name__
        return Call(
            pursuit.model,
            rung.messages(pursuit.messages, pursuit.schema),
            rung.response_format(pursuit.schema, name, pursuit.strict),
            pursuit.seed,
        )

    def _step_to(self, model: str, rung: Rung) -> None:
        self._rungs[model] = max(rung, self._rungs.get(model, Rung.SCHEMA))

    # Kept replies

    def _key(self, question: Question, model: str, schema: Schema) -> str:
        chooses = self.provider.chooses_only(model)
        return key_of(
            {
                "model": model,
                "api_base": self.settings.api_base,
                "messages": list(question.messages),
                "schema": schema,
                "temperature": self.settings.temperature,
                "max_tokens": self.settings.max_tokens,
                "seed": question.seed,
                # The embedded model may choose differently in another version.
                "version": __version__ if chooses else None,
            }
        )

    def _kept(self, question: Question, model: str, key: str) -> Any | None:
        kept = self.cache.get(key) if self.cache else None
        if kept is None:
            return None
        # What was good enough once may not be for today's checks.
        value = understand(kept.text, question.reply, question.problems).value
        if value is not None:
            self.usage.cached += 1
            self.journal.event("llm_call", item=question.item, model=model, cached=True)
        return value

    def _keep(self, pursuit: _Pursuit, received: Received) -> None:
        if self.cache is None:
            return
        tokens = (received.prompt_tokens, received.completion_tokens)
        try:
            self.cache.put(pursuit.key, KeptReply(received.text, pursuit.model, *tokens))
        except StorageError as error:
            self.say(f"Replies of the language model are not kept: {error.args[0]}")
            self.cache = None
