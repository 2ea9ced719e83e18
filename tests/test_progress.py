"""What people read of work and money."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.journal import Reporter
from regforge.words import dollars


def test_loading_is_no_part_of_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("regforge.journal.time.monotonic", lambda: now)
    with Reporter(stream=io.StringIO()).task("images", 8) as task:
        now = 30.0
        task.restart()
        now = 32.0
        task.advance()
        assert task.describe() == "images: 1 of 8 items"  # the first of a batch
        task.advance(3)
        task.restart()  # once something was done, time goes on
        assert task.describe() == "images: 4 of 8 items, 2.0/s, 2 s left"


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (None, "unknown"),
        (0.0, "$0.00"),
        (4.5e-05, "$0.000045"),
        (1e-9, "$0.000000001"),
        (0.0312, "$0.031"),
        (0.05, "$0.05"),
        (0.0999, "$0.10"),
        (0.1, "$0.10"),
        (12.3, "$12.30"),
        (1234.5, "$1,234.50"),
    ],
)
def test_money_is_written_in_one_way(amount: float | None, words: str) -> None:
    assert dollars(amount) == words


@given(st.floats(1e-12, 1e6))
def test_money_has_no_exponent_and_is_nearly_right(amount: float) -> None:
    text = dollars(amount)
    assert set(text) <= set("$0123456789.,")
    assert float(text[1:].replace(",", "")) == pytest.approx(amount, rel=0.051)
