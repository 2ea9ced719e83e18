"""Noise, targets, times and weights, against diffusers' schedulers and hand calculation."""

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import opened, random
from torch.testing import assert_close

from regforge.errors import RegforgeError
from regforge.training.families.noise import DiscreteNoise
from regforge.training.problems import FamilyError

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
TIMES = torch.tensor([0, 1, 500, 998, 999])


def schedule(prediction: str, *, zero: bool = False) -> DiscreteNoise:
    return DiscreteNoise(CONFIG | {"prediction_type": prediction, "rescale_betas_zero_snr": zero})


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_target_are_the_schedulers(prediction: str, *, zero: bool) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(**CONFIG, prediction_type=prediction, rescale_betas_zero_snr=zero)
    ours = schedule(prediction, zero=zero)
    latents, noise = random(5, 4, 3, 3), random(5, 4, 3, 3, seed=1)
    assert_close(ours.noisy(latents, noise, TIMES), theirs.add_noise(latents, noise, TIMES))
    target = noise if prediction == "epsilon" else theirs.get_velocity(latents, noise, TIMES)
    assert_close(ours.target(latents, noise, TIMES), target)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_each_example_by_its_own_time(prediction: str) -> None:
    times = torch.tensor([20, 700, 20, 400])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = []
    for time in times.tolist():
        signal = float((1 - betas[: time + 1]).prod())
        snr = signal / (1 - signal)
        expected.append(min(snr, 5) / (snr if prediction == "epsilon" else snr + 1))
    weights = schedule(prediction).weights(times, 5.0)
    assert weights.dtype == torch.float32
    assert_close(weights, torch.tensor(expected), rtol=1e-4, atol=0)
    assert expected[0] < 0.5 if prediction == "epsilon" else expected[0] < 0.1


def test_weights_are_finite_where_nothing_of_the_signal_is_left() -> None:
    last = torch.tensor([999])
    assert schedule("epsilon", zero=True).weights(last, 5.0).tolist() == [1.0]
    assert schedule("v_prediction", zero=True).weights(last, 5.0).tolist() == [0.0]


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
def test_times_and_weights_are_in_range(uniform: list[float]) -> None:
    noise = schedule("v_prediction", zero=True)
    times = noise.times(torch.tensor(uniform))
    assert times.dtype == torch.int64
    assert 0 <= int(times.min()) <= int(times.max()) <= 999
    weights = noise.weights(times, 5.0)
    assert bool(((weights >= 0) & (weights <= 1)).all())
    assert noise.weights(times, None).tolist() == [1.0] * len(uniform)


def test_all_times_are_equally_likely() -> None:
    times = schedule("epsilon").times((torch.arange(10_000) + 0.5) / 10_000)
    assert torch.bincount(times, minlength=1000).tolist() == [10] * 1000


@pytest.mark.parametrize(
    ("more", "complaint"),
    [({"prediction_type": "sample"}, "'sample'"), ({"_class_name": "EDMEulerScheduler"}, "EDM")],
)
def test_other_kinds_of_noise_are_refused(more: dict[str, str], complaint: str) -> None:
    with pytest.raises(FamilyError, match=complaint):
        DiscreteNoise(CONFIG | more)


def test_sd_takes_the_schedule_of_its_scheduler(tmp_path: Path) -> None:
    velocity = opened(tiny_models.sd(tmp_path / "v", prediction_type="v_prediction"))
    epsilon = opened(tiny_models.sd(tmp_path / "e"))
    latents, noise, times = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1), TIMES[2:4]
    assert_close(epsilon.target(latents, noise, times), noise)
    assert (velocity.target(latents, noise, times) - noise).abs().max() > 0.1
    assert_close(
        epsilon.noisy(latents, noise, times), schedule("epsilon").noisy(latents, noise, times)
    )


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stable Diffusion 3 with the shift that its releases have."""
    folder = tmp_path_factory.mktemp("sd3")
    base = tiny_models.build("sd3", folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift": 3.0}))
    return base


def test_flow_noise_and_target(shifted: str) -> None:
    family = opened(shifted)
    scheduler = family.pipeline.scheduler
    latents, noise = random(3, 4, 2, 2), random(3, 4, 2, 2, seed=1)
    times = scheduler.timesteps[[5, 500, 990]]
    noisy = family.noisy(latents, noise, times)
    assert_close(noisy, scheduler.scale_noise(latents, times, noise))
    # From what the model is to predict, its own sampler finds the way back.
    share = (times / 1000).view(-1, 1, 1, 1)
    assert_close(noisy - share * family.target(latents, noise, times), latents)


def test_flow_times_are_logit_normal_and_shifted(shifted: str) -> None:
    family = opened(shifted)
    # Quantiles of a normal distribution: 15.87 % lie below -1, half below 0, 84.13 % below 1.
    uniform = torch.special.ndtr(torch.tensor([-1.0, 0.0, 1.0]))
    plain = torch.sigmoid(torch.tensor([-1.0, 0.0, 1.0]))
    assert_close(family.times(uniform), 1000 * 3 * plain / (1 + 2 * plain))
    assert family.times(torch.tensor([0.5])).item() == pytest.approx(750)
    ends = family.times(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [0.0, 1000.0]


def test_flow_has_no_min_snr_and_says_so_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    with pytest.raises(RegforgeError, match=r"optimizer\.min_snr_gamma") as caught:
        opened(str(tmp_path), optimizer={"min_snr_gamma": 5.0})
    assert "flow matching" in caught.value.message


def test_flow_weights_are_even(shifted: str) -> None:
    assert opened(shifted).weights(torch.tensor([1.0, 900.0]), None).tolist() == [1.0, 1.0]
