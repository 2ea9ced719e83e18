"""What is no base model for training is refused in one sentence, before it is downloaded."""

import json
from pathlib import Path

import pytest
import tiny_models
from images import drawing
from tiny_models import opened

from regforge.errors import RegforgeError


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_the_family_is_found_in_the_checkpoint(kind: str, tmp_path: Path) -> None:
    family = opened(tiny_models.build(kind, tmp_path))
    assert family.name == kind.partition("-")[0]
    assert not any(p.requires_grad for p in family.denoiser.parameters())
    assert not any(p.requires_grad for p in family.pipeline.vae.parameters())


@pytest.mark.parametrize(
    "name",
    [
        *("FluxPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLImg2ImgPipeline"),
        ["pipeline", "MyPipeline"],  # code of the repository, which is not run
    ],
)
def test_other_pipelines_are_refused_by_name(name: str | list[str], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(RegforgeError, match=name if isinstance(name, str) else name[1]) as caught:
        opened(str(tmp_path))
    assert "\n" not in caught.value.message
    if isinstance(name, str):
        assert "Stable Diffusion 1.x" in (caught.value.hint or "")


def test_an_inpainting_unet_in_an_ordinary_pipeline_is_refused(tmp_path: Path) -> None:
    base = tiny_models.sd(tmp_path, in_channels=9)
    with pytest.raises(RegforgeError, match="takes 9 channels and a latent has 4"):
        opened(base)


def test_weights_that_are_not_here_are_one_sentence_offline() -> None:
    with pytest.raises(RegforgeError) as caught:
        opened("nobody/nothing")
    assert "nobody/nothing" in caught.value.message
    assert "\n" not in caught.value.message
    assert "base_model" in (caught.value.hint or "")


def test_problems_with_the_model_speak_of_the_training_recipes_keys(tmp_path: Path) -> None:
    with pytest.raises(RegforgeError, match=r"base_model") as caught:
        opened(str(tmp_path / "gone"))
    assert "render" not in str(caught.value)
    base = tiny_models.build("sdxl", tmp_path / "sdxl")
    with pytest.raises(RegforgeError, match=r"'fp16' \(variant\)") as caught:
        opened(base, variant="fp16")
    assert "render" not in str(caught.value)


def test_a_safety_checker_is_left_out(tmp_path: Path) -> None:
    family = opened(drawing.with_safety_checker(tmp_path, flagged=True))
    assert family.pipeline.safety_checker is None
