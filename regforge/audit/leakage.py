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

from regforge.audit.captions import counted
from regforge.audit.findings import MOST_EXAMPLES, Check, Grade, of, ratio, shortened
from regforge.audit.gathering import Gathered
from regforge.audit.images import Look, look_at, upright
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import MOST_IMAGE
from regforge.images.curation import perceptual_hash_of
from regforge.recipe.named_files import content_of, photos_in

USUAL = ("sks", "ohwx", "zwx", "zqk", "<new1>", "[v]")
"""Identifiers that guides and trainers' examples use."""

COPY = 4
"""Bits in which the hash of a copy of a photo differs at most; `copies.NEAR` is the same."""

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
        look: What one look at it found.
        hashes: 64-bit pHashes: as stored, as a viewer turns it, and mirrored.
        image: RGB, as a viewer turns it.
    """

    name: str
    look: Look
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
            photo = _photo(path.name, content_of(path, folder, MOST_IMAGE))
            photos += [] if photo is None else [photo]
    if not photos:
        raise NoPhotos(
            f"{folder} has no photos of the subject that can be read.",
            hint="--subject is a folder with JPEG, PNG or WebP files.",
        )
    return photos


def _photo(name: str, content: bytes) -> Photo | None:
    look, image = look_at(content), upright(content)
    if look.hash is None or image is None:
        return None
    views = (image, ImageOps.mirror(image))
    hashes = (look.hash, *(int(perceptual_hash_of(view), 16) for view in views))
    return Photo("_".join(name.split()), look, hashes, image)


def identifier(found: Gathered, token: str | None) -> Check:
    """Captions that say the identifier, as a whole word in any case.

    Args:
        found: The dataset.
        token: The identifier; None looks for the usual ones.
    """
    counts = counted(found)
    tokens = (token,) if token else USUAL
    pattern = re.compile(
        rf"(?<!\w)(?:{'|'.join(re.escape(each) for each in tokens)})(?!\w)", re.IGNORECASE
    )
    said = {text: count for text, count in counts.items() if pattern.search(text)}
    count = sum(said.values())
    numbers = {"identifier": token, "captions": count, "share": ratio(count, counts.total())}
    if said:
        heard = pattern.search(next(iter(said)))
        assert heard is not None
        return Check(
            "identifier",
            "bad",
            f"{of(count, counts.total(), 'captions')} say {heard.group()!r}.",
            "Leave it out of regularization captions: with it, they teach that any of the class "
            "is the subject.",
            numbers,
            [shortened(text) for text in list(said)[:MOST_EXAMPLES]],
        )
    if token is None:
        return Check(
            "identifier",
            "unknown",
            f"No caption says {', '.join(USUAL[:3])} or the like; yours was not named.",
            "Name it: regforge audit ... --identifier sks",
            numbers,
        )
    return Check("identifier", "good", f"No caption says {token!r}.", numbers=numbers)


def copies(found: Gathered, photos: Sequence[Photo] | None) -> Check:
    """Images that are copies of a photo of the subject, or look much like one.

    Args:
        found: The dataset.
        photos: The subject's; None if no folder was named.
    """
    if photos is None:
        return Check(
            "subject copies",
            "unknown",
            "No photos of the subject were named.",
            "Name their folder: regforge audit ... --subject photos/",
        )
    files = {photo.look.digest: photo.name for photo in photos}
    pixels = {photo.look.pixels: photo.name for photo in photos}
    distances, nearest = _nearest(found, photos)
    same = [
        number
        for number in range(len(found.ids))
        if found.digests[number] in files or found.pixels[number] in pixels
    ]
    distances[same] = 0
    like = np.flatnonzero(distances <= COPY)
    similar = np.flatnonzero((distances > COPY) & (distances <= SIMILAR))
    closest = np.argsort(distances, kind="stable")[:MOST_EXAMPLES]
    numbers = {
        "photos": len(photos),
        "same_file_or_pixels": len(same),
        "copies": len(like),
        "similar": len(similar),
        "nearest": [
            {
                "id": found.ids[n],
                "photo": photos[nearest[n]].name,
                "distance": int(distances[n]),
            }
            for n in closest
            if distances[n] <= 64
        ],
    }
    total = len(found.ids)
    shown = [
        f"{found.ids[n]} {photos[nearest[n]].name} ({distances[n]} bits)"
        for n in closest
        if distances[n] <= SIMILAR
    ]
    many = f"{len(photos)} photo{'s' * (len(photos) != 1)}"
    if len(like):
        return Check(
            "subject copies",
            "bad",
            f"{of(len(like), total)} are copies of a photo of the subject, or nearly so.",
            "Remove them: they are the subject, and stand for what it is not.",
            numbers,
            shown,
        )
    if len(similar):
        return Check(
            "subject copies",
            "look",
            f"{of(len(similar), total)} look much like one of {many} (pHash, {COPY + 1} to "
            f"{SIMILAR} of 64 bits).",
            "Look at them; remove those that show the subject.",
            numbers,
            shown,
        )
    if not (distances <= 64).any():
        return Check("subject copies", "unknown", "The images have no hashes.", numbers=numbers)
    finding = (
        f"No image is like any of {many}; the nearest differs in {distances.min()} of 64 bits."
    )
    return Check("subject copies", "good", finding, numbers=numbers)


def _nearest(
    found: Gathered, photos: Sequence[Photo]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bits (n,) to the nearest photo, 255 where not known, and which photo it is (n,)."""
    known = np.array([each is not None for each in found.hashes], bool)
    hashes = np.array([each or 0 for each in found.hashes], np.uint64)
    distances = np.full((len(photos), len(hashes)), 255, np.int64)
    for row, photo in enumerate(photos):
        bits = [np.bitwise_count(hashes ^ np.uint64(each)) for each in photo.hashes]
        distances[row, known] = np.min(bits, axis=0)[known]
    return distances.min(axis=0), distances.argmin(axis=0)


class Likeness:
    """Compares images of the embedded pipeline with the subject, by the embedded judge.

    Args:
        photos: The subject's.
    """

    def __init__(self, photos: Sequence[Photo]) -> None:
        from regforge.embedded import load_identity

        self._model, self._processor = load_identity()
        self._subject = self._embedded([photo.image for photo in photos])
        self._names = [photo.name for photo in photos]
        self._ids: list[str] = []
        self._values: list[float] = []
        self._which: list[int] = []

    def see(self, ids: Sequence[str], images: Sequence[bytes]) -> None:
        """Compare some images."""
        decoded_images = [(name, upright(image)) for name, image in zip(ids, images, strict=True)]
        read = [(name, decoded) for name, decoded in decoded_images if decoded is not None]
        if not read:
            return
        similarity = self._embedded([decoded for _, decoded in read]) @ self._subject.T
        self._ids += [name for name, _ in read]
        self._values += similarity.max(axis=1).tolist()
        self._which += similarity.argmax(axis=1).tolist()

    def check(self) -> Check:
        """What came of it."""
        values = np.array(self._values)
        order = np.argsort(-values, kind="stable")[:MOST_EXAMPLES]
        sure, likely = int((values >= SURE).sum()), int((values >= LIKELY).sum())
        numbers = {
            "encoder": "embedded/judge",
            "compared": len(values),
            "shows_subject": sure,
            "may_show_subject": likely,
            "nearest": [
                {
                    "id": self._ids[n],
                    "photo": self._names[self._which[n]],
                    "cosine": round(self._values[n], 3),
                }
                for n in order
            ],
        }
        if not len(values):
            return Check("subject likeness", "unknown", "No image could be read.", numbers=numbers)
        most = f"the likest has a cosine of {values.max():.2f}"
        if not likely:
            finding = f"No image shows the subject ({most}, embedded judge)."
            return Check("subject likeness", "good", finding, numbers=numbers)
        grade: Grade = "bad" if sure else "look"
        return Check(
            "subject likeness",
            grade,
            f"{of(likely, len(values))} show the subject, or may ({most}, embedded judge).",
            "Remove those that show the subject: they stand for what it is not.",
            numbers,
            [
                f"{self._ids[n]} {self._names[self._which[n]]} ({self._values[n]:.2f})"
                for n in order
                if self._values[n] >= LIKELY
            ],
        )

    def _embedded(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Unit vectors, float32 (n, 256)."""
        import torch

        model: Any = self._model
        inputs = self._processor(list(images), return_tensors="pt")
        with torch.inference_mode():
            pooled = model(**inputs).pooler_output.flatten(1)
            vectors: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return vectors


def no_encoder() -> Check:
    """Said of photos, whose contents nothing here can compare."""
    return Check(
        "subject likeness",
        "unknown",
        "Whether an image shows the subject from another side was not measured: no encoder for "
        "photos travels with regforge.",
        "Look at the images whose captions say most about the subject.",
    )
