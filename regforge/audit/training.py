"""How to train with the dataset: repeats, weight, steps. Rules of thumb, with their reasons.

He et al. (arXiv 2311.04315) take one photo and one regularization image a step, with full weight,
and about 2,000 images; DreamBooth (arXiv 2208.12242) about 1,000, also with weight 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from regforge.audit.findings import Check, Grade

PHOTOS = 5
"""Photos of a subject, where nobody says how many there are; the paper's subjects have 4 to 6."""

USUAL_SIZE = 2000
SMALL_SET = 200
"""Images below which a usual training shows each of them several times."""

LESS = 0.5
"""Factor by which each of two faults lowers the weight."""


def suggestions(images: int, photos: int, checks: Mapping[str, Check]) -> Check:
    """Repeats, prior weight and steps for a number of photos.

    The weight is 1, the paper's. It is halved where captions are missing or say little (the images
    then hold on to little but the class's average look), and halved where many images are copies
    (which would be learned by heart).

    Args:
        images: Regularization images.
        photos: Photos of the subject.
        checks: What was found so far, by name.
    """
    repeats = max(1, ceil(images / photos))  # as the exporters write them
    weight, reasons = 1.0, []
    if _is_bad(checks, "caption variety", "captions", "word coverage"):
        weight *= LESS
        reasons.append("captions that say little")
    if _is_bad(checks, "exact duplicates", "near duplicates"):
        weight *= LESS
        reasons.append("many copies")
    small = images < SMALL_SET
    numbers = {
        "photos": photos,
        "images": images,
        "repeats": repeats,
        "prior_weight": weight,
        "steps_to_see_all": images,
        "set_size": max(USUAL_SIZE, images),
    }
    why = f", not 1 because of {' and '.join(reasons)}" if reasons else ""
    subject = "1 photo" if photos == 1 else f"{photos:,} photos"
    often = "1 repeat a photo uses" if repeats == 1 else f"{repeats:,} repeats a photo use"
    finding = (
        f"With {subject}: {often} all {images:,} images; prior weight {weight:g}{why}; "
        f"{images:,} steps of one photo and one image see all of them."
    )
    grade: Grade = "look" if small else "good"
    advice = (
        f"Few images: 2,000 steps show each {USUAL_SIZE / max(1, images):.0f} times. About "
        f"{USUAL_SIZE:,} is usual."
        if small
        else ""
    )
    return Check("size and repeats", grade, finding, advice, numbers)


def _is_bad(checks: Mapping[str, Check], *names: str) -> bool:
    return any(name in checks and checks[name].grade == "bad" for name in names)
