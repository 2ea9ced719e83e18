"""Every family does what diffusers' own pipelines and schedulers do; others are refused early."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from images import drawing
from torch.testing import assert_close
from training_runs import CAPTIONS, GEOMETRY, KINDS, build, embedded, latents_of, opened, random, sd

from regforge.errors import RegforgeError
from regforge.training.batches import FamilyError, Geometry
from regforge.training.families.base import Family
from regforge.training.families.stable_diffusion import DiscreteNoise, time_ids


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The tiny model of a kind, built once."""
    return functools.cache(lambda kind: build(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest, base_of: Callable[[str], str]) -> Family:
    return opened(base_of(request.param))


@pytest.fixture(scope="module")
def sdxl(base_of: Callable[[str], str]) -> Family:
    return opened(base_of("sdxl"))


def pixels_for(family: Family, count: int = 2) -> torch.Tensor:
    return random(count, 3, family.resolution, family.resolution).clamp(-1, 1)


def test_latents_are_the_vaes_as_the_pipeline_scales_them(family: Family) -> None:
    pixels, vae = pixels_for(family), family.pipeline.vae
    moments = family.encode_images(pixels)
    noise = random(*moments[:, 0].shape, seed=1)
    with torch.no_grad():
        theirs = vae.encode(pixels).latent_dist
    sample = theirs.mean + theirs.std * noise
    scaled = (sample - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    assert moments.dtype == torch.float32
    assert_close(family.latents(moments, noise), scaled)
    with torch.no_grad():
        assert_close(family.decode(scaled), vae.decode(sample).sample)


def test_the_embedded_autoencoder_gives_a_image_back() -> None:
    family = opened("embedded/tinyworld")
    ramp = torch.linspace(-0.8, 0.8, 96)
    image = torch.stack([ramp.expand(96, 96), ramp.expand(96, 96).T, 0 * ramp.expand(96, 96)])
    moments = family.encode_images(image[None])
    back = family.decode(family.latents(moments, torch.zeros_like(moments[:, 0])))
    assert (back - image).abs().mean() < 0.1


def test_the_autoencoder_computes_in_float32_and_keeps_its_precision() -> None:
    family, exact = opened("embedded/tinyworld", torch.bfloat16), opened("embedded/tinyworld")
    exact.pipeline.vae.to(torch.bfloat16).to(torch.float32)  # weights rounded, nothing else
    pixels = pixels_for(family)
    with torch.autocast("cpu", torch.bfloat16):
        moments = family.encode_images(pixels)
    assert_close(moments, exact.encode_images(pixels), rtol=0, atol=0)
    assert family.pipeline.vae.dtype == torch.bfloat16


def test_the_denoiser_is_called_as_the_pipeline_calls_it(family: Family) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    hook = family.denoiser.register_forward_hook(
        lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    side = family.resolution
    family.pipeline(CAPTIONS[0], height=side, width=side, num_inference_steps=2, guidance_scale=1.0)
    hook.remove()
    args, kwargs, output = calls[0]
    noisy = args[0] if args else kwargs["hidden_states"]
    time = args[1] if args else kwargs["timestep"]
    whole = Geometry((side, side), (0, 0), (side, side))
    with torch.no_grad():
        ours = family.predict(noisy, time.reshape(1), embedded(family, CAPTIONS[:1]), [whole])
    assert_close(ours, output[0])


def test_a_batch_of_two_is_two_batches_of_one(family: Family) -> None:
    noisy, times = latents_of(family), family.times(torch.tensor([0.2, 0.9]))
    words = embedded(family)
    with torch.no_grad():
        both = family.predict(noisy, times, words, GEOMETRY)
        for n in range(2):
            alone = family.predict(
                noisy[n : n + 1],
                times[n : n + 1],
                {name: value[n : n + 1] for name, value in words.items()},
                GEOMETRY[n : n + 1],
            )
            assert_close(both[n : n + 1], alone, rtol=0, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 0.01


def test_a_caption_has_the_same_embedding_in_any_company(family: Family) -> None:
    captions = ["a dog", "", *[f"a photo of a red teapot, number {n}" for n in range(17)]]
    together = family.encode_captions(captions)
    assert len(together) == len(captions)
    for place in (0, 1, 18):
        [alone] = family.encode_captions([captions[place]])
        for name, value in alone.items():
            assert_close(together[place][name], value, rtol=0, atol=1e-5)
            assert not value.requires_grad
    assert (together[0]["prompt_embeds"] - together[2]["prompt_embeds"]).abs().max() > 0.01


def test_the_pipeline_draws_from_our_embeddings_what_it_draws_from_captions(
    family: Family,
) -> None:
    side = family.resolution
    plan = {"height": side, "width": side, "num_inference_steps": 2, "guidance_scale": 4.0}

    def draw(**what: Any) -> Any:
        return family.pipeline(
            **plan, **what, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images[0]

    words, nothing = embedded(family, CAPTIONS[:1]), embedded(family, [""])
    ours = draw(**words, **{f"negative_{name}": value for name, value in nothing.items()})
    assert abs(ours - draw(prompt=CAPTIONS[0])).max() < 1e-4


def test_sdxl_hears_of_each_examples_own_geometry(sdxl: Family) -> None:
    noisy, times = latents_of(sdxl), sdxl.times(torch.tensor([0.5, 0.5]))
    words, other = embedded(sdxl), Geometry((9, 700), (5, 0), (32, 32))
    with torch.no_grad():
        first = sdxl.predict(noisy, times, words, GEOMETRY)
        second = sdxl.predict(noisy, times, words, (GEOMETRY[0], other))
    assert_close(first[0], second[0], rtol=0, atol=0)
    assert (first[1] - second[1]).abs().max() > 1e-4


def test_sdxls_ids_are_in_pipeline_order_and_keep_odd_sizes(base_of: Callable[[str], str]) -> None:
    sdxl = opened(base_of("sdxl"), torch.bfloat16)
    for row, geometry in zip(time_ids(GEOMETRY), GEOMETRY, strict=True):
        theirs = sdxl.pipeline._get_add_time_ids(
            geometry.original, geometry.top_left, geometry.target, torch.float32, 12
        )
        assert_close(row, theirs[0], rtol=0, atol=0)
    seen: list[torch.Tensor] = []
    hook = sdxl.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["added_cond_kwargs"]["time_ids"]),
        with_kwargs=True,
    )
    odd = Geometry((1365, 1023), (7, 301), (32, 32))
    with torch.no_grad():
        sdxl.predict(latents_of(sdxl, 1), torch.tensor([5]), embedded(sdxl, [""]), [odd])
    hook.remove()
    assert seen[0].tolist() == [[1365, 1023, 7, 301, 32, 32]]


@pytest.mark.slow
def test_released_text_encoders_say_so(base_of: Callable[[str], str]) -> None:
    family = opened(base_of("sdxl"))
    family.release_text_encoders()
    assert not family.text_encoders
    with pytest.raises(Exception, match="released"):
        family.encode_captions(["a cat"])


def test_the_family_is_found_with_its_sizes(family: Family, request: pytest.FixtureRequest) -> None:
    assert family.name == request.node.callspec.params["family"].partition("-")[0]
    for module in (family.denoiser, family.pipeline.vae):
        assert not any(parameter.requires_grad for parameter in module.parameters())
    sizes = {"sd": (32, 4), "sdxl": (32, 4), "sd3": (48, 2)}
    expected = (96, 16) if family.resolution == 96 else sizes[family.name]
    assert (family.resolution, family.side_multiple) == expected
    assert family.source.folder.is_dir()
    assert set(family.trainable_encoders) <= set(family.text_encoders)


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
    velocity = opened(sd(tmp_path / "v", prediction_type="v_prediction"))
    epsilon = opened(sd(tmp_path / "e"))
    latents, noise, times = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1), TIMES[2:4]
    assert_close(epsilon.target(latents, noise, times), noise)
    assert (velocity.target(latents, noise, times) - noise).abs().max() > 0.1
    assert_close(
        epsilon.noisy(latents, noise, times), schedule("epsilon").noisy(latents, noise, times)
    )


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Stable Diffusion 3 with the shift that its releases have."""
    folder = tmp_path_factory.mktemp("sd3")
    base = build("sd3", folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift": 3.0}))
    return opened(base)


def test_flow_noise_and_target(shifted: Family) -> None:
    family, scheduler = shifted, shifted.pipeline.scheduler
    latents, noise = random(3, 4, 2, 2), random(3, 4, 2, 2, seed=1)
    times = scheduler.timesteps[[5, 500, 990]]
    noisy = family.noisy(latents, noise, times)
    assert_close(noisy, scheduler.scale_noise(latents, times, noise))
    # From what the model is to predict, its own sampler finds the way back.
    share = (times / 1000).view(-1, 1, 1, 1)
    assert_close(noisy - share * family.target(latents, noise, times), latents)


def test_flow_times_are_logit_normal_and_shifted_and_weigh_the_same(shifted: Family) -> None:
    # Quantiles of a normal distribution: 15.87 % lie below -1, half below 0, 84.13 % below 1.
    uniform = torch.special.ndtr(torch.tensor([-1.0, 0.0, 1.0]))
    plain = torch.sigmoid(torch.tensor([-1.0, 0.0, 1.0]))
    assert_close(shifted.times(uniform), 1000 * 3 * plain / (1 + 2 * plain))
    assert shifted.times(torch.tensor([0.5])).item() == pytest.approx(750)
    ends = shifted.times(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [0.0, 1000.0]
    assert shifted.weights(torch.tensor([1.0, 900.0]), None).tolist() == [1.0, 1.0]


def test_flow_has_no_min_snr_and_says_so_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    with pytest.raises(RegforgeError, match=r"optimizer\.min_snr_gamma") as caught:
        opened(str(tmp_path), optimizer={"min_snr_gamma": 5.0})
    assert "flow matching" in caught.value.message


@pytest.mark.parametrize(
    "name",
    [
        *("KolorsPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLImg2ImgPipeline"),
        ["pipeline", "MyPipeline"],  # code of the repository, which is not run
    ],
)
def test_other_pipelines_are_refused_by_name(name: str | list[str], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(RegforgeError, match=name if isinstance(name, str) else name[1]) as caught:
        opened(str(tmp_path))
    assert "\n" not in caught.value.message
    if isinstance(name, str):
        assert "Stable Diffusion 1.x" in caught.value.message


def test_an_inpainting_unet_in_an_ordinary_pipeline_is_refused(tmp_path: Path) -> None:
    base = sd(tmp_path, in_channels=9)
    with pytest.raises(RegforgeError, match="takes 9 channels and a latent has 4"):
        opened(base)


def test_weights_that_are_not_here_are_one_sentence_offline() -> None:
    with pytest.raises(RegforgeError) as caught:
        opened("nobody/nothing")
    assert "nobody/nothing" in caught.value.message
    assert "\n" not in caught.value.message
    assert "base_model" in (caught.value.hint or "")


def test_problems_with_the_model_speak_of_the_training_recipes_keys(tmp_path: Path) -> None:
    with pytest.raises(RegforgeError, match=r"base_model") as caught:
        opened(str(tmp_path / "gone"))
    assert "render" not in str(caught.value)
    base = build("sdxl", tmp_path / "sdxl")
    with pytest.raises(RegforgeError, match=r"'fp16' \(variant\)") as caught:
        opened(base, variant="fp16")
    assert "render" not in str(caught.value)


def test_a_safety_checker_is_left_out(tmp_path: Path) -> None:
    family = opened(drawing.with_safety_checker(tmp_path, flagged=True))
    assert family.pipeline.safety_checker is None
