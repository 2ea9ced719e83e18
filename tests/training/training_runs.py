"""Training runs on the embedded pipeline that take a second or two."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.numpy import load_file

from regforge.journal import Reporter, Task
from regforge.recipe import TrainingRecipe

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


def weights(folder: Path) -> dict[str, Any]:
    """What a run made."""
    return load_file(folder / "lora" / "pytorch_lora_weights.safetensors")


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


def make_image(path: Path) -> Image.Image:
    """The image in a file."""
    with Image.open(path) as opened:
        return opened.convert("RGB")
