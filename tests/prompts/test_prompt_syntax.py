"""Prompt syntax in captions: taken off, or told that it stands for several texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.prompts.captions import several_texts, without_syntax


@pytest.mark.parametrize(
    ("caption", "plain"),
    [
        ("a photo of a (sks cat:1.3) on a rug", "a photo of a sks cat on a rug"),
        ("((sks)) cat, [blurry], masterpiece", "sks cat, blurry, masterpiece"),
        ("(((sks cat))), {fluffy}", "sks cat, fluffy"),
        ("((fluffy) sks cat:1.2)", "fluffy sks cat"),
        ("a sks cat <lora:x:0.8> on a rug", "a sks cat on a rug"),
        ("<lora:fur-v2:1>, sks cat <hypernet:a b:0.5>", "sks cat"),
        ("a sks cat BREAK on a rug", "a sks cat, on a rug"),
        ("sks cat, BREAK, rug", "sks cat, rug"),
        ("(masterpiece), (best quality:1.2), sks cat", "masterpiece, best quality, sks cat"),
        ("a photo of (sks cat) on a rug", "a photo of sks cat on a rug"),
        (r"sks \(cat\), rug", "sks (cat), rug"),
        ("sks++ cat on a rug--", "sks cat on a rug"),
        ("[[sks]] cat", "sks cat"),
        ("<sks:1.0> cat, (fluffy:.8)", "sks cat, fluffy"),
    ],
)
def test_weights_and_commands_are_taken_off(caption: str, plain: str) -> None:
    assert several_texts(caption) is None
    assert without_syntax(caption, "sks") == plain
    assert without_syntax(plain.replace("(", "x"), "sks") == plain.replace("(", "x")


@pytest.mark.parametrize(
    "caption",
    [
        "a portrait (sks cat), smiling",
        "a sks cat (my own) at 10:30, 3:2",
        "breaking news: the sks cat",
        "A BREAKFAST for sks; cat-like -- and small",
        "sks_cat, long__tail",
        "",
    ],
)
def test_english_is_left_alone(caption: str) -> None:
    assert several_texts(caption) is None
    assert without_syntax(caption, "sks") == caption


@pytest.mark.parametrize("identifier", ["[V]", "<s1>", "(*)", "{x}", "sks++", "[[new]]"])
def test_the_identifier_is_no_syntax(identifier: str) -> None:
    caption = f"a photo of a {identifier} cat"
    assert without_syntax(caption, identifier) == caption
    assert without_syntax(f"a photo of a ({identifier} cat:1.3)", identifier) == caption


@pytest.mark.parametrize(
    "part",
    ["{red|blue}", "{2$$a|b|c}", "[red:blue:0.5]", "[red:10]", "[a|b]", "__color__", "__a/b__"],
)
def test_what_stands_for_several_texts_is_found(part: str) -> None:
    assert several_texts(f"a photo of a {part} sks cat") == part


@pytest.mark.parametrize(
    "text",
    ["[" + ":" * 99_999, "(" * 50_000 + "sks" + ")" * 50_000, "{|" * 50_000, "\ue000 (sks:1)"],
)
def test_no_caption_is_too_much(text: str) -> None:
    several_texts(text)
    assert "sks" not in text or "sks" in without_syntax(text, "sks")


@given(st.text(alphabet="sk ()[]{}<>:.1,|_+-\\", max_size=40))
def test_taking_off_ends_and_leaves_nothing_to_take_off(text: str) -> None:
    text = " ".join(text.split())
    once = without_syntax(text)
    assert without_syntax(text) == once
    assert len(once) <= len(text) + text.count("BREAK")
