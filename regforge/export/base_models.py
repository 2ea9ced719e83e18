"""Which family a base model belongs to: by what its folder says, or else by its name.

Trainers need to be told (another script, another preset, another key). Nothing is downloaded, and
a repository is called whatever its owner likes, so the answer can be None. Knows no trainer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Family:
    """Base models that a trainer treats alike.

    Attributes:
        name: Such as `sdxl`.
        title: As its authors write it.
        flow: Whether it is trained by flow matching instead of predicting noise.
    """

    name: str
    title: str
    flow: bool = False


SD1 = Family("sd1", "Stable Diffusion 1.x")
SD2 = Family("sd2", "Stable Diffusion 2.x")
SDXL = Family("sdxl", "Stable Diffusion XL")
SD3 = Family("sd3", "Stable Diffusion 3", flow=True)
FLUX = Family("flux", "FLUX.1", flow=True)
FLUX2 = Family("flux2", "FLUX.2", flow=True)
FLUX2_KLEIN = Family("flux2-klein", "FLUX.2 klein", flow=True)
QWEN_IMAGE = Family("qwen-image", "Qwen-Image", flow=True)
Z_IMAGE = Family("z-image", "Z-Image", flow=True)

NO_BASE_MODEL = "BASE-MODEL"
"""Stands where the model to be trained belongs and nobody has said which."""

# The first that is found in the name in small letters decides.
_PATTERNS: tuple[tuple[str, Family | None], ...] = (
    (r"pixart|kontext|image[-._ ]?edit", None),  # have scripts of their own, not those below
    (r"flux[-._ ]?2.*klein", FLUX2_KLEIN),
    (r"flux[-._ ]?2", FLUX2),
    (r"flux", FLUX),
    (r"qwen[-._ ]?image", QWEN_IMAGE),
    (r"z[-._ ]?image", Z_IMAGE),
    (r"stable-diffusion-3|(?<!s)sd[-._ ]?v?3", SD3),
    (r"xl\b|xl[-._v\d]|playground-v2", SDXL),
    (r"stable-diffusion-v?2|(?<!s)sd[-._ ]?v?2|sd-turbo", SD2),
    (r"stable-diffusion-v?1|(?<!s)sd[-._ ]?v?1|dreamshaper|stable-diffusion", SD1),
)


_PIPELINES = {
    "StableDiffusionPipeline": SD1,  # 2.x has the same class; trainers that care go by the name
    "StableDiffusionXLPipeline": SDXL,
    "StableDiffusion3Pipeline": SD3,
    "FluxPipeline": FLUX,
    "Flux2Pipeline": FLUX2,
    "Flux2KleinPipeline": FLUX2_KLEIN,
    "QwenImagePipeline": QWEN_IMAGE,
    "ZImagePipeline": Z_IMAGE,
}
"""By the class in a diffusers folder's model_index.json."""


def family_of(base_model: str) -> Family | None:
    """The family of a base model, or None if neither its folder nor its name tells.

    Args:
        base_model: Repository or folder, such as `stabilityai/stable-diffusion-xl-base-1.0`.
    """
    by_folder = _family_of_folder(base_model)
    name = base_model.casefold()
    by_name = next((family for pattern, family in _PATTERNS if re.search(pattern, name)), None)
    if by_folder is None or (by_folder is SD1 and by_name is SD2):
        return by_name
    return by_folder


def unknown(base_model: str) -> str:
    """What to say of a base model without a family; a sentence may go on after it."""
    if base_model == NO_BASE_MODEL:
        return "No base model is named"
    return f"The name {base_model} does not tell what kind of model it is"


def _family_of_folder(base_model: str) -> Family | None:
    try:
        index = json.loads((Path(base_model) / "model_index.json").read_text(encoding="utf-8"))
        return _PIPELINES.get(str(index["_class_name"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
