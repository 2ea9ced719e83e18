"""Families that learn by flow matching: what diffusers' pipelines do, and whole trainings."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import flow_models
from PIL import Image
from safetensors.numpy import load_file
from torch.nn.functional import pixel_unshuffle
from torch.testing import assert_close
from training_runs import (
    CAPTIONS,
    GEOMETRY,
    QUIET,
    differences,
    embedded,
    make_image,
    move,
    opened,
    random,
    recipe,
)

from regforge.images.loading import load_part
from regforge.images.pipelines import guidance_of
from regforge.journal import read
from regforge.recipe.pipelines import TRAINABLE
from regforge.training import train
from regforge.training.families import open_family
from regforge.training.families.flow import Flow
from regforge.training.loop import Precision
from regforge.training.recording import ValidationSampler
from regforge.training.saving import save_result
from regforge.training.weights import attach

SIDE = 32
WHOLE = GEOMETRY[:1]


@pytest.fixture(scope="module", params=flow_models.KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return flow_models.build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def family(base: str) -> Flow:
    return fresh(base)


def fresh(base: str) -> Flow:
    family = opened(base)
    family.pipeline.default_sample_size = SIDE // 2  # HiDream draws in its own size alone
    assert isinstance(family, Flow)
    return family


def size_of(family: Flow) -> tuple[int, int]:
    return (SIDE // family.pixels_per_latent,) * 2


def drawn(family: Flow, caption: str, **more: Any) -> Any:
    """What the pipeline makes of a caption."""
    if family.name == "sana":
        more["use_resolution_binning"] = False
    plan = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "output_type": "np"}
    random_numbers = torch.Generator().manual_seed(0)
    return family.pipeline(prompt=[caption], generator=random_numbers, **plan | more).images[0]


@pytest.mark.slow
def test_the_pipeline_hands_our_prediction_to_its_scheduler(
    family: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[Any, ...]] = []
    step = family.pipeline.scheduler.step

    def seen(output: torch.Tensor, time: Any, sample: torch.Tensor, *args: Any, **more: Any) -> Any:
        steps.append((output.clone(), torch.as_tensor(time).reshape(1).float(), sample.clone()))
        return step(output, time, sample, *args, **more)

    monkeypatch.setattr(family.pipeline.scheduler, "step", seen)
    drawn(family, CAPTIONS[0], **guidance_of(family.pipeline, 1.0))
    words, others = embedded(family, CAPTIONS[:1]), embedded(family, CAPTIONS[1:])
    assert len(steps) == 2
    for output, time, sample in steps:
        theirs = family.unpacked(output, size_of(family))
        noisy = family.unpacked(sample, size_of(family))
        with torch.no_grad():
            assert_close(family.predict(noisy, time, words, WHOLE), theirs, rtol=0, atol=1e-5)
            for wrong in (
                -family.predict(noisy, time, words, WHOLE),
                family.predict(noisy, time / 2, words, WHOLE),
                family.predict(noisy, time, others, WHOLE),
            ):
                assert (wrong - theirs).abs().max() > 2e-5


def test_latents_come_back_through_the_pipelines_own_decoding(
    family: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, vae = random(1, 3, SIDE, SIDE).clamp(-1, 1), family.pipeline.vae
    moments = family.encode_images(image)
    latents = family.latents(moments, torch.zeros_like(moments[:, 0]))
    assert latents.shape[2:] == size_of(family)
    handed = latents
    if family.packed:
        handed = pixel_unshuffle(latents, family.packed).flatten(2).transpose(1, 2)
    monkeypatch.setattr(family.pipeline.scheduler, "step", lambda *_, **__: (handed,))
    theirs = torch.from_numpy(drawn(family, CAPTIONS[0])).permute(2, 0, 1)
    with torch.no_grad():
        frames = "QwenImage" in type(vae).__name__
        seen = vae.encode(image[:, :, None] if frames else image)
        plain = vae.decode(seen.latent if hasattr(seen, "latent") else seen.latent_dist.mean)
    plain = plain.sample.reshape(3, SIDE, SIDE)
    assert_close(theirs, (plain / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    assert_close(family.decode(latents)[0], plain, rtol=0, atol=1e-5)
    assert (family.decode(latents * 1.1)[0] - plain).abs().max() > 1e-3


def test_a_batch_with_captions_of_several_lengths_is_one_by_one(family: Flow) -> None:
    captions = (CAPTIONS[0], "", CAPTIONS[1])
    channels = family.encode_images(torch.zeros(1, 3, SIDE, SIDE)).shape[2]
    noisy = random(3, channels, *size_of(family))
    times = family.times(torch.tensor([0.2, 0.9, 0.5]))
    with torch.no_grad():
        together = family.predict(noisy, times, embedded(family, captions), GEOMETRY)
        assert together.shape == noisy.shape
        for n, caption in enumerate(captions):
            one = slice(n, n + 1)
            alone = family.predict(noisy[one], times[one], embedded(family, [caption]), WHOLE)
            assert_close(together[one], alone, rtol=0, atol=1e-5)


def test_validation_draws_what_the_pipeline_draws_of_the_prompt(family: Flow) -> None:
    prompt, guidance = CAPTIONS[0], 4.0
    wanted = recipe(
        data={"resolution": SIDE},
        validation={"prompts": (prompt,), "steps": 2, "guidance_scale": guidance},
    )
    sampler = ValidationSampler(
        wanted, family, device=torch.device("cpu"), precision=Precision(torch.float32, None)
    )
    noise: list[torch.Tensor] = []
    prepare = family.pipeline.prepare_latents
    family.pipeline.prepare_latents = lambda *args, **more: (
        noise.append(prepare(*args, **more)) or noise[0]
    )
    [sample] = sampler.draw(1)
    settings = guidance_of(family.pipeline, guidance)
    if "true_cfg_scale" in settings:
        settings["negative_prompt"] = [" "]
    theirs = drawn(family, prompt, **settings)
    del family.pipeline.prepare_latents
    ours = np.asarray(sample.image, dtype=float)
    assert ours.std() > 1
    assert abs(ours - theirs * 255).max() <= 2


def test_times_are_those_of_diffusers_scripts_or_the_recipes(base: str) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    uniform = torch.special.ndtr(torch.tensor([-1.0, 0.0, 1.0]))
    middle = torch.sigmoid(torch.tensor([-1.0, 0.0, 1.0]))
    drawn = {
        sampling: open_family(
            recipe(base_model=base, optimizer={"timestep_sampling": sampling}),
            torch.device("cpu"),
            torch.float32,
        ).times
        for sampling in ("auto", "uniform", "logit_normal")
    }
    assert_close(drawn["logit_normal"](uniform), drawn["uniform"](middle))
    usual = "logit_normal" if "sd3" in base else "uniform"
    assert_close(drawn["auto"](uniform), drawn[usual](uniform), rtol=0, atol=0)
    # The scripts make this scheduler of the model's configuration, and take a place of its times.
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base, subfolder="scheduler")
    places = torch.tensor([0.0, 0.25, 0.5])
    theirs = scheduler.timesteps[(places * 1000).long()]
    assert_close(drawn["uniform"](1 - places), theirs, rtol=0, atol=1e-2)


def test_check_knows_which_text_encoders_can_be_trained(family: Flow) -> None:
    trained = TRAINABLE[type(family.pipeline).__name__]
    assert trained.text_encoder == bool(family.trainable_encoders)
    assert trained.flow


def test_weights_in_16_bits_are_called_like_others(base: str) -> None:
    family = opened(base, torch.bfloat16)
    channels = family.encode_images(torch.zeros(1, 3, SIDE, SIDE)).shape[2]
    noisy = random(2, channels, *size_of(family))
    times = family.times(torch.tensor([0.3, 0.8]))
    with torch.no_grad():
        found = family.predict(noisy, times, embedded(family), GEOMETRY)
    assert found.isfinite().all()
    assert found.shape == noisy.shape


@pytest.mark.slow
def test_a_lora_goes_into_a_fresh_pipeline(base: str, tmp_path: Path) -> None:
    family = fresh(base)
    trainable = attach(family, recipe(method={"rank": 2}).method)
    move(trainable, by=0.3)
    path = save_result(family, trainable, tmp_path)
    again = fresh(base)
    with torch.no_grad():
        channels = family.encode_images(torch.zeros(1, 3, SIDE, SIDE)).shape[2]
        noisy, times = random(1, channels, *size_of(family)), torch.tensor([300.0])
        words = embedded(family, CAPTIONS[:1])
        live = family.predict(noisy, times, words, WHOLE)
        plain = again.predict(noisy, times, words, WHOLE)
        again.pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        assert_close(again.predict(noisy, times, words, WHOLE), live, rtol=0, atol=1e-5)
    assert (plain - live).abs().max() > 1e-4


def test_checkpointed_gradients_are_the_same(base: str) -> None:
    family = fresh(base)
    trainable = attach(family, recipe(method={"rank": 2}).method)
    move(trainable)
    channels = family.encode_images(torch.zeros(1, 3, SIDE, SIDE)).shape[2]
    noisy = random(2, channels, *size_of(family))
    times, words = family.times(torch.tensor([0.3, 0.8])), embedded(family)

    def gradients() -> dict[str, torch.Tensor]:
        for parameter in trainable.parameters.values():
            parameter.grad = None
        family.predict(noisy, times, words, GEOMETRY).square().mean().backward()
        return {name: each.grad for name, each in trainable.parameters.items()}

    plain = gradients()
    trainable.checkpoint_gradients()
    again = gradients()
    for name, gradient in plain.items():
        assert_close(again[name], gradient, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_training_learns_goes_on_and_needs_no_cache(base: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, color in enumerate(("red", "navy")):
        Image.new("RGB", (SIDE, SIDE), color).save(photos / f"{number}.png")
    # Layers that are as small as AuraFlow's hardly count before all are trained.
    kind = "full" if "auraflow" in base else "lora"

    def run(name: str, steps: int, cache: str) -> Path:
        each = recipe(
            base_model=base,
            subject={"images": photos},
            method={"rank": 8, "kind": kind},
            data={"resolution": SIDE, "crops_per_image": 1, "crop": "center", "cache": cache},
            optimizer={"steps": steps, "lr": 2e-2 if kind == "lora" else 2e-3, "batch_size": 2},
            validation={"every": 20, "steps": 1},
            checkpoint={"snapshots": [1, 2]},
        )
        return train(each, tmp_path / name, reporter=QUIET).folder

    def learned(folder: Path) -> dict[str, Any]:
        [file] = folder.glob("lora/*lora_weights*" if kind == "lora" else "model/transformer/*.sa*")
        return load_file(file)

    whole = run("whole", 30, "memory")
    for steps in (1, 2):  # the second goes on from the first
        there = learned(whole / "snapshots" / f"step-00000{steps}")
        assert differences(learned(run("stopped", steps, "none")), there) < 1e-5
    losses = [each for each in read(whole / "log.jsonl") if each["event"] == "train_step"]
    assert losses[-1]["instance_loss"] < 0.9 * losses[1]["instance_loss"]
    for grid in (whole / "validation" / "step-000020.webp", whole / "samples.webp"):
        assert np.asarray(make_image(grid)).std() > 1


@pytest.mark.slow
def test_text_encoders_autoencoder_and_denoiser_are_there_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by who is alive, and where, when each of them computes."""
    alive: list[tuple[str, list[bool]]] = []
    parts: dict[str, weakref.ref[Any]] = {}

    def note(who: str) -> Any:
        def hook(*_: Any) -> None:
            there = [parts["text"]() is not None, parts["denoiser"]().device.type != "meta"]
            if not alive or alive[-1] != (who, there):
                alive.append((who, there))

        return hook

    def watched(*args: Any, **more: Any) -> Any:
        family = open_family(*args, **more)
        pipeline = family.pipeline
        parts["text"] = weakref.ref(pipeline.text_encoder_2)
        parts["denoiser"] = lambda: pipeline.transformer
        pipeline.text_encoder_2.register_forward_pre_hook(note("text"))
        pipeline.vae.encoder.register_forward_pre_hook(note("vae"))
        return family

    def loaded(*args: Any, **more: Any) -> Any:
        denoiser = load_part(*args, **more)
        denoiser.register_forward_pre_hook(note("denoiser"))
        return denoiser

    monkeypatch.setattr("regforge.training.running.open_family", watched)
    monkeypatch.setattr("regforge.training.families.base.load_part", loaded)
    base = flow_models.build("flux1", tmp_path / "flux1")
    train(recipe(base_model=base, optimizer={"steps": 1}), tmp_path / "run", reporter=QUIET)
    assert alive == [
        ("text", [True, False]),
        ("vae", [False, False]),
        ("denoiser", [False, True]),
    ]
