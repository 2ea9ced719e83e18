import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import Built, SmallFamily, class_images, embedding_of, photos
from torch import Tensor
from training_runs import (
    QUIET,
    differences,
    make_image,
    recipe,
    regularization,
    renamed,
    weights,
)

from regforge.devices import pick_dtype
from regforge.recipe.training import Optimizer
from regforge.training import TrainingSetup, train
from regforge.training.batches import Batch, Draw
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
        (
            {"steps": 6, "scheduler": "linear", "warmup_steps": 2},
            [1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25],
        ),
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
    assert precision_of(recipe(optimizer={"precision": "fp32"}), CPU) == FP32
    for method, held in (({}, torch.bfloat16), ({"kind": "full"}, torch.float32)):
        found = precision_of(recipe(optimizer={"precision": "bf16"}, method=method), CPU)
        assert found == Precision(held, torch.bfloat16)

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
        before = {name: each.detach().clone() for name, each in self.parameters.items()}
        self.drift = lambda: (
            (each - before[name]).square().sum() for name, each in self.parameters.items()
        )
        self.state_dict = family.denoiser.state_dict
        self.load_state_dict = family.denoiser.load_state_dict


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    top = tmp_path_factory.mktemp("small")
    return photos(top / "photos"), class_images(top / "class")


class SmallLoop(Loop):
    """One over two regularization images beside each photo."""

    def __init__(
        self,
        sources: tuple[Path, Path],
        precision: Precision = FP32,
        family: SmallFamily | None = None,
        **sections: Any,
    ) -> None:
        torch.manual_seed(0)
        self.family = family or SmallFamily()
        self.trainable = SmallTrainable(self.family)
        sections["regularization"] = {"per_instance": 2} | sections.get("regularization", {})
        sections["data"] = {"caption_dropout": 0} | sections.get("data", {})
        self.examples = Built(*sources, model=self.family, **sections)
        super().__init__(
            self.examples.recipe,
            self.family,
            self.trainable,
            self.examples,
            device=CPU,
            precision=precision,
        )

    def batch(self) -> Batch:
        """The examples of the first step, of one shape."""
        (batch,) = self.examples.tensors(self.examples.draws(1))
        return batch

    def run(self, steps: range) -> list[list[float]]:
        return [self.step(step)[0].tolist() for step in steps]


def expected_errors(family: SmallFamily, batch: Batch) -> list[float]:
    """Mean squared errors, one example and one element after the other."""
    weight = family.denoiser.weight.detach()[:, :, 0, 0]
    bias = family.denoiser.bias.detach()
    errors = []
    for n in range(len(batch)):
        latent = batch.moments[n, 0] + batch.moments[n, 1] * batch.sampling_noise[n]
        time = int(batch.uniform[n] * 10)
        noisy = latent + batch.noise[n] * time / 10
        words = 0.01 * embedding_of(batch.captions[n]).mean()
        total = 0.0
        for y in range(2):
            for x in range(2):
                predicted = weight @ noisy[:, y, x] + bias + words
                wanted = batch.noise[n, :, y, x] - latent[:, y, x]
                total += float(((predicted - wanted) ** 2).sum())
        errors.append(total / (3 * 2 * 2))
    return errors


def test_losses_and_gradients_are_what_a_hand_calculation_says(sources: tuple[Path, Path]) -> None:
    loop = SmallLoop(sources, optimizer={"batch_size": 2}, regularization={"prior_weight": 0.5})
    batch = loop.batch()
    assert (len(batch), batch.instances) == (6, 2)
    losses = loop.example_losses(batch)
    errors = expected_errors(loop.family, batch)
    assert torch.allclose(losses, torch.tensor(errors), rtol=1e-5)
    assert loop.family.forwards == [6]  # instance and regularization images in one forward pass
    total = losses[:2].mean() + 0.5 * losses[2:].mean()
    gradients = torch.autograd.grad(total, list(loop.family.denoiser.parameters()))
    length = torch.cat([each.flatten() for each in gradients]).norm()
    instance, prior = sum(errors[:2]) / 2, sum(errors[2:]) / 4
    found, _ = loop.step(0)
    assert torch.allclose(found, torch.tensor([instance, prior, float(length)]), rtol=1e-5)
    alone = SmallLoop(sources, optimizer={"batch_size": 2}, regularization={"dataset": None})
    assert alone.step(0)[0][:2].tolist() == pytest.approx([instance, 0.0], rel=1e-5)
    assert not alone.has_prior


def test_min_snr_weights_every_example_by_its_own_time(sources: tuple[Path, Path]) -> None:
    loop, weighted = (
        SmallLoop(sources, optimizer={"batch_size": 2, "min_snr_gamma": gamma})
        for gamma in (None, 5.0)
    )
    batch = loop.batch()
    times = (batch.uniform * 10).long()
    assert len(set(times.tolist())) > 2
    plain = loop.example_losses(batch)
    assert torch.allclose(weighted.example_losses(batch), plain * 5.0 / (1.0 + times))


def test_the_teacher_teaches_regularization_images_only(sources: tuple[Path, Path]) -> None:
    plain, taught = (
        SmallLoop(sources, regularization={"target": target}) for target in ("pixels", "teacher")
    )
    batch, family = plain.batch(), taught.family
    losses = taught.example_losses(batch)
    assert family.forwards == [3, 2]
    assert torch.equal(losses[0], plain.example_losses(batch)[0])
    latents = family.latents(batch.moments, batch.sampling_noise)
    times = family.times(batch.uniform)
    noisy = family.noisy(latents, batch.noise, times)
    predicted = family.predict(noisy, times, batch.embeddings, batch.geometry)
    assert torch.allclose(losses[1:], (predicted[1:] - 7.0).square().flatten(1).mean(1))
    taught._teacher = contextlib.nullcontext  # teaches itself nothing
    (prior,) = taught.examples.tensors([Draw("class", 0, 0), Draw("class", 1, 1)])
    assert taught.example_losses(prior).tolist() == [0.0, 0.0]


def test_the_teacher_teaches_class_twins(sources: tuple[Path, Path]) -> None:
    loop = SmallLoop(sources, regularization={"class_twins": 0.5})
    batch, family = loop.batch(), loop.family
    assert (len(batch), batch.instances, batch.twins) == (3, 1, 1)
    losses = loop.example_losses(batch)
    assert family.forwards == [3, 1]
    assert torch.allclose(losses[:2], torch.tensor(expected_errors(family, batch)[:2]))
    latents = family.latents(batch.moments, batch.sampling_noise)
    times = family.times(batch.uniform)
    noisy = family.noisy(latents, batch.noise, times)
    predicted = family.predict(noisy, times, batch.embeddings, batch.geometry)
    assert torch.allclose(losses[2], (predicted[2] - 7.0).square().mean())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_drift_is_penalized_once_a_step(sources: tuple[Path, Path], accumulation: int) -> None:
    optimizer = {"batch_size": 2 // accumulation, "gradient_accumulation": accumulation, "lr": 0.1}
    free, bound = (
        SmallLoop(sources, optimizer=optimizer, regularization={"drift_penalty": weight})
        for weight in (0, 3.0)
    )
    before = {name: each.detach().clone() for name, each in free.trainable.parameters.items()}
    plain = free.step(0)[0]
    first = bound.step(0)[0]
    assert torch.equal(first[:3], plain)  # nothing has changed yet
    assert first[3] == 0
    parameters = bound.trainable.parameters
    changes = {name: each.detach() - before[name] for name, each in parameters.items()}
    with torch.enable_grad():
        free._backward(1)  # the same weights as those of `bound`
    gradients = [
        (each.grad + 2 * 3.0 * changes[name]).flatten()
        for name, each in free.trainable.parameters.items()
    ]
    second = bound.step(1)[0]
    assert float(second[2]) == pytest.approx(float(torch.cat(gradients).norm()), rel=1e-5)
    total = sum(float(change.square().sum()) for change in changes.values())
    assert float(second[3]) == pytest.approx(total, rel=1e-5)
    assert free.step(1)[0].shape == (3,)


def test_captions_are_encoded_in_steps_that_train_an_encoder(sources: tuple[Path, Path]) -> None:
    live, cached = (
        SmallLoop(sources, regularization={"target": "teacher"}, method={"text_encoder": trained})
        for trained in (True, False)
    )
    batch = live.batch()
    losses = live.example_losses(batch)
    # The teacher has its own text encoder: regularization captions are encoded again for it.
    assert live.family.captions == [*batch.captions, *batch.captions[1:]]
    assert torch.equal(losses, cached.example_losses(cached.batch()))


class AttentionFamily(SmallFamily):
    """Notes whether attention may be fused, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.fused: set[bool] = set()

    def predict(self, *arguments: Any) -> Tensor:
        def note(*_: Any) -> None:
            self.fused.add(torch.backends.cuda.flash_sdp_enabled())

        note()
        predicted = super().predict(*arguments)
        predicted.register_hook(note)
        return predicted


@pytest.mark.parametrize(
    ("forward", "side", "fused"),
    [(None, 16, True), (None, 256, True), (torch.bfloat16, 16, False), (torch.bfloat16, 256, True)],
)
def test_short_attention_in_16_bits_is_not_fused_on_a_cpu(
    sources: tuple[Path, Path], forward: torch.dtype | None, side: int, fused: bool
) -> None:
    family = AttentionFamily()
    precision = Precision(torch.float32, forward)
    SmallLoop(sources, precision, family, data={"resolution": side}).step(0)
    assert family.fused == {fused}
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.slow
@given(st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=15)
def test_how_steps_are_divided_is_nothing(sources: tuple[Path, Path], one: int, other: int) -> None:
    """Batches times size is the same; shapes differ within batches."""
    first, second = (
        SmallLoop(
            sources,
            optimizer={
                "batch_size": size,
                "gradient_accumulation": one * other // size,
                "lr": 1e-3,
                "min_snr_gamma": 3.0,
            },
            data={"crop": "none", "resolution": 48},
            regularization={"prior_weight": 0.7},
        )
        for size in (one, other)
    )
    assert torch.allclose(first.step(0)[0], second.step(0)[0], rtol=1e-5)
    for name, value in first.trainable.parameters.items():
        assert torch.allclose(value, second.trainable.parameters[name], atol=1e-6)


@pytest.mark.parametrize("stop", [1, 4, 9])
@pytest.mark.parametrize("precision", [FP32, Precision(torch.float32, torch.float16)])
def test_restored_is_never_stopped(
    sources: tuple[Path, Path], precision: Precision, stop: int, tmp_path: Path
) -> None:
    optimizer = {"steps": 10, "ema": True, "scheduler": "cosine", "gradient_accumulation": 2}
    loop = SmallLoop(sources, precision, optimizer=optimizer)
    before = loop.run(range(stop))
    checkpoints = Checkpoints(tmp_path, keep=1, digest="d")
    checkpoints.save(loop.state(stop))
    after = loop.run(range(stop, 10))
    assert all(map(math.isfinite, (number for row in before + after for number in row)))
    checkpoints.wait()
    again = SmallLoop(sources, precision, optimizer=optimizer)
    again.restore(checkpoints.newest(at_most=10))
    assert again.run(range(stop, 10)) == after
    with loop.result(), again.result():
        for name, value in loop.trainable.parameters.items():
            assert torch.equal(value, again.trainable.parameters[name])


def test_a_long_gradient_is_shortened(sources: tuple[Path, Path]) -> None:
    lengths = []
    for most in (None, 0.01):
        optimizer = {"lr": 1.0, "max_grad_norm": most, "betas": (0.0, 0.9), "weight_decay": 0}
        loop = SmallLoop(sources, optimizer=optimizer)
        lengths.append(float(loop.step(0)[0][2]))
        moments = loop.state(1).optimizer["state"].values()
        length = torch.cat([each["exp_avg"].flatten() for each in moments]).norm()
        assert float(length) == pytest.approx(most or lengths[0], rel=1e-3)
    assert lengths[0] == lengths[1] > 0.01  # what is reported is before it was shortened


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_uncached_is_cached(dogs: str, tmp_path: Path) -> None:
    def trained(cache: str) -> dict[str, Any]:
        each = recipe(
            subject=renamed(tmp_path / "cats"),  # their captions are never cached, the dogs' are
            regularization={"dataset": dogs},
            data={"cache": cache},
            optimizer={"steps": 2},
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
