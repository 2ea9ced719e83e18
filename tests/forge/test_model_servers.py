"""Runs that ask a language model over HTTP: a good one, a bad one, one that is not there."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from servers import Call, Faults, OpenAIServer, Reply, refused, said
from shell import Shell
from small_runs import WriteRecipe, quietly

from regforge.journal import read
from regforge.recipe import load_recipe
from regforge.words import dollars

SLOTS = ["shape", "color", "background"]
WORDS = (
    "amber brass cobalt denim ebony fawn garnet hazel indigo jade khaki lilac mauve navy".split()
)


@pytest.fixture(autouse=True)
def no_key_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("regforge.providers.calls.FIRST_WAIT", 0.01)


STARTS = {"background": "in a hall of ", "style": "a picture in ", "lighting": "in light of "}


def phrase(slot: str, words: str) -> str:
    return STARTS.get(slot, f"{slot}like ") + words


def phrases(call: Call) -> Reply:
    """Answers questions for a slot's phrases, clashes, or whole captions."""
    text = call.text
    if theme := re.search(r"In this batch, favor (\w+)", text):
        numbers = range(call.number * 10, call.number * 10 + 10)
        # No word in two slots, for a caption that says one twice is refused.
        names = ["".join(chr(97 + int(digit)) for digit in str(n)) for n in numbers]
        rows = [
            {slot: phrase(slot, f"{theme[1]}{slot} {n}{slot}") for slot in SLOTS} for n in names
        ]
        return said(json.dumps({"captions": rows}))
    if "contradict" in text:
        return said('{"clashes": []}')
    slot = re.search(r'phrases for the slot "(\w+)"', text)
    assert slot, text
    return said(json.dumps({"phrases": [phrase(slot[1], word) for word in WORDS]}))


def recipe_for(server: OpenAIServer | str, write_recipe: WriteRecipe, **prompts: Any) -> Path:
    url = server if isinstance(server, str) else server.url
    llm = {"model": "openai/loopback", "api_base": url, "timeout": 0.5}
    return write_recipe(
        subject={"class_noun": "teapot", "images": None},
        render=prompts.pop("render", {"model": "nobody/nothing"}),  # only captions are made here
        prompts={
            "sets": {"amplify": 1},
            "slots": SLOTS,
            "phrases_per_slot": 14,
            "max_tokens": 200,
            "count": 200,
            "llm": {**llm, "max_attempts": 12, **prompts.pop("llm", {})},
            **prompts,
        },
    )


def captions_of(out: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (out / "prompts.jsonl").open()]


KINDS = ("429", "500", "hang", "prose", "truncated", "think")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["vocabulary", "compose"])
def test_a_server_that_fails_a_third_of_the_time_still_gives_all_captions(
    mode: str, shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    faults = Faults(phrases, share=0.3, seed=4, hang=1.5, kinds=KINDS)
    with OpenAIServer(faults) as server:
        recipe = recipe_for(server, write_recipe, mode=mode, near_duplicates=1.0)
        assert shell("prompts", recipe, "--out", "run") == 0, shell.err
    texts = captions_of(tmp_path / "run")
    assert len(texts) == len(set(texts)) == 200
    ledger = [e for e in read(tmp_path / "run/ledger.jsonl") if e["stage"] == "prompts"]
    calls = [entry for entry in ledger if "call" in entry["item"] or "slot" in entry["item"]]
    # <think> blocks are no failure: they are taken off.
    failed = Counter(kind for kind in faults.made.values() if kind != "think")
    assert len(calls) >= failed.total() > 0
    assert all(entry["reason"] for entry in ledger)


def test_killed_runs_pay_only_once(shell: Shell, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    with OpenAIServer(phrases) as server:
        recipe = recipe_for(server, write_recipe)
        assert shell("prompts", recipe, "--out", "one") == 0, shell.err
        asked = len(server.calls)
        # As if the process had died before it wrote the vocabulary.
        assert shell("prompts", recipe, "--out", "two") == 0, shell.err
        assert len(server.calls) == asked
    assert captions_of(tmp_path / "one") == captions_of(tmp_path / "two")


NONE = said('{"phrases": ["sks"], "captions": [{"color": "sks"}]}')
REFUSED = refused(404, "The model `loopback` does not exist", code="model_not_found")
USELESS: dict[str, tuple[Reply | None, dict[str, Any], list[str]]] = {
    "prose": (said("Certainly! A teapot can have many lovely shapes."), {}, ["ledger.jsonl"]),
    "key": (refused(401, "Incorrect API key provided."), {}, ["key", "OPENAI_API_KEY"]),
    "model": (REFUSED, {}, ["loopback"]),
    "cut off": (
        said('{"phrases": ["red', finish_reason="length"),
        {"max_tokens": 64},
        ["max_tokens = 64", "prompts.llm.max_tokens"],
    ),
    "empty": (said(""), {}, ["empty"]),
    "refused": (refused(400, "temperature must be prime"), {"temperature": None}, ["be prime"]),
    "busy": (refused(429, "Slow down, friend."), {}, ["Slow down, friend"]),
    "page": (Reply(502, "<html><h1>Bad Gateway</h1></html>"), {}, ["Bad Gateway"]),
    "reset": (Reply(0), {}, ["connection broke"]),
    "unusable": (NONE, {}, ["sks"]),
    "filter": (said(None, finish_reason="content_filter"), {}, ["content filter"]),
    "not there": (None, {"api_base": "http://127.0.0.1:9/v1"}, ["127.0.0.1:9"]),
}


@pytest.mark.parametrize("mode", ["vocabulary", "compose"])
@pytest.mark.parametrize("kind", USELESS)
def test_the_last_reason_of_a_server_that_is_of_no_use_is_on_the_screen(
    kind: str, mode: str, shell: Shell, write_recipe: WriteRecipe
) -> None:
    reply, llm, says = USELESS[kind]
    with OpenAIServer(lambda _: reply or Reply()) as server:
        llm = {"max_attempts": 2, "timeout": 5, **llm}
        recipe = recipe_for(server, write_recipe, llm=llm, mode=mode, slots=["color"])
        assert shell("prompts", recipe, "--out", "run") == 1
    assert "Traceback" not in shell.err
    assert all(words in shell.err for words in says), shell.err
    assert kind != "cut off" or "name another model" not in shell.err
    assert (kind, mode) != ("prose", "vocabulary") or "slot" in shell.err


def test_money_is_never_overspent(shell: Shell, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    prices = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.001, "max_tokens": 100}
    with OpenAIServer(phrases) as server:
        recipe = recipe_for(server, write_recipe, llm={**prices, "max_cost": 0.9})
        assert shell("prompts", recipe, "--out", "run") == 1
        assert "max_cost" in shell.err
        spent = sum(e["cost"] or 0 for e in read(tmp_path / "run/log.jsonl") if e.get("cost"))
        assert spent <= 0.9
        dear = ["--set", "prompts.llm.max_cost=90"]
        assert shell("prompts", recipe, *dear, "--out", "run") == 0, shell.err


def test_refused_calls_leave_the_cost_known(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    def answer(call: Call) -> Reply:
        return refused(500, "oops", retry_after="0.01") if call.number % 2 == 0 else phrases(call)

    prices = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.001}
    with OpenAIServer(answer) as server:
        recipe = recipe_for(server, write_recipe, llm={**prices, "max_concurrency": 1})
        done = quietly(load_recipe(recipe), tmp_path / "run", until="prompts")
    assert len(server.calls) > 2
    assert done.cost == pytest.approx(0.03 * (len(server.calls) // 2))
    assert done.cost_in_words == dollars(done.cost)


@pytest.mark.parametrize(
    ("llm", "cost", "words"),
    [
        ({"model": "ollama_chat/llama3.1", "api_base": None}, 0, "free"),
        ({"model": "openai/mine", "api_base": "http://192.168.0.9:1234/v1"}, 0, "free"),
        ({"model": "openai/mine", "api_base": "https://llm.example.com/v1"}, None, "cost unknown"),
    ],
)
def test_check_says_what_a_model_at_home_costs(
    llm: dict[str, Any],
    cost: float | None,
    words: str,
    shell: Shell,
    write_recipe: WriteRecipe,
) -> None:
    recipe = recipe_for("http://127.0.0.1:9/v1", write_recipe, llm={**llm, "max_cost": 1.0})
    assert shell("check", recipe) == 0, shell.err
    assert words in shell.out
    assert ("prompts.llm.max_cost cannot be kept" in shell.out) == (cost is None)
    assert shell("check", recipe, "--json") == 0
    assert json.loads(shell.out)["cost"] == cost


@pytest.mark.parametrize(
    "canary",
    [
        "sk-CANARYcanaryCANARYcanary",
        'quo"ted-canary',
        "back\\slash-canary",
        "c4n-ry",
        "r8_CANARYcanary",
    ],
)
def test_a_key_appears_nowhere(
    canary: str,
    shell: Shell,
    write_recipe: WriteRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", canary)
    monkeypatch.setenv("REGFORGE_CACHE", str(tmp_path / "cache"))

    def echo(call: Call) -> Reply:  # a server that quotes the key in its error
        if call.number < 2:
            return refused(500, f"bad luck for {call.headers.get('Authorization')}")
        return phrases(call)

    with OpenAIServer(echo) as server:
        recipe = recipe_for(server, write_recipe)
        assert shell("prompts", recipe, "--out", "run") == 0, shell.err
        used = {value for call in server.calls for value in call.headers.values()}
        assert f"Bearer {canary}" in used
    assert canary not in shell.out + shell.err
    forms = {canary.encode(), json.dumps(canary)[1:-1].encode()}
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(form in content for form in forms), path


@pytest.mark.parametrize(
    "render",
    [
        {"model": "nobody/nothing"},
        {"model": "gpt-image-1", "renderer": "hosted"},
        {"lora": "nobody/nothing"},
    ],
    ids=["not reached", "no key", "no LoRA"],
)
def test_a_rendering_model_that_cannot_be_had_is_said_before_anybody_is_paid(
    render: dict[str, Any], shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    with OpenAIServer(phrases) as server:
        recipe = recipe_for(server, write_recipe, render=render)
        assert shell("run", recipe, "--out", "run") == 1
        assert server.calls == []
    assert "nobody/nothing" in shell.err or "OPENAI_API_KEY" in shell.err
    assert not (tmp_path / "run").exists()


def test_check_says_which_keys_are_missing(
    shell: Shell, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    recipe = write_recipe(
        subject={"class_noun": "teapot", "images": None},
        prompts={"sets": {"amplify": 1}, "slots": SLOTS, "llm": {"model": "groq/llama-3.3-70b"}},
        render={"model": "gpt-image-1", "renderer": "hosted"},
    )
    assert shell("check", recipe) == 0
    assert "GROQ_API_KEY" in shell.out
    assert "OPENAI_API_KEY" in shell.out
    monkeypatch.setenv("GROQ_API_KEY", "x")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert shell("check", recipe) == 0
    assert "_API_KEY" not in shell.out
    local = ["--set", "prompts.llm.api_base=http://localhost:1/v1"]
    monkeypatch.delenv("GROQ_API_KEY")
    assert shell("check", recipe, *local) == 0
    assert "_API_KEY" not in shell.out
