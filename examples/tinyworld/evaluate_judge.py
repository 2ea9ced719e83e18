"""How well the judge judges: retrieval of drawings, and captions against images.

Retrieval: a gallery of one image each of the drawings that no training has seen (120 icons and
the ten subjects), then other images of them, in places, lights and poses drawn anew; does the
nearest gallery image show the same drawing? Matching: held-out combinations in groups of 32; does
each image's own caption fit it best? Class: of "a photo of a cat", "a photo of a dog" and so on for
all class nouns, does the right one fit an image best, of known drawings and of the ten subjects'?

    python examples/tinyworld/evaluate_judge.py
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import make_subjects
from regforge.embedded import load_alignment, load_identity
from world import drawings
from world import vocabulary as v
from world.captions import Spec, article, caption, random_spec
from world.drawings import Drawing, Emblem
from world.render import render


def held_out_drawings() -> list[tuple[Drawing, Emblem | None]]:
    """Drawings that no model has been trained on, the subjects with their emblems."""
    extras = [(d, None) for d in drawings.load("extras") if d.purpose == "test"]
    subjects = [
        (make_subjects.drawing_of(noun), emblem)
        for noun, (emblem, _) in make_subjects.SUBJECTS.items()
    ]
    return [*extras, *subjects]


def photo_spec(rng: random.Random) -> Spec:
    """Any place, light and pose, as a photo in the drawing's own colours."""
    return Spec(
        class_noun="dog",  # of no account: the drawing is given
        place=rng.choice(list(v.PLACES)),
        light=rng.choice(list(v.LIGHTS)),
        motion=rng.choice([None, None, *v.MOTIONS]),
    )


def embed(model: Any, processor: Any, images: list[np.ndarray]) -> Any:
    """Unit-length identity embeddings, (n, 256)."""
    import torch

    rows = []
    for i in range(0, len(images), 64):
        part = [Image.fromarray(image) for image in images[i : i + 64]]
        with torch.no_grad():
            rows.append(model(**processor(part, return_tensors="pt")).pooler_output.flatten(1))
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


def retrieval(queries: int = 5, seed: int = 0) -> dict[str, float]:
    """Share of queries whose nearest gallery image shows the same drawing."""
    import torch

    model, processor = load_identity()
    rng, identities = random.Random(seed), held_out_drawings()

    def image(drawing: Drawing, emblem: Emblem | None) -> np.ndarray:
        return render(photo_spec(rng), rng.getrandbits(32), drawing=drawing, emblem=emblem).image

    gallery = embed(model, processor, [image(*identity) for identity in identities])
    asked = [image(*identity) for identity in identities for _ in range(queries)]
    similarity = embed(model, processor, asked) @ gallery.T
    truth = torch.arange(len(identities)).repeat_interleave(queries)
    return {
        "gallery": float(len(identities)),
        "top1": float((similarity.argmax(1) == truth).float().mean()),
        "top5": float((similarity.topk(5).indices == truth[:, None]).any(1).float().mean()),
    }


def matching(groups: int = 40, size: int = 32, seed: int = 0) -> float:
    """Share of images whose own caption fits best among `size` captions."""
    import torch

    model, processor, tokenizer = load_alignment()
    rng, right = random.Random(seed), 0
    for _ in range(groups):
        specs = [random_spec(rng, held_out=True) for _ in range(size)]
        images = [Image.fromarray(render(s, rng.getrandbits(32)).image) for s in specs]
        ids = tokenizer(
            [caption(s) for s in specs], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            pixels = processor(images, return_tensors="pt").pixel_values
            logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
        right += int((logits.argmax(1) == torch.arange(size)).sum())
    return right / (groups * size)


def class_found(images: int = 20, seed: int = 0) -> dict[str, float]:
    """Share of images whose own class noun fits best, of known and of unseen drawings."""
    import torch

    model, processor, tokenizer = load_alignment()
    nouns, rng = list(v.CLASS_NOUNS), random.Random(seed)
    ids = tokenizer(
        [f"a photo of {article(noun)}{noun}" for noun in nouns],
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).input_ids

    def share(shown: list[tuple[str, Drawing, Emblem | None]]) -> float:
        right = 0
        for noun, drawing, emblem in shown:
            drawn = [
                render(photo_spec(rng), rng.getrandbits(32), drawing=drawing, emblem=emblem).image
                for _ in range(images)
            ]
            with torch.no_grad():
                pixels = processor([Image.fromarray(i) for i in drawn], return_tensors="pt")
                logits = model(input_ids=ids, **pixels).logits_per_image
            right += int((logits.argmax(1) == nouns.index(noun)).sum())
        return right / (len(shown) * images)

    return {
        "class_known": share([(n, d, None) for n in nouns for d in drawings.of_class(n)[:1]]),
        "class_unseen": share(
            [
                (noun, make_subjects.drawing_of(noun), emblem)
                for noun, (emblem, _) in make_subjects.SUBJECTS.items()
            ]
        ),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="save the numbers here")
    args = parser.parse_args()
    found = retrieval()
    matched = matching()
    classes = class_found()
    print(
        f"retrieval among {found['gallery']:.0f} unseen drawings: "
        f"top-1 {found['top1']:.3f} (goal 0.97), top-5 {found['top5']:.3f}"
    )
    print(f"captions matched, 1 in 32, held-out combinations: {matched:.3f} (goal 0.95)")
    print(
        f"class noun found, 1 in {len(v.CLASS_NOUNS)}: known drawings "
        f"{classes['class_known']:.3f}, unseen ones {classes['class_unseen']:.3f} (goal 0.80)"
    )
    if args.json:
        args.json.write_text(json.dumps({**found, "matching": matched, **classes}, indent=2) + "\n")


if __name__ == "__main__":
    main()
