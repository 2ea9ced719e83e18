"""Photos, regularization sets and a family without models, for tests of what the trainer is fed."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from regforge.journal import Reporter
from regforge.recipe.training import TrainingRecipe
from regforge.training.batches import Draw
from regforge.training.examples import Examples
from regforge.training.families.base import Family

RESOLUTION = 16


class FakeFamily:
    """Latents are the image's own pixels, eight times smaller; embeddings follow from the words."""

    name = "fake"
    resolution = RESOLUTION
    side_multiple = 8

    def __init__(self, weight: float = 1.0) -> None:
        self.text_encoders = {"text_encoder": torch.nn.Linear(1, 1)}
        vae = torch.nn.Linear(1, 1)
        for module in (vae, *self.text_encoders.values()):
            torch.nn.init.constant_(module.weight, weight)
            torch.nn.init.zeros_(module.bias)
        self.pipeline = SimpleNamespace(vae=vae)
        self.images: list[Tensor] = []
        self.captions: list[str] = []
        self.gone = False

    def encode_images(self, pixels: Tensor) -> Tensor:
        assert not self.gone
        assert pixels.dtype == torch.float32
        assert pixels.abs().max() <= 1
        self.images += list(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.stack([mean, mean.abs() / 10 + 0.01], dim=1)

    def encode_captions(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        assert not self.gone
        self.captions += captions
        return [{"words": embedding_of(caption)} for caption in captions]


def embedding_of(caption: str) -> Tensor:
    numbers = np.frombuffer(hashlib.sha256(caption.encode()).digest(), dtype=np.uint8)
    return torch.from_numpy(numbers.astype(np.float32)).reshape(4, 8)


def family(weight: float = 1.0) -> tuple[Family, FakeFamily]:
    """The same thing twice, for mypy."""
    fake = FakeFamily(weight)
    return cast(Family, fake), fake


# ------------------------------------------------------------------------------------------ images


def make_image(color: Sequence[int], size: tuple[int, int] = (24, 32), **save: Any) -> bytes:
    """A PNG of one colour; the size is height and width."""
    buffer = io.BytesIO()
    Image.new("RGB", (size[1], size[0]), tuple(color)).save(buffer, "PNG", **save)
    return buffer.getvalue()


def noise(number: int, size: tuple[int, int] = (24, 32)) -> bytes:
    """A PNG in which no two crops are alike."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def color_of(number: int) -> tuple[int, int, int]:
    """A colour that tells which image it is."""
    return (number * 37 % 256, number * 101 % 256, number * 59 % 256)


def photos(folder: Path, count: int = 3, captions: bool = True, **options: Any) -> Path:
    """Photos of the colours 0, 1, 2, ... whose captions say their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:02d}.png").write_bytes(make_image(color_of(number), **options))
        if captions:
            text = f"a photo of a sks teapot, number {number}"
            (folder / f"{number:02d}.txt").write_text(text)
    return folder


def class_images(folder: Path, count: int = 5, first: int = 100) -> Path:
    """A regularization set in the form of an image folder, of images of several sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(first, first + count):
        size = (20 + number % 3 * 8, 28 + number % 2 * 9)
        (folder / f"{number}.png").write_bytes(make_image(color_of(number), size))
        text = f"a photo of a red teapot, number {number}"
        lines.append(json.dumps({"file_name": f"{number}.png", "text": text}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def parquet(path: Path, rows: Sequence[tuple[bytes, str | None]]) -> Path:
    """Images and captions in one Parquet file."""
    images = [{"bytes": image, "path": None} for image, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "text": [text for _, text in rows]})
    pq.write_table(table, path)
    return path


# ---------------------------------------------------------------------------------------- examples


def recipe(images: Path, dataset: Path | str | None = None, **sections: Any) -> TrainingRecipe:
    """A recipe; `sections` are merged into it: `data={"flip": True}`."""
    written: dict[str, Any] = {
        "name": "x",
        "subject": {"images": images, "identifier": "sks", "class_noun": "teapot"},
        "regularization": {"dataset": None if dataset is None else str(dataset)},
        "optimizer": {"steps": 30, "precision": "fp32"},
    }
    for section, values in sections.items():
        if isinstance(values, dict):
            written[section] = {**written.get(section, {}), **values}
        else:
            written[section] = values
    return TrainingRecipe.model_validate(written)


def opened(
    given: TrainingRecipe,
    model: Family | None = None,
    *,
    cache: Path | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Examples:
    return Examples(
        given,
        model or family()[0],
        cache_folder=cache,
        device="cpu",
        reporter=reporter or Reporter(quiet=True),
        **options,
    )


def draws_of(given: TrainingRecipe, examples: Examples, steps: int | None = None) -> list[Draw]:
    """What the loop draws in so many steps."""
    steps = given.optimizer.steps if steps is None else steps
    return [d for step in range(steps) for draws in examples.batches.step(step) for d in draws]


def tensors(examples: Examples, draws: Sequence[Draw]) -> list[dict[str, Any]]:
    """What each draw came to, in the order of the batches: draws of one shape are expected."""
    found = []
    for batch in examples.tensors(draws):
        for n in range(len(batch)):
            each: dict[str, Any] = {
                "moments": batch.moments[n],
                "sampling_noise": batch.sampling_noise[n],
                "noise": batch.noise[n],
                "uniform": batch.uniform[n],
                "caption": batch.captions[n],
                "geometry": batch.geometry[n],
            }
            if batch.embeddings is not None:
                each |= {name: value[n] for name, value in batch.embeddings.items()}
            found.append(each)
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Bit for bit."""
    if one.keys() != other.keys():
        return False
    return all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )
