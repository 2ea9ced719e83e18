"""Photos, a regularization set and a family of a few numbers: examples and steps without models."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from odd_images import file_of
from PIL import Image
from torch import Tensor, nn

from regforge.journal import Reporter
from regforge.recipe.training import TrainingRecipe
from regforge.training.batches import Draw, Embeddings, Geometry
from regforge.training.examples import Examples
from regforge.training.families.base import Family

RESOLUTION = 16
PLAIN: dict[str, Any] = {"caption_dropout": 0, "slot_dropout": 0, "crop_wording": False}


class SmallFamily:
    """Latents are the image's own pixels, eight times smaller; embeddings follow from the words.

    Predicts `denoiser(noisy) + 0.01 * mean(embeddings)`; targets are noise minus latents.
    """

    name = "small"
    token = None
    resolution = RESOLUTION
    side_multiple = 8

    def __init__(self, weight: float = 1.0) -> None:
        self.denoiser = nn.Conv2d(3, 3, 1)
        self.text_encoders = {"text_encoder": nn.Linear(1, 1)}
        vae = nn.Linear(1, 1)
        for module in (vae, *self.text_encoders.values()):
            nn.init.constant_(module.weight, weight)
            nn.init.zeros_(module.bias)
        self.pipeline = SimpleNamespace(vae=vae)
        self.images: list[Tensor] = []
        self.captions: list[str] = []
        self.forwards: list[int] = []
        self.gone = self.base = self.released = self.away = False

    def release_text_encoders(self) -> None:
        self.released = True

    def put_vae_away(self) -> None:
        self.away = True

    def encode_images(self, pixels: Tensor) -> Tensor:
        assert not self.gone
        assert pixels.dtype == torch.float32
        assert pixels.abs().max() <= 1
        self.images += list(pixels)
        mean = nn.functional.avg_pool2d(pixels, 8)
        return torch.stack([mean, mean.abs() / 10 + 0.01], dim=1)

    def encode_captions(self, captions: Sequence[str]) -> list[Embeddings]:
        assert not self.gone
        self.captions += captions
        return [{"words": embedding_of(caption)} for caption in captions]

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        return moments[:, 0] + moments[:, 1] * noise

    def times(self, uniform: Tensor) -> Tensor:
        return (uniform * 10).long()

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return latents + noise * (times / 10)[:, None, None, None]

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise - latents

    def weights(self, times: Tensor, min_snr_gamma: float | None) -> Tensor:
        if min_snr_gamma is None:
            return torch.ones(len(times))
        return min_snr_gamma / (1.0 + times)

    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> Tensor:
        assert len(noisy) == len(times) == len(embeddings["words"]) == len(geometry)
        self.forwards.append(len(noisy))
        if self.base:
            return torch.full_like(noisy, 7.0)
        words = embeddings["words"].mean((1, 2)).view(-1, 1, 1, 1)
        return self.denoiser(noisy) + 0.01 * words

    @contextmanager
    def teacher(self) -> Iterator[None]:
        self.base = True
        try:
            yield
        finally:
            self.base = False


def embedding_of(caption: str) -> Tensor:
    numbers = np.frombuffer(hashlib.sha256(caption.encode()).digest(), dtype=np.uint8)
    return torch.from_numpy(numbers.astype(np.float32)).reshape(4, 8)


def make_image(color: Sequence[int], size: tuple[int, int] = (24, 32)) -> bytes:
    """A PNG of one colour; the size is height and width."""
    return file_of(Image.new("RGB", (size[1], size[0]), tuple(color)))


def noise(number: int, size: tuple[int, int] = (24, 32)) -> bytes:
    """A PNG in which no two crops are alike."""
    values = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    return file_of(Image.fromarray(values))


def color_of(number: int) -> tuple[int, int, int]:
    """A colour that tells which image it is."""
    return (number * 37 % 256, number * 101 % 256, number * 59 % 256)


def photos(
    folder: Path, count: int = 3, *, captions: bool = True, size: tuple[int, int] = (24, 32)
) -> Path:
    """Photos of the colours 0, 1, 2, ... whose captions say their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:02d}.png").write_bytes(make_image(color_of(number), size))
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


class Built(Examples):
    """The examples of a recipe for some photos; `sections` are laid over it."""

    def __init__(
        self,
        images: Path,
        dataset: Path | str | None = None,
        *,
        model: SmallFamily | Family | None = None,
        cache_folder: Path | None = None,
        stream: io.StringIO | None = None,
        processes: int = 1,
        process: int = 0,
        **sections: Any,
    ) -> None:
        written: dict[str, Any] = {
            "name": "x",
            "subject": {"images": images, "identifier": "sks", "class_noun": "teapot"},
            "regularization": {"dataset": None if dataset is None else str(dataset)},
            "optimizer": {"steps": 30, "precision": "fp32"},
        }
        for name, values in sections.items():
            laid_over = {**written.get(name, {}), **values} if isinstance(values, dict) else values
            written[name] = laid_over
        self.recipe = TrainingRecipe.model_validate(written)
        self.family = cast(SmallFamily, model or SmallFamily())
        super().__init__(
            self.recipe,
            cast(Family, self.family),
            cache_folder=cache_folder,
            device="cpu",
            reporter=Reporter(stream=stream, quiet=stream is None),
            processes=processes,
            process=process,
        )

    def draws(self, steps: int | None = None) -> list[Draw]:
        """What the loop draws in so many steps; in all of them by default."""
        steps = self.recipe.optimizer.steps if steps is None else steps
        return [d for step in range(steps) for draws in self.batches.step(step) for d in draws]

    def each(self, draws: Sequence[Draw]) -> list[dict[str, Any]]:
        """What each draw came to, in the order of the batches: draws of one shape are expected."""
        found = []
        for batch in self.tensors(draws):
            columns = {
                name: value for name, value in vars(batch).items() if not isinstance(value, int)
            }
            columns |= columns.pop("embeddings")
            del columns["fresh"]
            found += [
                {name: value[n] for name, value in columns.items()} for n in range(len(batch))
            ]
        return found

    def one(self, draw: Draw) -> dict[str, Any]:
        """What a draw came to, alone."""
        (found,) = self.each([draw])
        return found

    def notes_with(self, *words: str) -> list[str]:
        return [note for note in self.notes if all(word in note for word in words)]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Bit for bit."""
    if one.keys() != other.keys():
        return False
    return all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )
