"""What runs with no network, no GPU and no key: models that travel with regforge.

    tinyworld/        a small real text-to-image pipeline (a diffusers folder)
    judge/            small image and text encoders that measure its images (transformers folders)
    language_model/   SmolLM2-135M as a LiteLLM provider, for choosing among phrases
    banks/            curated phrases per super-category and slot

The pipeline draws 96-pixel images of a sticker world. It is there to learn, to test and to
experiment on in minutes.
"""

from regforge.embedded.judges import ALIGNMENT, IDENTITY, load_alignment, load_identity
from regforge.embedded.pipeline import TINYWORLD, load_pipeline, load_vocabulary

EMBEDDED_FOLDERS = {"embedded/tinyworld": TINYWORLD, "embedded/judge": ALIGNMENT}
"""Where the models lie that recipes call so."""

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
