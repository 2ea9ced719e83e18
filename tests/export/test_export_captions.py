"""Captions of any kind come back as they were, or on one line, by every trainer's rules."""

from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path

import datasets
import pytest
from export_samples import export, photo_folder, theirs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mixing_rules import MIXING
from trainer_rules import RULES, without_spaces_after_commas

from regforge.exporting.settings import tidy

HARD = [
    'say "hi", it\'s',
    "a, b,c , d",
    "under_score__ and 5_words_with_many_underscores_in_them",
    "long " * 700,
    "{a|b} {{c}} ${d} (e:1.2) [f] <lora:g>",
    "line\nbreak\r\nand\ttab",
    "emoji 🫖👩‍🎨🏳️‍🌈",
    "إبريق شاي \u202eabc\u202c",
    "para\u2028graph\u2029s\x85\x0b\x0c\x1c",
    "nul\x00 and bell\x07",
    "\ufefftop",
    "# not a comment",
    "---",
    "null",
    "1e5",
    "2024-01-01 it was",
    "a \\ b \\n \\u0041",
    "e\u0301 \u00e9",
    " ",
]
TRAPS = " ,_'\"{}[]<>#:$%&\\|`*?aé日🫖\n\r\u2028\x85\x0b\x1c\u200b"
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=60),
        st.text(TRAPS, max_size=30),
        st.sampled_from(HARD),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=10)
@example(HARD)
@given(TEXTS)
def test_captions_survive_where_images_are_mixed(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out, photos = Path(folder) / "out", photo_folder(Path(folder) / "photos", ["sks (mine)"])
        options = {"subject": photos, "class_noun": "teapot", "family": "z-image", "check": True}
        options |= {"resolution": 64}
        done = export(theirs(texts), out, *MIXING, **options)
        assert not done.differs
        wanted = sorted(tidy(text) or "a photo of a teapot" for text in texts)
        for target in done.targets:
            seen = MIXING[target.name](out, target.command).values()
            assert sorted(caption or "" for caption, is_reg, _ in seen if is_reg) == wanted
            assert [caption for caption, is_reg, _ in seen if not is_reg] == ["sks (mine)"]


@pytest.mark.slow
@settings(max_examples=20)
@example(HARD)
@given(TEXTS)
def test_captions_survive(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out, photos = Path(folder) / "out", photo_folder(Path(folder) / "photos", ["sks"])
        options = {"subject": photos, "class_noun": "teapot", "family": "sd1", "check": True}
        done = export(theirs(texts), out, *RULES, "imagefolder", "webdataset", **options)
        assert not done.differs
        wanted = sorted(tidy(text) or "a photo of a teapot" for text in texts)
        for text in wanted:
            assert len(text.splitlines()) == 1
            assert not any(unicodedata.category(letter) == "Cc" for letter in text)
        for target in done.targets[:6]:
            seen = RULES[target.name](out, target.command).values()
            expected: list[str | None] = [*wanted]
            if target.name == "ai-toolkit":
                expected = sorted(without_spaces_after_commas(text) for text in wanted)
            if target.name == "diffusers-dreambooth":
                expected = [None] * len(wanted)
            assert sorted(caption or "" for caption, is_reg, _ in seen if is_reg) == [
                text or "" for text in expected
            ]
        rows = datasets.load_dataset(str(out), split="train", streaming=True)
        assert sorted(row["text"] for row in rows) == wanted
        rows = datasets.load_dataset(str(out / "shards"), split="train", streaming=True)
        pairs = [(row["txt"], row["json"]["text"]) for row in rows]
        assert sorted(text for text, _ in pairs) == wanted
        assert all(text == other for text, other in pairs)


def test_tidy_leaves_what_is_one_line() -> None:
    for text in ("a teapot", "{a|b}", "e\u0301", "a\u200db", "quote \" and '"):
        assert tidy(text) == text
