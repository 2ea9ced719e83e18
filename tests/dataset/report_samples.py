"""Rows and images for the tests of the report."""

import hashlib
from typing import Any

from made_rows import make_row
from odd_images import file_of
from PIL import Image

from regforge.records import ImageRow

DIGEST = "3f2a9c01b7de" + 52 * "0"


def make_image(color: str, size: tuple[int, int] = (96, 96)) -> bytes:
    """A PNG file of one colour."""
    return file_of(Image.new("RGB", size, color))


def image_row(number: int, **changes: Any) -> ImageRow:
    """Image number `number` of a recipe, without its bytes."""
    values: dict[str, Any] = {
        "image": b"",
        "text": f"a photo of an owl, number {number}",
        "class_noun": "owl",
        "kind": "living",
        "prompt_set": "amplify",
        "slots": {"color": "red"},
        "negative_prompt": "blurry",
        "width": 96,
        "height": 96,
        "model_revision": "8c1f0a77e1b2",
        "scheduler": "ddim",
        "guidance_scale": 7.099999904632568,  # 7.1 as float32
        "language_model": "embedded/smollm2-135m",
        "template": "caption/living.j2",
        "image_digest": hashlib.sha256(str(number).encode()).hexdigest(),
        "perceptual_hash": hashlib.sha256(f"hash {number}".encode()).hexdigest()[:16],
        "scores": {"alignment": None, "duplicate_distance": None},
    }
    return make_row(number, digest=DIGEST, **(values | changes))
