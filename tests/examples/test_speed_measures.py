"""What examples/tinyworld/speed.py computes of images."""

import math

import numpy as np
import pytest

pytest.importorskip("cv2", reason="drawing the world needs the extra 'tinyworld'")

from speed import diversity, frechet, paired


def test_a_paired_difference_leaves_out_what_a_caption_does_not_name() -> None:
    now, before = np.array([1, 1, 0, math.nan]), np.array([1, 0, 0, math.nan])
    mean, error = paired(now, before)
    assert mean == pytest.approx(100 / 3)
    assert error == pytest.approx(100 / 3)


def test_the_frechet_distance_is_that_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 3))
    assert frechet(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet(features, features + np.array([0, 3, 4])) == pytest.approx(25)
    # of N(0, C) and N(0, 4 C): tr(C + 4 C - 2 * 2 C)
    centered = features - features.mean(0)
    spread = float(np.trace(np.cov(centered, rowvar=False)))
    assert frechet(centered, 2 * centered) == pytest.approx(spread)


def test_diversity_is_the_mean_cosine_distance_within_a_caption() -> None:
    same, apart = np.tile(np.eye(1, 4), (3, 1)), np.eye(3, 4)
    assert diversity(same[None]) == pytest.approx(0)
    assert diversity(apart[None]) == pytest.approx(1)
    assert diversity(np.stack([same, apart])) == pytest.approx(0.5)
