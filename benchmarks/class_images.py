"""Drawing regularization images, against the class-image loop of diffusers' DreamBooth script.

    python benchmarks/class_images.py                     # the embedded pipeline
    python benchmarks/class_images.py --random sdxl       # SDXL's size, random weights; wants a GPU

The baseline is what examples/dreambooth/train_dreambooth_lora.py of diffusers does for
`--with_prior_preservation`, with its defaults: float16 on a GPU and float32 elsewhere, four images
at a time, each saved as a JPEG before the next batch begins; and once more in bfloat16. Same model,
steps and guidance, one process, turn by turn; loading is not counted. The rows with `render.speed`
take the steps of that (examples/tinyworld/speed.py measures what it costs in quality). The baseline
draws one prompt over and over, regforge a new caption for every image, and writes a lossless file
with the caption in it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regforge.embedded import TINYWORLD, load_vocabulary, quiet_loading
from regforge.images import open_renderer
from regforge.images.staging import Staging, render_into
from regforge.journal import Journal, Reporter
from regforge.recipe.rendering import Render
from regforge.records import Prompt, image_jobs

CLASS_PROMPT = "a photo of a cat"
BASELINE_BATCH = 4  # --sample_batch_size


def baseline(
    model: str, device: Any, dtype: Any, args: argparse.Namespace
) -> Callable[[Path], None]:
    """The script's loop, as a function that draws `args.images` images into a folder."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(model, dtype=dtype, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)

    def draw(folder: Path) -> None:
        loader = torch.utils.data.DataLoader(
            [{"prompt": CLASS_PROMPT, "index": index} for index in range(args.images)],
            batch_size=BASELINE_BATCH,
        )
        for example in loader:
            images = pipeline(
                example["prompt"],
                num_inference_steps=args.steps,
                guidance_scale=args.guidance,
            ).images
            for index, image in zip(example["index"], images, strict=True):
                digest = hashlib.sha1(image.tobytes(), usedforsecurity=False).hexdigest()
                image.save(folder / f"{index}-{digest}.jpg")

    return draw


def ours(model: str, args: argparse.Namespace, **more: Any) -> Callable[[Path], None]:
    """The same with regforge; every call draws new captions."""
    steps = {} if "speed" in more else {"steps": args.steps}
    render = Render(model=model, guidance_scale=args.guidance, **steps, **more)
    renderer = open_renderer(render, journal=Journal(None), reporter=Reporter())
    captions = all_captions()

    def draw(folder: Path) -> None:
        prompts = [
            Prompt(index, next(captions), "cat", "living", "amplify")
            for index in range(args.images)
        ]
        staging = Staging(folder, render, renderer.identity)
        render_into(staging, renderer, list(image_jobs(prompts, "0" * 64)))
        staging.close()

    return draw


def all_captions() -> Any:
    """Captions for the embedded pipeline, over and over."""
    words = load_vocabulary()
    parts = (words["style"], words["color"], words["class_noun"], words["background"])
    for number in itertools.count():
        style, color, noun, place = (part[number * 7 % len(part)] for part in parts)
        yield f"{style} a {color} {noun} {place}, image {number}"


def random_model(kind: str, folder: Path, device: Any) -> str:
    """A pipeline of the size of SD 1.5 or SDXL whose weights mean nothing, as a folder."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        PNDMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12
    )
    text.num_attention_heads, text.projection_dim = 12, 768
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    wide = {"layers_per_block": 2, "in_channels": 4, "out_channels": 4}
    with torch.device(device):
        torch.set_default_dtype(torch.float16)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=1024 if kind == "sdxl" else 512,
            scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
        )
        parts: dict[str, Any] = {"vae": vae, "text_encoder": CLIPTextModel(text)}
        parts["tokenizer"] = CLIPTokenizer.from_pretrained(TINYWORLD / "tokenizer")
        if kind == "sd15":
            unet = UNet2DConditionModel(
                sample_size=64, cross_attention_dim=768, attention_head_dim=8, **wide
            )
            pipeline: Any = StableDiffusionPipeline(
                **parts,
                unet=unet,
                scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1, **schedule),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        else:
            large = CLIPTextConfig(
                vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32
            )
            large.num_attention_heads, large.projection_dim, large.hidden_act = 20, 1280, "gelu"
            unet = UNet2DConditionModel(
                sample_size=128,
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
                **wide,
            )
            pipeline = StableDiffusionXLPipeline(
                **parts,
                unet=unet,
                text_encoder_2=CLIPTextModelWithProjection(large),
                tokenizer_2=parts["tokenizer"],
                scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **schedule),
            )
        torch.set_default_dtype(torch.float32)
    pipeline.save_pretrained(folder)
    return str(folder)


def measure(draw: Callable[[Path], None], images: int) -> float:
    """Images a second of one round."""
    folder = Path(tempfile.mkdtemp())
    try:
        start = time.perf_counter()
        draw(folder)
        return images / (time.perf_counter() - start)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Print one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=32, help="images in a round")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--random", choices=("sd15", "sdxl"), help="a large model of noise")
    parser.add_argument("--compile", action="store_true", help="measure render.compile as well")
    args = parser.parse_args()

    with quiet_loading():
        import diffusers
        import torch

        from regforge.devices import pick_device

        device = pick_device(None)
        folder = Path(tempfile.mkdtemp())
        model = random_model(args.random, folder, device) if args.random else "embedded/tinyworld"
        loop, plain = "diffusers' class-image loop", torch.float32
        if device.type == "cuda":
            plain = torch.float16
        theirs = model.replace("embedded/tinyworld", str(TINYWORLD))
        ways = {
            loop: baseline(theirs, device, plain, args),
            f"{loop}, bfloat16": baseline(theirs, device, torch.bfloat16, args),
            "regforge": ours(model, args),
            "regforge, render.speed: balanced": ours(model, args, speed="balanced"),
            "regforge, render.speed: fast": ours(model, args, speed="fast"),
        }
        if device.type == "cpu":
            ways["regforge, render.dtype: float32"] = ours(model, args, dtype="float32")
        if args.compile:
            ways["regforge, render.compile: true"] = ours(model, args, compile=True)
    shutil.rmtree(folder)
    print(
        f"{platform.machine()}, {device}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, diffusers {diffusers.__version__}; {args.images} images of "
        f"{args.steps} steps a round, {args.rounds} rounds"
    )
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, draw in ways.items():
            rate = measure(draw, args.images)
            if number:  # the first round warms up
                rates[name].append(rate)
    first, bf16, *_ = (statistics.median(values) for values in rates.values())
    print(f"{'':39s} images/s: median    min    max   ratio  to bf16")
    for name, values in rates.items():
        median = statistics.median(values)
        spread = f"{median:16.2f} {min(values):6.2f} {max(values):6.2f}"
        print(f"{name:39s} {spread} {median / first:6.2f}x {median / bf16:7.2f}x")


if __name__ == "__main__":
    main()
