"""Draws: even, weighted, independent of one another, redrawn where they clash, never ending."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regforge.prompts.sampling import (
    Clashes,
    Design,
    SlotPlan,
    apportion,
    permutations,
    weighted_draws,
)

SEEDS = st.integers(0, 2**63 - 1)


def drawn(seed: int, plans: list[SlotPlan], rows: int) -> dict[str, np.ndarray]:
    return Design(seed, "amplify", plans).draws(0, rows)


@given(SEEDS, st.integers(1, 60), st.integers(1, 400))
def test_any_number_of_rows_uses_all_values_evenly(seed: int, size: int, rows: int) -> None:
    counts = np.bincount(drawn(seed, [SlotPlan("color", size)], rows)["color"], minlength=size)
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == rows


@given(SEEDS, st.integers(0, 5000), st.integers(1, 300))
def test_rows_are_the_same_wherever_one_starts(seed: int, start: int, rows: int) -> None:
    plans = [SlotPlan("a", 7), SlotPlan("b", 12, weights=tuple(range(1, 13)))]
    plans += [SlotPlan("c", 5, "cycle"), SlotPlan("d", 4, "grid"), SlotPlan("e", 3, "grid")]
    design = Design(seed, "amplify", plans)
    whole, part = design.draws(0, start + rows), design.draws(start, start + rows)
    for name, values in whole.items():
        assert np.array_equal(values[start:], part[name]), name


def test_every_order_of_a_block_is_as_likely_as_any_other() -> None:
    orders = Counter(map(tuple, permutations("key", 3, 0, 60_000).tolist()))
    assert len(orders) == 6
    # Binomial, 60,000 times 1/6: a standard deviation of 91.
    assert all(abs(count - 10_000) < 5 * 91 for count in orders.values())


def test_draws_never_change() -> None:
    """Datasets in the world depend on these numbers."""
    plans = [SlotPlan("color", 5), SlotPlan("style", 3, weights=(6.0, 3.0, 1.0))]
    rows = drawn(0, plans, 10)
    assert rows["color"].tolist() == [4, 1, 0, 2, 3, 0, 1, 2, 4, 3]
    assert rows["style"].tolist() == [0, 1, 0, 1, 0, 2, 0, 1, 0, 0]


@given(SEEDS, st.permutations(["color", "shape", "style", "background"]))
def test_reordering_and_adding_slots_leaves_others_alone(seed: int, names: list[str]) -> None:
    sizes = {"color": 5, "shape": 7, "style": 4, "background": 11}
    plans = [SlotPlan(name, sizes[name]) for name in names]
    reference = drawn(seed, [SlotPlan(name, size) for name, size in sizes.items()], 50)
    for subset in (plans, plans[:2], [*plans, SlotPlan("texture", 9)]):
        rows = drawn(seed, subset, 50)
        for plan in subset:
            if plan.name != "texture":
                assert np.array_equal(rows[plan.name], reference[plan.name])


def test_prompt_sets_and_seeds_have_draws_of_their_own() -> None:
    plans = [SlotPlan("color", 1000)]
    first = Design(0, "amplify", plans).draws(0, 1000)["color"]
    for other in (Design(0, "against", plans), Design(1, "amplify", plans)):
        assert (other.draws(0, 1000)["color"] == first).mean() < 0.02


def pair_variance(a: SlotPlan, b: SlotPlan, rows: int, seeds: int) -> float:
    """Variance of pair counts, relative to that of independent random draws."""
    chances = []
    for plan in (a, b):
        weights = np.asarray(plan.weights or [1.0] * plan.size)
        chances.append(weights / weights.sum())
    expected = np.outer(*chances)
    square = np.zeros_like(expected)
    for seed in range(seeds):
        values = drawn(seed, [a, b], rows)
        pairs = np.bincount(values[a.name] * b.size + values[b.name], minlength=expected.size)
        square += (pairs.reshape(expected.shape) - rows * expected) ** 2
    return float((square / seeds / (rows * expected * (1 - expected))).mean())


@pytest.mark.parametrize(
    ("a", "b", "rows"),
    [
        (SlotPlan("a", 5), SlotPlan("b", 5), 100),
        (SlotPlan("a", 2), SlotPlan("b", 2), 101),
        (SlotPlan("a", 7), SlotPlan("b", 11), 300),
        (SlotPlan("a", 40), SlotPlan("b", 40), 2000),
        (SlotPlan("a", 2, weights=(9, 1)), SlotPlan("b", 2, weights=(9, 1)), 1000),
        (SlotPlan("a", 3, weights=(5, 1, 1)), SlotPlan("b", 4), 500),
    ],
)
def test_pairs_are_as_even_as_in_independent_draws(a: SlotPlan, b: SlotPlan, rows: int) -> None:
    assert pair_variance(a, b, rows, seeds=150) < 1.02


@settings(max_examples=50)
@given(SEEDS, st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_weights_hold_in_every_number_of_rows(seed: int, weights: list[float]) -> None:
    rows = 1500
    values = weighted_draws(str(seed), weights, 0, rows)
    counts = np.cumsum(np.eye(len(weights))[values], axis=0)
    wanted = np.outer(np.arange(1, rows + 1), np.asarray(weights) / sum(weights))
    # Independent draws would be off by 20 (the standard deviation at the end) and more.
    assert np.abs(counts - wanted).max() < 12
    # After as many blocks as a block has rows, each end of a value's share is off by less than one.
    even = len(weights) ** 2 - 1
    assert np.abs(counts - wanted)[even].max() < 2


@given(SEEDS, st.integers(1, 20), st.integers(1, 200))
def test_equal_weights_are_as_even_as_none(seed: int, size: int, rows: int) -> None:
    counts = np.bincount(weighted_draws(str(seed), [0.3] * size, 0, rows), minlength=size)
    assert counts.max() - counts.min() <= 1


def test_cycle_and_grid_slots_go_through_all_in_order_however_many() -> None:
    assert drawn(3, [SlotPlan("a", 3, "cycle")], 7)["a"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    rows = drawn(3, [SlotPlan("a", 2, "grid"), SlotPlan("x", 5), SlotPlan("b", 3, "grid")], 12)
    pairs = list(zip(rows["a"].tolist(), rows["b"].tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] * 2
    rows = drawn(0, [SlotPlan(name, 1000, "grid") for name in "abcdefghij"], 1001)
    assert rows["j"].tolist() == [*range(1000), 0]
    assert rows["i"].tolist() == [0] * 1000 + [1]
    assert not rows["a"].any()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), SEEDS)
def test_every_combination_comes_once(sizes: list[int], seed: int) -> None:
    design = Design(
        seed, "amplify", [SlotPlan(name, n) for name, n in zip("abcd", sizes, strict=False)]
    )
    values, fits = design.every_combination(0, design.combinations)
    found = set(zip(*(column.tolist() for column in values.values()), strict=True))
    assert found == set(itertools.product(*map(range, sizes)))
    assert fits.all()


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, list[str]], set[tuple[str, str, str, str]]]:
    """Slots with phrases, and some pairs that do not go together."""
    names = ["background", "color", "motion", "shape"]
    slots = {name: [f"{name}{n}" for n in range(draw(st.integers(1, 6)))] for name in names}
    pairs = [
        (a, one, b, other)
        for a, b in itertools.combinations(names, 2)
        for one in slots[a]
        for other in slots[b]
    ]
    return slots, set(draw(st.lists(st.sampled_from(pairs), max_size=len(pairs) // 2)))


def fits(row: dict[str, str], clashes: set[tuple[str, str, str, str]]) -> bool:
    return not any(
        (a, row[a], b, row[b]) in clashes for a, b in itertools.combinations(sorted(row), 2)
    )


@given(worlds(), SEEDS, st.integers(1, 200))
def test_redrawing_leaves_no_clash_that_it_can_help_and_no_row_changed_that_had_none(
    world: tuple[dict[str, list[str]], set[tuple[str, str, str, str]]], seed: int, start: int
) -> None:
    slots, clashes = world
    plans = [SlotPlan(name, len(phrases)) for name, phrases in slots.items()]
    design = Design(seed, "amplify", plans, Clashes(slots, clashes))
    before, (after, usable) = design.draws(start, start + 100), design.rows(start, start + 100)
    possible = any(
        fits(dict(zip(slots, row, strict=True)), clashes)
        for row in itertools.product(*slots.values())
    )
    for n in range(100):
        drawn_row = {name: slots[name][before[name][n]] for name in slots}
        row = {name: slots[name][after[name][n]] for name in slots}
        assert usable[n] == fits(row, clashes)
        if fits(drawn_row, clashes):
            assert row == drawn_row
        changed = {name for name in slots if row[name] != drawn_row[name]}
        if len(clashes) == 1 and changed:
            ((a, _, b, _),) = clashes
            assert changed <= {a, b}
    if not possible:
        assert not usable.any()
    alone, _ = design.rows(start + 17, start + 18)
    assert all(alone[name][0] == after[name][17] for name in slots)


PLACES = {"background": ["kitchen", "pool"], "motion": ["sitting", "swimming"]}
WET = {("background", "kitchen", "motion", "swimming")}


def test_the_background_stays_where_another_slot_can_give_way() -> None:
    slots, clashes = PLACES, WET
    design = Design(0, "amplify", [SlotPlan(name, 2) for name in slots], Clashes(slots, clashes))
    before, (after, usable) = design.draws(0, 1000), design.rows(0, 1000)
    assert usable.all()
    assert np.array_equal(before["background"], after["background"])
    pairs = set(zip(after["background"].tolist(), after["motion"].tolist(), strict=True))
    assert pairs == {(0, 0), (1, 0), (1, 1)}
    # And it gives way where nothing else can.
    plans, clashes = [SlotPlan("background", 2), SlotPlan("motion", 1)], WET
    table = Clashes(PLACES | {"motion": ["swimming"]}, clashes)
    rows, usable = Design(0, "amplify", plans, table).rows(0, 100)
    assert usable.all()
    assert (rows["background"] == 1).all()


@pytest.mark.parametrize("mode", ["grid", "cycle"])
def test_grid_and_cycle_slots_are_never_drawn_again(mode: str) -> None:
    plans = [SlotPlan("background", 2, mode), SlotPlan("motion", 2, mode)]
    design = Design(0, "amplify", plans, Clashes(PLACES, WET))
    before, (after, usable) = design.draws(0, 8), design.rows(0, 8)
    assert all(np.array_equal(before[name], after[name]) for name in PLACES)
    pairs = zip(after["background"], after["motion"], strict=True)
    assert usable.tolist() == [(place, motion) != (0, 1) for place, motion in pairs]


def test_redrawn_values_follow_their_weights() -> None:
    slots = {"background": ["pool", "kitchen"], "motion": ["swimming", "sitting", "sleeping"]}
    plans = [SlotPlan("background", 2), SlotPlan("motion", 3, weights=(90.0, 9.0, 1.0))]
    rows, _ = Design(0, "amplify", plans, Clashes(slots, WET)).rows(0, 20_000)
    indoors = Counter(rows["motion"][rows["background"] == 1].tolist())
    assert indoors[0] == 0
    assert 8 < indoors[1] / indoors[2] < 10


def test_pairs_that_name_unknown_phrases_are_no_matter() -> None:
    table = Clashes({"color": ["red"]}, {("color", "blue", "style", "x"), ("a", "b", "c", "d")})
    assert not table.any({"color": np.zeros(3, dtype=np.int64)}, 3).any()


@pytest.mark.slow
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=4))
def test_any_number_of_rows_has_every_share_within_one_row(parts: list[int]) -> None:
    shares = {f"set{n}": float(part) for n, part in enumerate(parts)}
    given_rows = dict.fromkeys(shares, 0)
    for row, name in zip(range(1, 500), apportion(shares), strict=False):
        given_rows[name] += 1
        for other, part in zip(shares, parts, strict=True):
            assert abs(given_rows[other] - Fraction(part * row, sum(parts))) < 1


def test_a_share_of_nothing_gets_no_row() -> None:
    assert set(itertools.islice(apportion({"a": 0.0, "b": 1.0, "c": 0.5}), 100)) == {"b", "c"}
