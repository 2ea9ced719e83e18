"""Every beginning of an export is balanced."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.exporting.scanning import Traits, balanced_order

Row = dict[str, Hashable]


def traits(rows: Sequence[Row]) -> Traits:
    found = Traits()
    for row in rows:
        found.add(row)
    return found


def worst(values: Sequence[Hashable]) -> float:
    """How far the count of any value in any beginning is from its share."""
    totals, seen, most = Counter(values), Counter(), 0.0
    for length, value in enumerate(values, 1):
        seen[value] += 1
        most = max(
            most,
            *(abs(seen[each] - length * n / len(values)) for each, n in totals.items()),
        )
    return most


def slotted(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [
        {
            "prompt_set": rng.choices(["against", "amplify", "naive"], [2, 7, 1])[0],
            **{f"slot {name}": int(rng.random() ** 1.5 * 12) for name in "abcd"},
            "text": f"caption {number // 2}",
        }
        for number in range(count)
    ]


@given(st.lists(st.sampled_from(["against", "amplify", "naive", None]), min_size=1, max_size=200))
def test_the_shares_of_prompt_sets_hold_in_every_beginning(sets: list[str | None]) -> None:
    order = balanced_order(traits([{"prompt_set": each} for each in sets]), "prompt_set")
    assert sorted(order) == list(range(len(sets)))
    assert worst([sets[index] for index in order]) <= (1 + len(set(sets))) / 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_slots_are_far_better_balanced_than_in_a_shuffled_order(seed: int) -> None:
    rows = slotted(600, seed)
    order = balanced_order(traits(rows), "prompt_set")
    shuffled = random.Random(seed).sample(range(600), 600)
    for name in ("slot a", "slot b", "slot c", "slot d"):
        ours = worst([rows[index][name] for index in order])
        assert ours <= 4, name
        assert ours < worst([rows[index][name] for index in shuffled]) / 1.5, name
    assert worst([rows[index]["prompt_set"] for index in order]) <= 2


def test_images_of_one_caption_are_apart() -> None:
    rows: list[Row] = [{"text": number // 4} for number in range(80)]
    order = balanced_order(traits(rows), "prompt_set")
    first = [rows[index]["text"] for index in order[:20]]
    assert len(set(first)) == 20


def test_without_anything_to_go_by_it_is_a_fixed_shuffle() -> None:
    order = balanced_order(traits([{} for _ in range(50)]), "prompt_set")
    assert sorted(order) == list(range(50)) != order
    assert order == balanced_order(traits([{} for _ in range(50)]), "prompt_set")


def test_a_trait_that_comes_late_counts_as_missing_before() -> None:
    rows: list[Row] = [{"prompt_set": "a"}] * 10 + [{"prompt_set": "a", "slot x": 1}] * 10
    order = balanced_order(traits(rows), "prompt_set")
    assert worst([index >= 10 for index in order]) <= 1
