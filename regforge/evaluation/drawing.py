"""Draws images with trained models, one base model in memory at a time.

    with ModelPool(steps=25) as pool, pool.use(model) as loaded:
        for image in loaded.draw(requests, folder=Path("images")):
            ...

A LoRA or a new token is put on the base model and taken off again, so that ten cost one loading.
An image depends on its model, prompt, seed and settings, and on nothing else; what made it is
written into its file, and a file that says the same is not drawn again. How a pipeline is called,
and what to do when memory runs out, is the business of `regforge.images`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from regforge.embedded import EMBEDDED
from regforge.evaluation.models import base_digest
from regforge.evaluation.suites import EvaluationError, ImageRequest, PersonalizedModel
from regforge.files import parse_json, write_atomically
from regforge.images.curation import constant_colour_of
from regforge.images.finding import ModelChoice
from regforge.images.loading import load_model, require_quantizer
from regforge.images.loras import load_loras, silent, unload_loras
from regforge.images.pipelines import sampler_name
from regforge.images.renderer import (
    ModelIdentity,
    RenderedImage,
    RenderError,
    RenderSettingError,
)
from regforge.journal import Journal, Reporter, Task
from regforge.recipe.rendering import Render
from regforge.recipe.sections import Quantize
from regforge.records import ImageJob, Prompt

if TYPE_CHECKING:
    import torch

    from regforge.images.local import LocalRenderer
    from regforge.prompts.tokens import TokenBudget

STEPS = 25
"""Denoising steps by default."""

_EMBEDDED_GUIDANCE = 4.0  # what the embedded pipeline was measured with
_USUAL_GUIDANCE = 5.0
_CHUNK = "regforge"  # of a PNG: what made it, as JSON
_BLACKED_OUT = "blacked_out"


def seed_of(seed: int, prompt: str, number: int) -> int:
    """The seed of a sample of a prompt, 0 to 2**32 - 1: the same for all models."""
    text = f"{seed}\0{prompt}\0{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


@dataclass(kw_only=True)
class ModelPool:
    """Loads models, one after the other, and keeps the base model for the next one.

    Attributes:
        device: `cuda`, `mps`, `cpu`, ...; the best there is by default.
        dtype: `float32`, `float16` or `bfloat16`; the best for the device by default.
        guidance_scale: The model's own (of its recipe's validation, else of its pipeline) by
            default.
        batch_size: Images at a time; as many as memory suffices for by default.
        resolution: Side of the square images, in pixels; by default what the model was trained at
            (its recipe's `data.resolution`, else its base model's own).
        notes: What people should know about the images drawn so far, a sentence each.

    Raises:
        EvaluationError: A number is out of range.
    """

    device: str | None = None
    dtype: str | None = None
    steps: int = STEPS
    guidance_scale: float | None = None
    batch_size: int | None = None
    resolution: int | None = None
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    notes: list[str] = field(default_factory=list, init=False)
    _base: tuple[tuple[str | None, ...], BaseModel] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("number of steps", self.steps, 1, 1000),
            ("guidance scale", self.guidance_scale, 0, 50),
            ("batch size", self.batch_size, 1, 1024),
            ("resolution", self.resolution, 8, 8192),
        ):
            if value is not None and not least <= value <= most:
                raise EvaluationError(f"The {name} is {value}; it can be {least} to {most}.")

    def __enter__(self) -> ModelPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def use(self, model: PersonalizedModel) -> Iterator[LoadedModel]:
        """Draw with a model. It is loaded when its first image has to be drawn.

        Its LoRA is taken off when the block ends.
        """
        loaded = LoadedModel(self, model)
        try:
            yield loaded
        finally:
            loaded.unload()

    def close(self) -> None:
        """Give back the memory of the base model."""
        if self._base is not None:
            from regforge.devices import free_memory

            self._base = None
            free_memory()

    def settings_for(self, model: PersonalizedModel) -> dict[str, Any]:
        """What an image of a model follows from besides prompt and seed, as JSON has it.

        None stands for what the base model's pipeline takes by itself.
        """
        guidance = self.guidance_scale if self.guidance_scale is not None else model.guidance_scale
        trained_at = model.setting("data", "resolution")
        quantize = self.quantize_for(model)
        return {
            "base_model": model.base,
            "revision": model.revision,
            "variant": model.variant,
            **({"config": model.config} if model.config else {}),
            **({"quantize": quantize} if quantize else {}),
            "weights": model.digest,
            "base_digest": base_digest(model.base, model.revision),
            "steps": self.steps,
            "guidance_scale": guidance,
            "resolution": self.resolution or (trained_at if isinstance(trained_at, int) else None),
        }

    def quantize_for(self, model: PersonalizedModel) -> str | None:
        """How the base model was quantized in training, if this machine can do the same."""
        wanted = model.setting("method", "quantize")
        if wanted not in get_args(Quantize):
            return None
        try:
            require_quantizer(wanted, self.device, "method.quantize", "device")
        except RenderSettingError:
            return None
        return str(wanted)

    def note(self, text: str) -> None:
        """Keep a note, and tell people, once."""
        if text not in self.notes:
            self.notes.append(text)
            self.reporter.say(f"note: {text}")

    def base(self, model: PersonalizedModel) -> BaseModel:
        """The base model of a model, loaded if it is not there yet."""
        quantize = self.quantize_for(model)
        key = (model.base, model.revision, model.variant, model.config, quantize)
        if self._base is None or self._base[0] != key:
            self.close()
            self._base = (key, BaseModel.load(model, self))
        return self._base[1]


class LoadedModel:
    """Draws with one model; made by `ModelPool.use`."""

    def __init__(self, pool: ModelPool, model: PersonalizedModel) -> None:
        self._pool, self._model = pool, model
        self._settings = pool.settings_for(model)
        self._base: BaseModel | None = None
        self._renderer: LocalRenderer | None = None
        self._budget: TokenBudget | None = None
        self._take_off: Callable[[], None] = lambda: None

    def draw(
        self,
        requests: Sequence[ImageRequest],
        *,
        folder: Path | None = None,
        task: Task | None = None,
    ) -> Iterator[Image.Image]:
        """Draw images, RGB, in order.

        Those in the folder that were made from the same weights, prompt, seed and settings are
        read; others are drawn and written there, as PNG. A batch of which one is missing is drawn
        again whole, so that an interruption leaves no trace in the images.
        """
        model = self._model
        paths = [folder / each.file if folder and each.file else None for each in requests]
        facts = [{"prompt": r.prompt, "seed": r.seed, **self._settings} for r in requests]
        ready = [
            path is not None and is_made_from(path, made_from)
            for path, made_from in zip(paths, facts, strict=True)
        ]
        drawn = iter(()) if all(ready) else self._missing(requests, ready)
        for path, made_from, there in zip(paths, facts, ready, strict=True):
            if there and path is not None:
                with Image.open(path, formats=["PNG"]) as file:
                    nsfw = bool(json.loads(file.info[_CHUNK]).get(_BLACKED_OUT))
                    image = file.convert("RGB")
            else:
                rendered = next(drawn)
                nsfw, image = rendered.nsfw, Image.fromarray(rendered.pixels)
            if nsfw:
                self._pool.note(
                    f"The safety checker of {model.base} made images of {model.name} black."
                )
            elif constant_colour_of(image) is not None:
                self._pool.note(
                    f"Images of {model.name} show nothing: they are black, or of a single colour."
                )
            if path is not None and not there:
                write_atomically(path, self._as_png(image, made_from, nsfw))
            if task is not None:
                (task.skip if there else task.advance)(1)
            yield image

    def unload(self) -> None:
        """Leave the base model as it was."""
        base, self._base, self._renderer = self._base, None, None
        if base is not None and self._model.weights is not None:
            try:
                self._take_off()
                unload_loras(base.pipeline)
            except BaseException:
                self._pool.close()  # its state is unknown
                raise

    def _load(self) -> LocalRenderer:
        """Load what is needed, and put the LoRA and the new token on."""
        if self._base is None:
            from regforge.images.loras import load_embedding
            from regforge.prompts.tokens import pipeline_budget

            model, base = self._model, self._pool.base(self._model)
            loras = [(model.weights, 1.0)] if model.weights not in (None, model.embedding) else []
            try:
                notes = load_loras(base.pipeline, model.base, loras)
                if model.embedding is not None:
                    self._take_off = load_embedding(base.pipeline, model.embedding)
            except BaseException:
                self._pool.close()  # its state is unknown
                raise
            for note in notes:
                self._pool.note(f"{model.name}: {note}")
            self._base, self._budget = base, pipeline_budget(base.pipeline)
        self._renderer = self._base.renderer(self._settings, self._pool)
        return self._renderer

    def _missing(
        self, requests: Sequence[ImageRequest], ready: Sequence[bool]
    ) -> Iterator[RenderedImage]:
        """Images that are not ready, in order."""
        renderer = self._renderer or self._load()
        assert self._base is not None
        assert self._budget is not None
        missing = (each.prompt for each, there in zip(requests, ready, strict=True) if not there)
        for prompt in dict.fromkeys(missing):
            tokens, limit = self._budget.count(prompt), self._budget.limit
            if tokens > limit:
                self._pool.note(
                    f"The prompt has {tokens} tokens, and {self._model.base} reads the first "
                    f"{limit} of them: {prompt}"
                )
        size = renderer.batch_size
        numbers = [
            number
            for start in range(0, len(requests), size)
            if not all(ready[start : start + size])
            for number in range(start, min(start + size, len(requests)))
        ]
        drawn = self._drawn(renderer, requests, numbers)
        return (image for image in drawn if not ready[image.job.index])

    def _drawn(
        self, renderer: LocalRenderer, requests: Sequence[ImageRequest], numbers: Sequence[int]
    ) -> Iterator[RenderedImage]:
        jobs = []
        for number in numbers:
            each = requests[number]
            prompt = Prompt(number, each.prompt, "", "object", "import")
            jobs.append(ImageJob(number, each.file or repr(each.prompt), prompt, each.seed))
        done = 0
        try:
            for image in _silently(renderer.render(jobs)):
                dtype = renderer.identity.dtype
                black = dtype == "float16" and not image.nsfw and not np.any(image.pixels)
                if black or (image.not_finite and dtype != "float32"):
                    break  # numbers became too large for half precision
                if image.not_finite:
                    raise RenderError(
                        f"What {self._model.name} draws overflows (NaN), in float32 too.",
                        hint="Its weights hold numbers that are none, or far too large ones: train "
                        "it with a lower rate, or take an earlier snapshot.",
                    )
                yield image
                done += 1
        except RenderError as error:
            raise _without_keys(error) from error
        if done < len(jobs):
            assert self._base is not None
            self._pool.note(
                f"{self._model.base} draws black in {renderer.identity.dtype}; going on in "
                "float32, which takes more memory and time."
            )
            import torch

            self._base.pipeline.to(torch.float32)
            self._base.dtype = "float32"
            yield from self._drawn(self._load(), requests, numbers[done:])

    def _as_png(self, image: Image.Image, made_from: Mapping[str, Any], nsfw: bool) -> bytes:
        """The image with what made it: as JSON for us, and as web UIs write it for browsers."""
        assert self._renderer is not None
        assert self._base is not None
        parameters = {
            "Steps": self._pool.steps,
            "Sampler": sampler_name(self._renderer.identity.scheduler),
            "CFG scale": f"{self._base.guidance(self._settings):g}",
            "Seed": made_from["seed"],
            "Size": f"{image.width}x{image.height}",
            "Model": json.dumps(self._model.name),
            "Base model": json.dumps(self._model.base),
            "Weights": self._model.digest[:10],
            "Generator": "regforge",
        }
        line = ", ".join(f"{key}: {value}" for key, value in parameters.items())
        chunks = PngInfo()
        chunks.add_text("parameters", f"{made_from['prompt']}\n{line}".replace("\0", ""))
        facts = {"model": self._model.name, **made_from, **({_BLACKED_OUT: True} if nsfw else {})}
        chunks.add_text(_CHUNK, json.dumps(facts))
        out = io.BytesIO()
        image.save(out, "PNG", pnginfo=chunks, compress_level=1)  # 6 takes longer and saves little
        return out.getvalue()


def is_made_from(path: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a PNG is there, is whole, and says that all this made it."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            facts = parse_json(image.info[_CHUNK])
            image.verify()
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, Image.DecompressionBombError):
        return False
    return isinstance(facts, dict) and made_from.items() <= facts.items()


def _silently(images: Iterator[RenderedImage]) -> Iterator[RenderedImage]:
    """The same; diffusers prints a page of padding for each prompt that it has to cut."""
    while True:
        with silent():
            image = next(images, None)
        if image is None:
            return
        yield image


# --------------------------------------------------------------------------------- the base model


@dataclass
class BaseModel:
    """A base model in memory: a diffusers pipeline on its device."""

    pipeline: Any
    name: str
    folder: Path
    dtype: str
    device: torch.device

    @classmethod
    def load(cls, model: PersonalizedModel, pool: ModelPool) -> BaseModel:
        """Load a model's base as a pool says and put it where it computes."""
        from regforge.devices import pick_device, pick_dtype
        from regforge.images.pipelines import default_size, place

        quantize = pool.quantize_for(model)
        if quantize is None and (wanted := model.setting("method", "quantize")):
            pool.note(
                f"{model.base} had {wanted} weights in training, which this machine cannot make: "
                "it draws with whole ones."
            )
        choice = ModelChoice(
            model.base,
            model.revision,
            model.variant,
            model.config,
            quantize=quantize,
            key="base_model",
            variant_key="variant",
        )
        size = pool.settings_for(model)["resolution"]
        try:
            device = pick_device(pool.device, "device")
            dtype = pick_dtype(pool.dtype or "auto", device, "dtype")
            pipeline, found = load_model(choice, dtype)
            render = Render(model=model.base, width=size, height=size)
            width, height = default_size(pipeline, render)
            place(pipeline, render, device, width * height)
        except RenderError as error:
            raise _without_keys(error) from error
        return cls(pipeline, model.base, found.folder, str(dtype).removeprefix("torch."), device)

    def renderer(self, settings: Mapping[str, Any], pool: ModelPool) -> LocalRenderer:
        """A renderer of the pipeline as it is now; it encodes prompts anew."""
        from regforge.devices import first_batch_size
        from regforge.images.local import LocalRenderer
        from regforge.images.pipelines import default_size

        render = Render(
            model=self.name,
            steps=settings["steps"],
            guidance_scale=self.guidance(settings),
            width=settings["resolution"],
            height=settings["resolution"],
        )
        width, height = default_size(self.pipeline, render)
        scheduler = type(self.pipeline.scheduler).__name__
        return LocalRenderer(
            self.pipeline,
            render,
            ModelIdentity(self.name, None, scheduler, self.dtype, width, height),
            pool.batch_size or first_batch_size(self.device, width * height),
            journal=Journal(None),
            reporter=pool.reporter,
        )

    def guidance(self, settings: Mapping[str, Any]) -> float:
        """The guidance scale of the settings, else what the pipeline takes by itself."""
        from regforge.images.pipelines import inputs_of

        if settings["guidance_scale"] is not None:
            return float(settings["guidance_scale"])
        if self.name == EMBEDDED:
            return _EMBEDDED_GUIDANCE
        parameter = inputs_of(self.pipeline).get("guidance_scale")
        default = None if parameter is None else parameter.default
        return float(default) if isinstance(default, int | float) else _USUAL_GUIDANCE


def _without_keys(error: RenderError) -> RenderError:
    """The same error without hints at keys of a dataset's recipe, which there is none of here."""
    hint = error.hint
    if hint is not None and "render." in hint:
        hint = (
            "Use a GPU with more memory, give the one there is back from other programs, or draw "
            "on the CPU: CUDA_VISIBLE_DEVICES= before the command."
            if "emory" in error.message
            else None
        )
    return type(error)(error.message.replace("render.", ""), hint=hint)
