"""The embedded pipeline: an ordinary diffusers folder that draws what captions say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regforge.embedded import (
    IDENTITY,
    TINYWORLD,
    EmbeddedModelMissing,
    load_pipeline,
    load_vocabulary,
    require_folder,
)

PROMPTS = ["a photo of a red teapot on a beach", "a pencil sketch of an owl in the snow"]


@pytest.fixture(scope="module")
def pipeline():
    loaded = load_pipeline("cpu")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipeline, prompts, seeds, steps=4):
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    output = pipeline(prompts, num_inference_steps=steps, guidance_scale=4.0, generator=generators)
    return [np.asarray(image) for image in output.images]


@pytest.mark.slow
def test_the_caption_matters(pipeline):
    day, night = draw(pipeline, ["a red teapot on a beach", "a red teapot at night"], [7, 7], 8)
    assert day.mean() > night.mean() + 20


def test_diffusers_loads_it_without_our_help():
    from diffusers import DiffusionPipeline

    plain = DiffusionPipeline.from_pretrained(TINYWORLD)
    plain.set_progress_bar_config(disable=True)
    (image,) = draw(plain, PROMPTS[:1], [0], steps=2)
    assert image.shape == (96, 96, 3)


def test_its_parts_load_one_by_one_as_training_scripts_do():
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    vae = AutoencoderKL.from_pretrained(TINYWORLD, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(TINYWORLD, subfolder="unet")
    text_encoder = CLIPTextModel.from_pretrained(TINYWORLD, subfolder="text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(TINYWORLD, subfolder="tokenizer", use_fast=False)
    scheduler = DDPMScheduler.from_pretrained(TINYWORLD, subfolder="scheduler")
    pixels = torch.zeros(1, 3, 96, 96, dtype=vae.dtype)
    latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
    noise, t = torch.randn_like(latents), torch.tensor([500])
    noisy = scheduler.add_noise(latents, noise, t)
    ids = tokenizer(
        "a sks cat",
        truncation=True,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    output = unet(noisy, t, text_encoder(ids)[0]).sample
    assert scheduler.config.prediction_type == "v_prediction"
    assert output.shape == scheduler.get_velocity(latents, noise, t).shape


@pytest.mark.slow
def test_latents_have_unit_variance_after_scaling():
    import torch
    from diffusers import AutoencoderKL
    from PIL import Image

    vae = AutoencoderKL.from_pretrained(TINYWORLD, subfolder="vae", dtype=torch.float32)
    folder = Path(__file__).parents[2] / "examples" / "subjects"
    images = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(folder.glob("*/*.png"))]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(x).latent_dist.mode() * vae.config.scaling_factor
        back = vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)
    assert 0.7 < latents.std() < 1.4
    mse = float((back - x).pow(2).mean())
    assert 10 * np.log10(4 / mse) > 22  # dB, on drawings it has never seen


def test_the_tokenizer_takes_any_text():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(TINYWORLD / "tokenizer")
    assert tokenizer.model_max_length == 48
    for text in ["", "a sks teapot", 'Ünïcødé 茶壺 \U0001fad6 "quotes" it\'s 100%', "x" * 500]:
        ids = tokenizer(text, truncation=True).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert len(ids) <= 48
    caption = "a photo of a large orange striped teapot on a kitchen counter, at golden hour"
    words = caption.replace(",", " ,").split()
    assert len(tokenizer.tokenize(caption)) == len(words)


def test_the_vocabulary_is_what_it_can_draw():
    words = load_vocabulary()
    assert {"teapot", "robot toy", "dog", "stuffed animal"} <= set(words["class_noun"])
    assert set(words["living"]) < set(words["class_noun"])
    assert all(style.endswith(" of") for style in words["style"])
    assert len(words["background"]) >= 18


@pytest.mark.parametrize(("folder", "most"), [(TINYWORLD, 60e6), (IDENTITY.parent, 12e6)])
def test_models_fit_in_the_package_and_no_config_tells_where_they_were_made(folder, most):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < most
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}  # no pickle
    for path in folder.rglob("*.json"):
        assert "_name_or_path" not in json.loads(path.read_text()), path


def test_a_missing_file_is_one_clear_sentence(tmp_path):
    with pytest.raises(EmbeddedModelMissing, match=r"(?s)missing model_index\.json.*pip install"):
        require_folder(tmp_path, "model_index.json")


@pytest.mark.slow
def test_first_use_prints_no_warnings(tmp_path):
    code = (
        "from regforge.embedded import load_pipeline\n"
        "pipe = load_pipeline('cpu')\n"
        "pipe.set_progress_bar_config(disable=True)\n"
        "pipe(['a photo of a cat'] * 2, num_inference_steps=2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout == ""
    assert done.stderr == ""
