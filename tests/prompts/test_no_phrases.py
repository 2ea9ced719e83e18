"""What is no phrase never becomes a caption, wherever it comes from: one rule, with its place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from builders import FakeClient, fill, recipe_of, written
from shell import Shell

from regforge.errors import EXIT_USAGE
from regforge.journal import Journal
from regforge.prompts.imported import ImportedCaption, ImportedCaptions
from regforge.prompts.vocabulary import Vocabulary, VocabularyError
from regforge.recipe.phrases import no_phrase

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
    *("__north/asia__", "__colours*__", "0.5::red", "{0.5::red|2::blue}", "{2$$a|b}"),
    *("<lora:x:1>", "(red:1.3)", "[red]", "-", "&", "\u2014", "red \U0001f534", "C:\\windows"),
]
NO_ENGLISH = [
    "color",
    *("matte black matte", "red teapot", "a photo of a red teapot", "ceramic teapot"),
    *("\uff53\uff4b\uff53 red", "SKS", "sks", "x" * 300, "", "two\nlines"),
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
"""What a user is told to write instead. Most of it is put right where a model wrote it."""


def recipe_file(folder: Path, *slots: Any) -> Path:
    about = {"class_noun": "teapot", "kind": "object", "identifier": "sks"}
    content = {"name": "x", "subject": about, "prompts": {"count": 1, "slots": slots}}
    (folder / "r.yaml").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder / "r.yaml"


def listed(slot: str, *values: str) -> dict[str, Any]:
    return {"name": slot, "values": values}


@pytest.mark.parametrize("phrase", BAD)
def test_no_source_may_have_it(phrase: str) -> None:
    assert no_phrase(phrase, "color", "teapot", "sks")


@pytest.mark.parametrize("phrase", PUT_RIGHT)
def test_what_to_write_instead_is_told(phrase: str) -> None:
    right = PUT_RIGHT[phrase]
    assert f"write '{right}'" in str(no_phrase(phrase, "color", "teapot", "sks"))
    assert no_phrase(f"{right} clay", "color", "teapot", "sks") is None


@pytest.mark.parametrize(
    "phrase", ["N/A", "as an AI, red", "\u2014", "\uff53\uff4b\uff53 red", "a red"]
)
def test_it_is_refused_at_its_place(tmp_path: Path, shell: Shell, phrase: str) -> None:
    """In a recipe, in a file, and in a vocabulary."""
    assert shell("check", recipe_file(tmp_path, listed("color", "red", phrase))) == 2
    assert "prompts.slots.0.values.1" in shell.err
    assert re.search(r"r\.yaml:1:\d+", re.sub(r"\s", "", shell.err))
    (tmp_path / "colors.txt").write_text(f"red\n\nblue\n{phrase}\n", encoding="utf-8")
    assert shell("check", recipe_file(tmp_path, {"name": "color", "file": "colors.txt"})) == 2
    assert "colors.txt:4" in shell.err.replace("\n", "")
    assert "prompts.slots.0.file" in shell.err
    assert check_with_vocabulary(tmp_path, shell, {"color": ("red", phrase)}) == 2
    assert "slots.color.values[1]" in shell.err


def check_with_vocabulary(
    folder: Path, shell: Shell, slots: Any = None, noun: str = "teapot", text: str = ""
) -> int:
    """Check a recipe whose color comes from a vocabulary of such slots or such a text."""
    if text:
        (folder / "v.json").write_text(text, encoding="utf-8")
    else:
        Vocabulary(noun, "object", slots).save(folder / "v.json")
    path = recipe_file(folder, {"name": "color"})
    return shell("check", path, "--set", f"prompts.vocabulary={folder}/v.json")


def test_a_model_is_asked_again_and_what_it_wrote_is_dropped() -> None:
    good = [f"{tone} {hue}" for tone in ("pale", "deep", "dark") for hue in ("red", "blue", "teal")]
    recipe = recipe_of({"slots": ["color"], "phrases_per_slot": 11})
    reply = {"phrases": [*BAD, "RED", "1. **Pink.**", *good]}
    made = fill(recipe, FakeClient(lambda *_: reply))
    assert set(made.slots["color"]) == {"red", "pink", *good}
    only_bad = FakeClient(lambda *_: {"phrases": BAD})
    with pytest.raises(Exception, match="no usable phrase"):
        fill(recipe, only_bad)
    assert only_bad.complaints


def test_a_models_styles_open_captions_or_are_dropped(tmp_path: Path) -> None:
    bad = ["Pixar style", "cinematic, 8k, masterpiece", "a pixar style of", "a photo of a cat"]
    fine = ["An oil painting", "a close-up photo of", "linocut"]
    recipe = recipe_of({"slots": ["style"], "phrases_per_slot": 7})
    made = fill(recipe, FakeClient(lambda *_: {"phrases": [*bad, *fine]}), Journal(tmp_path))
    assert made.slots["style"] == ("an oil painting of", "a close-up photo of", "a linocut of")
    ledger = (tmp_path / "ledger.jsonl").read_text(encoding="utf-8")
    assert all(style in ledger for style in bad)


def test_imported_captions_without_meaning_are_passed_over() -> None:
    texts = [*NOTHING, *TALK, "__places__", "-", "/../etc/passwd", "a \uff53\uff4b\uff53 teapot"]
    texts += ["a red teapot", "a blue teapot"]
    there = ImportedCaptions("them", [ImportedCaption(text, {"color": "N/A"}) for text in texts])
    prompts = {"sets": {"import": 1}, "slots": ["color"], "import": {"dataset": "x"}}
    nothing = Vocabulary("ceramic teapot", "object", {})
    made = written(recipe_of(prompts), 2, nothing, imported=there)
    assert [prompt.text for prompt in made] == ["a red teapot", "a blue teapot"]
    assert {prompt.slots["color"] for prompt in made} == {None}


def captions(*slots: dict[str, Any], count: int = 8) -> list[str]:
    recipe = recipe_of({"slots": slots}, subject={"class_noun": "teapot"})
    return [prompt.text for prompt in written(recipe, count, fill(recipe))]


NIGHT, MORNING = "at night in Tokyo", "in soft morning light"
COLORLESS = "a black-and-white photo of"


def test_phrases_that_contradict_one_another_meet_in_no_caption() -> None:
    made = captions(
        listed("background", NIGHT, "in a park"),
        listed("lighting", MORNING, "under a starry sky"),
        listed("color", "bright red", "pale blue", "white", "gray"),
        listed("texture", "matte", "glazed"),
        listed("style", COLORLESS, "an oil painting of"),
    )
    assert any("Tokyo" in text for text in made)
    assert any("black-and-white" in text for text in made)
    for text in made:
        assert not ("Tokyo" in text and "morning" in text)
        assert not ("black-and-white" in text and re.search("red|blue", text))
    textures, shapes = (
        listed("texture", "matte", "glazed"),
        listed("shape", "squat", "tall", "round"),
    )
    twice = captions(listed("color", "matte black", "white"), textures, shapes)
    assert not [text for text in twice if text.count("matte") > 1]


@pytest.mark.parametrize(
    "slots",
    [
        [listed("background", NIGHT), listed("lighting", MORNING, "at noon")],
        [listed("style", COLORLESS, "a photo of"), listed("color", "bright red", "teal")],
    ],
)
def test_a_phrase_that_goes_with_nothing_is_refused_by_check(
    tmp_path: Path, shell: Shell, slots: list[dict[str, Any]]
) -> None:
    assert shell("check", recipe_file(tmp_path, *slots)) == 2
    assert all(slot["values"][0] in " ".join(shell.err.split()) for slot in slots)


@pytest.mark.parametrize(
    ("slot", "phrase"),
    [
        *(("style", "Pixar style"), ("style", "cinematic, 8k, masterpiece")),
        *(("background", "kitchen"), ("background", "In a garden"), ("shape", "Large")),
        *(("texture", "made of glass"), ("texture", "with a matte finish")),
    ],
)
def test_what_reads_badly_is_used_with_a_warning(slot: str, phrase: str) -> None:
    lines: list[str] = []
    assert fill(recipe_of({"slots": [listed(slot, phrase)]}), lines=lines).slots[slot] == (phrase,)
    assert f"slot '{slot}': '{phrase}'" in lines[0]


def test_check_warns_of_other_vocabularies_and_of_faults_once(tmp_path: Path, shell: Shell) -> None:
    slot = listed("background", "In a garden", "kitchen", "beach", "on a road")
    assert shell("check", recipe_file(tmp_path, slot)) == 0, shell.err
    assert "slot 'background': 'In a garden' begins" in shell.out
    assert "'kitchen' (and 1 more like it) does not start" in shell.out
    colors = {"color": ("red", "blue")}
    assert check_with_vocabulary(tmp_path, shell, colors, "cat") == 0, shell.err
    assert "'cat'" in shell.out
    assert "'teapot'" in shell.out


@pytest.mark.parametrize(
    "style", ["an ad for", "a movie poster about", "a photo of", "an advert on a proof"]
)
def test_an_opening_that_leads_to_the_noun_gets_no_second_preposition(style: str) -> None:
    opening = f"{style} of" if style.endswith("proof") else style
    assert captions(listed("style", style), count=1) == [f"{opening} a teapot"]


def test_capitals_make_no_second_phrase() -> None:
    slot = listed("style", "A photo of", "a photo of", "an etching of")
    made = fill(recipe_of({"slots": [{**slot, "weights": [1, 2, 1]}]}))
    assert made.slots["style"] == ("a photo of", "an etching of")
    assert made.weights["style"] == (3, 1)


def with_color(color: Any) -> dict[str, Any]:
    return {"slots": {"color": color}}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([], "the whole file"),
        ({}, "class_noun"),
        ({"slots": []}, "slots"),
        (with_color(["red"]), "slots.color"),
        (with_color({"values": []}), "slots.color.values"),
        (with_color({"values": [{"a": 1}]}), "color.values[0]"),
        (with_color({"values": [["red"]]}), "color.values[0]"),
        (with_color({"values": ["red", None]}), "color.values[1]"),
        (with_color({"values": "red"}), "slots.color.values"),
        (with_color({"values": ["red"], "weights": [-1]}), "slots.color.weights[0]"),
        ({"incompatible": [1]}, "incompatible[0]"),
        ({"incompatible": {"a": 1}}, "incompatible"),
        ({"language_model": 5}, "language_model"),
    ],
)
def test_an_odd_vocabulary_is_told_with_its_place(tmp_path: Path, content: Any, place: str) -> None:
    sound = {"class_noun": "teapot", "kind": "object", **with_color({"values": ["red", "teal"]})}
    content = {**sound, **content} if content else content
    (tmp_path / "v.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(VocabularyError, match=re.escape(f"{place} ")) as caught:
        Vocabulary.load(tmp_path / "v.json")
    assert caught.value.exit_code == EXIT_USAGE


def test_files_of_one_endless_line_end_at_once(tmp_path: Path, shell: Shell) -> None:
    assert check_with_vocabulary(tmp_path, shell, text="[" * 100_000) == 2
    assert "v.json" in shell.err
    assert "Traceback" not in shell.err
    (tmp_path / "colors.txt").write_text("red " * 1_300_000, encoding="utf-8")
    assert shell("check", recipe_file(tmp_path, {"name": "color", "file": "colors.txt"})) == 2
    assert len(shell.err) < 2000
    assert "colors.txt:1" in shell.err.replace("\n", "")
