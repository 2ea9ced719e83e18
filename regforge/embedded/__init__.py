"""Models that travel with regforge and need no network, no GPU and no key.

    tinyworld/        a small real text-to-image pipeline (a diffusers folder)
    judge/            small image and text encoders that measure its images (transformers folders)
    language_model/   SmolLM2-135M as a LiteLLM provider, for choosing among phrases
    banks/            curated phrases per super-category and slot

The pipeline draws 96-pixel images of a sticker world. It is there to learn, to test and to
experiment on in minutes.
"""

from regforge.embedded.pipeline import (
    ALIGNMENT,
    IDENTITY,
    TINYWORLD,
    load_alignment,
    load_identity,
    load_pipeline,
    load_vocabulary,
)

EMBEDDED_FOLDERS = {"embedded/tinyworld": TINYWORLD, "embedded/judge": ALIGNMENT}
"""A recipe's name of an embedded model -> its folder."""

__all__ = [
    "ALIGNMENT",
    "EMBEDDED_FOLDERS",
    "IDENTITY",
    "TINYWORLD",
    "load_alignment",
    "load_identity",
    "load_pipeline",
    "load_vocabulary",
]
