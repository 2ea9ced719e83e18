"""The `against` set on captions as people have them: vision models', taggers' and their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from regforge.embedded import phrase_banks
from regforge.prompts.against import cut_open, unvaried
from regforge.prompts.captions import article_for, noun_pattern, word_pattern
from regforge.prompts.noun_phrases import category_of
from regforge.prompts.stated import TagList

CAPTIONS: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    (Path(__file__).parent / "real_captions.yaml").read_text(encoding="utf-8")
)
CASES = [
    pytest.param(s, each, id=each["caption"][:60]) for s, of in CAPTIONS.items() for each in of
]
SLOTS = ("shape", "color", "texture")
OF_PEOPLE = dict(zip(SLOTS, ("tall", "golden-haired", "casually dressed"), strict=True))
OF_THINGS = dict(zip(SLOTS, ("small", "teal", "glossy"), strict=True))


def against(caption: str, noun: str, identifier: str | None = "sks") -> tuple[str, set[str]]:
    """A caption with the phrases above, and the slots that were not varied."""
    around = cut_open(caption, noun, identifier, "01.jpg")
    kept = set(unvaried(around, SLOTS))
    of_people = category_of(noun) == "person"
    phrases = {s: p for s, p in (OF_PEOPLE if of_people else OF_THINGS).items() if s not in kept}
    return around.caption(phrases, noun, article_for(noun)), kept


def plain(caption: str, noun: str, identifier: str | None = "sks") -> str:
    around = cut_open(caption, noun, identifier, "01.jpg", vary=False)
    return around.caption({}, noun, article_for(noun))


def test_the_corpus_is_what_people_have() -> None:
    assert len(CASES) >= 100
    assert CAPTIONS.keys() >= {
        *("BLIP", "BLIP2", "Florence-2", "JoyCaption", "CogVLM", "LLaVA", "GPT-4o", "WD14"),
        *("hand-written", "behind a trigger word"),
    }


@pytest.mark.parametrize(("style", "each"), CASES)
def test_captions_of_all_kinds(style: str, each: dict[str, Any]) -> None:
    identifier = each.get("identifier", "sks")
    varied, kept = against(each["caption"], each["noun"], identifier)
    assert varied == each["varied"]
    assert kept == set(each.get("kept", ()))
    assert plain(each["caption"], each["noun"], identifier) == each["plain"]
    for text in (varied, each["plain"]):
        assert not word_pattern(identifier).search(text.replace("_", " "))
        assert not re.search(r"\b(\w+) \1\b", text, re.IGNORECASE), "a doubled word"
        for article, word in re.findall(r"\b(an?) ([\w’'-]+)", text, re.IGNORECASE):
            assert article.lower() == phrase_banks.indefinite_article(word)
        same = text[:1].isupper() == each["caption"][:1].isupper()
        assert same or style == "behind a trigger word"
    if style == "WD14" and "photo of" not in each["caption"]:  # a list stays one
        assert not re.search(r"\b(?:a|an|the)\b", varied)
    assert noun_pattern(each["noun"]).search(varied.replace("_", " "))


def test_attributes_of_tag_lists_come_as_tags() -> None:
    text = "sks_cat, orange_fur, long_hair, wooden, small, sitting, no_humans"
    around = cut_open(text, "cat", "sks", "01.jpg")
    assert isinstance(around, TagList)
    made = around.caption({"shape": "large", "color": "light brown"}, "cat")
    assert made == "cat, light_brown_fur, long_hair, large, sitting, no_humans"
    assert around.caption({}, "cat") == "cat, long_hair, sitting, no_humans"


SUBJECTS = ("a sks {}", "sks {}", "the old sks {}", "a small, white and blue sks {}", "my {} sks")
RESTS = {
    "": set(),
    " on a white table": set(),
    " with black hands beside a red ball": set(),
    ". The sky is blue and the grass is green.": set(),
    ". It is white.": {"color"},
    ". The {} is painted dark green": {"color", "texture"},
    " with a white and red body": {"color"},
    " made of wood": {"texture"},
    ", which is tiny, on a rug": {"shape"},
    ". A glossy red {} stands there": {"color", "texture"},
}
OPENINGS = ("", "a photo of ", "The image shows ", "a black and white photo of ", "a man holding ")


@given(
    st.sampled_from(OPENINGS),
    st.sampled_from(SUBJECTS),
    st.sampled_from(sorted(RESTS)),
    st.sampled_from(["robot toy", "cat", "teapot"]),
)
def test_what_is_stated_is_never_varied(opening: str, subject: str, rest: str, noun: str) -> None:
    colorless = {"color"} if "black and white" in opening else set()
    varied, kept = against(f"{opening}{subject}{rest}".replace("{}", noun), noun)
    assert kept == RESTS[rest] | colorless
    phrases = [OF_THINGS[slot] for slot in SLOTS if slot not in kept]
    first = " ".join([*phrases, noun])
    article = article_for(noun)(first)
    assert varied.startswith((opening + article, opening + article[:1].upper() + article[1:]))
    assert varied.endswith(rest.replace("{}", noun))


WORDS = st.lists(
    st.sampled_from(
        "a an the sks SKS cat cats, cat's white black and , . is with on of in red fur it She "
        "hair photo two another named called which ( ) wearing dress 1girl, solo, \" 's".split()
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.slow
@settings(max_examples=300)
@given(WORDS, st.sampled_from(["cat", "woman"]))
def test_no_caption_keeps_the_identifier_or_loses_the_class(words: list[str], noun: str) -> None:
    text = " ".join(words).replace("cat", noun)
    if not re.search(rf"\bsks\b|\b{noun}s?\b", text, re.IGNORECASE):
        return
    made = [against(text, noun)[0], plain(text, noun)]
    for caption in made:
        assert not re.search(r"\bsks\b", caption, re.IGNORECASE)
    assert re.search(rf"\b{noun}", made[0])
