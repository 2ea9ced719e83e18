"""What captions must not say: benchmarks, phrases of the user's, the identifier, two materials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import vocabulary_of
from hypothesis import given
from hypothesis import strategies as st

from regforge.files import templates_folder
from regforge.prompts.exclude import (
    Duplicates,
    ExclusionError,
    Exclusions,
    NearDuplicates,
    content_words,
    usable,
)

BENCHMARKS = templates_folder() / "benchmarks"
KINDS = yaml.safe_load((BENCHMARKS / "dreambench.yaml").read_text("utf-8"))["prompts"].values()
DREAMBENCH = [prompt for groups in KINDS for prompts in groups.values() for prompt in prompts]


def dreambench(class_noun: str = "teapot", identifier: str | None = "sks") -> Exclusions:
    return Exclusions.load(["dreambench"], class_noun=class_noun, identifier=identifier)


BENCH = dreambench()


def test_dreambench_is_whole() -> None:
    # Two lists of 25, of which 10 contexts and 5 properties are the same.
    assert len(DREAMBENCH) == len(set(DREAMBENCH)) == 35
    assert all(prompt.count("{}") == 1 for prompt in DREAMBENCH)
    assert [entry for entry, _ in BENCH.entries] == DREAMBENCH


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.yaml")))
def test_every_benchmark_can_be_kept_out(name: str) -> None:
    exclusions = Exclusions.load([name], class_noun="teapot")
    for entry, words in exclusions.entries:
        assert exclusions.forbids(f"{entry.replace('{}', 'teapot')}, at dusk") is not None
        assert words


@pytest.mark.parametrize("class_noun", ["teapot", "dog", "red panda", "beach ball", "fabric hat"])
def test_every_prompt_of_dreambench_is_kept_out(class_noun: str) -> None:
    exclusions = dreambench(class_noun)
    for prompt in DREAMBENCH:
        for subject in (class_noun, f"sks {class_noun}", f"small {class_noun}"):
            found = exclusions.forbids(f"A photo of {prompt.replace('{}', subject)}, at dusk")
            assert found is not None, prompt
            assert content_words(found) <= content_words(prompt)


@pytest.mark.parametrize(
    ("caption", "entry"),
    [
        ("a teapot in a city at night", "a {} with a city in the background"),
        ("a teapot before snowy mountains", "a {} with a mountain in the background"),
        ("a cube-shaped teapot", "a cube shaped {}"),
        ("a cherry red teapot", "a red {}"),
        ("teapots on beaches", "a {} on the beach"),
        ("a teapot in pink, on woven fabric", "a {} on top of pink fabric"),
    ],
)
def test_paraphrases_are_kept_out(caption: str, entry: str) -> None:
    assert BENCH.forbids(caption) == entry


def test_other_captions_and_the_class_noun_itself_are_not() -> None:
    for rest in ("on a wooden table, in soft light", "on a bright rug", "among redwoods"):
        assert BENCH.forbids(f"a photo of a blue teapot {rest}") is None
    assert BENCH.forbids("a teapot floating in space") is None
    assert BENCH.forbids("a sweater-clad teapot") is None
    assert dreambench("red panda").forbids("a photo of two red pandas on a log") is None
    assert dreambench("mirror").forbids("a mirror on a mirror") == "a {} on top of a mirror"
    assert dreambench("red panda").forbids("a red panda on a red cushion") == "a red {}"
    assert dreambench("beach ball").forbids("a beach ball on grass") is None
    assert dreambench("mirror").forbids("a mirror on a wall") is None


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "no.txt"
    file.write_text("# mine\nA photo of a sks teapot with berries  # tasty\n\nchess board\n")
    exclusions = Exclusions.load([str(file)], class_noun="ceramic teapot", identifier="sks")
    assert exclusions.forbids("a teapot and a berry") == "A photo of a sks teapot with berries"
    assert exclusions.forbids("a ceramic teapot on a chess-board") == "chess board"
    assert exclusions.forbids("a ceramic teapot on a board") is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"in the background\n", "'in the background' has no word to look for"),
        (b"a sks teapot\n", "'a sks teapot' has no word to look for"),
        (b"caf\xe9\n", "is not UTF-8"),
    ],
)
def test_files_that_exclude_all_or_nothing(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "no.txt").write_bytes(content)
    with pytest.raises(ExclusionError, match=complaint):
        Exclusions.load([str(tmp_path / "no.txt")], class_noun="teapot", identifier="sks")
    with pytest.raises(ExclusionError, match="cannot be read"):
        Exclusions.load([str(tmp_path / "gone.txt")], class_noun="teapot")


@given(st.text(max_size=60))
def test_without_exclusions_nothing_is_forbidden(caption: str) -> None:
    assert Exclusions().forbids(caption) is None
    BENCH.forbids(caption)  # and no text makes it fail


def test_phrases_that_alone_say_too_much_are_taken_out_with_their_weights() -> None:
    slots = {"color": ("blue", "red", "sks green"), "style": ("a photo of",)}
    before = vocabulary_of(slots, weights={"color": (3.0, 2.0, 1.0), "style": (1.0,)})
    left, removed = usable(before, BENCH, class_noun="teapot", identifier="sks")
    assert left.slots == {"color": ("blue",), "style": ("a photo of",)}
    assert left.weights == {"color": (3.0,), "style": (1.0,)}
    (slot, faults), *others = removed.items()
    assert (slot, others) == ("color", [])
    assert faults["red"] == "says what is excluded, 'a red {}'"
    assert faults["sks green"] == "contains the identifier 'sks'"


def test_a_slot_with_nothing_left_to_say_is_refused() -> None:
    words = vocabulary_of({"color": ("dark red", "purple")})
    with pytest.raises(ExclusionError, match=r"(?s)2 phrases of slot 'color'.*'dark red' says"):
        usable(words, BENCH, class_noun="teapot", identifier=None)


def test_a_noun_that_names_its_material_takes_no_second_one() -> None:
    textures = ("glazed porcelain", "matte", "satin-finish")
    before = vocabulary_of({"texture": textures, "material": ("clay",)})
    about: Any = {"class_noun": "ceramic teapot", "identifier": None}
    left, removed = usable(before, Exclusions(), **about)
    assert left.slots == {"texture": ("matte", "satin-finish")}
    assert list(removed) == ["texture", "material"]
    assert not usable(before, Exclusions(), **{**about, "class_noun": "teapot"})[1]
    own = replace(before, origins=dict.fromkeys(before.slots, "list"))
    assert not usable(own, Exclusions(), **about)[1]


def test_duplicates_differ_in_case_and_punctuation_and_near_ones_share_most_words() -> None:
    said = Duplicates()
    assert said.add("A photo of a red teapot, at dusk.") is None
    assert said.add("a photo of a RED teapot at dusk") == "was said before"
    assert said.add("a photo of a red teapot at dawn") is None
    assert said.add("a teapot_at-dusk") is None
    assert said.add("a teapot at dusk") == "was said before"
    said = Duplicates(near=0.8)
    assert said.add("a photo of one red teapot on some table at dusk") is None
    why = said.add("a photo of one red teapot on some table at dawn")  # 9 of 11 words
    assert why == "says nearly the same as 'a photo of one red teapot on some table at dusk'"
    assert said.add("a photo of one blue teapot on the table at dawn") is None  # 7 of 13

    before = Duplicates(near=0.5)
    assert before.add("a b c d") is None
    assert before.add("a b c e") is not None  # 3 of 5 words; it is not remembered
    assert before.add("c e f a") is None  # 2 of 6; of the refused one it would be 3 of 5
    exact = Duplicates(near=1.0)
    assert exact.add("a cup on a table") is None
    assert exact.add("a table on a cup") is None  # the same words


WORD_SETS = st.lists(st.sampled_from("a bb ccc dddd eeeee ffffff ggg hh i".split()), max_size=9)


@given(st.lists(WORD_SETS, max_size=40), st.floats(0.05, 0.99))
def test_the_index_finds_what_comparing_would(captions: list[list[str]], least: float) -> None:
    index, kept = NearDuplicates(least), []
    for words in captions:
        text, new = " ".join(words), set(words)
        alike = any(
            len(new & other) > least * len(new | other) for other in map(set, map(str.split, kept))
        )
        assert (index.find(text) is not None) == alike
        if not alike:
            index.add(text)
            kept.append(text)
