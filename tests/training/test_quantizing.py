"""Training and drawing with weights of fewer bits, and who is refused before either begins."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from images import drawing, flow_models
from images.drawing import difference, drawn, jobs
from images.drawing import opened as renderer
from images.single_files import checkpoint, denoiser
from torch.testing import assert_close
from training_runs import (
    CAPTIONS,
    GEOMETRY,
    QUIET,
    differences,
    embedded,
    opened,
    random,
    recipe,
    weights,
)

from regforge.errors import RegforgeError
from regforge.images import require_engine
from regforge.images.pipelines import place
from regforge.journal import read
from regforge.recipe.model_checks import quantized_file
from regforge.recipe.rendering import Render
from regforge.training import train
from regforge.training.plan import make_training_plan

with_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
with_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None or not torch.cuda.is_available(),
    reason="needs bitsandbytes and a GPU",
)
AS_FINE = {"int8": 6, "nf4": 60}
"""Levels of 255 by which an image of the embedded pipeline may differ, on average a tenth."""


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> str:
    return flow_models.build("flux1", tmp_path_factory.mktemp("flux1"))


def kinds(module: Any) -> set[str]:
    return {type(each).__name__ for each in module.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantize", "name"),
    [
        pytest.param("int8", "Int8Tensor", marks=with_torchao),
        pytest.param("nf4", "Params4bit", marks=with_bitsandbytes),
    ],
)
class TestOfEachKind:
    def test_images_are_nearly_the_models_own(self, quantize: Any, name: str) -> None:
        plan = {"model": "embedded/tinyworld", "steps": 4, "width": 96, "height": 96}
        device = None if quantize == "nf4" else "cpu"
        plain = drawn(renderer(**plan, device=device), jobs(1))
        quantized: Any = renderer(**plan, device=device, quantize=quantize)
        images = drawn(quantized, jobs(1))
        parts = quantized._pipeline
        assert name in kinds(parts.unet)
        assert kinds(parts.text_encoder) == kinds(parts.vae) == {"Parameter"}
        assert 0 < difference(images, plain) <= AS_FINE[quantize] * 10
        assert abs(images.astype(float) - plain).mean() <= AS_FINE[quantize]
        assert (drawn(quantized, jobs(1)) == images).all()

    def test_a_lora_beside_it_learns_goes_on_and_fits_the_plain_model(
        self, quantize: Any, name: str, flux: str, tmp_path: Path
    ) -> None:
        def run(folder: str, steps: int) -> Path:
            each = recipe(
                base_model=flux,
                method={"rank": 8, "quantize": quantize},
                data={"crops_per_image": 1, "crop": "center"},
                optimizer={"steps": steps, "lr": 2e-2},
                device=None if quantize == "nf4" else "cpu",
            )
            return train(each, tmp_path / folder, reporter=QUIET).folder

        whole = run("whole", 40)
        losses = [each for each in read(whole / "log.jsonl") if each["event"] == "train_step"]
        assert losses[-1]["instance_loss"] < losses[0]["instance_loss"]
        run("stopped", 2)
        assert differences(weights(run("stopped", 40)), weights(whole)) == 0
        family = opened(flux, method={"quantize": quantize})
        assert name in kinds(family.denoiser) & kinds(family.text_encoders["text_encoder_2"])
        assert kinds(family.text_encoders["text_encoder"]) == {"Parameter"}
        plain = opened(flux)
        noisy, times = random(2, 4, 16, 16), plain.times(torch.tensor([0.3, 0.8]))
        with torch.no_grad():
            words = embedded(plain, CAPTIONS)
            before = plain.predict(noisy, times, words, GEOMETRY)
            for each in (plain, family):
                each.pipeline.load_lora_weights(whole / "lora")
            after = plain.predict(noisy, times, words, GEOMETRY)
            beside = family.predict(noisy, times, words, GEOMETRY)
        assert (after - before).abs().max() > 10 * (after - beside).abs().max()
        assert_close(beside, after, rtol=0, atol=0.1)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
def test_what_a_package_is_missing_for_is_refused_first(tmp_path: Path) -> None:
    drawing = Render(model="embedded/tinyworld", quantize="nf4", device="cpu")
    training = recipe(method={"quantize": "nf4"})
    for key, start in (
        ("render.quantize", lambda: require_engine(drawing, "local", None)),
        ("method.quantize", lambda: make_training_plan(training, tmp_path)),
        ("method.quantize", lambda: train(training, tmp_path / "run", reporter=QUIET)),
    ):
        with pytest.raises(RegforgeError) as refused:
            start()
        assert refused.value.message.startswith(key)
        assert refused.value.hint == "pip install bitsandbytes"
        assert refused.value.exit_code == 2
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_nf4_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regforge.images.loading.find_spec", lambda _: True)
    with pytest.raises(RegforgeError, match=r"render\.quantize: nf4 needs a GPU"):
        renderer(model="embedded/tinyworld", quantize="nf4", device="cpu")
    require_engine(Render(quantize="nf4", device="cpu"), "ray", None)  # its workers have the GPUs


@pytest.mark.parametrize(
    ("offload", "method"),
    [
        (None, "to"),
        ("model", "enable_model_cpu_offload"),
        (True, "enable_model_cpu_offload"),  # as it was before there was a choice
        ("group", "enable_group_offload"),
        ("sequential", "enable_sequential_cpu_offload"),
    ],
)
def test_a_model_is_put_where_the_recipe_says(offload: Any, method: str) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = create_autospec(StableDiffusionPipeline, instance=True)
    place(pipeline, Render(offload=offload), torch.device("mps"), 96 * 96)
    moved = {name for name, _, _ in pipeline.method_calls if "offload" in name or name == "to"}
    assert moved == {method}
    place(pipeline, Render(offload=offload), torch.device("cpu"), 96 * 96)
    pipeline.to.assert_called_with(torch.device("cpu"))


@pytest.mark.slow
@with_torchao
def test_layers_that_come_when_they_are_needed_draw_the_same() -> None:
    plan = {"model": "embedded/tinyworld", "quantize": "int8", "width": 96, "height": 96}
    grouped: Any = renderer(**plan)
    grouped._pipeline.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert difference(drawn(grouped, jobs(2)), drawn(renderer(**plan), jobs(2))) == 0


@pytest.mark.slow
@with_torchao
@pytest.mark.parametrize("kind", ["sdxl", "qwen-image"])
def test_a_model_in_a_file_is_quantized_like_its_folder(kind: str, tmp_path: Path) -> None:
    folder = Path(drawing.sdxl(tmp_path) if kind == "sdxl" else flow_models.build(kind, tmp_path))
    file = (checkpoint if kind == "sdxl" else denoiser)(folder, folder / "model.safetensors")
    plan = {"width": 32, "height": 32, "quantize": "int8"}
    from_folder = drawn(renderer(model=str(folder), **plan), jobs(1))
    from_file: Any = renderer(model=str(file), config=str(folder), **plan)
    parts = from_file._pipeline
    assert "Int8Tensor" in kinds(parts.unet if kind == "sdxl" else parts.transformer)
    assert kind == "sdxl" or "Int8Tensor" in kinds(parts.text_encoder)
    assert difference(drawn(from_file, jobs(1)), from_folder) <= 1


@pytest.mark.parametrize(
    ("name", "quantize", "refused"),
    [
        ("model.safetensors", "int8", False),
        ("model.safetensors", "nf4", True),
        ("model.gguf", "int8", True),
        ("model.gguf", None, False),
    ],
)
def test_check_refuses_what_diffusers_does_not_quantize(
    name: str, quantize: str | None, refused: bool, tmp_path: Path
) -> None:
    (tmp_path / name).touch()
    found = quantized_file(str(tmp_path / name), quantize, ("render", "quantize"), ())
    assert [each.location for each in found] == [("render", "quantize")] * refused
