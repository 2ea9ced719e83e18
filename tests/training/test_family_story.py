"""Slow: `regforge train` on tiny random models of the large families, up to an image."""

import shutil
from pathlib import Path

import pytest
import tiny_models
import yaml
from training_runs import SUBJECTS, regularization
from typer.testing import CliRunner

from regforge import cli

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_from_a_recipe_to_a_image(kind: str, tmp_path: Path) -> None:
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline

    tiny_models.build(kind, tmp_path / "base")
    shutil.copytree(SUBJECTS / "cat", tmp_path / "photos")
    regularization(tmp_path / "dogs")
    content = {
        "name": "cat",
        "base_model": "base",
        "subject": {"images": "photos", "class_noun": "cat"},
        "regularization": {"dataset": "dogs"},
        "method": {"rank": 4, "text_encoder": kind == "sdxl"},
        "data": {"resolution": 32, "crops_per_image": 2},
        "optimizer": {"steps": 3, "lr": 0.05},
        "validation": {"every": 2, "steps": 2},
        "checkpoint": {"every": 2, "snapshots": [2]},
        "device": "cpu",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    run = tmp_path / "run"
    done = CliRunner().invoke(cli.app, ["train", str(path), "--out", str(run), "--quiet"])
    assert done.exit_code == 0, done.output

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "base")
    pipeline.set_progress_bar_config(disable=True)

    def image() -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        drawn = pipeline(
            "a photo of a sks cat",
            num_inference_steps=2,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
        return np.asarray(drawn.images[0])

    plain = image()
    shown = []
    for folder in (run / "lora", run / "snapshots" / "step-000002" / "lora"):
        pipeline.load_lora_weights(folder)
        shown.append(image())
        pipeline.unload_lora_weights()
    assert plain.shape == (32, 32, 3)
    assert np.isfinite(shown).all()
    last, before = shown
    assert abs(last - plain).max() > 1e-3
    assert abs(last - before).max() > 1e-4
    assert (run / "lora" / "cat-kohya.safetensors").exists() is (kind == "sdxl")
