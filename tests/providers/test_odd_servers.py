"""Servers that answer in shapes of their own, count oddly, or refuse what is sent."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from llm_setup import KEY, PRICES, RED, Bench, Color, color_of, questions
from servers import Call, OpenAIServer, Reply, refused, said

from regforge.providers.errors import CostLimitReached, ModelUnusable, UnreachableModel


def reply(message: Mapping[str, Any], usage: Any = None, finish: str = "stop") -> Reply:
    """A chat completion with a message, and a usage, of any shape."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Reply(body=json.dumps(body if usage is None else body | {"usage": usage}))


CALLED = {"name": "reply", "arguments": RED}
TOOL = {"id": "call_1", "type": "function", "function": CALLED}


@pytest.mark.parametrize(
    "message",
    [
        {"content": "", "reasoning_content": RED},
        {"content": None, "reasoning_content": f"The user wants a color. {RED}"},
        {"content": "\n", "reasoning": RED},
        {"content": "<think>Hm.</think>", "reasoning_content": RED},
        {"content": [{"type": "text", "text": RED}]},
        {"content": [{"type": "text", "text": '{"color": '}, {"type": "text", "text": '"red"}'}]},
        {"content": [{"type": "thinking", "thinking": '{"a": 1}'}, {"type": "text", "text": RED}]},
        {"content": None, "tool_calls": [TOOL]},
        {"content": "I will call it.", "tool_calls": [TOOL]},
        {"content": None, "function_call": CALLED},
        {"content": f"```json\n{RED}\n```"},
        {"content": f"<think>Is {{it}} blue?</think>\n{RED}\nI hope this helps! {{}}"},
        {"content": f"\ufeff{RED}"},
        {"content": '\ufeff{"color": "red", "note": "<think>"}'},
        {"content": {"color": "red"}},
    ],
    ids=str,
)
def test_an_answer_is_found_wherever_it_stands(message: Mapping[str, Any], bench: Bench) -> None:
    with OpenAIServer(lambda _: reply(message, {"prompt_tokens": 9, "completion_tokens": 9})) as s:
        assert bench.ask(s) == [Color(color="red")], bench.reasons
    assert len(s.calls) == 1


@pytest.mark.parametrize(
    ("message", "finish", "words"),
    [
        ({"content": ""}, "stop", "empty"),
        ({"content": "", "reasoning_content": "Hm, red or blue?"}, "stop", "thoughts alone"),
        ({"content": "", "reasoning_content": "Hm, r"}, "length", "prompts.llm.max_tokens = 64"),
        ({"content": None, "refusal": "I cannot help with it."}, "stop", "I cannot help with it."),
        ({"content": ""}, "content_filter", "content filter"),
    ],
)
def test_the_ledger_says_why_there_is_no_answer(
    message: Mapping[str, Any], finish: str, words: str, bench: Bench
) -> None:
    with OpenAIServer(lambda _: reply(message, finish=finish)) as server:
        client = bench.client(server, max_tokens=64, cache=False)
        assert client.ask(questions(1)) == [None]
    assert words in client.failed["color 0"]


ODD_COUNTS = (-6_000_000, None, "many", float("nan"), 10**18, 1e400, True, 1.5, [1])
ODD_USAGES = [
    *(None, {}, "none", []),
    *({"prompt_tokens": count, "completion_tokens": 10} for count in ODD_COUNTS),
    {"prompt_tokens": 20, "completion_tokens": -3_000_000},
]


@pytest.mark.parametrize("usage", ODD_USAGES, ids=str)
def test_impossible_tokens_are_unknown_and_the_limit_holds(usage: Any, bench: Bench) -> None:
    def answer(call: Call) -> Reply:
        return reply({"content": color_of(call)}, usage)

    settings = {"max_tokens": 100, "max_cost": 1.0, "max_attempts": 3, **PRICES}
    with OpenAIServer(answer) as server:
        client = bench.client(server, **settings)
        with pytest.raises((CostLimitReached, ModelUnusable)):
            client.ask(questions(100))
    # Each call may have cost 100 tokens of reply and some of prompt: no more than five fit.
    assert 1 <= len(server.calls) <= 5, len(server.calls)
    assert client.usage.cost is None or client.usage.cost >= 0
    assert client.usage.prompt_tokens >= 0
    logged = [entry.get("cost") for entry in bench.log]
    assert all(cost is None or cost >= 0 for cost in logged)


def test_a_call_that_timed_out_may_be_billed_and_counts(bench: Bench) -> None:
    limits = {"max_tokens": 100, "max_cost": 0.7, "timeout": 0.3, "max_attempts": 50}
    with OpenAIServer(lambda _: said(RED, wait=5)) as server:
        client = bench.client(server, **limits, **PRICES, max_concurrency=1)
        with pytest.raises(CostLimitReached, match="spent"):
            client.ask(questions(1))
    assert 1 <= len(server.calls) <= 3
    assert [entry["cost"] for entry in bench.log] == [0.0] * len(server.calls)
    assert all(entry["may_cost"] >= 0.2 for entry in bench.log)
    # It counts in the next session of the run too.
    with OpenAIServer() as server, pytest.raises(CostLimitReached):
        bench.client(server, **limits, **PRICES).ask(questions(1))
    assert server.calls == []


def test_a_run_has_one_limit_for_all_its_sessions(bench: Bench) -> None:
    limits = {"max_tokens": 100, "max_cost": 1.0, "max_concurrency": 1, "cache": False, **PRICES}
    with OpenAIServer(lambda call: said(color_of(call), tokens=(20, 100))) as server:
        for _ in range(3):
            with pytest.raises(CostLimitReached):
                bench.client(server, **limits).ask(questions(10))
    assert len(server.calls) * 0.22 <= 1.0


def refusing(name: str, words: str) -> Any:
    """Answers, unless a parameter is sent that it does not take."""

    def answer(call: Call) -> Reply:
        return refused(400, words) if name in call.body else said(color_of(call))

    return answer


@pytest.mark.parametrize(
    ("name", "words", "sent"),
    [
        (
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            {"temperature", "seed", "max_completion_tokens"},
        ),
        (
            "temperature",
            "Unsupported value: 'temperature' does not support 0.7 with this model. Only the "
            "default (1) value is supported.",
            {"max_tokens", "seed"},
        ),
        ("seed", "seed: Extra inputs are not permitted", {"temperature", "max_tokens"}),
        ("max_tokens", "unknown field `max_tokens`", {"temperature", "seed"}),
        ("temperature", "Unrecognized request argument: temperature", {"max_tokens", "seed"}),
    ],
)
def test_a_parameter_that_is_refused_is_left_out_or_renamed_from_then_on(
    name: str, words: str, sent: set[str], bench: Bench
) -> None:
    with OpenAIServer(refusing(name, words)) as server:
        client = bench.client(server, temperature=0.7, max_tokens=99, max_concurrency=1)
        assert None not in client.ask(questions(3, seed=5))
    optional = {"temperature", "max_tokens", "max_completion_tokens", "seed"}
    first, *others = (optional & call.body.keys() for call in server.calls)
    assert first == {"temperature", "max_tokens", "seed"}
    assert others == [sent] * 3
    assert words in bench.reasons
    for call in server.calls[1:]:
        assert call.body.get("max_completion_tokens", 99) == 99


def test_a_field_that_transformers_serve_does_not_expect_is_left_out(bench: Bench) -> None:
    """It answers 422 in FastAPI's form, with the names as Python writes a set."""

    def answer(call: Call) -> Reply:
        if "seed" in call.body:
            return Reply(422, {"detail": "Unexpected fields in the request: {'seed'}"})
        return said(color_of(call))

    with OpenAIServer(answer) as server:
        client = bench.client(server, temperature=0.7, max_concurrency=1)
        assert None not in client.ask(questions(2, seed=5))
    assert [("seed" in call.body, "temperature" in call.body) for call in server.calls] == [
        (True, True),
        (False, True),
        (False, True),
    ]


@pytest.mark.slow
def test_several_parameters_are_refused_one_after_the_other_by_many_calls(bench: Bench) -> None:
    def answer(call: Call) -> Reply:
        for name in ("temperature", "max_tokens", "seed", "response_format"):
            if name in call.body:
                return refused(400, f"Unknown parameter: '{name}'.")
        return said(color_of(call))

    with OpenAIServer(answer) as server:
        assert None not in bench.ask(server, 20, max_concurrency=5)
    assert len(server.calls) <= 20 + 5 * 6


def test_a_server_that_takes_neither_name_of_a_parameter_gets_none(bench: Bench) -> None:
    names = ("max_tokens", "max_completion_tokens")

    def answer(call: Call) -> Reply:
        for name, other in (names, names[::-1]):
            if name in call.body:
                return refused(400, f"Unsupported parameter: '{name}'. Use '{other}' instead.")
        return said(color_of(call))

    with OpenAIServer(answer) as server:
        assert None not in bench.ask(server, 3, max_concurrency=1)
    assert len(server.calls) == 3 + 2

    # Several questions that meet it at once agree on what is done, and on what is said of it.
    with OpenAIServer(lambda call: replace(answer(call), wait=0.2)) as server:
        assert None not in bench.ask(server, 4, flying=False)
    assert bench.told.getvalue().count("From now on") == 4  # two of either client
    assert "Sent as max_tokens" not in bench.reasons


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "10"}], ids=["at once", "late"])
def test_waiting_is_said_but_not_for_each_question(headers: dict[str, str], bench: Bench) -> None:
    busy = replace(refused(429, "slow down"), headers=headers)
    with OpenAIServer(lambda _: busy) as server, pytest.raises(ModelUnusable):
        bench.ask(server, 8, max_attempts=3)
    assert 1 <= bench.told.getvalue().count("slow down. Trying again") <= 4


def test_a_value_that_is_too_large_is_no_parameter_that_is_not_taken(bench: Bench) -> None:
    words = "max_tokens is too large: 4096. This model supports at most 2048 completion tokens."
    with OpenAIServer(refusing("max_tokens", words)) as server:
        client = bench.client(server)
        assert client.ask(questions(1)) == [None]
    assert words in client.failed["color 0"]
    assert len(server.calls) == 1


def test_max_cost_needs_a_longest_reply(bench: Bench) -> None:
    with (
        OpenAIServer(refusing("max_tokens", "Unknown parameter: 'max_tokens'")) as server,
        pytest.raises(ModelUnusable, match="max_cost cannot be kept"),
    ):
        bench.client(server, max_tokens=100, max_cost=1.0, **PRICES).ask(questions(3))


def test_null_leaves_a_parameter_out(bench: Bench) -> None:
    with OpenAIServer() as server:
        bench.client(server, temperature=None, max_tokens=None).ask(questions(1))
    assert not {"temperature", "max_tokens"} & server.calls[0].body.keys()


@pytest.mark.parametrize(
    ("wait", "words"),
    [
        ("3600", "takes no calls for the next 1 h"),
        *(
            (wait, r"more than a day: .*Come back later")
            for wait in ("343806540", "Tue, 27 Oct 2037 00:00:00 GMT", "4444444444", "9" * 13)
        ),
    ],
)
def test_who_asks_for_hours_is_not_waited_for(wait: str, words: str, bench: Bench) -> None:
    busy = refused(429, "Come back later.", retry_after=wait)
    with (
        OpenAIServer(lambda _: busy) as server,
        pytest.raises(UnreachableModel, match=words),
    ):
        bench.ask(server, 5)


@pytest.mark.parametrize("wait", ["nan", "inf", "1e999", "-5", "soon", ""])
def test_a_wait_that_is_none_is_not_heeded(wait: str, bench: Bench) -> None:
    def answer(call: Call) -> Reply:
        return refused(429, "busy", retry_after=wait) if call.number == 0 else said(RED)

    with OpenAIServer(answer) as server:
        assert bench.ask(server) == [Color(color="red")]
    assert sum(bench.time.slept) <= 1


def test_a_web_page_is_told_in_words(bench: Bench) -> None:
    page = "<html><head><title>502 Bad Gateway</title><style>b{}</style></head><body>nginx</body>"
    with OpenAIServer(lambda _: Reply(502, page)) as server:
        client = bench.client(server, max_attempts=2)
        with pytest.raises(UnreachableModel, match="Bad Gateway"):
            client.ask(questions(1))
    assert "<" not in client.failed["color 0"]


def test_a_key_that_is_repeated_is_no_phrase(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with OpenAIServer(lambda _: said(json.dumps({"color": KEY}))) as server:
        (answer,) = bench.client(server).ask(questions(1))
    assert KEY not in answer.color + bench.all_text()


MESSAGES = (
    'null|"text"|{"content": 5}|{"tool_calls": "x"}|{"content": null, "tool_calls": [null]}'
    '|{"content": null, "function_call": 5}'
).split("|")


@pytest.mark.parametrize(
    "body",
    [
        *("[]", "{}", "null", '"text"', "", "[" * 100_000),
        *(f'{{"choices": {each}}}' for each in ("null", "[]", "{}", "[null]", '["text"]')),
        *(f'{{"choices": [{{"message": {each}}}]}}' for each in MESSAGES),
        '{"error": {"message": "Model is loading", "code": 503}}',
        '{"error": "Model is loading"}',
    ],
    ids=lambda body: body[:60],
)
def test_a_reply_that_is_none_is_a_failed_call_and_no_traceback(body: str, bench: Bench) -> None:
    with OpenAIServer(lambda call: said(RED) if call.number > 1 else Reply(body=body)) as server:
        client = bench.client(server, cache=False)
        assert client.ask(questions(1)) == [Color(color="red")], bench.reasons
    assert len(server.calls) == 3
    assert "Traceback" not in bench.reasons
    assert "litellm" not in bench.reasons.lower()
    assert all(len(entry["reason"]) < 600 for entry in bench.ledger)
