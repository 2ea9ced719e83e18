"""What family a base model belongs to, by its name or its folder."""

import json
from pathlib import Path

import pytest

from regforge.export.trainer import Family, family_of


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", Family.SDXL),
        ("RunDiffusion/Juggernaut-XL-v9", Family.SDXL),
        ("stabilityai/sdxl-turbo", Family.SDXL),
        ("stabilityai/stable-diffusion-3.5-medium", Family.SD3),
        ("stabilityai/stable-diffusion-2-1", Family.SD2),
        ("runwayml/stable-diffusion-v1-5", Family.SD1),
        ("/models/SD15/mine.safetensors", Family.SD1),
        ("black-forest-labs/FLUX.1-dev", Family.FLUX),
        ("black-forest-labs/FLUX.2-dev", Family.FLUX2),
        ("black-forest-labs/FLUX.2-klein-4B", Family.FLUX2_KLEIN),
        ("Qwen/Qwen-Image", Family.QWEN_IMAGE),
        ("Tongyi-MAI/Z-Image-Turbo", Family.Z_IMAGE),
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
    assert family_of(str(folder)) is Family.FLUX
    index = {"_class_name": "StableDiffusionXLPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert family_of(str(folder)) is Family.SDXL
