"""Image rows for tests: small real images with everything a row has."""

import functools
import hashlib
from typing import Any

import numpy as np
from odd_images import file_of
from PIL import Image

from regforge.records import ImageJob, ImageRow, Prompt, image_id, image_jobs, image_seed

DIGEST = hashlib.sha256(b"recipe").hexdigest()
SLOTS = ("color", "background")
COLORS = ("red", "teal", "olive")


@functools.cache
def make_image(number: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """A noisy image, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return file_of(Image.fromarray(pixels), "WEBP", lossless=True)


def make_row(index: int, *, digest: str = DIGEST, **changes: Any) -> ImageRow:
    """Image number `index` of the recipe with this digest, a row of the store."""
    image = changes["image"] if "image" in changes else make_image(index)
    color = COLORS[index % 3]
    values: dict[str, Any] = {
        "image": image,
        "text": f"a photo of a {color} teapot, number {index}",
        "class_noun": "teapot",
        "kind": "object",
        "prompt_set": "amplify" if index % 4 else "naive",
        "slots": {"color": color, "background": None if index % 2 else "on a beach"},
        "negative_prompt": "",
        "seed": image_seed(digest, index),
        "width": 24,
        "height": 16,
        "model": "embedded/tinyworld",
        "model_revision": "0123abcd",
        "scheduler": "DDIMScheduler",
        "steps": 25,
        "guidance_scale": 4.0,
        "language_model": None,
        "template": "caption/object.j2",
        "recipe_digest": digest,
        "image_digest": hashlib.sha256(image).hexdigest(),
        "perceptual_hash": f"{index:016x}",
        "scores": {"alignment": 0.25, "duplicate_distance": None if index == 0 else 7.0},
        "id": image_id(digest, index),
        "reference": None,
    }
    return ImageRow(**(values | changes))


def make_rows(*indexes: int) -> list[ImageRow]:
    return [make_row(index) for index in indexes]


def make_jobs(count: int) -> list[ImageJob]:
    """The jobs that `make_row` fulfils."""
    rows = make_rows(*range(count))
    return list(
        image_jobs([Prompt(r.index, r.text, "teapot", "object", "amplify") for r in rows], DIGEST)
    )
