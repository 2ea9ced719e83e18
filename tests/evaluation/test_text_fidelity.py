"""Writing that is read before and after: drawn here with a font, and on the shipped subjects."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from regforge.evaluation import references
from regforge.evaluation.references import INSTALL, SubjectText, folded, similarity


def sign(text: str, size: tuple[int, int] = (120, 80), *, paper: str = "white") -> Image.Image:
    image = Image.new("RGB", size, paper)
    font = ImageFont.load_default(size=size[1] / 4)
    ImageDraw.Draw(image).text((size[0] / 12, size[1] / 3), text, fill="black", font=font)
    return image


@pytest.fixture(scope="module")
def market() -> SubjectText:
    """Two photos agree on one word, and on nothing else."""
    return SubjectText([sign("MARKET"), sign("Market", paper="beige"), sign("SUMMER")])


@pytest.mark.slow
def test_the_lexicon_is_what_photos_agree_on(market: SubjectText) -> None:
    assert (market.lexicon, market.notes) == (("market",), [])


@pytest.mark.slow
def test_damaged_writing_scores_lower(market: SubjectText) -> None:
    large = sign("MARKET", (400, 250)).convert("L")  # any size and mode
    signs = [sign("MARKET"), large, sign("MARXIT"), sign("GOOD"), sign("")]
    scores = market.scores(signs)
    assert None not in scores
    whole, also, damaged, other, none = (score or 0.0 for score in scores)
    assert (whole, also, none) == (1, 1, 0)
    assert other < 0.4
    assert 0.5 <= damaged < 0.9


def test_the_score_weighs_by_length_and_there_is_none_without_writing() -> None:
    signs = SubjectText([])
    signs.lexicon = ("ab", "abcdef")
    assert signs.score_of(["abcdef"]) == pytest.approx((2 * 2 / 6 + 6) / 8)
    assert signs.score_of(["ab", "abcxxx"]) == pytest.approx((2 * 1 + 6 * 0.5) / 8)
    assert signs.score_of([]) == 0.0
    plain = SubjectText([Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")])
    assert plain.lexicon == ()
    assert plain.scores([sign("MARKET")]) == [None]


@pytest.mark.parametrize("lacks", ["rapidocr", "models"])
def test_without_a_reader_the_note_says_why_and_nothing_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacks: str
) -> None:
    import rapidocr

    references._reader.cache_clear()
    if lacks == "rapidocr":
        monkeypatch.setitem(sys.modules, "rapidocr", None)
    else:
        monkeypatch.setattr(rapidocr, "__file__", str(tmp_path / "__init__.py"))
    try:
        left_out = SubjectText([sign("MARKET"), sign("MARKET")])
    finally:
        references._reader.cache_clear()
    (note,) = left_out.notes
    assert note == INSTALL if lacks == "rapidocr" else "no models inside" in note
    assert left_out.lexicon == ()
    assert left_out.scores([sign("MARKET")] * 2) == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subject", "text"), [("backpack", "rf"), ("robot", "k7"), ("cat", "mo"), ("sneaker", None)]
)
def test_the_letters_on_shipped_subjects_are_read(repo: Path, subject: str, text: str) -> None:
    files = sorted((repo / "examples" / "subjects" / subject).glob("*.png"))
    found = SubjectText(Image.open(file) for file in files)
    assert found.lexicon == ((text,) if text else ())


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_similarity_is_symmetric_and_bounded(first: str, second: str) -> None:
    assert 0 <= similarity(first, second) == similarity(second, first) <= 1
    assert (similarity(first, second) == 1) == (first == second)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("kitten", "sitting", 1 - 3 / 7), ("rf", "re", 0.5), ("ab", "", 0), ("abc", "xabc", 0.75)],
)
def test_similarity_by_hand(first: str, second: str, expected: float) -> None:
    assert similarity(first, second) == pytest.approx(expected)


def test_only_letters_and_digits_are_compared() -> None:
    assert folded("Get  Well!") == folded("GETWELL") == "getwell"
    assert folded("６.5 %") == "65"
