"""How good the pipeline's images are, beside the world's own images of the same captions.

Renders 500 captions of (class, place, style) combinations that training never showed and measures

- attributes: class, colour, place, ... read back with a classifier that has seen nothing but the
  world's own images. A slot counts only where the caption names it;
- sharpness: the images' gradient energy as a share of the world's own;
- the Fréchet distance to the world's own images between features of the judge (identity encoder, 24
  principal components), as a multiple of what two lots of the world's images differ by;
- drawings: the world has three of each class noun. In how many of the nouns do all three occur
  among 20 images of "a photo of a ..."? The nearest of the three in the judge's space counts.

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
from evaluate_judge import embed
from regforge.embedded import load_identity
from world import drawings
from world import vocabulary as v
from world.captions import Spec, article, caption, random_spec, varied_caption
from world.render import grid, render

HERE = Path(__file__).parent
PIPELINE = HERE.parents[1] / "regforge" / "embedded" / "tinyworld"
GOALS = {
    "class_noun": "0.95",
    "color": "0.90",
    "place": "0.96",
    "texture": "0.80",
    "style": "0.95",
    "sharpness": "0.85 to 1.1",
    "frechet": "at most 3",
    "drawings": "0.90",
}


def held_out_specs(count: int, seed: int = 2026) -> list[Spec]:
    """Held-out combinations, always the same ones."""
    rng = random.Random(seed)
    return [random_spec(rng, held_out=True) for _ in range(count)]


def generate(
    pipeline: Any,
    prompts: list[str],
    *,
    steps: int,
    guidance: float,
    unguided: float = 0.0,
    batch: int = 50,
) -> list[np.ndarray]:
    """Images for `prompts`; image i depends on prompt i and seed i alone.

    There is no guidance in the first steps, an `unguided` share of them.
    """
    import torch

    def scale(step: int) -> float:
        return guidance if step >= unguided * steps else 1 + 1e-6  # 1 would halve what is computed

    def before_next(pipeline: Any, step: int, _time: Any, _state: Any) -> dict[str, Any]:
        pipeline._guidance_scale = scale(step + 1)
        return {}

    images: list[np.ndarray] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        output = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=scale(0),
            generator=generators,
            callback_on_step_end=before_next,
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


def energy(images: np.ndarray) -> float:
    """Mean of |dx| + |dy| over uint8 images (n, side, side, 3) scaled to 0..1."""
    x = images.astype(np.float32) / 255
    return float(np.abs(np.diff(x, axis=2)).mean() + np.abs(np.diff(x, axis=1)).mean())


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """The Fréchet distance between two normal distributions that fit the features, [N, D] each."""
    between = first.mean(0) - second.mean(0)
    one, other = (np.cov(each, rowvar=False) for each in (first, second))
    roots = np.sqrt(np.linalg.eigvals(one @ other).real.clip(0))
    return float(between @ between + np.trace(one) + np.trace(other) - 2 * roots.sum())


def principal(features: np.ndarray, count: int = 24) -> np.ndarray:
    """The first principal axes [D, count] of features [N, D]."""
    return np.linalg.svd(features - features.mean(0), full_matrices=False)[2][:count].T


def all_drawings(images: list[np.ndarray], nouns: list[str], judge: Any) -> float:
    """Share of nouns of which every drawing occurs among their images.

    Args:
        images: Equally many of each noun, in the nouns' order.
        nouns: Class nouns of the world.
        judge: What `load_identity` gives.
    """
    rows = embed(*judge, images).double().numpy().reshape(len(nouns), -1, 256)
    complete = 0
    for noun, found in zip(nouns, rows, strict=True):
        known = drawings.of_class(noun)
        shown = [render(Spec(noun, p), 0, drawing=d).image for d in known for p in v.PLACES]
        features = embed(*judge, shown).double().numpy().reshape(len(known), -1, 256)
        nearest = (found @ features.mean(1).T).argmax(1)
        complete += len(set(nearest.tolist())) == len(known)
    return complete / len(nouns)


def open_pipeline(path: Path, dtype: str = "float32") -> Any:
    """A pipeline folder, silent, on the GPU if there is one."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        path, local_files_only=True, dtype=getattr(torch, dtype)
    )
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
    parser.add_argument("--unguided", type=float, default=0.0, help="share of the steps, at first")
    parser.add_argument("--nouns", type=int, help="look for the drawings of so many (all; 0: none)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
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
    reader, judge = judges.load_reader(args.reader), load_identity()
    nouns = list(v.CLASS_NOUNS)[: args.nouns]
    alike = [f"a photo of {article(noun)}{noun}" for noun in nouns for _ in range(20)]
    world = [[render(s, seed=n + lot).image for n, s in enumerate(specs)] for lot in (0, 100_000)]
    places = list(v.PLACES)
    world_alike = [render(Spec(noun, places[n]), seed=n).image for noun in nouns for n in range(20)]
    pipeline = open_pipeline(args.pipeline, args.dtype)
    start = time.time()
    options = {"steps": args.steps, "guidance": args.guidance, "unguided": args.unguided}
    images = generate(pipeline, prompts, **options)
    seconds = (time.time() - start) / len(specs)
    images_alike = generate(pipeline, alike, **options)

    features = [embed(*judge, lot).double().numpy() for lot in (*world, images)]
    axes = principal(np.concatenate(features[:2]))
    first, second, generated = (each @ axes for each in features)
    floor = frechet(first, second)
    result = {
        "generated": accuracy(reader, images, named)
        | {
            "sharpness": energy(np.stack(images)) / energy(np.stack(world[0])),
            "frechet": frechet(generated, second) / floor,
        },
        "real": accuracy(reader, world[0], named) | {"sharpness": 1.0, "frechet": 1.0},
    }
    if nouns:
        for name, drawn in (("generated", images_alike), ("real", world_alike)):
            result[name]["drawings"] = all_drawings(drawn, nouns, judge)
    print(
        f"{len(specs)} held-out captions, {args.steps} steps, guidance {args.guidance} after "
        f"{args.unguided:.0%} of them, {seconds:.2f} s an image"
    )
    print(f"{'':12s} {'generated':>10s} {'real':>6s}  goal")
    for name, made in result["generated"].items():
        print(f"{name:12s} {made:10.3f} {result['real'][name]:6.3f}  {GOALS.get(name, '')}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.sheet:
        Image.fromarray(grid(images[:48], 12)).save(args.sheet)


if __name__ == "__main__":
    main()
