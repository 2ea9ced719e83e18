"""How sure a mean is: what intervals promise, and that they keep it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regforge.evaluation.metrics import Interval, difference, interval, is_clear

TRIALS = 200
quick = settings(max_examples=30)
finite = st.floats(-1e3, 1e3, allow_nan=False)


@st.composite
def clustered(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    values = draw(st.lists(finite, min_size=1, max_size=30))
    clusters = draw(st.lists(st.integers(0, 5), min_size=len(values), max_size=len(values)))
    return values, clusters


def test_prompts_with_like_images_are_not_as_many_as_their_images() -> None:
    random = np.random.default_rng(5)
    prompts = np.repeat(np.arange(20), 4)
    held = {"by prompt": 0, "by image": 0}
    for _ in range(TRIALS):
        values = random.normal(size=20)[prompts] + 0.4 * random.normal(size=80)
        by_prompt = interval(values, prompts.tolist(), resamples=500)
        by_image = interval(values, range(80), resamples=500)
        held["by prompt"] += by_prompt.low <= 0 <= by_prompt.high
        held["by image"] += by_image.low <= 0 <= by_image.high
    assert 0.90 * TRIALS <= held["by prompt"] <= 0.99 * TRIALS, held
    assert held["by image"] < 0.85 * TRIALS, "or the clusters would not matter"


@pytest.mark.parametrize(("subjects", "seeds"), [(4, 3), (3, 4)])
def test_few_subjects_have_wide_intervals_that_hold_the_truth(subjects: int, seeds: int) -> None:
    random = np.random.default_rng(11)
    nested = [(f"subject {i}", f"seed {j}") for i in range(subjects) for j in range(seeds)]
    held = 0
    for _ in range(TRIALS):
        values = np.repeat(random.normal(size=subjects), seeds) + random.normal(size=len(nested))
        found = interval(values, nested, resamples=500)
        held += found.low <= 0 <= found.high
    assert 0.90 * TRIALS <= held <= 0.99 * TRIALS, held


@pytest.mark.parametrize(
    ("units", "widening"),  # t(0.975, units - 1) / 1.95996 * sqrt(units / (units - 1)), t of tables
    [(3, 4.3027 / 1.95996 * math.sqrt(3 / 2)), (25, 2.0639 / 1.95996 * math.sqrt(25 / 24))],
)
def test_percentiles_are_widened_as_few_clusters_need(units: int, widening: float) -> None:
    values = np.random.default_rng(0).normal(size=units)
    draws = np.random.default_rng(1).integers(units, size=(100_000, units))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    found = interval(values, range(units), resamples=50_000)
    assert found.high - found.low == pytest.approx((high - low) * widening, rel=0.02)


def test_equal_values_are_exact_one_has_no_width_and_a_difference_is_second_minus_first() -> None:
    assert interval([0.1] * 7, list("aabbbcc")) == Interval(0.1, 0.1, 0.1, 7)
    assert difference([0.1, 0.2], [0.1, 0.2], "ab") == Interval(0.0, 0.0, 0.0, 2)
    found = interval([0.5], ["a"])
    assert (found.low, found.high, found.count) == (0.5, 0.5, 1)
    assert not is_clear(found)
    assert difference([1.0, 2.0, 3.0], [2.0, 3.5, 4.0], "abc").mean == pytest.approx(3.5 / 3)


@pytest.mark.parametrize(
    ("low", "high", "clear"),
    [(0.01, 0.2, True), (-0.2, -0.01, True), (-0.01, 0.2, False), (0.0, 0.2, False)],
)
def test_a_difference_is_clear_if_none_of_it_is_zero(low: float, high: float, clear: bool) -> None:
    assert is_clear(Interval(0.1, low, high, 9)) is clear


@quick
@given(clustered(), st.floats(-100, 100), st.floats(0.1, 10))
def test_the_mean_lies_within_and_all_ends_move_with_the_values(
    drawn: tuple[list[float], list[int]], shift: float, factor: float
) -> None:
    values, clusters = drawn
    found = interval(values, clusters, resamples=200)
    assert found == interval(values, clusters, resamples=200)
    assert found.low <= found.mean <= found.high
    assert found.mean == pytest.approx(float(np.mean(values)), abs=1e-9)
    assert found.count == len(values)
    other = interval([factor * value + shift for value in values], clusters, resamples=200)
    for end in ("mean", "low", "high"):
        assert getattr(other, end) == pytest.approx(factor * getattr(found, end) + shift, abs=1e-6)


@quick
@given(st.integers(0, 10_000))
def test_pairs_are_surer_than_two_means_apart(seed: int) -> None:
    random = np.random.default_rng(seed)
    prompts = [number // 4 for number in range(80)]
    shared = random.normal(size=80)
    first = shared + 0.2 * random.normal(size=80)
    second = shared + 0.2 * random.normal(size=80) + 0.1
    paired = difference(first, second, prompts, resamples=300)
    apart = [interval(each, prompts, resamples=300) for each in (first, second)]
    unpaired = math.hypot(*(each.high - each.low for each in apart))
    assert paired.high - paired.low < unpaired
    assert paired.mean == pytest.approx(float((second - first).mean()))


def test_the_outermost_level_that_has_several_units_is_resampled_or_the_values_themselves() -> None:
    values = np.random.default_rng(3).normal(size=12)
    seeds = [number // 3 for number in range(12)]
    of_one_subject = interval(values, [("teapot", seed) for seed in seeds])
    assert of_one_subject == interval(values, seeds)
    of_two = interval(values, [("teapot" if seed < 2 else "cat", seed) for seed in seeds])
    assert of_two == interval(values, [seed // 2 for seed in seeds])
    values = np.random.default_rng(4).normal(size=12)
    assert interval(values, ["only"] * 12) == interval(values, range(12))
    assert interval(values, ["only"] * 12).low < interval(values, ["only"] * 12).mean


@pytest.mark.parametrize(
    ("values", "clusters"),
    [([], []), ([1.0], []), ([1.0, math.nan], "ab"), ([1.0, 2.0], ["a", ("a", "b")])],
)
def test_what_has_no_interval_is_refused(values: list[float], clusters: list[str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        interval(values, clusters)
    with pytest.raises(ValueError, match="paired"):
        difference([1.0], [1.0, 2.0], "a")
