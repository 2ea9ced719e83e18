"""Captions that were there already."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from regforge.prompts.exclude import Duplicates, NearDuplicates


def test_case_and_punctuation_make_no_difference() -> None:
    said = Duplicates()
    assert said.add("A photo of a red teapot, at dusk.") is None
    assert said.add("a photo of a RED teapot at dusk") == "was said before"
    assert said.add("a photo of a red teapot at dawn") is None
    assert said.add("a teapot_at-dusk") is None
    assert said.add("a teapot at dusk") == "was said before"


def test_near_duplicates_share_most_of_their_words() -> None:
    said = Duplicates(near=0.8)
    assert said.add("a photo of one red teapot on some table at dusk") is None
    why = said.add("a photo of one red teapot on some table at dawn")  # 9 of 11 words
    assert why == "says nearly the same as 'a photo of one red teapot on some table at dusk'"
    assert said.add("a photo of one blue teapot on the table at dawn") is None  # 7 of 13


def test_a_refused_caption_is_not_remembered() -> None:
    said = Duplicates(near=0.5)
    assert said.add("a b c d") is None
    assert said.add("a b c e") is not None  # 3 of 5 words
    assert said.add("c e f a") is None  # 2 of 6; of the refused one it would be 3 of 5


def test_at_one_only_the_same_captions_are_the_same() -> None:
    said = Duplicates(near=1.0)
    assert said.add("a cup on a table") is None
    assert said.add("a table on a cup") is None  # the same words


WORD_SETS = st.lists(st.sampled_from("a bb ccc dddd eeeee ffffff ggg hh i".split()), max_size=9)


@given(st.lists(WORD_SETS, max_size=40), st.floats(0.05, 0.99))
def test_the_index_finds_what_comparing_all_would_find(
    captions: list[list[str]], least: float
) -> None:
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
