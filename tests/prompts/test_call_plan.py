"""How many calls and tokens are foretold, against what a run then asks."""

import subprocess
import sys
from typing import Any

import pytest
from fake_language_model import FakeClient, fill, recipe_of, text_of
from test_filling import answers_well

from regforge.prompts.filling import CallPlan, plan_calls
from regforge.prompts.vocabulary import Vocabulary


@pytest.mark.parametrize(
    "prompts",
    [
        {},
        {"slots": ["color", "style"]},
        {"phrases_per_slot": 90, "slots": ["lighting", "background"]},
        {"compatibility": False},
        {"slots": ["background", {"name": "lighting", "values": ["in rare light"]}]},
        {"slots": [{"name": "background", "from": "bank"}, "lighting"]},
        {"slots": [{"name": "color", "from": "bank"}]},
        {"slots": [{"name": "color", "from": "llm", "values": ["pale red", "deep red"]}]},
    ],
)
def test_a_plan_counts_the_calls_that_are_made(prompts: dict[str, Any]) -> None:
    recipe = recipe_of(prompts)
    plan, client = plan_calls(recipe), FakeClient(answers_well)
    fill(recipe, client)
    assert plan.calls == len(client.asked)
    sent = sum(len(text_of(question)) for question in client.asked) // 4
    assert sent * 0.7 <= plan.prompt_tokens <= sent * 1.3


def test_compose_takes_calls_for_the_captions_that_need_phrases() -> None:
    prompts = {"mode": "compose", "count": 1000, "compose_batch": 10}
    whole = plan_calls(recipe_of(prompts))
    half = plan_calls(recipe_of({**prompts, "sets": {"naive": 1, "amplify": 0.5, "against": 0.5}}))
    assert (whole.calls, half.calls) == (100, 52)  # whole waves
    assert whole.completion_tokens > 10 * half.calls
    assert plan_calls(recipe_of({**prompts, "count": 1})).calls == 4


def test_nobody_is_asked_where_nothing_needs_phrases(tmp_path: Any) -> None:
    Vocabulary("teapot", "object", {"color": ("red",)}).save(tmp_path / "v.json")
    for prompts in (
        {"sets": {"naive": 1}, "mode": "compose"},
        {"slots": [{"name": "color", "values": ["red"]}]},
        {"slots": ["color"], "vocabulary": tmp_path / "v.json"},
    ):
        assert plan_calls(recipe_of(prompts)) == CallPlan()


def test_the_embedded_model_costs_calls_and_no_tokens_and_photos_cost_both() -> None:
    assert plan_calls(recipe_of({"llm": {"model": "embedded/smollm2-135m"}})) == CallPlan(6)
    plan = plan_calls(recipe_of({"slots": [{"name": "color", "values": ["red"]}]}), photos=5)
    assert plan.calls == 5
    assert plan.prompt_tokens > 5000


def test_planning_loads_nothing_heavy() -> None:
    code = (
        "import sys; from regforge.recipe import Recipe\n"
        "from regforge.prompts.filling import plan_calls\n"
        "plan_calls(Recipe(name='x', subject={'class_noun': 'dog'}))\n"
        "print({'litellm', 'torch', 'PIL', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
