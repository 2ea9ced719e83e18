"""What a phrase must be like, and how untidy ones are put right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.embedded import phrase_banks
from regforge.prompts.phrase_rules import PhraseRules, tidy
from regforge.prompts.vocabulary import BankPhrases

RULES = PhraseRules("ceramic teapot", "sks")


@pytest.mark.parametrize(
    ("slot", "raw", "clean"),
    [
        ("color", "1. Deep red.", "deep red"),
        ("color", "- a mustard  yellow", "mustard yellow"),
        ("color", "• “sage green”", "sage green"),
        ("color", "**ivory**,", "ivory"),
        ("material", "made of brass", "brass"),
        ("shape", "U-shaped", "U-shaped"),
        ("texture", "(3) 'hand-painted'", "hand-painted"),
        ("background", '"On a kitchen counter."', "on a kitchen counter"),
        ("background", "on the captain's table", "on the captain's table"),
        ("style", "watercolor painting", "a watercolor painting of"),
        ("style", "An oil painting of", "an oil painting of"),
        ("style", "3D render", "a 3D render of"),
        ("style", "A photo showing", "a photo showing"),
        ("motion", "Leaping over a log", "leaping over a log"),
    ],
)
def test_a_phrase_is_tidied_until_it_fits_its_place(slot: str, raw: str, clean: str) -> None:
    assert tidy(raw, slot) == clean
    assert RULES.fault(clean, slot) is None


@pytest.mark.parametrize(
    ("slot", "phrase", "why"),
    [
        ("color", "", "empty"),
        ("color", "...", "empty"),
        ("color", "sks red", "identifier"),
        ("color", "SKS-like", "identifier"),
        ("background", "beside another teapot", "class noun"),
        ("background", "among Teapots on a shelf", "class noun"),
        ("background", "in {{ place }}", "'{'"),
        ("background", "in a <b>kitchen</b>", "'<'"),
        ("background", "on a table\nin a room", "line break"),
        ("background", "on a table\x07", "contains"),
        ("background", "in a kitchen \U0001f600", "contains"),
        ("background", "color: red", "':'"),
        ("background", "on " + "very " * 11 + "old table", "12 words"),
        ("background", "kitchen counter", "preposition"),
        ("background", "a kitchen", "preposition"),
        ("lighting", "soft light", "preposition"),
        ("shape", "with a long spout", "before the class noun"),
        ("shape", "one two three four five six", "before the class noun"),
        ("motion", "is running", "participle"),
        ("style", "in the style of", "start with"),
    ],
)
def test_a_phrase_that_fits_no_caption_is_refused(slot: str, phrase: str, why: str) -> None:
    sifted = RULES.sift(slot, [phrase])
    assert not sifted.phrases
    assert why in sifted.complaint()


@pytest.mark.parametrize(
    ("slot", "phrase"),
    [
        ("background", "half-buried in warm sand"),
        ("background", "nestled among ferns"),
        ("background", "deep in a pine forest"),
        ("lighting", "lit from the left by a window"),
        ("lighting", "bathed in candlelight"),
        ("color", "masks-of-gold"),  # the identifier is no part of a word
        ("era", "from the 1920s"),
        ("color", "bordeauxrot"),
        ("color", "crème brûlée"),
    ],
)
def test_a_phrase_that_reads_well_is_kept(slot: str, phrase: str) -> None:
    assert RULES.sift(slot, [phrase]).phrases == (phrase,)


def test_a_phrase_counts_once_whatever_its_case_and_articles() -> None:
    sifted = RULES.sift(
        "background",
        ["on a porch", "On the porch.", "in a barn", "in a barn"],
        known=["in the barn"],
    )
    assert sifted.phrases == ("on a porch",)
    assert sifted.repeated == 3


@given(st.text(max_size=60), st.sampled_from(["color", "background", "style", "motion", "era"]))
def test_what_is_kept_is_one_line_without_identifier_or_class_noun(raw: str, slot: str) -> None:
    for phrase in RULES.sift(slot, [raw, f"in a {raw}", f"sks {raw}", f"{raw} teapot"]).phrases:
        assert phrase
        assert phrase.isprintable()
        assert not set(phrase) & set('{}<>[]|\n`*_#"\\')
        assert not {"sks", "teapot"} & set(phrase.casefold().split())
        assert len(phrase.split()) <= 13  # an article may be added to a style
        assert tidy(phrase, slot) == phrase


@pytest.mark.parametrize("noun", ["teapot", "dog", "chef", "trout", "lighthouse", "glasses"])
def test_the_banks_keep_the_rules(noun: str) -> None:
    shelf = BankPhrases(noun, phrase_banks.super_category(noun), known=True)
    rules = PhraseRules("zyx", "sks")
    for slot in phrase_banks.SLOTS:
        phrases = list(shelf.phrases(slot))
        assert rules.sift(slot, phrases).refused == ()
