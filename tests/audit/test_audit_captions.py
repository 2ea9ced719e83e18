"""What is wrong with captions, and what they talk about."""

from typing import Any

import pytest
from audit_samples import audit, checked, closed, example, examples

from regforge.audit import Check

COLORS = ("red", "blue", "green", "white", "black")
PLACES = ("on a beach", "in a dark forest", "in a kitchen", "at a bus stop")
STYLES = ("a photo of", "a watercolor painting of", "a pencil drawing of")
GOOD = [f"{s} a {c} owl {p}" for s in STYLES for c in COLORS for p in PLACES]


def of(texts: list[str | None], name: str, **more: object) -> Check:
    rows = [closed(number, "") for number in range(len(texts))]
    rows = [
        example(n, text, image=b"", metadata=row.metadata)
        for n, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]
    return checked(audit(rows, **more), name)


def test_good_captions_are_good() -> None:
    rows = examples(GOOD, class_noun="owl")
    found = audit(rows)
    names = ("captions", "caption variety", "caption length", "class noun", "caption format")
    for name in (*names, "token limit", "word coverage"):
        assert checked(found, name).grade == "good", name


def test_images_without_captions() -> None:
    check = of([*GOOD, None, "", " \n"], "captions")
    assert check.grade == "look"
    assert check.numbers == {"without": 3, "empty": 2, "share": 0.0476}
    assert check.examples == ["060.png", "061.png", "062.png"]
    assert of([None] * 10, "captions").grade == "bad"
    assert of([None] * 10, "caption variety").grade == "unknown"


def test_one_caption_for_all_is_bad_and_lowers_the_weight() -> None:
    texts: list[str | None] = ["a photo of a woman"] * 9 + ["a photo of a woman in a kitchen"]
    check = of(texts, "caption variety")
    assert check.grade == "bad"
    assert (check.numbers["distinct"], check.numbers["top_share"]) == (2, 0.9)
    training = of(texts, "size and repeats")
    assert training.numbers["prior_weight"] == 0.5
    assert "say little" in training.finding


def test_a_few_captions_repeated_are_worth_a_look() -> None:
    assert of([*GOOD[:10] * 10], "caption variety").grade == "look"
    assert of([*GOOD, *GOOD], "caption variety").grade == "good"


def test_captions_that_differ_only_in_order_case_or_punctuation_are_counted() -> None:
    check = of(["A red owl.", "a red  owl", "owl, a red", "a blue owl"], "caption variety")
    assert check.numbers["near_identical"] == 2


@pytest.mark.parametrize("text", ["woman", "a woman", "a photo of a woman", "Portrait of Woman."])
def test_only_the_class_noun(text: str) -> None:
    check = of([text, *GOOD[:4]], "caption length", class_noun="woman")
    assert check.numbers["only_class_noun"] == 1
    assert check.grade == "look"
    assert check.examples == [text]
    assert of([text] * 3, "caption length", class_noun="woman").grade == "bad"


def test_a_single_word_is_a_bare_class_noun_even_if_nobody_says_which() -> None:
    assert of(["woman"] * 3, "caption length").numbers["only_class_noun"] == 3
    assert of(["a red owl"], "caption length").numbers["only_class_noun"] == 0


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
    check = of([text], "class noun", class_noun=noun)
    assert check.numbers["without"] == (not named)
    assert check.grade == ("good" if named else "bad")


def test_a_class_noun_that_nobody_says_is_unknown() -> None:
    assert of(list(GOOD), "class noun").grade == "unknown"


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
    check = of(["a plain owl (at night)", text], "caption format")
    assert {name for name, count in check.numbers.items() if count} == {key}
    assert check.grade == ("good" if key == "spaces_at_an_end" else "look")


def test_tokens_are_estimated_where_nobody_says_which_model() -> None:
    check = of(["an owl", "owl " * 80], "token limit")
    assert check.grade == "look"
    assert (check.numbers["over"], check.numbers["limit"]) == (1, 77)
    assert check.numbers["estimated"] is True
    assert "estimate" in check.finding


def test_tokens_are_counted_by_the_model_that_drew_the_images() -> None:
    rows = [
        closed(0, "a cat", data={"model": "embedded/tinyworld"}),
        closed(1, "cat " * 60, data={"model": "embedded/tinyworld"}),
    ]
    check = checked(audit(rows), "token limit")
    assert check.numbers["counted_by"] == "the tokenizer of embedded/tinyworld"
    assert (check.numbers["longest"], check.numbers["limit"]) == (62, 48)
    assert check.grade == "bad"


@pytest.mark.parametrize("model", ["no/such-model", "../../etc", "", "a" * 300, "x y z", "nul\0l"])
def test_a_model_that_is_not_here_is_estimated_and_not_fetched(model: str) -> None:
    check = checked(audit([closed(0, data={"model": model})]), "token limit")
    assert check.numbers["estimated"] is True


def test_no_tokenizer_is_fetched_even_with_a_network(hub: Any) -> None:
    check = checked(audit([closed(0, data={"model": "me/model"})]), "token limit")
    assert check.numbers["estimated"] is True
    assert hub.requests == []


def test_words_of_naive_captions_are_poor() -> None:
    check = of(["a photo of a woman"] * 20, "word coverage")
    assert check.grade == "bad"
    assert check.numbers["says"] == {"color": 0, "place": 0, "style": 0}
    assert 3 < check.numbers["effective_words"] < 5


def test_what_captions_say_is_found_with_the_phrase_banks() -> None:
    check = of(
        [
            "a woman in a bright red dress walking along on an empty beach",
            "an oil painting of a woman",
            "a woman, beach",  # without a preposition it may be anything
            "a photo of a woman",
        ],
        "word coverage",
    )
    assert check.numbers["says"] == {"color": 0.25, "place": 0.25, "style": 0.25}
    assert check.numbers["most_said"]["place"] == {"beach": 1}


def test_identifiers_as_whole_words_only() -> None:
    told = of(["a photo of SKS, the owl", "desks and risks"], "identifier", identifier="sks")
    assert (told.grade, told.numbers["captions"]) == ("bad", 1)
    assert of(["desks and risks"], "identifier", identifier="sks").grade == "good"
    assert of(["an owl"], "identifier").grade == "unknown"
    assert of(["an ohwx owl"], "identifier").grade == "bad"
    assert of(["a <new1> owl"], "identifier", identifier="<new1>").grade == "bad"
