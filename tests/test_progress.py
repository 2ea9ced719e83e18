"""What people read of money."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.words import dollars


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
