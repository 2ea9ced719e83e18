"""LoRA and full fine-tuning: what is trained, what stays, and how to look behind it."""

from typing import Any

import pytest
import tiny_models
import torch
from tiny_models import embedded, move, opened, predicted, recipe
from torch.testing import assert_close

from regforge.errors import RegforgeError
from regforge.training.checkpoints import CheckpointError
from regforge.training.families.base import Family
from regforge.training.weights import MovingAverage, Trainable, attach

METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"dora": True},
    "text": {"text_encoder": True, "rslora": True},
    "full": {"kind": "full", "text_encoder": True},
}

pytestmark = pytest.mark.slow  # together most of a minute


@pytest.fixture(scope="module", params=tiny_models.KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.build("sdxl", tmp_path_factory.mktemp("sdxl"))


def trained(
    base: str, method: dict[str, Any], dtype: torch.dtype = torch.float32, **more: Any
) -> tuple[Family, Trainable]:
    family = opened(base, dtype)
    torch.manual_seed(0)
    return family, attach(family, recipe(base, method).method, **more)


@pytest.mark.parametrize("method", METHODS)
def test_untouched_is_the_base_and_the_teacher_stays_the_base(base: str, method: str) -> None:
    family, trainable = trained(base, METHODS[method], teacher=True)
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
    family, trainable = trained(base, METHODS[method], teacher=True)
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


def test_without_a_copy_a_full_fine_tune_has_no_teacher() -> None:
    _, trainable = trained("embedded/tinyworld", METHODS["full"])
    with pytest.raises(RuntimeError, match="teacher=True"), trainable.teacher():
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


def test_the_average_follows_slowly_and_is_only_lent(sdxl: str) -> None:
    _, trainable = trained(sdxl, {"rank": 1})
    average = MovingAverage(trainable, 0.3)
    name, weight = next(iter(trainable.parameters.items()))
    expected, decays = weight.detach().clone(), [2 / 11, 0.25, 0.3]  # (1 + n) / (10 + n) first
    for decay in decays:
        move(trainable, 1.0)
        average.update()
        expected = decay * expected + (1 - decay) * weight.detach()
    live = weight.detach().clone()
    saved = {name: value.clone() for name, value in average.state_dict().items()}
    resumed = MovingAverage(trainable, 0.3)
    resumed.load_state_dict(saved)
    with average.applied():
        assert_close(weight.detach(), expected)
        assert_close(trainable.state_dict()[name], expected)
    assert_close(weight.detach(), live, rtol=0, atol=0)
    for each in (average, resumed):  # which goes on where the first one was
        each.update()
    assert_close(resumed.state_dict(), average.state_dict(), rtol=0, atol=0)
