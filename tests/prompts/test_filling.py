"""The vocabulary: where each slot's phrases come from, and what happens when a model is no help."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import FakeClient, fill, go_together, recipe_of, text_of

from regforge.embedded import phrase_banks
from regforge.errors import EXIT_FAILED, EXIT_USAGE, RegforgeError
from regforge.journal import Journal, read
from regforge.prompts.filling import CallPlan, plan_calls
from regforge.prompts.messages import MessageError
from regforge.prompts.phrase_questions import rounds_allowed
from regforge.prompts.vocabulary import Vocabulary, VocabularyError
from regforge.providers.language_model import Question
from regforge.recipe import Recipe, slots_of

ADJECTIVES = "pale deep bright dusty warm soft muted dark light vivid".split()
COLORS = "red green blue gray pink violet ocher teal amber navy".split()


def invented(slot: str, count: int, start: int = 0) -> list[str]:
    """So many different phrases that suit a slot."""
    numbers = range(start, start + count)
    pairs = [f"{ADJECTIVES[n % 10]} {COLORS[n // 10 % 10]}" for n in numbers]
    before = {"background": "on a {} rug", "lighting": "in {} light", "style": "a {} photo of"}
    return [before.get(slot, "{}").format(pair) for pair in pairs]


def slot_of(question: Question) -> str:
    return question.item.split()[1].rstrip(",")


def wanted_of(question: Question) -> int:
    return int(text_of(question).rpartition(" with ")[2].split()[0])


def known_in(question: Question) -> int:
    """How many phrases the question shows as being there already."""
    return str(question.messages[-1]["content"]).count("\n- ")


def answers_well(question: Question, attempt: int) -> Any:
    """As a good model does: as many as asked for, and new ones in each round."""
    if question.item.startswith("compatibility"):
        return {"clashes": []}
    if "The list:" in text_of(question):
        return {"phrases": re.findall(r"\n- (.*)", str(question.messages[-1]["content"]))}
    return {"phrases": invented(slot_of(question), wanted_of(question), known_in(question))}


def ledger_of(folder: Path) -> str:
    return "\n".join(str(entry["reason"]) for entry in read(folder / "ledger.jsonl"))


def test_every_slot_of_the_recipe_gets_as_many_phrases_as_it_asks_for() -> None:
    slots = ["color", {"name": "background", "count": 7}, "lighting", "style"]
    client = FakeClient(answers_well)
    vocabulary = fill(recipe_of({"slots": slots, "phrases_per_slot": 30}), client)
    assert list(vocabulary.slots) == ["color", "background", "lighting", "style"]
    assert [len(texts) for texts in vocabulary.slots.values()] == [30, 7, 30, 30]
    assert set(vocabulary.origins.values()) == {"llm"}
    assert vocabulary.language_model == "openai/fake"
    assert (vocabulary.class_noun, vocabulary.kind) == ("ceramic teapot", "object")
    assert vocabulary.slots["style"][0].endswith(" of")


def test_objects_have_no_motion_and_living_things_do_and_nobody_reads_the_identifier() -> None:
    client = FakeClient(answers_well)
    thing = fill(recipe_of(), client)
    assert "motion" not in thing.slots
    assert "motion" in fill(recipe_of(subject={"class_noun": "dog"}), client).slots
    assert not any(re.search(r"\bsks\b", text_of(question)) for question in client.asked)
    assert "sks" not in repr(thing.slots)


def test_many_phrases_are_asked_for_in_rounds_that_show_what_is_there() -> None:
    client = FakeClient(answers_well)
    vocabulary = fill(recipe_of({"slots": ["color"], "phrases_per_slot": 100}), client)
    assert len(set(vocabulary.slots["color"])) == 100
    first, second = client.asked
    assert "Already there" not in text_of(first)
    assert all(f"- {phrase}\n" in text_of(second) for phrase in vocabulary.slots["color"][:80])
    assert first.seed != second.seed


def test_the_result_does_not_depend_on_how_many_calls_are_open_at_once() -> None:
    slots = ["background", "lighting", "color"]
    recipe = recipe_of({"phrases_per_slot": 100, "slots": slots})
    one, eight = FakeClient(answers_well), FakeClient(answers_well, at_once=8)
    assert fill(recipe, one) == fill(recipe, eight)
    assert [question.seed for question in one.asked] == [question.seed for question in eight.asked]
    other = FakeClient(answers_well)
    fill(recipe.model_copy(update={"seed": 1}), other)
    assert other.asked[0].seed != one.asked[0].seed


def test_bad_phrases_are_dropped_and_written_down(tmp_path: Path) -> None:
    bad = ["1. vermilion", "Vermilion.", "sks red", "teapot brown", "{red}", "a\nb", ""]
    client = FakeClient(lambda *_: {"phrases": [*bad, *invented("color", 5)]})
    recipe = recipe_of({"slots": ["color"], "phrases_per_slot": 6})
    vocabulary = fill(recipe, client, Journal(tmp_path))
    assert vocabulary.slots["color"] == ("vermilion", *invented("color", 5))
    for refused in ("identifier 'sks'", "'teapot brown' (names the class noun)", "'{'", "empty"):
        assert refused in ledger_of(tmp_path)


def test_a_reply_with_too_few_usable_phrases_is_asked_for_again_with_the_reasons() -> None:
    replies = (["teapot red"] * 12, invented("color", 12))
    client = FakeClient(lambda _, attempt: {"phrases": replies[attempt]})
    vocabulary = fill(recipe_of({"slots": ["color"], "phrases_per_slot": 10}), client)
    assert len(vocabulary.slots["color"]) == 10
    assert "names the class noun" in client.complaints["slot color, round 1"][0]


def test_a_model_that_only_talks_ends_in_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    client = FakeClient(lambda *_: "Certainly! Teapots come in many colors.")
    with pytest.raises(VocabularyError) as caught:
        fill(recipe_of({"slots": ["color", "style"]}), client, Journal(tmp_path))
    for part in ("the slots 'color' and 'style'", str(tmp_path / "ledger.jsonl"), "values"):
        assert part in str(caught.value)
    assert caught.value.exit_code == EXIT_FAILED
    assert len(client.asked) == 4  # once more for each slot, then it is clear


def test_a_model_that_repeats_itself_or_gives_a_few_is_asked_a_bounded_number_of_times() -> None:
    lines: list[str] = []
    client = FakeClient(lambda *_: {"phrases": invented("color", 9)})
    recipe = recipe_of({"slots": ["color"]})
    assert len(fill(recipe, client, lines=lines).slots["color"]) == 9
    assert len(client.asked) == 3
    assert "ran out of phrases at 9 of 40" in lines[0]
    client = FakeClient(lambda asked, _: {"phrases": invented("color", 12, known_in(asked))})
    recipe = recipe_of({"slots": ["color"], "phrases_per_slot": 50})
    assert len(fill(recipe, client).slots["color"]) == 48
    assert len(client.asked) == rounds_allowed(recipe, slots_of(recipe)[0]) == 4


def test_a_failed_call_costs_nothing_but_another_one() -> None:
    def answer(question: Question, attempt: int) -> Any:
        return "no" if question.item == "slot color, round 1" else answers_well(question, attempt)

    vocabulary = fill(recipe_of({"slots": ["color", "style"]}), FakeClient(answer))
    assert {len(texts) for texts in vocabulary.slots.values()} == {40}


def test_a_wrong_message_template_is_told_before_any_call(tmp_path: Path) -> None:
    (tmp_path / "compatibility.j2").write_text("{{ fraises }}", encoding="utf-8")
    client = FakeClient(answers_well)
    with pytest.raises(MessageError, match="fraises"):
        fill(recipe_of({"messages": tmp_path}), client)
    assert client.asked == []


def choosing(values: Sequence[str], **more: Any) -> Recipe:
    return recipe_of({"slots": [{"name": "color", "from": "llm", "values": values, **more}]})


def test_a_model_chooses_among_values_and_invents_nothing_or_is_given_up(tmp_path: Path) -> None:
    client = FakeClient(lambda *_: {"phrases": ["Ivory.", "gold", "the teal"]})
    vocabulary = fill(choosing(["teal", "ivory", "plaid"]), client, Journal(tmp_path))
    assert vocabulary.slots["color"] == ("teal", "ivory")
    assert "'gold' (is not in the list)" in ledger_of(tmp_path)
    assert json.dumps(["teal", "ivory", "plaid"]) in json.dumps(client.asked[0].schema)
    client = FakeClient(lambda *_: {"phrases": ["teal", "ivory", "plaid"]})
    vocabulary = fill(choosing(["plaid", "ivory", "teal"], count=2), client)
    assert vocabulary.slots["color"] == ("ivory", "teal")  # as many as counted
    client = FakeClient(lambda *_: {"phrases": ["mauve"]})
    with pytest.raises(VocabularyError, match="no usable phrase for the slot 'color'"):
        fill(choosing(["teal", "ivory"]), client)
    assert "letter by letter" in client.complaints["slot color, round 1"][0]


def without_calls(slots: list[Any], **sections: Any) -> Vocabulary:
    return fill(recipe_of({"slots": slots}, **sections))


def test_a_list_is_taken_with_its_weights_and_of_a_file_each_line(tmp_path: Path) -> None:
    weighted = {"values": ["Red", " blue ", "Red"], "weights": [1, 2, 4]}
    vocabulary = without_calls([{"name": "color", **weighted}])
    assert vocabulary.slots["color"] == ("Red", "blue")
    assert vocabulary.weights["color"] == (5, 2)
    assert vocabulary.origins["color"] == "list"
    assert vocabulary.language_model is None
    path = tmp_path / "places.txt"
    path.write_text("\ufeff# places\non a table  # wood\n\n in C#-land \non a table\n", "utf-8")
    vocabulary = without_calls([{"name": "background", "file": path}])
    assert vocabulary.slots["background"] == ("on a table", "in C#-land")
    assert vocabulary.origins["background"] == "file"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"# nothing\n\n", "places.txt has no phrases"),
        (b"on a table\nbeside sks\n", "places.txt:2"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_no_use_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "places.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VocabularyError, match=r"places\.txt") as caught:
        without_calls([{"name": "background", "file": path}])
    assert told in str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE


def test_a_value_that_cannot_stand_in_a_caption_is_refused() -> None:
    with pytest.raises(VocabularyError, match="slot 'color', value 2"):
        without_calls([{"name": "color", "values": ["red", "a sks red"]}])


def test_the_banks_fill_a_slot_with_what_suits_the_class_noun_or_its_kind() -> None:
    vocabulary = without_calls([{"name": "motion", "from": "bank"}], subject={"class_noun": "dog"})
    expected = phrase_banks.phrases("motion", "animal", "dog")
    assert set(vocabulary.slots["motion"]) == {phrase.text for phrase in expected}
    lines: list[str] = []
    subject = {"class_noun": "sproingle", "kind": "living"}
    recipe = recipe_of({"slots": [{"name": "motion", "from": "bank"}]}, subject=subject)
    assert fill(recipe, lines=lines).slots["motion"]
    assert "no phrase bank knows the class noun 'sproingle'" in lines[0]


@pytest.mark.parametrize(("slot", "why"), [("era", "They have shape"), ("motion", "living things")])
def test_a_slot_that_no_bank_has_is_told(slot: str, why: str) -> None:
    with pytest.raises(VocabularyError, match=f"no {slot} for 'ceramic teapot'") as caught:
        without_calls([{"name": slot, "from": "bank"}])
    assert why in str(caught.value)


def test_phrases_that_go_nowhere_are_left_out_of_the_banks_slots() -> None:
    slots = [{"name": name, "from": "bank"} for name in ("background", "lighting")]
    vocabulary = without_calls(slots, subject={"class_noun": "sofa"})
    assert vocabulary.incompatible
    lights, places = vocabulary.slots["lighting"], vocabulary.slots["background"]
    for light in lights:
        pairs = ({"lighting": light, "background": place} for place in places)
        assert any(go_together(vocabulary, pair) for pair in pairs)
    alone = without_calls(slots[1:], subject={"class_noun": "sofa"}).slots["lighting"]
    assert "in warm lamplight" in alone
    for found in (lights, alone):
        assert "in shafts of sunlight" not in found  # under water


def stored(tmp_path: Path, **changes: Any) -> Path:
    plain: dict[str, Any] = {
        "slots": {"color": ("red", "blue"), "background": ("in a hall", "on a hill")},
        "weights": {"color": (1.0, 3.0)},
        "incompatible": frozenset({("background", "in a hall", "lighting", "at sunset")}),
        "language_model": "openai/before",
        "origins": {"color": "llm", "background": "llm"},
    }
    Vocabulary("teapot", "object", **{**plain, **changes}).save(tmp_path / "vocabulary.json")
    return tmp_path / "vocabulary.json"


def test_a_stored_vocabulary_is_used_and_nobody_is_asked(tmp_path: Path) -> None:
    lines: list[str] = []
    slots = ["background", "color", {"name": "lighting", "values": ["at sunset", "at noon"]}]
    recipe = recipe_of({"slots": slots, "vocabulary": stored(tmp_path)})
    vocabulary = fill(recipe, lines=lines)
    assert list(vocabulary.slots) == ["background", "color", "lighting"]
    assert vocabulary.slots["color"] == ("red", "blue")
    assert vocabulary.weights == {"color": (1.0, 3.0)}
    assert vocabulary.language_model == "openai/before"
    assert not go_together(vocabulary, {"background": "in a hall", "lighting": "at sunset"})
    assert vocabulary.origins["lighting"] == "list"
    assert "is about 'teapot', the recipe about 'ceramic teapot'" in lines[0]


def test_a_stored_vocabulary_lacking_a_slot_or_with_the_identifier_fails(tmp_path: Path) -> None:
    recipe = recipe_of({"slots": ["color", "style"], "vocabulary": stored(tmp_path)})
    with pytest.raises(VocabularyError, match="no phrases for the slot 'style'") as caught:
        fill(recipe)
    assert "It has color, background" in str(caught.value)
    path = stored(tmp_path, slots={"color": ("red", "sks red")}, weights={}, incompatible=())
    with pytest.raises(RegforgeError, match="'sks red' contains the identifier"):
        fill(recipe_of({"slots": ["color"], "vocabulary": path}))


def test_compose_mode_leaves_the_language_models_slots_to_the_composer() -> None:
    slots = ["color", {"name": "style", "values": ["a photo of"]}]
    vocabulary = fill(recipe_of({"slots": slots, "mode": "compose"}))
    assert dict(vocabulary.slots) == {"style": ("a photo of",)}


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


def test_what_calls_are_planned_and_where_nobody_is_asked(tmp_path: Path) -> None:
    Vocabulary("teapot", "object", {"color": ("red",)}).save(tmp_path / "v.json")
    for prompts in (
        {"sets": {"naive": 1}, "mode": "compose"},
        {"slots": [{"name": "color", "values": ["red"]}]},
        {"slots": ["color"], "vocabulary": tmp_path / "v.json"},
    ):
        assert plan_calls(recipe_of(prompts)) == CallPlan()
    assert plan_calls(recipe_of({"llm": {"model": "embedded/smollm2-135m"}})) == CallPlan(6)
    plan = plan_calls(recipe_of({"slots": [{"name": "color", "values": ["red"]}]}), photos=5)
    assert plan.calls == 5
    assert plan.prompt_tokens > 5000


@pytest.mark.slow
def test_reading_recipes_and_planning_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from regforge.files import recipes_folder\n"
        "from regforge.prompts.filling import plan_calls\n"
        "from regforge.recipe import Recipe, load_any_recipe, recipe_digest, recipe_warnings\n"
        "for name in ('quickstart', 'train-quickstart'):\n"
        "    recipe = load_any_recipe(recipes_folder() / f'{name}.yaml')\n"
        "    recipe_digest(recipe), recipe_warnings(recipe)\n"
        "plan_calls(Recipe(name='x', subject={'class_noun': 'dog'}))\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'litellm', 'datasets', 'pyarrow', 'PIL'}\n"
        "print(heavy & set(sys.modules))\n"
        "from regforge import check\n"
        "for name in ('quickstart', 'train-quickstart'):\n"
        "    check(recipes_folder() / f'{name}.yaml')\n"
        "print(heavy & set(sys.modules) - {'PIL'})"
    )
    done = subprocess.run(  # elsewhere: where runs lie already, they are looked into
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split("\n") == ["set()", "set()", ""]
