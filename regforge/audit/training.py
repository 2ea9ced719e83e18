"""What a dataset means for training: sizes, how its images were made, its licence, repeats.

Rules of thumb, with their reasons: He et al. (arXiv 2311.04315) take one photo and one
regularization image a step, with full weight, and about 2,000 images; DreamBooth (arXiv 2208.12242)
about 1,000, also with weight 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import ceil, sqrt

from regforge.audit.gathering import (
    MOST_EXAMPLES,
    PROVENANCE,
    Check,
    Gathered,
    Grade,
    of,
    percent,
    ratio,
)
from regforge.words import counted

SLACK = 0.95
"""Share of the trainer's pixels that an image needs: buckets round sizes to 64 pixels."""

MANY_SMALL = 0.5
WIDE = 2.0
"""Longer side over shorter side from which on most of a square crop is missing."""

NO_LICENSE = frozenset(("", "unknown", "other", "unlicensed"))
"""What a card says that grants nothing by itself."""

PHOTOS = 5
"""Photos of a subject, where their number is not known; the paper's subjects have 4 to 6."""

USUAL_SIZE = 2000
SMALL_SET = 200
"""Images below which a usual training shows each of them several times."""

_WORDS = {"model_revision": "model revision", "scheduler": "sampler", "guidance_scale": "guidance"}


def sizes(found: Gathered, resolution: int | None) -> Check:
    """Sizes against the resolution of training.

    An image is too small if it has fewer pixels than the square that the trainer trains at: kohya,
    SimpleTuner, ai-toolkit and OneTrainer choose a bucket of about as many pixels. Without a
    resolution, the side of that square, nothing is compared with it.
    """
    total = len(found.ids)
    counts = Counter(size for size in found.sizes if min(size) > 0)
    if not counts:
        return Check("image sizes", "unknown", "No image's size is known.")
    (width, height), most = counts.most_common(1)[0]
    least = SLACK * (resolution or 0) ** 2
    small = sum(n for (w, h), n in counts.items() if w * h < least)
    wide = sum(n for (w, h), n in counts.items() if max(w, h) >= WIDE * min(w, h))
    odd = sum(n for (w, h), n in counts.items() if w % 8 or h % 8)
    numbers = {
        "sizes": {f"{w}x{h}": n for (w, h), n in counts.most_common(20)},
        "distinct_sizes": len(counts),
        "resolution": resolution,
        "too_small": small,
        "too_small_share": ratio(small, total),
        "wide": wide,
        "not_multiple_of_8": odd,
        "not_multiple_of_64": sum(n for (w, h), n in counts.items() if w % 64 or h % 64),
        "unknown": total - counts.total(),
    }
    finding = f"{'All' if most == total else percent(most, total)} are {width} x {height}"
    finding += f", {counted(len(counts) - 1, 'other size')}" if len(counts) > 1 else ""
    findings, advice = [finding], []
    if small:
        findings.append(f"{of(small, total)} have fewer pixels than {resolution} x {resolution}")
        side = _fitting(counts, total)
        advice.append(f"Train at {side} or draw them larger: upscaled images teach blur.")
    if wide:
        findings.append(f"{of(wide, total)} are twice as long as wide")
        advice.append("Turn bucketing on, or a square crop cuts most of the long ones off.")
    if odd:
        findings.append(f"{of(odd, total)} have sides that are no multiple of 8")
        advice.append("Autoencoders need multiples of 8; the trainer will crop or resize.")
    if len(counts) > 1 and not wide:
        advice.append("Turn bucketing on: batches need images of one size.")
    grade: Grade = "bad" if small > MANY_SMALL * total else "look" if advice else "good"
    shown = [f"{w} x {h}: {n:,}" for (w, h), n in counts.most_common(MOST_EXAMPLES)]
    finding, several = "; ".join(findings) + ".", shown if len(counts) > 1 else []
    return Check("image sizes", grade, finding, " ".join(advice), numbers, several)


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


def metadata(found: Gathered) -> Check:
    """Which of seed, model, revision, sampler, steps and guidance are known."""
    total = len(found.ids)
    models = list(dict.fromkeys(model for (model, _), _ in found.models.most_common()))
    without = {name: ratio(found.missing[name], total) for name in PROVENANCE}
    numbers = {"without": without, "models": models[:10]}
    incomplete = [name for name in PROVENANCE if found.missing[name]]
    shares = [f"{_WORDS.get(n, n)} {percent(found.missing[n], total)}" for n in incomplete]
    finding = f"Unknown: {', '.join(shares)} of the images" if shares else "All of it is known"
    finding += f"; drawn by {models[0]}" if models else ""
    finding += f" and {len(models) - 1:,} more models" if len(models) > 1 else ""
    advice = ""
    if all(share == 1 for share in without.values()):
        finding = "No image says how it was made"
        advice = "Regularization images should come from the very model that is trained; ask "
        advice += "whoever made these."
    elif "seed" in incomplete or "model" in incomplete:
        advice = "Images without seed and model cannot be made again."
    elif shares:
        advice = "What is unknown cannot be repeated exactly."
    elif len(models) > 1:
        advice = "Train with the images of the model that is trained."
    return Check("metadata", "look" if advice else "good", finding + ".", advice, numbers)


def licence(name: str | None) -> Check:
    """Whether the card of a dataset names a licence."""
    numbers = {"license": name}
    if name and name.strip().lower() not in NO_LICENSE:
        return Check("licence", "good", f"{name}.", numbers=numbers)
    finding = f"Its card says {name!r}." if name else "None is named."
    advice = "Without a licence nobody may pass the images on; it usually follows the model that "
    advice += "drew them (dataset.license in a recipe)."
    return Check("licence", "look", finding, advice, numbers)


def suggestions(images: int, photos: int, checks: Mapping[str, Check]) -> Check:
    """Repeats, prior weight and steps for a number of photos.

    The weight is 1, the paper's. It is halved where captions are missing or say little (the images
    then hold on to little but the class's average look), and halved where many images are copies
    (which would be learned by heart). `checks` are what was found so far, by name.
    """

    def bad(*names: str) -> bool:
        return any(name in checks and checks[name].grade == "bad" for name in names)

    repeats = max(1, ceil(images / photos))  # as the exporters write them
    reasons = ["captions that say little"] * bad("caption variety", "captions", "word coverage")
    reasons += ["many copies"] * bad("exact duplicates", "near duplicates")
    weight = 0.5 ** len(reasons)
    numbers = {
        "photos": photos,
        "images": images,
        "repeats": repeats,
        "prior_weight": weight,
        "steps_to_see_all": images,
        "set_size": max(USUAL_SIZE, images),
    }
    why = f", not 1 because of {' and '.join(reasons)}" if reasons else ""
    use = "uses" if repeats == 1 else "use"
    few, times = images < SMALL_SET, USUAL_SIZE / max(1, images)
    advice = f"Few images: 2,000 steps show each {times:.0f} times. About {USUAL_SIZE:,} is usual."
    finding = (
        f"With {counted(photos, 'photo')}: {counted(repeats, 'repeat')} a photo {use} all "
        f"{images:,} images; prior weight {weight:g}{why}; {images:,} steps of one photo and one "
        "image see all of them."
    )
    return Check("size and repeats", "look" if few else "good", finding, advice * few, numbers)
