"""What `render.speed` costs in quality: `balanced` and `fast` against `exact`, caption by caption.

    python examples/tinyworld/speed.py                       # 500 held-out captions
    python examples/tinyworld/speed.py --captions 40

Draws the held-out captions of evaluate.py with regforge's renderer, the same seeds for all, and
reads class, place, colour, style and texture back from the images. What is printed of each speed:

- how many points fewer or more are right than with `exact`: paired differences, with their standard
  errors. The window of `fast` was chosen on the first 160 captions, so the rest is also by itself;
- the Fréchet distance between features of the judge (identity encoder, 24 principal components) and
  those of `exact` with other seeds, as a multiple of what two lots of seeds differ by;
- the diversity of ten images of one caption (mean cosine distance), as a share of that of `exact`.

Images are kept in `--out`; the same command goes on where it was stopped. It is nice to other work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import judges
from evaluate import HERE, _names, frechet, held_out_specs, principal
from evaluate_judge import embed
from regforge.embedded import TINYWORLD, load_identity, quiet_loading
from regforge.files import revision_of
from regforge.images import open_renderer
from regforge.journal import Journal, Reporter
from regforge.recipe.rendering import Render
from regforge.records import ImageJob, Prompt
from world.captions import Spec, caption

SLOTS = ("class_noun", "place", "color", "style", "texture")
SPEEDS = ("exact", "balanced", "fast")
SEEN = 160
"""Captions on which the window of `fast` was chosen."""
REPEATED, SEEDS = 6, 10
"""Captions that are drawn with many seeds, and with how many."""
BATCH = 20
MOST_LOST, MOST_DISTANCE, LEAST_DIVERSITY = 1.0, 1.5, 0.93


def draw(render: Render, texts: list[str], seeds: list[int], out: Path) -> np.ndarray:
    """Images of texts, uint8 [N, 96, 96, 3]; what lies in the folder is not drawn again."""
    key = [render.model_dump_json(), revision_of(TINYWORLD)]
    folder = out / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    images, renderer = [], None
    for start in range(0, len(texts), BATCH):
        part = list(zip(texts, seeds, strict=True))[start : start + BATCH]
        name = hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16]
        path = folder / f"{name}.npy"
        if not path.exists():
            renderer = renderer or open_renderer(
                render, journal=Journal(None), reporter=Reporter(quiet=True)
            )
            jobs = [
                ImageJob(n, f"{n:06}", Prompt(n, text, "cat", "living", "amplify"), seed)
                for n, (text, seed) in enumerate(part)
            ]
            pixels = np.stack([image.pixels for image in renderer.render(jobs)])
            np.save(folder / "unfinished.npy", pixels)
            (folder / "unfinished.npy").replace(path)
            print(f"{render.speed}: {start + len(part)} of {len(texts)}", flush=True)
        images.append(np.load(path))
    return np.concatenate(images)


def read_back(reader: Any, images: np.ndarray, specs: list[Spec]) -> dict[str, np.ndarray]:
    """Of each slot and caption 1 where it is read back, 0 where not, NaN where it says nothing."""
    import torch

    with torch.no_grad():
        found = [reader(judges.to_tensor(images[i : i + 50])) for i in range(0, len(images), 50)]
    scores = {}
    for slot in SLOTS:
        guessed = torch.cat([part[slot] for part in found]).argmax(-1)
        right = (guessed == judges.labels(specs, slot)).double().numpy()
        scores[slot] = np.where([_names(spec, slot) for spec in specs], right, np.nan)
    scores["all"] = np.nanmean(np.stack(list(scores.values())), axis=0)
    return scores


def paired(now: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """The mean difference in points, and its standard error."""
    difference = 100 * (now - before)
    known = difference[~np.isnan(difference)]
    return float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known)))


def diversity(features: np.ndarray) -> float:
    """Mean cosine distance between images of one caption; unit features, [captions, seeds, D]."""
    count = features.shape[1]
    similar = np.einsum("cid,cjd->cij", features, features).sum((1, 2)) - count
    return float(1 - (similar / (count * (count - 1))).mean())


def measure(count: int, guidance: float, out: Path) -> dict[str, Any]:
    """Draw and measure everything."""
    specs = held_out_specs(count)
    texts, seeds = [caption(spec) for spec in specs], list(range(count))
    repeated = [text for text in texts[:REPEATED] for _ in range(SEEDS)]
    reader, judge = judges.load_reader(HERE / "reader.safetensors"), load_identity()
    scores, features, varied = {}, {}, {}
    for speed in SPEEDS:
        own = {"steps": 25} if speed == "exact" else {}
        render = Render(speed=speed, guidance_scale=guidance, batch_size=BATCH, **own)
        images = draw(render, texts, seeds, out)
        again = draw(render, repeated, [10_000 + n for n in range(len(repeated))], out)
        scores[speed] = read_back(reader, images, specs)
        features[speed] = embed(*judge, list(images)).double().numpy()
        varied[speed] = diversity(
            embed(*judge, list(again)).double().numpy().reshape(-1, SEEDS, features[speed].shape[1])
        )
        if speed == "exact":
            others = draw(render, texts, [seed + 100_000 for seed in seeds], out)
            scores["other seeds"] = read_back(reader, others, specs)
            features["other seeds"] = embed(*judge, list(others)).double().numpy()
    both = np.concatenate([features["exact"], features["other seeds"]])
    axes = principal(both)
    reduced = {name: each @ axes for name, each in features.items()}
    floor = frechet(reduced["exact"], reduced["other seeds"])
    result: dict[str, Any] = {"captions": count, "right": {}, "speeds": {}}
    for name, each in scores.items():
        result["right"][name] = {slot: float(np.nanmean(each[slot])) for slot in (*SLOTS, "all")}
    for speed in SPEEDS[1:]:
        lots = {"all": slice(None)} | ({"unseen": slice(SEEN, None)} if count > SEEN else {})
        result["speeds"][speed] = {
            "points": {
                lot: {
                    slot: paired(scores[speed][slot][which], scores["exact"][slot][which])
                    for slot in (*SLOTS, "all")
                }
                for lot, which in lots.items()
            },
            "distance": frechet(reduced[speed], reduced["other seeds"]) / floor,
            "diversity": varied[speed] / varied["exact"],
        }
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--captions", type=int, default=500)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=HERE / "work" / "speed")
    parser.add_argument("--json", type=Path, help="save the numbers here")
    args = parser.parse_args()
    if hasattr(os, "nice"):
        os.nice(10)
    with quiet_loading():
        result = measure(args.captions, args.guidance, args.out)
    print(f"{'':24s}" + "".join(f"{slot:>14s}" for slot in (*SLOTS, "all")))
    for name, right in result["right"].items():
        print(f"{name + ', right':24s}" + "".join(f"{100 * each:14.1f}" for each in right.values()))
    for speed, found in result["speeds"].items():
        for lot, points in found["points"].items():
            cells = "".join(
                f"{f'{mean:+.1f} ({error:.1f})':>14s}" for mean, error in points.values()
            )
            print(f"{speed + ', ' + lot + ' captions':24s}{cells}")
        lost = [
            f"{slot} ({lot})"
            for lot, points in found["points"].items()
            for slot, (mean, error) in points.items()
            if mean + error < -MOST_LOST
        ]
        print(
            f"  Fréchet distance {found['distance']:.2f} times that of two seeds (at most "
            f"{MOST_DISTANCE}), diversity {found['diversity']:.2f} of exact (at least "
            f"{LEAST_DIVERSITY}), lost: {', '.join(lost) or 'nothing beyond its error'}"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
