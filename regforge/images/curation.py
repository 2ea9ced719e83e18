"""Which images are good enough to keep: constant, flagged, duplicate and off-caption ones are not.

Looks at pixels, hashes and one score; knows nothing about how an image was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageStat

from regforge.embedded import EMBEDDED_JUDGE
from regforge.errors import RegforgeError
from regforge.files import expanded
from regforge.image_files import BrokenImage, decode
from regforge.recipe.models import Curate
from regforge.records import SCORES, ImageRow
from regforge.words import first_line, missing_package

if TYPE_CHECKING:
    import torch

_DIGITS = 4
_MOST_TOKENS = 512
BLACK_LEVEL = 10
"""An image is black if 99.9 % of the values of each channel are at most this, of 255."""

CONSTANT_SPREAD = 2.0
"""An image is of a single colour if no channel's standard deviation exceeds this, of 255.

A black dot on white that covers 0.01 % of the image has a deviation of 2.5, one of 1 % has 25.
"""

_BLACK_SHARE = 0.999
_FORMATS = ("WEBP", "PNG", "JPEG")  # the fewer decoders see what comes from elsewhere, the better
NOT_FINITE = "its numbers overflowed (NaN)"
BLANK = (NOT_FINITE, "black", "a single colour")
"""Reasons of images that show nothing."""

_UNREADABLE = "not a readable image"


@dataclass(frozen=True)
class Verdict:
    """The findings about an image.

    Attributes:
        perceptual_hash: 64-bit pHash, 16 hex digits; empty if the image cannot be read.
        scores: `alignment`, cosine similarity -1 to 1; `duplicate_distance`, bits in which the
            hash differs from the nearest one accepted before, 0 to 64. None where not measured.
        reasons: Why it was refused, in plain words; empty if it was accepted.
        pixel_digest: SHA-256 of the decoded pixels; empty where `max_duplicate_distance` finds
            equal pixels anyway.
    """

    perceptual_hash: str
    image_digest: str
    scores: Mapping[str, float | None]
    reasons: tuple[str, ...]
    pixel_digest: str = ""


class Curator:
    """Judges images one after the other, and remembers those that were accepted.

    Whether one is a duplicate depends on what was accepted before, so images must be judged in an
    order that does not depend on speed: by index, and second attempts after the first ones of their
    shard.

    Raises:
        AlignmentModelError: The model that measures the alignment cannot be loaded.
    """

    def __init__(self, curate: Curate, *, scorer: AlignmentScorer | None = None) -> None:
        if curate.alignment is not None and scorer is None:
            scorer = AlignmentScorer(curate.alignment.model)
        self._curate = curate
        self._scorer = scorer
        self._accepted = _Accepted()
        # Equal pixels have equal hashes, so the pixels themselves matter only where hashes are not
        # compared. (Equal files are rare: each says inside what it was made from.) To decode
        # 100,000 large images when a run goes on would take an hour.
        self._compares_pixels = curate.max_duplicate_distance is None

    def admit_known(self, rows: Iterable[ImageRow]) -> None:
        """Remember images that an earlier session accepted, so that copies of them are seen.

        Their bytes may be left out (empty) unless `max_duplicate_distance` is null.
        """
        for row in rows:
            image = _decoded(row.image) if self._compares_pixels else None
            digests = (row.image_digest, pixel_digest_of(image) if image else "")
            self._accepted.add(row.id, row.perceptual_hash, digests)

    def judge(
        self,
        image: bytes,
        *,
        id: str,  # noqa: A002
        caption: str,
        nsfw: bool = False,
        not_finite: bool = False,
    ) -> Verdict:
        """Judge an image against those accepted so far; remembers nothing.

        An image is no duplicate of itself, by its `id`; one with numbers that overflowed is refused
        whatever the settings are.
        """
        image_digest = hashlib.sha256(image).hexdigest()
        decoded = _decoded(image)
        if decoded is None:
            return Verdict("", image_digest, dict.fromkeys(SCORES), (_UNREADABLE,))
        perceptual_hash = perceptual_hash_of(decoded)
        pixel_digest = pixel_digest_of(decoded) if self._compares_pixels else ""
        original = self._accepted.copy_of((image_digest, pixel_digest), besides=id)
        nearest, distance = self._accepted.nearest(perceptual_hash, besides=id)
        alignment = None
        if self._scorer is not None:
            alignment = self._scorer.scores([decoded], [caption])[0]
        reasons = [
            NOT_FINITE if not_finite else self._constant(decoded),
            "flagged by the safety checker" if nsfw and self._curate.nsfw else None,
            f"same as image {original}" if original else self._look_alike(nearest, distance),
            self._off_caption(alignment),
        ]
        return Verdict(
            perceptual_hash,
            image_digest,
            {"alignment": alignment, "duplicate_distance": distance},
            tuple(reason for reason in reasons if reason is not None),
            pixel_digest,
        )

    def blank(self, image: bytes, *, nsfw: bool, not_finite: bool) -> str | None:
        """Which of `BLANK` an image is; None if it shows something or was blackened on purpose."""
        decoded = None if nsfw else _decoded(image)
        if decoded is None:
            return None
        return NOT_FINITE if not_finite else self._constant(decoded)

    def _constant(self, image: Image.Image) -> str | None:
        return constant_colour_of(image) if self._curate.constant else None

    def accept(self, id: str, verdict: Verdict) -> None:  # noqa: A002
        """Remember an image, so that later ones are compared with it."""
        digests = (verdict.image_digest, verdict.pixel_digest)
        self._accepted.add(id, verdict.perceptual_hash, digests)

    @property
    def accepted(self) -> int:
        """How many images are remembered."""
        return len(self._accepted)

    def forget(self, accepted: int) -> None:
        """Remember only the images that were accepted first, so many of them."""
        self._accepted.truncate(accepted)

    def _look_alike(self, nearest: str | None, distance: float | None) -> str | None:
        most = self._curate.max_duplicate_distance
        if most is None or distance is None or distance > most:
            return None
        return f"looks like image {nearest} (distance {distance:.0f})"

    def _off_caption(self, alignment: float | None) -> str | None:
        least = self._curate.alignment.min if self._curate.alignment else None
        if alignment is None or least is None or alignment >= least:
            return None
        return f"does not show its caption (alignment {alignment:.2f} < {least:.2f})"


class _Accepted:
    """Hashes and digests of the accepted images.

    All hashes lie in one array that grows by doubling: comparing an image with 100,000 others
    takes a tenth of a millisecond.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._positions: dict[str, int] = {}
        self._hashes = np.empty(256, dtype=np.uint64)
        self._by_digest: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def truncate(self, length: int) -> None:
        gone = set(self._ids[length:])
        for name in gone:
            del self._positions[name]
        while self._by_digest and next(reversed(self._by_digest.values())) in gone:
            self._by_digest.popitem()  # they are in the order in which they were added
        del self._ids[length:]

    def add(self, name: str, perceptual_hash: str, digests: Iterable[str]) -> None:
        if name in self._positions:
            return
        position = len(self._ids)
        if position == len(self._hashes):
            self._hashes = np.resize(self._hashes, 2 * position)
        self._hashes[position] = int(perceptual_hash, 16)
        self._positions[name] = position
        self._ids.append(name)
        for digest in filter(None, digests):
            self._by_digest.setdefault(digest, name)

    def copy_of(self, digests: Iterable[str], *, besides: str) -> str | None:
        """The accepted image with one of these digests."""
        found = (self._by_digest.get(digest) for digest in digests)
        return next((name for name in found if name not in (None, besides)), None)

    def nearest(self, perceptual_hash: str, *, besides: str) -> tuple[str | None, float | None]:
        """The accepted image with the most similar hash, and in how many bits it differs.

        The earliest of several; None and None if there is none.
        """
        known = self._hashes[: len(self._ids)]
        bits = np.bitwise_count(known ^ np.uint64(int(perceptual_hash, 16)))
        if besides in self._positions:
            bits[self._positions[besides]] = 255
        if len(bits) == 0 or bits.min() == 255:
            return None, None
        position = int(bits.argmin())
        return self._ids[position], float(bits[position])


def _decoded(image: bytes) -> Image.Image | None:
    """The image as RGB, or None if it cannot be read."""
    with suppress(BrokenImage):
        return decode(image, _FORMATS).convert("RGB")
    return None


def perceptual_hash_of(image: Image.Image) -> str:
    """64-bit pHash of an image, 16 hex digits: alike for images that look alike."""
    import imagehash

    return str(imagehash.phash(image))


def pixel_digest_of(image: Image.Image) -> str:
    """SHA-256 of the size and the pixels of an image, 64 hex digits."""
    size = f"{image.width}x{image.height}".encode()
    return hashlib.sha256(size + image.tobytes()).hexdigest()


def constant_colour_of(image: Image.Image) -> str | None:
    """`black` or `a single colour` for an RGB image with nothing on it, else None."""
    histogram = np.array(image.histogram()).reshape(3, 256)
    dark = histogram[:, : BLACK_LEVEL + 1].sum(axis=1)
    if (dark >= _BLACK_SHARE * image.width * image.height).all():
        return "black"
    if max(ImageStat.Stat(image).stddev) <= CONSTANT_SPREAD:
        return "a single colour"
    return None


# ------------------------------------------------------------------------------------- alignment


class AlignmentModelError(RegforgeError):
    """A model that cannot score how well images show their captions."""


class AlignmentScorer:
    """Scores how well images show their captions: the cosine of a text-image pair of encoders.

    Scores of different models cannot be compared.

    Args:
        model: A repository or folder of a CLIP-like transformers checkpoint, or `embedded/judge`.

    Raises:
        AlignmentModelError: The model cannot be loaded, or is of another sort.
    """

    def __init__(
        self, model: str = EMBEDDED_JUDGE, *, device: str | None = None, batch_size: int = 16
    ) -> None:
        import torch

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._batch_size = batch_size
        loaded, self._processor, self._tokenizer = _load(model)
        self._model: Any = loaded.to(self.device).eval()
        text = getattr(self._model.config, "text_config", self._model.config)
        longest = getattr(text, "max_position_embeddings", None) or _MOST_TOKENS
        self._tokens = min(longest, self._tokenizer.model_max_length)

    def scores(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        """Cosine similarity of each image and its caption, -1 to 1.

        RGB images of any size; captions that are too long for the model are cut off. Rounded to 4
        digits, which leaves out noise that depends on the batch.
        """
        import torch

        found: list[float] = []
        for start in range(0, len(images), self._batch_size):
            part = slice(start, start + self._batch_size)
            with torch.inference_mode():
                seen = self._processor(images=list(images[part]), return_tensors="pt")
                pixels = seen.to(self.device)["pixel_values"]
                shown = _unit(self._model.get_image_features(pixel_values=pixels))
                similarity = (shown * self._encoded(captions[part])).sum(dim=-1)
            found += [round(value, _DIGITS) for value in similarity.tolist()]
        return found

    def _encoded(self, captions: Sequence[str]) -> torch.Tensor:
        """Unit vectors, float32 (n, d)."""
        # SigLIP and the embedded judge were trained with captions padded to full length; to CLIP
        # it makes no difference.
        inputs = self._tokenizer(
            list(captions),
            padding="max_length",
            max_length=self._tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        return _unit(self._model.get_text_features(**inputs))


def _unit(features: Any) -> torch.Tensor:
    import torch

    vectors = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def _load(model: str) -> tuple[Any, Any, Any]:
    if model == EMBEDDED_JUDGE:
        from regforge.embedded import load_alignment

        return load_alignment()
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    where = str(expanded(model)) if expanded(model).is_dir() else model
    try:
        # Safetensors only: pickled weights can run code.
        loaded = AutoModel.from_pretrained(where, use_safetensors=True, dtype="float32")
        processor = AutoImageProcessor.from_pretrained(where)
        tokenizer = AutoTokenizer.from_pretrained(where)
    except Exception as error:  # whatever a broken file makes the parts of transformers raise
        if package := missing_package(error):
            raise AlignmentModelError(
                f"curate.alignment.model: {model!r} needs a package that is not here: {package}.",
                hint=f"pip install {package}",
            ) from error
        raise AlignmentModelError(
            f"curate.alignment.model: {model!r} cannot be loaded: {first_line(error)}.",
            hint="Name a CLIP-like transformers repository or folder, such as "
            "openai/clip-vit-base-patch32, or embedded/judge for images of the embedded "
            "pipeline. Without network, the model must be in the Hub's cache or in a folder.",
        ) from error
    if not (hasattr(loaded, "get_image_features") and hasattr(loaded, "get_text_features")):
        raise AlignmentModelError(
            f"curate.alignment.model: {model!r} is a {type(loaded).__name__}, which does not put "
            "images and captions side by side.",
            hint="Name a CLIP-like model, such as openai/clip-vit-base-patch32.",
        )
    return loaded, processor, tokenizer
