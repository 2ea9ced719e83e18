"""The language model client against a loopback server that behaves: forms, cache, cost, limits."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_setup import KEY, PRICES, RED, Bench, Color, color_of, questions, user
from servers import Call, Faults, OpenAIServer, Reply, by_schema, refused, said, without_format

from regforge.embedded import language_model
from regforge.providers.errors import CostLimitReached, ModelUnusable, UnknownModel
from regforge.providers.language_model import Question, estimate_cost
from regforge.recipe.sections import LanguageModel


def test_answers_come_in_the_order_of_the_questions(bench: Bench) -> None:
    def slowly(call: Call) -> Reply:
        return said(color_of(call), wait=0.1 if call.number == 0 else 0.0)

    with OpenAIServer(slowly) as server:
        answers = bench.client(server).ask(questions(12))
    assert answers == [Color(color=f"color {n}") for n in range(12)]
    assert bench.ledger == []


def test_what_is_sent_is_what_the_settings_say(bench: Bench) -> None:
    settings = {"temperature": 0.25, "max_tokens": 321}
    with OpenAIServer() as server:
        bench.client(server, **settings).ask(questions(1, seed=77))
    sent = {"model": "local", "messages": user("Color 0?"), "seed": 77, **settings}
    assert sent.items() <= server.calls[0].body.items()


def test_a_key_is_sent_and_written_nowhere(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with OpenAIServer() as server:
        bench.client(server).ask(questions(1))
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in bench.all_text()
    assert bench.kept_files()


# The form of replies


def test_the_schema_is_sent_strict_and_without_annotations(bench: Bench) -> None:
    schema = {
        "type": "object",
        "x-class-noun": "teapot",
        "properties": {"color": {"enum": ["red", "blue"], "x-stems": []}},
    }
    with OpenAIServer() as server:
        answers = bench.client(server).ask(questions(1, schema=schema))
    assert answers == [Color(color="red")]
    assert server.calls[0].body["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "Color",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"color": {"enum": ["red", "blue"]}},
                "required": ["color"],
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize(
    ("lacks", "forms"),
    [
        (["json_schema"], ["json_schema", "json_object", "json_object"]),
        (["json_schema", "json_object"], ["json_schema", "json_object", None, None]),
    ],
)
def test_refused_forms_are_over(bench: Bench, lacks: list[str], forms: list[str | None]) -> None:
    with OpenAIServer(without_format(lambda _: said(RED), *lacks)) as server:
        client = bench.client(server, max_attempts=1)
        assert client.ask(questions(1)) == [Color(color="red")]
        assert client.ask(questions(1, item="again", seed=1)) == [Color(color="red")]
    assert [call.format for call in server.calls] == forms
    assert '"color"' in server.calls[-1].text  # the schema is in the message instead
    assert bench.reasons.count("does not take this response format") == len(lacks)


def test_many_questions_at_once_step_down_together(bench: Bench) -> None:
    answer = without_format(lambda call: said(color_of(call)), "json_schema", "json_object")
    with OpenAIServer(answer) as server:
        answers = bench.ask(server, 30, max_concurrency=6)
    assert None not in answers
    assert len(server.calls) <= 30 + 2 * 6


@pytest.mark.parametrize(
    "refusal",
    [
        refused(400, "maximum context length is 4096 tokens", code="context_length_exceeded"),
        refused(400, "rejected by our safety system", code="content_policy_violation"),
        refused(400, "messages: at most 5 images"),
    ],
)
def test_other_refusals_are_no_reason_to_step_down(bench: Bench, refusal: Reply) -> None:
    with OpenAIServer(lambda call: refusal if call.number == 0 else said(RED)) as server:
        client = bench.client(server)
        assert client.ask(questions(1)) == [None]
        assert client.ask(questions(1)) == [Color(color="red")]
    assert [call.format for call in server.calls] == ["json_schema"] * 2
    assert "Given up after 1 try" in bench.reasons
    assert list(client.failed) == ["color 0"]


def test_a_server_that_ignores_the_schema_gets_it_in_words(bench: Bench) -> None:
    def ignorant(call: Call) -> Reply:
        return said(RED if '"color"' in call.text else "Red is nice.")

    with OpenAIServer(ignorant) as server:
        client = bench.client(server, cache=False)
        assert client.ask(questions(1)) == [Color(color="red")]  # through the repair turn
        assert client.ask(questions(3)) == [Color(color="red")] * 3
    assert len(server.calls) == 2 + 3


def test_images_go_to_another_model_also_beside_the_embedded_one(bench: Bench) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    asked = questions(1, messages=user([image, {"type": "text", "text": "Color?"}]))
    with OpenAIServer(without_format(lambda _: said(RED), "json_schema")) as server:
        question = Question(asked[0].item, asked[0].messages, Color, model="openai/eyes")
        assert bench.client(server).ask([question]) == [Color(color="red")]
    assert server.calls[-1].body["model"] == "eyes"
    assert server.calls[-1].body["messages"][0]["content"][0] == image
    with OpenAIServer() as server:
        client = bench.client(server, model=language_model.MODEL)
        assert client.ask(questions(1, model="openai/eyes")) != [None]
    assert server.calls[0].body["model"] == "eyes"


# The cache


def test_a_question_is_paid_for_once(bench: Bench) -> None:
    with OpenAIServer() as server:
        first = bench.client(server).ask(questions(5))
        client = bench.client(server)
        assert client.ask(questions(5)) == first
    assert len(server.calls) == 5
    assert (client.usage.calls, client.usage.cached, client.usage.cost) == (0, 5, 0.0)
    assert sum(entry["cached"] for entry in bench.log) == 5


@pytest.mark.parametrize(
    ("settings", "question"),
    [
        ({"model": "openai/other"}, {}),
        ({"temperature": 0.5}, {}),
        ({"max_tokens": 99}, {}),
        ({"cache": False}, {}),
        ({"api_base": "another server"}, {}),
        ({}, {"seed": 2}),
        ({}, {"messages": user("Colour?")}),
        ({}, {"schema": {"type": "object", "properties": {"color": {"enum": ["red"]}}}}),
    ],
)
def test_other_questions(bench: Bench, settings: dict[str, Any], question: dict[str, Any]) -> None:
    with OpenAIServer() as server, OpenAIServer() as other:
        bench.client(server).ask(questions(1, seed=1))
        if "api_base" in settings:
            settings = {"api_base": other.url}
        bench.client(server, **settings).ask(questions(1, **{"seed": 1} | question))
    assert len(server.calls) + len(other.calls) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', "another format"])
def test_a_damaged_file_is_replaced(bench: Bench, damage: str) -> None:
    with OpenAIServer() as server:
        bench.client(server).ask(questions(1))
        (path,) = bench.kept_files()
        good = path.read_text()
        another = good.replace('"format": 1,', '"format": 99,')
        path.write_text(another if damage == "another format" else damage)
        assert bench.client(server).ask(questions(1)) != [None]
    assert json.loads(path.read_text())["format"] == json.loads(good)["format"]
    assert len(server.calls) == 2


def test_only_replies_that_are_still_good_enough_come_from_the_cache(bench: Bench) -> None:
    with OpenAIServer(
        lambda call: said(RED if call.number == 0 else '{"color": "blue"}')
    ) as server:
        bench.client(server).ask(questions(1))
        checked = questions(1, problems=lambda reply: ["No red!"] * (reply.color == "red"))
        assert bench.client(server).ask(checked) == [Color(color="blue")]


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(bench: Bench) -> None:
    bench.cache.write_text("a file where the folder should be")
    with OpenAIServer() as server:
        assert None not in bench.client(server).ask(questions(3))


# Tokens and money


def test_tokens_and_cost_are_counted(bench: Bench) -> None:
    with OpenAIServer(lambda _: said(RED, tokens=(30, 7))) as server:
        client = bench.client(server, **PRICES)
        client.ask(questions(4))
    usage = client.usage
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens) == (4, 120, 28)
    assert usage.cost == pytest.approx(120 * 0.001 + 28 * 0.002)
    assert len(bench.log) == 4
    logged = {"event": "llm_call", "model": "openai/local", "attempt": 1, "cached": False}
    logged |= {"prompt_tokens": 30, "completion_tokens": 7, "cost": pytest.approx(0.044)}
    assert bench.log[0] == logged | {key: bench.log[0][key] for key in ("time", "item", "seconds")}


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    """A server of which the recipe does not say that it is on this machine."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        yield server


def test_unknown_prices_and_tokens_are_unknown(bench: Bench, far_away: OpenAIServer) -> None:
    unpriced = bench.client(cache=False)
    unpriced.ask(questions(2))
    assert (unpriced.usage.cost, unpriced.usage.unpriced_tokens) == (None, 60)
    assert str(unpriced.usage) == "2 calls, 60 tokens, cost unknown"
    assert {entry["cost"] for entry in bench.log} == {None}
    with OpenAIServer(lambda _: said(RED, tokens=None)) as server:
        uncounted = bench.client(server, **PRICES)
        uncounted.ask(questions(2))
    assert (uncounted.usage.uncounted_calls, uncounted.usage.cost) == (2, None)
    assert str(uncounted.usage) == "2 calls, tokens unknown, cost unknown"


def test_cost_is_known_given_estimated_or_unknown(bench: Bench) -> None:
    with OpenAIServer(lambda _: said(RED, tokens=(1000, 1000))) as server:
        client = bench.client(server, model="openai/gpt-4o-mini")
        client.ask(questions(1))
    assert client.usage.cost == pytest.approx(0.00075)
    assert estimate_cost(LanguageModel(model="gpt-4o-mini"), 1000, 1000) == pytest.approx(0.00075)
    assert estimate_cost(LanguageModel(), 10**6, 10**6) == 0.0
    assert estimate_cost(LanguageModel(model="openai/mine", **PRICES), 10, 10) == pytest.approx(
        0.03
    )
    for model in ("openai/mine", "hosted_vllm/mine", "nobody-knows"):
        assert estimate_cost(LanguageModel(model=model), 10, 10) is None


HOME = {
    "ollama_chat/llama3.1": None,
    "ollama/llama3.1": "http://192.168.1.20:11434",
    "openai/mine": "http://localhost:1234/v1",
    "hosted_vllm/mine": "http://[::1]:8000/v1",
    "openai/other": "http://10.0.0.7/v1",
}
AWAY = {
    "ollama_chat/llama3.1": "https://ollama.example.com",
    "openai/mine": "https://8.8.8.8/v1",
    "openai/other": "https://localhost.example.com/v1",
    "openai/odd": "http://[",
}


@pytest.mark.parametrize(("servers", "cost"), [(HOME, 0.0), (AWAY, None)])
def test_a_model_at_home_is_free(servers: dict[str, str | None], cost: float | None) -> None:
    for model, base in servers.items():
        assert estimate_cost(LanguageModel(model=model, api_base=base), 10, 10) == cost
        priced = LanguageModel(model=model, api_base=base, **PRICES)
        assert estimate_cost(priced, 10, 10) == pytest.approx(0.03)


def test_max_cost_goes_with_a_model_at_home(bench: Bench) -> None:
    with OpenAIServer(lambda _: said(RED, tokens=None)) as server:
        client = bench.client(server, max_cost=0.01)
        assert None not in client.ask(questions(3))
    assert client.usage.cost == 0.0


def test_max_cost_stops_before_it_is_exceeded_and_loses_nothing(bench: Bench) -> None:
    limited = {"max_tokens": 100, "max_cost": 1.0, "max_concurrency": 4, **PRICES}
    with OpenAIServer(lambda call: said(color_of(call), tokens=(20, 50), wait=0.01)) as server:
        client = bench.client(server, **limited)
        with pytest.raises(CostLimitReached, match=r"max_cost = \$1.00 .*spent.*may cost") as stop:
            client.ask(questions(30))
        assert 0.5 < len(server.calls) * 0.12 <= 1.0
        assert client.usage.cost == pytest.approx(len(server.calls) * 0.12)
        assert "answered so far is kept" in str(stop.value)
        before = len(server.calls)
        again = bench.client(server, **limited | {"max_cost": 10.0})
        assert None not in again.ask(questions(30))
    assert again.usage.cached == before
    assert len(server.calls) == 30


def test_replies_that_could_not_be_used_cost_money_too(bench: Bench) -> None:
    with OpenAIServer(lambda _: said("No.", tokens=(20, 50))) as server:
        client = bench.client(server, max_tokens=100, max_cost=0.5, **PRICES)
        with pytest.raises(CostLimitReached):
            client.ask(questions(30))
    assert client.usage.cost == pytest.approx(len(server.calls) * 0.12)
    assert client.usage.cost <= 0.5


def test_calls_that_the_server_refused_cost_nothing(bench: Bench) -> None:
    def answer(call: Call) -> Reply:
        return refused(500, "oops") if call.number % 5 < 4 else said(RED, tokens=(20, 50))

    with OpenAIServer(answer) as server:
        client = bench.client(server, max_tokens=100, max_cost=1.0, max_concurrency=1, **PRICES)
        assert None not in client.ask(questions(4))
    assert client.usage.cost == pytest.approx(4 * 0.12)


def test_max_cost_with_an_unknown_price_is_refused(bench: Bench, far_away: OpenAIServer) -> None:
    with pytest.raises(ModelUnusable, match="price of openai/local is unknown") as refusal:
        bench.client(max_cost=1.0).ask(questions(3))
    assert far_away.calls == []
    assert "prompts.llm.input_cost_per_token" in str(refusal.value)


# Limits


@pytest.mark.slow
def test_calls_at_a_time_calls_a_minute_and_tokens_a_minute_are_kept(bench: Bench) -> None:
    with OpenAIServer(lambda call: said(color_of(call), wait=0.03)) as server:
        bench.ask(server, 20, max_concurrency=3)
    assert server.most_at_once == 3
    with OpenAIServer(rpm=1200) as server:
        answers = bench.ask(server, 30, flying=False, rpm=1200)
    assert None not in answers
    assert (len(server.calls), server.violations) == (30, 0)
    with OpenAIServer(lambda _: said(RED, tokens=(40, 60))) as server:
        assert None not in bench.ask(server, 12, tpm=400)
    # Four calls of 100 tokens fit into a minute; the other eight take two more.
    assert sum(bench.time.slept) >= 2 * 59


# The embedded model


class Chooser:
    """An engine that likes short phrases; may be slow."""

    digest = "chooser"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.working = threading.Event()
        self.stems: list[str] = []

    def log_probabilities(self, stem: str, options: Any) -> list[float]:
        self.working.set()
        self.stems.append(stem)
        for _ in range(int(self.seconds / 0.01)):
            threading.Event().wait(0.01)
        return [-float(len(option)) for option in options]


CHOICE = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "ultramarine"], "x-stems": ["It is {class_noun}"]}},
    "required": ["color"],
    "x-class-noun": "teapot",
}


@pytest.fixture
def chooser(tmp_path: Path) -> Any:
    engine = Chooser()
    model = language_model.LanguageModel(engine, tmp_path / "scores")
    language_model.register(model)
    yield engine
    import litellm

    litellm.custom_provider_map = []


def test_the_embedded_model_gets_annotations_and_is_free(bench: Bench, chooser: Chooser) -> None:
    client = bench.client(model=language_model.MODEL, max_cost=0.01)
    assert client.chooses_only
    assert client.ask(questions(4, schema=CHOICE, seed=1)) != [None] * 4
    assert any("teapot" in stem for stem in chooser.stems)
    assert client.usage.cost == 0.0
    assert str(client.usage) == "4 calls, 0 tokens, $0.00"


def test_the_embedded_model_is_asked_again_and_not_lectured(bench: Bench, chooser: Chooser) -> None:
    seen = []

    def problems(reply: Any) -> list[str]:
        seen.append(reply.color)
        return ["No."]

    client = bench.client(model=language_model.MODEL)
    assert client.ask(questions(1, schema=CHOICE, problems=problems)) == [None]
    assert len(seen) == 3
    assert "Given up after 3 tries" in client.failed["color 0"]


def test_missing_weights_say_what_to_install(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("regforge.embedded.language_model.smollm._GGUF", "no_such_file")
    language_model.register(language_model.LanguageModel(cache_dir=tmp_path / "empty"))
    with pytest.raises(UnknownModel) as missing:
        bench.client(model=language_model.MODEL).ask(questions(3, schema=CHOICE))
    assert str(missing.value).endswith(language_model.INSTALL_COMMAND)
    assert "litellm" not in str(missing.value).lower()


# Where it runs


def test_it_works_where_an_event_loop_runs_already(bench: Bench) -> None:
    async def notebook() -> list[Any]:
        with bench.client(server) as client:
            return client.ask(questions(2))

    with OpenAIServer() as server:
        assert None not in asyncio.run(notebook())


def test_one_client_after_the_other(bench: Bench) -> None:
    for _ in range(3):
        with OpenAIServer() as server:
            client = bench.client(server, cache=False)
            assert None not in client.ask(questions(2))
            assert None not in client.ask(questions(2))
            client.close()
            client.close()


def interrupt_when(ready: threading.Event) -> None:
    def press() -> None:
        ready.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


def test_ctrl_c_gets_through_to_a_server_that_hangs(bench: Bench) -> None:
    asked = threading.Event()

    def hang(call: Call) -> Reply:
        asked.set()
        return said(RED, wait=30)

    with OpenAIServer(hang) as server:
        interrupt_when(asked)
        with pytest.raises(KeyboardInterrupt):
            bench.ask(server, 5)


def test_ctrl_c_gets_through_to_the_embedded_model(bench: Bench, chooser: Chooser) -> None:
    chooser.seconds = 3
    interrupt_when(chooser.working)
    client = bench.client(model=language_model.MODEL)
    with pytest.raises(KeyboardInterrupt):
        client.ask(questions(5, schema=CHOICE))
    client.close()
    assert len(chooser.stems) == 1  # neither the rest of this question nor the next one


def in_another_process(bench: Bench, then: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parent)]!r}
from pathlib import Path
from llm_setup import Bench, questions
bench = Bench(Path({str(bench.folder)!r}))
{then}
"""
    command = [sys.executable, "-W", "default", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_nothing_heavy_is_imported_for_answers_from_the_cache(bench: Bench) -> None:
    with OpenAIServer() as server:
        base = server.url
        bench.client(server).ask(questions(1))
    then = f"with bench.client({base!r}) as client: print(client.ask(questions(1)))\n"
    then += "print([name for name in ('litellm', 'torch', 'transformers') if name in sys.modules])"
    assert in_another_process(bench, then).stdout == "[Color(color='color 0')]\n[]\n"


@pytest.mark.slow
def test_nothing_is_printed_that_nobody_asked_for(bench: Bench) -> None:
    """LiteLLM, its loggers and asyncio talk when they start and end."""
    with OpenAIServer(Faults(by_schema, seed=5, hang=2)) as server:
        then = f"with bench.client({server.url!r}, timeout=1) as client: client.ask(questions(30))"
        run = in_another_process(bench, then)
    ours = [line for line in run.stderr.splitlines() if "site-packages" not in line]
    assert run.stdout == ""
    assert not any("Unclosed" in line or "Task" in line or "LiteLLM" in line for line in ours), ours
