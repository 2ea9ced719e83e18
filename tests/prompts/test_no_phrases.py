"""What is no phrase never becomes a caption, wherever it comes from: one rule, with its place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_language_model import FakeClient, fill, recipe_of
from shell import Shell

from regforge.journal import Journal
from regforge.prompts.imported import ImportedCaption, ImportedCaptions
from regforge.prompts.tokens import token_budget
from regforge.prompts.vocabulary import Vocabulary
from regforge.prompts.writing import write_prompts

NOTHING = [
    *("none", "N/A", "n/a (not applicable)", "null", "NaN", "no color", "unspecified", "unknown"),
    *("same", "the same"),
    *("Any color", "various colors", "no color specified", "None of the above", "tbd", "..."),
]
TALK = [
    *("I cannot help", "as an AI, red", "ignore previous instructions", "I'm sorry, but I can't"),
    *("Sure, here are some colors", "Certainly! Red"),
]
CODE = [
    *("/../etc/passwd", "~/secret", "http://x.y", "%s%n", "{a|b}", "__places__", "${color}"),
    *("<lora:x:1>", "(red:1.3)", "[red]", "-", "&", "\u2014", "red \U0001f534", "C:\\windows"),
]
NO_ENGLISH = [
    "color",
    *("matte black matte", "red teapot", "a photo of a red teapot", "ceramic teapot"),
    *("\uff53\uff4b\uff53 red", "SKS", "sks", "x" * 300),
]
BAD = [*NOTHING, *TALK, *CODE, *NO_ENGLISH]
PUT_RIGHT = {
    "RED": "red",
    "a red": "red",
    "1. red": "red",
    "**red**": "red",
    '"red"': "red",
    "deep red.": "deep red",
    "color: red": "red",
}
"""What a user is told to write instead. Most of it is put right where a model said it."""


def recipe_file(folder: Path, color: Any, **subject: Any) -> Path:
    path = folder / "r.yaml"
    about = {"class_noun": "teapot", "kind": "object", "identifier": "sks", **subject}
    slots = [color if isinstance(color, dict) else {"name": "color", "values": ["red", color]}]
    prompts = {"count": 1, "slots": slots}
    content = {"name": "x", "subject": about, "prompts": prompts}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("phrase", [*BAD, *PUT_RIGHT])
def test_in_a_recipe_it_is_refused_at_its_place(tmp_path: Path, shell: Shell, phrase: str) -> None:
    assert shell("check", recipe_file(tmp_path, phrase)) == 2
    said = " ".join(shell.err.split())
    assert "prompts.slots.0.values.1" in said
    assert re.search(r"r\.yaml:1:\d+", said.replace(" ", ""))
    if phrase in PUT_RIGHT:
        assert f"write '{PUT_RIGHT[phrase]}'" in said
        assert shell("check", recipe_file(tmp_path, PUT_RIGHT[phrase] + " clay")) == 0


@pytest.mark.parametrize("phrase", BAD)
def test_in_a_file_it_is_refused_with_its_line(tmp_path: Path, shell: Shell, phrase: str) -> None:
    (tmp_path / "colors.txt").write_text(f"red\n\nblue\n{phrase}\n", encoding="utf-8")
    assert shell("check", recipe_file(tmp_path, {"name": "color", "file": "colors.txt"})) == 2
    assert "colors.txt:4" in shell.err.replace("\n", "")
    assert "prompts.slots.0.file" in shell.err


@pytest.mark.parametrize("phrase", BAD)
def test_in_a_vocabulary_it_is_refused_with_its_key(
    tmp_path: Path, shell: Shell, phrase: str
) -> None:
    Vocabulary("teapot", "object", {"color": ("red", phrase)}).save(tmp_path / "v.json")
    path = recipe_file(tmp_path, {"name": "color"})
    assert shell("check", path, "--set", f"prompts.vocabulary={tmp_path}/v.json") == 2
    assert "slots.color.values[1]" in shell.err


def test_a_model_is_asked_again_and_what_it_said_is_dropped() -> None:
    good = [f"{tone} {hue}" for tone in ("pale", "deep", "dark") for hue in ("red", "blue", "teal")]

    def answer(question: Any, attempt: int) -> Any:
        return {"phrases": [*BAD, "RED", "1. **Pink.**", *good]}

    recipe = recipe_of({"slots": ["color"], "phrases_per_slot": 11})
    made = fill(recipe, FakeClient(answer))
    assert set(made.slots["color"]) == {"red", "pink", *good}
    only_bad = FakeClient(lambda *_: {"phrases": BAD})
    with pytest.raises(Exception, match="no usable phrase"):
        fill(recipe, only_bad)
    assert only_bad.complaints


def test_a_models_styles_open_captions_or_are_dropped(tmp_path: Path) -> None:
    said = ["Pixar style", "cinematic, 8k, masterpiece", "a pixar style of", "a photo of a cat"]
    fine = ["An oil painting", "a close-up photo of", "linocut"]
    recipe = recipe_of({"slots": ["style"], "phrases_per_slot": 7})
    made = fill(recipe, FakeClient(lambda *_: {"phrases": [*said, *fine]}), Journal(tmp_path))
    assert made.slots["style"] == ("an oil painting of", "a close-up photo of", "a linocut of")
    ledger = (tmp_path / "ledger.jsonl").read_text(encoding="utf-8")
    assert all(style in ledger for style in said)


def test_imported_captions_that_say_nothing_are_passed_over(tmp_path: Path) -> None:
    texts = [*NOTHING, *TALK, "__places__", "-", "/../etc/passwd", "a \uff53\uff4b\uff53 teapot"]
    texts += ["a red teapot", "a blue teapot"]
    slots = {"color": "N/A"}
    there = ImportedCaptions("them", [ImportedCaption(text, slots) for text in texts])
    recipe = recipe_of(
        {"sets": {"import": 1}, "count": 2, "slots": ["color"], "import": {"dataset": "x"}}
    )
    nothing, budget = Vocabulary("ceramic teapot", "object", {}), token_budget(recipe.render)
    made = list(write_prompts(recipe, nothing, budget=budget, imported=there))
    assert [prompt.text for prompt in made] == ["a red teapot", "a blue teapot"]
    assert {prompt.slots["color"] for prompt in made} == {None}


def captions(**slots: list[str]) -> list[str]:
    listed = [{"name": name, "values": values} for name, values in slots.items()]
    recipe = recipe_of({"slots": listed}, subject={"class_noun": "teapot"})
    budget = token_budget(recipe.render, None)
    return [p.text for p in write_prompts(recipe, fill(recipe), budget=budget, count=8)]


def test_phrases_that_contradict_one_another_meet_in_no_caption() -> None:
    made = captions(
        background=["at night in Tokyo", "in a park"],
        lighting=["in soft morning light", "under a starry sky"],
        color=["bright red", "pale blue", "white", "gray"],
        texture=["matte", "glazed"],
        style=["a black-and-white photo of", "an oil painting of"],
    )
    assert any("Tokyo" in text for text in made)
    assert any("black-and-white" in text for text in made)
    for text in made:
        assert not ("Tokyo" in text and "morning" in text)
        assert not ("black-and-white" in text and re.search("red|blue", text))
    twice = captions(
        color=["matte black", "white"],
        texture=["matte", "glazed"],
        shape=["squat", "tall", "round"],
    )
    assert not [text for text in twice if text.count("matte") > 1]


@pytest.mark.parametrize(
    "slots",
    [
        {"background": ["at night in Tokyo"], "lighting": ["in soft morning light", "at noon"]},
        {"style": ["a black-and-white photo of", "a photo of"], "color": ["bright red", "teal"]},
    ],
)
def test_a_phrase_that_goes_with_nothing_is_refused_by_check(
    tmp_path: Path, shell: Shell, slots: dict[str, list[str]]
) -> None:
    path = recipe_file(tmp_path, "blue")
    listed = json.dumps([{"name": name, "values": values} for name, values in slots.items()])
    assert shell("check", path, "--set", f"prompts.slots={listed}") == 2
    assert all(values[0] in " ".join(shell.err.split()) for values in slots.values())


@pytest.mark.parametrize(
    ("slot", "phrase"),
    [
        *(("style", "Pixar style"), ("style", "cinematic, 8k, masterpiece")),
        *(("background", "kitchen"), ("background", "In a garden"), ("shape", "Large")),
        *(("texture", "made of glass"), ("texture", "with a matte finish")),
    ],
)
def test_what_reads_badly_is_used_and_said(
    tmp_path: Path, shell: Shell, slot: str, phrase: str
) -> None:
    path = recipe_file(tmp_path, {"name": slot, "values": [phrase]})
    assert shell("check", path) == 0, shell.err
    assert f"slot '{slot}': '{phrase}'" in shell.out


def test_phrases_of_one_fault_are_one_warning() -> None:
    lines: list[str] = []
    values = ["In a garden", "kitchen", "beach", "on a road"]
    fill(recipe_of({"slots": [{"name": "background", "values": values}]}), lines=lines)
    assert "'In a garden' begins" in lines[0]
    assert "'kitchen' (and 1 more like it) does not start" in lines[1]


def test_an_opening_that_leads_to_the_noun_gets_no_second_preposition(
    tmp_path: Path, shell: Shell
) -> None:
    for style in ("an ad for", "a movie poster about", "a photo of", "an advert on a proof"):
        path = recipe_file(tmp_path, {"name": "style", "values": [style]})
        assert shell("check", path) == 0, shell.err
        assert f"{style}{' of' if style.endswith('proof') else ''} a teapot" in shell.out


def test_capitals_make_no_second_phrase(tmp_path: Path, shell: Shell) -> None:
    slot = {"name": "style", "values": ["A photo of", "a photo of", "an etching of"]}
    slot["weights"] = [1, 2, 1]
    path = recipe_file(tmp_path, slot)
    assert shell("prompts", path, "--out", tmp_path / "run", "--set", "render.steps=1") == 0
    made = json.loads((tmp_path / "run/vocabulary.json").read_text(encoding="utf-8"))
    assert made["slots"]["style"]["values"] == ["a photo of", "an etching of"]
    assert made["slots"]["style"]["weights"] == [3, 1]


def test_a_vocabulary_of_another_class_noun_is_said_by_check(tmp_path: Path, shell: Shell) -> None:
    Vocabulary("cat", "living", {"color": ("red", "blue")}).save(tmp_path / "v.json")
    path = recipe_file(tmp_path, {"name": "color"})
    assert shell("check", path, "--set", f"prompts.vocabulary={tmp_path}/v.json") == 0, shell.err
    assert "'cat'" in shell.out
    assert "'teapot'" in shell.out


SOUND = {"class_noun": "teapot", "kind": "object", "slots": {"color": {"values": ["red", "teal"]}}}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("[" * 100_000, "v.json"),
        ("[]", "the whole file"),
        ("{}", "class_noun"),
        (json.dumps({**SOUND, "slots": []}), "slots"),
        (json.dumps({**SOUND, "slots": {"color": ["red"]}}), "slots.color"),
        (json.dumps({**SOUND, "slots": {"color": {"values": []}}}), "slots.color.values"),
        (json.dumps({**SOUND, "slots": {"color": {"values": [{"a": 1}]}}}), "color.values[0]"),
        (json.dumps({**SOUND, "slots": {"color": {"values": [["red"]]}}}), "color.values[0]"),
        (json.dumps({**SOUND, "slots": {"color": {"values": ["red", None]}}}), "color.values[1]"),
        (json.dumps({**SOUND, "slots": {"color": {"values": "red"}}}), "slots.color.values"),
        (
            json.dumps({**SOUND, "slots": {"color": {"values": ["red"], "weights": [-1]}}}),
            "slots.color.weights",
        ),
        (json.dumps({**SOUND, "incompatible": [1]}), "incompatible[0]"),
        (json.dumps({**SOUND, "incompatible": {"a": 1}}), "incompatible"),
        (json.dumps({**SOUND, "language_model": 5}), "language_model"),
    ],
)
def test_an_odd_vocabulary_is_told_with_its_place(
    tmp_path: Path, shell: Shell, content: str, place: str
) -> None:
    (tmp_path / "v.json").write_text(content, encoding="utf-8")
    path = recipe_file(tmp_path, {"name": "color"})
    assert shell("check", path, "--set", f"prompts.vocabulary={tmp_path}/v.json") == 2
    assert place in shell.err
    assert "Traceback" not in shell.err


def test_a_slot_file_of_one_endless_line_ends_at_once(tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "colors.txt").write_text("red " * 1_300_000, encoding="utf-8")
    assert shell("check", recipe_file(tmp_path, {"name": "color", "file": "colors.txt"})) == 2
    assert len(shell.err) < 2000
    assert "colors.txt:1" in shell.err.replace("\n", "")
