"""Gets usable answers out of a language model that is busy, down, talkative or wrong.

    question ── kept on disk? ── ask ── reply fits? ── answer
                                  │         └ no: show it what is wrong, once; then start afresh
                                  └ failed: wait and ask again; refuses the form: ask in another

Every failed call is one line of the ledger. What can only go wrong again (no key, no server, no
money) ends the run at once. Knows the provider only as something that sends one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from regforge.errors import RegforgeError
from regforge.files import StorageError
from regforge.journal import Journal
from regforge.progress import duration
from regforge.providers.calls import Caller, Usage
from regforge.providers.errors import CallFailed, ModelUnusable, UnreachableModel
from regforge.providers.limits import MINUTE, Clock
from regforge.providers.questions import (
    Call,
    Provider,
    Question,
    Received,
    Sizes,
    estimate_tokens,
)
from regforge.providers.replies import (
    KeptReply,
    Message,
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
from regforge.recipe.prompts import LanguageModel
from regforge.version import __version__

_FRESH_STARTS = 2
"""How often a question is asked from scratch after a reply and its repair could not be used."""
_TRIES_TO_CONNECT = 3
"""Before the first answer; a server that has answered gets all the tries there are."""
_SILENT_QUESTIONS = 3
"""So many questions in a row without any answer, and the server counts as down."""
_SHORT_WAIT = 5.0
"""Seconds that pass without a word; longer ones look as if it hung."""
_GRACE = 1.0
"""Seconds for calls that are under way when the run stops."""


@dataclass
class _Conversation:
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
        self._caller = Caller("prompts.llm", "llm_call", self.settings, self.journal, self.clock)
        self._sizes: dict[str, Sizes] = {}
        self._parameters: dict[str, dict[str, str | None]] = {}
        self._rungs: dict[str, Rung] = {}
        self._fitted: set[str] = set()
        self._quiet_until = float("-inf")
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
        async with self._caller.limiter.place():
            try:
                return await self._converse(_Conversation(question, model, schema, strict, key))
            except RegforgeError:
                self._stopping = True  # before the place goes to the next question
                raise

    async def _converse(self, conversation: _Conversation) -> Any | None:
        for attempt in range(1, self.settings.max_attempts + 1):
            try:
                received = await self._ask(conversation, attempt)
            except CallFailed as failure:
                if not await self._wait_out(conversation, failure, attempt):
                    return None
                continue
            reading = self._read(conversation, received)
            if reading.value is not None:
                self._keep(conversation, received)
                return reading.value
            if not self._go_on(conversation, received, reading, attempt):
                return None
        return None

    # Replies

    def _read(self, conversation: _Conversation, received: Received) -> Reading:
        if received.finish_reason == "length":
            most = self.settings.max_tokens
            cut_off = f"The reply was cut off at prompts.llm.max_tokens = {most}; raise it."
            return Reading(None, (cut_off,))
        if received.finish_reason == "content_filter":
            return Reading(None, ("The provider's content filter stopped the reply.",))
        question = conversation.question
        reading = understand(received.text, question.reply, question.problems)
        if reading.fits:
            self._fitted.add(conversation.model)
        elif conversation.model not in self._fitted and not self.provider.chooses_only(
            conversation.model
        ):
            # A server may take a schema and ignore it; the model then has never seen it.
            self._step_to(conversation.model, Rung.SCHEMA_AND_WORDS)
        return reading

    def _go_on(
        self, conversation: _Conversation, received: Received, reading: Reading, attempt: int
    ) -> bool:
        """Write down an unusable reply; whether to ask again, and with which messages."""
        self.usage.failed_calls += 1
        cut_off = received.finish_reason == "length"
        writes = not self.provider.chooses_only(conversation.model)
        finished = received.finish_reason not in ("length", "content_filter")
        if finished and writes and received.text.strip() and not conversation.repairing:
            conversation.repair(received.text, reading.complaints)
            more = True
        elif cut_off and conversation.cut_off:
            more = False  # it is the limit, and not bad luck
        else:
            more = conversation.start_afresh()
        conversation.cut_off = cut_off
        more = more and attempt < self.settings.max_attempts
        reason = " ".join(reading.complaints)
        self._write_down(
            conversation, reason, received.text, given_up_after=None if more else attempt
        )
        return more

    # Failures

    async def _wait_out(
        self, conversation: _Conversation, failure: CallFailed, attempt: int
    ) -> bool:
        """Write down a failed call and wait; whether to try again."""
        tries = self.settings.max_attempts
        if conversation.answers_before is None:
            conversation.answers_before = self._caller.answers
        if failure.kind == "unreachable" and self._caller.answers == 0:
            tries = min(tries, _TRIES_TO_CONNECT)
        if not failure.may_pass or attempt >= tries:
            self._write_down(conversation, failure.args[0], failure.raw, given_up_after=attempt)
            if failure.may_pass and self._caller.answers == conversation.answers_before:
                self._count_silence(conversation.model, failure)
            return False
        try:
            seconds = self._caller.seconds_to_wait(conversation.model, failure, attempt)
        except UnreachableModel:
            self._write_down(conversation, failure.args[0], failure.raw, given_up_after=attempt)
            raise
        lasts = failure.kind == "unreachable" or attempt > 1 or seconds > _SHORT_WAIT
        if lasts and self.clock.now() >= self._quiet_until:
            self._quiet_until = self.clock.now() + MINUTE  # of many calls, one speaks for all
            self.say(f"{failure.args[0]} Trying again in {duration(seconds)}.")
        again = f"{failure.args[0]} Tried again after {seconds:.1f} s."
        self._write_down(conversation, again, failure.raw)
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
        conversation: _Conversation,
        reason: str,
        raw: str | None,
        given_up_after: int | None = None,
    ) -> None:
        item = conversation.question.item
        if given_up_after is not None:
            tries = "1 try" if given_up_after == 1 else f"{given_up_after} tries"
            stop = "." if reason[-1:].isalnum() else ""
            reason = f"{reason}{stop} Given up after {tries}."
            self.failed[item] = reason
        self.journal.failure("prompts", item, reason, raw)

    # Calls

    async def _ask(self, conversation: _Conversation, attempt: int) -> Received:
        """Send a question, in another form if the provider does not take the one that it has."""
        while True:
            if self._stopping:
                raise asyncio.CancelledError
            rung = self._rungs.get(conversation.model, Rung.SCHEMA)
            call = self._call(conversation, rung)
            try:
                return await self._send(call, conversation.question.item, attempt)
            except ModelUnusable as error:
                self._write_down(conversation, error.args[0], None, given_up_after=attempt)
                raise
            except CallFailed as failure:
                below = rung.below
                if failure.kind == "parameter":
                    now = self._without(failure, call)
                elif failure.kind == "form" and below is not None:
                    now = f"Asked for {below.form} from now on, with the schema in the message."
                    self._step_to(conversation.model, below)
                else:
                    raise
                self._write_down(conversation, f"{failure.args[0]} {now}", failure.raw)

    def _call(self, conversation: _Conversation, rung: Rung) -> Call:
        name, settings = conversation.question.reply.__name__, self.settings
        renamed = self._parameters.get(conversation.model, {})
        wanted = {
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "seed": conversation.seed,
        }
        parameters = {renamed.get(key, key): value for key, value in wanted.items()}
        return Call(
            conversation.model,
            rung.messages(conversation.messages, conversation.schema),
            rung.response_format(conversation.schema, name, conversation.strict),
            {key: value for key, value in parameters.items() if key and value is not None},
        )

    def _without(self, failure: CallFailed, call: Call) -> str:
        """Leave out or rename the parameter that the provider refuses; what was done, in words."""
        refused, instead = str(failure.parameter), failure.instead
        renamed = self._parameters.setdefault(call.model, {})
        name = "max_tokens" if refused == "max_completion_tokens" else refused
        known = name in renamed and renamed[name] != refused  # another question has met it before
        if renamed.get(name) == refused:
            instead = None  # neither the one nor the other
        if name == "max_tokens" and instead is None and self.settings.max_cost is not None:
            raise ModelUnusable(
                f"{failure.message} Without it, prompts.llm.max_cost cannot be kept.",
                hint="Leave out prompts.llm.max_cost, or name another model.",
            )
        if not known:
            renamed[name] = instead
            done = f"{instead} is sent instead" if instead else "it is left out"
            self.say(f"{failure.message} From now on {done}.")
        now = renamed[name]
        return "Left out from now on." if now is None else f"Sent as {now} from now on."

    async def _send(self, call: Call, item: str, attempt: int) -> Received:
        estimate = estimate_tokens(call.messages, call.response_format)
        sizes = self._sizes.setdefault(call.model, Sizes())
        reading, longest = round(estimate * sizes.scale), self.settings.max_tokens
        writing = sizes.longest_reply if longest is None else min(sizes.longest_reply, longest)
        # Found out only where it is needed: prices are in LiteLLM, which takes seconds to import.
        limited = self.settings.max_cost is not None
        price = self.provider.price(call.model) if limited else None
        received = await self._caller.send(
            lambda: self.provider.send(call),
            model=call.model,
            entry={"item": item, "attempt": attempt, "cached": False},
            tokens=reading + writing,
            most=None if price is None else price.of(reading, longest or 0),
        )
        sizes.learn(estimate, received)
        return received

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

    def _keep(self, conversation: _Conversation, received: Received) -> None:
        if self.cache is None:
            return
        tokens = (received.prompt_tokens, received.completion_tokens)
        try:
            self.cache.put(conversation.key, KeptReply(received.text, conversation.model, *tokens))
        except StorageError as error:
            self.say(f"Replies of the language model are not kept: {error.args[0]}")
            self.cache = None
