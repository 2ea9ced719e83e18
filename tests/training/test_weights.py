"""What is trained, what stays, how to look behind it; and what is saved draws as the live model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close
from training_runs import KINDS, build, embedded, move, opened, predicted, recipe

from regforge.errors import RegforgeError
from regforge.files import StorageError
from regforge.training.checkpoints import CheckpointError
from regforge.training.families.base import Family
from regforge.training.saving import save_result
from regforge.training.weights import MovingAverage, Trainable, attach

METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"dora": True},
    "text": {"text_encoder": True, "rslora": True},
    "full": {"kind": "full", "text_encoder": True},
}

pytestmark = pytest.mark.slow  # together most of a minute


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build("sdxl", tmp_path_factory.mktemp("sdxl"))


def trained(
    base: str, method: dict[str, Any], dtype: torch.dtype = torch.float32, **more: Any
) -> tuple[Family, Trainable]:
    family = opened(base, dtype)
    torch.manual_seed(0)
    return family, attach(family, recipe(method={"alpha": 2, **method}).method, **more)


@pytest.mark.parametrize("method", METHODS)
def test_untouched_is_the_base_and_the_teacher_stays_the_base(base: str, method: str) -> None:
    family, trainable = trained(base, METHODS[method], keep_base=True)
    fresh = opened(base)
    fresh.denoiser.train()  # which alone changes the last digit
    with torch.no_grad():
        before, start = predicted(fresh), predicted(family)
        assert_close(start, before, rtol=0, atol=0)
        move(trainable)
        moved = predicted(family)
        with trainable.teacher():
            taught = predicted(family)
        after = predicted(family)
    assert (moved - before).abs().max() > 1e-3
    assert_close(taught, before, rtol=0, atol=1e-6)
    assert_close(after, moved, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_may_be_asked_between_forward_and_backward(base: str, method: str) -> None:
    family, trainable = trained(base, METHODS[method], keep_base=True)
    move(trainable)
    predicted(family).square().mean().backward()
    plain = {name: parameter.grad for name, parameter in trainable.parameters.items()}
    for parameter in trainable.parameters.values():
        parameter.grad = None
    loss = predicted(family).square().mean()
    with torch.no_grad(), trainable.teacher():
        predicted(family)
    loss.backward()
    assert any(grad is not None for grad in plain.values())
    for name, parameter in trainable.parameters.items():
        if plain[name] is not None:
            assert_close(parameter.grad, plain[name], rtol=0, atol=0)


@pytest.mark.parametrize("method", ["text", "full"])
def test_drift_is_how_far_the_weights_are_from_where_they_began(base: str, method: str) -> None:
    family, trainable = trained(base, METHODS[method], keep_base=True)
    assert sum(trainable.drift()) == 0
    move(trainable)
    if method == "full":
        untouched = opened(base)
        pairs = [(family.denoiser, untouched.denoiser)]
        pairs += [
            (family.text_encoders[n], untouched.text_encoders[n])
            for n in trainable.modules
            if n != "denoiser"
        ]
        changes = [
            after - before
            for one, other in pairs
            for after, before in zip(one.parameters(), other.parameters(), strict=True)
        ]
    else:
        changes = [
            layer.get_delta_weight("default")
            for module in trainable.modules.values()
            for layer in module.modules()
            if isinstance(layer, LoraLayer)
        ]
    expected = sum(change.double().square().sum() for change in changes)
    assert float(sum(trainable.drift()).detach()) == pytest.approx(float(expected), rel=1e-4)


def test_without_a_copy_a_full_fine_tune_has_no_teacher() -> None:
    _, trainable = trained("embedded/tinyworld", METHODS["full"])
    with pytest.raises(RuntimeError, match="keep_base=True"), trainable.teacher():
        pass


@pytest.mark.parametrize("method", METHODS)
def test_trained_weights_are_float32_and_nothing_else_is_trained(base: str, method: str) -> None:
    family, trainable = trained(base, METHODS[method], torch.bfloat16)
    assert {p.dtype for p in trainable.parameters.values()} == {torch.float32}
    modules = [family.denoiser, family.pipeline.vae, *family.text_encoders.values()]
    grown = [p for module in modules for p in module.parameters() if p.requires_grad]
    assert len(grown) == len(trainable.parameters)
    if method != "full":
        frozen = [p for module in modules for p in module.parameters() if not p.requires_grad]
        assert {p.dtype for p in frozen} == {torch.bfloat16}
    prediction = predicted(family)
    prediction.float().square().mean().backward()
    assert bool(torch.isfinite(prediction).all())


def test_gradients_reach_the_text_encoders_only_where_they_are_trained(base: str) -> None:
    family, trainable = trained(base, {"text_encoder": True})
    assert embedded(family)["prompt_embeds"].requires_grad
    predicted(family).square().mean().backward()
    for name in family.trainable_encoders:
        of_text = [p for key, p in trainable.parameters.items() if key.startswith(f"{name}.")]
        assert any(p.grad is not None for p in of_text)
    assert not any(name.startswith("text_encoder_3.") for name in trainable.parameters)
    alone, _ = trained(base, {})
    assert not embedded(alone)["prompt_embeds"].requires_grad


@pytest.mark.parametrize("method", ["text", "full"])
def test_checkpointed_gradients_are_the_same(base: str, method: str) -> None:
    def gradients(*, checkpointed: bool) -> dict[str, torch.Tensor | None]:
        family, trainable = trained(base, METHODS[method])
        move(trainable)
        if checkpointed:
            trainable.checkpoint_gradients()
        predicted(family).square().mean().backward()
        return {name: parameter.grad for name, parameter in trainable.parameters.items()}

    kept, again = gradients(checkpointed=False), gradients(checkpointed=True)
    for name, gradient in kept.items():
        if gradient is not None:
            assert_close(again[name], gradient)


def test_text_encoders_may_have_a_learning_rate_of_their_own(sdxl: str) -> None:
    _, trainable = trained(sdxl, {"text_encoder": True, "text_encoder_lr": 3e-6})
    denoiser, text = trainable.groups
    assert "lr" not in denoiser
    assert text["lr"] == 3e-6
    assert len(denoiser["params"]) + len(text["params"]) == len(trainable.parameters)
    _, trainable = trained(sdxl, {"text_encoder": True})
    assert [set(group) for group in trainable.groups] == [{"params"}, {"params"}]
    _, trainable = trained(sdxl, {"text_encoder_lr": 3e-6})
    assert [set(group) for group in trainable.groups] == [{"params"}]


def test_targets_choose_layers(sdxl: str) -> None:
    _, trainable = trained(sdxl, {"targets": ["attn2.to_k", "conv_in"]})
    layers = {name.split(".lora_")[0] for name in trainable.parameters}
    assert "denoiser.conv_in" in layers
    assert all(name.endswith(("attn2.to_k", "conv_in")) for name in layers)
    assert len(layers) > 2
    with pytest.raises(RegforgeError, match=r"'to_kk'\. Did you mean 'to_k'\?") as caught:
        trained(sdxl, {"targets": ["to_q", "to_kk"]})
    assert "method.targets" in caught.value.message
    assert "to_out.0" in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("method", ["text", "full"])
def test_state_goes_into_a_fresh_family(base: str, method: str) -> None:
    family, trainable = trained(base, METHODS[method])
    move(trainable)
    state = {name: value.clone() for name, value in trainable.state_dict().items()}
    other, fresh = trained(base, METHODS[method])
    fresh.load_state_dict(state)
    with torch.no_grad():
        assert_close(predicted(other), predicted(family), rtol=0, atol=0)


def test_the_state_of_other_weights_is_refused(sdxl: str) -> None:
    _, small = trained(sdxl, {"rank": 2})
    _, large = trained(sdxl, {"rank": 4})
    with pytest.raises(CheckpointError, match="not those"):
        large.load_state_dict(small.state_dict())
    with pytest.raises(CheckpointError, match="not those"):
        MovingAverage(large, 0.9).load_state_dict(MovingAverage(small, 0.9).state_dict())


@pytest.mark.parametrize(
    ("most", "decays"),  # (1 + n) / (10 + n) first
    [(0.3, [2 / 11, 0.25, 0.3]), (0.9, [2 / 11, 0.25, 4 / 13])],
)
def test_the_average_is_slow_and_only_lent(sdxl: str, most: float, decays: list[float]) -> None:
    _, trainable = trained(sdxl, {"rank": 1})
    average = MovingAverage(trainable, most)
    name, weight = next(iter(trainable.parameters.items()))
    expected = weight.detach().clone()
    for decay in decays:
        move(trainable, 1.0)
        average.update()
        expected = decay * expected + (1 - decay) * weight.detach()
    live = weight.detach().clone()
    saved = {name: value.clone() for name, value in average.state_dict().items()}
    resumed = MovingAverage(trainable, most)
    resumed.load_state_dict(saved)
    with average.applied():
        assert_close(weight.detach(), expected)
        assert_close(trainable.state_dict()[name], expected)
    assert_close(weight.detach(), live, rtol=0, atol=0)
    for each in (average, resumed):  # which goes on where the first one was
        each.update()
    assert_close(resumed.state_dict(), average.state_dict(), rtol=0, atol=0)


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


@pytest.mark.parametrize("method", ["lora", "dora", "text"])
def test_a_fresh_pipeline_with_lora_is_the_live_one(base: str, method: str, tmp_path: Path) -> None:
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
def test_the_folder_is_enough(sdxl: str, place: str, more: dict[str, str], tmp_path: Path) -> None:
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
