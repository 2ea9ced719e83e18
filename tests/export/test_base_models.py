"""What family a base model belongs to, by its name or its folder."""

import json
from pathlib import Path

import pytest

from regforge.export import base_models
from regforge.export.base_models import Family, family_of


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", base_models.SDXL),
        ("RunDiffusion/Juggernaut-XL-v9", base_models.SDXL),
        ("stabilityai/sdxl-turbo", base_models.SDXL),
        ("stabilityai/stable-diffusion-3.5-medium", base_models.SD3),
        ("stabilityai/stable-diffusion-2-1", base_models.SD2),
        ("runwayml/stable-diffusion-v1-5", base_models.SD1),
        ("/models/SD15/mine.safetensors", base_models.SD1),
        ("black-forest-labs/FLUX.1-dev", base_models.FLUX),
        ("black-forest-labs/FLUX.2-dev", base_models.FLUX2),
        ("black-forest-labs/FLUX.2-klein-4B", base_models.FLUX2_KLEIN),
        ("Qwen/Qwen-Image", base_models.QWEN_IMAGE),
        ("Tongyi-MAI/Z-Image-Turbo", base_models.Z_IMAGE),
        # Not what a part of their name says.
        ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", None),
        ("Qwen/Qwen-Image-Edit", None),
        ("black-forest-labs/FLUX.1-Kontext-dev", None),
        ("segmind/SSD-1B", None),
        ("HiDream-ai/HiDream-I1-Full", None),
    ],
)
def test_the_name_tells_the_family_or_nothing(name: str, family: Family | None) -> None:
    assert family_of(name) is family


def test_what_the_folder_says_counts_more_than_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "flux-or-so"
    folder.mkdir()
    assert family_of(str(folder)) is base_models.FLUX
    index = {"_class_name": "StableDiffusionXLPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert family_of(str(folder)) is base_models.SDXL
