"""How many regularization pictures an epoch should see.

He et al. (arXiv 2311.04315) train with batches of one photo and one regularization image, whatever
the size of either set.
"""

from __future__ import annotations

from math import ceil


def repeats_to_use_all(photos: int, pictures: int) -> int:
    """How often each photo must come so that one-to-one training uses every picture.

    Args:
        photos: Of the subject, at least 1.
        pictures: Regularization pictures.

    Returns:
        At least 1: the smallest number with photos * number >= pictures.
    """
    return max(1, ceil(pictures / photos))
