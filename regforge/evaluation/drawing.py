"""Draws images with trained models, one base model in memory at a time.

    artist = Artist(steps=25)
    with artist.using(model) as pen:
        for drawn in pen.draw(wanted, folder=Path("images")):
            ...

A LoRA is laid on the base model and taken off again, so that ten LoRAs cost one loading. An image
depends on its model, prompt, seed and settings, and on nothing else; what made it is written into
its file, and a file that says the same is not drawn again. How a pipeline is called, and what to do
when memory runs out, `regforge.images` knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from regforge.evaluation import png
from regforge.evaluation.base_model import BaseModel, in_our_words
from regforge.evaluation.interface import Drawn, EvaluationError, PersonalizedModel, Wanted
from regforge.evaluation.model_files import base_digest, section
from regforge.files import write_atomically
from regforge.images.curation import constant_colour_of
from regforge.images.loras import lay_on, silent, take_off
from regforge.images.renderer import RenderError
from regforge.images.schedulers import sampler_name
from regforge.progress import Reporter, Task
from regforge.records import ImageJob, Prompt

if TYPE_CHECKING:
    from regforge.images.local import LocalRenderer
    from regforge.images.renderer import RenderedImage

STEPS = 25
"""Denoising steps where nobody says otherwise."""


def seed_of(seed: int, prompt: str, number: int) -> int:
    """The seed of an image, 0 to 2**32 - 1: the same for all models.

    Args:
        seed: Of the whole evaluation.
        prompt: What is drawn, or what stands for it.
        number: Which sample of it, from 0.
    """
    text = f"{seed}\0{prompt}\0{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


class Artist:
    """Draws with one model after the other.

    Args:
        device: `cuda`, `mps`, `cpu`, ...; the best there is if left out.
        dtype: `float32`, `float16` or `bfloat16`; the best for the device if left out.
        steps: Denoising steps.
        guidance_scale: Classifier-free guidance; the model's own (of its recipe's validation, else
            of its pipeline) if left out.
        batch_size: Images at a time; as many as memory suffices for if left out.
        resolution: Side of the square images, in pixels; what the model was trained at (its
            recipe's `data.resolution`, else its base model's own) if left out.
        reporter: Where people are told about smaller batches and the like.

    Attributes:
        notes: What people should know about the images drawn so far, a sentence each.

    Raises:
        EvaluationError: A number is out of range.
    """

    def __init__(
        self,
        device: str | None = None,
        dtype: str | None = None,
        steps: int = STEPS,
        guidance_scale: float | None = None,
        batch_size: int | None = None,
        *,
        resolution: int | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        _check(steps, guidance_scale, batch_size, resolution)
        self.notes: list[str] = []
        self.device = device
        self.dtype = dtype or "auto"
        self.steps = steps
        self.guidance_scale = guidance_scale
        self.batch_size = batch_size
        self.resolution = resolution
        self.reporter = reporter or Reporter(quiet=True)
        self._loaded: tuple[tuple[str | None, ...], BaseModel] | None = None

    def __enter__(self) -> Artist:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def using(self, model: PersonalizedModel) -> Iterator[Pen]:
        """Take up a model. It is loaded when its first image has to be drawn.

        Its LoRA is taken off when the block ends; the base model is kept for the next one.
        """
        pen = Pen(self, model)
        try:
            yield pen
        finally:
            pen._put_down()

    def close(self) -> None:
        """Give back the memory of the base model."""
        if self._loaded is not None:
            from regforge.devices import free_memory

            self._loaded = None
            free_memory()

    def settings_for(self, model: PersonalizedModel) -> dict[str, Any]:
        """What an image of a model follows from besides prompt and seed, as JSON has it.

        None stands for what the base model's pipeline takes by itself.
        """
        guidance = self.guidance_scale if self.guidance_scale is not None else model.guidance_scale
        trained_at = section(model.recipe, "data").get("resolution")
        return {
            "base_model": model.base,
            "revision": model.revision,
            "variant": model.variant,
            "weights": model.digest,
            "base_digest": base_digest(model.base, model.revision),
            "steps": self.steps,
            "guidance_scale": guidance,
            "resolution": self.resolution or (trained_at if isinstance(trained_at, int) else None),
        }

    def note(self, text: str) -> None:
        """Keep a note, and tell people, once."""
        if text not in self.notes:
            self.notes.append(text)
            self.reporter.say(f"note: {text}")

    def _base(self, model: PersonalizedModel) -> BaseModel:
        """The base model of a model, loaded if it is not there yet."""
        key = (model.base, model.revision, model.variant)
        if self._loaded is not None and self._loaded[0] == key:
            return self._loaded[1]
        self.close()
        self._loaded = (
            key,
            BaseModel.load(
                model,
                device=self.device,
                dtype=self.dtype,
                resolution=self.settings_for(model)["resolution"],
            ),
        )
        return self._loaded[1]


class Pen:
    """Draws with one model; made by `Artist.using`."""

    def __init__(self, artist: Artist, model: PersonalizedModel) -> None:
        self._artist = artist
        self._model = model
        self._settings = artist.settings_for(model)
        self._renderer: LocalRenderer | None = None
        self._base: BaseModel | None = None
        self._laid_on = False

    def draw(
        self, wanted: Sequence[Wanted], *, folder: Path | None = None, task: Task | None = None
    ) -> Iterator[Drawn]:
        """Draw images, in order.

        Those in the folder that were made from the same weights, prompt, seed and settings are
        read; others are drawn and written there, as PNG. A batch of which one is missing is drawn
        again whole, so that an interruption leaves no trace in the images.

        Args:
            wanted: What to draw. Each `file` differs.
            folder: Where files go and come from; None keeps none.
            task: Is advanced by one an image.

        Raises:
            RenderError: The model cannot be loaded, or an image cannot be drawn.
            LoraError: The LoRA does not go with the base model.
            StorageError: A file cannot be written.
        """
        there = [self._is_there(each, folder) for each in wanted]
        drawing = iter(()) if all(there) else self._drawn(wanted, there)
        ahead = next(drawing, None)
        for number, each in enumerate(wanted):
            image = None
            if ahead is not None and ahead.job.index == number:
                image, ahead = ahead, None
            if there[number]:
                decoded = self._read(each, folder)
                if task is not None:
                    task.skip(1)
            else:
                assert image is not None
                decoded = self._kept(each, image, folder)
                if task is not None:
                    task.advance()
            yield Drawn(each, decoded)
            if image is not None:
                ahead = next(drawing, None)

    # ------------------------------------------------------------------------------------- files

    def _is_there(self, wanted: Wanted, folder: Path | None) -> bool:
        """Whether the file is whole and holds this very image."""
        if folder is None or wanted.file is None:
            return False
        return png.is_made_from(folder / wanted.file, self._made_from(wanted))

    def _made_from(self, wanted: Wanted) -> dict[str, Any]:
        return {"prompt": wanted.prompt, "seed": wanted.seed, **self._settings}

    def _read(self, wanted: Wanted, folder: Path | None) -> Image.Image:
        assert folder is not None
        assert wanted.file is not None
        image, blacked_out = png.read(folder / wanted.file)
        self._note_blank(image, blacked_out)
        return image

    def _kept(self, wanted: Wanted, image: RenderedImage, folder: Path | None) -> Image.Image:
        decoded = Image.fromarray(image.pixels)
        self._note_blank(decoded, image.nsfw)
        if folder is not None and wanted.file is not None:
            write_atomically(folder / wanted.file, self._as_png(wanted, decoded, image.nsfw))
        return decoded

    def _as_png(self, wanted: Wanted, image: Image.Image, blacked_out: bool) -> bytes:
        """The image with what made it."""
        assert self._renderer is not None
        made_from = {"model": self._model.name, **self._made_from(wanted)}
        identity = self._renderer.identity
        parameters = {
            "Steps": self._artist.steps,
            "Sampler": sampler_name(identity.scheduler),
            "CFG scale": f"{self._base_guidance():g}",
            "Seed": wanted.seed,
            "Size": f"{image.width}x{image.height}",
            "Model": json.dumps(self._model.name),
            "Base model": json.dumps(self._model.base),
            "Weights": self._model.digest[:10],
            "Generator": "regforge",
        }
        return png.as_png(image, made_from, parameters, blacked_out=blacked_out)

    def _note_blank(self, image: Image.Image, blacked_out: bool) -> None:
        """Say, once, that there are images that show nothing."""
        if blacked_out:
            self._artist.note(
                f"The safety checker of {self._model.base} made images of {self._model.name} black."
            )
        elif constant_colour_of(image) is not None:
            self._artist.note(
                f"Images of {self._model.name} show nothing: they are black, or of a single colour."
            )

    # ----------------------------------------------------------------------------------- drawing

    def _drawn(self, wanted: Sequence[Wanted], there: Sequence[bool]) -> Iterator[RenderedImage]:
        """Images of all batches of which one is missing, in order."""
        renderer = self._take_up()
        self._note_too_long(
            [each.prompt for each, ready in zip(wanted, there, strict=True) if not ready]
        )
        size = renderer.batch_size
        numbers = [
            number
            for start in range(0, len(wanted), size)
            if not all(there[start : start + size])
            for number in range(start, min(start + size, len(wanted)))
        ]
        yield from self._as_numbers(renderer, wanted, numbers)

    def _as_numbers(
        self, renderer: LocalRenderer, wanted: Sequence[Wanted], numbers: Sequence[int]
    ) -> Iterator[RenderedImage]:
        jobs = [_job(number, wanted[number]) for number in numbers]
        done = 0
        try:
            for image in _silently(renderer.render(jobs)):
                if self._overflowed(image):
                    break
                if image.not_finite:
                    raise RenderError(
                        f"What {self._model.name} draws overflows (NaN), in float32 too.",
                        hint="Its weights hold numbers that are none, or far too large ones: train "
                        "it with a lower rate, or take an earlier snapshot.",
                    )
                yield image
                done += 1
        except RenderError as error:
            raise in_our_words(error) from error
        if done < len(jobs):
            renderer = self._more_exact()
            yield from self._as_numbers(renderer, wanted, numbers[done:])

    def _overflowed(self, image: RenderedImage) -> bool:
        """Whether an image is black because numbers became too large for half precision."""
        assert self._renderer is not None
        dtype = self._renderer.identity.dtype
        black = dtype == "float16" and not image.nsfw and not np.any(image.pixels)
        return black or (image.not_finite and dtype != "float32")

    def _more_exact(self) -> LocalRenderer:
        """The same base model in float32."""
        assert self._base is not None
        assert self._renderer is not None
        self._artist.note(
            f"{self._model.base} draws black in {self._renderer.identity.dtype}; going on in "
            "float32, which takes more memory and time."
        )
        self._base.to_float32()
        self._renderer = self._base.renderer(
            self._settings, self._artist.batch_size, self._artist.reporter
        )
        return self._renderer

    def _take_up(self) -> LocalRenderer:
        """Load what is needed, and lay the LoRA on."""
        if self._renderer is None:
            self._base = self._artist._base(self._model)
            if self._model.weights is not None and not self._laid_on:
                self._lay_on(self._model.weights)
            self._renderer = self._base.renderer(
                self._settings, self._artist.batch_size, self._artist.reporter
            )
        return self._renderer

    def _lay_on(self, weights: Path) -> None:
        assert self._base is not None
        try:
            notes = lay_on(self._base.pipeline, self._model.base, [(weights, 1.0)])
        except BaseException:
            self._artist.close()  # nobody knows what state it is in
            raise
        self._laid_on = True
        for note in notes:
            self._artist.note(f"{self._model.name}: {note}")

    def _put_down(self) -> None:
        """Leave the base model as it was."""
        self._renderer = None
        if self._laid_on and self._base is not None:
            self._laid_on = False
            try:
                take_off(self._base.pipeline)
            except BaseException:
                self._artist.close()  # nobody knows what state it is in
                raise
        self._base = None

    def _base_guidance(self) -> float:
        assert self._base is not None
        return self._base.guidance(self._settings)

    def _note_too_long(self, prompts: Iterable[str]) -> None:
        """Name prompts of which the text encoder does not see the end; once."""
        assert self._base is not None
        for prompt in dict.fromkeys(prompts):
            tokens, limit = self._base.tokens(prompt)
            if tokens > limit:
                self._artist.note(
                    f"The prompt has {tokens} tokens, and {self._model.base} reads the first "
                    f"{limit} of them: {prompt}"
                )


def _silently(images: Iterator[RenderedImage]) -> Iterator[RenderedImage]:
    """The same; diffusers prints a page of padding for each prompt that it has to cut."""
    while True:
        with silent():
            image = next(images, None)
        if image is None:
            return
        yield image


def _check(
    steps: int, guidance_scale: float | None, batch_size: int | None, resolution: int | None
) -> None:
    limits = (
        ("number of steps", steps, 1, 1000),
        ("guidance scale", guidance_scale, 0, 50),
        ("batch size", batch_size, 1, 1024),
        ("resolution", resolution, 8, 8192),
    )
    for name, value, least, most in limits:
        if value is not None and not least <= value <= most:
            raise EvaluationError(f"The {name} is {value}; it can be {least} to {most}.")


def _job(number: int, wanted: Wanted) -> ImageJob:
    prompt = Prompt(number, wanted.prompt, "", "object", "import")
    return ImageJob(number, wanted.file or f"{wanted.prompt!r}", prompt, wanted.seed)
