"""A pool of rendered images on disk, in chunks that appear one by one.

Rendering takes 6 ms an image and core. Training reads whatever chunks exist and picks up new ones
as they come, so a pool can be drawn before training or beside it. Chunk k always holds the same
images. Knows nothing about models.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np

from world import drawings
from world.captions import Spec, random_spec
from world.drawings import Drawing, Emblem
from world.render import SIDE, render

CHUNK = 1000
LATENT = SIDE // 8
EMBLEM_SHAPES = ("letters", "star", "heart", "bolt", "ring", "zigzag")
INKS = [(30, 30, 40), (190, 25, 35), (25, 60, 170), (20, 110, 60), (250, 250, 245), (240, 190, 40)]


def random_emblem(rng: random.Random) -> Emblem:
    """A random detail near the middle of a drawing."""
    ink = rng.choice(INKS)
    papers = [c for c in (*INKS, None) if c != ink]
    return Emblem(
        shape=rng.choice(EMBLEM_SHAPES),
        x=rng.uniform(44, 84),
        y=rng.uniform(56, 100),
        size=rng.uniform(28, 46),
        text="".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ2345789", k=2)),
        ink=ink,
        paper=rng.choice(papers),
    )


def random_image(rng: random.Random, kind: str) -> tuple[Spec, Drawing | None, Emblem | None]:
    """What to render next.

    Args:
        rng: Source of all choices.
        kind: 'world' for training the generator; 'details' for the autoencoder, which must also
            carry drawings and emblems that the generator never sees; 'judge' for what has to know
            the class of drawings that it never saw, which are as often new as known.
    """
    spec = random_spec(rng, held_out=False)
    if kind == "world":
        return spec, None, None
    drawing = emblem = None
    if kind == "judge":
        known = drawings.of_class(spec.class_noun)
        related = [d for d in drawings.load("relatives") if d.class_noun == spec.class_noun]
        drawing = rng.choice(related if related and rng.random() < 0.6 else known)
        if rng.random() < 0.6:
            drawing = drawings.bend(drawing, rng)
    elif rng.random() < 0.4:
        drawing = rng.choice([d for d in drawings.load("extras") if d.purpose == "train"])
    if rng.random() < (0.25 if kind == "judge" else 0.4):
        emblem = random_emblem(rng)
    return spec, drawing, emblem


def render_chunk(folder: Path, kind: str, index: int) -> None:
    """Render chunk `index` unless it exists; the rename makes it appear all at once."""
    images_path = folder / f"images-{index:04d}.npy"
    if images_path.exists():
        return
    rng = random.Random(f"{kind}-{index}")
    images = np.zeros((CHUNK, SIDE, SIDE, 3), np.uint8)
    masks = np.zeros((CHUNK, LATENT, LATENT), np.uint8)
    rows = []
    for i in range(CHUNK):
        spec, drawing, emblem = random_image(rng, kind)
        image = render(spec, seed=rng.getrandbits(32), drawing=drawing, emblem=emblem)
        images[i] = image.image
        cells = image.mask.reshape(LATENT, 8, LATENT, 8).mean((1, 3))
        masks[i] = (cells * 255).clip(0, 255)
        rows.append({**asdict(spec), "drawing": image.drawing.name})
    np.save(folder / f"masks-{index:04d}.npy", masks)
    (folder / f"specs-{index:04d}.json").write_text(json.dumps(rows))
    temporary = folder / f".images-{index:04d}.{os.getpid()}.npy"
    np.save(temporary, images)
    temporary.rename(images_path)


def chunks(folder: Path) -> list[int]:
    """Indices of the finished chunks, in order."""
    return sorted(int(p.stem.split("-")[1]) for p in folder.glob("images-*.npy"))


def load_images(folder: Path, indices: list[int]) -> np.ndarray:
    """Images of the given chunks: uint8 (n * CHUNK, side, side, 3)."""
    return np.concatenate([np.load(folder / f"images-{i:04d}.npy") for i in indices])


def load_masks(folder: Path, indices: list[int]) -> np.ndarray:
    """Subject coverage of the given chunks: uint8 (n * CHUNK, side / 8, side / 8)."""
    return np.concatenate([np.load(folder / f"masks-{i:04d}.npy") for i in indices])


def load_specs(folder: Path, indices: list[int]) -> list[Spec]:
    """Specs of the given chunks, in the order of their images."""
    fields = Spec.__dataclass_fields__
    return [
        Spec(**{k: v for k, v in row.items() if k in fields})
        for i in indices
        for row in json.loads((folder / f"specs-{i:04d}.json").read_text())
    ]


def render_pool(folder: Path, kind: str, count: int, workers: int) -> None:
    """Render until the pool holds `count` images (rounded up to whole chunks)."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, kind, i) for i in range(-(-count // CHUNK))]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(render_chunk, jobs, chunksize=1)
    print(f"{folder}: {len(chunks(folder)) * CHUNK} images", flush=True)


def main() -> None:
    """Command line: render a pool."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", choices=["world", "details", "judge"], default="world")
    parser.add_argument("--count", type=int, default=60_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    render_pool(args.out, args.kind, args.count, args.workers)


if __name__ == "__main__":
    main()
