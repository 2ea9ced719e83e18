"""Caption surgery: another thing in the subject's place, and everything else word for word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.prompts.against import PhotoCaptionUnclear, Surroundings, cut_open
from regforge.prompts.captions import article_for


def replaced(caption: str, noun: str = "teapot", identifier: str | None = "sks") -> str:
    around = cut_open(caption, noun, identifier, "01.jpg")
    attributes = {"shape": "small", "color": "orange"}
    return around.caption(attributes, noun, article_for(noun))


@pytest.mark.parametrize(
    ("photo", "regularization"),
    [
        (
            "a photo of a sks teapot on a kitchen table",
            "a photo of a small orange teapot on a kitchen table",
        ),
        ("sks teapot, kitchen table", "a small orange teapot, kitchen table"),
        ("photo of sks", "photo of a small orange teapot"),
        ("sks", "a small orange teapot"),
        ("a close-up of my old sks teapot", "a close-up of a small orange teapot"),
        ("a photo of shiny SKS teapot.", "a photo of a small orange teapot."),
        ("my best friend's sks teapot at home", "a small orange teapot at home"),
        ("a photo of teapot sks on a shelf", "a photo of a small orange teapot on a shelf"),
        ("a man holding sks teapot", "a man holding a small orange teapot"),
        ("a man holding the gleaming sks teapot", "a man holding a small orange teapot"),
        ("two sks teapots in a row", "two small orange teapots in a row"),
        ("a sks old cracked teapot on wood", "a small orange teapot on wood"),
        ("a portrait (sks teapot), smiling", "a portrait (a small orange teapot), smiling"),
        ("photo sks teapot", "photo of a small orange teapot"),
        ("sks's lid, close-up", "a small orange teapot's lid, close-up"),
        (
            "a sks teapot beside another sks teapot and my sks",
            "a small orange teapot beside the teapot and the teapot",
        ),
        (
            "masks and sketches around a sks teapot",
            "masks and sketches around a small orange teapot",
        ),
        ("In the garden, an sks teapot", "In the garden, a small orange teapot"),
    ],
)
def test_only_the_subjects_noun_phrase_changes(photo: str, regularization: str) -> None:
    assert replaced(photo) == regularization


@pytest.mark.parametrize(
    ("photo", "noun", "identifier", "regularization"),
    [
        (
            "a photo of a sks on a dog bed",
            "dog",
            "sks",
            "a photo of a small orange dog on a dog bed",
        ),
        ("a sks teapot, boxed", "ceramic teapot", "sks", "a small orange ceramic teapot, boxed"),
        ("sks glasses", "pair of glasses", "sks", "a small orange pair of glasses"),
        ("a <s1> sunglasses case", "sunglasses", "<s1>", "small orange sunglasses case"),
        ("my ohwx  man on a bike", "man", "ohwx man", "a small orange man on a bike"),
        ("the old teapot on a table", "teapot", None, "a small orange teapot on a table"),
        ("the old teapot on a table", "teapot", "sks", "a small orange teapot on a table"),
        ("two cups of tea", "cup of tea", None, "two small orange cups of tea"),
    ],
)
def test_identifiers_and_class_nouns_of_all_kinds(
    photo: str, noun: str, identifier: str | None, regularization: str
) -> None:
    assert replaced(photo, noun, identifier) == regularization


@pytest.mark.parametrize("identifier", ["sks", None])
def test_a_caption_that_does_not_name_the_subject_is_refused(identifier: str | None) -> None:
    with pytest.raises(
        PhotoCaptionUnclear, match=r"01\.jpg: its caption says .*'teapot'"
    ) as caught:
        replaced("masks on a table", "teapot", identifier)
    assert "'a photo of a" in str(caught.value)


def test_what_is_kept_is_told_apart() -> None:
    around = cut_open("a photo of a sks teapot on a table, at dusk.", "teapot", "sks", "x.jpg")
    assert (around.style, around.background) == ("a photo of", "on a table, at dusk")
    around = cut_open("in the kitchen, my sks!", "teapot", "sks", "x.jpg")
    assert (around.style, around.background) == (None, None)


def test_a_caption_that_no_model_reads_to_its_end_is_refused() -> None:
    with pytest.raises(PhotoCaptionUnclear, match=r"01\.jpg"):
        replaced("a sks teapot is white and " * 2000)
    assert "small" in replaced("a sks teapot on a mat, " + "a red ball and " * 500)


WORDS = st.sampled_from("a the old sks SKS teapot of on in table, photo my and dog's ((sks".split())


@given(st.lists(WORDS, min_size=1, max_size=12))
def test_the_identifier_never_stays(words: list[str]) -> None:
    photo = " ".join(words)
    if "sks" not in photo.lower() and "teapot" not in photo:
        return
    caption = replaced(photo)
    assert "sks" not in caption.lower()
    around = cut_open(photo, "teapot", "sks", "01.jpg")
    if isinstance(around, Surroundings) and around.unclear:  # two teapots may be one or two
        assert "teapot" in caption
        return
    lists = ("small orange teapot", "teapot, small, orange")  # a list of tags stays one
    assert sum(map(caption.count, lists)) == 1
