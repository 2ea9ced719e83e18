"""The prompts that models are asked: those that come with regforge, and users' own."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterable
from pathlib import Path

import pytest

from regforge.embedded import TINYWORLD, load_vocabulary
from regforge.evaluation.suites import (
    BenchmarkPrompt,
    EvaluationError,
    PersonalizedModel,
    class_prompts,
    default_suites,
    load_suite,
)
from regforge.files import templates_folder
from regforge.recipe import Kind

SHIPPED = sorted(path.stem for path in (templates_folder() / "benchmarks").glob("*.yaml"))
COUNTS: dict[tuple[str, Kind], int] = {
    ("dreambench", "object"): 25,
    ("dreambench", "living"): 25,
    ("dreambench-rephrased", "object"): 25,
    ("dreambench-rephrased", "living"): 25,
    ("motion", "living"): 12,
    ("tinyworld", "object"): 25,
    ("tinyworld", "living"): 25,
    ("tinyworld-motion", "living"): 12,
    ("tinyworld-rephrased", "object"): 25,
    ("tinyworld-rephrased", "living"): 25,
}


def model(base: str, **more: object) -> PersonalizedModel:
    return PersonalizedModel(name="m", base=base, digest="0" * 64, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kind"), COUNTS)
def test_shipped_suites(name: str, kind: Kind) -> None:
    assert {name for name, _ in COUNTS} == set(SHIPPED)
    questions = load_suite(name, kind)
    texts = [question.text for question in questions]
    assert len(texts) == len(set(texts)) == COUNTS[name, kind]
    for question in questions:
        assert question.text.count("{}") == 1
        assert question.suite == name
        assert question.group
        assert not re.search(r"\bsks\b|photo of photo|  ", question.text)


def test_dreambench_has_prompts_of_its_own_for_each_kind_and_objects_do_not_move() -> None:
    for name in ("motion", "tinyworld-motion"):
        with pytest.raises(EvaluationError, match="no prompts for objects"):
            load_suite(name, "object")
    objects, living = ({q.text for q in load_suite("dreambench", k)} for k in ("object", "living"))
    assert len(objects & living) == 15
    assert "a {} with the Eiffel Tower in the background" in objects - living
    assert "a {} wearing a red hat" in living - objects


@pytest.mark.parametrize("kind", ["object", "living"])
@pytest.mark.parametrize("name", ["dreambench", "tinyworld"])
def test_rephrased_suites_say_the_same_in_other_words(name: str, kind: Kind) -> None:
    plain, other = load_suite(name, kind), load_suite(f"{name}-rephrased", kind)
    assert [question.group for question in plain] == [question.group for question in other]
    assert not {question.text for question in plain} & {question.text for question in other}
    if (name, kind) == ("dreambench", "object"):
        for word in ("Eiffel", "wheat", "milk", "sunflowers", "cube"):
            (both,) = (pair for pair in zip(plain, other, strict=True) if word in pair[0].text)
            assert word in both[1].text


def one_of(phrases: Iterable[str]) -> str:
    return "|".join(re.escape(phrase) for phrase in sorted(set(phrases) - {""}, key=len)[::-1])


TINY = [name for name in SHIPPED if name.startswith("tinyworld")]


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_world_has_heard_every_prompt(repo: Path, name: str) -> None:
    """Its pipeline was trained with captions of these words, in this order."""
    world = runpy.run_path(str(repo / "examples" / "tinyworld" / "world" / "vocabulary.py"))
    styles, places, lights, motions, sizes = (
        one_of(phrase for phrases in world[slot].values() for phrase in phrases)
        for slot in ("STYLES", "PLACES", "LIGHTS", "MOTIONS", "SIZES")
    )
    colors = one_of(phrase for _, phrases in world["COLORS"].values() for phrase in phrases)
    subject = rf"an? (?:(?:{sizes}) )?(?:(?:{colors}) )?\{{\}}(?: that is (?:{colors}))?"
    styled = rf"(?:{styles}) {subject}(?: (?:{motions}))?(?: (?:{places}))?(?:,? (?:{lights}))?"
    scene = rf"(?:{places})(?: (?:{lights}))?, {subject}"
    for question in load_suite(name, "living"):
        assert re.fullmatch(f"(?:{styled})|(?:{scene})", question.text), question.text


def test_tinyworld_uses_the_canonical_words() -> None:
    words = load_vocabulary()
    slots = ("background", "style", "motion", "lighting")
    phrases = one_of(each for slot in slots for each in words[slot])
    for name in ("tinyworld", "tinyworld-motion"):
        for question in load_suite(name, "living"):
            left = set(re.sub(phrases, " ", question.text).split()) - {"a", "{}"}
            assert left <= {*words["color"], *words["size"]}, question.text


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_worlds_tokenizer_knows_every_word(name: str) -> None:
    model = json.loads((TINYWORLD / "tokenizer" / "tokenizer.json").read_text("utf-8"))["model"]
    for question in load_suite(name, "living"):
        for word in re.findall(r"[a-z]+", question.text):
            assert f"{word}</w>" in model["vocab"], f"{word} of {question.text!r}"


def test_default_suites(tmp_path: Path) -> None:
    assert default_suites(model("stabilityai/sdxl"), "object") == ("dreambench",)
    assert default_suites(model("stabilityai/sdxl"), "living") == ("dreambench", "motion")
    assert default_suites(model("embedded/tinyworld"), "object") == ("tinyworld",)
    assert default_suites(model(str(TINYWORLD)), "living") == ("tinyworld", "tinyworld-motion")
    whole = model(str(tmp_path), recipe={"base_model": "embedded/tinyworld"})
    assert default_suites(whole, "object") == ("tinyworld",)


def test_the_article_fits_the_noun() -> None:
    assert BenchmarkPrompt("a {} in the snow", "s").about("owl") == "an owl in the snow"
    assert BenchmarkPrompt("a {} in the snow", "s").about("sks owl") == "a sks owl in the snow"
    assert BenchmarkPrompt("a red {} on a road", "s").about("owl") == "a red owl on a road"
    assert BenchmarkPrompt("A {}", "s").about("elephant") == "An elephant"


def test_a_text_file_has_a_prompt_a_line_and_yaml_lists_or_kinds_and_groups(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("# my prompts\n\na {} in the rain  # wet\n  a   blue {}\na {} in the rain\n")
    assert load_suite(file, "living") == [
        BenchmarkPrompt("a {} in the rain", "mine"),
        BenchmarkPrompt("a   blue {}", "mine"),
    ]
    file = tmp_path / "mine.yaml"
    file.write_text("prompts:\n  - a {} in the rain\n")
    assert load_suite(str(file), "object") == [BenchmarkPrompt("a {} in the rain", "mine")]
    file.write_text(
        "prompts:\n  living:\n    weather: ['a {} in the rain']\n  both: ['{} on ice']\n"
        "  object: ['{} in pieces']\n"
    )
    assert load_suite(file, "living") == [
        BenchmarkPrompt("a {} in the rain", "mine", "weather"),
        BenchmarkPrompt("{} on ice", "mine"),
    ]


def test_a_file_may_ask_for_the_class_in_its_own_words(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("prompts: ['a {} in the rain']\nclass_prompts:\n  - a {} on ice\n  - the {}\n")
    assert [each.text for each in class_prompts(file)] == ["a {} on ice", "the {}"]
    assert [each.text for each in class_prompts("dreambench")] == ["a photo of a {}"]
    file.write_text("prompts: ['a {} in the rain']\nclass_prompts:\n  - a cat\n")
    with pytest.raises(EvaluationError, match=r"mine.yaml:3:5  'a cat' has no \{\}"):
        class_prompts(file)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "a {} here\na teapot there\n", "p.txt:2  'a teapot there' has no {}."),
        ("p.txt", "a {} on a {}\n", "p.txt:1  'a {} on a {}' has {} 2 times."),
        ("p.txt", "# nothing\n", "p.txt has no prompts."),
        ("p.yaml", "prompts:\n  - a {} here\n  - a dog\n", "p.yaml:3:5  'a dog' has no {}."),
        ("p.yaml", "prompts:\n  cats: ['a {}']\n", "p.yaml:2:3  'cats' is no kind of subject"),
        ("p.yaml", "prompts:\n  object: a {}\n", "p.yaml:2:11  a list of prompts belongs here."),
        ("p.yaml", "prompts:\n  - [a]\n", "p.yaml:2:5  a prompt is text."),
        ("p.yaml", "- a {}\n", "p.yaml has no `prompts:`."),
        ("p.yaml", "", "p.yaml has no `prompts:`."),
        ("p.yaml", "prompts: [a\n", "p.yaml:1"),
        ("p.yaml", "prompts:\n  - {} in quotes\n", "p.yaml:2"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    with pytest.raises(EvaluationError) as caught:
        load_suite(name, "object")
    assert caught.value.message.startswith(said)
    assert caught.value.hint


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"There is no benchmark dreambanch\. Did you mean"):
        load_suite("dreambanch", "object")
    with pytest.raises(EvaluationError, match="There is no benchmark"):
        load_suite("../benchmarks/dreambench", "object")
    (tmp_path / "latin.txt").write_bytes(b"a {} in a caf\xe9\n")
    with pytest.raises(EvaluationError, match="UTF-8"):
        load_suite(tmp_path / "latin.txt", "object")
