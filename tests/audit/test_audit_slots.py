"""Evenness of slots, and slots that always come together."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from audit_samples import audit, checked, closed, expect, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from regforge.auditing import Check
from regforge.auditing.captions import entropy


def check_of(name: str, run: Path | None = None, **columns: list[str | None]) -> Check:
    lines = zip(*columns.values(), strict=True)
    rows = [
        closed(n, f"owl {n}", slots=dict(zip(columns, line, strict=True)))
        for n, line in enumerate(lines)
    ]
    return checked(audit(rows, dataset={"slots": columns, "run": run}), name)


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["red", "blue", "green", None]), min_size=1, max_size=40))
def test_evenness_is_entropy_over_its_largest(values: list[str | None]) -> None:
    values = [*values, "red"]
    facts = check_of("slot coverage", color=values).numbers["slots"]["color"]
    counts = Counter(value for value in values if value)
    assert facts["distinct"] == len(counts)
    assert facts["without"] == values.count(None)
    if len(counts) == 1:
        assert facts["evenness"] is None
    else:
        p = [n / counts.total() for n in counts.values()]
        j = -sum(x * math.log(x) for x in p) / math.log(min(len(counts), counts.total()))
        assert facts["evenness"] == pytest.approx(j, abs=1e-3)
        assert 0 <= facts["evenness"] <= 1


def test_entropy_of_nothing_and_of_one_is_zero() -> None:
    assert entropy([]) == 0
    assert entropy([7]) == 0
    assert entropy([1, 1]) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("counts", "grade"), [((50, 50), "good"), ((90, 10), "look"), ((99, 1), "bad")]
)
def test_uneven_slots_are_graded(counts: tuple[int, int], grade: str) -> None:
    values: list[str | None] = ["red"] * counts[0] + ["blue"] * counts[1]
    assert check_of("slot coverage", color=values).grade == grade


def test_phrases_on_offer_that_nobody_uses(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "{}", {"color": ["red", "blue", "green", "white"]})
    check = check_of("slot coverage", run, color=["red", "blue"] * 10)
    facts = check.numbers["slots"]["color"]
    assert (facts["offered"], facts["unused"], facts["evenness"]) == (4, 2, 0.5)
    expect(check, "look", "2 phrases on offer")
    # Two images cannot use four.
    expect(check_of("slot coverage", run, color=["red", "blue"]), "good")


def test_one_phrase_on_purpose_is_fine_and_an_empty_slot_is_not() -> None:
    expect(check_of("slot coverage", style=["a photo of"] * 9), "good")
    left_out = check_of("slot coverage", style=["a photo of", None, None], color=["r", "g", "b"])
    expect(left_out, "look", "67 % without")


def test_slots_that_always_come_together() -> None:
    colors: list[str | None] = ["red", "blue", "green", "white"] * 25
    places: list[str | None] = [{"red": "sea", "blue": "lake"}.get(c or "", "cave") for c in colors]
    free: list[str | None] = [("day", "night", "dusk", "noon", "fog")[n % 5] for n in range(100)]
    check = check_of("slot pairs", color=colors, place=places, light=free)
    expect(check, "look", "color and place (1.00 of 1)")
    dependence = {"color, place": 1, "color, light": 0, "place, light": 0}
    assert check.numbers["dependence"] == dependence
    again = check_of("slot pairs", color=colors, place=places, light=free)
    assert again == check  # though columns are shuffled for it


def test_what_small_sets_share_by_chance_is_no_dependence() -> None:
    """Where every image has a place of its own, the place tells everything, by chance.

    Of 60 images and 8 x 8 phrases, free columns share a fifth of their entropy.
    """
    colors: list[str | None] = ["red", "blue"] * 20
    expect(check_of("slot pairs", color=colors, place=[f"place {n}" for n in range(40)]), "unknown")
    generator = np.random.default_rng(7)
    columns = {
        name: [f"{name} {n}" for n in generator.integers(0, 8, 60)] for name in ("color", "place")
    }
    assert check_of("slot pairs", **columns).numbers["dependence"]["color, place"] < 0.1
