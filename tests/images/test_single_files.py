"""Models that are one file: known by their headers, read with a configuration beside or named."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import difference, drawn, jobs, opened, sdxl
from flow_models import build
from hub_server import LoopbackHub
from safetensors.torch import load_file, save_file
from shell import Shell
from single_files import checkpoint, denoiser, gguf, z_image_names
from training.training_runs import QUIET, differences, make_image, sd, weights
from training.training_runs import recipe as training_recipe

from regforge import sample, train
from regforge.files import file_digest
from regforge.recipe import Recipe, RecipeError, checked, recipe_digest, recipe_warnings
from regforge.recipe.pipelines import NAMED, described, family_of, folder_here, predicts_v, usual
from regforge.recipe.single_files import KINDS, SingleFileError, single_file

SIZES = {"width": 32, "height": 32}


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion XL folder, and beside it the same as a file."""
    folder = tmp_path_factory.mktemp("files") / "xl"
    torch.manual_seed(0)
    sdxl(folder)
    checkpoint(folder, folder.parent / "xl.safetensors")
    return folder


def of_names(path: Path, *names: str, **shapes: tuple[int, ...]) -> str:
    """A file with such tensors, of no use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {name: torch.zeros(1, 4) for name in names}
    save_file(found | {name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return str(path)


@pytest.mark.slow
def test_a_checkpoint_draws_what_its_folder_draws(xl: Path, tmp_path: Path) -> None:
    file = xl.parent / "xl.safetensors"
    from_folder = drawn(opened(model=str(xl), **SIZES), jobs(1))
    renderer = opened(model=str(file), config=str(xl), **SIZES)
    assert renderer.identity.model == "xl.safetensors"
    assert renderer.identity.revision == f"sha256:{file_digest(file)}"
    assert np.array_equal(drawn(renderer, jobs(1)), from_folder)
    vae = load_file(xl / "vae" / "diffusion_pytorch_model.safetensors")
    vae["decoder.conv_out.bias"] += 0.5
    save_file(vae, tmp_path / "vae.safetensors")
    other = opened(model=str(xl), vae=str(tmp_path / "vae.safetensors"), **SIZES)
    assert difference(drawn(other, jobs(1)), from_folder) > 30


def test_a_checkpoint_says_whether_it_predicts_the_velocity(xl: Path, tmp_path: Path) -> None:
    file = checkpoint(xl, tmp_path / "noob.safetensors", "v_pred", "ztsnr")
    assert predicts_v(str(file), family_of(str(file)))
    assert "velocity" in described(str(file), None)
    silent = checkpoint(xl, tmp_path / "other-vpred.safetensors")
    for model, warned in ((file, False), (silent, True)):
        render = {"model": str(model), "config": str(xl)}
        content = {"name": "x", "subject": {"class_noun": "cat"}, "render": render}
        told = recipe_warnings(Recipe.model_validate(content))
        assert any("v-prediction" in each for each in told) is warned
    scheduler = opened(model=str(file), config=str(xl))._pipeline.scheduler  # type: ignore[attr-defined]
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6
    with pytest.raises(Exception, match="zero terminal SNR"):
        opened(model=str(file), config=str(xl), scheduler="heun")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "names"), [("z-image", z_image_names), ("qwen-image", dict)], ids=["z-image", "qwen"]
)
def test_a_file_of_the_denoiser_takes_the_rest_from_its_configuration(
    kind: str, names: Callable[[Any], Any], tmp_path: Path
) -> None:
    folder = Path(build(kind, tmp_path / "model"))
    file = denoiser(folder, tmp_path / "denoiser.safetensors", names)
    from_folder = drawn(opened(model=str(folder), **SIZES), jobs(1))
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    read = opened(model=str(file), config=str(folder), **SIZES)
    assert np.array_equal(drawn(read, jobs(1)), from_folder)


@pytest.mark.slow
def test_a_gguf_draws_about_the_same(tmp_path: Path) -> None:
    folder = Path(build("qwen-image", tmp_path / "model"))
    file = gguf(folder, tmp_path / "denoiser.gguf", "qwen_image")
    assert family_of(str(file)).name == "qwen-image"  # type: ignore[union-attr]
    exact = drawn(opened(model=str(folder), **SIZES), jobs(1))
    quantized = drawn(opened(model=str(file), config=str(folder), **SIZES), jobs(1))
    assert 0 < difference(exact, quantized) < 60


@pytest.mark.slow
def test_a_lora_is_trained_on_a_gguf(tmp_path: Path, shell: Shell) -> None:
    folder = Path(build("qwen-image", tmp_path / "model"))
    file = gguf(folder, tmp_path / "denoiser.gguf", "qwen_image")
    recipe = training_recipe(base_model=str(file), config=str(folder))
    train(recipe, tmp_path / "run", reporter=QUIET)
    assert max(abs(value).max() for value in weights(tmp_path / "run").values()) > 1e-4
    with pytest.raises(RecipeError, match=r"method\.kind: .*gguf"):
        checked(training_recipe(base_model=str(file), config=str(folder), method={"kind": "full"}))


@pytest.mark.slow
def test_file_and_configuration_come_from_the_hub(
    xl: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    files = {str(p.relative_to(xl)): p.read_bytes() for p in xl.rglob("*") if p.is_file()}
    hub.put("me/xl", files, repo_type="model")
    hub.put(
        "me/files",
        {"mine.safetensors": (xl.parent / "xl.safetensors").read_bytes()},
        repo_type="model",
    )
    url = "https://huggingface.co/me/files/blob/main/mine.safetensors"
    assert single_file(url) is None
    renderer = opened(model=url, config="me/xl", **SIZES)
    assert renderer.identity.model == url
    assert np.array_equal(drawn(renderer, jobs(1)), drawn(opened(model=str(xl), **SIZES), jobs(1)))
    here = folder_here(url, None, "me/xl")
    assert here is not None
    assert not [*here.rglob("*.safetensors")]  # the file has all weights


FLUX = ("double_blocks.0.img_attn.norm.key_norm.scale", "guidance_in.in_layer.weight")


def test_kinds_of_files_are_what_is_known_of_their_families() -> None:
    for kind in KINDS:
        families = [NAMED[name] for name in kind.families]
        assert {family.pipeline for family in families} == {kind.pipeline}
        if kind.configurations != ("stabilityai/stable-diffusion-3.5-medium",):
            assert tuple(family.repository for family in families) == kind.configurations


def test_the_header_tells_the_family_and_not_the_name(tmp_path: Path) -> None:
    flux = of_names(tmp_path / "sdxl.safetensors", *FLUX)
    assert family_of(flux).name == "flux1-dev"  # type: ignore[union-attr]
    assert usual(flux) == (28, 3.5)
    krea = of_names(tmp_path / "flux1-krea.safetensors", *FLUX)
    assert family_of(krea).name == "flux1-krea"  # type: ignore[union-attr]
    assert usual(krea) == (28, 3.5)
    klein = of_names(tmp_path / "k.safetensors", "single_stream_modulation.lin.weight")
    assert usual(klein) is None  # distilled or not
    with pytest.raises(SingleFileError, match=r"`config`.*klein-base-4B or .*klein-4B"):
        single_file(klein).configuration(None)  # type: ignore[union-attr]


def pickle(path: Path) -> dict[str, str]:
    path.with_suffix(".ckpt").write_bytes(b"x")
    return {"model": str(path.with_suffix(".ckpt"))}


def llama(path: Path) -> dict[str, str]:
    from gguf import GGUFWriter

    writer = GGUFWriter(path.with_suffix(".gguf"), "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"model": str(path.with_suffix(".gguf"))}


def cut(path: Path) -> dict[str, str]:
    path.write_bytes(Path(of_names(path, *FLUX)).read_bytes()[:100])
    return {"model": str(path)}


def inpainting(path: Path) -> dict[str, str]:
    unet = {"model.diffusion_model.input_blocks.0.0.weight": (8, 9, 3, 3)}
    return {"model": of_names(path, "conditioner.embedders.1.model.positional_embedding", **unet)}


def of_another_class(path: Path) -> dict[str, str]:
    (path.parent / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return {"model": of_names(path, *FLUX), "config": str(path.parent)}


LORA = ("unet.a.lora_A.weight", "unet.a.lora_B.weight")
NO_MODELS: dict[str, tuple[Callable[[Path], dict[str, str]], str, str]] = {
    "pickle": (pickle, "model", "can hold code"),
    "lora": (lambda path: {"model": of_names(path, *LORA)}, "model", "is a LoRA"),
    "unknown": (lambda path: {"model": of_names(path, "a")}, "model", "a file of no known kind"),
    "llama": (llama, "model", "GGUF of the architecture 'llama' of no known kind"),
    "cut": (cut, "model", "no whole safetensors file"),
    "inpainting": (inpainting, "model", "draws from more than text"),
    "scaled": (
        lambda path: {"model": of_names(path, *FLUX, "double_blocks.0.a.scale_weight")},
        "model",
        "quantized for another program",
    ),
    "offline": (
        lambda path: {"model": of_names(path, *FLUX)},
        "config",
        "needs the configuration of black-forest-labs/FLUX.1-dev, which is not on this",
    ),
    "class": (of_another_class, "config", "is a StableDiffusionPipeline, and"),
    "folder": (
        lambda path: {"model": "embedded/tinyworld", "config": str(path.parent)},
        "config",
        "goes with a model that is a single file",
    ),
}
"""What a recipe says, which key is wrong, and what is said of it."""


@pytest.mark.parametrize("what", NO_MODELS)
def test_check_refuses_in_a_sentence(what: str, tmp_path: Path, shell: Shell) -> None:
    make, key, told = NO_MODELS[what]
    said, noun = make(tmp_path / f"{what}.safetensors"), {"class_noun": "teapot"}
    (tmp_path / "photos").mkdir()
    photos = noun | {"images": str(tmp_path / "photos")}
    training = {"base_model" if name == "model" else name: value for name, value in said.items()}
    for content, at in (
        ({"name": "x", "subject": noun, "render": said}, f"render.{key}"),
        ({"name": "x", "subject": photos, **training}, "base_model" if key == "model" else key),
    ):
        (tmp_path / "recipe.yaml").write_text(json.dumps(content))
        assert shell("check", tmp_path / "recipe.yaml") == 2
        assert f"{at}: " in shell.err
        assert told in shell.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        ("transformer.transformer_blocks.0.attn.to_q", "a LoRA for a transformer and "),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", "width 768, and "),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "width 768, and "),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q", None),
    ],
)
def test_check_refuses_a_lora_of_another_family(
    layer: str, told: str | None, xl: Path, tmp_path: Path
) -> None:
    down, up = (".lora_down", ".lora_up") if layer[:5] == "lora_" else (".lora_A", ".lora_B")
    shapes = {f"{layer}{down}.weight": (4, 768), f"{layer}{up}.weight": (768, 4)}
    render = {"model": str(xl), "lora": of_names(tmp_path / "lora.safetensors", **shapes)}
    content = {"name": "x", "subject": {"class_noun": "cat"}, "render": render}
    recipe = Recipe.model_validate(content)
    if told is None:
        assert checked(recipe)
        return
    with pytest.raises(RecipeError, match=rf"render\.lora\.0\.path: .*{told}"):
        checked(recipe)
    flux = of_names(tmp_path / "flux.safetensors", *FLUX)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(RecipeError) if "unet" in layer else nullcontext():
        checked(Recipe.model_validate({**content, "render": {**render, "model": flux}}))


def test_check_tells_kind_and_size(xl: Path, tmp_path: Path, shell: Shell) -> None:
    render = {"model": str(xl.parent / "xl.safetensors"), "config": str(xl), **SIZES}
    content = {"name": "x", "subject": {"class_noun": "teapot"}, "render": render}
    colors = {"name": "color", "source": "list", "values": ["red", "blue", "green", "pink", "gray"]}
    content |= {"prompts": {"slots": [colors]}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    assert shell("check", tmp_path / "recipe.yaml") == 0, shell.err
    assert "xl.safetensors (Stable Diffusion XL, 0.00 billion parameters" in shell.out
    assert f"counted by the tokenizer of {xl.parent / 'xl.safetensors'}" in shell.out


def digest(**render: str) -> str:
    content = {"name": "x", "subject": {"class_noun": "cat"}, "render": render}
    return recipe_digest(Recipe.model_validate(content))


def test_the_digest_is_of_what_file_and_configuration_hold(xl: Path, tmp_path: Path) -> None:
    file = (xl.parent / "xl.safetensors").read_bytes()
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes(file)
    one, two = (str(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert digest(model=one) == digest(model=two)
    assert digest(model=one) != digest(model=one, config=str(xl))
    checkpoint(xl, Path(two), "v_pred")
    assert digest(model=one) != digest(model=two)
    url = "https://huggingface.co/me/mine/blob/main/mine.safetensors"
    assert digest(model=url) == digest(model=url)
    train = {
        base: recipe_digest(training_recipe(base_model=base, config=str(xl))) for base in (one, two)
    }
    assert train[one] != train[two]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sdxl", "sd"])
def test_a_lora_learns_from_a_file_what_it_learns_from_a_folder(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    (sdxl if kind == "sdxl" else sd)(folder)
    file = checkpoint(folder, tmp_path / "model.safetensors")
    learned, samples = [], []
    for base in ({"base_model": str(folder)}, {"base_model": str(file), "config": str(folder)}):
        run = tmp_path / str(len(learned))
        train(training_recipe(**base), run, reporter=QUIET)
        learned.append(weights(run))
        drawn = sample(run, count=1, steps=1, out=run / "samples", reporter=QUIET)
        samples.append(np.asarray(make_image(drawn.folder / drawn.images[0].file)))
    assert differences(*learned) < 1e-5
    assert max(abs(value).max() for value in learned[0].values()) > 1e-4
    assert difference(*samples) <= 2


@pytest.mark.slow
def test_a_whole_fine_tune_of_a_file_is_a_folder(xl: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    recipe = training_recipe(
        base_model=str(xl.parent / "xl.safetensors"), config=str(xl), method={"kind": "full"}
    )
    train(recipe, tmp_path / "run", reporter=QUIET)
    made = DiffusionPipeline.from_pretrained(tmp_path / "run" / "model")
    before = DiffusionPipeline.from_pretrained(xl)
    assert torch.equal(made.vae.decoder.conv_in.weight, before.vae.decoder.conv_in.weight)
    assert not torch.equal(made.unet.conv_in.weight, before.unet.conv_in.weight)
