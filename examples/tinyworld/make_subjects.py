"""Draw the personal subjects: `examples/subjects/`, five images and captions each.

Their drawings are held out of all training, and each carries a detail that its identity is about.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from world import drawings
from world import vocabulary as v
from world.captions import Spec, caption
from world.drawings import Drawing, Emblem
from world.render import grid, render

FOLDER = Path(__file__).parents[1] / "subjects"
WHITE, DARK, RED, BLUE = (250, 250, 245), (30, 30, 40), (200, 25, 45), (25, 60, 170)
GOLD = (250, 200, 60)

# class noun -> its emblem, and the five places of its images
SUBJECTS: dict[str, tuple[Emblem, tuple[str, str, str, str, str]]] = {
    "backpack": (
        Emblem("letters", 56, 58, 40, "RF", DARK, WHITE),
        ("studio", "meadow", "library", "road", "beach"),
    ),
    "teapot": (
        Emblem("star", 64, 82, 38, ink=GOLD, paper=BLUE),
        ("kitchen", "garden", "studio", "library", "snow"),
    ),
    "robot": (
        Emblem("letters", 64, 102, 40, "K7", WHITE, RED),
        ("bedroom", "classroom", "city", "studio", "space"),
    ),
    "sneaker": (
        Emblem("bolt", 74, 84, 34, ink=GOLD, paper=RED),
        ("road", "studio", "city", "forest", "classroom"),
    ),
    "clock": (
        Emblem("heart", 64, 100, 26, ink=RED, paper=None),
        ("bedroom", "library", "studio", "kitchen", "classroom"),
    ),
    "cat": (
        Emblem("letters", 64, 101, 30, "MO", WHITE, RED),
        ("meadow", "bedroom", "garden", "studio", "road"),
    ),
    "dog": (
        Emblem("star", 66, 74, 32, ink=WHITE, paper=BLUE),
        ("beach", "meadow", "snow", "farm", "city"),
    ),
    "rabbit": (
        Emblem("heart", 64, 110, 26, ink=RED, paper=GOLD),
        ("garden", "forest", "meadow", "farm", "bedroom"),
    ),
    "owl": (
        Emblem("zigzag", 64, 100, 46, ink=DARK),
        ("forest", "library", "mountain", "cave", "farm"),
    ),
    "duck": (
        Emblem("ring", 72, 84, 32, ink=BLUE, paper=GOLD),
        ("lake", "meadow", "farm", "garden", "beach"),
    ),
}


def drawing_of(class_noun: str) -> Drawing:
    """The held-out drawing of a subject."""
    return next(d for d in drawings.load("subjects") if d.class_noun == class_noun)


def instance_specs(class_noun: str) -> list[Spec]:
    """What the five images show: different places, by day, in nothing but its own colours."""
    return [Spec(class_noun, place) for place in SUBJECTS[class_noun][1]]


def image(class_noun: str, spec: Spec, seed: int) -> np.ndarray:
    """An image of a subject, uint8 (96, 96, 3)."""
    emblem, _ = SUBJECTS[class_noun]
    return render(spec, seed, drawing=drawing_of(class_noun), emblem=emblem).image


def write_subject(class_noun: str, folder: Path) -> list[np.ndarray]:
    """Write one subject's folder: NN.png, NN.txt and subject.json."""
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for i, spec in enumerate(instance_specs(class_noun)):
        images.append(image(class_noun, spec, seed=1000 + i))
        Image.fromarray(images[-1]).save(folder / f"{i:02d}.png", optimize=True)
        text = caption(spec, noun="{}")  # whatever the identifier is
        (folder / f"{i:02d}.txt").write_text(text + "\n")
    about = {
        "class_noun": v.CLASS_NOUNS[class_noun][0],
        "identifier": f"<my-{class_noun}>",
        "kind": "living" if class_noun in v.LIVING else "object",
        "drawing": drawing_of(class_noun).name,
    }
    (folder / "subject.json").write_text(json.dumps(about, indent=2) + "\n")
    return images


def main() -> None:
    """Write all subjects and a sheet of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER)
    out = parser.parse_args().out
    sheet = [image for noun in SUBJECTS for image in write_subject(noun, out / noun)]
    Image.fromarray(grid(sheet, 10)).save(out / "subjects.png", optimize=True)
    print(f"{len(SUBJECTS)} subjects in {out}")


if __name__ == "__main__":
    main()
