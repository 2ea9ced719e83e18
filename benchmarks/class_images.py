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

from random_models import random_pipeline

from regforge.embedded import TINYWORLD, load_vocabulary, quiet_loading
from regforge.images import open_renderer
from regforge.images.renderer import Renderer
from regforge.images.staging import Staging, render_into
from regforge.journal import Journal, Reporter
from regforge.recipe.rendering import Render
from regforge.records import Prompt, image_jobs

CLASS_PROMPT = "a photo of a cat"
BASELINE_BATCH = 4  # --sample_batch_size


def baseline(pipeline: Any, args: argparse.Namespace) -> Callable[[Path], None]:
    """The script's loop, as a function that draws `args.images` images into a folder."""
    import torch

    pipeline.set_progress_bar_config(disable=True)

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


def opened(model: str, args: argparse.Namespace, **more: Any) -> tuple[Render, Renderer]:
    """regforge's renderer, and what it draws with."""
    steps = {} if "speed" in more else {"steps": args.steps}
    render = Render(model=model, guidance_scale=args.guidance, **steps, **more)
    return render, open_renderer(render, journal=Journal(None), reporter=Reporter(quiet=True))


def ours(render: Render, renderer: Renderer, images: int) -> Callable[[Path], None]:
    """The same with regforge; every call draws new captions."""
    captions = all_captions()

    def draw(folder: Path) -> None:
        prompts = [
            Prompt(index, next(captions), "cat", "living", "amplify") for index in range(images)
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
        model = "embedded/tinyworld"
        if args.random:
            random_pipeline(args.random, device, torch.float16).save_pretrained(folder)
            model = str(folder)
        loop, plain = "diffusers' class-image loop", torch.float32
        if device.type == "cuda":
            plain = torch.float16
        theirs = model.replace("embedded/tinyworld", str(TINYWORLD))

        def script(dtype: Any) -> Callable[[Path], None]:
            found: Any = diffusers.DiffusionPipeline.from_pretrained(
                theirs, dtype=dtype, safety_checker=None
            )
            return baseline(found.to(device), args)

        def regforge(**more: Any) -> Callable[[Path], None]:
            return ours(*opened(model, args, **more), args.images)

        ways = {
            loop: script(plain),
            f"{loop}, bfloat16": script(torch.bfloat16),
            "regforge": regforge(),
            "regforge, render.speed: balanced": regforge(speed="balanced"),
            "regforge, render.speed: fast": regforge(speed="fast"),
        }
        if device.type == "cpu":
            ways["regforge, render.dtype: float32"] = regforge(dtype="float32")
        if args.compile:
            ways["regforge, render.compile: true"] = regforge(compile=True)
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
