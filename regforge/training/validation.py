"""Images of what the model has learned so far, drawn with the modules that are being trained.

The same prompts and seeds each time, so that only the weights differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.dataset.samples import as_webp, labelled_grid
from regforge.embedded.phrase_banks import with_article
from regforge.files import write_atomically
from regforge.training.batches import number_of

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from regforge.recipe.training import TrainingRecipe
    from regforge.training.batches import Embeddings
    from regforge.training.families.base import Family
    from regforge.training.loop import Precision

IMAGES = "images"
"""The folder, in a run's, with one image of each prompt."""

_AT_ONCE = 4


@dataclass(frozen=True)
class Sample:
    """An image of a prompt; where its numbers overflowed it is black."""

    prompt: str
    number: int
    image: Image.Image
    not_finite: bool


def prompts_of(recipe: TrainingRecipe) -> tuple[str, ...]:
    """The recipe's validation prompts, or two with the identifier."""
    if recipe.validation.prompts:
        return recipe.validation.prompts
    named = f"{recipe.subject.identifier} {recipe.subject.class_noun}"
    named = with_article(named, recipe.subject.class_noun)
    return f"a photo of {named}", f"{named} on a beach"


class ValidationSampler:
    """Draws the validation prompts with the family's live modules.

    Frozen text encoders may be released afterwards: the prompts are encoded at once.
    """

    def __init__(
        self, recipe: TrainingRecipe, family: Family, *, device: torch.device, precision: Precision
    ) -> None:
        self._recipe = recipe
        self._family = family
        self._device = device
        self._precision = precision
        self._embeddings: dict[str, Embeddings] | None = None
        if not recipe.method.text_encoder:
            captions = ["", *prompts_of(recipe)]
            encoded = family.encode_captions(captions)
            self._embeddings = {
                caption: {name: value.cpu() for name, value in each.items()}
                for caption, each in zip(captions, encoded, strict=True)
            }

    def draw(self, each: int, *, stopped: Callable[[], bool] = lambda: False) -> list[Sample]:
        """Draw so many images of each prompt, in their order, with the weights as they are.

        Raises:
            KeyboardInterrupt: `stopped`, which is called after each denoising step, returned True.
        """
        import torch

        from regforge.images.pipelines import not_finite

        def check(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
            if stopped():
                raise KeyboardInterrupt
            return values

        recipe, family = self._recipe, self._family
        side = recipe.data.resolution or family.resolution
        wanted = [(prompt, n) for prompt in prompts_of(recipe) for n in range(each)]
        samples: list[Sample] = []
        family.pipeline.set_progress_bar_config(disable=True)
        with _ready(family, self._device), torch.no_grad():
            for start in range(0, len(wanted), _AT_ONCE):
                batch = wanted[start : start + _AT_ONCE]
                seeds = [number_of(recipe.seed, "validation", *one) for one in batch]
                with self._precision.autocast(self._device):
                    latents = family.pipeline(
                        **self._prompts([prompt for prompt, _ in batch]),
                        num_inference_steps=recipe.validation.steps,
                        guidance_scale=recipe.validation.guidance_scale,
                        height=side,
                        width=side,
                        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                        output_type="latent",
                        callback_on_step_end=check,
                    ).images
                # Not by the pipeline: under float16 many autoencoders draw black.
                pixels = family.decode(latents).cpu()
                black = torch.nan_to_num(pixels, nan=-1.0, posinf=-1.0, neginf=-1.0)
                images = family.pipeline.image_processor.postprocess(black)
                samples += [
                    Sample(prompt, number, image, overflowed)
                    for (prompt, number), image, overflowed in zip(
                        batch, images, not_finite(pixels), strict=True
                    )
                ]
        return samples

    def _prompts(self, prompts: list[str]) -> dict[str, Any]:
        """Prompts, and empty negative ones, as arguments of the pipeline."""
        import torch

        if self._embeddings is None:
            return {"prompt": prompts}
        arguments = {}
        for prefix, captions in (("", prompts), ("negative_", [""] * len(prompts))):
            for name in self._embeddings[""]:
                stacked = torch.stack([self._embeddings[caption][name] for caption in captions])
                arguments[prefix + name] = stacked.to(self._device)
        return arguments


def write_grid(samples: Sequence[Sample], path: Path) -> None:
    """The images with their prompts below, as WebP."""
    columns = 1 + max((each.number for each in samples), default=0)
    tiles = [(each.image, "", each.prompt) for each in samples]
    write_atomically(path, as_webp(labelled_grid(tiles, columns=max(2, min(4, columns)))))


def write_images(samples: Sequence[Sample], folder: Path) -> None:
    """The first image of each prompt, in the order of the prompts, as WebP."""
    first = [each.image for each in samples if each.number == 0]
    for number, image in enumerate(first, start=1):
        write_atomically(folder / IMAGES / f"{number:02d}.webp", as_webp(image))


@contextmanager
def _ready(family: Family, device: torch.device) -> Iterator[None]:
    """All modules on the device and not training, then each as it was before."""
    from torch import nn

    modules = [each for each in family.pipeline.components.values() if isinstance(each, nn.Module)]
    before = [(module, next(module.parameters()).device, module.training) for module in modules]
    try:
        for module in modules:
            module.to(device).eval()
        yield
    finally:
        for module, place, training in before:
            module.to(place).train(training)
