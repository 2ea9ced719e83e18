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
    ("photo", "regularization"),  # with % for "a small orange teapot"
    [
        ("a photo of a sks teapot on a kitchen table", "a photo of % on a kitchen table"),
        ("sks teapot, kitchen table", "%, kitchen table"),
        ("photo of sks", "photo of %"),
        ("sks", "%"),
        ("a close-up of my old sks teapot", "a close-up of %"),
        ("a photo of shiny SKS teapot.", "a photo of %."),
        ("my best friend's sks teapot at home", "% at home"),
        ("a photo of teapot sks on a shelf", "a photo of % on a shelf"),
        ("a man holding sks teapot", "a man holding %"),
        ("a man holding the gleaming sks teapot", "a man holding %"),
        ("two sks teapots in a row", "two small orange teapots in a row"),
        ("a sks old cracked teapot on wood", "% on wood"),
        ("a portrait (sks teapot), smiling", "a portrait (%), smiling"),
        ("photo sks teapot", "photo of %"),
        ("sks's lid, close-up", "%'s lid, close-up"),
        ("a sks teapot by another sks teapot and my sks", "% by the teapot and the teapot"),
        ("masks and sketches around a sks teapot", "masks and sketches around %"),
        ("In the garden, an sks teapot", "In the garden, %"),
    ],
)
def test_only_the_subjects_noun_phrase_changes(photo: str, regularization: str) -> None:
    assert replaced(photo) == regularization.replace("%", "a small orange teapot")


@pytest.mark.parametrize(
    ("photo", "noun", "identifier", "regularization"),  # with % for "small orange" and the noun
    [
        ("a photo of a sks on a dog bed", "dog", "sks", "a photo of a % on a dog bed"),
        ("a sks teapot, boxed", "ceramic teapot", "sks", "a %, boxed"),
        ("sks glasses", "pair of glasses", "sks", "a %"),
        ("a <s1> sunglasses case", "sunglasses", "<s1>", "% case"),
        ("my ohwx  man on a bike", "man", "ohwx man", "a % on a bike"),
        ("the old teapot on a table", "teapot", None, "a % on a table"),
        ("the old teapot on a table", "teapot", "sks", "a % on a table"),
        ("two cups of tea", "cup of tea", None, "two small orange cups of tea"),
    ],
)
def test_identifiers_and_class_nouns_of_all_kinds(
    photo: str, noun: str, identifier: str | None, regularization: str
) -> None:
    expected = regularization.replace("%", f"small orange {noun}")
    assert replaced(photo, noun, identifier) == expected


@pytest.mark.parametrize("identifier", ["sks", None])
def test_a_caption_that_does_not_name_the_subject_is_refused(identifier: str | None) -> None:
    told = r"(?s)01\.jpg: its caption says .*'teapot'.*'a photo of a"
    with pytest.raises(PhotoCaptionUnclear, match=told):
        replaced("masks on a table", "teapot", identifier)


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
