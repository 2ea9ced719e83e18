"""Images that are there more than once, files that are no use, sizes, provenance, and repeats.

Two perceptual hashes that differ in at most 4 bits agree in one of five parts of the 64 bits, so
only images that share a part are compared (pigeonhole). 100,000 hashes of different images take a
second, and memory does not depend on how many copies there are.

What follows for training are rules of thumb: He et al. (arXiv 2311.04315) take one photo and one
regularization image a step, with full weight, and about 2,000 images; DreamBooth (arXiv 2208.12242)
about 1,000, also with weight 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from regforge.auditing.gathering import (
    CANNOT_BE_READ,
    LOW_JPEG_QUALITY,
    MOST_EXAMPLES,
    PROVENANCE,
    STALE_DIGEST,
    TOO_LARGE,
    Check,
    Gathered,
    Grade,
    graded,
    of,
    percent,
    ratio,
)
from regforge.image_files import ANIMATED, DEEP, TRANSPARENT, TURNED
from regforge.words import counted

NEAR = 4
"""Bits, of 64, in which the hashes of near duplicates differ at most; `curate` has the same."""

MANY_COPIES = 0.05
"""Share of images that are spare copies, from which training sees a smaller set than it seems."""

MANY_NEAR = 0.10

_PARTS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))  # (first bit, bits)
_BLOCK = 2048  # hashes compared with a bucket at a time: 2048 x 2048 bytes
_WAITING = 500_000  # pairs gathered before they are put into groups


def exact_duplicates(found: Gathered) -> Check:
    """Images whose files, or decoded pixels, are equal."""
    name, total = "exact duplicates", len(found.ids)
    known = [number for number, file in enumerate(found.files) if file.digest]
    if not known:
        return Check(name, "unknown", "The files were not read.", numbers={"compared": 0})
    files = [found.files[n] for n in known]
    groups = _equal([file.digest for file in files], [file.pixels for file in files])
    spare = len(known) - int(np.unique(groups).size)
    numbers = {"compared": len(known), "spare": spare, "share": ratio(spare, total)}
    finding = f"{of(spare, total)} are copies of another one."
    if not spare:
        what = "file or pixels" if any(file.pixels for file in files) else "file"
        finding = f"No two of {len(known):,} images have the same {what}."
    advice = "Keep one of each: a copy only counts its original twice." * bool(spare)
    shown = _together(groups, [found.ids[n] for n in known])
    return Check(name, graded(spare, total, MANY_COPIES), finding, advice, numbers, shown)


def near_duplicates(found: Gathered) -> Check:
    """Images whose perceptual hashes differ in at most `NEAR` bits."""
    name, total = "near duplicates", len(found.ids)
    known = [number for number, file in enumerate(found.files) if file.hash is not None]
    if not known:
        finding = "No perceptual hashes are known."
        return Check(name, "unknown", finding, numbers={"compared": 0})
    groups = look_alikes(np.array([found.files[n].hash for n in known], np.uint64), NEAR)
    sizes = np.unique(groups, return_counts=True)[1]
    clusters = sizes[sizes > 1]
    spare = int(clusters.sum() - len(clusters))
    numbers = {
        "compared": len(known),
        "groups": len(clusters),
        "largest_group": int(clusters.max(initial=0)),
        "spare": spare,
        "share": ratio(spare, total),
        "max_distance": NEAR,
    }
    if not spare:
        finding = f"No two of {len(known):,} images look alike (pHash, {NEAR} of 64 bits)."
        return Check(name, "good", finding, numbers=numbers)
    return Check(
        name,
        graded(spare, total, MANY_NEAR),
        f"{of(spare, total)} look like another one: {counted(len(clusters), 'group')}, the largest "
        f"of {clusters.max():,}.",
        "Keep one of each group, or draw the others again with other captions or seeds "
        "(curate.max_duplicate_distance: 4 does so while rendering).",
        numbers,
        _together(groups, [found.ids[n] for n in known]),
    )


def look_alikes(hashes: NDArray[np.uint64], most: int = NEAR) -> NDArray[np.int64]:
    """The number of the group of each 64-bit hash, (n,): those alike share one.

    Two hashes are alike if they differ in at most `most` bits (at most 4), or by way of others.
    """
    assert most < len(_PARTS)
    # Equal hashes first: a set of one image 100,000 times has one hash to compare.
    distinct, place = np.unique(hashes, return_inverse=True)
    labels = np.arange(len(distinct))
    waiting: list[NDArray[np.int64]] = []
    size = 0
    for pairs in _close_pairs(distinct, most):
        waiting.append(pairs)
        size += len(pairs)
        if size > _WAITING:
            labels, waiting, size = _joined(labels, np.concatenate(waiting)), [], 0
    if waiting:
        labels = _joined(labels, np.concatenate(waiting))
    return labels[place]


def _close_pairs(hashes: NDArray[np.uint64], most: int) -> Iterator[NDArray[np.int64]]:
    """Pairs of positions (k, 2) of hashes that share a part and differ in few bits."""
    for first_bit, bits in _PARTS:
        part = (hashes >> np.uint64(first_bit)) & np.uint64(2**bits - 1)
        order = np.argsort(part, kind="stable")
        ends = np.flatnonzero(np.diff(part[order], append=np.uint64(2**bits))) + 1
        starts = np.concatenate([[0], ends[:-1]])
        for start, end in zip(starts, ends, strict=True):
            bucket = order[start:end]
            for low in range(0, len(bucket) if len(bucket) > 1 else 0, _BLOCK):
                block = bucket[low : low + _BLOCK]
                for high in range(low, len(bucket), _BLOCK):
                    other = bucket[high : high + _BLOCK]
                    bits_apart = np.bitwise_count(hashes[block][:, None] ^ hashes[other])
                    rows, columns = np.nonzero(bits_apart <= most)
                    pairs = np.stack([block[rows], other[columns]], axis=1)
                    yield pairs[pairs[:, 0] != pairs[:, 1]]
        if len(starts) == 1:
            return  # all share this part, so that every pair has been compared


def _joined(labels: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels after the groups of every pair have become one; each group has its least label."""
    first, second = pairs[:, 0], pairs[:, 1]
    while True:
        least = np.minimum(labels[first], labels[second])
        if (labels[first] == least).all() and (labels[second] == least).all():
            return labels
        np.minimum.at(labels, labels[first], least)
        np.minimum.at(labels, labels[second], least)
        while not np.array_equal(labels[labels], labels):
            labels = labels[labels]


def _equal(*keys: Sequence[str]) -> NDArray[np.int64]:
    """Groups of positions that have an equal, non-empty key of one sort or another."""
    labels = np.arange(len(keys[0]))
    for column in keys:
        first: dict[str, int] = {}
        pairs = [(first.setdefault(key, n), n) for n, key in enumerate(column) if key]
        if pairs:
            labels = _joined(labels, np.array(pairs, np.int64))
    return labels


def _together(groups: NDArray[np.int64], ids: Sequence[str]) -> list[str]:
    """The first groups of more than one, as `id id`."""
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    several = [start for start, size in zip(starts, sizes, strict=True) if size > 1]
    return [f"{ids[order[n]]} {ids[order[n + 1]]}" for n in several[:MOST_EXAMPLES]]


# ------------------------------------------------------------------------------------------- files

SOME = 0.01
"""Share of useless images above which they harm."""

_USELESS = (CANNOT_BE_READ, TOO_LARGE, "black", "a single colour")

_ADVICE: Mapping[str, str] = {
    CANNOT_BE_READ: "remove or repair them; ai-toolkit skips such files, others stop",
    TOO_LARGE: "shrink them: Pillow refuses so many pixels",
    "black": "remove them; renderers put black where a safety checker objects",
    "a single colour": "remove them",
    TURNED: "save them upright; not every trainer turns them",
    LOW_JPEG_QUALITY: "their 8 x 8 blocks are learned too",
    TRANSPARENT: "put them on a background; trainers show what lies below, often black",
    ANIMATED: "only the first frame is used",
    DEEP: "save them with 8 bits a channel; many trainers cut what is more to white",
    STALE_DIGEST: "their stored digest is another one: somebody saved them again",
}


def file_problems(found: Gathered, *, curated: bool | None, left_out: Sequence[str]) -> Check:
    """Files that cannot be read, show nothing, are turned, transparent or of poor quality.

    `curated` is whether the run that made them refused what shows nothing (None: not known),
    `left_out` what the reader of the dataset could not read, a sentence each.
    """
    name, total = "image files", len(found.ids)
    if not found.opened:
        unopened = {"opened": 0}
        if curated:
            finding = "Not opened again: those that cannot be read or show nothing were refused."
            return Check(name, "good", finding, numbers=unopened)
        finding = "Not opened: the dataset stores their hashes."
        advice = "Open them: regforge audit ... --thorough"
        return Check(name, "unknown", finding, advice, unopened)
    numbers: dict[str, float] = {"opened": total}
    numbers |= {trouble.lower().replace(" ", "_"): found.troubles[trouble] for trouble in _ADVICE}
    if not found.troubles:
        finding = " ".join([f"All {total:,} can be read.", *left_out])
        advice = "Trainers may stop at what was left out: remove or repair it." * bool(left_out)
        return Check(name, "look" if left_out else "good", finding, advice, numbers)
    useless = sum(found.troubles[trouble] for trouble in _USELESS)
    numbers["useless_share"] = ratio(useless, total)
    seen = [trouble for trouble in _ADVICE if found.troubles[trouble]]
    parts = [f"{trouble}: {of(found.troubles[trouble], total)}" for trouble in seen]
    examples = [id_ for trouble in seen for id_ in found.trouble_ids[trouble][:2]]
    return Check(
        name,
        "bad" if useless > SOME * total else "look",
        " ".join([f"{'; '.join(parts)}.", *left_out]),
        "; ".join(f"{trouble}: {_ADVICE[trouble]}" for trouble in seen) + ".",
        numbers,
        list(dict.fromkeys(examples))[:5],
    )


# --------------------------------------------------------------------------- what training asks for


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
