"""Models that cannot be used are refused with one clear sentence, before anything is drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from drawing import drawn, jobs, opened
from evaluation.trained_models import LORA, fitting_lora
from hub_server import LoopbackHub

from regforge.embedded import TINYWORLD, load_pipeline
from regforge.images.finding import draws_from_text
from regforge.images.renderer import ModelUnavailable
from regforge.recipe import Recipe, RecipeError, checked
from regforge.recipe.named_files import LoraError
from regforge.recipe.rendering import Render


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may break."""
    return Path(shutil.copytree(TINYWORLD, tmp_path / "model"))


def refusal(**render: object) -> str:
    with pytest.raises(ModelUnavailable) as error:
        opened(**render)
    text = str(error.value)
    assert error.value.hint or len(text.split("\n")) == 1
    return text


def rename_class(folder: Path, name: object) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = name
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.slow
def test_a_folder_is_drawn_from_as_the_embedded_model_is(copy: Path) -> None:
    renderer, embedded = opened(model=str(copy)), opened()
    assert renderer.identity.model == copy.name  # where it lies is nobody's business
    assert renderer.identity.revision == embedded.identity.revision
    assert np.array_equal(drawn(renderer, jobs(1)), drawn(embedded, jobs(1)))


def test_the_revision_is_that_of_the_files_and_of_a_download_its_commit(copy: Path) -> None:
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"trailing"', '"leading"'))
    assert opened(model=str(copy)).identity.revision != opened().identity.revision
    snapshot = copy.parent / "snapshots" / ("0123456789" * 4)
    snapshot.parent.mkdir()
    copy.rename(snapshot)
    assert opened(model=str(snapshot)).identity.revision == "0123456789" * 4


def test_names_of_what_is_not_there(copy: Path, tmp_path: Path) -> None:
    for missing in (str(tmp_path / "nothing"), "./nothing", "some/where/else"):
        assert "There is no folder" in refusal(model=missing)
    assert "no diffusers model" in refusal(model=str(copy / "unet"))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    assert "no known kind" in refusal(model=str(weights))  # a UNet alone
    assert "is no name of a Hub model" in refusal(model="a model!")
    text = refusal(model="someone/some-model")
    assert "HF_HUB_OFFLINE" in text
    assert "embedded/tinyworld" in text
    assert "no weights of the variant 'fp16'" in refusal(variant="fp16")
    with pytest.raises(LoraError, match=r"nothing\.safetensors"):
        opened(lora=str(tmp_path / "nothing.safetensors"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("StableDiffusionImg2ImgPipeline", "no text-to-image model"),
        ("DDPMPipeline", "no text-to-image model"),
        ("WanPipeline", "no text-to-image model"),
        ("PipelineOfTheYear3000", "does not have"),
        (["pipeline", "MyPipeline"], "brings its own code"),
    ],
)
def test_a_pipeline_of_another_kind(copy: Path, name: object, words: str) -> None:
    rename_class(copy, name)
    assert words in refusal(model=str(copy))


def test_text_to_image_classes_are_known() -> None:
    import diffusers

    yes = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
    yes += ("FluxPipeline", "PixArtSigmaPipeline", "SanaPipeline", "QwenImagePipeline")
    no = ("StableDiffusionInpaintPipeline", "StableDiffusionUpscalePipeline", "AudioLDM2Pipeline")
    no += ("StableDiffusionControlNetPipeline", "KandinskyV22PriorPipeline", "CogVideoXPipeline")
    no += ("SanaVideoPipeline", "LattePipeline", "WanPipeline", "WuerstchenPriorPipeline")
    no += ("CogVideoXFunControlPipeline", "JoyImageEditPlusPipeline")
    assert [name for name in yes if not draws_from_text(getattr(diffusers, name))] == []
    assert [name for name in no if draws_from_text(getattr(diffusers, name))] == []


def test_weights_that_are_cut_short_or_could_hold_code_are_not_loaded(copy: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), copy.parent / "code")
    weights.write_bytes(weights.read_bytes()[:10_000])
    assert "cannot be loaded" in refusal(model=str(copy))
    weights.unlink()
    assert "no file named" in refusal(model=str(copy))
    (copy.parent / "code").rename(weights.with_suffix(".bin"))
    assert "no safetensors files" in refusal(model=str(copy))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the embedded model with random weights, in a folder."""
    return fitting_lora(load_pipeline("cpu"), tmp_path_factory.mktemp("lora") / LORA).parent


@pytest.mark.slow
def test_a_lora_changes_what_is_drawn(lora: Path) -> None:
    plain = drawn(opened(), jobs(1))
    from_folder = drawn(opened(lora=str(lora)), jobs(1))
    from_file = drawn(opened(lora=str(lora / LORA)), jobs(1))
    assert np.abs(from_folder.astype(int) - plain).max() > 10
    assert np.array_equal(from_folder, from_file)


def test_what_the_hub_says_is_put_into_words(hub: LoopbackHub) -> None:
    for name in ("gated", "old", "files"):
        files = {"README.md": "# Mine"} | ({} if name == "files" else {"model_index.json": "{}"})
        hub.put(f"someone/{name}", files, gated=name == "gated", repo_type="model")
    gated = refusal(model="someone/gated")
    assert "someone/gated is gated" in gated
    assert f"{hub.url}/someone/gated" in gated
    assert "There is no model someone/missing" in refusal(model="someone/missing")
    assert "someone/old has no revision 'v7'" in refusal(model="someone/old", revision="v7")
    assert "someone/files is no diffusers model" in refusal(model="someone/files")


def test_settings_of_the_wrong_kind_for_a_service_are_refused() -> None:
    settings = {"lora": "a", "vae": "a/b", "scheduler": "ddim", "negative_prompt": "dark"}
    for key, value in settings.items():
        render = {"model": "gpt-image-1", "renderer": "hosted", key: value}
        content = {"name": "x", "subject": {"class_noun": "cat"}, "render": render}
        with pytest.raises(RecipeError, match=rf"render\.{key}: "):
            checked(Recipe.model_validate(content))
    assert Render().renderer == "local"
