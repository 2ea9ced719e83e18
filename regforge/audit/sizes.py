"""How large the images are, and what a trainer at some resolution would do with them."""

from __future__ import annotations

from collections import Counter
from math import sqrt

from regforge.audit.findings import MOST_EXAMPLES, Check, Grade, of, percent, ratio, worse
from regforge.audit.gathering import Gathered

SLACK = 0.95
"""Share of the trainer's pixels that an image needs: buckets round sizes to 64 pixels."""

MANY_SMALL = 0.5
WIDE = 2.0
"""Longer side over shorter side from which on most of a square crop is missing."""


def sizes(found: Gathered, resolution: int | None) -> Check:
    """Sizes against the resolution of training.

    An image is too small if it has fewer pixels than the square that the trainer trains at: kohya,
    SimpleTuner, ai-toolkit and OneTrainer choose a bucket of about as many pixels.

    Args:
        found: The dataset.
        resolution: Side of that square; None compares with nothing.
    """
    total = len(found.ids)
    known = [size for size in found.sizes if min(size) > 0]
    if not known:
        return Check("image sizes", "unknown", "No image's size is known.")
    counts = Counter(known)
    (width, height), most = counts.most_common(1)[0]
    wide = sum(n for (w, h), n in counts.items() if max(w, h) >= WIDE * min(w, h))
    odd = sum(n for (w, h), n in counts.items() if w % 8 or h % 8)
    off_bucket = sum(n for (w, h), n in counts.items() if w % 64 or h % 64)
    small = 0
    if resolution:
        least = SLACK * resolution**2
        small = sum(n for (w, h), n in counts.items() if w * h < least)
    numbers = {
        "sizes": {f"{w}x{h}": n for (w, h), n in counts.most_common(20)},
        "distinct_sizes": len(counts),
        "resolution": resolution,
        "too_small": small,
        "too_small_share": ratio(small, total),
        "wide": wide,
        "not_multiple_of_8": odd,
        "not_multiple_of_64": off_bucket,
        "unknown": total - len(known),
    }
    finding = f"{percent(most, total)} are {width} x {height}"
    if len(counts) == 1 and len(known) == total:
        finding = f"All are {width} x {height}"
    elif len(counts) > 1:
        finding += f", {len(counts) - 1:,} other size{'s' * (len(counts) > 2)}"
    grades: list[Grade] = ["good"]
    advice = []
    if small:
        grades.append("bad" if small > MANY_SMALL * total else "look")
        finding += f"; {of(small, total)} have fewer pixels than {resolution} x {resolution}"
        advice.append(
            f"Train at {_fitting(counts, total)} or draw them larger: upscaled images teach blur."
        )
    if wide:
        grades.append("look")
        finding += f"; {of(wide, total)} are twice as long as wide"
        advice.append("Turn bucketing on, or a square crop cuts most of the long ones off.")
    if odd:
        grades.append("look")
        finding += f"; {of(odd, total)} have sides that are no multiple of 8"
        advice.append("Autoencoders need multiples of 8; the trainer will crop or resize.")
    if len(counts) > 1 and not wide:
        advice.append("Turn bucketing on: batches need images of one size.")
        grades.append("look")
    shown = [f"{w} x {h}: {n:,}" for (w, h), n in counts.most_common(MOST_EXAMPLES)]
    return Check(
        "image sizes",
        worse(*grades),
        finding + ".",
        " ".join(advice),
        numbers,
        shown if len(counts) > 1 else [],
    )


def _fitting(counts: Counter[tuple[int, int]], total: int) -> int:
    """A multiple of 64, or of 8 below 512, at which most images need no upscaling."""
    seen = 0
    side = 64.0
    for (width, height), count in sorted(counts.items(), key=lambda item: -item[0][0] * item[0][1]):
        side = sqrt(width * height / SLACK)
        seen += count
        if seen > MANY_SMALL * total:
            break
    step = 64 if side >= 512 else 8
    return max(step, int(side) // step * step)
