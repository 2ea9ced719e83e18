"""An evaluation that nobody ran: seeded scores, and images of no matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from regforge.evaluation.metrics import Interval
from regforge.evaluation.results import Evaluation, compare, summarize
from regforge.evaluation.suites import BenchmarkPrompt, ImageScores, PersonalizedModel, Subject

PLACES = (
    ("in the jungle", "#2f7d4f"),
    ("in the snow", "#dfe7ee"),
    ("on the beach", "#e6cf98"),
    ("on a cobblestone street", "#8e8b88"),
    ("on top of pink fabric", "#e9a9bd"),
    ("with a city in the background", "#6d7fa3"),
    ("on a wooden floor", "#a5734a"),
    ("floating in an ocean of milk", "#f4f1e6"),
)
STYLES = (("as an oil painting", "#7a4a38"), ("as a watercolor", "#bcd9dd"))
MODELS = (  # name, identity, alignment, share of the class that became the subject, color shift
    ("no regularization", 0.71, 0.235, 0.62, 0),
    ("naive", 0.67, 0.262, 0.5, 40),
    ("against + amplify", 0.69, 0.291, 0.41, 12),
)
SUBJECT = Subject("sks", "teapot", "object", None)


def made_evaluation(
    folder: Path,
    models: Sequence[tuple[str, float, float, float, int]] = MODELS,
    *,
    samples: int = 4,
    size: int = 96,
    subject: Subject = SUBJECT,
    places: Sequence[tuple[str, str]] = PLACES,
) -> Evaluation:
    """Writes the images below the folder; everything follows from the arguments."""
    questions = [
        *(BenchmarkPrompt(f"a {{}} {text}", "dreambench", "place") for text, _ in places),
        *(BenchmarkPrompt(f"a {{}} {text}", "styles", "style") for text, _ in STYLES),
    ]
    colors = [color for _, color in [*places, *STYLES]]
    noun = f"{subject.identifier} {subject.class_noun}"
    results = []
    for place, (name, identity, alignment, leak, shift) in enumerate(models):
        model = PersonalizedModel(
            name=name,
            base="embedded/tinyworld",
            digest=f"{place}" * 64,
            weights=Path("runs") / "lora.safetensors",
            subject=subject,
            steps=800,
            prompts=(f"a {noun} on the moon",),
            recipe={"name": name, "seed": 0},
        )
        measured = []
        for asked, (question, color) in enumerate(zip(questions, colors, strict=True)):
            for number in range(samples):
                # What the prompt and the noise do is shared by the models; a little is their own.
                shared = np.random.default_rng([asked, number]).normal(size=3)
                own = np.random.default_rng([place, asked, number]).normal(size=3)
                of_prompt = np.random.default_rng([asked, 99]).normal(size=3)
                values = 0.05 * of_prompt + 0.03 * shared + 0.015 * own
                scores = {
                    "dino": identity + values[0],
                    "clip_i": identity + 0.1 + 0.6 * values[0],
                    "clip_t": alignment + 0.4 * values[1],
                    "matched": float(values[1] + alignment > 0.2),
                    "div": 0.3 + 0.5 * values[2],
                }
                file = f"images/{place}/{asked}-{number}.png"
                _draw(folder / file, color, shift + 25 * number, size)
                prompt = question.about(noun)
                measured.append(ImageScores(question, prompt, number, file, scores))
        for number in range(2 * samples):
            file = f"images/{place}/class-{number}.png"
            _draw(folder / file, "#efe9df", 120 + shift + 37 * number, size)
            score = leak + 0.05 * np.random.default_rng([place, number, 7]).normal()
            prompt = f"a photo of a {subject.class_noun}"
            measured.append(ImageScores(None, prompt, number, file, {"pres": float(score)}))
        results.append(summarize(model, measured, resamples=2000))
    photos = [f"references/{number}.webp" for number in range(4)]
    for number, file in enumerate(photos):
        _draw(folder / file, ("#f2f2f2", "#c8b89a", "#93a7b8", "#5f6f5a")[number], 0, size)
    return Evaluation(
        folder=folder,
        settings={
            "samples": samples,
            "seed": 0,
            "suites": ["dreambench", "styles"],
            "encoders": {"structure": "facebook/dino-vits16", "alignment": "openai/clip-vit-b-32"},
            "guidance_scale": None,
        },
        references={noun: photos},
        held_out=False,
        ceiling={noun: {"dino": Interval(0.774, 0.74, 0.80, 4)}},
        results=results,
        comparisons=compare(results, resamples=2000),
        notes=["The embedded judge knows its own world only."],
    )


def _draw(path: Path, background: str, hue: int, size: int) -> None:
    """Something on something."""
    image = Image.new("RGB", (size, size), background)
    box = (size // 4, size // 3, size * 3 // 4, size * 3 // 4)
    ImageDraw.Draw(image).ellipse(box, fill=f"hsl({hue % 360}, 62%, 48%)")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
