"""What a training holds at most, measured on a FLUX.1 of a few hundred million numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from images import drawing

from regforge.recipe.memory import sizes_of


def middle_sized(folder: Path) -> str:
    """A Flux folder whose T5 is larger than its transformer."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    parts = drawing._parts()
    parts["vae"].register_to_config(shift_factor=0.1)
    words = len(parts["tokenizer"])
    t5 = T5Config(vocab_size=words, d_model=1024, d_ff=4096, d_kv=64, num_layers=12, num_heads=16)
    FluxPipeline(
        **parts,
        tokenizer_2=parts["tokenizer"],
        text_encoder=CLIPTextModel(drawing._text_config(words, 12, 12)),
        text_encoder_2=T5EncoderModel(t5),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=4,
            num_attention_heads=8,
            joint_attention_dim=1024,
            pooled_projection_dim=12,
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_moment_holds_more_than_the_denoiser_and_its_activations(tmp_path: Path) -> None:
    model = middle_sized(tmp_path / "flux")
    ran = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("watched_memory.py")),
            model,
            str(tmp_path / "run"),
        ],
        # What is freed is given back at once, and not kept in pieces for later.
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    held = json.loads(ran.stdout.splitlines()[-1])
    sizes = sizes_of(model)
    assert sizes is not None
    t5, denoiser = sizes.encoders["text_encoder_2"].bytes(4), sizes.denoiser.bytes(4)
    assert held["captions"] > 0.9 * t5
    assert t5 > denoiser
    # Libraries that were imported on the way, and what Python itself keeps.
    rest = held["loading"]
    assert rest < 0.25 * t5
    assert held["latents"] < 0.25 * t5
    assert 0.9 * denoiser < held["steps"] - rest < 1.1 * (denoiser + held["kept"])
    assert held["drawing"] - rest < 1.1 * (denoiser + held["kept"])
