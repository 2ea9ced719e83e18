"""Training runs on the embedded pipeline, and tiny random models of every family."""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from images import drawing
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor

from regforge.images.encoding import stacked
from regforge.journal import Reporter, Task
from regforge.recipe import TrainingRecipe
from regforge.training.batches import Embeddings, Geometry
from regforge.training.families import open_family
from regforge.training.families.base import Family
from regforge.training.weights import Trainable

SUBJECTS = Path(__file__).parents[2] / "examples" / "subjects"
QUIET = Reporter(quiet=True)


def recipe(**sections: Any) -> TrainingRecipe:
    """Four steps on the cat, as small as it gets; sections are laid over that."""
    content: dict[str, Any] = {
        "name": "cat",
        "subject": {"images": SUBJECTS / "cat", "identifier": "sks", "class_noun": "cat"},
        "method": {"rank": 4},
        "data": {"resolution": 32, "crops_per_image": 2},
        "optimizer": {"steps": 4, "lr": 1e-3, "precision": "fp32"},  # alike on all CPUs
        "validation": {"prompts": ("a photo of a sks cat",), "every": 0, "steps": 1},
        "device": "cpu",
    }
    for name, values in sections.items():
        laid_over = {**content.get(name, {}), **values} if isinstance(values, dict) else values
        content[name] = laid_over
    return TrainingRecipe.model_validate(content)


def regularization(folder: Path) -> Path:
    """A dataset of five captioned images of dogs."""
    folder.mkdir()
    for number, photo in enumerate(sorted((SUBJECTS / "dog").glob("*.png"))):
        (folder / f"{number}.png").write_bytes(photo.read_bytes())
        (folder / f"{number}.txt").write_text(f"a dog, number {number}")
    return folder


TOKEN = "<my-cat>"


def renamed(folder: Path) -> dict[str, Any]:
    """A subject of the cat's photos in a new folder, whose captions call it by a new token."""
    folder.mkdir(exist_ok=True)
    for path in (SUBJECTS / "cat").iterdir():
        content = path.read_bytes()
        is_text = path.suffix == ".txt"
        (folder / path.name).write_bytes(
            content.replace(b"sks", TOKEN.encode()) if is_text else content
        )
    return {"images": folder, "identifier": {"new": TOKEN}, "class_noun": "cat"}


def weights(folder: Path) -> dict[str, Any]:
    """What a run made."""
    files = [folder / "lora" / "pytorch_lora_weights.safetensors", *folder.glob("embedding/*")]
    return {name: value for file in files for name, value in load_file(file).items()}


def differences(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest between any two numbers."""
    assert one.keys() == other.keys()
    return max(float(abs(one[key] - other[key]).max()) for key in one)


class Signalling(Reporter):
    """Sends this process a signal when so many steps are done."""

    def __init__(self, number: int, at: int) -> None:
        super().__init__(stream=io.StringIO())
        self._number = number
        self._at = at

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "", done: int = 0) -> Iterator[Task]:
        with super().task(name, total, unit, done) as task:
            if name == "training":
                advance: Callable[[int], None] = task.advance

                def advance_and_send(count: int = 1) -> None:
                    advance(count)
                    if task.done == self._at:
                        os.kill(os.getpid(), self._number)

                task.advance = advance_and_send  # type: ignore[method-assign]
            yield task


def front(card: str | bytes) -> dict[str, Any]:
    """The front matter of a card."""
    text = card.decode() if isinstance(card, bytes) else card
    found = re.match(r"---\n(.*?)^---\n", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    values: dict[str, Any] = yaml.safe_load(found[1])
    return values


def make_image(path: Path) -> Image.Image:
    """The image in a file."""
    with Image.open(path) as opened:
        return opened.convert("RGB")


KINDS = ("sd", "sd-v", "sdxl", "sd3")
"""Stable Diffusion that predicts noise, and velocity (the embedded one); XL; and 3."""

CAPTIONS = ("a photo of a red teapot on a beach", "a blue cat")
GEOMETRY = (Geometry((100, 80), (3, 4), (32, 32)), Geometry((50, 61), (0, 0), (32, 32)))


def build(kind: str, folder: Path) -> str:
    """What a recipe's `base_model` says for a family."""
    match kind:
        case "sd-v":
            return "embedded/tinyworld"
        case "sd":
            return sd(folder)
        case "sdxl":
            return drawing.sdxl(folder)
        case "sd3":
            return drawing.sd3(folder)
    raise AssertionError(kind)


def sd(folder: Path, *, in_channels: int = 4, **scheduler: Any) -> str:
    """A Stable Diffusion folder; it predicts noise unless the scheduler is told otherwise."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    parts = drawing._parts()
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=2,
        cross_attention_dim=16,
    )
    StableDiffusionPipeline(
        **parts,
        text_encoder=CLIPTextModel(drawing._text_config(len(parts["tokenizer"]), 16, 16)),
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            **scheduler,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)


def opened(base: str, dtype: torch.dtype = torch.float32, **sections: Any) -> Family:
    """All of it, the denoiser too."""
    family = open_family(recipe(base_model=base, **sections), torch.device("cpu"), dtype)
    assert family.denoiser is getattr(family.pipeline, family.denoiser_name)
    return family


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latents_of(family: Family, count: int = 2) -> Tensor:
    side = family.resolution // family.pipeline.vae_scale_factor
    return random(count, family.pipeline.vae.config.latent_channels, side, side)


def embedded(family: Family, captions: Sequence[str] = CAPTIONS) -> Embeddings:
    """Embeddings of captions, with a batch axis."""
    return stacked(family.encode_captions(captions))


def predicted(family: Family) -> Tensor:
    """What the family says of two fixed latents with fixed captions."""
    noisy = latents_of(family)
    times = family.times(torch.tensor([0.3, 0.8]))
    return family.predict(noisy, times, embedded(family), GEOMETRY)


def move(trainable: Trainable, by: float = 0.05) -> None:
    """Change all that is trained, as training would."""
    with torch.no_grad():
        for number, parameter in enumerate(trainable.parameters.values()):
            parameter += by * random(*parameter.shape, seed=number)
