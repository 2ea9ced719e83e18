"""Runs whose images an image service draws: what is planned, paid for and recorded."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from forked import Forked
from servers import Call, OpenAIServer, Reply, drawn, refused, said
from shell import Shell
from small_runs import WriteRecipe, quietly, rows_of

from regforge.dataset.report_facts import spending
from regforge.journal import read
from regforge.recipe import load_recipe

HOSTED = {"renderer": "hosted", "model": "openai/painter", "width": 48, "height": 40}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A service of which the recipe does not say that it is on this machine."""
    with OpenAIServer(images=unseeded) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-something-of-the-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        yield server


def unseeded(call: Call) -> Reply:
    """An image of its own for each call, as services draw that are told no seed."""
    return drawn(Call(call.number, call.path, {**call.body, "seed": call.number}, {}, 0.0))


def test_what_images_cost_is_said_before_they_are_drawn(
    shell: Shell, write_recipe: WriteRecipe
) -> None:
    recipe = write_recipe(render={**HOSTED, "cost_per_image": 0.04})
    assert shell("check", recipe, "--json") == 0, shell.err
    plan = json.loads(shell.out)
    assert plan["images_cost"] == pytest.approx(0.4)
    assert (plan["calls_cost"], plan["cost"]) == (0, pytest.approx(0.4))
    assert plan["steps"] is None
    assert plan["warnings"] == [each for each in plan["warnings"] if "max_cost" not in each]
    assert shell("check", recipe) == 0
    assert "about $0.40" in shell.out
    assert "steps" not in shell.out
    assert shell("check", recipe, "--set", "render.max_cost=0.1") == 0
    assert "render.max_cost" in shell.out


@pytest.mark.parametrize(
    ("settings", "cost"),
    [
        ({"api_base": "http://127.0.0.1:9/v1"}, 0),
        ({"model": "black_forest_labs/flux-pro-1.1-ultra"}, 0.6),
        ({"model": "openai/gpt-image-1", "width": 1024, "height": 1024}, 1.67),
        ({"model": "openai/painter"}, None),
    ],
)
def test_prices_come_from_the_list_or_are_unknown(
    settings: dict[str, Any], cost: float | None, shell: Shell, write_recipe: WriteRecipe
) -> None:
    assert shell("check", write_recipe(render=HOSTED | settings), "--json") == 0, shell.err
    known = json.loads(shell.out)["images_cost"]
    assert known is None if cost is None else known == pytest.approx(cost, rel=0.05)


def test_a_limit_that_cannot_be_kept_is_refused_before_anything_is_asked(
    shell: Shell, write_recipe: WriteRecipe, far_away: OpenAIServer, tmp_path: Path
) -> None:
    recipe = write_recipe(render={**HOSTED, "max_cost": 1.0})
    for command in (["check"], ["run", "--out", "made"]):
        assert shell(command[0], recipe, *command[1:]) == 2
        assert "render.cost_per_image" in shell.err
    assert far_away.calls == []
    assert not (tmp_path / "made").exists()


def test_a_row_says_nothing_that_the_service_was_not_told(
    shell: Shell, write_recipe: WriteRecipe, far_away: OpenAIServer, tmp_path: Path
) -> None:
    recipe = write_recipe(render={**HOSTED, "cost_per_image": 0.04}, prompts={"count": 3})
    assert shell("run", recipe, "--out", "made") == 0, shell.err
    assert "cost $0.12" in shell.out
    assert set(far_away.calls[0].body) == {"model", "prompt", "n", "size"}
    rows = datasets.load_dataset(str(tmp_path / "made/dataset"), split="train")
    for name in ("seed", "steps", "scheduler", "guidance_scale"):
        assert set(rows[name]) == {None}, name
    card = (tmp_path / "made/dataset/README.md").read_text(encoding="utf-8")
    assert "can be drawn again" not in card
    assert "only copies" in card
    calls = len(far_away.calls)
    assert shell("run", recipe, "--out", "made") == 0, shell.err  # nothing is drawn again
    assert len(far_away.calls) == calls


def test_a_server_of_ones_own_is_told_seed_and_steps(write_recipe: WriteRecipe) -> None:
    with OpenAIServer() as server:
        recipe = write_recipe(render={**HOSTED, "api_base": server.url}, prompts={"count": 3})
        done = quietly(load_recipe(recipe), recipe.parent / "made")
        sent = {call.body["seed"] for call in server.calls}
    rows = rows_of(done)
    assert {row.seed for row in rows} == sent
    assert {(row.steps, row.scheduler, row.guidance_scale) for row in rows} == {(2, None, None)}
    assert (done.cost, done.cost_in_words) == (0.0, "$0.00")


def test_failed_calls_leave_the_cost_known(write_recipe: WriteRecipe) -> None:
    def answer(call: Call) -> Reply:
        return refused(500, "oops", retry_after="0.01") if call.number % 2 == 0 else drawn(call)

    with OpenAIServer(images=answer) as server:
        more = {"api_base": server.url, "cost_per_image": 0.02, "max_concurrency": 1}
        recipe = write_recipe(render=HOSTED | more, prompts={"count": 3})
        done = quietly(load_recipe(recipe), recipe.parent / "made")
    assert done.cost == pytest.approx(0.06)
    (spent,) = spending(read(done.folder / "log.jsonl"), "image_call")
    assert (spent.calls, spent.failed, spent.unpriced) == (6, 3, 0)
    assert spent.cost == pytest.approx(0.06)
    assert "$0.06" in done.report.read_text(encoding="utf-8")


def test_a_run_that_reaches_its_limit_keeps_what_was_drawn(
    shell: Shell, write_recipe: WriteRecipe, far_away: OpenAIServer, tmp_path: Path
) -> None:
    limits = {"cost_per_image": 0.04, "max_cost": 0.17, "max_concurrency": 1}
    recipe = write_recipe(render=HOSTED | limits)
    assert shell("run", recipe, "--out", "made") == 1
    assert "render.max_cost" in shell.err
    assert len(far_away.calls) == 4
    assert shell("run", recipe, "--out", "made", "--set", "render.max_cost=0.5") == 0, shell.err
    assert len(far_away.calls) == 10
    calls = [e for e in read(tmp_path / "made/log.jsonl") if e["event"] == "image_call"]
    assert sum(call["cost"] for call in calls) == pytest.approx(0.4)


def test_a_limit_takes_as_many_images_as_it_pays_for(
    shell: Shell, write_recipe: WriteRecipe, far_away: OpenAIServer
) -> None:
    exactly = {"cost_per_image": 0.1, "max_cost": 0.3, "max_concurrency": 1}  # 3 * 0.1 > 0.3
    recipe = write_recipe(render=HOSTED | exactly, prompts={"count": 3})
    assert shell("run", recipe, "--out", "made") == 0, shell.err
    assert len(far_away.calls) == 3


def wait_until(it_is_so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 150
    while not it_is_so():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prompts", "images"])
def test_calls_that_were_under_way_when_a_session_ended_count_in_the_next_one(
    stage: str, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """Interrupted or killed: they are billed all the same."""
    prices = {"input_cost_per_token": 1e-9, "output_cost_per_token": 1e-3}
    llm = {"model": "openai/writer", "max_tokens": 100, "max_cost": 0.45, **prices}
    drawing = {"cost_per_image": 0.1, "max_cost": 0.45, "max_concurrency": 2}
    late = Reply(wait=60)
    with OpenAIServer(lambda _: late, images=lambda _: late) as server:
        base = {"api_base": server.url}
        if stage == "images":
            recipe = write_recipe(render=HOSTED | base | drawing)
        else:
            prompts = {"count": 10, "slots": ["color", "style"], "llm": llm | base}
            recipe = write_recipe(prompts=prompts)
        for end, sent in ((signal.SIGINT, 2), (signal.SIGKILL, 4), (None, 4)):
            session = Forked("run", recipe, "--out", tmp_path / "made")
            if end is not None:
                wait_until(lambda sent=sent: len(server.calls) == sent)  # type: ignore[misc]
                session.send_signal(end)
            session.wait()
            assert len(server.calls) == sent
    assert "max_cost" in session.err
    assert "$0.40 spent" in session.err
    name = "image_call" if stage == "images" else "llm_call"
    (spent,) = spending(read(tmp_path / "made/log.jsonl"), name)
    assert (spent.calls, spent.failed, spent.unanswered) == (4, 4, 4)


def test_one_server_for_phrases_and_images(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    def phrases(call: Call) -> Reply:
        return said(json.dumps({"phrases": ["red", "blue", "white", "black", "green", "pink"]}))

    with OpenAIServer(phrases, images=unseeded) as server:
        at_home = {"api_base": server.url}
        recipe = write_recipe(
            render={**HOSTED, **at_home, "cost_per_image": 0.04},
            prompts={
                "sets": {"amplify": 1},
                "slots": ["color", {"name": "style", "values": ["a photo of"]}],
                "phrases_per_slot": 5,
                "count": 5,
                "compatibility": False,
                "llm": {"model": "openai/loopback", **at_home, "output_cost_per_token": 0.001},
            },
        )
        done = quietly(load_recipe(recipe), tmp_path / "made")
    assert len(rows_of(done)) == 5
    assert done.cost == pytest.approx(5 * 0.04 + 0.01)
