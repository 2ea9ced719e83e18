"""How well the pipeline follows captions: attributes read back from its images.

Draws 500 captions of (class, place, style) combinations that training never showed, renders them
with the pipeline, and reads class, colour, place, ... back with a classifier that has seen nothing
but the world's own images. The same captions rendered by the world itself go through the same
classifier: that is the ceiling. A slot counts only where the caption names it.

    python examples/tinyworld/evaluate.py

The classifier, `reader.safetensors`, has its own seed and is used for nothing else: the network
that guides the UNet's training is another one.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import judges
from world.captions import Spec, caption, random_spec, varied_caption
from world.render import grid, render

HERE = Path(__file__).parent
PIPELINE = HERE.parents[1] / "regforge" / "embedded" / "tinyworld"
GOALS = {"class_noun": 0.90, "color": 0.85, "place": 0.90, "style": 0.90}


def held_out_specs(count: int, seed: int = 2026) -> list[Spec]:
    """Held-out combinations, always the same ones."""
    rng = random.Random(seed)
    return [random_spec(rng, held_out=True) for _ in range(count)]


def generate(
    pipeline: Any, prompts: list[str], *, steps: int, guidance: float, batch: int = 50
) -> list[np.ndarray]:
    """Images for `prompts`; image i depends on prompt i and seed i alone."""
    import torch

    images: list[np.ndarray] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        output = pipeline(
            part, num_inference_steps=steps, guidance_scale=guidance, generator=generators
        )
        images += [np.asarray(image) for image in output.images]
    return images


def _names(spec: Spec, slot: str) -> bool:
    """Whether a caption of `spec` says anything about a slot ("day" goes without saying)."""
    value = getattr(spec, slot)
    return value not in (None, "") and not (slot == "light" and value == "day")


def accuracy(reader: Any, images: list[np.ndarray], specs: list[Spec]) -> dict[str, float]:
    """Share of images in which the classifier finds what the spec names, by slot."""
    import torch

    with torch.no_grad():
        parts = [
            reader(judges.to_tensor(np.stack(images[i : i + 50])))
            for i in range(0, len(images), 50)
        ]
    scores = {}
    for slot in judges.SLOTS:
        found = torch.cat([p[slot] for p in parts]).argmax(-1)
        right = found == judges.labels(specs, slot)
        named = torch.tensor([_names(s, slot) for s in specs])
        scores[slot] = float(right[named].float().mean())
    return scores


def open_pipeline(path: Path) -> Any:
    """A pipeline folder in float32, silent, on the GPU if there is one."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    parser.add_argument("--reader", type=Path, default=HERE / "reader.safetensors")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--paraphrase", action="store_true", help="reworded captions")
    parser.add_argument("--sheet", type=Path, help="save the first 48 images here")
    parser.add_argument("--json", type=Path, help="save the numbers here")
    args = parser.parse_args()

    specs = held_out_specs(args.count)
    if args.paraphrase:
        rng = random.Random(0)
        told = [varied_caption(s, rng) for s in specs]
        prompts, named = [c.text for c in told], [c.tells for c in told]
    else:
        prompts, named = [caption(s) for s in specs], specs
    reader = judges.load_reader(args.reader)
    real = accuracy(reader, [render(s, seed=i).image for i, s in enumerate(specs)], named)
    pipeline = open_pipeline(args.pipeline)
    start = time.time()
    images = generate(pipeline, prompts, steps=args.steps, guidance=args.guidance)
    seconds = time.time() - start
    made = accuracy(reader, images, named)
    print(f"{len(specs)} held-out captions, {args.steps} steps, guidance {args.guidance}, ", end="")
    print(f"{seconds / len(specs):.2f} s an image")
    print(f"{'':12s} {'generated':>10s} {'real':>6s} {'goal':>6s}")
    for slot in made:
        goal = f"{GOALS[slot]:6.2f}" if slot in GOALS else ""
        print(f"{slot:12s} {made[slot]:10.3f} {real[slot]:6.3f} {goal}")
    if args.json:
        args.json.write_text(json.dumps({"generated": made, "real": real}, indent=2) + "\n")
    if args.sheet:
        Image.fromarray(grid(images[:48], 12)).save(args.sheet)


if __name__ == "__main__":
    main()
