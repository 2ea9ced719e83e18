import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import SmallFamily, small_batch
from torch import Tensor
from training_runs import QUIET, differences, make_image, recipe, regularization, weights

from regforge.devices import pick_dtype
from regforge.recipe.training import Optimizer
from regforge.training import TrainingSetup, train
from regforge.training.batches import Batch, Batches, Draw
from regforge.training.checkpoints import Checkpoints
from regforge.training.loop import (
    Loop,
    Precision,
    learning_rate_factor,
    make_optimizer,
    precision_of,
)
from regforge.training.recording import history

CPU = torch.device("cpu")
FP32 = Precision(torch.float32, None)


@pytest.fixture(scope="module")
def dogs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(regularization(tmp_path_factory.mktemp("dogs") / "dogs"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 3}, [1.0, 1.0, 1.0]),
        ({"steps": 5, "warmup_steps": 3}, [0.25, 0.5, 0.75, 1.0, 1.0]),
        ({"steps": 3, "warmup_steps": 100}, [0.25, 0.5, 0.75]),
        ({"steps": 4, "scheduler": "linear"}, [1.0, 0.75, 0.5, 0.25]),
        ({"steps": 5, "scheduler": "linear", "warmup_steps": 1}, [0.5, 1.0, 0.75, 0.5, 0.25]),
        ({"steps": 4, "scheduler": "cosine"}, [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
    ],
)
def test_learning_rates(settings: dict[str, Any], expected: list[float]) -> None:
    made = Optimizer(**settings)
    found = [learning_rate_factor(made, step) for step in range(made.steps)]
    assert found == pytest.approx(expected)


def test_groups_keep_rates_of_their_own() -> None:
    one, other = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    made = make_optimizer(
        [{"params": [one]}, {"params": [other], "lr": 0.5}],
        Optimizer(lr=0.1, betas=(0.5, 0.6), weight_decay=0.3),
        CPU,
    )
    assert [group["base_lr"] for group in made.param_groups] == [0.1, 0.5]
    assert made.param_groups[0]["betas"] == (0.5, 0.6)
    assert made.param_groups[1]["weight_decay"] == 0.3


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("adamw8bit", "needs bitsandbytes"),
        ("prodigy", "needs prodigyopt"),
        ("adamv", "Did you mean 'adamw'"),
    ],
)
def test_an_optimizer_that_is_not_there_is_named(name: str, problem: str) -> None:
    with pytest.raises(TrainingSetup, match=problem):
        make_optimizer([], Optimizer(name=name), CPU)


def test_precision_on_a_cpu() -> None:
    auto = precision_of(recipe(optimizer={"precision": "auto"}), CPU)
    assert auto.weights is pick_dtype("auto", CPU), "what rendering takes"
    exact = precision_of(recipe(optimizer={"precision": "fp32"}), CPU)
    assert (exact.weights, exact.forward) == (torch.float32, None)
    asked = precision_of(recipe(optimizer={"precision": "bf16"}), CPU)
    assert (asked.weights, asked.forward) == (torch.bfloat16, torch.bfloat16)
    full = precision_of(recipe(optimizer={"precision": "bf16"}, method={"kind": "full"}), CPU)
    assert (full.weights, full.forward) == (torch.float32, torch.bfloat16)

    for dtype in (torch.float32, torch.bfloat16):  # 16 bits already need no autocast
        with Precision(dtype, torch.bfloat16).autocast(CPU):
            assert torch.is_autocast_enabled("cpu") == (dtype is torch.float32)


@pytest.mark.slow
def test_ways_to_compute_do_not_change_what_is_learned(dogs: str, tmp_path: Path) -> None:
    """Gradient checkpointing exactly; lower precision nearly."""

    def trained(name: str, **settings: Any) -> tuple[dict[str, Any], float]:
        each = recipe(
            regularization={"dataset": dogs}, optimizer={"steps": 2, "lr": 1e-4, **settings}
        )
        made = train(each, tmp_path / name, reporter=QUIET)
        return weights(made.folder), made.instance_loss

    plain, loss = trained("plain")
    checkpointed, _ = trained("checkpointed", gradient_checkpointing=True)
    assert differences(plain, checkpointed) < 1e-6
    half, its_loss = trained("half", precision="bf16")
    assert its_loss == pytest.approx(loss, rel=0.02)
    assert its_loss != loss
    assert 0 < differences(plain, half) < 5e-4
    assert {str(value.dtype) for value in half.values()} == {"float32"}


class SmallTrainable:
    """All of a small family's weights."""

    def __init__(self, family: SmallFamily) -> None:
        self.parameters = dict(family.denoiser.named_parameters())
        self.groups = [{"params": list(self.parameters.values())}]
        self.teacher = family.teacher
        self.state_dict = family.denoiser.state_dict
        self.load_state_dict = family.denoiser.load_state_dict


class SmallExamples:
    """Two shapes: even numbers are larger."""

    def __init__(self, size: int = 1, accumulation: int = 1) -> None:
        self.batches = Batches(5, 3, size, per_instance=2, accumulation=accumulation, seed=0)

    def tensors(self, draws: Sequence[Draw]) -> list[Batch]:
        shapes = [
            (6, [d for d in draws if not d.number % 2]),
            (4, [d for d in draws if d.number % 2]),
        ]
        return [small_batch(of_shape, side=side) for side, of_shape in shapes if of_shape]


def small_loop(
    precision: Precision = FP32, family: SmallFamily | None = None, **options: Any
) -> tuple[Loop, SmallTrainable]:
    torch.manual_seed(0)
    family = family or SmallFamily()
    trainable = SmallTrainable(family)
    each = recipe(optimizer={"steps": 10, **options}, regularization={"per_instance": 2})
    examples = SmallExamples(each.optimizer.batch_size, each.optimizer.gradient_accumulation)
    loop = Loop(each, family, trainable, examples, device=CPU, precision=precision)
    return loop, trainable


class AttentionFamily(SmallFamily):
    """Notes for each size of latents whether attention may be fused, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.fused: set[tuple[int, bool]] = set()

    def predict(self, noisy: Tensor, *others: Any) -> Tensor:
        def note(*_: Any) -> None:
            self.fused.add((noisy.shape[-1], torch.backends.cuda.flash_sdp_enabled()))

        note()
        predicted = super().predict(noisy, *others)
        predicted.register_hook(note)
        return predicted


class LargeExamples(SmallExamples):
    """Two shapes, one of which is long for attention."""

    def tensors(self, draws: Sequence[Draw]) -> list[Batch]:
        return [small_batch(draws, side=side) for side in (4, 32)]


def test_short_attention_in_16_bits_is_not_fused_on_a_cpu() -> None:
    for forward, fused in (
        (None, {(4, True), (32, True)}),
        (torch.bfloat16, {(4, False), (32, True)}),
    ):
        family = AttentionFamily()
        loop, _ = small_loop(Precision(torch.float32, forward), family)
        loop._examples = LargeExamples()
        loop.step(0)
        assert family.fused == fused
        assert torch.backends.cuda.flash_sdp_enabled()


def run(loop: Loop, steps: range) -> list[list[float]]:
    return [loop.step(step)[0].tolist() for step in steps]


@given(st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_how_a_step_is_divided_does_not_matter(one: int, other: int) -> None:
    """Batches times size is the same; shapes differ within batches."""
    (first, weights), (second, others) = (
        small_loop(batch_size=size, gradient_accumulation=one * other // size, lr=1e-3)
        for size in (one, other)
    )
    assert torch.allclose(first.step(0)[0], second.step(0)[0], rtol=1e-5)
    for name, value in weights.parameters.items():
        assert torch.allclose(value, others.parameters[name], atol=1e-6)


@pytest.mark.parametrize("stop", [1, 4, 9])
@pytest.mark.parametrize("precision", [FP32, Precision(torch.float32, torch.float16)])
def test_restored_is_never_stopped(precision: Precision, stop: int, tmp_path: Path) -> None:
    options = {"ema": True, "scheduler": "cosine", "gradient_accumulation": 2}
    loop, trainable = small_loop(precision, **options)
    before = run(loop, range(stop))
    checkpoints = Checkpoints(tmp_path, keep=1, digest="d")
    checkpoints.save(loop.state(stop))
    after = run(loop, range(stop, 10))
    assert all(map(math.isfinite, (number for row in before + after for number in row)))
    checkpoints.wait()
    again, others = small_loop(precision, **options)
    again.restore(checkpoints.newest(at_most=10))
    assert run(again, range(stop, 10)) == after
    with loop.result(), again.result():
        for name, value in trainable.parameters.items():
            assert torch.equal(value, others.parameters[name])


def test_a_long_gradient_is_shortened() -> None:
    lengths = []
    for most in (None, 0.01):
        loop, _ = small_loop(lr=1.0, max_grad_norm=most, betas=(0.0, 0.9), weight_decay=0)
        lengths.append(loop.step(0)[0][2])
        moments = loop.state(1).optimizer["state"].values()
        length = torch.cat([each["exp_avg"].flatten() for each in moments]).norm()
        assert float(length) == pytest.approx(
            float(lengths[-1]) if most is None else most, rel=1e-3
        )
    assert lengths[0] == lengths[1] > 0.01  # what is reported is before it was shortened


def test_text_encoders_are_trained_too(dogs: str, tmp_path: Path) -> None:
    each = recipe(
        regularization={"dataset": dogs, "target": "teacher"},
        method={"rank": 4, "text_encoder": True, "text_encoder_lr": 1e-5},
        optimizer={"steps": 2},
        checkpoint={"every": 1},
    )
    train(each, tmp_path, reporter=QUIET)
    made = weights(tmp_path)
    encoder = [value for key, value in made.items() if key.startswith("text_encoder.")]
    assert any(abs(value).max() > 0 for key, value in made.items() if "lora_B" in key)
    assert encoder
    first, second = (entry["prior_loss"] for entry in history(tmp_path))
    assert first < 1e-11 < second


def test_all_weights_can_be_trained(dogs: str, tmp_path: Path) -> None:
    from regforge.embedded import TINYWORLD

    each = recipe(
        regularization={"dataset": dogs, "target": "teacher"},
        method={"kind": "full"},
        optimizer={"steps": 2, "lr": 1e-5},
        checkpoint={"every": 1},
    )
    made = train(each, tmp_path, reporter=QUIET)
    assert made.weights == tmp_path / "model"
    first, second = (entry["prior_loss"] for entry in history(tmp_path))
    assert first < 1e-11 < second

    from diffusers import StableDiffusionPipeline

    trained = StableDiffusionPipeline.from_pretrained(made.weights, local_files_only=True)
    base = StableDiffusionPipeline.from_pretrained(TINYWORLD, local_files_only=True)
    moved = [
        float((one - other).detach().abs().max())
        for one, other in zip(trained.unet.parameters(), base.unet.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 1e-3
    assert all(
        torch.equal(one, other)
        for one, other in zip(trained.vae.parameters(), base.vae.parameters(), strict=True)
    )


def test_uncached_is_cached(dogs: str, tmp_path: Path) -> None:
    def trained(cache: str) -> dict[str, Any]:
        each = recipe(
            regularization={"dataset": dogs}, data={"cache": cache}, optimizer={"steps": 2}
        )
        return weights(train(each, tmp_path / cache, reporter=QUIET).folder)

    assert differences(trained("memory"), trained("none")) == 0


@pytest.mark.slow
def test_images_on_the_way_do_not_change_what_is_learned(tmp_path: Path) -> None:
    without = train(recipe(), tmp_path / "without", reporter=QUIET)
    each = recipe(validation={"every": 1, "prompts": ()})
    drawn = train(each, tmp_path / "drawn", reporter=QUIET)
    assert differences(weights(without.folder), weights(drawn.folder)) == 0
    grids = sorted((tmp_path / "drawn" / "validation").iterdir())
    assert len(grids) == 3  # the last step's are the samples
    # The same seeds, other weights.
    one, other = (make_image(path).tobytes() for path in (grids[0], grids[-1]))
    assert len(one) == len(other)
    assert one != other
