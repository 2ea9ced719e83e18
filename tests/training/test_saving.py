"""What is saved draws, in diffusers and under kohya's names, what the live model draws."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_weights import METHODS, trained
from tiny_models import move, opened, predicted
from torch.testing import assert_close

from regforge.files import StorageError
from regforge.training.saving import save_result

LORAS = ["lora", "dora", "text"]

pytestmark = pytest.mark.slow  # together most of a minute


@pytest.fixture(scope="module", params=tiny_models.KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.build("sdxl", tmp_path_factory.mktemp("sdxl"))


def saved(
    base: str, method: dict[str, Any], folder: Path, **more: Any
) -> tuple[Path, torch.Tensor]:
    """Train a little, save; returns where, and what the live model predicts."""
    family, trainable = trained(base, method, **more)
    move(trainable)
    path = save_result(family, trainable, folder, name="pot")
    with torch.no_grad():
        return path, predicted(family).float()


def loaded(base: str, path: Path) -> torch.Tensor:
    """What a fresh pipeline predicts after loading a LoRA as a user would."""
    family = opened(base)
    family.pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    with torch.no_grad():
        return predicted(family)


@pytest.mark.parametrize("method", LORAS)
def test_a_fresh_pipeline_with_the_lora_is_the_live_model(
    base: str, method: str, tmp_path: Path
) -> None:
    path, live = saved(base, METHODS[method], tmp_path)
    assert path == tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert_close(loaded(base, path), live, rtol=0, atol=1e-6)
    plain = opened(base)
    with torch.no_grad():
        assert (predicted(plain) - live).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("place", "more"),
    [
        ("lora", {}),  # two files lie there
        ("", {"subfolder": "lora", "weight_name": "pytorch_lora_weights.safetensors"}),  # the card
    ],
)
def test_the_folder_alone_is_enough(
    sdxl: str, place: str, more: dict[str, str], tmp_path: Path
) -> None:
    _, live = saved(sdxl, METHODS["text"], tmp_path)
    family = opened(sdxl)
    family.pipeline.load_lora_weights(str(tmp_path / place), **more)
    with torch.no_grad():
        assert_close(predicted(family), live, rtol=0, atol=1e-6)


def test_rank_alpha_and_kind_are_in_the_file(sdxl: str, tmp_path: Path) -> None:
    path, _ = saved(sdxl, {"rslora": True, "dora": True, "text_encoder": True}, tmp_path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
    for module in ("unet", "text_encoder", "text_encoder_2"):
        found = {key: about[f"{module}.{key}"] for key in ("r", "lora_alpha")}
        assert found == {"r": 4, "lora_alpha": 2}
        assert about[f"{module}.use_rslora"] is about[f"{module}.use_dora"] is True
    assert {value.dtype for value in load_file(path).values()} == {torch.float32}


def test_the_same_weights_make_the_same_bytes(sdxl: str, tmp_path: Path) -> None:
    first, _ = saved(sdxl, METHODS["text"], tmp_path / "a")
    second, _ = saved(sdxl, METHODS["text"], tmp_path / "b")
    for name in ("pytorch_lora_weights.safetensors", "pot-kohya.safetensors"):
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()


@pytest.mark.parametrize("more", [{}, {"rslora": True}, {"alpha": None}])
def test_kohyas_file_is_the_live_model(base: str, more: dict[str, Any], tmp_path: Path) -> None:
    path, live = saved(base, {"text_encoder": True, **more}, tmp_path)
    kohya = path.with_name("pot-kohya.safetensors")
    if "sd3" in base:
        assert not kohya.exists()
        return
    assert_close(loaded(base, kohya), live, rtol=0, atol=1e-5)


def test_kohyas_names(sdxl: str, tmp_path: Path) -> None:
    path, _ = saved("embedded/tinyworld", {"text_encoder": True}, tmp_path)
    kohya = path.with_name("pot-kohya.safetensors")
    state = load_file(kohya)
    for name in (
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    ):
        assert state[f"{name}.lora_down.weight"].shape[0] == 4
        assert state[f"{name}.lora_up.weight"].shape[1] == 4
        assert state[f"{name}.alpha"].item() == 2
    assert len(state) == 3 * len(load_file(path)) / 2
    with safe_open(kohya, "pt") as file:
        about = file.metadata()
    assert (about["ss_network_dim"], about["ss_base_model_version"]) == ("4", "sd_v1")
    two, _ = saved(sdxl, {"text_encoder": True}, tmp_path / "two")  # text encoders
    state = load_file(two.with_name("pot-kohya.safetensors"))
    heads = {"_".join(name.split("_")[:4]) for name in state if name.startswith("lora_te")}
    assert heads == {"lora_te1_text_model", "lora_te2_text_model"}


def test_kohyas_dora_scales_are_what_comfyui_computes_with(tmp_path: Path) -> None:
    path, _ = saved("embedded/tinyworld", {"dora": True, "targets": ["to_q", "conv1"]}, tmp_path)
    state = load_file(path.with_name("pot-kohya.safetensors"))
    ours = opened("embedded/tinyworld")
    ours.pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    seen = 0
    for name, module in ours.denoiser.named_modules():
        key = f"lora_unet_{name.replace('.', '_')}"
        if f"{key}.dora_scale" not in state:
            continue
        weight = module.base_layer.weight.detach().clone()
        down, up = state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"]
        change = (up.flatten(1) @ down.flatten(1)).view_as(weight)
        whole = weight + change * state[f"{key}.alpha"] / len(down)
        ones = [1] * (weight.dim() - 1)
        length = whole.flatten(1).norm(dim=1, keepdim=True).view(-1, *ones)
        whole = whole * (state[f"{key}.dora_scale"] / length)
        module.merge()
        assert_close(module.base_layer.weight.detach(), whole, rtol=1e-4, atol=1e-5)
        seen += 1
    assert seen > 10


def test_a_full_fine_tune_is_a_pipeline(base: str, tmp_path: Path) -> None:
    family, trainable = trained(base, METHODS["full"])
    move(trainable)
    with torch.no_grad():
        live = predicted(family)
    if "text_encoder_3" in family.text_encoders:  # released after its captions were encoded
        family.pipeline.text_encoder_3 = None
    path = save_result(family, trainable, tmp_path)
    assert path == tmp_path / "model"
    assert list(path.rglob("*.safetensors"))
    assert not list(path.rglob("*.bin"))
    again = opened(str(path))
    assert again.name == family.name
    again.denoiser.train()
    with torch.no_grad():
        assert_close(predicted(again), live, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_saving_again_replaces_unless_the_disk_fails(
    sdxl: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, trainable = trained(sdxl, METHODS[method])
    first = save_result(family, trainable, tmp_path)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    content = _bytes(first)
    move(trainable)
    assert save_result(family, trainable, tmp_path) == first
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before
    assert _bytes(first) != content

    def full(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    content = _bytes(first)
    move(trainable)
    monkeypatch.setattr(family.pipeline.__class__, "save_lora_weights", full)
    monkeypatch.setattr(family.pipeline.__class__, "save_pretrained", full)
    with pytest.raises(StorageError, match="disk is full"):
        save_result(family, trainable, tmp_path)
    assert _bytes(first) == content
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


def _bytes(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    return {each.name + each.parent.name: each.read_bytes() for each in files}
