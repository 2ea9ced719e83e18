"""Images that are there twice, by file, by pixels, by look."""

from itertools import combinations

import numpy as np
import pytest
from audit_samples import audit, checked, closed, example, expect, file_of, hash_of, make_image
from hypothesis import given
from hypothesis import strategies as st

from regforge.auditing.images import look_alikes

HASH = st.integers(0, 2**64 - 1)


def bits(*places: int) -> int:
    return sum(1 << place for place in places)


def brute_force(hashes: list[int], most: int) -> list[set[int]]:
    """Groups by comparing every pair."""
    groups = [{n} for n in range(len(hashes))]
    for a, b in combinations(range(len(hashes)), 2):
        if (hashes[a] ^ hashes[b]).bit_count() <= most:
            first = next(g for g in groups if a in g)
            second = next(g for g in groups if b in g)
            if first is not second:
                first |= second
                groups.remove(second)
    return sorted(groups, key=min)


@given(
    st.lists(HASH, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=9)), max_size=25),
)
def test_groups_as_of_comparing_all(seeds: list[int], changes: list[tuple[int, set[int]]]) -> None:
    hashes = seeds + [seeds[n % len(seeds)] ^ bits(*places) for n, places in changes]
    labels = look_alikes(np.array(hashes, np.uint64)).tolist()
    found = [{n for n, label in enumerate(labels) if label == wanted} for wanted in set(labels)]
    assert sorted(found, key=min) == brute_force(hashes, 4)


@pytest.mark.parametrize("places", [(0, 13, 26, 39), (12, 25, 38, 63), (60, 61, 62, 63)])
def test_four_bits_anywhere_are_found_and_five_are_not(places: tuple[int, ...]) -> None:
    hashes = [hash_of(n) for n in range(50)]
    hashes += [hashes[7] ^ bits(*places), hashes[9] ^ bits(*places, 50)]
    labels = look_alikes(np.array(hashes, np.uint64))
    assert labels[50] == labels[7]
    assert len(set(labels.tolist())) == 51


def test_ten_thousand_copies_of_a_few_images_are_a_few_groups() -> None:
    generator = np.random.default_rng(0)
    originals = generator.integers(0, 2**64, 5, dtype=np.uint64)
    flips = np.uint64(1) << generator.integers(0, 64, 10_000, dtype=np.uint64)
    labels = look_alikes(originals[np.arange(10_000) % 5] ^ flips)
    assert len(np.unique(labels)) == 5
    assert (labels == labels[np.arange(10_000) % 5]).all()


def test_the_same_file_or_the_same_pixels_are_exact_duplicates() -> None:
    rows = [example(n) for n in range(30)]
    check = checked(audit([*rows, example(30, image=rows[3].image)]), "exact duplicates")
    expect(check, "look", "1 of 31 images (3 %)", spare=1)
    assert check.examples == ["003.png 030.png"]
    other = example(3, image=file_of(make_image(0), "BMP"))
    check = checked(audit([*rows[:3], other]), "exact duplicates")
    expect(check, "bad")  # one of four
    assert check.examples == ["000.png 003.png"]


def test_a_brighter_copy_is_a_near_duplicate() -> None:
    brighter = make_image(2).point(lambda value: value * 0.95 + 12)
    found = audit([*(example(n) for n in range(40)), example(40, image=file_of(brighter))])
    expect(checked(found, "exact duplicates"), "good")
    near = checked(found, "near duplicates")
    expect(near, "look", groups=1, spare=1)
    assert near.examples == ["002.png 040.png"]


def test_stored_hashes_are_used_and_no_image_is_opened() -> None:
    rows = [closed(n) for n in range(20)]
    rows.append(closed(20, data={"perceptual_hash": f"{hash_of(5) ^ bits(1, 2):016x}"}))
    rows.append(closed(21, data={"image_digest": rows[6].metadata["image_digest"].upper()}))
    found = audit(rows)
    assert checked(found, "near duplicates").examples == ["005.png 020.png"]
    assert checked(found, "exact duplicates").examples == ["006.png 021.png"]
    expect(checked(found, "image files"), "unknown")
    expect(checked(audit(rows, thorough=True), "image files"), "bad", cannot_be_read=22)


@pytest.mark.parametrize("nonsense", ["not hex", "f" * 17, 12.5, None])
def test_a_stored_hash_that_is_none_is_left_out(nonsense: object) -> None:
    found = audit([closed(0), closed(1, data={"perceptual_hash": nonsense}), closed(2)])
    expect(checked(found, "near duplicates"), "good", compared=2)
