"""A family, examples and weights of a few numbers, for tests of what happens around them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regforge.training.batches import Batch, Draw, Embeddings, Geometry, number_of


class SmallFamily:
    """Predicts `weight * noisy + bias(caption) * time`; targets are the noise."""

    def __init__(self) -> None:
        self.denoiser = nn.Conv2d(2, 2, 1)
        self.base = False
        self.forwards: list[int] = []
        self.encoded: list[str] = []

    def encode_captions(self, captions: Sequence[str]) -> list[Embeddings]:
        self.encoded += captions
        return [{"words": torch.tensor([float(len(caption))])} for caption in captions]

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
        return self.denoiser(noisy) + 0.01 * embeddings["words"].view(-1, 1, 1, 1)

    @contextmanager
    def teacher(self) -> Iterator[None]:
        self.base = True
        try:
            yield
        finally:
            self.base = False


def small_batch(draws: Sequence[Draw], *, embedded: bool = True, side: int = 4) -> Batch:
    """What each draw alone decides, whatever the others are."""

    def random(draw: Draw, name: str, *shape: int) -> Tensor:
        seed = number_of(0, draw.stream, draw.number, name)
        return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))

    captions = [f"{draw.stream} {draw.number}" for draw in draws]
    lengths = torch.tensor([[float(len(caption))] for caption in captions])
    return Batch(
        moments=torch.stack([random(draw, "image", 2, 2, side, side) for draw in draws]),
        sampling_noise=torch.stack([random(draw, "latent", 2, side, side) for draw in draws]),
        noise=torch.stack([random(draw, "noise", 2, side, side) for draw in draws]),
        uniform=torch.cat([random(draw, "time", 1) for draw in draws]),
        captions=captions,
        embeddings={"words": lengths} if embedded else None,
        geometry=[Geometry((side, side), (0, 0), (side, side))] * len(draws),
        instances=sum(draw.stream == "instance" for draw in draws),
    )


def photo(number: int) -> Draw:
    return Draw("instance", number, number)


def make_image(number: int) -> Draw:
    return Draw("class", number, number)
