"""What is wrong with captions, and what they talk about."""

from typing import Any

import pytest
from audit_samples import audit, checked, closed, example, expect

from regforge.auditing import Check

COLORS = ("red", "blue", "green", "white", "black")
PLACES = ("on a beach", "in a dark forest", "in a kitchen", "at a bus stop")
STYLES = ("a photo of", "a watercolor painting of", "a pencil drawing of")
GOOD = [f"{s} a {c} owl {p}" for s in STYLES for c in COLORS for p in PLACES]
NAIVE = "a photo of a woman"


def of(name: str, *texts: str | None, **more: object) -> Check:
    return checked(audit([closed(n, text) for n, text in enumerate(texts)], **more), name)


def test_good_captions_are_good() -> None:
    found = audit([example(n, text, class_noun="owl") for n, text in enumerate(GOOD)])
    names = ("captions", "caption variety", "caption length", "class noun", "caption format")
    for name in (*names, "token limit", "word coverage"):
        assert checked(found, name).grade == "good", name


def test_images_without_captions() -> None:
    check = of("captions", *GOOD, None, "", " \n")
    expect(check, "look", without=3, empty=2, share=0.0476)
    assert check.examples == ["060.png", "061.png", "062.png"]
    expect(of("captions", *[None] * 10), "bad")
    expect(of("caption variety", *[None] * 10), "unknown")


def test_variety() -> None:
    texts = [*[NAIVE] * 9, f"{NAIVE} in a kitchen"]
    expect(of("caption variety", *texts), "bad", distinct=2, top_share=0.9)
    expect(of("size and repeats", *texts), "look", "say little", prior_weight=0.5)
    expect(of("caption variety", *GOOD[:10] * 10), "look")
    expect(of("caption variety", *GOOD * 2), "good")
    alike = ("A red owl.", "a red  owl", "owl, a red", "a blue owl")
    expect(of("caption variety", *alike), "good", near_identical=2)


@pytest.mark.parametrize("text", ["woman", "a woman", NAIVE, "Portrait of Woman."])
def test_only_the_class_noun(text: str) -> None:
    check = of("caption length", text, *GOOD[:4], class_noun="woman")
    expect(check, "look", only_class_noun=1)
    assert check.examples == [text]
    expect(of("caption length", *[text] * 3, class_noun="woman"), "bad")


def test_a_single_word_is_a_bare_class_noun_even_if_nobody_says_which() -> None:
    expect(of("caption length", *["woman"] * 3), "bad", only_class_noun=3)
    expect(of("caption length", "a red owl"), "look", only_class_noun=0)


@pytest.mark.parametrize(
    ("noun", "text", "named"),
    [
        ("owl", "two owls on a branch", True),
        ("ceramic teapot", "a red teapot", True),
        ("ceramic teapot", "a ceramic bowl", False),
        ("bus", "two buses", True),
        ("pony", "three ponies", True),
        ("cat", "a category of things", False),
        ("cat", "a CAT!", True),
    ],
)
def test_naming_the_class(noun: str, text: str, named: bool) -> None:
    check = of("class noun", text, class_noun=noun)
    expect(check, "good" if named else "bad", without=0 if named else 1)
    expect(of("class noun", text), "unknown")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("an owl\na red owl", "several_lines"),
        ("an owl\r\n\r\nby night", "several_lines"),
        ("an owl \x07", "unprintable_characters"),
        ("ein K\ufffduzchen", "unprintable_characters"),
        (" an owl", "spaces_at_an_end"),
        ("an (owl:1.3) at night", "prompt_syntax"),
        ("an owl <lora:style:0.8>", "prompt_syntax"),
        ("a {red|blue} owl", "prompt_syntax"),
    ],
)
def test_traps_of_format(text: str, key: str) -> None:
    check = of("caption format", "a plain owl (at night)", text)
    assert {name for name, count in check.numbers.items() if count} == {key}
    assert check.grade == ("good" if key == "spaces_at_an_end" else "look")


def test_tokens_are_counted_by_the_model_that_drew_the_images_or_estimated() -> None:
    limits = {"over": 1, "limit": 77, "estimated": True}
    expect(of("token limit", "an owl", "owl " * 80), "look", "estimate", **limits)
    drawn = {"data": {"model": "embedded/tinyworld"}}
    found = audit([closed(0, "a cat", **drawn), closed(1, "cat " * 60, **drawn)])
    source = "the tokenizer of embedded/tinyworld"
    expect(checked(found, "token limit"), "bad", longest=62, limit=48, counted_by=source)


@pytest.mark.parametrize(
    "model", ["no/such-model", "../../etc", "", "a" * 300, "x y z", "nul\0l", "me/model"]
)
def test_a_model_that_is_not_here_is_estimated_and_not_fetched(hub: Any, model: str) -> None:
    found = audit([closed(0, data={"model": model})])
    expect(checked(found, "token limit"), "good", estimated=True)
    assert hub.requests == []


def test_what_captions_say_is_found_with_the_phrase_banks() -> None:
    poor = of("word coverage", *[NAIVE] * 20)
    expect(poor, "bad", says={"color": 0, "place": 0, "style": 0})
    assert 3 < poor.numbers["effective_words"] < 5
    check = of(
        "word coverage",
        "a woman in a bright red dress walking along on an empty beach",
        "an oil painting of a woman",
        "a woman, beach",  # without a preposition it may be anything
        NAIVE,
    )
    expect(check, "good", says={"color": 0.25, "place": 0.25, "style": 0.25})
    assert check.numbers["most_said"]["place"] == {"beach": 1}


def test_identifiers_as_whole_words_only() -> None:
    texts = ("a photo of SKS, the owl", "desks and risks")
    expect(of("identifier", *texts, identifier="sks"), "bad", captions=1)
    expect(of("identifier", texts[1], identifier="sks"), "good")
    expect(of("identifier", "an owl"), "unknown")
    expect(of("identifier", "an ohwx owl"), "bad")
    expect(of("identifier", "a <new1> owl", identifier="<new1>"), "bad")
