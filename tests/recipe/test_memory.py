"""The estimate of memory: its counts are those of models, and its sums follow what recipes say."""

import json
from pathlib import Path
from typing import Any

import pytest
from images import flow_models
from recipe import known_models
from shell import Shell

from regforge.recipe import TrainingRecipe
from regforge.recipe.memory import (
    CARDS,
    ENCODERS,
    GB,
    MODELS,
    Part,
    Sizes,
    estimate,
    lightest_change,
    memory_of,
    sizes_of,
)
from regforge.recipe.rendering import Render
from regforge.recipe.training import Method


def counted(network: Any) -> Part:
    """What a loaded network has."""
    from torch import nn

    linear = [
        each.weight.numel()
        for name, each in network.named_modules()
        if isinstance(each, nn.Linear) and "lm_head" not in name
    ]
    sizes = [each.numel() for each in network.parameters()]
    return Part(sum(sizes), sum(linear), max(sizes))


def near(part: Part) -> Any:
    return pytest.approx(part, rel=0.005, abs=1.5e5)


def training(model: str = "black-forest-labs/FLUX.1-dev", **sections: Any) -> TrainingRecipe:
    subject = {"images": "photos", "class_noun": "cat"}
    return TrainingRecipe.model_validate(
        {"name": "x", "base_model": model, "subject": subject, **sections}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_what_denoisers_of_the_real_size_have(name: str) -> None:
    assert counted(known_models.denoiser(name)) == near(MODELS[name].denoiser)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_the_table_has_what_text_encoders_of_the_real_size_have(name: str) -> None:
    assert counted(known_models.encoder(name)) == near(ENCODERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", known_models.CALLS)
def test_the_table_has_what_a_forward_pass_keeps(name: str) -> None:
    from regforge.training.weights import _add_lora

    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    if name == "flux1-dev":
        more = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        feed = [f"{ff}.net.{n}" for ff in ("ff", "ff_context") for n in ("0.proj", "2")]
        layers = [*(f"attn.{each}" for each in (*layers, *more)), *feed]
    found = known_models.kept_for_the_gradient(
        name, lambda network: _add_lora(network, Method(rank=16), layers)
    )
    assert found == pytest.approx(MODELS[name].kept, rel=0.02)


@pytest.fixture(scope="module", params=["flux1", "krea2", "hidream", "embedded/tinyworld"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param.startswith("embedded"):
        return request.param
    return flow_models.build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
def test_of_a_model_that_is_here_its_own_numbers_count(model: str) -> None:
    import torch
    from diffusers import DiffusionPipeline

    from regforge.embedded import EMBEDDED_FOLDERS

    folder = EMBEDDED_FOLDERS.get(model) or Path(model)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    targets = ["to_q", "to_k"]
    sizes = sizes_of(model, targets=targets)
    assert sizes is not None
    network = getattr(pipeline, "transformer", None) or pipeline.unet
    assert sizes.denoiser.all == counted(network).all
    # HiDream has a matrix that is no layer.
    assert sizes.denoiser.linear == pytest.approx(counted(network).linear, rel=1e-3)
    assert sizes.vae.all == counted(pipeline.vae).all
    for name, part in pipeline.components.items():
        if name.startswith("text_encoder"):
            clip = type(part).__name__.startswith("CLIP")
            found = sizes.encoders[f"clip-{name}" if clip else name]
            assert found.all == counted(part).all
            assert clip or found.linear == counted(part).linear
    if isinstance(network, torch.nn.Module) and "HiDream" not in type(pipeline).__name__:
        from regforge.training.weights import _add_lora

        network.requires_grad_(requires_grad=False)
        _add_lora(network, Method(rank=3), targets)
        trained = sum(each.numel() for each in network.parameters() if each.requires_grad)
        assert sizes.adapted * 3 == trained


@pytest.mark.slow
def test_weights_take_as_many_bytes_as_it_says(tmp_path: Path) -> None:
    """A FLUX.1 of 50 million numbers, plain and in int8."""
    pytest.importorskip("torchao")
    import torch
    from diffusers import FluxTransformer2DModel

    from regforge.images.loading import settings_of

    wide = {"num_layers": 4, "num_single_layers": 8, "num_attention_heads": 4}
    plain = FluxTransformer2DModel(
        **wide, joint_attention_dim=256, pooled_projection_dim=256
    ).bfloat16()
    plain.save_pretrained(tmp_path)
    quantized = FluxTransformer2DModel.from_pretrained(
        tmp_path,
        torch_dtype=torch.bfloat16,
        quantization_config=settings_of("int8", "transformer", torch.bfloat16),
    )

    def taken(network: Any) -> int:
        total = 0
        for each in network.parameters():
            inner = [getattr(each, name, None) for name in ("qdata", "scale")]
            tensors = inner if isinstance(inner[0], torch.Tensor) else [each]
            total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return total

    part = counted(plain)
    assert part.all > 3e7
    assert part.bytes(2) == taken(plain)
    assert part.bytes(2, "int8") == pytest.approx(taken(quantized), rel=0.01)


def test_what_a_recipe_sets_makes_it_more_or_less() -> None:
    sizes = MODELS["flux1-dev"]
    drawing, plain = Render(model="black-forest-labs/FLUX.1-dev"), training()
    whole = memory_of(drawing, sizes).peak
    lighter = [
        memory_of(drawing.model_copy(update=each), sizes).peak
        for each in ({"offload": "model"}, {"offload": "group"}, {"offload": "sequential"})
    ]
    assert whole > lighter[0] > lighter[1] > lighter[2]
    assert memory_of(drawing.model_copy(update={"dtype": "float32"}), sizes).peak > 1.9 * whole
    base = memory_of(plain, sizes).peak
    for more in (
        {"optimizer": {"batch_size": 2}},
        {"optimizer": {"precision": "fp32"}},
        {"optimizer": {"ema": True}},
        {"method": {"rank": 64}},
        {"method": {"kind": "full"}},
        {"data": {"resolution": 2048}},
        {"data": {"cache": "none"}},
        {"regularization": {"dataset": "me/cats"}},
    ):
        assert memory_of(training(**more), sizes).peak > base, more
    less = [
        {"optimizer": {"gradient_checkpointing": True}, "method": {"quantize": quantize}}
        for quantize in (None, "int8", "nf4")
    ]
    peaks = [base, *(memory_of(training(**each), sizes).peak for each in less)]
    assert peaks == sorted(peaks, reverse=True)
    # SimpleTuner's quickstart says 30 and 18 GB of rank 16.
    assert 22 < peaks[1] / GB < 30
    assert 12 < peaks[2] / GB < 18


def test_the_lightest_change_that_fits_is_named() -> None:
    sizes = MODELS["flux1-dev"]
    plan = Render(model="black-forest-labs/FLUX.1-dev")
    found = [lightest_change(plan, sizes, card * GB) for card in CARDS]
    assert found[-1] == "as it is"
    assert None not in found
    assert lightest_change(training(), MODELS["flux2-dev"], 12 * GB) is None


def test_small_parts_and_embeddings_are_not_quantized() -> None:
    part = Part(100, 80, 20)
    sizes = Sizes(part, {"clip-l": part, "t5": part}, part, 1, (0, 0))
    plain, quantized = (
        memory_of(Render(width=8, height=8, quantize=each, dtype="bfloat16"), sizes)
        for each in (None, "int8")
    )
    assert plain.peak - quantized.peak == pytest.approx(2 * 80)


def test_nothing_is_said_of_what_needs_no_gpu_or_is_unknown() -> None:
    assert estimate(Render()) is None
    assert estimate(Render(model="someone/unheard-of")) is None
    assert estimate(Render(model="openai/gpt-image-1", renderer="hosted")) is None
    assert estimate(training(device="cpu")) is None
    assert estimate(training()) is not None


@pytest.mark.slow
def test_check_says_it_and_warns_of_a_gpu_that_is_too_small(
    repo: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = repo / "recipes" / "objects-flux1.yaml"
    assert shell("check", recipe, "--json") == 0
    found = json.loads(shell.out)["memory"]
    assert found["peak"] == max(found["moments"].values()) + round(0.8 * GB)
    assert found["fits_gb"] == [48, 80]
    monkeypatch.setattr("regforge.recipe.memory.gpu_memory", lambda _: 24 * GB)
    assert shell("check", recipe) == 0
    assert "(an estimate)" in shell.out
    assert "warning: memory: " in shell.out
    assert "render.offload: model, render.quantize: int8 should do" in shell.out


def test_check_says_it_of_a_training(repo: Path, shell: Shell) -> None:
    recipe = repo / "recipes" / "train-flux1.yaml"
    photos = f"subject.images={repo / 'examples/subjects/cat'}"
    assert shell("check", recipe, "--set", photos, "--json") == 0
    plan = json.loads(shell.out)
    assert "in training steps" in plan["memory"]["moments"]
    assert shell("check", recipe, "--set", photos) == 0
    assert "(an estimate)" in shell.out
