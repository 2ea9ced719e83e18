"""Every family does with its model what diffusers' own pipelines and schedulers do."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_models import CAPTIONS, GEOMETRY, embedded, latents_of, opened, random
from torch.testing import assert_close

from regforge.training.batches import Geometry
from regforge.training.families.base import Family
from regforge.training.families.stable_diffusion import time_ids


@pytest.fixture(scope="module", params=tiny_models.KINDS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return opened(tiny_models.build(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return opened(tiny_models.build("sdxl", tmp_path_factory.mktemp("sdxl")))


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


def test_sdxls_ids_are_in_the_pipelines_order_and_keep_odd_sizes(tmp_path: Path) -> None:
    sdxl = opened(tiny_models.build("sdxl", tmp_path), torch.bfloat16)
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


def test_released_text_encoders_say_so(tmp_path: Path) -> None:
    family = opened(tiny_models.build("sdxl", tmp_path))
    family.release_text_encoders()
    assert not family.text_encoders
    with pytest.raises(Exception, match="released"):
        family.encode_captions(["a cat"])


def test_sizes(family: Family) -> None:
    sizes = {"sd": (32, 4), "sdxl": (32, 4), "sd3": (48, 2)}
    expected = (96, 16) if family.resolution == 96 else sizes[family.name]
    assert (family.resolution, family.side_multiple) == expected
    assert family.source.is_dir()
    assert set(family.trainable_encoders) <= set(family.text_encoders)
