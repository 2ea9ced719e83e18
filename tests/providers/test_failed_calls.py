"""The language model client when things go wrong: what is tried again, and what is said."""

import json
import threading
from typing import Any

import pytest
from llm_setup import KEY, RED, Bench, Color, color_of, questions, user
from servers import Call, Faults, OpenAIServer, Reply, refused, said

from regforge.errors import EXIT_FAILED
from regforge.providers.errors import (
    ModelUnusable,
    OutOfCredit,
    UnknownModel,
    UnreachableModel,
    WrongKey,
)


@pytest.mark.slow
def test_every_failure_is_in_the_ledger_and_the_answers_are_right(bench: Bench) -> None:
    """30 % of the calls fail, in every way there is."""
    faults = Faults(lambda call: said(color_of(call)), share=0.3, seed=3)
    with OpenAIServer(faults) as server:
        client = bench.client(server, timeout=2, max_concurrency=16)
        answers = client.ask(questions(120))
    right = [Color(color=f"color {n}") for n in range(120)]
    wrong = [n for n in range(120) if answers[n] not in (right[n], None)]
    assert wrong == []
    assert answers.count(None) == len(client.failed) <= 2
    failures = sorted(kind for kind in faults.made.values() if kind != "think")
    assert set(faults.made.values()) == set(Faults.KINDS)
    assert len(bench.ledger) == len(failures) == client.usage.failed_calls
    said_of = {"429": "busy (429)", "500": "failed (500)", "hang": "No reply within 2 s."}
    for kind, words in said_of.items():
        assert bench.reasons.count(words) == failures.count(kind), kind
    raw = [entry.get("raw", "") for entry in bench.ledger]
    assert sum(text.startswith("Certainly!") for text in raw) == failures.count("prose")
    assert raw.count("") == failures.count("empty")
    assert {entry["stage"] for entry in bench.ledger} == {"prompts"}


# Tried again


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (refused(429, "slow down"), "busy (429): slow down"),
        (refused(500, "oops"), "failed (500): oops"),
        (Reply(500, "Internal Server Error"), "failed (500)"),  # as transformers serve says it
        (Reply(502, "<html>Bad Gateway</html>"), "failed (502)"),
        (refused(503, "loading"), "failed (503)"),
        (refused(529, "overloaded"), "failed (529)"),
        (refused(408, "late"), "No reply within"),
        (refused(504, "late"), "No reply within"),
        (Reply(200, "<html>Welcome</html>"), "failed"),
        (Reply(0), "connection broke"),
    ],
)
def test_what_may_pass_is_tried_again(bench: Bench, failure: Reply, reason: str) -> None:
    with OpenAIServer(lambda call: failure if call.number < 2 else said(RED)) as server:
        assert bench.ask(server) == [Color(color="red")]
    assert len(server.calls) == 3
    assert bench.reasons.count(reason) == 2, bench.reasons
    assert len(bench.time.slept) == 2


def test_the_wait_grows_unless_the_server_says_how_long(bench: Bench) -> None:
    replies = [refused(429, "x", retry_after="7"), refused(500, "x"), said(RED)]
    with OpenAIServer(lambda call: replies[call.number]) as server:
        bench.ask(server)
    asked, own = bench.time.slept[0], bench.time.slept[-1]
    assert asked == 7.0
    assert own <= 1.0
    assert "Tried again after 7.0 s." in bench.reasons


def test_a_busy_server_is_left_alone_by_everybody(bench: Bench) -> None:
    def answer(call: Call) -> Reply:
        return refused(429, "x", retry_after="0.6") if call.number == 0 else said(RED, wait=0.1)

    with OpenAIServer(answer) as server:
        bench.ask(server, 12, flying=False, max_concurrency=4)
    first, *others = (call.time for call in server.calls)
    # Those that were under way already, and then nobody for as long as the server asked for.
    assert len([when for when in others if when < first + 0.6]) <= 3


def test_a_server_that_hangs_is_given_up_in_time(bench: Bench) -> None:
    def answer(call: Call) -> Reply:
        return said(RED, wait=30 if call.number == 0 else 0)

    with OpenAIServer(answer) as server:
        assert bench.ask(server, timeout=0.3) == [Color(color="red")]
    assert "No reply within 0.3 s." in bench.reasons


def test_a_question_is_sent_so_often_and_no_more(bench: Bench) -> None:
    def answer(call: Call) -> Reply:
        return refused(500, "never") if "Color 1?" in call.text else said(color_of(call))

    with OpenAIServer(answer) as server:
        client = bench.client(server, max_attempts=4, max_concurrency=1)
        answers = client.ask(questions(3))
    assert [answer is None for answer in answers] == [False, True, False]
    assert len(server.calls) == 2 + 4
    assert client.failed == {"color 1": "The provider failed (500): never. Given up after 4 tries."}


# Unusable replies


def test_one_repair_turn_quotes_what_is_wrong(bench: Bench) -> None:
    replies = [said('{"colour": "red"}'), said(RED)]
    with OpenAIServer(lambda call: replies[call.number]) as server:
        assert bench.ask(server) == [Color(color="red")]
    asked, answered, complaint = server.calls[1].body["messages"]
    assert asked["content"].startswith("Color 0?")
    assert answered == {"role": "assistant", "content": '{"colour": "red"}'}
    assert "color: Field required" in complaint["content"]


def test_further_problems_are_quoted_too(bench: Bench) -> None:
    replies = [said(RED), said('{"color": "sea green"}')]
    asked = questions(1, problems=lambda reply: ["Red is taken."] * (reply.color == "red"))
    with OpenAIServer(lambda call: replies[call.number]) as server:
        assert bench.client(server).ask(asked) == [Color(color="sea green")]
    assert "- Red is taken." in server.calls[1].text
    assert server.calls[1].format == "json_schema"
    assert [entry["raw"] for entry in bench.ledger] == [RED]


def test_a_model_that_answers_prose_fails_with_what_it_said(bench: Bench) -> None:
    with OpenAIServer(lambda _: said("Red is a lovely color.")) as server:
        client = bench.client(server)
        assert client.ask(questions(1, seed=5)) == [None]
    # The question and its repair, then the same with other seeds.
    assert [len(call.body["messages"]) for call in server.calls] == [1, 3] * 3
    seeds = [call.body["seed"] for call in server.calls]
    assert seeds[0] == 5
    assert seeds[::2] == seeds[1::2]
    assert len(set(seeds)) == 3
    assert [entry["raw"] for entry in bench.ledger] == ["Red is a lovely color."] * 6
    assert client.failed["color 0"] == (
        'The reply has no complete JSON in it. It begins: "Red is a lovely color." '
        "Given up after 6 tries."
    )
    assert bench.kept_files() == []


def test_a_reply_that_is_cut_off_is_asked_for_once_more(bench: Bench) -> None:
    with OpenAIServer(lambda _: said(RED, finish_reason="length")) as server:
        assert bench.ask(server, max_tokens=64) == [None]
    assert len(server.calls) == 2
    assert "cut off at prompts.llm.max_tokens = 64" in bench.reasons


@pytest.mark.parametrize("content", [None, "", "<think>Hm, let me see"])
def test_no_answer_in_the_reply_is_asked_afresh(bench: Bench, content: str | None) -> None:
    with OpenAIServer(lambda call: said(RED if call.number else content)) as server:
        assert bench.ask(server) == [Color(color="red")]
    assert len(server.calls) == 2


# Nothing will help


def one_sentence(error: ModelUnusable) -> str:
    message = error.args[0]
    assert error.exit_code == EXIT_FAILED
    assert error.hint
    assert "\n" not in message
    assert "Traceback" not in str(error)
    assert "litellm" not in message.lower().replace("litellm knows", "")
    return str(error)


NOBODY = "http://127.0.0.1:9/v1"
MAKERS = ("openai", "hosted_vllm", "ollama_chat")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "model", "words"),
    [
        *(
            (NOBODY, f"{each}/local", f"{each}/local cannot be reached at {NOBODY}")
            for each in MAKERS
        ),
        ("http://no-such-host.invalid/v1", "openai/local", "no-such-host.invalid"),
        ("127.0.0.1:8000", "openai/local", "prompts.llm.api_base"),
        (None, "hosted_vllm/local", "prompts.llm.api_base"),
    ],
)
def test_an_unreachable_address(bench: Bench, base: str | None, model: str, words: str) -> None:
    with pytest.raises(UnreachableModel) as stop:
        bench.client(base, model=model).ask(questions(50))
    text = one_sentence(stop.value)
    assert words in text
    assert "prompts.llm.api_base" in text
    assert len(bench.ledger) <= 8 * 3  # three tries each of those that ran at the time


def test_what_was_answered_before_the_server_died_is_kept(bench: Bench) -> None:
    enough = threading.Event()

    def answer(call: Call) -> Reply:
        if call.number == 20:
            enough.set()
        return Reply(0) if enough.is_set() else said(color_of(call))

    with OpenAIServer(answer) as server:
        client = bench.client(server, max_attempts=2, max_concurrency=4)
        with pytest.raises(UnreachableModel, match=r"did not answer \d questions in a row") as stop:
            client.ask(questions(60))
    assert "answered so far is kept" in one_sentence(stop.value)
    assert len(server.calls) < 40
    assert len(bench.kept_files()) == 20


def test_a_run_goes_on_where_the_last_one_stopped(bench: Bench) -> None:
    broken = threading.Event()

    def answer(call: Call) -> Reply:
        if broken.is_set():
            return refused(401, "key revoked")
        if call.number == 9:
            broken.set()
        return said(color_of(call))

    with OpenAIServer(answer) as server:
        with pytest.raises(WrongKey, match="There is no API key"):
            bench.client(server, max_concurrency=2).ask(questions(30))
        broken.clear()
        kept = len(bench.kept_files())
        again = bench.client(server)
        assert None not in again.ask(questions(30))
    assert kept >= 9
    assert (again.usage.cached, again.usage.calls) == (kept, 30 - kept)


def test_replies_that_are_on_the_way_when_the_run_stops_are_kept(bench: Bench) -> None:
    def answer(call: Call) -> Reply:
        return refused(402, "no more") if call.number == 3 else said(color_of(call), wait=0.3)

    with OpenAIServer(answer) as server, pytest.raises(OutOfCredit):
        bench.client(server, max_concurrency=4).ask(questions(20))
    assert len(bench.kept_files()) == 3
    assert len(server.calls) == 4


def test_a_wrong_key_is_named_and_not_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    refusal = refused(401, f"Incorrect API key provided: {KEY}")
    with OpenAIServer(lambda _: refusal) as server, pytest.raises(WrongKey) as stop:
        bench.client(server).ask(questions(50))
    text = one_sentence(stop.value)
    assert "openai/local was refused (401)" in text
    assert "OPENAI_API_KEY" in text
    assert KEY not in text + bench.all_text()
    assert len(server.calls) <= 8


@pytest.mark.parametrize(
    ("model", "variable"),
    [("gpt-4o-mini", "OPENAI_API_KEY"), ("anthropic/claude-sonnet-4-5", "ANTHROPIC_API_KEY")],
)
def test_a_missing_key_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, model: str, variable: str
) -> None:
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(WrongKey) as stop:
        bench.client(model=model).ask(questions(3))
    assert f"There is no API key for {model}." in one_sentence(stop.value)
    assert f"Set the environment variable {variable}" in str(stop.value)


def test_a_refusal_of_one_question_is_not_a_refusal_of_the_key(bench: Bench) -> None:
    def answer(call: Call) -> Reply:
        return refused(403, "flagged") if "Color 3?" in call.text else said(color_of(call))

    with OpenAIServer(answer) as server:
        answers = bench.ask(server, 6, max_concurrency=1)
    assert [n for n, answer in enumerate(answers) if answer is None] == [3]


@pytest.mark.parametrize(
    ("refusal", "error", "words"),
    [
        (refused(404, "The model `local` does not exist"), UnknownModel, "end in /v1"),
        (Reply(404, "<html>\nNot Found\n</html>"), UnknownModel, "prompts.llm.model"),
        (refused(402, "Insufficient credits"), OutOfCredit, "Top it up"),
        (refused(429, "You exceeded your current quota."), OutOfCredit, "Top it up"),
        (refused(403, "Country not supported"), WrongKey, "There is no API key"),
    ],
)
def test_what_every_question_would_meet_stops_the_run(
    bench: Bench, refusal: Reply, error: type[ModelUnusable], words: str
) -> None:
    with OpenAIServer(lambda _: refusal) as server, pytest.raises(error) as stop:
        bench.ask(server, 50)
    assert words in one_sentence(stop.value)
    assert len(server.calls) <= 8
    assert bench.ledger


@pytest.mark.parametrize("model", ["llama3", "no-such-provider/model"])
def test_a_model_without_a_provider(bench: Bench, model: str) -> None:
    with pytest.raises(UnknownModel) as stop:
        bench.client(model=model).ask(questions(2))
    assert "provider/model" in one_sentence(stop.value)


@pytest.mark.slow
def test_a_server_that_only_fails_is_not_asked_everything(bench: Bench) -> None:
    down = pytest.raises(UnreachableModel, match=r"\d questions in a row")
    with OpenAIServer(lambda _: refused(500, "out of memory")) as server, down as stop:
        bench.ask(server, 100)
    assert "out of memory" in one_sentence(stop.value)
    assert len(server.calls) <= (8 + 2) * 6  # two were given up and made room before


def test_long_and_odd_replies_and_questions_do_no_harm(bench: Bench) -> None:
    odd: list[Any] = ["\ud800", "x" * 300_000, "{" * 50_000, "\x00\x1b[31m"]
    with OpenAIServer(lambda call: said(odd[call.number % 4])) as server:
        assert bench.ask(server, 4) == [None] * 4
    assert all(len(json.dumps(entry)) < 150_000 for entry in bench.ledger)
    with OpenAIServer(lambda _: said(RED)) as server:
        asked = questions(1, messages=user("Ünïcode 🎨 \u2028 \x00 {{ jinja }}"))
        assert bench.client(server).ask(asked) == [Color(color="red")]
