"""Whether the subject itself is among the regularization images, by name or by look.

The images stand for everything of the class that is *not* the subject. If captions say the
identifier, or images show the subject, training is told that the subject is ordinary.

Knows images of the embedded pipeline by their content, with the embedded judge. For photos no
encoder travels with regforge; of those it knows copies only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from regforge.auditing.gathering import (
    MOST_EXAMPLES,
    Check,
    Gathered,
    Grade,
    ImageFacts,
    inspect_image,
    of,
    ratio,
    shortened,
    upright,
)
from regforge.auditing.images import NEAR
from regforge.embedded import EMBEDDED_JUDGE
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import MOST_IMAGE
from regforge.images.curation import perceptual_hash_of
from regforge.recipe.named_files import content_of, photos_in
from regforge.records import Example
from regforge.words import counted

USUAL = ("sks", "ohwx", "zwx", "zqk", "<new1>", "[v]")
"""Identifiers that guides and trainers' examples use."""

SIMILAR = 10
"""Bits up to which an image is worth a look: two unrelated ones differ in about 32."""

LIKELY = 0.75
SURE = 0.85
"""Cosine of the embedded judge: two of its ten subjects are never above 0.76, images of one
and the same are 0.72 to 0.99, and above 0.83 on average."""


class NoPhotos(RegforgeError):
    """A folder that should hold photos of the subject, and does not."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Photo:
    """A photo of the subject.

    Attributes:
        name: Its file name, without spaces.
        file: What is known about its file.
        hashes: 64-bit pHashes: as stored, as a viewer turns it, and mirrored.
        image: RGB, as a viewer turns it.
    """

    name: str
    file: ImageFacts
    hashes: tuple[int, ...]
    image: Image.Image


def photos_of(folder: Path) -> list[Photo]:
    """Read the photos of the subject; those that cannot be read are left out.

    Raises:
        NoPhotos: There are none.
    """
    try:
        files = photos_in(folder)
    except OSError as error:
        raise NoPhotos(f"{folder} cannot be read: {error.strerror}.") from error
    photos = []
    for path in files:
        with suppress(OSError):
            content = content_of(path, folder, MOST_IMAGE)
            facts, image = inspect_image(content), upright(content)
            if facts.hash is not None and image is not None:
                views = (image, ImageOps.mirror(image))
                hashes = (facts.hash, *(int(perceptual_hash_of(view), 16) for view in views))
                photos.append(Photo("_".join(path.name.split()), facts, hashes, image))
    if not photos:
        raise NoPhotos(
            f"{folder} has no photos of the subject that can be read.",
            hint="--subject is a folder with JPEG, PNG or WebP files.",
        )
    return photos


def identifier(found: Gathered, token: str | None) -> Check:
    """Captions that say the identifier (or else a usual one), as a whole word in any case."""
    words = "|".join(re.escape(each) for each in ((token,) if token else USUAL))
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    leaks = {text: match for text in found.captions if (match := pattern.search(text))}
    count, total = sum(found.captions[text] for text in leaks), found.captions.total()
    numbers = {"identifier": token, "captions": count, "share": ratio(count, total)}
    grade: Grade = "good"
    finding, advice = f"No caption says {token!r}.", ""
    if leaks:
        grade = "bad"
        finding = f"{of(count, total, 'captions')} say {next(iter(leaks.values())).group()!r}."
        advice = "Leave it out of regularization captions: with it, they teach that any of the "
        advice += "class is the subject."
    elif token is None:
        grade = "unknown"
        finding = f"No caption says {', '.join(USUAL[:3])} or the like; yours was not named."
        advice = "Name it: regforge audit ... --identifier sks"
    shown = [shortened(text) for text in list(leaks)[:MOST_EXAMPLES]]
    return Check("identifier", grade, finding, advice, numbers, shown)


def subject_copies(found: Gathered, photos: Sequence[Photo] | None) -> Check:
    """Images that are copies of a photo of the subject, or look much like one."""
    name, total = "subject copies", len(found.ids)
    if photos is None:
        advice = "Name their folder: regforge audit ... --subject photos/"
        return Check(name, "unknown", "No photos of the subject were named.", advice)
    digests = {photo.file.digest for photo in photos}
    pixels = {photo.file.pixels for photo in photos}
    distances, nearest = _nearest(found, photos)
    same = [n for n, f in enumerate(found.files) if f.digest in digests or f.pixels in pixels]
    distances[same] = 0
    copies = int((distances <= NEAR).sum())
    similar = int((distances <= SIMILAR).sum()) - copies
    closest = [
        (found.ids[n], photos[nearest[n]].name, int(distances[n]))
        for n in np.argsort(distances, kind="stable")[:MOST_EXAMPLES]
        if distances[n] <= 64
    ]
    numbers = {
        "photos": len(photos),
        "same_file_or_pixels": len(same),
        "copies": copies,
        "similar": similar,
        "nearest": [dict(zip(("id", "photo", "distance"), row, strict=True)) for row in closest],
    }
    shown = [f"{id_} {photo} ({bits} bits)" for id_, photo, bits in closest if bits <= SIMILAR]
    grade: Grade = "unknown"
    finding, advice = "The images have no hashes.", ""
    photo_count = counted(len(photos), "photo")
    if copies:
        grade = "bad"
        finding = f"{of(copies, total)} are copies of a photo of the subject, or nearly so."
        advice = "Remove them: they are the subject, and stand for what it is not."
    elif similar:
        grade = "look"
        bits = f"{NEAR + 1} to {SIMILAR} of 64 bits"
        finding = f"{of(similar, total)} look much like one of {photo_count} (pHash, {bits})."
        advice = "Look at them; remove those that show the subject."
    elif closest:
        grade = "good"
        bits = f"{closest[0][2]} of 64 bits"
        finding = f"No image is like any of {photo_count}; the nearest differs in {bits}."
    return Check(name, grade, finding, advice, numbers, shown)


def _nearest(
    found: Gathered, photos: Sequence[Photo]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bits (n,) to the nearest photo, 255 where not known, and which photo it is (n,)."""
    known = np.array([file.hash is not None for file in found.files], bool)
    hashes = np.array([file.hash or 0 for file in found.files], np.uint64)
    distances = np.full((len(photos), len(hashes)), 255, np.int64)
    for row, photo in enumerate(photos):
        bits = [np.bitwise_count(hashes ^ np.uint64(each)) for each in photo.hashes]
        distances[row, known] = np.min(bits, axis=0)[known]
    return distances.min(axis=0), distances.argmin(axis=0)


class Likeness:
    """Compares images of the embedded pipeline with the subject, by the embedded judge."""

    def __init__(self, photos: Sequence[Photo]) -> None:
        from regforge.embedded import load_identity

        self._model, self._processor = load_identity()
        self._subject = self._embedded([photo.image for photo in photos])
        self._names = [photo.name for photo in photos]
        self._compared: list[tuple[str, str, float]] = []  # (image, nearest photo, cosine)

    def see(self, examples: Sequence[Example]) -> None:
        """Compare some images; those that cannot be read are passed over."""
        decoded = [(example.id, upright(example.image)) for example in examples]
        if images := [image for _, image in decoded if image is not None]:
            ids = [name for name, image in decoded if image is not None]
            similarity = self._embedded(images) @ self._subject.T
            photos = [self._names[n] for n in similarity.argmax(axis=1)]
            self._compared += zip(ids, photos, similarity.max(axis=1).tolist(), strict=True)

    def check(self) -> Check:
        """What came of it."""
        name = "subject likeness"
        ranked = sorted(self._compared, key=lambda row: -row[2])
        sure = sum(cosine >= SURE for _, _, cosine in ranked)
        likely = sum(cosine >= LIKELY for _, _, cosine in ranked)
        numbers = {
            "encoder": EMBEDDED_JUDGE,
            "compared": len(ranked),
            "shows_subject": sure,
            "may_show_subject": likely,
            "nearest": [
                {"id": image, "photo": photo, "cosine": round(cosine, 3)}
                for image, photo, cosine in ranked[:MOST_EXAMPLES]
            ],
        }
        if not ranked:
            return Check(name, "unknown", "No image could be read.", numbers=numbers)
        finding = "No image shows the subject"
        if likely:
            finding = f"{of(likely, len(ranked))} show the subject, or may"
        finding += f" (the likest has a cosine of {ranked[0][2]:.2f}, embedded judge)."
        advice = "Remove those that show the subject: they stand for what it is not." * bool(likely)
        grade: Grade = "bad" if sure else "look" if likely else "good"
        few = ranked[: min(likely, MOST_EXAMPLES)]
        shown = [f"{image} {photo} ({cosine:.2f})" for image, photo, cosine in few]
        return Check(name, grade, finding, advice, numbers, shown)

    def _embedded(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Unit vectors, float32 (n, 256)."""
        import torch

        model: Any = self._model
        inputs = self._processor(list(images), return_tensors="pt")
        with torch.inference_mode():
            pooled = model(**inputs).pooler_output.flatten(1)
            vectors: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return vectors


NO_ENCODER = Check(
    "subject likeness",
    "unknown",
    "Whether an image shows the subject from another side was not measured: no encoder for photos "
    "travels with regforge.",
    "Look at the images whose captions say most about the subject.",
)
