"""Scores by hand, and what must hold of them for any images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from regforge.evaluation import measures

X, Y = np.float32([1, 0]), np.float32([0, 1])
BETWEEN = np.float32([0.6, 0.8])  # 0.6 of X, 0.8 of Y


def units(rows: int) -> st.SearchStrategy[np.ndarray]:
    numbers = st.floats(-1, 1, width=32).filter(lambda number: abs(number) > 1e-3)
    return arrays.arrays(np.float32, (rows, 3), elements=numbers).map(
        lambda found: (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    )


# ------------------------------------------------------------------------------------- by hand


def test_identity_is_the_mean_cosine_with_all_references() -> None:
    found = measures.identity(np.stack([X, BETWEEN, -X]), np.stack([X, Y]))
    assert found == pytest.approx([0.5, 0.7, -0.5])
    assert measures.preservation(np.stack([BETWEEN]), np.stack([X])) == pytest.approx([0.6])


def test_the_mean_of_identity_is_that_of_the_whole_matrix() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = rows[:6] @ rows[6:].T
    assert measures.identity(rows[:6], rows[6:]).mean() == pytest.approx(whole.mean(), abs=1e-6)


def test_ceiling_leaves_each_photo_out_of_its_own_comparison() -> None:
    assert measures.ceiling(np.stack([X, Y, BETWEEN])) == pytest.approx([0.3, 0.4, 0.7])
    assert measures.ceiling(np.stack([X, X])) == pytest.approx([1, 1])
    assert measures.ceiling(np.stack([X])).size == 0


def test_alignment_is_a_plain_cosine() -> None:
    found = measures.alignment(np.stack([X, X, BETWEEN]), np.stack([X, -X, Y]))
    assert found == pytest.approx([1, -1, 0.8])  # neither 2.5 times that, nor cut off at zero


def test_matched_says_whether_the_own_prompt_is_nearest() -> None:
    captions = np.stack([X, Y, BETWEEN])
    assert measures.matched(np.stack([X, X, BETWEEN]), captions, [0, 1, 2]) == pytest.approx(
        [1, 0, 1]
    )


def test_an_encoder_that_sees_no_difference_matches_by_chance() -> None:
    same = np.stack([X] * 4)
    assert measures.matched(same, same, [0, 1, 2, 3]) == pytest.approx([0.25] * 4)


def test_diversity_is_the_distance_of_pairs_of_one_prompt() -> None:
    groups = ["a", "b", "a", "b", "a", "c"]
    pairs = measures.pairs_within(groups)
    assert pairs == [(0, 2), (0, 4), (2, 4), (1, 3)]
    images = np.stack([X, Y, Y, Y, BETWEEN, X])
    assert measures.diversity(images, pairs) == pytest.approx([1, 0.4, 0.2, 0])
    assert measures.diversity(images, []).size == 0


def test_nothing_to_compare_with_is_refused() -> None:
    none = np.zeros((0, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="nothing to compare"):
        measures.identity(np.stack([X]), none)
    with pytest.raises(ValueError, match="2 captions"):
        measures.alignment(np.stack([X]), np.stack([X, Y]))
    assert measures.identity(none, np.stack([X])).size == 0


# --------------------------------------------------------------------------------- for any images


@settings(max_examples=30)
@given(units(5), units(3), st.permutations(range(5)), st.permutations(range(3)))
def test_scores_do_not_depend_on_the_order(
    images: np.ndarray, references: np.ndarray, order: list[int], other: list[int]
) -> None:
    found = measures.identity(images, references)
    assert measures.identity(images[order], references[other]) == pytest.approx(found[order])
    own = [place % 3 for place in range(5)]
    matched = measures.matched(images, references, own)
    moved = [other.index(own[place]) for place in order]
    assert measures.matched(images[order], references[other], moved) == pytest.approx(
        matched[order]
    )
    ceiling = measures.ceiling(references)
    assert measures.ceiling(references[other]) == pytest.approx(ceiling[other])
    pairs = measures.pairs_within(own)
    backwards = [(second, first) for first, second in pairs]
    assert measures.diversity(images, pairs) == pytest.approx(measures.diversity(images, backwards))


@settings(max_examples=30)
@given(units(4), units(4))
def test_scores_stay_within_their_bounds(images: np.ndarray, captions: np.ndarray) -> None:
    cosines = [
        measures.identity(images, captions),
        measures.alignment(images, captions),
        measures.alignment(images, images),
        measures.ceiling(captions),
    ]
    assert all((np.abs(found) <= 1).all() and found.shape == (4,) for found in cosines)
    shares = measures.matched(images, captions, range(4))
    assert ((shares >= 0) & (shares <= 1)).all()
    assert measures.matched(captions, captions, range(4)).min() > 0  # each is nearest to itself
    distances = measures.diversity(images, measures.pairs_within([0, 0, 1, 1]))
    assert ((distances >= 0) & (distances <= 2)).all()


# --------------------------------------------------------------------------------- near duplicates


def test_near_duplicates_are_found(repo: Path) -> None:
    folder = repo / "examples" / "subjects" / "cat"
    photos = [Image.open(folder / f"{number:02d}.png").convert("RGB") for number in range(4)]
    assert measures.near_duplicates(photos) == []
    larger = photos[1].resize((200, 200), Image.Resampling.BICUBIC)
    found = measures.near_duplicates([*photos, larger, ImageOps.mirror(photos[2]), photos[1]])
    assert found == [
        measures.NearDuplicate(1, 4, mirrored=False),
        measures.NearDuplicate(2, 5, mirrored=True),
        measures.NearDuplicate(1, 6, mirrored=False),
    ]


def test_shipped_subjects_have_no_near_duplicates(repo: Path) -> None:
    for folder in (repo / "examples" / "subjects").iterdir():
        photos = [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))]
        assert measures.near_duplicates(photos) == [], folder.name
